"""Tests of the WebDataset shards, against Python's own tar writer."""

import os
import tarfile

import numpy as np
import shard_files

from jest_tf import files
from jest_tf.data import stores


class TarsTestCase(shard_files.FolderTestCase):
    def setUp(self):
        super().setUp()
        self.path = os.path.join(self.directory, "00000.tar")

    def store(self, members, **settings):
        format = settings.pop("tar_format", tarfile.USTAR_FORMAT)
        shard_files.write_tar(self.path, members, format)
        return stores.open_store(self.path, **settings)

    def everything(self, store):
        return store.read(np.arange(len(store)))

    def read(self, members, **settings):
        return self.everything(self.store(members, **settings))


class SamplesTest(TarsTestCase):
    def test_a_sample_is_image_text_and_other_fields(self):
        found = self.read(
            shard_files.tar_sample(
                "0001", image=b"one", caption="a cat", url="u", width=3
            )
            + shard_files.tar_sample("0002", image=b"two\0", caption="a dog")
        )
        self.assertEqual(
            found,
            [
                stores.Record(
                    b"one",
                    (b"a cat",),
                    {"url": b"u", "width": b"3", "key": b"0001"},
                ),
                stores.Record(b"two\0", (b"a dog",), {"key": b"0002"}),
            ],
        )

    def test_the_key_ends_at_the_first_dot_of_the_base_name(self):
        found = self.read(
            [
                ("v1.0/a.left.JPG", b"left"),
                ("v1.0/a.txt", b"of a"),
                ("v1.0/b.webp", b"b"),
                ("v2.0/b.jpg", b"other b"),
            ]
        )
        self.assertEqual(
            [
                (record.image, record.captions, record.metadata["key"])
                for record in found
            ],
            [
                (b"left", (b"of a",), b"v1.0/a"),
                (b"b", (), b"v1.0/b"),
                (b"other b", (), b"v2.0/b"),
            ],
        )

    def test_files_of_no_sample_are_skipped(self):
        found = self.read(
            [
                ("folder", None),
                ("README", b"no extension"),
                (".hidden", b"no key"),
                ("__info__.json", b"{}"),
                ("notes.md", b"no image, no caption"),
                *shard_files.tar_sample("a", caption="x"),
                ("a.cls", b"3"),
            ]
        )
        self.assertLen(found, 1)
        self.assertEqual(found[0].captions, (b"x",))

    def test_captions_come_from_json_where_there_is_no_text_file(self):
        found = self.read(
            shard_files.tar_sample("a", caption="text", caption_in_json="json")
            + [("b.jpg", b""), ("b.json", b'{"caption": "json", "n": 1}')]
            + [("c.jpg", b""), ("c.json", b'{"text": ["x", 3, "y"]}')]
            + [("d.jpg", b""), ("d.json", b'{"caption": null}')]
        )
        self.assertEqual(
            [record.captions for record in found],
            [(b"text",), (b"json",), (b"x", b"y"), ()],
        )

    def test_fields_are_taken_as_set(self):
        members = [
            ("a.jpg", b"big"),
            ("a.thumb.jpg", b"small"),
            ("a.txt", b"text"),
            ("a.json", b'{"alt": "alt", "title": "title", "txt": "t"}'),
        ]
        found = self.read(
            members, image_field="thumb.jpg", caption_fields=("title", "txt")
        )
        self.assertEqual(
            found,
            [
                stores.Record(
                    b"small", (b"title", b"text"), {"alt": b"alt", "key": b"a"}
                )
            ],
        )

    def test_long_names_of_every_tar_format_are_read(self):
        key = "d" * 80 + "/" + "ü" * 60 + "k" * 40
        for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            found = self.read(
                shard_files.tar_sample(key, caption="long")
                + shard_files.tar_sample("b", caption="short"),
                tar_format=tar_format,
            )
            self.assertEqual(
                [(record.metadata["key"], record.captions) for record in found],
                [(key.encode(), (b"long",)), (b"b", (b"short",))],
            )
        # USTAR keeps up to 155 bytes of the folder apart.
        key = "d" * 120 + "/" + "k" * 90
        found = self.read(shard_files.tar_sample(key, caption="x"))
        self.assertEqual(found[0].metadata["key"], key.encode())

    def test_links_have_no_data_and_archives_may_be_joined(self):
        shard_files.write_tar(
            self.path, shard_files.tar_sample("a", caption="x")
        )
        with tarfile.open(self.path, "a") as tar:
            info = tarfile.TarInfo("link.jpg")
            info.type, info.linkname, info.size = tarfile.LNKTYPE, "a.jpg", 700
            tar.addfile(info)
        other = shard_files.write_tar(
            self.path + "2", shard_files.tar_sample("b", caption="y")
        )
        with open(self.path, "ab") as out:
            out.write(files.read_whole(other))
        with self.assertNoLogs("absl", "WARNING"):
            store = stores.open_store(self.path)
        self.assertEqual((store.num_lost, store.lost_share), (0, 0.0))
        self.assertEqual(
            [record.captions for record in self.everything(store)],
            [(b"x",), (b"y",)],
        )

    def test_a_size_in_base_256_is_read(self):
        shard_files.write_tar(
            self.path,
            shard_files.tar_sample("a", image=b"x" * 700, caption="c"),
        )
        with open(self.path, "r+b") as file:
            header = bytearray(file.read(512))
            header[124:136] = b"\x80" + (700).to_bytes(11, "big")
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            file.seek(0)
            file.write(header)
        found = self.everything(stores.open_store(self.path))
        self.assertEqual(found[0].image, b"x" * 700)
        self.assertEqual(found[0].captions, (b"c",))


class DamageTest(TarsTestCase):
    def samples(self):
        # Nine blocks of 512 bytes each: three headers, three small files
        # padded to a block, and the fields.
        return [
            member
            for key in "abc"
            for member in shard_files.tar_sample(
                key, caption=f"of {key}", url="u"
            )
        ]

    def test_a_sample_without_an_image_or_with_bad_json_is_a_fault(self):
        found = self.read(
            [
                *shard_files.tar_sample("a", caption="x"),
                ("b.txt", b"alone"),
                ("c.jpg", b""),
                ("c.json", b"{"),
                ("d.jpg", b""),
                ("d.json", b"[1]"),
            ]
        )
        self.assertIsInstance(found[0], stores.Record)
        for fault, reason in zip(
            found[1:],
            ["no image.*txt", "bad JSON: Expecting", "bad JSON.*got list"],
            strict=True,
        ):
            self.assertRegex(fault.reason, reason)

    def test_a_truncated_tar_has_the_samples_before_the_cut(self):
        shard_files.write_tar(self.path, self.samples())
        whole = self.everything(stores.open_store(self.path))
        # Sample b lies in blocks 6 to 12, the last of which zeros fill up: the
        # tar is cut after it, in the zeros, and in its image's data.
        for size, left, lost in (
            (12 * 512, 2, 1),
            (12 * 512 - 100, 2, 1),
            (6 * 512 + 512 + 3, 1, 515),
        ):
            os.truncate(self.path, size)
            with self.assertLogs("absl", "WARNING") as logs:
                found = self.everything(stores.open_store(self.path))
            fault = stores.Fault(f"damaged: {lost} bytes that are not a record")
            self.assertEqual(found, [*whole[:left], fault])
            self.assertRegex(
                logs.output[0],
                f"{self.path} is damaged or cut off: {lost} bytes .* 1 of "
                f"{left + 1} records",
            )

    def test_a_damaged_header_costs_its_sample(self):
        shard_files.write_tar(self.path, self.samples())
        whole = self.everything(stores.open_store(self.path))
        lost = stores.Fault("damaged: 1024 bytes that are not a record")
        for block, expected in (
            (6, [lost, stores.Fault("no image among the files: json, txt")]),
            (8, [stores.Fault("damaged: a tar header is unreadable")]),
            # Whose file it was is not known.
            (10, [whole[1]._replace(metadata={"key": b"b"}), lost]),
        ):
            shard_files.flip(self.path, block * 512)
            found = self.everything(stores.open_store(self.path))
            self.assertEqual(found, [whole[0], *expected, whole[2]])
            shard_files.flip(self.path, block * 512)

    def test_a_negative_or_absurd_size_ends_the_archive(self):
        shard_files.write_tar(self.path, self.samples())
        data = files.read_whole(self.path)
        for size in (b"\xff" * 12, b"\x80" + b"\xff" * 11):
            header = bytearray(data[12 * 512 : 13 * 512])
            header[124:136] = size
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            rest = data[13 * 512 :]
            files.write_whole(self.path, data[: 12 * 512], header, rest)
            with self.assertLogs("absl", "WARNING") as logs:
                found = self.everything(stores.open_store(self.path))
            self.assertRegex(logs.output[0], f"{self.path} is damaged")
            self.assertEqual(
                [record.captions for record in found[:2]],
                [(b"of a",), (b"of b",)],
            )

    def test_files_that_are_not_tars_of_images_are_refused(self):
        for data in (b"x" * 5000, b"\0" * 10240, b"\x1f\x8b" * 700):
            files.write_whole(self.path, data)
            with self.assertRaisesRegex(ValueError, "00000.tar is not an unc"):
                stores.open_store(self.path)
        sample = shard_files.tar_sample("a", caption="x")
        with self.assertRaisesRegex(
            ValueError, r"key\.png' and 'key.txt'. Received: a.jpg, a.txt$"
        ):
            self.store(sample, image_field="png")
        with self.assertRaisesRegex(ValueError, "`data.caption_fields`.*'alt'"):
            self.store(sample, caption_fields=("alt",))

"""Tests of sidecars as one array over the shards of a store."""

import concurrent.futures
import os
from unittest import mock

import fake_gcs
import numpy as np
import pytest
import remote_files
import shard_files
import sidecar_files

from jest_tf import files
from jest_tf.data import artefacts, stores
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data.sidecars import embed, file_format
from jest_tf.files import remote

LENGTHS = (5, 1, 9)
DIM = sidecar_files.DIM
DESCRIPTION = sidecar_files.DESCRIPTION


class EmbeddingsTestCase(shard_files.FolderTestCase):
    """Three shards of 5, 1 and 9 records with no, one or several captions."""

    def setUp(self):
        super().setUp()
        random = np.random.default_rng(2)
        self.counts = random.integers(0, 4, sum(LENGTHS))
        self.counts[3] = 2
        self.ends = np.cumsum(self.counts)
        start = 0
        for shard, length in enumerate(LENGTHS):
            self.write_shard(shard, range(start, start + length))
            start += length
        self.store = self.open()
        self.valid = np.ones(len(self.store), bool)
        self.valid[[2, 11]] = False
        self.image = sidecar_files.unit_rows(len(self.store), 3)
        self.text = sidecar_files.unit_rows(int(self.ends[-1]), 4)
        self.folder = self.sidecar_folder()

    def sidecar_folder(self):
        return self.path("sidecars")

    def write_shard(self, shard, rows):
        shard_files.write_shard(
            self.path(f"{shard}.tfrecord"),
            [
                shard_files.serialize(
                    image=b"an image",
                    caption=[f"{row} {i}" for i in range(self.counts[row])],
                    id=1000 + 7 * row,
                )
                for row in rows
            ],
        )

    def open(self):
        return stores.open_store(self.path("*.tfrecord"), caption_fields=())

    def write(self, description=DESCRIPTION, *, arrays=(), **output):
        output = {"directory": self.folder, "dtype": "float32"} | output
        arrays = {"captions": self.counts, "valid": self.valid} | dict(arrays)
        return embed.write_arrays(
            self.store,
            self.image,
            self.text,
            description,
            embed.Output(**output),
            **arrays,
        )

    def pick(self, rows, seed=0):
        """Rows that may be asked for, with a caption of each and its id."""
        rows = np.asarray(rows)
        rows = rows[self.valid[rows] & (self.counts[rows] > 0)]
        random = np.random.default_rng(seed)
        return rows, random.integers(0, self.counts[rows]), 1000 + 7 * rows


class SidecarsTest(EmbeddingsTestCase):
    def setUp(self):
        super().setUp()
        self.summary = self.write()
        self.sidecars = sidecars_lib.Sidecars(self.store, self.folder)

    def assert_reads(self, rows):
        rows, captions, ids = self.pick(rows)
        image, text = self.sidecars.read(rows, captions, ids)
        self.assertEqual(image.dtype, self.sidecars.dtype)
        self.assertAllEqual(image, self.image[rows])
        places = self.ends[rows] - self.counts[rows] + captions
        self.assertAllEqual(text, self.text[places])

    def test_rows_come_in_the_order_asked_for(self):
        everything = np.arange(sum(LENGTHS))
        self.assert_reads(everything)
        self.assert_reads(everything[::-1])
        self.assert_reads([4, 6, 4, 4, 14, 0, 13, 5])
        self.assert_reads([1])
        self.assert_reads([12, 7, 13])  # of one shard
        self.assert_reads(np.random.default_rng(5).integers(0, 15, 1000))
        empty = np.zeros(0, np.int64)
        image, text = self.sidecars.read(empty, empty, empty)
        self.assertEqual((image.shape, text.shape), ((0, DIM), (0, DIM)))
        self.assertAllEqual(self.sidecars.valid(empty), [])
        self.assertAllEqual(
            self.sidecars.valid(np.array([11, 0, 2, 14, 2])),
            [False, True, False, True, False],
        )

    def test_a_shard_comes_with_all_its_captions(self):
        for shard, (start, stop) in enumerate(((0, 5), (5, 6), (6, 15))):
            rows = self.sidecars.read_shard(shard)
            self.assertAllEqual(rows["ids"], 1000 + 7 * np.arange(start, stop))
            self.assertAllEqual(rows["valid"], self.valid[start:stop])
            self.assertAllEqual(
                rows["image"],
                np.where(self.valid[:, None], self.image, 0)[start:stop],
            )
            counts = self.counts[start:stop]
            self.assertAllEqual(rows["offsets"], [0, *np.cumsum(counts)])
            first = self.ends[start] - self.counts[start]
            self.assertAllEqual(
                rows["text"], self.text[first : self.ends[stop - 1]]
            )
            if not files.is_remote(self.folder):
                self.assertFalse(rows["image"].flags.owndata)

    def test_several_threads_may_read_at_once(self):
        random = np.random.default_rng(6)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    self.assert_reads,
                    random.integers(0, sum(LENGTHS), [40, 300]),
                )
            )

    def test_what_cannot_be_read_is_refused(self):
        read = self.sidecars.read
        for message, rows, captions, ids in (
            (r"3\.tf|record 3 of .*must have the record's id, 5. Rec.* 1021",
             [0, 3], [0, 0], [1000, 5]),
            ("record 2 of .*0.tfrecord.* must have an embedding of caption 0",
             [3, 2], [0, 0], [1021, 1014]),
            ("an embedding of caption 2. Received: none", [3], [2], [1021]),
            ("an embedding of caption -1. Received", [3], [-1], [1021]),
        ):  # fmt: skip
            with self.assertRaisesRegex(ValueError, message):
                read(rows, captions, ids)
        for rows in ([15], [-1], [0, 99]):
            with self.assertRaisesRegex(
                IndexError, r"\[0, 15\).*" + f"{rows[-1]}"
            ):
                read(rows, [0] * len(rows), [0] * len(rows))
            with self.assertRaisesRegex(IndexError, r"\[0, 15\)"):
                self.sidecars.valid(rows)

    def test_damaged_offsets_never_lead_out_of_the_file(self):
        path = sidecars_lib.sidecar_path(self.store, 2, self.folder)
        offsets = np.array(file_format.read(path)[1].arrays["offsets"])
        data = files.read_whole(path)
        place = data.index(offsets.tobytes())
        captions = int(offsets[-1])
        for value in (-1, captions + 1, 2**62, -(2**63)):
            damaged = offsets.copy()
            damaged[4] = value
            rest = data[place + damaged.nbytes :]
            files.write_whole(path, data[:place], damaged.tobytes(), rest)
            sidecars = sidecars_lib.Sidecars(self.store, self.folder)
            for caption in (0, 3, 2**62):
                with self.assertRaisesRegex(ValueError, "must have .*caption"):
                    sidecars.read([10], [caption], [1070])

    def test_zeros_are_found_before_they_are_read(self):
        paths = [
            sidecars_lib.sidecar_path(self.store, shard, self.folder)
            for shard in range(len(LENGTHS))
        ]
        content = files.read_whole(paths[2])
        files.write_whole(paths[2], content[:-100], bytes(100))
        sidecars = sidecars_lib.Sidecars(self.store, self.folder)
        size = sum(files.stat(path)[0] for path in paths)
        sidecars.verify(size - 1)  # which is without the last
        for most in ({}, {"most": size}):
            with self.assertRaisesRegex(
                ValueError, f"{paths[2]} must be .*damaged `text`"
            ):
                sidecars.verify(**most)

    def test_captions_are_chosen_of_those_not_blank(self):
        # Of some rows the first is blank, of some two are, of some all; and
        # zeros ahead of other numbers are no blank caption.
        starts = self.ends - self.counts
        for row, count in enumerate(self.counts):
            self.text[starts[row] : starts[row] + min(row % 3, count)] = 0.0
        (last,) = np.flatnonzero(self.counts == 3)[-1:]
        self.text[starts[last] + 2] = np.eye(self.text.shape[1])[-1]
        folder = os.path.join(self.folder, "blank")
        self.write(directory=folder)
        sidecars = sidecars_lib.Sidecars(self.store, folder)
        random = np.random.default_rng(0)
        rows = random.permutation(np.repeat(np.arange(15), 7))
        numbers = random.integers(0, 2**62, len(rows))
        for some in (numbers, None):  # drawn, or the most like its image
            expected = []
            for row, number in zip(rows, numbers, strict=True):
                own = self.text[starts[row] : self.ends[row]]
                whole = np.flatnonzero(own.any(1))
                chosen = -1
                if self.valid[row] and len(whole):
                    chosen = whole[number % len(whole)]
                    if some is None:
                        best = np.argmax(own[whole] @ self.image[row])
                        chosen = whole[best]
                expected.append(chosen)
            captions, image, text = sidecars.read_numbered(
                rows, some, 1000 + 7 * rows
            )
            self.assertAllEqual(captions, expected)
            self.assertContainsSubset([-1, 0, 1, 2], expected)
            good = captions >= 0
            self.assertAllEqual(image[good], self.image[rows[good]])
            self.assertAllEqual(
                text[good], self.text[starts[rows[good]] + captions[good]]
            )
        with self.assertRaisesRegex(IndexError, "Received: 15"):
            sidecars.read_numbered([15], [0], [1105])
        with self.assertRaisesRegex(ValueError, "the record's id, 1022"):
            sidecars.read_numbered([3], [0], [1022])

    def test_a_sidecar_replaced_under_way_is_noticed(self):
        other = DESCRIPTION._replace(fingerprint="other")
        self.write(other, overwrite=True)
        with self.assertRaisesRegex(ValueError, "was replaced by another"):
            self.sidecars.read([3], [0], [1021])


class RamSidecarsTest(SidecarsTest):
    def setUp(self):
        remote_files.hurry(self)
        super().setUp()

    def sidecar_folder(self):
        return f"ram://{self.id()}"

    def test_a_sidecar_replaced_while_it_is_read_is_noticed(self):
        self.assert_reads([3])
        self.text = np.concatenate([self.text] * 2)
        self.write(
            DESCRIPTION._replace(fingerprint="other"),
            overwrite=True,
            arrays={"captions": 2 * self.counts},
        )
        self.assert_reads([3])  # of the pages that are kept
        with (
            mock.patch.object(remote, "PAGES", remote.Pages()),
            self.assertRaisesRegex(ValueError, "was replaced by another"),
        ):
            self.sidecars.read([3], [0], [1021])


@pytest.mark.slow
class GcsSidecarsTest(SidecarsTest):
    def setUp(self):
        remote_files.hurry(self)
        self.bucket = remote_files.server()
        super().setUp()

    def sidecar_folder(self):
        return f"gs://{fake_gcs.BUCKET}/{self.id()}"

    def test_neighbouring_rows_are_fetched_once(self):
        self.assert_reads([3])
        self.enterContext(mock.patch.object(remote, "PAGES", remote.Pages()))
        self.bucket.requests()
        for _ in range(2):
            self.assert_reads([3])
            self.assertAllEqual(self.sidecars.valid(np.array([3])), [True])
        found = [
            line for line in self.bucket.requests() if "GET storage" in line
        ]
        # The page that has all of so small a file, and the end of the file.
        self.assertLessEqual(len(found), 2)


class RefusalTest(EmbeddingsTestCase):
    def test_sidecars_of_something_else_are_refused_with_the_reason(self):
        self.write()
        sidecars_lib.Sidecars(self.store, self.folder, DESCRIPTION)
        for name, value in (
            ("fingerprint", "other"),
            ("tokenizer", "other"),
            ("preprocessing", "other"),
            ("dim", 5),
            ("scale", 8.0),
            ("bias", 0.0),
        ):
            expected = DESCRIPTION._replace(**{name: value})
            with self.assertRaisesRegex(
                ValueError,
                rf"0.tfrecord-.*sidecar does not fit: expected the {name}, "
                rf"{value!r}. Received: {getattr(DESCRIPTION, name)!r}",
            ):
                sidecars_lib.Sidecars(self.store, self.folder, expected)

    def test_the_last_digits_of_a_scale_make_no_other_sidecar(self):
        def write(**changes):
            for shard in range(3):
                path = sidecars_lib.sidecar_path(self.store, shard, self.folder)
                if os.path.exists(path):
                    os.remove(path)
            self.write(DESCRIPTION._replace(**changes))
            return sidecars_lib.Sidecars(self.store, self.folder)

        first = write()
        near = write(scale=DESCRIPTION.scale * (1 + 5e-7))
        self.assertNotEqual(near.scale, first.scale)
        sidecars_lib.Sidecars(self.store, self.folder, DESCRIPTION)
        self.assertEqual(near.identity, first.identity)
        for other in (
            write(scale=DESCRIPTION.scale * 1.001),
            write(tokenizer="other"),
        ):
            self.assertNotEqual(other.identity, first.identity)
            with self.assertRaisesRegex(ValueError, "does not fit"):
                sidecars_lib.Sidecars(self.store, self.folder, DESCRIPTION)

    def test_sidecars_of_several_references_are_not_mixed(self):
        self.write()
        for (description, dtype), what in (
            ((DESCRIPTION._replace(scale=9.0), "float32"), "scale"),
            ((DESCRIPTION, "float16"), "dtype"),
        ):
            os.remove(sidecars_lib.sidecar_path(self.store, 2, self.folder))
            store = stores.open_store(self.path("2.tfrecord"))
            first = self.ends[5]
            embed.write_arrays(
                store,
                self.image[6:],
                self.text[first:],
                description,
                embed.Output(self.folder, dtype),
                captions=self.counts[6:],
            )
            with self.assertRaisesRegex(ValueError, f"expected the {what}"):
                sidecars_lib.Sidecars(self.store, self.folder)

    def test_sidecars_of_an_earlier_format_are_refused(self):
        with mock.patch.object(artefacts, "_VERSION", "1"):  # of 0.3.0
            self.write(directory="")
        with self.assertRaisesRegex(
            ValueError,
            "0.tfrecord.*sidecar must be a .* sidecar. Received: version "
            "'1', not '2'; rewrite it with `jest-tf embed --overwrite`",
        ):
            sidecars_lib.Sidecars(self.store)

    def test_sidecars_of_another_version_of_a_shard_are_refused(self):
        self.write()
        self.write(directory="")
        self.counts[5] += 1
        self.write_shard(1, [5])
        changed = self.open()
        with self.assertRaisesRegex(
            ValueError, "No sidecar of .*1.tfrecord: expected .*1.tfrecord-"
        ):
            sidecars_lib.Sidecars(changed, self.folder)
        with self.assertRaisesRegex(
            ValueError,
            "1.tfrecord.sidecar does not fit: expected the stamp of the "
            "present shard",
        ):
            sidecars_lib.Sidecars(changed)

    def test_a_missing_sidecar_is_told_with_the_command_that_helps(self):
        self.write()
        self.write(directory="")
        for directory in ("", self.folder):
            path = sidecars_lib.sidecar_path(self.store, 2, directory)
            os.remove(path)
            with self.assertRaises(ValueError) as raised:
                sidecars_lib.Sidecars(
                    self.store, directory, DESCRIPTION._replace(name="runs/a b")
                )
            output = f" --output {directory}" if directory else ""
            self.assertEqual(
                str(raised.exception),
                f"No sidecar of {self.path('2.tfrecord')}: expected {path}. "
                "`jest-tf embed --model 'runs/a b' --data "
                f"'{self.directory}/*.tfrecord'{output}` writes missing ones",
            )


class WriteArraysTest(EmbeddingsTestCase):
    def test_one_caption_a_record_is_the_default(self):
        self.text = sidecar_files.unit_rows(15, 9)
        self.write(arrays={"captions": None, "valid": None})
        sidecars = sidecars_lib.Sidecars(self.store, self.folder)
        rows = np.arange(15)
        image, text = sidecars.read(rows, 0 * rows, 1000 + 7 * rows)
        self.assertAllEqual(image, self.image)
        self.assertAllEqual(text, self.text)

    def test_arrays_of_another_length_are_refused(self):
        for name, message in (
            ("image", r"`image` must be \[15, 4\]. Received: \[14, 4\]"),
            ("text", rf"`text` must be \[{self.ends[-1]}, 4\]"),
        ):
            whole = getattr(self, name)
            setattr(self, name, whole[1:])
            with self.assertRaisesRegex(ValueError, message):
                self.write()
            setattr(self, name, whole)
        for name, values, message in (
            ("valid", self.valid[1:], r"be \[15\]. Received: \[14\]"),
            ("captions", self.counts[1:], r"be \[15\]. Received: \[14\]"),
            ("captions", -self.counts, r"integers, none negative. Rec.*\[-"),
            ("captions", self.counts / 2, "integers"),
        ):
            with self.assertRaisesRegex(ValueError, f"`{name}` .*{message}"):
                self.write(arrays={name: values})
        self.assertFalse(os.path.exists(self.folder))

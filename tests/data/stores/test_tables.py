"""Tests of tables: CSV, TSV and Parquet, paths and images."""

import csv
import errno
import os
import sys
import time
from unittest import mock

import fake_gcs
import numpy as np
import pyarrow
import pyarrow.parquet
import remote_files
import shard_files
import tensorflow as tf

from jest_tf import files
from jest_tf.data import stores
from jest_tf.data.stores import shards
from jest_tf.files import retries


class TablesTestCase(shard_files.FolderTestCase):
    def setUp(self):
        super().setUp()
        for i in range(4):
            self.write(f"images/{i}.jpg", b"image %d" % i)

    def write(self, name, data):
        files.write_whole(self.path(name), data)
        return self.path(name)

    def read(self, path, **settings):
        store = stores.open_store(path, **settings)
        return store.read(np.arange(len(store)))

    def refuse(self, message, path, **settings):
        with self.assertRaisesRegex(ValueError, message):
            stores.open_store(path, **settings)


class DelimitedTest(TablesTestCase):
    def test_rows_name_images_relative_to_the_table(self):
        path = self.write(
            "a.csv",
            b"image,caption,source\n"
            b"images/1.jpg,a cat,web\n"
            + f"{self.path('images/0.jpg')},\xe4,\n".encode(),
        )
        self.assertEqual(
            self.read(path),
            [
                stores.Record(b"image 1", (b"a cat",), {"source": b"web"}),
                stores.Record(b"image 0", ("ä".encode(),), {"source": b""}),
            ],
        )

    def test_rows_equal_those_of_the_csv_module(self):
        rng = np.random.default_rng(0)
        pieces = ["a", ",", ";", '"', "\n", "\r\n", "\t", " ", "ü", "''", ""]
        rows = [
            ["".join(rng.choice(pieces, rng.integers(0, 9))) for _ in range(3)]
            for _ in range(400)
        ]
        for ending, delimiter, line_break in (
            ("csv", ",", "\r\n"),
            ("tsv", "\t", "\n"),
            ("csv", ";", "\n"),
            ("csv", "\t", "\n"),
        ):
            path = self.path(f"a.{ending}")
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(
                    file, delimiter=delimiter, lineterminator=line_break
                )
                writer.writerow(["image", "caption", "text"])
                for row in rows:
                    writer.writerow(["images/0.jpg", *row[1:]])
            with self.assertNoLogs("absl", "WARNING"):
                found = self.read(path, caption_fields=["text", "caption"])
            self.assertEqual(
                [record.captions for record in found],
                [(row[2].encode(), row[1].encode()) for row in rows],
            )

    def test_a_byte_order_mark_and_blank_lines_are_skipped(self):
        path = self.write(
            "a.csv",
            b"\xef\xbb\xbfimage,caption\r\n\r\nimages/1.jpg,x\r\n\n"
            b"images/2.jpg,y",
        )
        self.assertEqual(
            [(record.image, record.captions) for record in self.read(path)],
            [(b"image 1", (b"x",)), (b"image 2", (b"y",))],
        )

    def test_a_bad_row_is_a_fault_and_harms_no_other(self):
        path = self.write(
            "a.csv",
            b"image,caption\n"
            b"images/0.jpg,good\n"
            b"images/9.jpg,missing\n"
            b"images/1.jpg,one,too many\n"
            b"images/1.jpg\n"
            b"images,folder\n"
            b"images/1.jpg,x\ry\n"
            b"images/1.jpg,good\n",
        )
        found = self.read(path)
        for i in (0, 6):
            self.assertEqual(found[i].captions, (b"good",))
        for fault, reason in zip(
            found[1:6],
            [
                "missing file: '9.jpg'",
                "bad row: 3 fields, the header has 2",
                "bad row: 1 fields, the header has 2",
                "missing file: 'images'",
                "bad row: new-line character seen in unquoted field",
            ],
            strict=True,
        ):
            self.assertStartsWith(fault.reason, reason)

    def test_an_open_quotation_mark_costs_a_megabyte_of_rows(self):
        good = b"images/0.jpg,good\n"
        count = 70000  # 1.2 MB
        path = self.write(
            "a.csv",
            b'image,caption\n%bimages/0.jpg,"open\n%b' % (good, good * count),
        )
        found = self.read(path)
        self.assertStartsWith(found[1].reason, "damaged: 10")
        self.assertTrue(
            all(record.captions == (b"good",) for record in found[2:])
        )
        lost = count - (len(found) - 2)
        self.assertBetween(lost * len(good), 2**20 - 100, 2**20 + 100)

    def test_an_image_of_any_scheme_that_cannot_be_opened_costs_its_row(self):
        server = remote_files.server()
        self.addCleanup(server.heal)
        bucket = f"gs://{fake_gcs.BUCKET}/{self.id()}"
        files.write_whole(f"{bucket}/1.jpg", b"remote")
        path = self.write(
            "a.csv",
            "image,caption\nimages/0.jpg,gööd\n"
            f"{bucket}/1.jpg,good\n{bucket}/2.jpg,missing\n"
            "gs://other/x.png,x\ngs://,x\nhttp://127.0.0.1:9/x.png,x\n"
            "nothing://x/y,x\ngs://\udcff/\udcff,x\n".encode(
                "utf-8", "surrogateescape"
            ),
        )
        started = time.monotonic()
        found = self.read(path)
        self.assertEqual(
            [record.image for record in found[:2]], [b"image 0", b"remote"]
        )
        for fault, reason in zip(
            found[2:],
            [
                "missing file: '2.jpg'",
                "missing file: 'x.png'",
                "unreadable: ",
                "unreadable: 'http://127.0.0.1:9/x.png', A path must be local",
                "unreadable: 'nothing://x/y', A path must be local",
                "unreadable: ",
            ],
            strict=True,
        ):
            self.assertStartsWith(fault.reason, reason)
        # A bucket that does not answer at all.
        server.set(latency=2.5)
        rows = 2 * b"images/0.jpg,x\n" + b"gs://mute/x.png,x\n"
        path = self.write("b.csv", b"image,caption\n" + rows)
        with mock.patch.object(shards, "_PATIENCE", 0.5):
            found = self.read(path)
        self.assertEqual(
            found[2].reason, "unreadable: no answer from gs://mute in 0.5 s"
        )
        self.assertLess(time.monotonic() - started, 5)

    def test_ids_come_from_the_column_or_are_derived(self):
        path = self.write(
            "a.csv",
            b"id,image,caption\n" + b"-7,images/0.jpg,x\n"
            b"abc,images/0.jpg,x\n,images/0.jpg,x\n00,images/0.jpg,x\n"
            b"99999999999999999999,images/0.jpg,x\n",
        )
        ids = stores.open_store(path).ids(np.arange(5)).tolist()
        self.assertEqual(ids[0], -7)
        self.assertEqual(ids[1], shards.stored_id(b"abc"))
        self.assertEqual(ids[3], 0)
        self.assertEqual(ids[4], shards.stored_id(b"9" * 20))
        self.assertLen(set(ids), 5)

    def test_an_empty_table_is_refused(self):
        self.refuse("c.csv is empty", self.write("c.csv", b""))
        self.refuse("d.csv is empty", self.write("d.csv", b"image,caption\n"))
        self.refuse("e.csv is not a table", self.write("e.csv", b"\n\n"))
        self.refuse("f.csv must have a column", self.write("f.csv", b"\0" * 9))
        # Two delimiters that split it.
        path = self.write("g.csv", b"image;caption\tid\nimages/0.jpg;x\t1\n")
        self.refuse(r"columns 'image;caption\\tid'", path)

    def test_a_table_of_another_encoding_is_refused(self):
        text = "image,caption\nimages/0.jpg,x\nimages/0.jpg,é\n"
        place = len(text.encode("latin1")) - 2
        for name, encoding, held, line in (
            ("a.csv", "latin1", text, f"line 3, byte {place}, 0xe9"),
            ("b.csv", "latin1", "bild,é\n", "line 1, byte 5, 0xe9"),
            ("b.csv", "utf-16", text, "line 1, byte 0, 0xff"),
        ):
            path = self.write(name, held.encode(encoding))
            command = f"`iconv -f {encoding} -t utf-8 {path} > NEW`"
            self.refuse(f"{name} must be UTF-8. .* {line}; .*{command}", path)
        # A damaged line among others.
        path = self.write("c.csv", text.encode() + b"images/0.jpg,\xe9\n")
        self.assertEqual(self.read(path)[2].captions, (b"\xe9",))
        # One in a hundred, and two, of lines without other letters.
        lines = ["image,caption", *["images/0.jpg,x"] * 98, "images/0.jpg,é"]
        bad = "\n".join(lines).encode("latin1")
        path = self.write("d.csv", bad)
        self.assertEqual(self.read(path)[98].captions, (b"\xe9",))
        path = self.write("e.csv", bad.replace(b",x", b",\xe9", 1))
        self.refuse("e.csv must be UTF-8", path)

    def test_tables_on_a_remote_file_system(self):
        folder = f"ram://{os.path.basename(self.directory)}"
        tf.io.gfile.makedirs(f"{folder}/images")
        for name in ("0.jpg", "1.jpg"):
            tf.io.gfile.copy(
                self.path(f"images/{name}"), f"{folder}/images/{name}"
            )
        with tf.io.gfile.GFile(f"{folder}/a.csv", "w") as file:
            file.write("image,caption\nimages/1.jpg,x\nimages/0.jpg,y\n")
            file.write("images/5.jpg,z\n")
        found = self.read(f"{folder}/a.csv")
        self.assertEqual(found[0].image, b"image 1")
        self.assertEqual(found[1].image, b"image 0")
        self.assertEqual(found[2].reason, "missing file: '5.jpg'")
        table = pyarrow.table({"image": [b"A"], "caption": ["x"]})
        pyarrow.parquet.write_table(table, self.path("a.parquet"))
        tf.io.gfile.copy(self.path("a.parquet"), f"{folder}/a.parquet")
        self.assertEqual(self.read(f"{folder}/a.parquet")[0].image, b"A")


class ParquetTest(TablesTestCase):
    def table(self, name="a.parquet", row_group_size=2, **columns):
        path = self.path(name)
        pyarrow.parquet.write_table(
            pyarrow.table(columns), path, row_group_size=row_group_size
        )
        return path

    def test_images_are_bytes_or_paths_or_structs_of_both(self):
        for image in (
            [b"A\0", b"B", b"C"],
            [{"bytes": b, "path": None} for b in (b"A\0", b"B", b"C")],
        ):
            path = self.table(
                image=image, caption=["a", None, "c"], note=["x", "y", None]
            )
            self.assertEqual(
                self.read(path),
                [
                    stores.Record(b"A\0", (b"a",), {"note": b"x"}),
                    stores.Record(b"B", (), {"note": b"y"}),
                    stores.Record(b"C", (b"c",), {}),
                ],
            )
        for image in (
            ["images/2.jpg", "images/0.jpg"],
            [{"bytes": None, "path": f"images/{i}.jpg"} for i in (2, 0)],
        ):
            found = self.read(self.table(image=image, caption=["a", "b"]))
            self.assertEqual(
                [record.image for record in found], [b"image 2", b"image 0"]
            )

    def test_captions_are_lists_or_several_columns(self):
        path = self.table(
            image=[b"A", b"B"],
            caption=[["x", None, "y"], []],
            alt=["z", "w"],
            size=[1, 2],
        )
        self.assertEqual(
            [record.captions for record in self.read(path)], [(b"x", b"y"), ()]
        )
        self.assertEqual(
            [
                record.captions
                for record in self.read(path, caption_fields=["alt", "caption"])
            ],
            [(b"z", b"x", b"y"), (b"w",)],
        )

    def reading(self, read):
        """Replaces how PyArrow reads the row groups of a file."""
        real = pyarrow.parquet.ParquetFile.read_row_group

        def call(file, group, **options):
            read(group)
            return real(file, group, **options)

        return mock.patch.object(
            pyarrow.parquet.ParquetFile, "read_row_group", call
        )

    def test_a_group_is_decoded_once_for_the_rows_that_follow(self):
        path = self.table(image=[b"A"] * 6, caption=["x"] * 6, row_group_size=3)
        groups = []
        with self.reading(groups.append):
            store = stores.open_store(path)
            for row in (0, 4, 1, 5, 2, 3):
                store.read(np.array([row]))
        self.assertEqual(groups, [0, 1])

    @mock.patch.object(retries, "WAITS", (0.0, 0.0))
    def test_a_group_that_stays_unreadable_costs_its_rows(self):
        path = self.table(image=[b"A"] * 4, caption=["x"] * 4, row_group_size=2)

        def read(rows, number, times, groups=(0, 1)):
            left = [times]

            def fail(group):
                if group in groups and left[0]:
                    left[0] -= 1
                    raise OSError(number, os.strerror(number))

            # A look at a few records opens it.
            with self.reading(fail):
                return stores.open_store(path).read(rows)

        found = read([0, 3], errno.EIO, 2)
        self.assertEqual([record.image for record in found], 2 * [b"A"])
        found = read(np.arange(4), errno.EIO, 99, groups=(1,))
        self.assertEqual([record.image for record in found[:2]], 2 * [b"A"])
        for fault in found[2:]:
            self.assertRegex(fault.reason, "^unreadable row group: .Errno 5. ")
        with self.assertRaisesRegex(ValueError, f"{path} cannot .*Errno 2. "):
            read([0], errno.ENOENT, 99)

    def test_a_row_without_an_image_is_a_fault(self):
        path = self.table(
            image=["images/0.jpg", None, "images/9.jpg"],
            caption=["a", "b", "c"],
        )
        found = self.read(path)
        self.assertEqual(found[0].image, b"image 0")
        self.assertEqual(found[1].reason, "no image: `image` holds NoneType")
        self.assertEqual(found[2].reason, "missing file: '9.jpg'")

    def test_other_files_are_refused(self):
        self.refuse(
            "b.parquet is not a Parquet file",
            self.write("b.parquet", b"PAR1" * 9),
        )
        self.refuse("is empty", self.table(image=[], caption=[]))
        self.refuse("must have a column.*'words'", self.table(words=["x"]))
        self.refuse("image` holds int", self.table(image=[3], caption=["x"]))

    def test_without_pyarrow_the_error_names_the_package(self):
        path = self.table(image=[b"A"], caption=["x"])
        with mock.patch.dict(sys.modules, {"pyarrow.parquet": None}):
            with self.assertRaisesRegex(ImportError, "pip install pyarrow"):
                stores.open_store(path)

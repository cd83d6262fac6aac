"""Tests of the index files: when they are built, believed and written."""

import concurrent.futures
import os
import struct
from unittest import mock

import numpy as np
import oracles
import pyarrow.parquet
import safetensors.numpy
import shard_files
import tensorflow as tf
from absl import logging

from jest_tf import files
from jest_tf.data import artefacts, stores
from jest_tf.data.stores import index, shards, tfrecords
from jest_tf.files import retries


class IndexTestCase(shard_files.FolderTestCase):
    def setUp(self):
        super().setUp()
        self.shard = self.write("a.tfrecord", 5)

    def write(self, name, count):
        return shard_files.write_shard(
            self.path(name),
            [
                shard_files.serialize(image="x" * i, caption=f"{i}", id=i)
                for i in range(count)
            ],
        )

    def open(self, path=None, **settings):
        """The store and how many shards had to be scanned."""
        scans = []
        scan = tfrecords.TFRecords.scan

        def counting(form, path, advance):
            scans.append(path)
            return scan(form, path, advance)

        with mock.patch.object(tfrecords.TFRecords, "scan", counting):
            store = stores.open_store(path or self.shard, **settings)
        return store, len(scans)

    def number_of_scans(self, path=None, **settings):
        return self.open(path, **settings)[1]


class FileTest(IndexTestCase):
    def test_an_index_is_built_once_and_holds_what_the_scan_found(self):
        built, scans = self.open()
        self.assertEqual(scans, 1)
        loaded, scans = self.open()
        self.assertEqual(scans, 0)
        entries = tfrecords.TFRecords().scan(self.shard, lambda size: None)
        expected = np.array(list(entries))
        for store in (built, loaded):
            for rows in (slice(None), np.array([4, 0])):
                ids = store.indexes[0].ids(rows)
                self.assertAllEqual(ids, expected[rows, 2])
                spans = store.indexes[0].spans(rows)
                self.assertAllEqual(spans, expected[rows][:, [0, 1, 3]])
        self.assertEqual(built.stamp(0), loaded.stamp(0))
        self.assertCountEqual(
            os.listdir(self.directory), ["a.tfrecord", "a.tfrecord.index"]
        )

    def test_in_memory_an_index_is_read_but_not_written(self):
        before = os.listdir(self.path(""))
        with stores.indexes_in_memory():
            for _ in range(2):
                store, scans = self.open(index_dir=self.path("new"))
                self.assertEqual((len(store), scans), (5, 1))
            self.assertEqual(os.listdir(self.path("")), before)
        kept = self.open()[0]
        with stores.indexes_in_memory():
            found, scans = self.open()
        self.assertEqual((found.stamp(0), scans), (kept.stamp(0), 0))

    def test_a_change_of_the_shard_builds_it_anew(self):
        self.open()
        os.utime(self.shard, (1, 1))  # time
        self.assertEqual(self.number_of_scans(), 1)
        self.write("a.tfrecord", 6)  # size
        self.assertEqual(self.number_of_scans(), 1)
        time = os.stat(self.shard).st_mtime_ns
        self.patch(self.shard, 20, b"?")  # head, at the same time and size
        os.utime(self.shard, ns=(time, time))
        self.assertEqual(self.number_of_scans(), 1)
        self.assertEqual(self.number_of_scans(), 0)

    def test_an_index_of_another_format_is_not_taken(self):
        self.open()
        with mock.patch.object(tfrecords.TFRecords, "index_key", "other"):
            self.assertEqual(self.number_of_scans(), 1)
        self.assertEqual(self.number_of_scans(), 1)

    def test_a_damaged_or_foreign_index_is_built_anew(self):
        self.open()
        path = self.shard + ".index"
        good = files.read_whole(path)
        records = {"records": np.zeros([5, 3], int)}
        foreign = safetensors.numpy.save(records)
        with mock.patch.object(artefacts, "_VERSION", "1"):
            artefacts.write(path, "index", {}, records)
        earlier = files.read_whole(path)
        for bad in (b"", good[:95], good[:-1], good + b"\0", foreign, earlier):
            files.write_whole(path, bad)
            self.assertEqual(self.number_of_scans(), 1)
        self.assertEqual(files.read_whole(path), good)

    def test_an_index_folder_holds_shards_of_the_same_name_apart(self):
        for name in ("x", "y"):
            os.mkdir(self.path(name))
        paths = [self.write("x/0", 2), self.write("y/0", 3)]
        folder = self.path("deep/indexes")
        self.assertEqual(self.number_of_scans(paths, index_dir=folder), 2)
        self.assertEqual(self.number_of_scans(paths, index_dir=folder), 0)
        self.assertLen(os.listdir(folder), 2)
        self.assertEqual(os.listdir(self.path("x")), ["0"])

    def test_a_place_that_cannot_be_written_costs_one_line(self):
        paths = [self.shard, self.write("b.tfrecord", 2)]
        # A file where the folder should be.
        with self.assertLogs(logging.get_absl_logger(), "WARNING") as logs:
            store, scans = self.open(paths, index_dir=self.shard)
        self.assertEqual(scans, 2)
        self.assertLen(logs.output, 1)
        self.assertRegex(logs.output[0], "2 indexes .*`data.index_dir`")
        self.assertAllEqual(store.ids(np.arange(7)), [0, 1, 2, 3, 4, 0, 1])
        self.assertEqual(store.read(np.array([6]))[0].captions, (b"1",))
        beside, _ = self.open(paths)
        self.assertEqual(store.stamp(1), beside.stamp(1))

    def test_an_index_replaced_in_use_is_an_error_not_wrong_rows(self):
        store, _ = self.open()
        self.write("a.tfrecord", 9)
        self.open()
        index._map.cache_clear()
        with self.assertRaisesRegex(ValueError, "was replaced by another"):
            store.read(np.array([0]))
        os.remove(self.shard + ".index")
        with self.assertRaisesRegex(ValueError, "can no longer be read"):
            store.read(np.array([0]))

    def test_several_builders_at_once_all_get_the_index(self):
        paths = [self.write(f"{i:02}", 40) for i in range(8)]
        expected = np.tile(np.arange(40), 8)
        for _ in range(5):
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                for store in pool.map(stores.open_store, [paths] * 4):
                    self.assertAllEqual(store.ids(np.arange(320)), expected)
            for path in paths:
                os.remove(path + ".index")
        self.assertFalse([n for n in os.listdir(self.directory) if "tmp" in n])


@mock.patch.object(index, "_EDGE", 8)
class ExchangeTest(shard_files.FolderTestCase):
    """Records exchanged where neither size nor ends of a shard tell."""

    IMAGES = [b"image %02d" % i * 100 for i in range(20)]

    def tfrecord(self, images):
        examples = [shard_files.serialize(image=x, id=5) for x in images]
        return shard_files.write_shard(self.path("a.tfrecord"), examples)

    def tar(self, images):
        members = [(f"{i:02}.jpg", image) for i, image in enumerate(images)]
        return shard_files.write_tar(self.path("a.tar"), members)

    def csv(self, images):
        return self.table(range(20), images)

    def rows(self, images):
        self.table(range(20), self.IMAGES)
        return self.table(map(self.IMAGES.index, images), self.IMAGES)

    def table(self, captions, images):
        with open(self.path("a.csv"), "w") as file:
            file.write("image,caption\n")
            file.writelines(f"{i}.jpg,{x:02}\n" for i, x in enumerate(captions))
        for i, image in enumerate(images):
            files.write_whole(self.path(f"{i}.jpg"), image)
            # The exchanged pictures are a second younger.
            age = self.IMAGES.index(image) != i
            os.utime(self.path(f"{i}.jpg"), (age, age))
        return self.path("a.csv")

    def parquet(self, images):
        table = pyarrow.table({"image": images, "caption": ["x"] * 20})
        plain = {"compression": "none", "use_dictionary": False}
        pyarrow.parquet.write_table(
            table, self.path("a.parquet"), write_statistics=False, **plain
        )
        return self.path("a.parquet")

    def test_an_exchanged_record_is_found(self):
        other = list(self.IMAGES)
        other[7], other[11] = other[11], other[7]
        for write in (
            self.tfrecord,
            self.tar,
            self.csv,
            self.rows,
            self.parquet,
        ):
            with self.subTest(write.__name__):
                path = write(self.IMAGES)
                store, size = stores.open_store(path), os.path.getsize(path)
                before = store.read(np.arange(20))
                ids = store.ids(np.arange(20))
                self.assertNotIn(shards.Fault, map(type, before))
                time = os.stat(path).st_mtime_ns
                write(other)
                self.assertEqual(os.path.getsize(path), size)
                os.utime(path, ns=(time, time))
                # The index fits: found when the records are read.
                same = stores.open_store(path)
                self.assertEqual(same.stamp(0), store.stamp(0))
                expected = list(before)
                expected[7] = expected[11] = shards.CHANGED
                self.assertEqual(same.read(np.arange(20)), expected)
                # The index is remade: the stamp tells, and the ids are kept.
                os.remove(path + ".index")
                anew = stores.open_store(path)
                self.assertNotEqual(anew.stamp(0), store.stamp(0))
                self.assertAllEqual(anew.ids(range(20)), ids)
                found = anew.read(np.arange(20))
                self.assertNotIn(shards.Fault, map(type, found))


class LossesTest(shard_files.FolderTestCase):
    """Parts of shards that hold no records any more, of twenty each."""

    def tfrecord(self):
        payloads = [
            shard_files.serialize(image="x" * 50, caption="y", id=i)
            for i in range(20)
        ]
        path = shard_files.write_shard(self.path("a.tfrecord"), payloads)
        return path, 16 + len(payloads[0])

    def tar(self):
        members = []
        for i in range(20):
            members += shard_files.tar_sample(
                f"{i:02}", image=bytes(1000), caption="y"
            )
        path = shard_files.write_tar(self.path("a.tar"), members)
        return path, 512 * (1 + 2 + 1 + 1)

    def csv(self, rows):
        """A table with some other rows; also where its rows begin."""
        lines = [b"image,caption\n"]
        for i in range(20):
            text = rows.get(i, f'{i:02}.png,"a, b"')
            lines.append(text.encode() + b"\n")
            files.write_whole(self.path(f"{i:02}.png"), b"image")
        files.write_whole(self.path("a.csv"), *lines)
        return self.path("a.csv"), np.cumsum([len(line) for line in lines])

    def check(self, path, lost, *parts):
        """Opens a shard twice, to build its index and to read it.

        `parts` are places and sizes in it, where `lost` records were.
        """
        (place, _), size = parts[0], sum(size for _, size in parts)
        where = f"in {len(parts)} places, the first " * (len(parts) > 1)
        for _ in range(2):
            with self.assertLogs("absl", "WARNING") as logs:
                store = stores.open_store(path)
            (line,) = logs.output
            there = len(store) - len(parts)
            end = ", and any beyond its end" * (
                int(sum(parts[-1])) == os.path.getsize(path)
            )
            self.assertIn(f"Shard {path} ", line)
            self.assertIn(
                f": {size:,} bytes hold no records, {where}from byte "
                f"{place:,} on. Lost: about {lost:,} of "
                f"{lost + there:,} records{end}.",
                line,
            )
            self.assertEqual(store.num_lost, lost)
            self.assertEqual(store.lost_share, lost / (lost + there))
        found = store.read(np.arange(len(store)))
        self.assertCountEqual(
            [
                record.reason
                for record in found
                if isinstance(record, stores.Fault)
            ],
            [
                f"damaged: {size} bytes that are not a record"
                for _, size in parts
            ],
        )
        return store

    def test_a_tfrecord_that_ends_within_a_record_is_told(self):
        path, size = self.tfrecord()
        for rest in (1, 11, 12, 20, size - 1):
            os.truncate(path, 10 * size + rest)
            self.assertLen(self.check(path, 1, (10 * size, rest)), 11)
            self.tfrecord()

    def test_a_length_that_leads_astray_is_told(self):
        path, size = self.tfrecord()
        shard_files.flip(path, 5 * size)
        self.assertLen(self.check(path, 15, (5 * size, 15 * size)), 6)
        # With a sound checksum, beyond the end.
        for length in (2**40, 2**62):
            header = struct.pack("<Q", length)
            header += struct.pack("<I", oracles.masked_crc32c(header))
            self.patch(path, 5 * size, header)
            self.assertLen(self.check(path, 15, (5 * size, 15 * size)), 6)

    def test_garbage_and_holes_in_a_tar_are_told(self):
        path, size = self.tar()
        rng = np.random.default_rng(0)
        for data in (rng.bytes(5 * size), bytes(5 * size)):
            self.patch(path, 5 * size, data)
            self.assertLen(self.check(path, 5, (5 * size, 5 * size)), 16)
        self.patch(path, 12 * size, rng.bytes(3 * size))
        self.check(path, 8, (5 * size, 5 * size), (12 * size, 3 * size))
        # To the end, by a shift.
        self.tar()
        data = files.read_whole(path)
        files.write_whole(path, data[: 5 * size], b"garbage", data[5 * size :])
        rest = len(data) + 7 - 5 * size
        self.check(path, round(rest / size), (5 * size, rest))

    def test_a_quotation_mark_that_swallows_rows_is_told(self):
        plain = {i: f"{i:02}.png,a or b" for i in range(20)}
        for rows, *parts in (
            # The next mark ends it, which is another row's first,
            ({5: '05.png,"open'}, (5, 7)),
            ({5: '05.png,"open', 14: '14.png,"open'}, (5, 7), (14, 16)),
            (plain | {5: '05.png,"open', 14: '14.png,"open'}, (5, 15)),
            # or its last, so that all follows the rules.
            (plain | {5: '05.png,"open', 14: '14.png,of 5"'}, (5, 15)),
            # None does.
            ({18: '18.png,"open', 19: "19.png,plain"}, (18, 20)),
        ):
            path, starts = self.csv(rows)
            lost = sum(end - start for start, end in parts)
            spans = [
                (starts[start], starts[end] - starts[start])
                for start, end in parts
            ]
            self.assertLen(
                self.check(path, lost, *spans), 20 - lost + len(parts)
            )

    def test_many_damaged_shards_take_a_few_lines(self):
        paths = []
        for number in range(13):
            path, size = self.tfrecord()
            os.truncate(path, 10 * size + 1)
            paths.append(f"{path}-{number}")
            os.rename(path, paths[-1])
        with self.assertLogs("absl", "WARNING") as logs:
            store = stores.open_store(paths)
        self.assertEqual(store.num_lost, 13)
        self.assertLen(logs.output, 11)
        self.assertIn(
            "13 shards are damaged in all; about 13 ", logs.output[-1]
        )


@mock.patch.object(retries, "WAITS", (0.0, 0.0))
class StorageErrorTest(IndexTestCase):
    def test_an_error_that_stays_is_raised_and_nothing_is_written(self):
        sector = shard_files.BadSector(0, 10**6)
        with (
            mock.patch.object(files, "open_file", sector),
            self.assertRaisesRegex(
                ValueError, r"Shard .*a.tfrecord cannot be read: .Errno 5."
            ),
        ):
            self.open()
        self.assertEqual(os.listdir(self.directory), ["a.tfrecord"])


class RemoteTest(IndexTestCase):
    def test_index_files_beside_remote_shards(self):
        folder = f"ram://{os.path.basename(self.directory)}"
        tf.io.gfile.makedirs(folder)
        remote = f"{folder}/a.tfrecord"
        tf.io.gfile.copy(self.shard, remote)
        local, _ = self.open()
        for scans in (1, 0):
            store, found = self.open(f"{folder}/*.tfrecord")
            self.assertEqual(found, scans)
            self.assertEqual(store.read(np.arange(5)), local.read(np.arange(5)))
            self.assertAllEqual(store.ids(np.arange(5)), np.arange(5))
        self.assertTrue(tf.io.gfile.exists(remote + ".index"))
        # A local folder of indexes for remote shards is mapped.
        indexes = self.path("indexes")
        self.assertEqual(self.number_of_scans(remote, index_dir=indexes), 1)
        self.assertEqual(self.number_of_scans(remote, index_dir=indexes), 0)

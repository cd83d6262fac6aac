"""Tests of the index files: when they are built, believed and written."""

import concurrent.futures
import os
from unittest import mock

import numpy as np
import safetensors.numpy
import shard_files
import tensorflow as tf
from absl import logging

from jest_tf import files
from jest_tf.data import stores
from jest_tf.data.stores import index, tfrecords
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
            self.assertAllEqual(store.indexes[0].rows(slice(None)), expected)
            self.assertAllEqual(
                store.indexes[0].rows(np.array([4, 0])), expected[[4, 0]]
            )
        self.assertEqual(built.stamp(0), loaded.stamp(0))
        self.assertCountEqual(
            os.listdir(self.directory), ["a.tfrecord", "a.tfrecord.index"]
        )

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
        with open(path, "rb") as file:
            good = file.read()
        foreign = safetensors.numpy.save({"records": np.zeros([5, 3], int)})
        for bad in (b"", good[:95], good[:-1], good + b"\0", foreign):
            with open(path, "wb") as file:
                file.write(bad)
            self.assertEqual(self.number_of_scans(), 1)
        with open(path, "rb") as file:
            self.assertEqual(file.read(), good)

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
        with self.assertRaisesRegex(ValueError, "cannot be read any more"):
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


class ProgressTest(IndexTestCase):
    def test_progress_ends_at_the_size_of_what_was_built(self):
        paths = [self.shard, self.write("b.tfrecord", 4000)]  # 8 MB
        self.open(paths[:1])
        calls = []
        self.open(paths, progress=lambda *call: calls.append(call))
        size = os.path.getsize(paths[1])
        self.assertGreater(len(calls), 1)
        self.assertEqual({total for _, total in calls}, {size})
        done = [done for done, _ in calls]
        self.assertEqual(done, sorted(done))
        self.assertEqual(done[-1], size)

    def test_the_first_shard_at_fault_is_named(self):
        paths = [self.shard, self.path("b.tfrecord"), self.path("c.tfrecord")]
        for path in paths[1:]:
            with open(path, "wb") as file:
                file.write(b"x" * 100)
        with self.assertRaisesRegex(ValueError, "b.tfrecord is not"):
            self.open(paths)

"""Tests of the store, and the writer that other tests share."""

import os
from unittest import mock

import numpy as np
import shard_files

from jest_tf import config, files
from jest_tf.data import stores


def example(i):
    """A record whose fields tell its number."""
    return stores.Record(
        b"image %d" % i, (b"caption %d" % i,), {"name": b"n%d" % i}
    )


def serialize_example(i):
    return shard_files.serialize(
        image=f"image {i}", caption=f"caption {i}", name=f"n{i}", id=1000 + i
    )


class StoreTest(shard_files.FolderTestCase):
    def setUp(self):
        super().setUp()
        for name, numbers in (
            ("b", range(9, 10)),
            ("a", range(9)),
            ("c", range(10, 22)),
        ):
            shard_files.write_shard(
                self.path(f"{name}.tfrecord"), map(serialize_example, numbers)
            )
        self.store = stores.open_store(self.path("*.tfrecord"))
        self.expected = [example(i) for i in range(22)]

    def test_rows_run_over_the_sorted_shards_in_file_order(self):
        self.assertLen(self.store, 22)
        self.assertEqual(
            self.store.shards.paths,
            tuple(self.path(f"{name}.tfrecord") for name in "abc"),
        )
        self.assertAllEqual(self.store.shards.lengths, [9, 1, 12])
        self.assertEqual(self.store.parts, (22,))
        self.assertEqual(self.store.read(np.arange(22)), self.expected)

    def test_rows_may_be_read_in_any_order_and_repeat(self):
        rows = np.array([21, 0, 9, 9, 3, 21, 8, 10])
        self.assertEqual(
            self.store.read(rows), [self.expected[row] for row in rows]
        )
        self.assertAllEqual(self.store.ids(rows), 1000 + rows)
        nothing = np.array([], np.int64)
        self.assertEqual(self.store.read(nothing), [])
        self.assertAllEqual(self.store.ids(nothing), nothing)

    def test_captions_and_columns_are_in_order_without_faults(self):
        shard_files.write_shard(
            self.path("d"),
            [
                shard_files.serialize(
                    image="x", caption=["a", "b"], id=-3, name="\0"
                ),
                b"no example",
                shard_files.serialize(image="x"),
            ],
        )
        store = stores.open_store(self.path("d"))
        self.assertEqual(list(store.captions()), [b"a", b"b"])
        columns = store.columns(["name", "id", "caption"])
        self.assertEqual(list(columns), ["name", "id", "caption"])
        self.assertEqual(columns["name"].tolist(), [b"\0", b"", b""])
        self.assertEqual(columns["caption"], [[b"a", b"b"], [], []])
        self.assertEqual(columns["id"][0], -3)
        self.assertAllEqual(columns["id"], store.ids(np.arange(3)))


class IdsTest(shard_files.FolderTestCase):
    def test_derived_ids_outlive_a_move_and_more_shards(self):
        for name in ("b", "c"):
            shard_files.write_shard(
                self.path(name), [shard_files.serialize(image="x")] * 1000
            )
        ids = stores.open_store(self.path("[bc]")).ids(np.arange(2000))
        self.assertLen(set(ids.tolist()), 2000)
        self.assertAllGreaterEqual(ids, 0)
        os.mkdir(self.path("moved"))
        for name in ("b", "c"):
            os.rename(self.path(name), self.path(f"moved/{name}"))
        shard_files.write_shard(
            self.path("moved/a"), [shard_files.serialize(image="x")] * 3
        )
        after = stores.open_store(self.path("moved/*"))
        self.assertAllEqual(after.ids(np.arange(3, 2003)), ids)

    def test_shards_of_one_name_in_two_folders_share_no_ids(self):
        for name in ("x", "y"):
            os.mkdir(self.path(name))
            shard_files.write_shard(
                self.path(f"{name}/0"), [shard_files.serialize(image=name)] * 50
            )
        ids = stores.open_store(self.path("*/0")).ids(np.arange(100))
        self.assertLen(set(ids.tolist()), 100)

    def test_a_stamp_changes_with_the_shard_and_the_fields_only(self):
        path = shard_files.write_shard(
            self.path("a"), [shard_files.serialize(image="x", caption="c")]
        )
        stamp = stores.open_store(path).stamp(0)
        os.utime(path, (1, 1))
        os.mkdir(self.path("moved"))
        os.rename(path, self.path("moved/a"))
        moved = stores.open_store(self.path("moved/a"))
        self.assertEqual(moved.stamp(0), stamp)
        fields = stores.open_store(
            self.path("moved/a"), caption_fields=["caption"]
        )
        self.assertNotEqual(fields.stamp(0), stamp)
        shard_files.write_shard(
            path, [shard_files.serialize(image="y", caption="c")]
        )
        self.assertNotEqual(stores.open_store(path).stamp(0), stamp)


class OpenTest(shard_files.FolderTestCase):
    def setUp(self):
        super().setUp()
        examples = map(serialize_example, range(3))
        shard_files.write_shard(self.path("a.tfrecord"), examples)

    def refuse(self, message, patterns, **settings):
        with self.assertRaisesRegex(ValueError, message):
            stores.open_store(patterns, **settings)

    def test_patterns_that_overlap_count_a_shard_once(self):
        patterns = [self.path(name) for name in ("a.*", "*", "[ab].tfrecord")]
        store = stores.open_store(patterns)
        self.assertEqual(store.shards.paths, (self.path("a.tfrecord"),))

    def test_a_path_that_looks_like_a_glob_is_itself(self):
        path = self.path("x[1].tfrecord")
        shard_files.write_shard(path, [serialize_example(7)])
        store = stores.open_store(path)
        self.assertEqual(store.read(np.array([0])), [example(7)])

    def test_a_tilde_is_the_home_folder(self):
        with mock.patch.dict(os.environ, {"HOME": self.directory}):
            store = stores.open_store("~/a.*")
        self.assertEqual(store.shards.paths, (self.path("a.tfrecord"),))

    def test_an_unknown_format_is_refused(self):
        files.write_whole(self.path("b.dat"), b"something else")
        self.refuse("b.dat is not an.*TFRecord.*usual end", self.path("b.dat"))
        self.refuse(
            "one format.*a.tfrecord, .*b.csv",
            [self.write_csv() and self.path("*.[tc]*")],
        )
        self.refuse("at least one", [])
        with self.assertRaisesRegex(ValueError, "`data.train` .*at least one"):
            stores.open_stores(config.DataConfig(curated=("a.tfrecord",)))

    def write_csv(self):
        files.write_whole(self.path("b.csv"), b"image,caption\na.png,x\n")
        files.write_whole(self.path("a.png"), b"image")
        return self.path("b.csv")

    def test_a_store_of_only_faults_is_refused(self):
        path = shard_files.write_shard(
            self.path("b"), [shard_files.serialize(concept="x")] * 20
        )
        self.refuse(
            "faults in all 16 of its 20 .*record 0 of .*b: no image.*concept",
            path,
        )

    def test_stores_of_several_formats_are_one_array_with_parts(self):
        tar = shard_files.write_tar(
            self.path("t.tar"),
            shard_files.tar_sample("a", image=b"A", caption="x")
            + shard_files.tar_sample("b", image=b"B", caption="y"),
        )
        tfrecord = self.path("a.tfrecord")
        store = stores.open_stores(
            config.DataConfig(train=(tar, self.write_csv(), tfrecord))
        )
        self.assertEqual(store.parts, (2, 1, 3))
        self.assertEqual(
            [record.image for record in store.read(np.arange(6))],
            [b"A", b"B", b"image", b"image 0", b"image 1", b"image 2"],
        )
        self.assertEqual(store.describe(5), f"record 2 of {tfrecord}")
        self.assertAllEqual(store.ids(np.array([5, 3])), [1002, 1000])
        self.assertEqual(store.stamp(2), stores.open_store(tfrecord).stamp(0))
        with self.assertRaisesRegex(ValueError, "`data.train`"):
            stores.open_stores(config.DataConfig())

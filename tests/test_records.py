"""Tests of the record store, and the writer that the pipeline's tests share."""

import concurrent.futures
import os
import struct
import tempfile

import numpy as np
import tensorflow as tf

from jest_tf.data import records


def serialize(**features):
    """A `tf.train.Example`; ints become int64, str and bytes become bytes."""
    example = tf.train.Example()
    for name, values in features.items():
        values = values if isinstance(values, list) else [values]
        feature = example.features.feature[name]
        for value in values:
            if isinstance(value, int):
                feature.int64_list.value.append(value)
            else:
                feature.bytes_list.value.append(tf.compat.as_bytes(value))
    return example.SerializeToString()


def write_shard(path, payloads):
    """Writes a TFRecord file with TensorFlow's own writer."""
    with tf.io.TFRecordWriter(path) as writer:
        for payload in payloads:
            writer.write(payload)
    return path


def crc32c_bit_by_bit(data):
    """CRC-32C as its definition states it: one bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class RecordsTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def path(self, name):
        return os.path.join(self.directory, name)

    def patch(self, path, position, data):
        with open(path, "r+b") as file:
            file.seek(position)
            file.write(data)


class TFRecordStoreTest(RecordsTestCase):
    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        # Sizes 0, 1 and on; trailing zero bytes must survive.
        self.payloads = [
            rng.bytes(size) + b"\0\0" * (size % 3)
            for size in (*range(20), 5000, 100)
        ]
        write_shard(self.path("b.tfrecord"), self.payloads[9:10])
        write_shard(self.path("a.tfrecord"), self.payloads[:9])
        write_shard(self.path("c.tfrecord"), self.payloads[10:])
        self.store = records.TFRecordStore(self.path("*.tfrecord"))

    def test_rows_run_over_the_sorted_shards_in_file_order(self):
        self.assertLen(self.store, 22)
        self.assertEqual(
            self.store.shards.paths,
            tuple(self.path(f"{name}.tfrecord") for name in "abc"),
        )
        self.assertAllEqual(self.store.shards.lengths, [9, 1, 12])
        self.assertEqual(self.store.read(np.arange(22)), self.payloads)

    def test_rows_may_come_in_any_order_and_repeat(self):
        rows = np.array([21, 0, 9, 9, 3, 21, 8, 10])
        self.assertEqual(
            self.store.read(rows), [self.payloads[row] for row in rows]
        )
        self.assertEqual(self.store.read(np.array([], np.int64)), [])

    def test_patterns_that_overlap_count_a_shard_once(self):
        store = records.TFRecordStore(
            [self.path("c.tfrecord"), self.path("*"), self.path("[ab]*")]
        )
        self.assertEqual(store.shards.paths, self.store.shards.paths)

    def test_a_path_that_looks_like_a_glob_is_itself(self):
        path = write_shard(self.path("x[1].tfrecord"), [b"one"])
        self.assertEqual(
            records.TFRecordStore(path).read(np.array([0])), [b"one"]
        )

    def test_a_row_out_of_range_is_an_index_error(self):
        for row in (-1, 22, 2**40):
            with self.assertRaisesRegex(IndexError, rf"\[0, 22\).*{row}"):
                self.store.read(np.array([3, row]))

    def test_threads_share_a_store(self):
        rng = np.random.default_rng(1)
        queries = [rng.integers(0, 22, 50) for _ in range(64)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for rows, found in zip(
                queries, pool.map(self.store.read, queries), strict=True
            ):
                self.assertEqual(found, [self.payloads[row] for row in rows])

    def test_the_index_agrees_with_tensorflows_reader(self):
        dataset = tf.data.TFRecordDataset(list(self.store.shards.paths))
        self.assertEqual(
            self.store.read(np.arange(22)), list(dataset.as_numpy_iterator())
        )

    def test_describe_names_the_shard_and_the_record_within_it(self):
        self.assertEqual(
            self.store.describe(11), f"record 1 of {self.path('c.tfrecord')}"
        )

    def test_a_shard_cut_off_after_indexing_is_refused(self):
        os.truncate(self.path("b.tfrecord"), 13)
        with self.assertRaisesRegex(ValueError, "b.tfrecord changed"):
            self.store.read(np.array([9]))


class BadShardTest(RecordsTestCase):
    def setUp(self):
        super().setUp()
        # Frames of 16 + 4 bytes at bytes 0, 20 and 40 of 60.
        self.shard = write_shard(
            self.path("s.tfrecord"), [b"aaaa", b"bbbb", b"cccc"]
        )
        self.assertEqual(os.path.getsize(self.shard), 60)

    def refuse(self, message):
        with self.assertRaisesRegex(ValueError, message):
            records.TFRecordStore(self.shard)

    def test_a_pattern_without_a_match_is_refused(self):
        missing = self.path("none-*.tfrecord")
        for patterns in (missing, [self.shard, missing]):
            with self.assertRaisesRegex(ValueError, "none-.*matches none"):
                records.TFRecordStore(patterns)
        with self.assertRaisesRegex(ValueError, "at least one"):
            records.TFRecordStore([])

    def test_an_empty_shard_is_refused(self):
        os.truncate(self.shard, 0)
        self.refuse("s.tfrecord is empty")

    def test_a_directory_is_refused(self):
        os.mkdir(self.path("d.tfrecord"))
        with self.assertRaisesRegex(ValueError, "d.tfrecord cannot be read"):
            records.TFRecordStore(self.path("d.*"))

    def test_every_truncation_is_refused_with_its_place(self):
        for size in range(59, 0, -1):
            if size % 20:
                os.truncate(self.shard, size)
                self.refuse(
                    f"truncated: the record at byte {size // 20 * 20} .*"
                    f"at byte {size}\\."
                )

    def test_a_wrong_length_is_refused_with_its_place(self):
        good = struct.pack("<Q", 4)
        for position in (0, 20, 40):
            # Too small, plausible, beyond the file, beyond int64.
            for length in (0, 24, 10**6, 2**64 - 1):
                self.patch(self.shard, position, struct.pack("<Q", length))
                self.refuse(
                    f"s.tfrecord is not .*length at byte {position} fails"
                )
            self.patch(self.shard, position, good)
        self.assertLen(records.TFRecordStore(self.shard), 3)

    def test_any_flipped_bit_of_a_header_is_refused(self):
        with open(self.shard, "rb") as file:
            data = file.read()
        for bit in range(96):
            byte = 20 + bit // 8
            self.patch(self.shard, byte, bytes([data[byte] ^ 1 << bit % 8]))
            self.refuse("length at byte 20 fails")
            self.patch(self.shard, byte, data[byte : byte + 1])

    def test_other_files_are_refused(self):
        rng = np.random.default_rng(0)
        for content in (b"id,caption\n" * 9, rng.bytes(1000), b"\0" * 4096):
            with open(self.shard, "wb") as file:
                file.write(content)
            self.refuse("s.tfrecord is not an uncompressed TFRecord file")

    def test_a_compressed_shard_is_refused(self):
        with tf.io.TFRecordWriter(self.shard, "GZIP") as writer:
            writer.write(b"payload" * 100)
        self.refuse("s.tfrecord is not an uncompressed TFRecord file")


class ChecksumTest(tf.test.TestCase):
    def test_crc32c_of_the_standard_check_string(self):
        # The check value of CRC-32C is that of b"123456789"; ours takes eight
        # bytes, so the oracle is checked on it and ours against the oracle.
        self.assertEqual(crc32c_bit_by_bit(b"123456789"), 0xE3069283)

    def test_masked_crc32c_equals_the_bitwise_definition(self):
        rng = np.random.default_rng(0)
        values = np.concatenate(
            [
                np.array([0, 1, 255, 2**63, 2**64 - 1], np.uint64),
                rng.integers(0, 2**64 - 1, 50, np.uint64),
            ]
        )
        expected = []
        for value in values.tolist():
            crc = crc32c_bit_by_bit(struct.pack("<Q", value))
            rotated = (crc >> 15 | crc << 17) % 2**32
            expected.append((rotated + 0xA282EAD8) % 2**32)
        self.assertAllEqual(records.masked_crc32c(values), expected)


class ColumnsTest(RecordsTestCase):
    def test_columns_are_in_store_order_with_gaps_filled(self):
        write_shard(
            self.path("0"),
            [
                serialize(id=7, caption=["a", "b"], concept="cat", image="x"),
                serialize(id=-3, caption=["ä\0"], concept=""),
            ],
        )
        write_shard(self.path("1"), [serialize(id=2**62, label=b"\xff\0")])
        store = records.TFRecordStore(self.path("*"))
        columns = store.columns(["id", "caption", "concept", "label"])
        self.assertEqual(list(columns), ["id", "caption", "concept", "label"])
        self.assertAllEqual(columns["id"], [7, -3, 2**62])
        self.assertEqual(
            columns["caption"], [[b"a", b"b"], ["ä\0".encode()], []]
        )
        self.assertEqual(columns["concept"].tolist(), [b"cat", b"", b""])
        self.assertEqual(columns["label"].tolist(), [b"", b"", b"\xff\0"])

    def test_several_values_of_a_single_feature_are_refused(self):
        write_shard(
            self.path("0"),
            [serialize(concept="x"), serialize(concept=["x", "y"])],
        )
        store = records.TFRecordStore(self.path("0"))
        with self.assertRaisesRegex(
            ValueError, "`concept`.*2 values in record 1"
        ):
            store.columns(["concept"])

    def test_derived_ids_outlive_a_move_and_more_shards(self):
        for name in ("b", "c"):
            write_shard(self.path(name), [b""] * 1000)
        before = records.TFRecordStore(self.path("[bc]"))
        ids = before.derived_ids(np.arange(2000))
        self.assertLen(set(ids.tolist()), 2000)
        self.assertAllGreaterEqual(ids, 0)
        os.mkdir(self.path("moved"))
        for name in ("b", "c"):
            os.rename(self.path(name), self.path(f"moved/{name}"))
        write_shard(self.path("moved/a"), [b""] * 3)
        after = records.TFRecordStore(self.path("moved/*"))
        self.assertAllEqual(after.derived_ids(np.arange(3, 2003)), ids)
        self.assertAllEqual(after.columns(["id"])["id"][3:], ids)

    def test_ids_are_not_derived_from_names_that_are_not_unique(self):
        for name in ("x", "y"):
            os.mkdir(self.path(name))
            write_shard(self.path(f"{name}/0"), [serialize(id=ord(name))])
        store = records.TFRecordStore(self.path("*/0"))
        self.assertAllEqual(store.columns(["id"])["id"], [ord("x"), ord("y")])
        write_shard(self.path("y/0"), [serialize(caption="no id")])
        store = records.TFRecordStore(self.path("*/0"))
        with self.assertRaisesRegex(ValueError, "`id` is missing in record 0"):
            store.columns(["id"])


if __name__ == "__main__":
    tf.test.main()

"""Tests of TFRecord shards: frames, schemas and damage."""

import os

import numpy as np
import oracles
import shard_files
import tensorflow as tf

from jest_tf import files
from jest_tf.data import stores
from jest_tf.data.stores import shards, tfrecords


class FramesTest(shard_files.FolderTestCase):
    def setUp(self):
        super().setUp()
        self.payloads = [
            shard_files.serialize(image=text, caption=text)
            for text in ("first", "other", "third")
        ]
        self.size = len(self.payloads[0]) + 16  # of a frame
        self.shard = shard_files.write_shard(self.path("s"), self.payloads)
        self.assertEqual(os.path.getsize(self.shard), 3 * self.size)
        self.whole = self.read()

    def read(self):
        store = stores.open_store(self.shard)
        return store.read(np.arange(len(store)))

    def flipped(self, start, bits):
        """Flips bits of the shard, counted from a byte on, one at a time."""
        data = files.read_whole(self.shard)
        for bit in bits:
            byte = start + bit // 8
            self.patch(self.shard, byte, bytes([data[byte] ^ 1 << bit % 8]))
            yield
            self.patch(self.shard, byte, data[byte : byte + 1])

    def test_the_rows_agree_with_tensorflows_reader(self):
        payloads = list(tf.data.TFRecordDataset(self.shard).as_numpy_iterator())
        self.assertEqual(self.whole, list(map(tfrecords.parse, payloads)))
        self.assertEqual(self.whole[2].image, b"third")

    def test_a_damaged_length_ends_the_shard(self):
        rest = 2 * self.size
        for _ in self.flipped(self.size, range(96)):
            with self.assertLogs("absl", "WARNING") as logs:
                found = self.read()
            self.assertRegex(
                logs.output[0],
                f"s is damaged .*: {rest} bytes .* 2 of 3 records",
            )
            self.assertEqual(
                found,
                [
                    self.whole[0],
                    stores.Fault(
                        f"damaged: {rest} bytes that are not a record"
                    ),
                ],
            )

    def test_any_flipped_bit_of_a_payload_or_its_checksum_is_noticed(self):
        reason = f"damaged: {self.size - 16} bytes that fail their checksum"
        bits = range(0, 8 * (self.size - 12), 5)
        for _ in self.flipped(self.size + 12, bits):
            store = stores.open_store(self.shard)
            self.assertEqual(
                store.read(np.arange(3)),
                [self.whole[0], stores.Fault(reason), self.whole[2]],
            )

    def test_other_files_are_refused(self):
        rng = np.random.default_rng(0)
        for content in (b"id,caption\n" * 9, rng.bytes(10**6), b"\0" * 4096):
            files.write_whole(self.shard, content)
            message = "s is not an uncompressed TFRecord file"
            with self.assertRaisesRegex(ValueError, message):
                self.read()


class SchemaTest(tf.test.TestCase):
    def parse(self, *fields, **features):
        return tfrecords.parse(
            shard_files.serialize(**features), shards.Fields(*fields)
        )

    def test_our_schema_has_several_captions_and_metadata_as_text(self):
        self.assertEqual(
            self.parse(
                image=b"\xff\0",
                caption=["a", " ", "ä\0"],
                id=7,
                concept="cat",
                size=3,
                tags=["x", "y"],
            ),
            stores.Record(
                b"\xff\0",
                (b"a", b" ", "ä\0".encode()),
                {"concept": b"cat", "size": b"3"},
            ),
        )

    def test_img2dataset_has_an_image_by_extension_and_a_caption_twice(self):
        features = {
            "key": "000000012",
            "webp": "image",
            "txt": "a cat",
            "caption": "a cat",
            "url": "http://a",
            "width": 256,
        }
        found = self.parse(**features)
        self.assertEqual(found.image, b"image")
        self.assertEqual(found.captions, (b"a cat",))
        self.assertEqual(found.metadata["key"], b"000000012")
        self.assertEqual(found.metadata["url"], b"http://a")

    def test_fields_are_taken_as_set(self):
        found = self.parse(
            "big",
            ("alt", "none", "title"),
            image="small",
            big="big",
            title="t",
            alt=["a", "b"],
        )
        self.assertEqual(found.image, b"big")
        self.assertEqual(found.captions, (b"a", b"b", b"t"))
        self.assertEqual(found.metadata, {"image": b"small"})

    def test_payloads_that_are_not_records_are_faults(self):
        self.assertRegex(tfrecords.parse(b"xyz").reason, "Example: 3 bytes")
        self.assertRegex(
            self.parse(alt="x").reason, "no image: .*png.* among alt"
        )
        self.assertRegex(
            self.parse(image=["x", "y"]).reason, "`image` holds 2 images"
        )
        self.assertRegex(self.parse(image=3).reason, "holds 0 images")
        self.assertEqual(self.parse(image=b"").captions, ())


class ChecksumTest(tf.test.TestCase):
    def test_the_masked_checksum_equals_the_bitwise_definition(self):
        # CRC-32C of b"123456789" is 0xE3069283. Its upper 17 bits, 0x1C60D,
        # become the lower bits, its lower 15, 0x1283, the upper bits:
        # 0x1283 << 17 | 0x1C60D = 0x2507C60D.
        self.assertEqual(
            tfrecords.masked_crc32c(b"123456789"), 0x2507C60D + 0xA282EAD8
        )
        rng = np.random.default_rng(0)
        for size in (*range(40), 1000):
            data = rng.bytes(size)
            self.assertEqual(
                tfrecords.masked_crc32c(data), oracles.masked_crc32c(data)
            )

"""Tests of CRC-32C, against its definition and TensorFlow's writer."""

import os
import struct

import numpy as np
import oracles
import tensorflow as tf

from jest_tf.data.stores import crc32c


class MaskedTest(tf.test.TestCase):
    def test_the_oracle_gives_the_check_value_of_the_standard(self):
        # CRC-32C of b"123456789" is 0xE3069283. Its upper 17 bits, 0x1C60D,
        # become the lower ones, its lower 15, 0x1283, the upper ones:
        # 0x1283 << 17 | 0x1C60D = 0x2507C60D.
        self.assertEqual(
            oracles.masked_crc32c(b"123456789"), 0x2507C60D + 0xA282EAD8
        )

    def test_bytes_of_every_length_equal_the_bitwise_definition(self):
        rng = np.random.default_rng(0)
        row, sums = crc32c._ROW, crc32c._SUMS
        for size in (
            *range(80),
            *(row + i for i in (-5, -1, 0, 1, 4)),
            *(row * sums + i for i in (-1, 0, 1)),
            3 * row * sums + 77,
            row * crc32c._PIECE + 1,
        ):
            data = rng.bytes(size)
            self.assertEqual(
                crc32c.masked(data), oracles.masked_crc32c(data), size
            )

    def test_long_records_equal_what_tensorflow_writes(self):
        rng = np.random.default_rng(0)
        path = os.path.join(self.get_temp_dir(), "a")
        # Beyond 64 x 64 rows, and beyond 64 times that.
        for content in (
            rng.bytes(2 * 10**6),
            b"\0" * 5 * 10**5,
            b"\xff" * 5 * 10**5,
            rng.bytes(68 * 10**6),
        ):
            with tf.io.TFRecordWriter(path) as writer:
                writer.write(content)
            with open(path, "rb") as file:
                file.seek(-4, os.SEEK_END)
                (expected,) = struct.unpack("<I", file.read())
            self.assertEqual(crc32c.masked(content), expected)

    def test_many_integers_equal_their_bytes(self):
        rng = np.random.default_rng(0)
        values = np.concatenate(
            [
                np.array([0, 1, 255, 2**63, 2**64 - 1], np.uint64),
                rng.integers(0, 2**64 - 1, 50, np.uint64),
            ]
        )
        self.assertAllEqual(
            crc32c.masked_integers(values),
            [
                oracles.masked_crc32c(struct.pack("<Q", value))
                for value in values.tolist()
            ],
        )


if __name__ == "__main__":
    tf.test.main()

"""The order in TensorFlow's ops is NumPy's, bit for bit."""

import numpy as np
import tensorflow as tf

from jest_tf.data import reader, stream, stream_ops

SEED = 2**62 + 12345


class StreamOpsTest(tf.test.TestCase):
    def assert_equal(self, order):
        size = order.num_records
        rng = np.random.default_rng(size)
        far = rng.integers(0, 5 * size + 10, 200)
        positions = np.concatenate([np.arange(200), far, [2**45]])
        twin = stream_ops.of(order)
        self.assertAllEqual(
            tf.function(twin.rows)(positions), order.rows(positions)
        )
        for attempt in (1, 16):
            self.assertAllEqual(
                twin.substitutes(positions, tf.constant(attempt, tf.int64)),
                order.substitutes(positions, attempt),
            )

    def test_orders_are_equal_for_sizes_and_blocks_of_every_kind(self):
        for size, block_size in (
            *((2, None), (10**9 + 7, None)),
            # A single block; several windows, and a short block.
            *((3, 5), (1001, 7)),
        ):
            with self.subTest(size=size, block_size=block_size):
                self.assert_equal(
                    stream.Order(size, SEED, block_size=block_size)
                )

    def test_numbers_of_captions_are_equal(self):
        positions = np.arange(1000)
        self.assertAllEqual(
            stream_ops.caption_numbers(SEED, positions),
            reader.caption_numbers(SEED, positions),
        )

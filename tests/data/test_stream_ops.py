"""The order in TensorFlow's ops is NumPy's, bit for bit."""

import numpy as np
import tensorflow as tf

from jest_tf.data import reader, stream, stream_ops

SEED = 2**62 + 12345


class StreamOpsTest(tf.test.TestCase):
    def positions(self, size):
        rng = np.random.default_rng(size)
        far = rng.integers(0, 5 * size + 10, 200)
        return np.concatenate([np.arange(200), far, [2**45]])

    def test_rows_are_equal_for_sizes_and_blocks_of_every_kind(self):
        for size, block_size in (
            *((1, None), (2, None), (7, None), (1000, None)),
            (10**9 + 7, None),
            # One block, whole blocks, a short one, several windows.
            *((3, 5), (5, 2), (1, 1), (4096, 16), (1001, 7), (130, 1)),
        ):
            with self.subTest(size=size, block_size=block_size):
                expected = stream.Order(size, SEED, block_size=block_size)
                order = stream_ops.Order(size, SEED, block_size)
                positions = self.positions(size)
                self.assertAllEqual(
                    tf.function(order.rows)(positions), expected.rows(positions)
                )

    def test_substitutes_and_numbers_of_captions_are_equal(self):
        positions = self.positions(1000)
        for attempt in (1, 2, 16):
            self.assertAllEqual(
                stream_ops.Order(1000, SEED).substitutes(
                    positions, tf.constant(attempt, tf.int64)
                ),
                stream.Order(1000, SEED).substitutes(positions, attempt),
            )
        self.assertAllEqual(
            stream_ops.caption_numbers(SEED, positions),
            reader.caption_numbers(SEED, positions),
        )


if __name__ == "__main__":
    tf.test.main()

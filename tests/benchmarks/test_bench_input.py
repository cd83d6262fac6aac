"""The input benchmark at small sizes: its measure of mixing and its report."""

import numpy as np
import tensorflow as tf

from benchmarks import bench_input
from jest_tf.data import stream


class FixedOrder:
    """An order that is a list of rows."""

    def __init__(self, rows):
        self.num_records = len(rows)
        self._rows = np.array(rows)

    def rows(self, positions):
        return self._rows[positions]


class MixTest(tf.test.TestCase):
    def test_rows_in_order_are_worth_one_record(self):
        # Four shards of 8, read one after the other in super-batches of 8.
        found = bench_input.mix(FixedOrder(range(32)), 8, 2, 8)
        self.assertEqual(found["places"], 4)
        self.assertEqual(found["shards"], 1)
        # 28 of 31 neighbours are of one shard.
        self.assertAllClose(
            found["correlation"], (28 / 31 - 1 / 4) / (1 - 1 / 4)
        )
        self.assertAllClose(found["effective"], 1)

    def test_a_free_shuffle_is_worth_about_all_its_records(self):
        found = bench_input.mix(stream.Order(100_000, 0), 500, 1, 1000)
        # Without replacement, 500 of 100,000 are worth 0.5 % more.
        self.assertAllClose(found["effective"], 500, rtol=0.05)
        self.assertAllClose(found["correlation"], 0, atol=0.01)

"""The script that measures index files runs, and counts what it wrote."""

import tensorflow as tf

from benchmarks import index_growth


class IndexGrowthTest(tf.test.TestCase):
    def test_both_openings_are_measured(self):
        pattern = index_growth.write_shards(self.get_temp_dir(), 600, 3)
        # In this process, for a new one takes seconds to import TensorFlow.
        for _ in range(2):
            cost = index_growth.measure_here(pattern)
            self.assertEqual((cost.records, cost.shards), (600, 3))
            self.assertGreater(cost.open_seconds, 0)
            self.assertGreater(cost.near_milliseconds, 0)

    def test_records_that_do_not_divide_are_refused(self):
        with self.assertRaisesRegex(ValueError, "multiple.*10, 3"):
            index_growth.write_shards(self.get_temp_dir(), 10, 3)


if __name__ == "__main__":
    tf.test.main()

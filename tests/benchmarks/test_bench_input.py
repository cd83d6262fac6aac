"""The input benchmark at small sizes: its measure of mixing and its report."""

import contextlib
import io
import pathlib
import tempfile

import numpy as np
import pytest
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


class ReportTest(tf.test.TestCase):
    @pytest.mark.slow
    def test_a_small_run_of_all_parts_writes_their_blocks(self):
        with tempfile.TemporaryDirectory() as directory:
            with (
                contextlib.redirect_stdout(io.StringIO()) as printed,
                contextlib.redirect_stderr(io.StringIO()),
            ):
                bench_input.main(
                    ["all", "--small", "--out", f"{directory}/README.md"]
                )
            text = (pathlib.Path(directory) / "README.md").read_text()
        for name in ("speed", "mixing", "distance"):
            begin = f"<!-- input {name}: written by {bench_input._COMMAND} -->"
            self.assertEqual(text.count(begin), 1)
        for title in (
            "How fast examples come",
            "How well blocks mix",
            "What distance costs",
        ):
            self.assertIn(title, printed.getvalue())
            self.assertIn(f"## {title}", text)

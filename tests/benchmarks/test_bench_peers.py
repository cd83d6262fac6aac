"""The comparison with open_clip: its arithmetic and its table."""

import argparse
import contextlib
import io

import tensorflow as tf

from benchmarks import bench_peers, report


def run(scale, parameters=1_000_000):
    return {
        "import": 1.0 * scale,
        "first_step": 8.0 * scale,
        "step": 2.0 * scale,
        "step_cpu": 4.0 * scale,
        "parameters": parameters,
        "versions": "package 1.0",
    }


class TableTest(tf.test.TestCase):
    def test_a_step_is_the_median_of_those_after_the_first(self):
        # Steps after the first take 1, 5 and 2 seconds.
        self.assertEqual(bench_peers._median_step([10, 11, 16, 18]), 2)

    def test_ratios_are_of_runs_of_the_same_round(self):
        # Rounds of ours / theirs: 2 / 1 and 3 / 2.
        runs = {"jest_tf": [run(2), run(3)], "open_clip": [run(1), run(2)]}
        options = argparse.Namespace(batch_size=16, rounds=2, steps=4)
        text = bench_peers._text(runs, options, report)
        (ratios,) = (
            line
            for line in text.splitlines()
            if line.startswith("| jest_tf / open_clip")
        )
        # Lowest, median and highest of 2 and 1.5, in all four columns.
        self.assertEqual(ratios.count("1.50 / 1.75 / 2.00"), 4)

    def test_too_few_rounds_are_refused(self):
        with contextlib.redirect_stderr(io.StringIO()) as shown:
            with self.assertRaises(SystemExit):
                bench_peers.main(["--rounds", "0"])
        self.assertIn("`--rounds` of 1", shown.getvalue())

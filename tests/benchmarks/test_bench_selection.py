"""The selection benchmark at small sizes: its samplers, forms and report."""

import itertools
import pathlib

import numpy as np
import tensorflow as tf

from benchmarks import bench_selection, report
from jest_tf import selection


def scores_and_totals():
    """Scores of seven rows, and their sum over every sub-batch of three."""
    scores = np.random.default_rng(0).normal(size=(7, 7))
    every = itertools.combinations(range(7), 3)
    totals = [scores[np.ix_(rows, rows)].sum() for rows in every]
    return scores, np.array(totals)


class FigureTest(tf.test.TestCase):
    def test_uniform_learnability_is_the_mean_over_all_sub_batches(self):
        scores, totals = scores_and_totals()
        found = bench_selection.uniform_learnability(scores, 3)
        self.assertAllClose(found, np.mean(totals / 3))

    def test_gibbs_samples_the_distribution_that_it_is_said_to(self):
        scores, totals = scores_and_totals()
        p = np.exp(totals - totals.max())
        p /= p.sum()
        trace = bench_selection.gibbs(scores, 3, 20_000, seed=0)
        # Every value that it visits is that of one of the 35 sub-batches, and
        # it visits each as often as it should.
        nearest = np.abs(trace[:, np.newaxis] - totals / 3).argmin(1)
        self.assertAllClose(trace, totals[nearest] / 3)
        visits = np.bincount(nearest, minlength=len(totals)) / len(trace)
        self.assertAllClose(visits, p, atol=0.02)


class SpeedTest(tf.test.TestCase):
    def test_the_form_with_matrices_draws_what_select_jointly_draws(self):
        learner, teacher = bench_selection.synthetic("late", 90, 3)
        settings = {"batch_size": 31, "num_chunks": 4, "seed": (5, 6)}
        rows = bench_selection.select_with_matrices(
            learner, teacher, **settings
        )
        draw = selection.select_jointly(learner, teacher, **settings)
        self.assertAllEqual(rows, draw.indices)


class ReportTest(tf.test.TestCase):
    def test_a_block_replaces_itself_and_nothing_else(self):
        readme = pathlib.Path(self.get_temp_dir(), "README.md")
        readme.write_text("# By hand\n", "utf-8")
        report.write_block(readme, "one", "first", "make it")
        report.write_block(readme, "two", "second", "make it")
        before = readme.read_text("utf-8")
        for text in ("changed\n\nand longer", "first"):
            report.write_block(readme, "one", text, "make it")
            expected = before.replace("first", text)
            self.assertEqual(readme.read_text("utf-8"), expected)
        self.assertStartsWith(before, "# By hand\n")

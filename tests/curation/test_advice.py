"""Advice: the sentences that follow from the numbers of a survey."""

import numpy as np
import tensorflow as tf

from jest_tf.curation import advice, estimates, survey

STAGE = 'Add `Stage(candidates={}, embeddings="stored"'
CLEAN, COMPARE = "train without a stage", "compare the two"
WEAK = "do not choose by it"


def nearest(*cosines):
    rows = np.arange(len(cosines))
    return survey.Pairs(rows, rows, np.array(cosines))


def surveyed(share, power=0.5, leaks=None):
    """A survey whose reference has a share of the room above chance."""
    count = estimates.count_candidates(share)
    perfect = min(1.0, count * share)
    none = np.zeros(0)
    return survey.Survey(
        reference="runs/r",
        rows=none,
        pool=none,
        curated=none,
        counts=none,
        mismatched=none,
        matched=estimates.Estimate(share, share - 0.02, share + 0.02),
        candidates=count,
        chosen=share + power * (perfect - share),
        cut=0.456,
        near=0.99,
        repeats=nearest(0.98, 0.99, 1.0, 0.5),
        leaks=leaks,
    )


class AdviceTest(tf.test.TestCase):
    def test_a_stage_is_for_noise_that_the_reference_sees(self):
        phrases = {CLEAN, COMPARE, WEAK, STAGE.format(2), STAGE.format(3)}
        for found, *expected in (
            (surveyed(0.3), STAGE.format(3)),
            (surveyed(advice.CLEAN), CLEAN),
            (surveyed(0.99, power=0.0), CLEAN),
            (surveyed(advice.CLEAN - 0.01), STAGE.format(2), COMPARE),
            (surveyed(advice.MOST), STAGE.format(2), COMPARE),
            (surveyed(0.3, power=0.9 * advice.LEAST_POWER), WEAK),
            (surveyed(0.3, power=1.1 * advice.LEAST_POWER), STAGE.format(3)),
        ):
            said = " ".join(advice.advise(found))
            self.assertEqual(
                {phrase for phrase in phrases if phrase in said}, {*expected}
            )

    def test_the_shares_are_named(self):
        said = " ".join(advice.advise(surveyed(0.3)))
        self.assertIn("30% of the pairs match (95 % interval 28% to 32%)", said)
        self.assertIn("from 30% to 60%, with a cut near a cosine of 0.46", said)

    def test_repeats_and_leaks_are_said(self):
        for leaks, expected in (
            (None, "Name your tests with `--tests`"),
            (nearest(0.9, 0.8), "None of the 2 test images compared has"),
            (nearest(0.9, 1.0, 0.8, 0.9), "25.0% of the 4 test images"),
        ):
            *_, repeated, leaked = advice.advise(surveyed(0.9, leaks=leaks))
            self.assertIn("50.0% of the pool's images have", repeated)
            self.assertStartsWith(leaked, expected)

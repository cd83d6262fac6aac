"""Summaries of a draw, derived by hand."""

import json

import numpy as np
import tensorflow as tf

from jest_tf import config
from jest_tf.selection import summary


def between(low, high):
    """Quantiles of two values."""
    return [low + level * (high - low) for level in summary.LEVELS]


class SummaryTest(tf.test.TestCase):
    ROWS = {
        "kept": np.array([True, False, False, True]),
        "learner_loss": np.float32([3, 1, 4, 2.5]),
        "reference_loss": np.float32([1, 2, 0.5, 2.5]),
        "row": np.array([7, 1, 0, 4]),
        "id": np.array([2**40, 11, 12, 13]),
        "clean": np.array([True, False, False, True]),
    }

    def test_a_draw_of_two_among_four_by_hand(self):
        uniform = {
            "learner_loss": np.float32([2.0]),
            "reference_loss": np.float32([0.5]),
        }
        found = summary.summarize_rows(config.Stage(2), self.ROWS, uniform)
        found = json.loads(json.dumps(found))
        self.assertEqual((found["rows_in"], found["rows_out"]), (4, 2))
        self.assertEqual(found["criterion"], "learnability")
        for name, kept, dropped, uniform in (
            ("learnability", (0.0, 2.0), (-1.0, 3.5), 1.5),
            ("learner_loss", (2.5, 3.0), (1.0, 4.0), 2.0),
            ("reference_loss", (1.0, 2.5), (0.5, 2.0), 0.5),
        ):
            for group, (low, high) in (
                ("kept", kept),
                ("dropped", dropped),
                ("uniform", (uniform, uniform)),
            ):
                values = found[name][group]
                self.assertEqual(values["count"], 2 - (group == "uniform"))
                self.assertEqual(values["mean"], (low + high) / 2)
                self.assertAllClose(values["quantiles"], between(low, high))
        # Learnability is 2, -1, 3.5 and 0.
        lines = [
            {"row": 0, "id": 12, "score": 3.5, "kept": False},
            {"row": 7, "id": 2**40, "score": 2.0, "kept": True},
            {"row": 4, "id": 13, "score": 0.0, "kept": True},
            {"row": 1, "id": 11, "score": -1.0, "kept": False},
        ]
        self.assertEqual(found["highest"], lines)
        self.assertEqual(found["lowest"], lines[::-1])
        self.assertEqual((found["clean_in"], found["clean_out"]), (0.5, 1.0))

    def test_a_stage_with_one_model_has_its_loss_alone(self):
        losses = np.float32([0.1234567, *range(1, 20)])
        found = summary.summarize_rows(
            config.Stage(1, criterion="easy_reference"),
            {
                "kept": np.ones(20, bool),
                "reference_loss": losses,
                "position": np.arange(100, 120),
            },
            {"reference_loss": losses[:4]},
        )
        others = ["learnability", "learner_loss", "clean_in", "clean_out"]
        self.assertNoCommonElements(found, others)
        self.assertEqual(found["reference_loss"]["dropped"], {"count": 0})
        # The easiest first, six digits of each, and eight lines at most.
        self.assertEqual(
            found["highest"][:2],
            [
                {"position": 100, "score": -0.123457, "kept": True},
                {"position": 101, "score": -1.0, "kept": True},
            ],
        )
        self.assertEqual(
            [line["position"] for line in found["lowest"]],
            list(range(119, 111, -1)),
        )

"""The metrics of a step: means, sums, and what a file keeps of them."""

import types

import numpy as np
import tensorflow as tf

from jest_tf import config
from jest_tf.training import metrics as metrics_lib

WITHOUT = config.SelectionConfig()
JOINT = config.SelectionConfig("joint", batch_size=8, num_chunks=2)


def results(metrics):
    return {one.name: float(one.result()) for one in metrics.shown}


class StepMetricsTest(tf.test.TestCase):
    def test_draw_metrics_cover_the_models_that_score(self):
        losses = {
            model: {
                f"select/{model}_loss_{rows}" for rows in ("kept", "dropped")
            }
            for model in ("learner", "reference")
        }
        scores = {"select/score", "select/uniform_score"}
        for settings, more in (
            (WITHOUT, set()),
            (config.SelectionConfig("uniform", batch_size=8), set()),
            (JOINT, scores | losses["learner"] | losses["reference"]),
            (
                config.SelectionConfig(
                    "top", batch_size=8, criterion="hard_learner"
                ),
                scores | losses["learner"],
            ),
        ):
            metrics = metrics_lib.StepMetrics(settings)
            self.assertEqual(
                set(results(metrics)), {"loss", "scale", "bias"} | more
            )

    def test_the_shares_of_replicas_add_up_to_one_replicas_steps(self):
        alone = metrics_lib.StepMetrics(WITHOUT)
        shares = [metrics_lib.StepMetrics(WITHOUT) for _ in range(4)]
        replicas = types.SimpleNamespace(num_replicas=4)
        for value in (1.0, 2.5):
            alone.update({"loss": value})
            for one in shares:
                one.update({"loss": value}, replicas)
        # Two steps, of which the mean is 3.5 / 2.
        self.assertEqual(alone.result("loss"), 1.75)
        (loss,) = (one for one in alone.shown if one.name == "loss")
        self.assertAllEqual(loss.variables, [3.5, 2.0])
        totals = sum(np.array(one.shown[0].variables) for one in shares)
        self.assertAllEqual(totals, [3.5, 2.0])

    def test_replaced_rows_are_counted_if_the_batch_marks_them(self):
        metrics = metrics_lib.StepMetrics(WITHOUT)
        metrics.count_replaced({"image": tf.zeros([4])})
        self.assertNotIn("data/captions_replaced", results(metrics))
        for _ in range(2):
            metrics.count_replaced({"caption_replaced": [True, False, True]})
        found = results(metrics)
        self.assertEqual(found["data/captions_replaced"], 4.0)
        self.assertNotIn("data/records_replaced", found)


if __name__ == "__main__":
    tf.test.main()

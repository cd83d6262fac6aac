"""The metrics of a step: means, sums, and what a file keeps of them."""

import types

import numpy as np
import tensorflow as tf

from jest_tf import config
from jest_tf.training import step_outputs


def results(metrics):
    return {metric.name: float(metric.result()) for metric in metrics.shown}


class StepMetricsTest(tf.test.TestCase):
    def test_draw_metrics_cover_the_models_that_score(self):
        stored = config.Stage(2, "stored", criterion="easy_reference")
        stages = (
            stored,
            config.Stage(2),
            config.Stage(2, method="uniform"),
            config.Stage(2, method="top", criterion="hard_learner"),
        )
        expected = ["loss", "scale", "bias"]
        for number, models in (
            (1, ("learner", "reference")),
            (3, ("learner",)),
        ):
            names = ["score", "uniform_score"]
            for model in models:
                names += [f"{model}_loss_kept", f"{model}_loss_dropped"]
            expected += [f"stages/{number}/{name}" for name in names]
        metrics = step_outputs.StepMetrics(config.SelectionConfig(16, stages))
        self.assertEqual(list(results(metrics)), expected)
        metrics = step_outputs.StepMetrics(None, distilled=["distillation"])
        expected = ["loss", "distillation", "scale", "bias"]
        self.assertEqual(list(results(metrics)), expected)

    def test_the_shares_of_replicas_add_up_to_one_replicas_steps(self):
        alone = step_outputs.StepMetrics(None)
        shares = [step_outputs.StepMetrics(None) for _ in range(4)]
        replicas = types.SimpleNamespace(num_replicas=4)
        for value in (1.0, 2.5):
            alone.update({"loss": value})
            for share in shares:
                share.update({"loss": value}, replicas)
        # Two steps, of which the mean is 3.5 / 2.
        self.assertEqual(alone.result("loss"), 1.75)
        (loss,) = (metric for metric in alone.shown if metric.name == "loss")
        self.assertAllEqual(loss.variables, [3.5, 2.0])
        totals = sum(np.array(share.shown[0].variables) for share in shares)
        self.assertAllEqual(totals, [3.5, 2.0])

    def test_replaced_rows_are_counted_if_the_batch_marks_them(self):
        metrics = step_outputs.StepMetrics(None)
        metrics.count_replaced({"image": tf.zeros([4])})
        self.assertNotIn("data/captions_replaced", results(metrics))
        marked = {"caption_replaced": [True, False, True]}
        metrics.count_replaced(marked)
        metrics.count_replaced(marked | {"curated": marked})
        found = results(metrics)
        self.assertEqual(found["data/captions_replaced"], 6.0)
        self.assertNotIn("data/records_replaced", found)

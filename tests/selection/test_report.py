"""Losses and scores that a draw reports, against the oracle."""

import itertools
from unittest import mock

import numpy as np
import oracles
import random_embeddings
import tensorflow as tf

from jest_tf import losses, selection


class DrawReportTest(tf.test.TestCase):
    def test_row_losses_and_scores_equal_the_oracle(self):
        learner, reference = random_embeddings.models(90)
        for (name, sampler), loss in itertools.product(
            selection.SAMPLERS.items(), selection.LOSSES
        ):
            draw = sampler(
                learner,
                reference,
                batch_size=25,
                num_chunks=4,
                seed=(2, 3),
                loss=loss,
            )
            chosen = draw.indices.numpy()
            kept = np.isin(np.arange(90), chosen)
            batch = {}
            for model, parts in (
                ("learner", learner),
                ("reference", reference),
            ):
                expected = oracles.row_losses(parts, chosen, loss)
                with self.subTest(sampler=name, loss=loss, model=model):
                    self.assertAllClose(
                        getattr(draw, f"{model}_loss"), expected, atol=2e-4
                    )
                batch[model] = expected[kept].mean()
            self.assertAllEqual(draw.kept, kept)
            self.assertAllClose(
                draw.score, batch["learner"] - batch["reference"], atol=1e-4
            )

    def test_the_mean_of_kept_rows_is_the_loss_of_the_sub_batch(self):
        learner, reference = random_embeddings.models(70)
        for loss in selection.LOSSES:
            draw = selection.select_jointly(
                learner,
                reference,
                batch_size=20,
                num_chunks=5,
                seed=(4, 4),
                loss=loss,
            )
            for model, parts in (
                ("learner", learner),
                ("reference", reference),
            ):
                sub_batch = parts._replace(
                    image=parts.image[draw.indices.numpy()],
                    text=parts.text[draw.indices.numpy()],
                )
                direct = getattr(losses, f"{loss}_loss")(sub_batch)
                rows = tf.boolean_mask(
                    getattr(draw, f"{model}_loss"), draw.kept
                )
                self.assertAllClose(tf.reduce_mean(rows), direct, rtol=1e-5)

    def test_summary_averages_kept_and_dropped_rows(self):
        learner, reference = random_embeddings.models(50)
        draw = selection.select_jointly(
            learner, reference, batch_size=10, num_chunks=2, seed=(0, 0)
        )
        summary = selection.summarize(draw)
        kept = draw.kept.numpy()
        for model in ("learner", "reference"):
            rows = getattr(draw, f"{model}_loss").numpy()
            self.assertAllClose(
                summary[f"{model}_loss_kept"], rows[kept].mean()
            )
            self.assertAllClose(
                summary[f"{model}_loss_dropped"], rows[~kept].mean()
            )
        everything = selection.select_jointly(
            learner, reference, batch_size=50, num_chunks=2, seed=(0, 0)
        )
        self.assertAllEqual(
            selection.summarize(everything)["learner_loss_dropped"], 0.0
        )

    def test_uniform_score_is_that_of_a_uniform_draw(self):
        # Its expectation is known: every row is in a draw with probability
        # b/B, every pair of rows with b(b-1)/(B(B-1)).
        size, batch = 40, 8
        learner, reference = random_embeddings.models(size)
        matrix = oracles.pair_losses(learner) - oracles.pair_losses(reference)
        own = np.trace(matrix)
        others = matrix.sum() - own
        expected = own / size + others * (batch - 1) / (size * (size - 1))

        @tf.function
        def score(step):
            return selection.select_top(
                learner, reference, batch_size=batch, seed=(0, step)
            ).uniform_score

        values = np.array([score(step) for step in tf.range(300)])
        error = values.std() / np.sqrt(len(values))
        self.assertLess(abs(values.mean() - expected), 4 * error)
        self.assertLess(4 * error, 0.5)

    def test_uniform_score_of_a_large_batch_is_scaled_up_from_a_sample(self):
        learner, reference = random_embeddings.models(300)
        for loss in selection.LOSSES:

            def scores(rows, loss=loss):
                with mock.patch.object(selection.report, "UNIFORM_ROWS", rows):
                    score = tf.function(
                        lambda step: (
                            selection.select_top(
                                learner,
                                reference,
                                batch_size=280,
                                seed=(0, step),
                                loss=loss,
                            ).uniform_score
                        )
                    )
                    return np.array([score(step) for step in tf.range(100)])

            whole, sampled = scores(280), scores(150)
            self.assertGreater(sampled.std(), 2 * whole.std())
            error = np.hypot(whole.std(), sampled.std()) / 10.0
            self.assertLess(abs(whole.mean() - sampled.mean()), 4 * error)

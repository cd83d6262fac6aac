"""Losses and scores that a draw reports, against the oracle."""

import itertools
from unittest import mock

import graphs
import numpy as np
import oracles
import own_parts
import random_embeddings
import tensorflow as tf

from jest_tf import config, embeddings, selection
from jest_tf.config import tables

LOSSES = {
    "sigmoid": "sigmoid",
    "softmax": "softmax",
    "own_parts:squares": own_parts.square_pairs,
}


def draw(models, stage, *, batch_size, seed=(2, 3), loss="sigmoid"):
    return graphs.draw(*models, stage, size=batch_size, seed=seed, loss=loss)


class DrawReportTest(tf.test.TestCase):
    def test_row_losses_and_scores_equal_the_oracle(self):
        models = random_embeddings.models(90)
        for method, loss in itertools.product(config.METHODS, LOSSES):
            stage = config.Stage(1, method=method, num_chunks=4)
            found = draw(models, stage, batch_size=25, loss=loss)
            chosen = np.asarray(found.indices)
            kept = np.isin(np.arange(90), chosen)
            self.assertAllEqual(found.kept, kept)
            means = []
            for name, parts in zip(tables.MODELS, models, strict=True):
                expected = oracles.row_losses(parts, chosen, LOSSES[loss])
                with self.subTest(method=method, loss=loss, model=name):
                    row_losses = getattr(found, f"{name}_loss")
                    self.assertAllClose(row_losses, expected, atol=2e-4)
                means.append(expected[kept].mean())
            self.assertAllClose(found.score, means[0] - means[1], atol=1e-4)

    def test_no_dropped_rows_have_a_mean_of_zero(self):
        models = random_embeddings.models(50)
        drawn = draw(models, config.Stage(1, num_chunks=2), batch_size=50)
        found = selection.summarize(drawn)
        self.assertAllEqual(found["learner_loss_dropped"], 0.0)

    def test_uniform_score_is_that_of_a_uniform_draw(self):
        # Its expectation is known: every row is in a draw with probability
        # b/B, every pair of rows with b(b-1)/(B(B-1)).
        size, batch = 40, 8
        models = random_embeddings.models(size)
        for loss, pairs in (
            ("sigmoid", oracles.pair_losses),
            ("own_parts:squares", own_parts.square_pairs),
        ):
            matrix = pairs(models[0]) - pairs(models[1])
            own = np.trace(matrix)
            others = matrix.sum() - own
            expected = own / size + others * (batch - 1) / (size * (size - 1))
            values = self.uniform_scores(models, batch, 300, loss)
            error = values.std() / np.sqrt(len(values))
            self.assertLess(abs(values.mean() - expected), 4 * error)
            self.assertLess(4 * error, 0.5)

    def test_uniform_score_of_a_large_batch_is_scaled_up_from_a_sample(self):
        models = random_embeddings.models(300)
        for loss in config.LOSSES:

            def scores(rows, loss=loss):
                with mock.patch.object(
                    selection.samplers, "UNIFORM_ROWS", rows
                ):
                    return self.uniform_scores(models, 280, 100, loss)

            whole, sampled = scores(280), scores(150)
            self.assertGreater(sampled.std(), 2 * whole.std())
            error = np.hypot(whole.std(), sampled.std()) / 10.0
            self.assertLess(abs(whole.mean() - sampled.mean()), 4 * error)

    def uniform_scores(self, models, batch_size, steps, loss):
        """The uniform scores of so many steps."""

        def score(state, step):
            drawn = selection.draw(
                *models,
                config.Stage(1, method="top"),
                size=batch_size,
                loss=loss,
                seed=(0, step),
            )
            return state, (drawn.uniform_score,)

        _, (every,) = graphs.compiled(
            lambda: embeddings.scan(score, steps, (), (((), "float32"),)),
            jit_compile=False,
        )()
        return np.asarray(every)

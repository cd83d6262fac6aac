"""Running scores, and the embeddings that can be scored."""

import functools

import graphs
import numpy as np
import oracles
import pytest
import random_embeddings
import tensorflow as tf
from keras import ops

from jest_tf import config, selection
from jest_tf.selection import scores

OPTIONS = {"batch_size": 2, "num_chunks": 1, "seed": (0, 0)}


class ScoresTest(tf.test.TestCase):
    def test_increments_of_any_order_add_up_to_the_score_of_the_set(self):
        # docs/method.md: sigmoid scores are exact increments of sum_ij S_ij.
        learner, reference = random_embeddings.models(30)
        matrix = oracles.pair_losses(learner) - oracles.pair_losses(reference)
        order = np.random.default_rng(0).permutation(30)[:9]
        total = 0.0
        criterion = config.CRITERIA["learnability"]
        models = scores.check_models(learner, reference, criterion.needs)
        state = scores.start(models, "sigmoid")
        for row in order:
            total += scores.conditional(state, criterion)[row]
            state = scores.add(state, ops.array([row]), scores.LocalRows(30))
        self.assertAllEqual(np.flatnonzero(state.kept), np.sort(order))
        expected = matrix[np.ix_(order, order)].sum()
        self.assertAllClose(total, expected, rtol=1e-4)


class EmbeddingsTest(tf.test.TestCase):
    def test_errors_name_the_missing_model(self):
        learner, reference = random_embeddings.models(10)
        for models, criterion, name in (
            ((learner, None), "learnability", "reference"),
            ((None, reference), "learnability", "learner"),
            ((None, reference), "own_parts:doubt", "learner"),
            ((learner, None), "easy_reference", "reference"),
            ((None, reference), "hard_learner", "learner"),
        ):
            message = f"`criterion` needs the {name}"
            with self.assertRaisesRegex(ValueError, message):
                selection.select_jointly(
                    *models, criterion=criterion, **OPTIONS
                )

    def test_errors_name_embeddings_that_do_not_fit(self):
        learner, reference = random_embeddings.models(10)
        flat = learner._replace(image=learner.image[0])
        short = learner._replace(text=learner.text[:5])
        image, text = np.int32(learner.image), np.int32(learner.text)
        integers = learner._replace(image=image, text=text)
        for broken, message in (
            (flat, r"must both be \[B, dim"),
            (short, r"must both be \[B, dim"),
            (integers, "must hold floating-point"),
            (learner._replace(scale=[1.0, 2.0]), "`learner.scale`"),
            (random_embeddings.related(9, 4, 0), "same super-batch"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                selection.select_jointly(broken, reference, **OPTIONS)

    @pytest.mark.tensorflow
    def test_nan_embeddings_stop_a_draw_eagerly_and_in_a_graph(self):
        learner, reference = random_embeddings.models(10)
        nan = learner.image.copy()
        nan[3, 2] = np.nan

        def draw(image):
            return selection.select_jointly(
                learner._replace(image=image), reference, **OPTIONS
            ).indices

        message = "`learner` embeddings hold NaN"
        with self.assertRaisesRegex(ValueError, message):
            draw(nan)
        with self.assertRaisesRegex(tf.errors.InvalidArgumentError, message):
            tf.function(draw)(tf.fill(learner.image.shape, np.nan))

    def test_nan_embeddings_make_the_score_nan_under_xla(self):
        learner, reference = random_embeddings.models(10)

        for num_chunks in (1, 2):

            @functools.partial(graphs.compiled, jit_compile=True)
            def draw(image, num_chunks=num_chunks):
                found = selection.select_jointly(
                    learner._replace(image=image),
                    reference,
                    **OPTIONS | {"num_chunks": num_chunks},
                )
                return found.indices, found.score

            nan = learner.image.copy()
            _, score = draw(nan)
            self.assertTrue(np.isfinite(score))
            nan[3, 2] = np.nan
            rows, score = draw(nan)
            self.assertNotIn(3, rows)
            self.assertTrue(np.isnan(score))

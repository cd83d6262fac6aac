"""Draws against the paper's matrix form, and their properties."""

import graphs
import hand_draws
import numpy as np
import oracles
import pairwise
import pytest
import random_embeddings
import tensorflow as tf
from keras import ops

from jest_tf import config, embeddings, selection
from jest_tf.embeddings import Embeddings

LOSSES = (*config.LOSSES, "own_parts:squares")
SEED = (3, 7)


def draw(learner, reference, stage, *, batch_size, seed=SEED, loss="sigmoid"):
    return graphs.draw(
        learner, reference, stage, size=batch_size, seed=seed, loss=loss
    )


class MatrixFormTest(tf.test.TestCase):
    def check(self, models, batch, stage, loss="sigmoid"):
        found = draw(*models, stage, batch_size=batch, loss=loss)
        expected = hand_draws.rows(
            *models, stage, batch_size=batch, seed=SEED, loss=loss
        )
        self.assertDTypeEqual(found.indices, np.int32)
        self.assertAllEqual(found.indices, expected, f"{stage} {loss}")

    def test_the_same_noise_gives_the_set_of_the_matrix_form(self):
        sizes = [(200, 40, 5), (321, 101, 8), (64, 64, 3), (50, 20, 1)]
        criteria = (*config.CRITERIA, "own_parts:doubt")
        for (size, batch, chunks), criterion, loss in pairwise.cases(
            sizes, criteria, LOSSES
        ):
            stage = config.Stage(
                1, num_chunks=chunks, criterion=criterion, gain=0.7
            )
            models = random_embeddings.models(size, seed=size)
            self.check(models, batch, stage, loss)

    def test_every_method_is_of_the_matrix_form(self):
        models = random_embeddings.models(90)
        for method, loss, batch in pairwise.cases(
            config.METHODS, config.LOSSES, (1, 40, 90)
        ):
            chunks = min(batch, 16)
            stage = config.Stage(1, method=method, num_chunks=chunks, gain=2)
            self.check(models, batch, stage, loss)

    def test_large_uneven_tiles_give_the_set_of_the_matrix_form(self):
        # More rows than a tile, more columns than a tile, neither a multiple.
        models = random_embeddings.models(2500, seed=5)
        for loss in config.LOSSES:
            self.check(models, 1203, config.Stage(1, num_chunks=2), loss)

    def test_a_model_that_the_criterion_does_not_need_may_be_missing(self):
        learner, reference = random_embeddings.models(60)
        for criterion, ours in (
            ("easy_reference", (None, reference)),
            ("hard_learner", (learner, None)),
        ):
            stage = config.Stage(1, num_chunks=3, criterion=criterion)
            with_both = draw(learner, reference, stage, batch_size=12)
            with_one = draw(*ours, stage, batch_size=12)
            self.assertAllEqual(with_both.indices, with_one.indices)
            self.assertAllClose(with_both.score, with_one.score)
            missing = "learner" if ours[0] is None else "reference"
            self.assertIsNone(getattr(with_one, f"{missing}_loss"))

    def test_joint_draws_follow_the_exact_law_on_a_tiny_case(self):
        # B = 4, b = 2, N = 2: p(i, then j) = softmax(S_ii)_i times softmax
        # over k != i of S_kk + S_ki + S_ik at j.
        size, trials = 4, 4_000
        learner = random_embeddings.related(size, 3, 1, scale=3.0, bias=-1.0)
        reference = random_embeddings.related(size, 5, 2, scale=2.0, bias=-0.5)
        matrix = oracles.pair_losses(learner) - oracles.pair_losses(reference)
        expected = np.zeros([size, size])
        first = np.exp(np.diag(matrix))
        first /= first.sum()
        for i in range(size):
            second = np.exp(np.diag(matrix) + matrix[i] + matrix[:, i])
            second[i] = 0.0
            expected[i] = first[i] * second / second.sum()
        stage = config.Stage(1, num_chunks=2)

        def one(state, step):
            seed = 0, step
            found = draw(learner, reference, stage, batch_size=2, seed=seed)
            return state, (found.indices,)

        _, (rows,) = graphs.compiled(
            lambda: embeddings.scan(one, trials, (), (([2], "int32"),)),
            jit_compile=False,
        )()
        counts = np.zeros([size, size])
        np.add.at(counts, tuple(np.asarray(rows).T), 1)
        off = ~np.eye(size, dtype=bool)
        chi_square = (
            (counts - trials * expected)[off] ** 2 / (trials * expected)[off]
        ).sum()
        self.assertEqual(counts.trace(), 0)
        # 11 degrees of freedom; P(chi-square > 31.3) = 0.001.
        self.assertLess(chi_square, 31.3)


class SamplerTest(tf.test.TestCase):
    def test_select_jointly_is_the_draw_of_a_stage(self):
        models = random_embeddings.models(40)
        own = {"num_chunks": 3, "criterion": "own_parts:doubt"}
        select_jointly = graphs.compiled(
            selection.select_jointly,
            static_argnames=["batch_size", "loss", *own],
        )
        options = {"batch_size": 12, "seed": SEED, "loss": "softmax"}
        for value, other in zip(
            select_jointly(*models, **own, **options),
            draw(*models, config.Stage(1, **own), **options),
            strict=True,
        ):
            self.assertAllEqual(value, other)
        # By default 16 chunks of learnability, and the sigmoid loss.
        self.assertAllEqual(
            select_jointly(*models, batch_size=20, seed=SEED).indices,
            draw(*models, config.Stage(9), batch_size=20).indices,
        )

    def test_equal_models_and_zero_gain_draw_uniformly(self):
        learner, other = random_embeddings.models(40)
        expected = selection.uniform_rows(SEED, 8, 40)
        for reference, gain in ((learner, 1.0), (other, 0.0)):
            stage = config.Stage(1, method="independent", gain=gain)
            found = draw(learner, reference, stage, batch_size=8)
            self.assertAllEqual(found.indices, expected)
            if gain:
                self.assertAllClose(found.score, 0.0)

    def test_ties_go_to_the_lower_row(self):
        same = random_embeddings.related(1, 4, seed=0)
        repeated = hand_draws.take(same, [0] * 9)
        top = config.Stage(1, method="top")
        found = draw(repeated, repeated, top, batch_size=4)
        self.assertAllEqual(found.indices, [0, 1, 2, 3])

    def test_rows_that_have_changed_places_are_drawn_all_the_same(self):
        models = random_embeddings.models(48)
        order = np.random.default_rng(0).permutation(48)
        moved = [hand_draws.take(model, order) for model in models]
        seed = selection.Placed(SEED, ops.array(order, "int32"))
        for method in config.METHODS:
            stage = config.Stage(4, method=method, num_chunks=4)
            expected = draw(*models, stage, batch_size=12)
            found = draw(*moved, stage, batch_size=12, seed=seed)
            self.assertAllEqual(order[found.indices], expected.indices)
            for name in ("score", "uniform_score"):
                self.assertAllClose(
                    getattr(found, name), getattr(expected, name), 1e-5
                )
        self.assertAllEqual(
            order[selection.uniform_rows(seed, 12, 48)],
            selection.uniform_rows(SEED, 12, 48),
        )


class PurityTest(tf.test.TestCase):
    @pytest.mark.slow
    @pytest.mark.tensorflow
    def test_eager_graph_and_xla_draw_the_same_rows(self):
        models = random_embeddings.models(150)
        for loss, names in (
            ("sigmoid", config.METHODS),
            ("softmax", ["joint"]),
        ):
            # All in a single graph, which compiles sooner than a graph each.
            def draws(seed, loss=loss, names=names):
                return {
                    method: draw(
                        *models,
                        config.Stage(1, method=method, num_chunks=6),
                        batch_size=40,
                        seed=seed,
                        loss=loss,
                    )
                    for method in names
                }

            seed = tf.constant([11, 12])
            eager = draws(seed)
            for jit in (False, True):
                compiled = tf.function(draws, jit_compile=jit)(seed)
                for method, ours in eager.items():
                    other = compiled[method]
                    self.assertAllEqual(ours.indices, other.indices)
                    for field in ("score", "uniform_score", "learner_loss"):
                        self.assertAllClose(
                            getattr(ours, field),
                            getattr(other, field),
                            atol=1e-4,
                        )

    def test_no_gradient_passes_through_a_draw(self):
        learner, reference = random_embeddings.models(20)

        def total(learner):
            found = draw(learner, reference, config.Stage(4), batch_size=16)
            return found.score + ops.sum(found.learner_loss)

        _, found = graphs.value_and_gradients(total, learner)
        self.assertTrue(all(map(graphs.is_none, found)))

    def test_bfloat16_embeddings_are_scored_in_float32(self):
        rounded = [
            Embeddings(*(ops.array(part, "bfloat16") for part in parts))
            for parts in random_embeddings.models(64)
        ]
        widened = [
            Embeddings(*(ops.array(part, "float32") for part in parts))
            for parts in rounded
        ]
        stage = config.Stage(4, num_chunks=4)
        self.assertAllEqual(
            draw(*rounded, stage, batch_size=16).indices,
            draw(*widened, stage, batch_size=16).indices,
        )

    def test_no_matrix_of_all_pairs_is_formed(self):
        size = 3000
        models = random_embeddings.models(size)
        stage = config.Stage(5, num_chunks=2)

        def rows():
            return draw(*models, stage, batch_size=600).indices

        shapes = graphs.shapes_in(rows)
        largest = max(int(np.prod(shape)) for shape in shapes)
        self.assertLess(largest, size * 600)


class CostTest(tf.test.TestCase):
    def test_operations_of_a_draw_by_hand(self):
        # Six rows meet their own captions and, both ways, the two that pass;
        # two rows drawn uniformly meet each other, both ways.
        found = selection.draw_flops(6, 2, width=5)
        self.assertEqual(found, 2 * 5 * (6 * 5 + 2 * 2 * 2))
        # In each of two groups of three rows a row passes.
        self.assertEqual(
            selection.draw_flops(6, 2, width=5, num_groups=2),
            2 * selection.draw_flops(3, 1, width=5),
        )
        # The uniform draw is a sample of at most 1,024 rows.
        self.assertEqual(
            selection.draw_flops(9000, 3000, width=1),
            2 * (9000 * 6001 + 2 * 1024**2),
        )


class ErrorsTest(tf.test.TestCase):
    def test_errors_name_the_setting(self):
        models = random_embeddings.models(10)
        for options, message in (
            (dict(batch_size=11), r"`batch_size` \(b\).*B=10.*11"),
            (dict(batch_size=0), r"`batch_size` \(b\) must .*batch_size=0"),
            (dict(num_chunks=5), "num_chunks` must be.*5.*batch_size=4"),
            (dict(criterion="own_parts:d"), "criterion` .*own_parts:d"),
            (dict(criterion="own_parts:nothing"), "criterion`.*Received: None"),
            (dict(criterion="own_parts:_square"), "without argu.*'logits'"),
            (dict(criterion="own_parts:letters"), "tuple .*needs='reference'"),
            (dict(criterion="own_parts:same"), r"float32 \[10\]\. Rec.*: 0.0"),
            (dict(loss="hinge"), "loss` must be one of .*'hinge'"),
            (dict(loss="own_parts:square"), "loss` must name .*own_parts:squ"),
            (dict(loss="own_parts:nothing"), "loss`.*PairLoss.*Received: None"),
            (dict(loss="own_parts:no_rows"), "SigmoidRows .*no_rows"),
            (dict(seed=(1, 2, 3)), "`seed` must be two integers"),
        ):
            options = dict(batch_size=4, num_chunks=2, seed=SEED) | options
            with self.assertRaisesRegex(ValueError, message):
                selection.select_jointly(*models, **options)
        for size, num_quotas in ((5, 2), (12, 1)):
            message = f"batch_size={size}, R={num_quotas}"
            with self.assertRaisesRegex(ValueError, message):
                selection.uniform_rows(SEED, size, 10, num_quotas=num_quotas)

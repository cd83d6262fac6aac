"""Draws against the paper's matrix form, and their properties."""

import itertools
from unittest import mock

import graphs
import numpy as np
import oracles
import pytest
import random_embeddings
import tensorflow as tf

from jest_tf import selection
from jest_tf.embeddings import Embeddings


class JointSelectionTest(tf.test.TestCase):
    def test_the_same_noise_gives_the_set_of_the_matrix_form(self):
        sizes = [(200, 40, 5), (321, 101, 8), (64, 64, 3), (50, 1, 1)]
        for (size, batch, chunks), criterion, loss, first in itertools.product(
            sizes,
            selection.CRITERIA,
            selection.LOSSES,
            selection.FIRST_CHUNKS,
        ):
            learner, reference = random_embeddings.models(size, seed=size)
            noise = selection.gumbel_noise((3, 7), chunks, size).numpy()
            draw = selection.select_jointly(
                learner,
                reference,
                batch_size=batch,
                num_chunks=chunks,
                seed=(3, 7),
                criterion=criterion,
                loss=loss,
                first_chunk=first,
                gain=0.7,
            )
            expected = oracles.select_jointly(
                learner,
                reference,
                batch_size=batch,
                noise=noise,
                criterion=criterion,
                loss=loss,
                first_chunk=first,
                gain=0.7,
            )
            with self.subTest(
                size=size, criterion=criterion, loss=loss, first_chunk=first
            ):
                self.assertAllEqual(draw.indices, expected)

    def test_large_uneven_tiles_give_the_set_of_the_matrix_form(self):
        # More rows than a tile, more columns than a tile, neither a multiple.
        size, batch, chunks = 2500, 1203, 2
        learner, reference = random_embeddings.models(size, seed=5)
        for loss in selection.LOSSES:
            draw = selection.select_jointly(
                learner,
                reference,
                batch_size=batch,
                num_chunks=chunks,
                seed=(0, 1),
                loss=loss,
            )
            noise = selection.gumbel_noise((0, 1), chunks, size).numpy()
            expected = oracles.select_jointly(
                learner, reference, batch_size=batch, noise=noise, loss=loss
            )
            self.assertAllEqual(draw.indices, expected)

    def test_a_model_that_the_criterion_does_not_need_may_be_missing(self):
        learner, reference = random_embeddings.models(60)
        for criterion, ours in (
            ("easy_reference", (None, reference)),
            ("hard_learner", (learner, None)),
        ):
            options = dict(
                batch_size=12, num_chunks=3, seed=(1, 1), criterion=criterion
            )
            with_both = selection.select_jointly(learner, reference, **options)
            with_one = selection.select_jointly(*ours, **options)
            self.assertAllEqual(with_both.indices, with_one.indices)
            self.assertAllClose(with_both.score, with_one.score)
            missing = "learner" if ours[0] is None else "reference"
            self.assertIsNone(getattr(with_one, f"{missing}_loss"))

    def test_joint_draws_follow_the_exact_law_on_a_tiny_case(self):
        # B = 4, b = 2, N = 2: p(i, then j) = softmax(S_ii)_i times softmax
        # over k != i of S_kk + S_ki + S_ik at j.
        size, trials = 4, 20_000
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

        @tf.function
        def draws():
            return tf.map_fn(
                lambda step: (
                    selection.select_jointly(
                        learner,
                        reference,
                        batch_size=2,
                        num_chunks=2,
                        seed=(0, step),
                    ).indices
                ),
                tf.range(trials),
            )

        counts = np.zeros([size, size])
        np.add.at(counts, tuple(draws().numpy().T), 1)
        off = ~np.eye(size, dtype=bool)
        chi_square = (
            (counts - trials * expected)[off] ** 2 / (trials * expected)[off]
        ).sum()
        self.assertEqual(counts.trace(), 0)
        # 11 degrees of freedom; P(chi-square > 31.3) = 0.001.
        self.assertLess(chi_square, 31.3)

    def test_more_chunks_make_a_more_learnable_batch(self):
        learner = random_embeddings.related(
            1024, 16, 0, scale=20.0, bias=-8.0, similarity=0.3
        )
        reference = random_embeddings.related(
            1024, 16, 9, scale=20.0, bias=-8.0, similarity=0.7
        )

        @tf.function
        def score(step, num_chunks):
            return selection.select_jointly(
                learner,
                reference,
                batch_size=256,
                num_chunks=num_chunks,
                seed=(0, step),
            ).score

        means = [
            np.mean([score(step, chunks) for step in tf.range(3)])
            for chunks in (1, 4, 16)
        ]
        self.assertGreater(means[1], means[0])
        self.assertGreater(means[2], means[1])

    def test_clean_pairs_are_preferred_to_shuffled_ones(self):
        # The learner knows nothing; the reference knows the clean half.
        size = 512
        reference = random_embeddings.related(
            size, 32, 3, scale=30.0, similarity=0.8
        )
        text = reference.text.copy()
        text[size // 2 :] = np.roll(text[size // 2 :], 1, axis=0)
        reference = reference._replace(text=text)
        learner = random_embeddings.related(
            size, 32, 4, scale=10.0, similarity=0.0
        )
        shares = {}
        for criterion in ("learnability", "easy_reference"):
            draw = selection.select_jointly(
                learner,
                reference,
                batch_size=128,
                num_chunks=8,
                seed=(0, 0),
                criterion=criterion,
            )
            shares[criterion] = np.mean(draw.indices.numpy() < size // 2)
        # By chance a half, with a standard deviation of about 4 %.
        self.assertGreater(shares["learnability"], 0.7)
        self.assertGreater(shares["easy_reference"], 0.7)


class SamplerTest(tf.test.TestCase):
    def test_every_sampler_keeps_exactly_b_rows_without_repeats(self):
        learner, reference = random_embeddings.models(77)
        for (name, sampler), batch in itertools.product(
            selection.SAMPLERS.items(), (1, 33, 77)
        ):
            draw = sampler(
                learner,
                reference,
                batch_size=batch,
                num_chunks=min(batch, 7),
                seed=(5, 6),
            )
            with self.subTest(sampler=name, batch=batch):
                self.assertEqual(draw.indices.dtype, tf.int32)
                self.assertEqual(draw.indices.shape, (batch,))
                self.assertLen(set(draw.indices.numpy()), batch)
                self.assertBetween(draw.indices.numpy().min(), 0, 76)
                self.assertBetween(draw.indices.numpy().max(), 0, 76)

    def test_top_takes_the_highest_scores_in_order(self):
        learner, reference = random_embeddings.models(64)
        matrix = oracles.pair_losses(learner) - oracles.pair_losses(reference)
        draw = selection.select_top(
            learner, reference, batch_size=10, seed=(0, 0)
        )
        self.assertAllEqual(
            draw.indices, np.argsort(-np.diag(matrix), kind="stable")[:10]
        )

    def test_one_chunk_is_independent_selection(self):
        learner, reference = random_embeddings.models(64)
        options = dict(batch_size=16, seed=(8, 9))
        self.assertAllEqual(
            selection.select_jointly(
                learner, reference, num_chunks=1, **options
            ).indices,
            selection.select_independently(
                learner, reference, **options
            ).indices,
        )

    def test_uniform_is_the_order_of_the_noise(self):
        learner, reference = random_embeddings.models(64)
        draw = selection.select_uniformly(
            learner, reference, batch_size=16, seed=(8, 9)
        )
        noise = selection.gumbel_noise((8, 9), 1, 64)[0].numpy()
        self.assertAllEqual(draw.indices, np.argsort(-noise)[:16])
        self.assertAllEqual(
            selection.uniform_rows((8, 9), 16, 64), draw.indices
        )

    def test_equal_models_and_zero_gain_draw_uniformly(self):
        learner, other = random_embeddings.models(40)
        noise = selection.gumbel_noise((1, 2), 1, 40)[0].numpy()
        expected = np.argsort(-noise)[:8]
        equal = selection.select_independently(
            learner, learner, batch_size=8, seed=(1, 2)
        )
        self.assertAllEqual(equal.indices, expected)
        self.assertAllClose(equal.score, 0.0)
        without_gain = selection.select_independently(
            learner, other, batch_size=8, seed=(1, 2), gain=0.0
        )
        self.assertAllEqual(without_gain.indices, expected)

    def test_ties_go_to_the_lower_row(self):
        same = random_embeddings.related(1, 4, seed=0)
        repeated = same._replace(
            image=np.repeat(same.image, 9, 0), text=np.repeat(same.text, 9, 0)
        )
        draw = selection.select_top(
            repeated, repeated, batch_size=4, seed=(0, 0)
        )
        self.assertAllEqual(draw.indices, [0, 1, 2, 3])

    def test_a_permuted_super_batch_with_permuted_noise_gives_the_same_rows(
        self,
    ):
        learner, reference = random_embeddings.models(48)
        order = np.random.default_rng(0).permutation(48)
        noise = selection.gumbel_noise((0, 0), 4, 48).numpy()

        def draw(order):
            learner_, reference_ = (
                parts._replace(image=parts.image[order], text=parts.text[order])
                for parts in (learner, reference)
            )
            permuted = tf.constant(noise[:, order])
            with mock.patch.object(
                selection.noise, "gumbel_noise", lambda *_: permuted
            ):
                return selection.select_jointly(
                    learner_,
                    reference_,
                    batch_size=12,
                    num_chunks=4,
                    seed=(0, 0),
                ).indices.numpy()

        self.assertAllEqual(order[draw(order)], draw(np.arange(48)))


class PurityTest(tf.test.TestCase):
    @pytest.mark.slow
    def test_eager_graph_and_xla_draw_the_same_rows(self):
        learner, reference = random_embeddings.models(150)
        for loss in selection.LOSSES:
            # All in one graph, which compiles sooner than one each.
            def draws(seed, loss=loss):
                return {
                    name: sampler(
                        learner,
                        reference,
                        batch_size=40,
                        num_chunks=6,
                        seed=seed,
                        loss=loss,
                    )
                    for name, sampler in selection.SAMPLERS.items()
                }

            seed = tf.constant([11, 12])
            eager = draws(seed)
            for jit in (False, True):
                compiled = tf.function(draws, jit_compile=jit)(seed)
                for name, ours in eager.items():
                    with self.subTest(sampler=name, loss=loss, jit=jit):
                        other = compiled[name]
                        self.assertAllEqual(ours.indices, other.indices)
                        for field in ("score", "uniform_score", "learner_loss"):
                            self.assertAllClose(
                                getattr(ours, field),
                                getattr(other, field),
                                atol=1e-4,
                            )

    def test_no_gradient_passes_through_a_draw(self):
        learner, reference = random_embeddings.models(20)
        image = tf.constant(learner.image)
        with tf.GradientTape() as tape:
            tape.watch(image)
            draw = selection.select_jointly(
                learner._replace(image=image),
                reference,
                batch_size=5,
                num_chunks=1,
                seed=(0, 0),
            )
            total = draw.score + tf.reduce_sum(draw.learner_loss)
        self.assertIsNone(tape.gradient(total, image))

    def test_bfloat16_embeddings_are_scored_in_float32(self):
        rounded = [
            Embeddings(*(tf.cast(part, tf.bfloat16) for part in parts))
            for parts in random_embeddings.models(64)
        ]
        widened = [
            Embeddings(*(tf.cast(part, tf.float32) for part in parts))
            for parts in rounded
        ]
        options = dict(batch_size=16, num_chunks=4, seed=(0, 0))
        self.assertAllEqual(
            selection.select_jointly(*rounded, **options).indices,
            selection.select_jointly(*widened, **options).indices,
        )

    def test_no_matrix_of_all_pairs_is_formed(self):
        size = 3000
        learner, reference = random_embeddings.models(size)

        @tf.function
        def draw():
            return selection.select_jointly(
                learner, reference, batch_size=600, num_chunks=2, seed=(0, 0)
            ).indices

        shapes = graphs.shapes_in(draw.get_concrete_function().graph)
        largest = max(int(np.prod(shape)) for shape in shapes)
        self.assertLess(largest, size * 600)

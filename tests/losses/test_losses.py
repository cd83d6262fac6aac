"""Contrastive losses: hand values, oracles, blocks, gradients, errors."""

import functools
import itertools
import math

import graphs
import numpy as np
import oracles
import random_embeddings
import tensorflow as tf
from keras import ops

from jest_tf import losses
from jest_tf.embeddings import Embeddings

LOSSES = {
    "sigmoid": (losses.sigmoid_loss, oracles.sigmoid_loss),
    "softmax": (losses.softmax_loss, oracles.softmax_loss),
}
# image @ text.T = [[1, 0.6], [0, 0.8]]
PAIRS = Embeddings(
    ops.array([[1.0, 0.0], [0.0, 1.0]]),
    ops.array([[1.0, 0.0], [0.6, 0.8]]),
    ops.array(2.0),
    ops.array(-1.0),
)


def softplus(x):
    return math.log1p(math.exp(x))


def lse(*values):
    return math.log(sum(map(math.exp, values)))


def tensors(parts, dtype="float32"):
    return Embeddings(*(ops.array(part, dtype) for part in parts))


def slopes(oracle, parts, step=1e-5):
    """Finite differences of an oracle by each part of `Embeddings`."""
    parts = [np.float64(part) for part in parts]
    for place, part in enumerate(parts):
        slope = np.zeros_like(part)
        for index in np.ndindex(part.shape):
            for by in (step, -step):
                moved = [np.array(part) for part in parts]
                moved[place][index] += by
                slope[index] += oracle(Embeddings(*moved)) / (2 * by)
        yield slope


class LossValueTest(tf.test.TestCase):
    def test_sigmoid_of_two_pairs_by_hand(self):
        # logits = 2 * cosines - 1 = [[1, 0.2], [-1, 0.6]]
        terms = softplus(-1.0), softplus(0.2), softplus(-1.0), softplus(-0.6)
        value = losses.sigmoid_loss(PAIRS)
        self.assertAllClose(value, sum(terms) / 2, rtol=1e-6)

    def test_softmax_of_two_pairs_by_hand(self):
        # logits = 2 * cosines = [[2, 1.2], [0, 1.6]]
        image_to_text = (lse(2.0, 1.2) - 2.0) + (lse(0.0, 1.6) - 1.6)
        text_to_image = (lse(2.0, 0.0) - 2.0) + (lse(1.2, 1.6) - 1.6)
        expected = (image_to_text + text_to_image) / 2 / 2
        self.assertAllClose(losses.softmax_loss(PAIRS), expected, rtol=1e-6)

    def test_values_equal_the_oracle_whichever_pairs_are_left_out(self):
        for size, (fast, slow) in itertools.product(
            (1, 2, 13, 40), LOSSES.values()
        ):
            parts = random_embeddings.unrelated(
                size, 9, seed=size, scale=14.0, bias=-6.0
            )
            for name, omitted in random_embeddings.omitted(size, size).items():
                with self.subTest(size=size, omitted=name, loss=fast):
                    value = fast(parts, **omitted)
                    expected = slow(parts, **omitted)
                    self.assertAllClose(value, expected, rtol=1e-6)

    def test_a_batch_of_duplicates_has_the_loss_of_one_pair(self):
        """What a reference tells of them is not left to rounding."""
        one = random_embeddings.related(1, 301, 2)
        image, text = (np.tile(side, (50, 1)) for side in one[:2])
        many = one._replace(image=image, text=text)
        for (fast, _), block in itertools.product(LOSSES.values(), (None, 7)):
            found = fast(many, reference=many, block_size=block)
            self.assertAllClose(found, fast(one), 1e-4, 1e-6)

    def test_ids_in_parts_are_equal_where_all_parts_are(self):
        parts = random_embeddings.unrelated(6, 4, scale=9.0, bias=-2.0)
        # Equal halves of 32 bits, low and high, of numbers that differ.
        ids = np.int64([1, 1 + 2**32, 2 + 2**32, 1, 2**33, 0])
        halves = ids.view(np.int32).reshape(6, 2)
        for (fast, slow), size in itertools.product(LOSSES.values(), (None, 4)):
            value = fast(parts, ids=halves, block_size=size)
            self.assertAllClose(value, slow(parts, ids=ids), rtol=1e-6)

    def test_extreme_logits_stay_finite_and_exact(self):
        for scale, bias in ((500.0, 0.0), (1e-3, -300.0), (800.0, -400.0)):
            parts = random_embeddings.unrelated(17, 5, scale=scale, bias=bias)
            for fast, slow in LOSSES.values():
                self.assertAllClose(fast(parts), slow(parts), rtol=2e-5)

    def test_bfloat16_embeddings_are_scored_in_float32(self):
        rounded = tensors(random_embeddings.unrelated(12, 8), "bfloat16")
        for fast, slow in LOSSES.values():
            value = fast(rounded)
            self.assertDTypeEqual(value, np.float32)
            self.assertAllClose(value, slow(tensors(rounded)), rtol=1e-6)


class ChanceTest(tf.test.TestCase):
    def test_no_learner_of_equal_logits_has_less_than_the_loss_of_chance(self):
        for name, (loss, _) in LOSSES.items():
            for size in (2, 7):
                equal, best = np.ones([size, 1]), -math.log(size - 1)
                found = [
                    float(loss(tensors((equal, equal, 0.0, bias))))
                    for bias in (best, best - 0.1, best + 0.1)
                ]
                level = losses.chance(name, size)
                self.assertAllClose(found[0], level, 1e-5)
                self.assertAllGreaterEqual(found, level - 1e-5)
        self.assertIsNone(losses.chance("own_parts:squares", 7))
        self.assertIsNone(losses.chance("softmax", 1))


class BlockwiseTest(tf.test.TestCase):
    def test_blocks_give_the_dense_value_and_gradients(self):
        parts = random_embeddings.unrelated(23, 7, scale=12.0, bias=-8.0)
        for (name, (loss, _)), (mode, options) in itertools.product(
            LOSSES.items(), random_embeddings.omitted(23).items()
        ):
            dense = graphs.value_and_gradients(loss, parts, **options)
            cases = [(size, None) for size in (1, 5, 23, 100)]
            if mode in ("none", "both"):  # eagerly, in a graph, under XLA
                cases.append((5, mode == "both"))
            for size, jit in cases:
                value, found = graphs.value_and_gradients(
                    loss, parts, jit, block_size=size, **options
                )
                with self.subTest(loss=name, mode=mode, block=size, jit=jit):
                    self.assertAllClose(value, dense[0], rtol=1e-6)
                    for gradient, other in zip(found, dense[1], strict=True):
                        self.assertAllClose(gradient, other, atol=2e-6)

    def test_gradients_equal_finite_differences_of_the_oracle(self):
        parts = random_embeddings.unrelated(6, 3, scale=4.0)
        for (fast, slow), omitted in itertools.product(
            LOSSES.values(), random_embeddings.omitted(6, 1).values()
        ):
            _, found = graphs.value_and_gradients(
                fast, parts, block_size=4, **omitted
            )
            oracle = functools.partial(slow, **omitted)
            expected = slopes(oracle, parts)
            for gradient, slope in zip(found, expected, strict=True):
                self.assertAllClose(gradient, slope, atol=2e-5)

    def test_no_logits_of_the_whole_batch_are_formed(self):
        size, block = 64, 8
        omitted = random_embeddings.omitted(size)["both"]

        def gradients(parts):
            return graphs.value_and_gradients(
                losses.sigmoid_loss, parts, block_size=block, **omitted
            )[1]

        parts = tensors(random_embeddings.unrelated(size, 4))
        shapes = graphs.shapes_in(gradients, parts)
        self.assertIn([block, size], shapes)
        self.assertNotIn([size, size], shapes)


class FeatureDistillationTest(tf.test.TestCase):
    def test_two_pairs_by_hand(self):
        image, text = [[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [-0.6, -0.8]]
        reference = tensors((image, text, 9.0, 3.0))
        # Images: 2 and 0; texts: 0 and 4, which are opposite.
        value = losses.feature_distillation(PAIRS, reference)
        self.assertAllClose(value, 6.0 / 2)

    def test_value_and_gradients_are_those_of_the_oracle(self):
        learner, reference = (
            random_embeddings.unrelated(7, 5, seed) for seed in (1, 2)
        )
        expected = oracles.feature_distillation(learner, reference)
        for jit_compile in (None, False, True):
            value, found = graphs.value_and_gradients(
                lambda parts: losses.feature_distillation(
                    parts, tensors(reference)
                ),
                learner,
                jit_compile,
            )
            self.assertAllClose(value, expected, rtol=1e-6)
            # d/dx |x - y|^2 / b
            for name in ("image", "text"):
                own, target = getattr(learner, name), getattr(reference, name)
                gradient = getattr(found, name)
                self.assertAllClose(gradient, 2.0 * (own - target) / 7)
            self.assertTrue(all(map(graphs.is_none, found[2:])))
        # The reference gets none.
        _, found = graphs.value_and_gradients(
            lambda parts: losses.feature_distillation(tensors(learner), parts),
            reference,
        )
        self.assertTrue(all(map(graphs.is_none, found)))

    def test_narrow_floats_are_compared_in_float32(self):
        parts = [
            tensors(random_embeddings.unrelated(6, 4, seed), dtype)
            for seed, dtype in ((1, "bfloat16"), (2, "float16"))
        ]
        value = losses.feature_distillation(*parts)
        self.assertDTypeEqual(value, np.float32)
        expected = oracles.feature_distillation(*map(tensors, parts))
        self.assertAllClose(value, expected, rtol=1e-6)

    def test_other_widths_and_rows_are_named(self):
        learner = tensors(random_embeddings.unrelated(6, 4))
        for rows, dim in ((6, 5), (5, 4)):
            other = tensors(random_embeddings.unrelated(rows, dim))
            with self.assertRaisesRegex(ValueError, "`distillation_weight`"):
                losses.feature_distillation(learner, other)


class SimilarityDistillationTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.learner = random_embeddings.unrelated(11, 3, scale=4.0)
        self.reference = random_embeddings.unrelated(11, 5, 2, scale=9.0)

    def loss(self, parts, **options):
        return losses.similarity_distillation(
            parts, tensors(self.reference), **options
        )

    def test_two_pairs_by_hand(self):
        # Logits of the learner [[2, 1.2], [0, 1.6]], of the reference
        # [[3, 0], [0, 3]]: a share e^3 / (e^3 + 1) for the own pair.
        reference = tensors(([[1.0, 0.0], [0.0, 1.0]],) * 2 + (3.0, 7.0))
        own = math.exp(3.0) / (math.exp(3.0) + 1.0)
        entropy = own * math.log(own) + (1 - own) * math.log(1 - own)
        total = sum(
            entropy + lse(*line) - own * line[0] - (1 - own) * line[1]
            for line in ((2.0, 1.2), (1.6, 0.0), (2.0, 0.0), (1.6, 1.2))
        )
        value = losses.similarity_distillation(PAIRS, reference)
        self.assertAllClose(value, total / 2 / 2, rtol=1e-6)
        self.assertAllClose(
            losses.similarity_distillation(PAIRS, PAIRS), 0.0, atol=1e-6
        )

    def test_values_are_the_oracles_in_any_blocks(self):
        expected = oracles.similarity_distillation(self.learner, self.reference)
        whole = graphs.value_and_gradients(self.loss, self.learner)
        expected_slopes = slopes(
            lambda own: oracles.similarity_distillation(own, self.reference),
            self.learner,
        )
        for gradient, slope in zip(whole[1], expected_slopes, strict=True):
            self.assertAllClose(gradient, slope, atol=2e-5)
        for size, jit in (
            *((None, None), (1, None), (4, None), (4, False), (4, True)),
            (50, None),
        ):
            value, found = graphs.value_and_gradients(
                self.loss, self.learner, jit, block_size=size
            )
            with self.subTest(block=size, jit=jit):
                self.assertAllClose(value, expected, rtol=1e-5)
                for gradient, other in zip(found, whole[1], strict=True):
                    self.assertAllClose(gradient, other, atol=2e-6)

    def test_the_reference_gets_no_gradient_and_other_rows_are_refused(self):
        learner = tensors(self.learner)
        _, found = graphs.value_and_gradients(
            lambda parts: losses.similarity_distillation(learner, parts),
            self.reference,
        )
        self.assertTrue(all(map(graphs.is_none, found)))
        short = tensors(random_embeddings.unrelated(4, 5))
        with self.assertRaisesRegex(ValueError, "must embed the same rows"):
            losses.similarity_distillation(learner, short)


class LossErrorTest(tf.test.TestCase):
    def test_bad_arguments_are_named(self):
        parts = random_embeddings.unrelated(4, 3)
        short = parts._replace(text=parts.text[:3])
        flat = parts._replace(image=np.zeros(4), text=np.zeros(4))
        other = {"reference": random_embeddings.unrelated(5, 3)}
        for given, options, message in (
            (parts, {"ids": [1, 2]}, r"shape \[4\]"),
            (parts, {"ids": [1.0] * 4}, "integers"),
            (parts, {"ids": [[[1]]] * 4}, r"shape \(4, 1, 1\)"),
            (parts, other, r"`reference` .* 4 rows .*\(5, 3\) and \(5, 3\)"),
            (parts, {"block_size": 0}, "`block_size` must be at least 1"),
            (short, {}, r"\(4, 3\) and \(3, 3\)"),
            (flat, {}, r"must both be \[b, dim\]"),
        ):
            for loss, _ in LOSSES.values():
                with self.assertRaisesRegex(ValueError, message):
                    loss(given, **options)

"""R replicas find what one finds: losses, draws, and the rows dealt out.

It runs eagerly on a thread a replica (`lockstep.py`), which also records what
moves between them. Training is in `test_distribution.py`.
"""

import collections
import dataclasses
import itertools
from unittest import mock

import graphs
import hand_draws
import lockstep
import numpy as np
import oracles
import pairwise
import random_embeddings
import tensorflow as tf

from jest_tf import config, losses, selection
from jest_tf.config import tables
from jest_tf.distribution import placement
from jest_tf.embeddings import Embeddings

LOSSES = {"sigmoid": losses.sigmoid_loss, "softmax": losses.softmax_loss}
SEED = (1, 2)


def draw(models, stage, size, loss="sigmoid", quota="global", replicas=None):
    """The `Draw` on one replica, or on this of several."""
    options = {"loss": loss, "quota": quota, "replicas": replicas}
    return selection.draw(*models, stage, size=size, seed=SEED, **options)


def on_replicas(num_replicas, function, values, **options):
    """`function(own values, replicas)` on each, of the rows that it holds."""

    def run(replicas):
        number = int(replicas.replica_id)
        own = lockstep.share(values, number, num_replicas)
        return function(own, replicas)

    return lockstep.run(num_replicas, run, **options)


def draw_on_replicas(models, num_replicas, *options, **more):
    """The `Draw` of every replica."""
    return on_replicas(
        num_replicas,
        lambda own, replicas: draw(own, *options, replicas=replicas),
        models,
        **more,
    )[0]


class SharedLossTest(tf.test.TestCase):
    def check(self, parts, num_replicas, loss, omitted, block_size=None):
        """Value and gradients of all replicas against one's dense loss."""
        expected, gradients = graphs.value_and_gradients(
            LOSSES[loss], parts, **omitted
        )
        results, _ = on_replicas(
            num_replicas,
            lambda own, replicas: graphs.value_and_gradients(
                LOSSES[loss],
                own[0],
                block_size=block_size,
                replicas=replicas,
                **own[1],
            ),
            (parts, omitted),
        )
        for value, _ in results:
            self.assertAllClose(value, expected, 1e-6, 0.0)
        *rows, scale, bias = zip(*(own for _, own in results), strict=True)
        for ours, gradient in zip(rows, gradients[:2], strict=True):
            bound = 1e-6 * np.abs(gradient).max()
            self.assertAllClose(np.concatenate(ours, 0), gradient, 0.0, bound)
        self.assertAllClose(sum(scale), gradients[2], 1e-6, 0.0)
        # Positive and negative pairs nearly cancel in the bias: relative to
        # what they are by themselves.
        slopes = 1.0 / (1.0 + np.exp(-oracles.logits(parts)))
        slopes -= np.eye(len(slopes))
        bound = 1e-6 * np.abs(slopes).sum() / len(slopes)
        self.assertAllClose(sum(bias), gradients[3], 0.0, bound)

    def test_value_and_gradients_equal_one_replicas_dense_loss(self):
        parts = random_embeddings.unrelated(24, 7, scale=12.0, bias=-8.0)
        omitted = random_embeddings.omitted(24)
        for count, loss, name, block in pairwise.cases(
            (1, 2, 4, 8, 24),
            LOSSES,
            omitted,
            # None; a row at a time; an uneven last block for 24, 12, 6, 3, 1.
            (None, 1, 5, 2),
        ):
            with self.subTest(count=count, loss=loss, omit=name, block=block):
                self.check(parts, count, loss, omitted[name], block)

    def test_similarities_are_distilled_as_on_one_replica(self):
        models = [
            random_embeddings.unrelated(24, dim, dim, scale=9.0)
            for dim in (7, 5)
        ]

        def step(models, **options):
            return graphs.value_and_gradients(
                lambda own: losses.similarity_distillation(
                    own, Embeddings(*map(tf.constant, models[1])), **options
                ),
                models[0],
            )

        expected, gradients = step(models)
        for count, block in ((2, None), (4, 5), (8, 1)):
            results, _ = on_replicas(
                count,
                lambda own, replicas, block=block: step(
                    own, block_size=block, replicas=replicas
                ),
                models,
            )
            for value, _ in results:
                self.assertAllClose(value, expected, 1e-6)
            *rows, scale, _ = zip(*(own for _, own in results), strict=True)
            for ours, gradient in zip(rows, gradients[:2], strict=True):
                bound = 2e-6 * np.abs(gradient).max()
                found = np.concatenate(ours, 0)
                self.assertAllClose(found, gradient, 0.0, bound)
            self.assertAllClose(sum(scale), gradients[2], 1e-5)

    def test_bfloat16_embeddings_meet_in_float32(self):
        rounded = [
            tf.cast(part, tf.bfloat16).numpy()
            for part in random_embeddings.unrelated(8, 6)
        ]
        widened = [np.float32(part) for part in rounded]
        for name, loss in LOSSES.items():
            results, calls = on_replicas(
                2,
                lambda own, replicas, loss=loss: loss(
                    Embeddings(*own), replicas=replicas
                ),
                rounded,
            )
            self.assertEqual({call.dtype for call in calls[0]}, {"float32"})
            expected = getattr(oracles, f"{name}_loss")(widened)
            self.assertAllClose(results[0], expected, rtol=1e-6)

    def test_no_logits_of_more_than_a_block_are_formed(self):
        # b = 32 on 2 replicas by blocks of 8: [8, 32], and never [16, 32].
        parts = lockstep.share(random_embeddings.unrelated(32, 4), 0, 2)
        for loss in LOSSES.values():

            def step(parts, loss=loss):
                return graphs.value_and_gradients(
                    loss, parts, block_size=8, replicas=lockstep.Echo(2)
                )[1]

            tensors = Embeddings(*map(tf.constant, parts))
            shapes = graphs.shapes_in(step, tensors)
            sizes = {int(np.prod(shape)) for shape in shapes}
            self.assertEqual(max(sizes), 8 * 32)


class GlobalQuotaTest(tf.test.TestCase):
    def check(self, models, num_replicas, stage, batch_size, loss="sigmoid"):
        single = draw(models, stage, batch_size, loss)
        draws = draw_on_replicas(models, num_replicas, stage, batch_size, loss)
        # Relative to the logits and losses whose difference a score is.
        size = sum(model.scale for model in models)
        names = [f"{name}_loss" for name in tables.MODELS]
        size += sum(np.abs(getattr(single, name)).max() for name in names)
        for found in draws:
            self.assertAllEqual(found.indices, single.indices)
            self.assertEqual(found.indices.dtype, tf.int32)
            for name in ("score", "uniform_score"):
                values = getattr(found, name), getattr(single, name)
                self.assertAllClose(*values, 0, 1e-6 * size)
        for name in ("kept", *names):
            self.assertAllClose(
                np.concatenate([getattr(found, name) for found in draws]),
                getattr(single, name),
                *(0, 1e-6 * size),
            )

    def test_every_sampler_draws_the_rows_of_one_replica_in_their_order(self):
        models = random_embeddings.models(48)
        # Chunks of 5, 5, 4, 4 and 4 rows.
        stage = config.Stage(2, num_chunks=5)
        for method, loss, criterion in pairwise.cases(
            config.METHODS, LOSSES, config.CRITERIA
        ):
            stage = dataclasses.replace(
                stage, method=method, criterion=criterion
            )
            with self.subTest(stage=stage, loss=loss):
                self.check(models, 4, stage, 22, loss)

    def test_any_number_of_replicas_and_size_of_chunks(self):
        # Chunks smaller than a replica's rows, larger, and all rows at once.
        cases = ((64, 24, 5, 0.7), (32, 24, 2, 0.0), (16, 16, 1, 0.7))
        for count, case, loss in pairwise.cases((1, 2, 8), cases, LOSSES):
            size, batch, chunks, gain = case
            models = random_embeddings.models(size, seed=size)
            stage = config.Stage(1, num_chunks=chunks, gain=gain)
            with self.subTest(replicas=count, size=size, loss=loss):
                self.check(models, count, stage, batch, loss)

    def test_ties_go_to_the_lower_row_of_all(self):
        # Five rows, over and over, so that equal rows lie on every replica; 16
        # and more rows on each, as processors treat the odd rows apart.
        some = random_embeddings.unrelated(5, 4, seed=0)
        repeated = hand_draws.take(some, np.arange(128) % 5)
        other = repeated._replace(scale=np.float32(3.0))
        top = config.Stage(1, method="top")
        for num_replicas in (2, 4, 8):
            self.check((repeated, other), num_replicas, top, 18)
            found = draw_on_replicas((repeated,) * 2, num_replicas, top, 18)[0]
            self.assertAllEqual(found.indices, np.arange(18))

    def test_unrolled_chunks_draw_what_the_loop_draws(self):
        models = random_embeddings.models(32)
        stage = config.Stage(2, num_chunks=4)
        loop, unrolled = (
            draw_on_replicas(models, 4, stage, 14, in_loops=in_loops)[3]
            for in_loops in (True, False)
        )
        self.assertAllEqual(loop.indices, unrolled.indices)
        self.assertAllClose(loop.learner_loss, unrolled.learner_loss, rtol=1e-6)

    def test_a_large_batch_is_compared_with_a_sample_of_a_uniform_one(self):
        models = random_embeddings.models(90)
        with mock.patch.object(selection.samplers, "UNIFORM_ROWS", 32):
            for loss in LOSSES:
                # 32 sampled rows are 11, 11 and 10
                self.check(models, 3, config.Stage(2, num_chunks=3), 45, loss)


class PerReplicaQuotaTest(tf.test.TestCase):
    def test_the_same_noise_gives_the_rows_of_the_matrix_form(self):
        sizes = ((48, 24, 3, 4), (40, 20, 4, 2), (32, 32, 2, 8), (24, 8, 1, 8))
        for (size, batch, chunks, count), method, loss in pairwise.cases(
            sizes, config.METHODS, LOSSES
        ):
            models = random_embeddings.models(size, seed=batch)
            stage = config.Stage(1, method=method, num_chunks=chunks)
            options = {"batch_size": batch, "seed": SEED, "loss": loss}
            options["num_replicas"] = count
            expected = hand_draws.rows(*models, stage, **options)
            how = stage, batch, loss, "per_replica"
            draws = draw_on_replicas(models, count, *how)
            with self.subTest(size=size, method=method, loss=loss):
                for found in draws:
                    self.assertAllEqual(found.indices, expected)
                    self.assertEqual(np.sum(found.kept), batch // count)


class DealTest(tf.test.TestCase):
    def draws(self, size, batch, num_replicas):
        """Draws at random, and draws that lie all to one side."""
        rng = np.random.default_rng(size + batch)
        own = size // num_replicas
        for _ in range(2):
            yield rng.permutation(size)[:batch]
        yield np.arange(batch)
        yield np.arange(size)[::-1][:batch]
        # As many as possible of one replica's, the others' spread.
        for owner in (0, num_replicas - 1):
            mine = owner * own + rng.permutation(own)
            others = np.setdiff1d(np.arange(size), mine)
            yield rng.permutation(
                np.concatenate([mine, rng.permutation(others)])[:batch]
            )

    def test_every_place_is_dealt_once_and_its_row_arrives(self):
        for size, batch, num_replicas in (
            *((24, 24, 4), (48, 40, 8), (27, 9, 3), (6, 2, 2)),
        ):
            rows = np.arange(size)
            batches = {
                "image": np.uint8(rows[:, None, None] * np.ones([2, 3])),
                "text": np.int32(rows[:, None] * 3 + np.arange(3)),
                "id": rows + 2**40,
                "flag": rows % 3 == 0,
                "sidecar": np.float16(rows[:, None] / 8 + np.arange(2)),
            }
            for indices in self.draws(size, batch, num_replicas):
                self.check(indices.astype(np.int32), batches, num_replicas)

    def check(self, indices, batches, num_replicas):
        size = len(batches["id"])

        def on_replica(own, replicas):
            rows = tf.constant(indices)
            dealt = placement.deal(rows, size, replicas=replicas)
            own = tf.nest.map_structure(tf.constant, own)
            return dealt, placement.move(own, dealt, replicas)

        results, calls = on_replicas(num_replicas, on_replica, batches)
        expected = oracles.deal(indices, size, num_replicas)
        capacity = min(len(indices), size // num_replicas) / num_replicas
        sent = (num_replicas, int(np.ceil(capacity)))
        for hand, (dealt, moved) in zip(expected, results, strict=True):
            self.assertAllEqual(dealt.places, hand)
            self.assertEqual(dealt.places.dtype, tf.int32)
            self.assertEqual(dealt.send.shape, sent)
            for name, value in moved.items():
                rows = batches[name][indices[hand]]
                self.assertAllEqual(value, rows)
                self.assertEqual(value.dtype.as_numpy_dtype, rows.dtype)
        kinds = [call.kind for call in calls[0]]
        self.assertEqual(kinds, ["all_to_all"] * len(batches))

    def test_a_deal_that_can_not_be_even_is_named(self):
        for batch, size, message in (
            (6, 8, "`batch_size`.*replicas.*: 6, R=4"),
            (4, 6, "`super_batch_size`.*replicas.*: 6, R=4"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                placement.deal(tf.range(batch), size, replicas=lockstep.Echo(4))


class TrafficTest(tf.test.TestCase):
    """What moves in a draw, in the dealing of its rows, and in the loss."""

    def moved(self, size, quota, loss):
        """The calls of replica 0 of 4, b = 24, D = 24 and 10, as a Counter."""
        rows = {"image": np.zeros([size, 4, 4, 3], np.uint8)}
        models = random_embeddings.models(size)
        stage = config.Stage(2, num_chunks=2)

        def step(own, replicas):
            (learner, reference), rows = own
            chosen = draw(
                *([learner, reference], stage, 24),
                **{"loss": loss, "quota": quota, "replicas": replicas},
            )
            dealt = placement.deal(
                chosen.indices, size, quota=quota, replicas=replicas
            )
            placement.move(rows, dealt, replicas)
            trained = learner._replace(
                image=learner.image[:6], text=learner.text[:6]
            )
            LOSSES[loss](trained, replicas=replicas)

        calls = on_replicas(4, step, (models, rows))[1][0]
        return collections.Counter(calls)

    def test_what_a_step_moves_by_hand(self):
        for quota, loss in itertools.product(config.QUOTAS, LOSSES):
            expected = {
                # 6 images and 6 texts for the loss.
                ("all_gather", (6, 24), "float32"): 2,
                # Scores of rows kept and of a uniform draw, and the loss.
                ("all_reduce", (), "float32"): 5,
            }
            for width in (24, 10):
                # Two chunks of 12 rows of four embeddings, from their owners,
                # and the rows of the uniform draw.
                expected["all_reduce", (12, width), "float32"] = 2 * 2
                expected["all_reduce", (24, width), "float32"] = 2
            if loss == "softmax":
                expected["all_gather", (6, 2), "float32"] = 1
            if quota == "global":
                # Two chunks' candidates: 12 rows and their scores. Then m = 24
                # / 4 rows for each replica.
                expected["all_gather", (12,), "float32"] = 2
                expected["all_gather", (12,), "int32"] = 2
                expected["all_to_all", (4, 6, 4, 4, 3), "uint8"] = 1
            else:
                expected["all_gather", (3,), "int32"] = 2
            with self.subTest(quota=quota, loss=loss):
                self.assertEqual(self.moved(96, quota, loss), expected)
                # Twice the super-batch moves nothing more.
                self.assertEqual(self.moved(192, quota, loss), expected)

    def test_what_distillation_moves_by_hand(self):
        value = {("all_reduce", (), "float32"): 1}
        of_similarities = value | {
            ("all_gather", (6, width), "float32"): 2 for width in (24, 10, 2)
        }
        for function, expected in (
            (losses.feature_distillation, value),
            (losses.similarity_distillation, of_similarities),
        ):

            def distil(own, replicas, function=function):
                return function(*own, replicas=replicas)

            models = random_embeddings.models(24)
            if function is losses.feature_distillation:
                models = models[0], models[0]  # of one width
            calls = on_replicas(4, distil, models)[1][0]
            self.assertEqual(collections.Counter(calls), expected)

"""R replicas find what one finds: losses, draws, and the rows dealt out.

Most of it runs eagerly on a thread a replica (`lockstep.py`); the same in a
graph, on virtual devices, is at the end. What moves between replicas is in
`test_traffic.py`, training in `test_distribution.py`.
"""

import itertools
from unittest import mock

import graphs
import lockstep
import numpy as np
import oracles
import pytest
import random_embeddings
import tensorflow as tf

from benchmarks import traffic
from jest_tf import distribution, losses, selection
from jest_tf.distribution import placement
from jest_tf.embeddings import Embeddings

LOSSES = {"sigmoid": losses.sigmoid_loss, "softmax": losses.softmax_loss}


def select_on_replicas(
    sampler, learner, reference, num_replicas, *, in_loops=True, **options
):
    """The `Draw` of every replica."""

    def draw(replicas):
        own = lockstep.share(
            (learner, reference), int(replicas.replica_id), num_replicas
        )
        return sampler(*own, replicas=replicas, **options)

    return lockstep.run(num_replicas, draw, in_loops=in_loops)[0]


class SharedLossTest(tf.test.TestCase):
    def check(self, parts, ids, num_replicas, **options):
        """Value and gradients of all replicas against one's dense loss."""
        name = options.pop("loss")
        mode = options["equal_ids"]
        expected, gradients = graphs.value_and_gradients(
            LOSSES[name], parts, ids=ids, equal_ids=mode
        )

        def on_replica(replicas):
            own, own_ids = lockstep.share(
                (parts, ids), int(replicas.replica_id), num_replicas
            )
            return graphs.value_and_gradients(
                LOSSES[name], own, ids=own_ids, replicas=replicas, **options
            )

        results, _ = lockstep.run(num_replicas, on_replica)
        for value, _ in results:
            self.assertAllClose(value, expected, rtol=1e-6, atol=0.0)
        image, text, scale, bias = zip(
            *(own for _, own in results), strict=True
        )
        for ours, one in zip((image, text), gradients[:2], strict=True):
            self.assertAllClose(
                np.concatenate(ours, 0),
                one,
                rtol=0.0,
                atol=1e-6 * np.abs(one).max(),
            )
        self.assertAllClose(sum(scale), gradients[2], rtol=1e-6, atol=0.0)
        # Positive pairs and negative ones nearly cancel in the bias: relative
        # to what they are by themselves.
        slopes = 1.0 / (1.0 + np.exp(-oracles.logits(parts)))
        slopes -= oracles.pair_matrices(ids, mode, len(ids))[0]
        bound = np.abs(slopes).sum() / len(ids)
        self.assertAllClose(
            sum(bias), gradients[3], rtol=0.0, atol=1e-6 * bound
        )

    def test_value_and_gradients_equal_one_replicas_dense_loss(self):
        parts = random_embeddings.unrelated(24, 7, scale=12.0, bias=-8.0)
        ids = np.random.default_rng(1).integers(0, 6, 24)
        for name, mode, num_replicas in itertools.product(
            LOSSES, losses.EQUAL_IDS, (1, 2, 4, 8)
        ):
            # None; a row at a time; an uneven last block for 24, 12, 6, 3 rows.
            for block_size in (None, 1, 2 if num_replicas == 8 else 5):
                with self.subTest(
                    loss=name,
                    mode=mode,
                    replicas=num_replicas,
                    block=block_size,
                ):
                    self.check(
                        parts,
                        ids,
                        num_replicas,
                        loss=name,
                        equal_ids=mode,
                        block_size=block_size,
                    )

    def test_distillation_is_that_of_one_replica(self):
        learner, reference = (
            random_embeddings.unrelated(24, 7, seed) for seed in (1, 2)
        )

        def distance_to(target, **options):
            target = Embeddings(*map(tf.constant, target))
            return lambda own: losses.feature_distillation(
                own, target, **options
            )

        expected, gradients = graphs.value_and_gradients(
            distance_to(reference), learner
        )
        for num_replicas in (1, 2, 4, 8):

            def on_replica(replicas, num_replicas=num_replicas):
                number = int(replicas.replica_id)
                own, _ = lockstep.share((learner, None), number, num_replicas)
                target, _ = lockstep.share(
                    (reference, None), number, num_replicas
                )
                return graphs.value_and_gradients(
                    distance_to(target, replicas=replicas), own
                )

            results, _ = lockstep.run(num_replicas, on_replica)
            for value, _ in results:
                self.assertAllClose(value, expected, rtol=1e-6)
            for name in ("image", "text"):
                self.assertAllClose(
                    np.concatenate(
                        [getattr(own, name) for _, own in results], 0
                    ),
                    getattr(gradients, name),
                )

    def test_a_pair_a_replica_has_the_others_as_negatives(self):
        parts = random_embeddings.unrelated(4, 5, scale=6.0, bias=-2.0)
        ids = np.array([3, 5, 3, 9])
        for name, mode in itertools.product(LOSSES, losses.EQUAL_IDS):
            self.check(parts, ids, 4, loss=name, equal_ids=mode)

    def test_bfloat16_embeddings_meet_in_float32(self):
        rounded = random_embeddings.unrelated(8, 6)
        rounded = Embeddings(*(tf.cast(part, tf.bfloat16) for part in rounded))
        widened = [np.float32(part) for part in rounded]
        for name, loss in LOSSES.items():
            results, calls = lockstep.run(
                2,
                lambda replicas, loss=loss: loss(
                    Embeddings(
                        *(
                            part[4 * int(replicas.replica_id) :][:4]
                            if part.shape.rank
                            else part
                            for part in rounded
                        )
                    ),
                    replicas=replicas,
                ),
            )
            self.assertEqual({call.dtype for call in calls[0]}, {"float32"})
            expected = getattr(oracles, f"{name}_loss")(widened)
            self.assertAllClose(results[0], expected, rtol=1e-6)

    def test_no_logits_of_more_than_a_block_are_formed(self):
        # b = 64 on 4 replicas by blocks of 8: [8, 64], and never [16, 64].
        parts = lockstep.share(random_embeddings.unrelated(64, 4), 0, 4)
        everyone = traffic.Echo(4)
        for loss in LOSSES.values():

            @tf.function
            def step(parts, loss=loss):
                with tf.GradientTape() as tape:
                    tape.watch(parts)
                    value = loss(parts, block_size=8, replicas=everyone)
                return tape.gradient(value, parts)

            graph = step.get_concrete_function(
                Embeddings(*(tf.constant(part) for part in parts))
            ).graph
            sizes = {int(np.prod(shape)) for shape in graphs.shapes_in(graph)}
            self.assertEqual(max(sizes), 8 * 64)

    def test_ids_that_do_not_fit_the_own_rows_are_named(self):
        with self.assertRaisesRegex(ValueError, r"`ids`.*shape \[4\].*\(8,\)"):
            losses.sigmoid_loss(
                lockstep.share(random_embeddings.unrelated(8, 3), 0, 2),
                ids=tf.range(8),
                equal_ids="ignore",
                replicas=traffic.Echo(2),
            )


class GlobalQuotaTest(tf.test.TestCase):
    def check(self, sampler, learner, reference, num_replicas, **options):
        one = selection.SAMPLERS[sampler](learner, reference, **options)
        draws = select_on_replicas(
            selection.SAMPLERS[sampler],
            learner,
            reference,
            num_replicas,
            **options,
        )
        for draw in draws:
            self.assertAllEqual(draw.indices, one.indices)
            self.assertEqual(draw.indices.dtype, tf.int32)
            # Relative to the logits and losses whose difference a score is.
            size = learner.scale + reference.scale
            size += np.abs(one.learner_loss).max()
            size += np.abs(one.reference_loss).max()
            for field in ("score", "uniform_score"):
                self.assertAllClose(
                    getattr(draw, field),
                    getattr(one, field),
                    rtol=0.0,
                    atol=1e-6 * size,
                )
        for field in ("kept", "learner_loss", "reference_loss"):
            joined = np.concatenate([getattr(draw, field) for draw in draws])
            if field == "kept":
                self.assertAllEqual(joined, one.kept)
            else:
                self.assertAllClose(
                    joined, getattr(one, field), rtol=0.0, atol=1e-6 * size
                )

    def test_every_sampler_draws_the_rows_of_one_replica_in_their_order(self):
        learner, reference = random_embeddings.models(48)
        for sampler, loss, criterion in itertools.product(
            selection.SAMPLERS, selection.LOSSES, selection.CRITERIA
        ):
            with self.subTest(sampler=sampler, loss=loss, criterion=criterion):
                self.check(
                    sampler,
                    learner,
                    reference,
                    4,
                    batch_size=22,
                    num_chunks=5,  # of 5, 5, 4, 4 and 4 rows
                    seed=(1, 2),
                    loss=loss,
                    criterion=criterion,
                )

    def test_any_number_of_replicas_and_size_of_chunks(self):
        # Chunks smaller than a replica's rows, larger, and all rows at once.
        sizes = ((64, 24, 5), (32, 24, 2), (16, 16, 1))
        for num_replicas, (size, batch, chunks), loss in itertools.product(
            (1, 2, 8), sizes, selection.LOSSES
        ):
            learner, reference = random_embeddings.models(size, seed=size)
            with self.subTest(replicas=num_replicas, size=size, loss=loss):
                self.check(
                    "joint",
                    learner,
                    reference,
                    num_replicas,
                    batch_size=batch,
                    num_chunks=chunks,
                    seed=(3, batch),
                    loss=loss,
                    first_chunk="uniform" if chunks == 2 else "diagonal",
                    gain=0.7,
                )

    def test_without_gain_the_noise_alone_draws(self):
        learner, reference = random_embeddings.models(32)
        self.check(
            "joint",
            learner,
            reference,
            4,
            batch_size=12,
            num_chunks=3,
            seed=(8, 8),
            gain=0.0,
        )

    def test_ties_go_to_the_lower_row_of_all(self):
        # Five rows, over and over, so that equal ones lie on every replica; 16
        # and more rows on each, as processors treat the odd ones apart.
        some = random_embeddings.unrelated(5, 4, seed=0)
        places = np.arange(128) % 5
        repeated = some._replace(
            image=some.image[places], text=some.text[places]
        )
        other = repeated._replace(scale=np.float32(3.0))
        for num_replicas in (2, 4, 8):
            self.check(
                "top", repeated, other, num_replicas, batch_size=18, seed=(0, 0)
            )
            draw = select_on_replicas(
                selection.select_top,
                repeated,
                repeated,
                num_replicas,
                batch_size=18,
                seed=(0, 0),
            )[0]
            self.assertAllEqual(draw.indices, np.arange(18))

    def test_unrolled_chunks_draw_what_the_loop_draws(self):
        learner, reference = random_embeddings.models(32)
        options = dict(batch_size=14, num_chunks=4, seed=(2, 2))
        loop, unrolled = (
            select_on_replicas(
                selection.select_jointly,
                learner,
                reference,
                4,
                in_loops=in_loops,
                **options,
            )[3]
            for in_loops in (True, False)
        )
        self.assertAllEqual(loop.indices, unrolled.indices)
        self.assertAllClose(loop.learner_loss, unrolled.learner_loss, rtol=1e-6)

    def test_a_large_batch_is_compared_with_a_sample_of_a_uniform_one(self):
        learner, reference = random_embeddings.models(90)
        with self.enter_sample_of(32):
            self.check(
                "joint",
                learner,
                reference,
                3,  # 32 sampled rows are 11, 11 and 10
                batch_size=45,
                num_chunks=3,
                seed=(5, 5),
            )
            self.check(
                "joint",
                learner,
                reference,
                3,
                batch_size=45,
                num_chunks=3,
                seed=(5, 5),
                loss="softmax",
            )

    def enter_sample_of(self, size):
        return mock.patch.object(selection.report, "UNIFORM_ROWS", size)

    def test_a_summary_averages_over_all_rows(self):
        learner, reference = random_embeddings.models(24)
        options = dict(batch_size=6, num_chunks=2, seed=(0, 3))
        one = selection.select_jointly(learner, reference, **options)

        def summary(replicas):
            own = lockstep.share(
                (learner, reference), int(replicas.replica_id), 4
            )
            draw = selection.select_jointly(*own, replicas=replicas, **options)
            return selection.summarize(draw, replicas)

        expected = selection.summarize(one)
        for ours in lockstep.run(4, summary)[0]:
            self.assertEqual(list(ours), list(expected))
            for name, value in ours.items():
                self.assertAllClose(value, expected[name], rtol=2e-6)


class PerReplicaQuotaTest(tf.test.TestCase):
    def test_the_same_noise_gives_the_rows_of_the_matrix_form(self):
        sizes = ((48, 24, 3, 4), (40, 20, 4, 2), (32, 32, 2, 8), (24, 8, 1, 8))
        for (size, batch, chunks, num_replicas), loss in itertools.product(
            sizes, selection.LOSSES
        ):
            learner, reference = random_embeddings.models(size, seed=batch)
            draws = select_on_replicas(
                selection.select_jointly,
                learner,
                reference,
                num_replicas,
                batch_size=batch,
                num_chunks=chunks,
                seed=(6, 7),
                loss=loss,
                quota="per_replica",
            )
            expected = oracles.select_per_replica(
                learner,
                reference,
                batch_size=batch,
                num_replicas=num_replicas,
                noise=selection.gumbel_noise((6, 7), chunks, size).numpy(),
                loss=loss,
            )
            with self.subTest(size=size, replicas=num_replicas, loss=loss):
                for draw in draws:
                    self.assertAllEqual(draw.indices, expected)
                    self.assertEqual(np.sum(draw.kept), batch // num_replicas)

    def test_the_report_is_of_the_rows_drawn(self):
        learner, reference = random_embeddings.models(32)
        for sampler, loss in itertools.product(
            selection.SAMPLERS.values(), selection.LOSSES
        ):
            draws = select_on_replicas(
                sampler,
                learner,
                reference,
                4,
                batch_size=12,
                num_chunks=2,
                seed=(1, 1),
                loss=loss,
                quota="per_replica",
            )
            chosen = draws[0].indices.numpy()
            kept = np.concatenate([draw.kept for draw in draws])
            self.assertAllEqual(np.flatnonzero(kept), np.sort(chosen))
            means = {}
            for name, parts in (("learner", learner), ("reference", reference)):
                rows = oracles.row_losses(parts, chosen, loss)
                joined = [getattr(draw, f"{name}_loss") for draw in draws]
                self.assertAllClose(np.concatenate(joined), rows, atol=2e-4)
                means[name] = rows[kept].mean()
            for draw in draws:
                self.assertAllClose(
                    draw.score, means["learner"] - means["reference"], atol=1e-4
                )

    def test_uniform_rows_need_no_replicas(self):
        learner, reference = random_embeddings.models(24)
        draw = select_on_replicas(
            selection.select_uniformly,
            learner,
            reference,
            4,
            batch_size=8,
            seed=(4, 2),
            quota="per_replica",
        )[0]
        self.assertAllEqual(
            selection.uniform_rows((4, 2), 8, 24, num_quotas=4), draw.indices
        )

    def test_one_replica_has_one_quota(self):
        learner, reference = random_embeddings.models(20)
        options = dict(batch_size=6, num_chunks=2, seed=(0, 0))
        self.assertAllEqual(
            selection.select_jointly(
                learner, reference, quota="per_replica", **options
            ).indices,
            selection.select_jointly(learner, reference, **options).indices,
        )


class DealTest(tf.test.TestCase):
    def draws(self, size, batch, num_replicas):
        """Draws at random, and those that lie all to one side."""
        rng = np.random.default_rng(size + batch)
        own = size // num_replicas
        for _ in range(5):
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
            (24, 12, 2),
            (24, 24, 4),
            (40, 8, 8),
            (48, 40, 8),
            (27, 9, 3),
            (6, 2, 2),
        ):
            batches = {
                "image": np.arange(size * 12).reshape(size, 2, 2, 3) % 251,
                "text": np.arange(size * 3).reshape(size, 3),
                "id": np.arange(size) + 2**40,
                "flag": np.arange(size) % 3 == 0,
                "sidecar": np.arange(size * 2).reshape(size, 2) / 8,
            }
            dtypes = (np.uint8, np.int32, np.int64, bool, np.float16)
            batches = {
                name: value.astype(dtype)
                for (name, value), dtype in zip(
                    batches.items(), dtypes, strict=True
                )
            }
            for indices in self.draws(size, batch, num_replicas):
                self.check(indices.astype(np.int32), batches, num_replicas)

    def check(self, indices, batches, num_replicas):
        size = len(batches["id"])

        def on_replica(replicas):
            own = lockstep.share(
                batches, int(replicas.replica_id), num_replicas
            )
            own = {name: tf.constant(value) for name, value in own.items()}
            dealt = placement.deal(
                tf.constant(indices), size, replicas=replicas
            )
            return dealt, placement.move(own, dealt, replicas)

        results, calls = lockstep.run(num_replicas, on_replica)
        expected = oracles.deal(indices, size, num_replicas)
        capacity = min(len(indices), size // num_replicas) / num_replicas
        for hand, (dealt, moved) in zip(expected, results, strict=True):
            self.assertAllEqual(dealt.places, hand)
            self.assertEqual(dealt.places.dtype, tf.int32)
            self.assertEqual(
                dealt.send.shape, (num_replicas, int(np.ceil(capacity)))
            )
            for name, value in moved.items():
                self.assertAllEqual(value, batches[name][indices[hand]])
                self.assertEqual(
                    value.dtype.as_numpy_dtype, batches[name].dtype
                )
        self.assertEqual(
            [call.kind for call in calls[0]], ["all_to_all"] * len(batches)
        )

    def test_rows_of_a_quota_of_ones_own_stay_in_the_order_drawn(self):
        # Two replicas of six rows; two chunks, of two rows and one a replica.
        indices = tf.constant([3, 1, 9, 6, 0, 11])
        batch = {"id": tf.range(12, dtype=tf.int64)}

        def on_replica(replicas):
            own = lockstep.share(batch, int(replicas.replica_id), 2)
            dealt = placement.deal(
                indices, 12, quota="per_replica", replicas=replicas
            )
            return dealt.places, placement.move(own, dealt, replicas)["id"]

        results, calls = lockstep.run(2, on_replica)
        self.assertAllEqual(results[0][0], [0, 1, 4])
        self.assertAllEqual(results[0][1], [3, 1, 0])
        self.assertAllEqual(results[1][0], [2, 3, 5])
        self.assertAllEqual(results[1][1], [9, 6, 11])
        self.assertEqual(calls, [[], []])

    def test_one_replica_keeps_the_draw(self):
        dealt = placement.deal(tf.constant([4, 0, 2]), 6)
        moved = placement.move({"id": 10 * tf.range(6)}, dealt)
        self.assertAllEqual(dealt.places, [0, 1, 2])
        self.assertAllEqual(moved["id"], [40, 0, 20])


class ReplicaErrorTest(tf.test.TestCase):
    def test_sizes_that_can_not_be_shared_are_named(self):
        learner, reference = lockstep.share(random_embeddings.models(24), 0, 4)
        cases = (
            (
                dict(batch_size=10),
                "`batch_size`.*number of replicas.*batch_size=10, R=4",
            ),
            (
                dict(batch_size=8, num_chunks=3),
                "num_chunks=3, B=24, batch_size=8, R=4",
            ),
            (dict(batch_size=28), "B=24, batch_size=28, R=4"),
            (dict(batch_size=8, quota="local"), "quota`.*'local'"),
        )
        for options, message in cases:
            options = (
                dict(num_chunks=1, seed=(0, 0), quota="per_replica") | options
            )
            with self.subTest(**options):
                with self.assertRaisesRegex(ValueError, message):
                    selection.select_jointly(
                        learner,
                        reference,
                        replicas=traffic.Echo(4),
                        **options,
                    )

    def test_a_global_draw_is_of_all_rows(self):
        learner, reference = lockstep.share(random_embeddings.models(24), 0, 4)
        with self.assertRaisesRegex(ValueError, "B=24.*batch_size=25"):
            selection.select_jointly(
                learner,
                reference,
                batch_size=25,
                seed=(0, 0),
                replicas=traffic.Echo(4),
            )

    def test_a_deal_that_can_not_be_even_is_named(self):
        for batch, size, message in (
            (6, 8, "`batch_size`.*replicas.*: 6, R=4"),
            (4, 6, "`super_batch_size`.*replicas.*: 6, R=4"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                placement.deal(tf.range(batch), size, replicas=traffic.Echo(4))


class VirtualDevicesTest(tf.test.TestCase):
    """The same in the graph of a strategy, with its own collectives."""

    def check(self, num_replicas):
        size, options = 48, dict(batch_size=24, num_chunks=3, seed=(1, 2))
        learner, reference = random_embeddings.models(size)
        batch = {
            "image": np.arange(size * 12, dtype=np.uint8).reshape(size, 2, 6),
            "id": np.arange(size) + 2**40,
        }
        strategy = lockstep.mirrored(num_replicas)

        @tf.function(autograph=False)
        def step(parts):
            return strategy.run(on_replica, (parts,))

        def on_replica(parts):
            replicas = distribution.current()
            learner, reference, batch = parts
            draws, hands = [], []
            for quota in selection.QUOTAS:
                draw = selection.select_jointly(
                    learner,
                    reference,
                    quota=quota,
                    replicas=replicas,
                    **options,
                )
                dealt = placement.deal(
                    draw.indices, size, quota=quota, replicas=replicas
                )
                draws.append(draw)
                hands.append(
                    (dealt.places, placement.move(batch, dealt, replicas))
                )
            values = {
                name: graphs.value_and_gradients(
                    loss, learner, block_size=5, replicas=replicas
                )
                for name, loss in LOSSES.items()
            }
            return draws, hands, values

        results = step(
            tf.nest.map_structure(
                lambda value: (
                    strategy.experimental_distribute_values_from_function(
                        lambda context: tf.constant(
                            lockstep.share(
                                value,
                                context.replica_id_in_sync_group,
                                num_replicas,
                            )
                        )
                    )
                ),
                (learner, reference, batch),
            )
        )

        def every(value):
            return [
                part.numpy()
                for part in strategy.experimental_local_results(value)
            ]

        draws, hands, values = results
        for quota, draw, (places, moved) in zip(
            selection.QUOTAS, draws, hands, strict=True
        ):
            if quota == "global":
                expected = selection.select_jointly(
                    learner, reference, **options
                ).indices.numpy()
            else:
                noise = selection.gumbel_noise((1, 2), 3, size).numpy()
                expected = oracles.select_per_replica(
                    learner,
                    reference,
                    batch_size=24,
                    num_replicas=num_replicas,
                    noise=noise,
                )
            for indices in every(draw.indices):
                self.assertAllEqual(indices, expected)
            places = np.concatenate(every(places))
            self.assertAllEqual(np.sort(places), np.arange(24))
            for name, value in moved.items():
                self.assertAllEqual(
                    np.concatenate(every(value)), batch[name][expected[places]]
                )
        for name, (value, gradients) in values.items():
            one, dense = graphs.value_and_gradients(LOSSES[name], learner)
            for ours in every(value):
                self.assertAllClose(ours, one, rtol=1e-6)
            for ours, expected in zip(gradients[:2], dense[:2], strict=True):
                self.assertAllClose(
                    np.concatenate(every(ours)), expected, atol=1e-6
                )
            for ours, expected in zip(gradients[2:], dense[2:], strict=True):
                self.assertAllClose(sum(every(ours)), expected, atol=5e-6)

    @pytest.mark.slow
    def test_two_devices_find_what_one_finds(self):
        self.check(2)

    @pytest.mark.slow
    def test_eight_devices_find_what_one_finds(self):
        self.check(8)

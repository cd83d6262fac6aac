"""The parts of a step on one replica and several: candidates to sub-batch.

Whole steps under `fit` are in `test_model.py`.
"""

import dataclasses
from unittest import mock

import lockstep
import numpy as np
import tensorflow as tf
import tiny

from jest_tf import config, selection
from jest_tf.distribution import placement
from jest_tf.embeddings import Embeddings
from jest_tf.models import reference
from jest_tf.training import step as step_lib
from jest_tf.training import sub_batch

SEED = (7, 3)
JOINT = config.SelectionConfig("joint", batch_size=8, num_chunks=2)
ROWS = 24
BATCH = {
    "image": np.arange(ROWS * 12, dtype=np.uint8).reshape(ROWS, 2, 2, 3),
    "text": np.arange(ROWS * 2, dtype=np.int32).reshape(ROWS, 2),
    "id": np.arange(ROWS) + 2**40,
    "caption_replaced": np.arange(ROWS) % 2 == 0,
    "reference_image": np.arange(ROWS * 4, dtype=np.float16).reshape(ROWS, 4),
    "reference_text": np.arange(ROWS * 4, dtype=np.float16).reshape(ROWS, 4)
    + 0.5,
    "image_for_reference": np.zeros([ROWS, 1, 1, 3], np.uint8),
}
TRAINED_ON = {"image", "text", "id"}


def step_of(selection=JOINT, learner=None, **settings):
    selection = selection or config.SelectionConfig()
    return step_lib.Step(learner, selection=selection, seed=SEED, **settings)


def on(replicas, step):
    return dataclasses.replace(step, replicas=replicas)


def share(replicas):
    """The rows of `BATCH` that a replica holds."""
    rows = ROWS // placement.count(replicas)
    first = 0 if replicas is None else int(replicas.replica_id) * rows
    return {
        name: tf.constant(value[first : first + rows])
        for name, value in BATCH.items()
    }


def on_replicas(num_replicas, function):
    """The results of all replicas; one replica has no collectives."""
    if num_replicas == 1:
        return [function(None)]
    return lockstep.run(num_replicas, function)[0]


class CandidatesTest(tf.test.TestCase):
    def candidates(self, num_replicas, **settings):
        step = step_of(dataclasses.replace(JOINT, **settings))
        return on_replicas(
            num_replicas,
            lambda replicas: step_lib.candidates(
                on(replicas, step), share(replicas)
            ),
        )

    def test_candidates_are_the_same_on_any_number_of_replicas(self):
        for num_replicas in (1, 2, 4):
            found = self.candidates(num_replicas, candidates=12)
            self.assertEqual(
                [row_of(5) for _, row_of in found], len(found) * [10]
            )
            ids = np.concatenate([pool["id"] for pool, _ in found])
            self.assertAllEqual(ids, BATCH["id"][::2])

    def test_every_row_is_a_candidate_by_default(self):
        ((pool, row_of),) = self.candidates(1)
        self.assertEqual(row_of(5), 5)
        self.assertAllEqual(pool["id"], BATCH["id"])

    def test_sizes_that_do_not_fit_are_refused(self):
        for message, num_replicas, settings in (
            ("must divide .*candidates=10, .*B=24", 1, {"candidates": 10}),
            ("must divide .*candidates=6, .*B=24", 1, {"candidates": 6}),
            # 8 rows on each replica can't be thinned to every 3rd.
            (
                "candidates` must be a mult.* 8, R=3",
                3,
                {"candidates": 8, "batch_size": 6},
            ),
            ("batch_size` .b. must be a mult.* 9, R=2", 2, {"batch_size": 9}),
        ):
            with self.assertRaisesRegex(ValueError, message):
                self.candidates(num_replicas, **settings)


class ScoreTest(tf.test.TestCase):
    def test_only_the_models_that_a_criterion_uses_are_run(self):
        learner, teacher = tiny.learner(0), tiny.learner(5)
        (batch,) = tiny.super_batches()
        expected = learner(batch), teacher(batch)
        for criterion, needed in (
            ("learnability", (True, True)),
            ("hard_learner", (True, False)),
            ("easy_reference", (False, True)),
        ):
            for size in (None, 3):
                step = step_of(
                    dataclasses.replace(
                        JOINT, criterion=criterion, scoring_batch_size=size
                    ),
                    learner if needed[0] else None,
                    reference=reference.frozen(teacher) if needed[1] else None,
                )
                found = step_lib.score(step, batch)
                for one, hand, is_needed in zip(
                    found, expected, needed, strict=True
                ):
                    if not is_needed:
                        self.assertIsNone(one)
                        continue
                    for value, by_hand in zip(one, hand, strict=True):
                        self.assertAllClose(value, by_hand, 1e-6, 1e-6)

    def test_a_step_that_does_not_score_runs_no_model(self):
        uniform = dataclasses.replace(JOINT, method="uniform")
        for settings in (None, uniform):
            found = step_lib.score(step_of(settings), share(None))
            self.assertEqual(found, (None, None))

    def test_settings_that_can_not_score_are_refused(self):
        settings = dataclasses.replace(JOINT, scoring_batch_size=5)
        with self.assertRaisesRegex(ValueError, "must divide .* 5, B/R=24"):
            step_lib.score(step_of(settings), share(None))
        with self.assertRaisesRegex(ValueError, "'learnability'` needs a ref"):
            step_lib.score(step_of(), share(None))


class SelectTest(tf.test.TestCase):
    def test_a_uniform_draw_equals_that_of_one_replica(self):
        hand = selection.uniform_rows(SEED, 8, ROWS).numpy()
        for quota in config.QUOTAS:
            step = step_of(
                dataclasses.replace(JOINT, method="uniform", quota=quota)
            )
            for num_replicas in (1, 2, 4):
                held = ROWS // num_replicas
                for rows, draw in on_replicas(
                    num_replicas,
                    lambda replicas, step=step: step_lib.select(
                        on(replicas, step), share(replicas), None, None
                    ),
                ):
                    self.assertIsNone(draw)
                    if quota == "global" or num_replicas == 1:
                        self.assertAllEqual(rows, hand)
                    # b/R of each replica's rows, each once.
                    owners = np.bincount(rows // held, minlength=num_replicas)
                    if quota == "per_replica":
                        self.assertAllEqual(
                            owners, [8 // num_replicas] * num_replicas
                        )
                    self.assertLen(set(rows.numpy()), 8)

    def test_without_a_selection_nothing_is_drawn(self):
        found = step_lib.select(step_of(None), share(None), None, None)
        self.assertEqual(found, (None, None))


class GatherTest(tf.test.TestCase):
    def gather(self, num_replicas, indices, quota="global", **settings):
        drawn = dataclasses.replace(JOINT, batch_size=16, quota=quota)
        step = step_of(None if indices is None else drawn, **settings)
        return on_replicas(
            num_replicas,
            lambda replicas: sub_batch.gather(
                on(replicas, step), share(replicas), indices
            ),
        )

    def draw(self, quota, num_replicas):
        """16 rows at random, with a quota as many of each replica."""
        rng = np.random.default_rng(num_replicas)
        if quota == "global":
            return tf.constant(rng.permutation(ROWS)[:16], tf.int32)
        held = ROWS // num_replicas
        rows = [
            number * held + rng.permutation(held)[: 16 // num_replicas]
            for number in range(num_replicas)
        ]
        return tf.constant(np.concatenate(rows), tf.int32)

    def test_every_row_of_a_draw_is_trained_on_once(self):
        for quota in config.QUOTAS:
            for num_replicas in (1, 2, 4):
                for views in ((), (config.View(),) * 2):
                    indices = self.draw(quota, num_replicas)
                    gathered = self.gather(
                        num_replicas, indices, quota, views=views
                    )
                    places = np.concatenate([places for _, places in gathered])
                    self.assertAllEqual(np.sort(places), np.arange(16))
                    for batch, places in gathered:
                        self.assertEqual(places.shape, (16 // num_replicas,))
                        self.assertEqual(set(batch), TRAINED_ON)
                        rows = tf.gather(indices, places).numpy()
                        for name, value in batch.items():
                            self.assertAllEqual(value, BATCH[name][rows])

    def test_without_a_draw_every_row_stays_in_place(self):
        for num_replicas in (1, 2, 4):
            gathered = self.gather(num_replicas, None)
            places = np.concatenate([places for _, places in gathered])
            self.assertAllEqual(places, np.arange(ROWS))
            for batch, places in gathered:
                self.assertAllEqual(batch["id"], BATCH["id"][places])

    def test_a_rows_view_is_that_of_one_replica(self):
        indices = self.draw("global", 1)
        order = selection.uniform_rows((SEED[0] ^ 0x0715, SEED[1]), 16, 16)
        first, second = np.split(order.numpy(), 2)
        for num_replicas in (1, 2, 4):
            gathered = self.gather(
                num_replicas, indices, views=(config.View(),) * 2
            )
            halves = [np.split(places, 2) for _, places in gathered]
            for number, part in enumerate((first, second)):
                found = np.concatenate([half[number] for half in halves])
                self.assertAllEqual(np.sort(found), np.sort(part))

    def test_a_micro_batch_holds_as_many_rows_of_each_view(self):
        indices, views = self.draw("global", 2), (config.View(),) * 2
        whole = self.gather(2, indices, views=views)
        mixed = self.gather(2, indices, views=views, micro_batch_size=4)
        for (_, places), (batch, found) in zip(whole, mixed, strict=True):
            # 8 rows on each replica, 4 in each view: two micro-batches.
            first, second = np.split(places.numpy(), 2)
            self.assertAllEqual(
                found, [*first[:2], *second[:2], *first[2:], *second[2:]]
            )
            rows = tf.gather(indices, found).numpy()
            self.assertAllEqual(batch["id"], BATCH["id"][rows])

    def test_parts_of_unequal_size_are_refused(self):
        indices, views = self.draw("global", 1), (config.View(),) * 3
        # 16 rows in 2 views: micro-batches of an odd size, and of 3 a view.
        for size in (3, 6):
            with self.assertRaisesRegex(
                ValueError, f"micro_batch_size` must .* {size}, 2 views, b/R=16"
            ):
                self.gather(1, indices, views=views[:2], micro_batch_size=size)
        with self.assertRaisesRegex(
            ValueError, "equal parts. .* 3 views, b=16"
        ):
            self.gather(1, indices, views=views)


class CuratedTest(tf.test.TestCase):
    """Every sixth of 24 rows is curated: 4 in a sub-batch of 8."""

    CURATED = np.arange(5, ROWS, 6)
    OTHERS = np.delete(np.arange(ROWS), CURATED)

    def sub_batch(self, num_replicas, quota):
        step = step_of(
            dataclasses.replace(JOINT, method="uniform", quota=quota),
            curated_rows=4,
        )

        def choose(replicas):
            here, batch = on(replicas, step), share(replicas)
            pool, row_of = step_lib.candidates(here, batch)
            indices, _ = step_lib.select(here, pool, None, None)
            found = sub_batch.gather(here, pool, indices)
            drawn = sub_batch.drawn_rows(here, batch, indices, row_of)
            return pool, drawn, *sub_batch.add_curated(here, batch, *found)

        return on_replicas(num_replicas, choose)

    def test_curated_rows_are_never_candidates(self):
        for num_replicas in (1, 2, 4):
            found = self.sub_batch(num_replicas, "global")
            ids = np.concatenate([pool["id"] for pool, *_ in found])
            self.assertAllEqual(ids, BATCH["id"][self.OTHERS])

    def test_every_sub_batch_has_the_drawn_rows_and_the_curated_ones(self):
        hand = self.OTHERS[selection.uniform_rows(SEED, 4, len(self.OTHERS))]
        for quota in config.QUOTAS:
            for num_replicas in (1, 2, 4):
                found = self.sub_batch(num_replicas, quota)
                drawn = found[0][1].numpy()
                self.assertAllEqual(drawn[4:], self.CURATED)
                self.assertNoCommonElements(drawn[:4], self.CURATED)
                if quota == "global" or num_replicas == 1:
                    self.assertAllEqual(drawn[:4], hand)
                places = np.concatenate([places for *_, places in found])
                self.assertAllEqual(np.sort(places), np.arange(8))
                for _, rows, batch, places in found:
                    self.assertLen(places, 8 // num_replicas)
                    rows = rows.numpy()[places]
                    self.assertEqual(set(batch), TRAINED_ON)
                    for name, value in batch.items():
                        self.assertAllEqual(value, BATCH[name][rows])

    def test_replicas_must_divide_them(self):
        step = step_of(JOINT, curated_rows=4)
        with self.assertRaisesRegex(
            ValueError,
            "`data.curated_rows` [(]c[)] must be a multiple.* 4, R=8",
        ):
            sub_batch.without_curated(
                dataclasses.replace(step, replicas=mock.Mock(num_replicas=8)),
                share(None),
            )


class DistillationTest(tf.test.TestCase):
    def test_embeddings_in_the_batch_are_the_targets(self):
        rows = np.random.default_rng(2).permutation(ROWS)[:16]
        indices = tf.constant(rows, tf.int32)
        step = step_of(
            dataclasses.replace(JOINT, batch_size=16),
            reference=lambda batch: 1 / 0,
            distillation_weight=1.0,
        )
        for num_replicas in (1, 2):
            for batch, places in on_replicas(
                num_replicas,
                lambda replicas: sub_batch.gather(
                    on(replicas, step), share(replicas), indices
                ),
            ):
                # The reference's inputs are not needed beside its embeddings.
                self.assertEqual(
                    set(batch),
                    TRAINED_ON | {"reference_image", "reference_text"},
                )
                here = rows[places]
                rest, found = sub_batch.distillation_targets(step, batch)
                self.assertEqual(set(rest), TRAINED_ON)
                self.assertAllEqual(found.image, BATCH["reference_image"][here])
                self.assertAllEqual(found.text, BATCH["reference_text"][here])

    def test_rows_without_embeddings_are_embedded(self):
        held = {
            name: tf.constant(value)
            for name, value in BATCH.items()
            if not name.startswith("reference_")
        }
        sizes = []

        def teacher(part):
            sizes.append(part["image_for_reference"].shape[0])
            text = tf.cast(part["text"], tf.float32)
            return Embeddings(2.0 * text, 3.0 * text, 1.0, 0.0)

        for size, expected in ((None, ROWS), (8, 8)):
            step = step_of(
                None,
                reference=teacher,
                distillation_weight=1.0,
                micro_batch_size=size,
            )
            batch, _ = sub_batch.gather(step, held, None)
            self.assertEqual(set(batch), TRAINED_ON | {"image_for_reference"})
            rest, found = sub_batch.distillation_targets(step, batch)
            self.assertEqual(set(rest), TRAINED_ON)
            self.assertAllEqual(found.image, 2.0 * BATCH["text"])
            self.assertAllEqual(found.text, 3.0 * BATCH["text"])
            self.assertEqual(sizes[-1], expected)

    def test_distillation_without_a_reference_is_refused(self):
        step = step_of(None, distillation_weight=1.0)
        with self.assertRaisesRegex(
            ValueError, "`distillation_weight` needs a reference: pass"
        ):
            sub_batch.distillation_targets(step, share(None))


if __name__ == "__main__":
    tf.test.main()

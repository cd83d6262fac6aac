"""Candidates, draws and rows to train on, on one replica and several.

How a step puts them together is in `test_training.py`.
"""

import dataclasses

import lockstep
import numpy as np
import tensorflow as tf
import tiny

from jest_tf import config, selection
from jest_tf.distribution import placement
from jest_tf.embeddings import Embeddings
from jest_tf.training import step

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


def own(replicas):
    """The rows of `BATCH` that a replica holds."""
    rows = ROWS // placement.count(replicas)
    first = 0 if replicas is None else int(replicas.replica_id) * rows
    return {
        name: tf.constant(value[first : first + rows])
        for name, value in BATCH.items()
    }


def on_replicas(num_replicas, function):
    """What each replica returns; of one, without collectives."""
    if num_replicas == 1:
        return [function(None)]
    return lockstep.run(num_replicas, function)[0]


class SuperBatchTest(tf.test.TestCase):
    def test_what_is_no_super_batch_is_named(self):
        for data in (BATCH["image"], {"image": BATCH["image"]}):
            with self.assertRaisesRegex(ValueError, 'dict with "image" and'):
                step.super_batch_of(data, 1)
        unknown = dict.fromkeys(("image", "text"), tf.TensorSpec([None, 2]))
        self.assertEqual(step.super_batch_of(unknown, 1), unknown)
        with self.assertRaisesRegex(ValueError, r"static size.*None, 2.*R=2"):
            step.super_batch_of(unknown, 2)


class CandidatesTest(tf.test.TestCase):
    def test_candidates_are_the_same_on_any_number_of_replicas(self):
        settings = dataclasses.replace(JOINT, candidates=12)
        for num_replicas in (1, 2, 4):
            found = on_replicas(
                num_replicas,
                lambda replicas: step.candidates(
                    own(replicas), settings, replicas
                ),
            )
            self.assertEqual({stride for _, stride in found}, {2})
            ids = np.concatenate([some["id"] for some, _ in found])
            self.assertAllEqual(ids, BATCH["id"][::2])
        everything, stride = step.candidates(own(None), JOINT)
        self.assertEqual(stride, 1)
        self.assertAllEqual(everything["id"], BATCH["id"])

    def test_sizes_that_do_not_fit_are_named(self):
        def refuse(message, num_replicas, **settings):
            settings = dataclasses.replace(JOINT, **settings)
            with self.assertRaisesRegex(ValueError, message):
                on_replicas(
                    num_replicas,
                    lambda replicas: step.candidates(
                        own(replicas), settings, replicas
                    ),
                )

        refuse("candidates` must .* 10, B=24, R=1", 1, candidates=10)
        # 12 rows a replica, of which every 8th can't be taken evenly.
        refuse("candidates` must .* 3, B=24, R=2", 2, candidates=3)
        refuse("b=8, B=6", 1, candidates=6)
        refuse("batch_size` .b. must be a mult.* 9, R=2", 2, batch_size=9)


class ScoreTest(tf.test.TestCase):
    def test_a_criterion_pays_for_what_it_needs(self):
        learner, teacher = tiny.learner(0), tiny.learner(5)
        (batch,) = tiny.super_batches()
        expected = learner(batch), teacher(batch)
        for criterion, needed in (
            ("learnability", (True, True)),
            ("hard_learner", (True, False)),
            ("easy_reference", (False, True)),
        ):
            for size in (None, 3):
                found = step.score(
                    batch,
                    dataclasses.replace(
                        JOINT, criterion=criterion, scoring_batch_size=size
                    ),
                    learner=learner if needed[0] else None,
                    reference=teacher if needed[1] else None,
                )
                for one, hand, is_needed in zip(
                    found, expected, needed, strict=True
                ):
                    if not is_needed:
                        self.assertIsNone(one)
                        continue
                    for value, by_hand in zip(one, hand, strict=True):
                        self.assertAllClose(value, by_hand, 1e-6, 1e-6)

    def test_what_can_not_be_scored_is_named(self):
        with self.assertRaisesRegex(ValueError, "must divide .* 5, B/R=24"):
            step.score(
                own(None),
                dataclasses.replace(JOINT, scoring_batch_size=5),
                learner=None,
                reference=None,
            )
        with self.assertRaisesRegex(ValueError, "'learnability'` needs a ref"):
            step.score(own(None), JOINT, learner=None, reference=None)


class ChooseTest(tf.test.TestCase):
    def test_a_uniform_draw_is_that_of_one_replica(self):
        hand = selection.uniform_rows(SEED, 8, ROWS).numpy()
        for quota in config.QUOTAS:
            settings = dataclasses.replace(JOINT, quota=quota)
            for num_replicas in (1, 2, 4):
                held = ROWS // num_replicas
                for rows in on_replicas(
                    num_replicas,
                    lambda replicas, held=held, settings=settings: (
                        step.choose_uniformly(held, SEED, settings, replicas)
                    ),
                ):
                    if quota == "global" or num_replicas == 1:
                        self.assertAllEqual(rows, hand)
                    # b/R of each replica's rows, each once.
                    owners = np.bincount(rows // held, minlength=num_replicas)
                    if quota == "per_replica":
                        self.assertAllEqual(
                            owners, [8 // num_replicas] * num_replicas
                        )
                    self.assertLen(set(rows.numpy()), 8)


class TakeTest(tf.test.TestCase):
    def take(self, num_replicas, indices, **settings):
        return on_replicas(
            num_replicas,
            lambda replicas: step.take(
                own(replicas), indices, SEED, replicas=replicas, **settings
            ),
        )

    def draw(self, quota, num_replicas):
        """Rows at random, of each replica as many."""
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
                for num_views in (0, 2):
                    indices = self.draw(quota, num_replicas)
                    taken = self.take(
                        num_replicas,
                        indices,
                        quota=quota,
                        num_views=num_views,
                    )
                    places = np.concatenate([places for _, places in taken])
                    self.assertAllEqual(np.sort(places), np.arange(16))
                    for batch, places in taken:
                        self.assertEqual(places.shape, (16 // num_replicas,))
                        # Scores and counts have had what is theirs.
                        self.assertEqual(set(batch), {"image", "text", "id"})
                        rows = tf.gather(indices, places).numpy()
                        for name, value in batch.items():
                            self.assertAllEqual(value, BATCH[name][rows])

    def test_without_a_draw_every_row_stays(self):
        for num_replicas in (1, 2, 4):
            taken = self.take(num_replicas, None)
            places = np.concatenate([places for _, places in taken])
            self.assertAllEqual(places, np.arange(ROWS))
            for batch, places in taken:
                self.assertAllEqual(batch["id"], BATCH["id"][places])

    def test_what_is_distilled_comes_along(self):
        indices = self.draw("global", 2)
        for num_replicas in (1, 2):
            for batch, places in self.take(num_replicas, indices, distils=True):
                # Who has embeddings needs nothing to make them of.
                self.assertEqual(
                    set(batch),
                    {
                        "image",
                        "text",
                        "id",
                        "reference_image",
                        "reference_text",
                    },
                )
                rows = tf.gather(indices, places).numpy()
                rest, found = step.targets(batch, lambda batch: 1 / 0)
                self.assertEqual(set(rest), {"image", "text", "id"})
                self.assertAllEqual(found.image, BATCH["reference_image"][rows])
                self.assertAllEqual(found.text, BATCH["reference_text"][rows])

    def test_who_has_no_embeddings_is_embedded(self):
        held = {
            name: tf.constant(value)
            for name, value in BATCH.items()
            if not name.startswith("reference_")
        }
        batch, _ = step.take(held, None, SEED, distils=True)
        self.assertEqual(
            set(batch), {"image", "text", "id", "image_for_reference"}
        )
        sizes = []

        def reference(part):
            sizes.append(part["image_for_reference"].shape[0])
            text = tf.cast(part["text"], tf.float32)
            return Embeddings(2.0 * text, 3.0 * text, 1.0, 0.0)

        for size, expected in ((None, ROWS), (8, 8)):
            rest, found = step.targets(batch, reference, size)
            self.assertEqual(set(rest), {"image", "text", "id"})
            self.assertAllEqual(found.image, 2.0 * BATCH["text"])
            self.assertAllEqual(found.text, 3.0 * BATCH["text"])
            self.assertEqual(sizes[-1], expected)
        with self.assertRaisesRegex(
            ValueError, "`distillation_weight` needs a reference: pass"
        ):
            step.targets(batch, None)

    def test_a_rows_view_is_that_of_one_replica(self):
        indices = self.draw("global", 1)
        order = selection.uniform_rows((SEED[0] ^ 0x0715, SEED[1]), 16, 16)
        first, second = np.split(order.numpy(), 2)
        for num_replicas in (1, 2, 4):
            taken = self.take(num_replicas, indices, num_views=2)
            halves = [np.split(places, 2) for _, places in taken]
            for number, part in enumerate((first, second)):
                found = np.concatenate([half[number] for half in halves])
                self.assertAllEqual(np.sort(found), np.sort(part))

    def test_a_micro_batch_has_as_much_of_each_view(self):
        indices = self.draw("global", 2)
        whole = self.take(2, indices, num_views=2)
        mixed = self.take(2, indices, num_views=2, micro_batch_size=4)
        for (_, places), (batch, found) in zip(whole, mixed, strict=True):
            # 8 rows a replica, of which 4 in each view: two micro-batches.
            first, second = np.split(places.numpy(), 2)
            self.assertAllEqual(
                found, [*first[:2], *second[:2], *first[2:], *second[2:]]
            )
            rows = tf.gather(indices, found).numpy()
            self.assertAllEqual(batch["id"], BATCH["id"][rows])

    def test_parts_that_can_not_be_equal_are_named(self):
        indices = self.draw("global", 1)
        # 16 rows in 2 views: micro-batches of an odd size, and of 3 a view.
        for size in (3, 6):
            with self.assertRaisesRegex(
                ValueError, f"micro_batch_size` must .* {size}, 2 views, b/R=16"
            ):
                self.take(1, indices, num_views=2, micro_batch_size=size)
        with self.assertRaisesRegex(
            ValueError, "equal parts. .* 3 views, b=16"
        ):
            self.take(1, indices, num_views=3)


if __name__ == "__main__":
    tf.test.main()

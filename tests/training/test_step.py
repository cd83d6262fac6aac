"""The parts of a step, and whole steps, on one replica and several.

Steps under `fit` are in `test_model.py`.
"""

import dataclasses
import types

import hand_draws
import lockstep
import numpy as np
import oracles
import tensorflow as tf
import tiny

from jest_tf import config, selection
from jest_tf.embeddings import Embeddings
from jest_tf.models import reference
from jest_tf.training import step as step_lib
from jest_tf.training import sub_batch

SEED = (7, 3)
ROWS = 24
BATCH = {
    "image": np.arange(ROWS * 12, dtype=np.uint8).reshape(ROWS, 2, 2, 3),
    "text": np.arange(ROWS * 2, dtype=np.int32).reshape(ROWS, 2),
    "id": np.arange(ROWS) + 2**40,
}


def funnel(batch_size, *stages, **settings):
    return config.SelectionConfig(batch_size, stages, **settings)


def step_of(settings=None, learner=None, teacher=None, **options):
    return step_lib.Step(
        learner,
        teacher,
        selection=settings,
        options=step_lib.StepOptions(**options),
        seed=SEED,
    )


def on_replicas(num_replicas, function, batch):
    """What `function(replicas, own rows)` returns on each."""

    def run(replicas):
        number = 0 if replicas is None else int(replicas.replica_id)
        own = lockstep.share(batch, number, num_replicas)
        return function(replicas, tf.nest.map_structure(tf.constant, own))

    if num_replicas == 1:
        return [run(None)]
    return lockstep.run(num_replicas, run)[0]


def on(replicas, step):
    return dataclasses.replace(step, replicas=replicas)


class SizesTest(tf.test.TestCase):
    def sizes(self, settings, num_replicas=1, curated=None):
        return on_replicas(
            num_replicas,
            lambda replicas, rows: sub_batch.check_sizes(
                on(replicas, step_of(settings)), rows, curated
            ),
            BATCH,
        )[0]

    def test_rows_into_each_live_stage_and_out_of_the_last(self):
        uniform = config.Stage(2, method="uniform")
        stored = config.Stage(5, "stored", "uniform", "easy_reference")
        for settings, c, expected in (
            (None, 0, (24,)),
            (funnel(24), 0, (24,)),
            (funnel(24, stored), 0, (24,)),
            (funnel(12, stored, uniform), 0, (24, 12)),
            (funnel(6, uniform, uniform), 0, (24, 12, 6)),
            (funnel(10, uniform, uniform), 4, (24, 12, 6)),
        ):
            for num_replicas in (1, 2):
                own = {"image": np.zeros([c // num_replicas, 2, 2, 3])}
                found = self.sizes(settings, num_replicas, own if c else None)
                self.assertEqual(found, expected)

    def test_other_batches_name_b_c_and_the_candidates(self):
        stages = (
            config.Stage(2, method="uniform"),
            config.Stage(5, num_chunks=1),
        )
        with self.assertRaisesRegex(
            ValueError,
            r"must have 80 rows .* 24 rows, b=8, c=0, candidates=\[2, 5\]",
        ):
            self.sizes(funnel(8, *stages))
        curated = {"image": np.zeros([3, 2, 2, 3])}
        with self.assertRaisesRegex(
            ValueError, r"50 rows .* 24 rows, b=8, c=3, candidates=\[2, 5\]"
        ):
            self.sizes(funnel(8, *stages), curated=curated)
        with self.assertRaisesRegex(
            ValueError, "out of every stage must be a mult.* 6, R=4"
        ):
            self.sizes(funnel(6, config.Stage(4, num_chunks=1)), 4)


class ScoreTest(tf.test.TestCase):
    def test_only_the_models_that_a_criterion_uses_are_run(self):
        learner, teacher = tiny.learner(0), tiny.learner(5)
        (batch,) = tiny.super_batches()
        expected = learner(batch), teacher(batch)
        for criterion, needed in (
            ("learnability", (True, True)),
            ("own_parts:doubt", (True, True)),
            ("hard_learner", (True, False)),
            ("easy_reference", (False, True)),
        ):
            for size in (None, 3):
                stage = config.Stage(
                    3, criterion=criterion, scoring_batch_size=size
                )
                step = step_of(
                    None,
                    learner if needed[0] else None,
                    reference.frozen(teacher) if needed[1] else None,
                )
                found = step_lib.score(step, stage, batch)
                for one, hand, is_needed in zip(
                    found, expected, needed, strict=True
                ):
                    if not is_needed:
                        self.assertIsNone(one)
                        continue
                    for value, by_hand in zip(one, hand, strict=True):
                        self.assertAllClose(value, by_hand, 1e-6, 1e-6)

    def test_a_stage_that_does_not_score_runs_no_model(self):
        stage = config.Stage(3, method="uniform", scoring_batch_size=5)
        found = step_lib.score(step_of(), stage, BATCH)
        self.assertEqual(found, (None, None))

    def test_settings_that_can_not_score_are_refused(self):
        for settings, message in (
            ({"scoring_batch_size": 5}, "must divide .* 5, 24 rows, R=1"),
            ({}, "criterion='learnability'` needs a reference: pass"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                step_lib.score(step_of(), config.Stage(3, **settings), BATCH)


class SelectTest(tf.test.TestCase):
    def test_a_uniform_draw_equals_that_of_one_replica(self):
        hand = selection.uniform_rows(SEED, 8, ROWS).numpy()
        for quota in config.QUOTAS:
            settings = funnel(8, config.Stage(3, method="uniform"), quota=quota)
            for num_replicas in (1, 2, 4):
                held = ROWS // num_replicas
                for rows, draw in on_replicas(
                    num_replicas,
                    lambda replicas, _, settings=settings: step_lib.select(
                        on(replicas, step_of(settings)), 0, 8, (None, None)
                    ),
                    BATCH,
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

    def test_every_live_stage_has_noise_of_its_own(self):
        stored = config.Stage(2, "stored", criterion="easy_reference")
        settings = funnel(16, stored, config.Stage(2), config.Stage(2))
        for number, expected in (
            (1, SEED),
            (2, hand_draws.later_seed(1, SEED)),
        ):
            self.assertAllEqual(
                step_lib.stage_seed(settings, number, SEED), expected
            )


class GatherTest(tf.test.TestCase):
    def gather(
        self, num_replicas, indices, quota="global", views=(), **options
    ):
        live = config.Stage(2, method="uniform")
        settings = None if indices is None else funnel(12, live, quota=quota)
        step = step_of(settings, **options)
        return on_replicas(
            num_replicas,
            lambda replicas, rows: sub_batch.gather(
                on(replicas, step), rows, indices, views
            ),
            BATCH,
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
                    gathered = self.gather(num_replicas, indices, quota, views)
                    places = np.concatenate([places for _, places in gathered])
                    self.assertAllEqual(np.sort(places), np.arange(16))
                    for batch, places in gathered:
                        self.assertEqual(places.shape, (16 // num_replicas,))
                        rows = tf.gather(indices, places).numpy()
                        for name, value in BATCH.items():
                            self.assertAllEqual(batch[name], value[rows])

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


class NeededTest(tf.test.TestCase):
    def test_only_what_is_still_used_goes_on(self):
        own = {"image", "text", "id"}
        inputs = {"image_for_reference", "text_for_reference"}
        stored = {"reference_image", "reference_text"}
        everything = own | inputs | stored | {"caption_replaced"}
        for names, distils, curated, is_last, expected in (
            (everything, False, None, True, own),
            # The reference's inputs are not needed beside its embeddings.
            (everything, False, None, False, own | stored),
            (everything, True, None, True, own | stored),
            (everything, True, everything, True, own | stored),
            (own | inputs, True, None, True, own | inputs),
            (own | inputs, False, None, False, own | inputs),
            # All trained rows are embedded together.
            (everything, True, own | inputs, True, own | inputs),
        ):
            step = step_of(distillation_weight=float(distils))
            found = sub_batch.needed(
                step,
                dict.fromkeys(names),
                curated and dict.fromkeys(curated),
                is_last,
            )
            self.assertEqual(set(found), expected)


class Teacher:
    """A reference that counts the rows of its calls."""

    def __init__(self):
        self.model = tiny.learner(5)
        self.calls = []

    def __call__(self, batch):
        self.calls.append(len(batch["image"]))
        return self.model(batch, training=False)


def embed(model, batch):
    return Embeddings(*(part.numpy() for part in model(batch, training=False)))


def rows_of(embeddings, rows):
    return embeddings._replace(
        image=embeddings.image[rows], text=embeddings.text[rows]
    )


class WholeStepTest(tf.test.TestCase):
    """`train_step` but for the update, on 48 rows of which 8 pass."""

    TWO = (
        config.Stage(3, num_chunks=3),
        config.Stage(2, num_chunks=2, uniform_share=0.25),
    )

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        (cls.batch,) = tiny.super_batches(rows=48)
        (cls.curated,) = tiny.super_batches(rows=4, seed=1)
        cls.learner, cls.teacher = tiny.learner(0), Teacher()
        models = cls.learner, cls.teacher.model
        cls.models = [embed(model, cls.batch) for model in models]
        cls.of_curated = [embed(model, cls.curated) for model in models]

    def run_step(self, settings, num_replicas, batch=None, **options):
        """The outputs of each replica, and the reference's calls on one."""
        self.teacher.calls.clear()
        teacher = options.pop("teacher", reference.frozen(self.teacher))
        step = dataclasses.replace(
            step_of(settings, self.learner, teacher, **options),
            optimizer=types.SimpleNamespace(
                scale_loss=tf.identity, apply_gradients=list
            ),
        )
        return on_replicas(
            num_replicas,
            lambda replicas, rows: step_lib.train_step(
                on(replicas, step), rows
            ),
            batch or self.batch,
        )

    def by_hand(self, settings, num_replicas):
        """For each stage the rows of the super-batch that it draws, in order.

        With a quota, rows lie by replica and then as drawn; or else they keep
        the order drawn.
        """
        numbers, draws = np.arange(48), []
        held = num_replicas if settings.quota == "per_replica" else 1
        sizes = [16, 8] if len(settings.stages) == 2 else [8]
        for number, (stage, size) in enumerate(
            zip(settings.stages, sizes, strict=True)
        ):
            drawn = hand_draws.rows(
                *(rows_of(one, numbers) for one in self.models),
                stage,
                batch_size=size,
                seed=hand_draws.later_seed(number, SEED),
                num_replicas=held,
            )
            draws.append(numbers[drawn])
            owners = drawn // (len(numbers) // held)
            numbers = numbers[drawn[np.argsort(owners, kind="stable")]]
        return draws

    def assert_trains_on(self, outputs, rows, extra=None):
        """Checks rows, ids and loss of a step on rows and the curated ones."""
        ids = self.batch["id"][rows]
        parts = [rows_of(one, rows) for one in self.models]
        if extra is not None:
            ids = np.concatenate([ids, self.curated["id"]])
            parts = [
                one._replace(
                    image=np.concatenate([one.image, more.image]),
                    text=np.concatenate([one.text, more.text]),
                )
                for one, more in zip(parts, self.of_curated, strict=True)
            ]
        trained = {}
        for one in outputs:
            self.assertAllEqual(one.drawn, rows)
            self.assertAllClose(
                one.metrics["loss"] - one.metrics.get("distillation", 0.0),
                oracles.sigmoid_loss(parts[0]),
                1e-5,
            )
            if "distillation" in one.metrics:
                self.assertAllClose(
                    one.metrics["distillation"],
                    oracles.feature_distillation(*parts),
                    1e-5,
                )
            found = one.rows["trained"]
            places, own = found["place"].numpy(), found["id"].numpy()
            trained |= dict(zip(places, own, strict=True))
        self.assertAllEqual([trained[n] for n in range(len(ids))], ids)

    def assert_tells_of(self, outputs, draws):
        """Checks what a step tells of the rows that its stages scored."""
        before = np.arange(48)
        for number, drawn in enumerate(draws):
            groups = [one.rows[f"stages/{number}"] for one in outputs]
            row, kept, places, ids = (
                np.concatenate([group[name] for group in groups])
                for name in ("row", "kept", "number", "id")
            )
            self.assertAllEqual(np.sort(row), np.sort(before))
            self.assertAllEqual(np.sort(row[kept]), np.sort(drawn))
            self.assertAllEqual(ids, self.batch["id"][row])
            self.assertAllEqual(np.sort(places), np.arange(len(before)))
            losses = [
                oracles.row_losses(one, drawn, "sigmoid") for one in self.models
            ]
            learner = np.concatenate([one["learner_loss"] for one in groups])
            self.assertAllClose(learner, losses[0][row], 1e-4, 1e-4)
            means = [one[drawn].mean() for one in losses]
            dropped = np.setdiff1d(before, drawn)
            for one in outputs:
                for name, value in (
                    ("score", means[0] - means[1]),
                    ("learner_loss_kept", means[0]),
                    ("reference_loss_dropped", losses[1][dropped].mean()),
                ):
                    self.assertAllClose(
                        one.metrics[f"stages/{number}/{name}"],
                        value,
                        *(1e-4, 1e-4),
                    )
            before = drawn

    def test_two_stages_draw_as_two_draws_by_hand(self):
        image, text, scale, bias = self.models[1]
        stored = self.batch | {"reference_image": image, "reference_text": text}
        cached = reference.cached(scale, bias)
        for quota in config.QUOTAS:
            settings = funnel(8, *self.TWO, quota=quota)
            for num_replicas in (1, 2):
                draws = self.by_hand(settings, num_replicas)
                live = self.run_step(settings, num_replicas)
                # The reference embeds the super-batch, and no row twice.
                self.assertEqual(
                    self.teacher.calls, [48 // num_replicas] * num_replicas
                )
                for outputs in (
                    live,
                    self.run_step(
                        settings, num_replicas, stored, teacher=cached
                    ),
                ):
                    self.assert_trains_on(outputs, draws[-1])
                    self.assert_tells_of(outputs, draws)
                    for one in outputs:
                        self.assertEqual(list(one.draws), [0, 1])

    def test_a_stage_may_leave_out_the_reference_or_the_scores(self):
        hard = dataclasses.replace(self.TWO[0], criterion="hard_learner")
        unscored = dataclasses.replace(self.TWO[0], method="uniform")
        for stages, num_embedded, scored in (
            ((hard, self.TWO[1]), 16, [0, 1]),
            ((unscored, self.TWO[1]), 16, [1]),
            (
                (self.TWO[0], dataclasses.replace(hard, candidates=2)),
                48,
                [0, 1],
            ),
            ((hard, dataclasses.replace(unscored, candidates=2)), 0, [0]),
        ):
            settings = funnel(8, *stages)
            for num_replicas in (1, 2):
                outputs = self.run_step(settings, num_replicas)
                self.assertEqual(sum(self.teacher.calls), num_embedded)
                draws = self.by_hand(settings, num_replicas)
                self.assert_trains_on(outputs, draws[-1])
                self.assertEqual(list(outputs[0].draws), scored)

    def test_curated_rows_follow_the_chosen_ones(self):
        settings = funnel(12, *self.TWO)
        batch = self.batch | {"curated": self.curated}
        for num_replicas in (1, 2):
            (*_, rows) = self.by_hand(settings, num_replicas)
            outputs = self.run_step(settings, num_replicas, batch)
            self.assert_trains_on(outputs, rows, self.curated)
            # A live reference embeds the trained rows together to distil.
            outputs = self.run_step(
                settings, num_replicas, batch, distillation_weight=1.0
            )
            self.assertEqual(sum(self.teacher.calls), 48 + 12)
            self.assert_trains_on(outputs, rows, self.curated)
        # Without stages, every other row is trained on, too.
        (outputs,) = self.run_step(funnel(52), 1, batch)
        self.assertIsNone(outputs.drawn)
        self.assertAllEqual(
            outputs.rows["trained"]["id"],
            np.concatenate([self.batch["id"], self.curated["id"]]),
        )

    def test_curated_rows_are_distilled_by_stored_embeddings(self):
        settings = funnel(12, *self.TWO, quota="per_replica")
        image, text, scale, bias = self.models[1]
        stored = self.batch | {"reference_image": image, "reference_text": text}
        image, text, *_ = self.of_curated[1]
        stored["curated"] = self.curated | {
            "reference_image": image,
            "reference_text": text,
        }
        for num_replicas in (1, 2):
            outputs = self.run_step(
                settings,
                num_replicas,
                stored,
                teacher=reference.cached(scale, bias),
                distillation_weight=1.0,
            )
            (*_, rows) = self.by_hand(settings, num_replicas)
            self.assert_trains_on(outputs, rows, self.curated)

    def test_curated_rows_that_lack_a_key_are_refused(self):
        settings = funnel(12, *self.TWO)
        lacking = {n: v for n, v in self.curated.items() if n != "id"}
        with self.assertRaisesRegex(
            ValueError, r"The 'curated' rows .* keys .* none of \['id'\]"
        ):
            self.run_step(settings, 1, self.batch | {"curated": lacking})


class DistillationTest(tf.test.TestCase):
    def test_embeddings_in_the_batch_are_the_targets(self):
        rng = np.random.default_rng(0)
        stored = {
            f"reference_{name}": np.float16(rng.normal(size=[ROWS, 4]))
            for name in ("image", "text")
        }
        step = step_of(teacher=lambda batch: 1 / 0, distillation_weight=1.0)
        rest, found = sub_batch.distillation_targets(step, BATCH | stored)
        self.assertEqual(set(rest), set(BATCH))
        self.assertAllEqual(found.image, stored["reference_image"])
        self.assertAllEqual(found.text, stored["reference_text"])

    def test_rows_without_embeddings_are_embedded(self):
        batch = {name: tf.constant(value) for name, value in BATCH.items()}
        batch["image_for_reference"] = tf.zeros([ROWS, 1, 1, 3])
        sizes = []

        def teacher(part):
            sizes.append(part["image_for_reference"].shape[0])
            text = tf.cast(part["text"], tf.float32)
            return Embeddings(2.0 * text, 3.0 * text, 1.0, 0.0)

        for size, expected in ((None, ROWS), (8, 8)):
            step = step_of(
                teacher=teacher, distillation_weight=1.0, micro_batch_size=size
            )
            rest, found = sub_batch.distillation_targets(step, batch)
            self.assertEqual(set(rest), set(BATCH))
            self.assertAllEqual(found.image, 2.0 * BATCH["text"])
            self.assertAllEqual(found.text, 3.0 * BATCH["text"])
            self.assertEqual(sizes[-1], expected)

    def test_distillation_without_a_reference_is_refused(self):
        with self.assertRaisesRegex(
            ValueError, "`distillation_weight` needs a reference: pass"
        ):
            sub_batch.distillation_targets(
                step_of(distillation_weight=1.0), BATCH
            )


if __name__ == "__main__":
    tf.test.main()

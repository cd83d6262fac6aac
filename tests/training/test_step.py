"""The parts of a step, and whole steps, on one replica and several.

Steps under `fit` are in `test_model.py`.
"""

import dataclasses
import itertools
import operator
import types

import hand_draws
import keras
import lockstep
import numpy as np
import oracles
import tensorflow as tf
import tiny
from keras import ops

from jest_tf import config, distribution, losses, selection
from jest_tf.embeddings import ON_TENSORFLOW, Embeddings
from jest_tf.models import reference
from jest_tf.training import funnel as funnel_lib
from jest_tf.training import step as step_lib
from jest_tf.training import sub_batch

if not ON_TENSORFLOW:
    import jax

    from jest_tf.distribution import collectives_jax

SEED = (7, 3)
ROWS = 24
BATCH = {
    "image": np.arange(ROWS * 12, dtype=np.uint8).reshape(ROWS, 2, 2, 3),
    "text": np.arange(ROWS * 2, dtype=np.int32).reshape(ROWS, 2),
    # JAX has 32 bits; `fit` sends it both halves.
    "id": np.arange(ROWS) + (2**40 if ON_TENSORFLOW else 2**20),
}


def funnel(batch_size, *stages, **settings):
    return config.SelectionConfig(batch_size, stages, **settings)


def step_of(settings=None, learner=None, teacher=None, **options):
    return step_lib.Step(
        learner,
        teacher,
        segment=settings and config.plan(settings)[0],
        options=step_lib.StepOptions(**options),
        seed=SEED,
    )


def on_replicas(num_replicas, function, batch):
    """The results of `function(replicas, own rows)` on each replica."""

    def run(replicas):
        number = 0 if replicas is None else int(replicas.replica_id)
        own = lockstep.share(batch, number, num_replicas)
        own = tf.nest.map_structure(ops.convert_to_tensor, own)
        return function(replicas, own)

    if not ON_TENSORFLOW:
        return on_replicas_of_jax(num_replicas, function, batch)
    if num_replicas == 1:
        return [run(None)]
    return lockstep.run(num_replicas, run)[0]


def on_replicas_of_jax(num_replicas, function, batch):
    """As `on_replicas`: a `vmap` has the collectives of a `shard_map`."""
    mesh = types.SimpleNamespace(axis_names=("replica",), size=num_replicas)

    def run(own):
        devices = None if num_replicas == 1 else mesh
        with collectives_jax.running(devices) as replicas:
            return function(replicas, own)

    shares = [
        lockstep.share(batch, number, num_replicas)
        for number in range(num_replicas)
    ]
    shares = tf.nest.map_structure(lambda *own: ops.stack(own), *shares)
    found = jax.jit(jax.vmap(run, axis_name="replica"))(shares)
    return [
        jax.tree.map(operator.itemgetter(number), found)
        for number in range(num_replicas)
    ]


def on(replicas, step):
    return dataclasses.replace(step, replicas=replicas)


class SizesTest(tf.test.TestCase):
    def sizes(self, settings, num_replicas=1, num_curated=0):
        own = {"image": np.zeros([num_curated // num_replicas, 2, 2, 3])}
        return on_replicas(
            num_replicas,
            lambda replicas, rows: sub_batch.check_sizes(
                on(replicas, step_of(settings)),
                rows,
                own if num_curated else None,
            ),
            BATCH,
        )[0]

    def test_rows_into_each_live_stage_and_out_of_the_last(self):
        uniform = config.Stage(2, method="uniform")
        stored = config.Stage(5, "stored", "uniform", "easy_reference")
        for settings, num_curated, expected in (
            (None, 0, (24,)),
            (funnel(24), 0, (24,)),
            (funnel(24, stored), 0, (24,)),
            (funnel(12, stored, uniform), 0, (24, 12)),
            (funnel(6, uniform, uniform), 0, (24, 12, 6)),
            (funnel(10, uniform, uniform), 4, (24, 12, 6)),
        ):
            for num_replicas in (1, 2):
                found = self.sizes(settings, num_replicas, num_curated)
                self.assertEqual(found, expected)

    def test_other_batches_name_b_c_and_the_candidates(self):
        joint = config.Stage(5, num_chunks=1)
        both = config.Stage(2, method="uniform"), joint
        for stages, num_replicas, num_curated, message in (
            (both, 1, 0, r"80 rows .* 24 rows, b=8, c=0, candidates=\[2, 5\]"),
            (both, 1, 3, r"50 rows .* 24 rows, b=8, c=3, candidates=\[2, 5\]"),
            ((joint,), 2, 0, r"40 rows .* 24 rows, b=8, c=0, candidates=\[5\]"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                self.sizes(funnel(8, *stages), num_replicas, num_curated)
        message = "out of every stage .* 12, R=8"
        with self.assertRaisesRegex(ValueError, message):
            self.sizes(funnel(12, both[0]), 8)


class ScoreTest(tf.test.TestCase):
    def test_only_the_models_that_a_criterion_uses_are_run(self):
        models = tiny.learner(0), tiny.learner(5)
        (batch,) = tiny.super_batches()
        for (criterion, used), size in itertools.product(
            (
                ("learnability", (True, True)),
                ("own_parts:doubt", (True, True)),
                ("hard_learner", (True, False)),
                ("easy_reference", (False, True)),
            ),
            (None, 3),
        ):
            stage = config.Stage(3, "live", "top", criterion)
            stage = dataclasses.replace(stage, scoring_batch_size=size)
            learner, teacher = (
                model if is_used else None
                for model, is_used in zip(models, used, strict=True)
            )
            frozen = teacher and reference.frozen(teacher)
            step = step_of(funnel(4, stage), learner, frozen)
            found = step_lib.score(step, 0, batch)
            for embedded, model in zip(found, (learner, teacher), strict=True):
                expected = model and model(batch)
                self.assertEqual(embedded is None, expected is None)
                for value, part in zip(
                    embedded or (), expected or (), strict=True
                ):
                    self.assertAllClose(value, part, 1e-6, 1e-6)
        uniform = config.Stage(3, method="uniform", scoring_batch_size=5)
        step = step_of(funnel(4, uniform))
        self.assertEqual(step_lib.score(step, 0, batch), (None, None))


class GatherTest(tf.test.TestCase):
    def gather(self, num_replicas, indices, quota="global", views=0, **more):
        live = config.Stage(2, method="uniform")
        settings = None if indices is None else funnel(12, live, quota=quota)
        step = step_of(settings, **more)
        return on_replicas(
            num_replicas,
            lambda replicas, rows: sub_batch.gather(
                on(replicas, step), rows, indices, (config.View(),) * views
            ),
            BATCH,
        )

    def draw(self, quota="global", num_replicas=1):
        """16 rows at random, with a quota as many of each replica."""
        rng = np.random.default_rng(num_replicas)
        parts = num_replicas if quota == "per_replica" else 1
        held = ROWS // parts
        rows = [
            number * held + rng.permutation(held)[: 16 // parts]
            for number in range(parts)
        ]
        return ops.convert_to_tensor(np.concatenate(rows), "int32")

    def test_every_row_of_a_draw_is_trained_on_once(self):
        for quota, num_replicas, views in itertools.product(
            config.QUOTAS, (1, 2, 4), (0, 2)
        ):
            indices = self.draw(quota, num_replicas)
            gathered = self.gather(num_replicas, indices, quota, views)
            places = np.concatenate([places for _, places in gathered])
            self.assertAllEqual(np.sort(places), np.arange(16))
            for batch, places in gathered:
                self.assertEqual(places.shape, (16 // num_replicas,))
                rows = np.asarray(ops.take(indices, places))
                for name, value in BATCH.items():
                    self.assertAllEqual(batch[name], value[rows])

    def test_a_rows_view_is_that_of_one_replica(self):
        order = selection.uniform_rows((SEED[0] ^ 0x0715, SEED[1]), 16, 16)
        first, second = np.split(np.asarray(order), 2)
        for num_replicas in (1, 2, 4):
            gathered = self.gather(num_replicas, self.draw(), views=2)
            halves = [np.split(places, 2) for _, places in gathered]
            for number, part in enumerate((first, second)):
                found = np.concatenate([half[number] for half in halves])
                self.assertAllEqual(np.sort(found), np.sort(part))

    def test_a_micro_batch_holds_as_many_rows_of_each_view(self):
        indices = self.draw()
        whole = self.gather(2, indices, views=2)
        mixed = self.gather(2, indices, views=2, micro_batch_size=4)
        for (_, places), (batch, found) in zip(whole, mixed, strict=True):
            # 8 rows on each replica, 4 in each view: two micro-batches.
            first, second = np.split(np.asarray(places), 2)
            expected = [*first[:2], *second[:2], *first[2:], *second[2:]]
            self.assertAllEqual(found, expected)
            rows = np.asarray(ops.take(indices, found))
            self.assertAllEqual(batch["id"], BATCH["id"][rows])

    def test_parts_of_unequal_size_are_refused(self):
        # 16 rows in 2 views: micro-batches of an odd size, and of 3 a view.
        segment = config.Segment(config.SelectionConfig(16))
        for shares, message in (
            ((1, 3, 2), "micro_batch_size` must .* 3, b/R=16, R=1, 2 views"),
            ((1, 6, 2), "micro_batch_size` must .* 6, b/R=16, R=1, 2 views"),
            ((2, 5, 0), "micro_batch_size` must .* 5, b/R=8, R=2, 1 views"),
            ((1, None, 3), "equal parts. .* 3 views, 16 rows"),
            ((3, None, 0), "replicas .R.. Received: 16, R=3"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                sub_batch.check_shares(segment, *shares)


class Bare(keras.Model):
    """A learner that returns scale and bias as variables, unless it `reads`."""

    def __init__(self, reads):
        super().__init__()
        start = keras.initializers.Orthogonal(seed=1)
        self.inner = tiny.learner()
        self.image = keras.layers.Dense(4, kernel_initializer=start)
        self.image.build((None, tiny.DIM))
        self.own = [self.add_weight(), self.add_weight()]
        self.own[0].assign(3.0)
        self.own[1].assign(-2.0)
        self.built, self.reads = True, reads

    def call(self, batch, training=False):
        image, text, *_ = self.inner(batch, training=training)
        own = self.own
        if self.reads:
            own = [1.0 * variable for variable in own]
        return Embeddings(self.image(image), self.image(text), *own)


class GradientTest(tf.test.TestCase):
    def test_a_learner_may_return_its_scale_and_bias_as_variables(self):
        (batch,) = tiny.super_batches(rows=8)
        batch.pop("id"), batch.pop("caption_id")
        batch = {name: ops.convert_to_tensor(x) for name, x in batch.items()}
        for size in (None, 4):
            found, expected = (
                step_lib.backend.gradients(
                    Bare(reads),
                    batch,
                    lambda given: {"loss": losses.sigmoid_loss(given)},
                    micro_batch_size=size,
                )
                for reads in (False, True)
            )
            for ours, theirs in zip(
                [*found.embeddings, *found.by_variable],
                [*expected.embeddings, *expected.by_variable],
                strict=True,
            ):
                if theirs is not None:  # the inner learner's own scale and bias
                    self.assertAllClose(ours, theirs)
            # Both variables are trained.
            scale, bias, *_ = found.by_variable
            self.assertNotEqual(float(scale) * float(bias), 0.0)


class NeededTest(tf.test.TestCase):
    def test_only_what_is_still_used_goes_on(self):
        own = {"image", "text", "id"}
        live = own | {"image_for_reference", "text_for_reference"}
        stored = own | {"reference_image", "reference_text"}
        every = live | stored | {"caption_replaced"}
        for names, distils, curated, is_last, expected in (
            (every, False, None, True, own),
            # The reference's inputs are not needed beside its embeddings.
            (every, False, None, False, stored),
            (every, True, None, True, stored),
            (every, True, every, True, stored),
            (live, True, None, True, live),
            (live, False, None, False, live),
            # All trained rows are embedded together.
            (every, True, live, True, live),
        ):
            step = step_of(distillation_weight=float(distils))
            curated = curated and dict.fromkeys(curated)
            batch = dict.fromkeys(names)
            found = sub_batch.needed(step, batch, curated, is_last)
            self.assertEqual(set(found), expected)


class Teacher:
    """A reference that counts the rows of its calls."""

    def __init__(self):
        self.model = tiny.learner(5)
        self.calls = []

    def __call__(self, batch):
        # On JAX all replicas are traced at once.
        replicas = distribution.current()
        count = replicas.num_replicas if replicas else 1
        self.calls += [len(batch["image"])] * count
        return self.model(batch, training=False)


class WholeStepTest(tf.test.TestCase):
    """`train_step` but for the update, on 48 rows of which 8 pass."""

    STORED = config.Stage(9, "stored", "uniform", "easy_reference")
    TWO = (config.Stage(3, num_chunks=3), config.Stage(2, num_chunks=2))

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        (cls.batch,) = tiny.super_batches(rows=48)
        (cls.curated,) = tiny.super_batches(rows=4, seed=1)
        cls.learner, cls.teacher = tiny.learner(0), Teacher()
        both = tf.nest.map_structure(
            lambda *parts: np.concatenate(parts), cls.batch, cls.curated
        )
        # The last four rows are the curated rows.
        cls.models = [
            Embeddings(*map(np.asarray, model(both, training=False)))
            for model in (cls.learner, cls.teacher.model)
        ]
        cls.ids = np.asarray(ops.convert_to_tensor(both["id"]))
        cls.caption_ids = both["caption_id"]
        image, text, scale, bias = cls.models[1]
        cls.cached = staticmethod(funnel_lib.Cached(scale, bias))
        cls.stored = [
            rows | {"reference_image": image[own], "reference_text": text[own]}
            for rows, own in (
                (cls.batch, slice(48)),
                (cls.curated, slice(48, 52)),
            )
        ]

    def run_step(self, settings, num_replicas, batch, teacher=None, **options):
        """The outputs of each replica."""
        self.teacher.calls.clear()
        teacher = teacher or reference.frozen(self.teacher)
        step = dataclasses.replace(
            step_of(settings, self.learner, teacher, **options),
            optimizer=types.SimpleNamespace(
                scale_loss=lambda loss: loss, apply_gradients=list
            ),
        )
        return on_replicas(
            num_replicas,
            lambda replicas, rows: step_lib.train_step(
                on(replicas, step), rows
            ),
            batch,
        )

    def by_hand(self, settings, num_replicas):
        """For each stage the rows of the super-batch that it draws."""
        return hand_draws.through(
            [hand_draws.take(model, np.arange(48)) for model in self.models],
            settings.live,
            SEED,
            num_replicas if settings.quota == "per_replica" else 1,
        )

    def assert_trains_on(self, outputs, drawn, curated=(), **omitted):
        """Checks rows, ids and loss of a step on rows and the curated rows."""
        rows = np.concatenate([drawn, curated]).astype(int)
        parts = [hand_draws.take(model, rows) for model in self.models]
        trained = {}
        for output in outputs:
            self.assertAllEqual(output.drawn, drawn)
            distance = 0.0
            if "distillation" in output.metrics:
                distance = oracles.feature_distillation(*parts)
                found = output.metrics["distillation"]
                self.assertAllClose(found, distance, 1e-5)
            loss = oracles.sigmoid_loss(parts[0], **omitted) + distance
            self.assertAllClose(output.metrics["loss"], loss, 1e-5)
            found = output.rows["trained"]
            places, ids = np.asarray(found["place"]), np.asarray(found["id"])
            trained.update(zip(places, ids, strict=True))
        ids = [trained[place] for place in range(len(rows))]
        self.assertAllEqual(ids, self.ids[rows])

    def assert_tells_of(self, outputs, draws):
        """Checks what a step tells of the rows that its stages scored."""
        before = np.arange(48)
        for number, drawn in enumerate(draws, 1):
            groups = [output.rows[f"stages/{number}"] for output in outputs]
            row, kept, places, ids, learner_loss = (
                np.concatenate([group[name] for group in groups])
                for name in ("row", "kept", "number", "id", "learner_loss")
            )
            self.assertAllEqual(np.sort(row), np.sort(before))
            self.assertAllEqual(np.sort(row[kept > 0]), np.sort(drawn))
            self.assertAllEqual(ids, self.ids[row])
            self.assertAllEqual(np.sort(places), np.arange(len(before)))
            losses = [
                oracles.row_losses(model, drawn, "sigmoid")
                for model in self.models
            ]
            self.assertAllClose(learner_loss, losses[0][row], 1e-4, 1e-4)
            learner, teacher = (every[drawn].mean() for every in losses)
            dropped = losses[1][np.setdiff1d(before, drawn)].mean()
            for output in outputs:
                for name, value in (
                    ("score", learner - teacher),
                    ("learner_loss_kept", learner),
                    ("reference_loss_dropped", dropped),
                ):
                    found = output.metrics[f"stages/{number}/{name}"]
                    self.assertAllClose(found, value, 1e-4, 1e-4)
            before = drawn

    def test_two_stages_draw_as_two_draws_by_hand(self):
        for quota, num_replicas in itertools.product(config.QUOTAS, (1, 2)):
            settings = funnel(8, self.STORED, *self.TWO, quota=quota)
            draws = self.by_hand(settings, num_replicas)
            live = self.run_step(settings, num_replicas, self.batch)
            # The reference embeds the super-batch, and no row twice.
            once = [48 // num_replicas] * num_replicas
            self.assertEqual(self.teacher.calls, once)
            stored = self.run_step(
                settings, num_replicas, self.stored[0], self.cached
            )
            for outputs in (live, stored):
                self.assert_trains_on(outputs, draws[-1])
                self.assert_tells_of(outputs, draws)
                self.assertEqual(list(outputs[0].draws), [1, 2])

    def test_a_stage_may_leave_out_the_reference_or_the_scores(self):
        first, last = self.TWO
        for stages, num_embedded, scored in (
            ((self.hard(first), last), 16, [0, 1]),
            ((first, self.hard(last)), 48, [0, 1]),
            ((self.unscored(first), last), 16, [1]),
            ((self.hard(first), self.unscored(last)), 0, [0]),
        ):
            settings = funnel(8, *stages)
            for num_replicas in (1, 2):
                outputs = self.run_step(settings, num_replicas, self.batch)
                self.assertEqual(sum(self.teacher.calls), num_embedded)
                draws = self.by_hand(settings, num_replicas)
                self.assert_trains_on(outputs, draws[-1])
                self.assertEqual(list(outputs[0].draws), scored)

    def hard(self, stage):
        return dataclasses.replace(stage, criterion="hard_learner")

    def unscored(self, stage):
        return dataclasses.replace(stage, method="uniform")

    def test_curated_rows_follow_the_chosen_ones(self):
        live = self.batch | {"curated": self.curated}
        stored = self.stored[0] | {"curated": self.stored[1]}
        for quota, num_replicas in itertools.product(config.QUOTAS, (1, 2)):
            settings = funnel(12, *self.TWO, quota=quota)
            (*_, rows) = self.by_hand(settings, num_replicas)
            distils = {"distillation_weight": 1.0}
            masks = {"false_negatives": "reference"}
            trained = np.concatenate([rows, range(48, 52)])
            omitted = {
                "ids": self.caption_ids[trained],
                "reference": hand_draws.take(self.models[1], trained),
            }
            for batch, teacher, options, num_embedded in (
                (live, None, {}, 48),
                # A live reference embeds the trained rows together for a loss.
                (live, None, distils, 48 + 12),
                (live, None, masks, 48 + 12),
                (stored, self.cached, distils, 0),
                (stored, self.cached, masks | distils, 0),
            ):
                outputs = self.run_step(
                    *(settings, num_replicas, batch, teacher), **options
                )
                self.assertEqual(sum(self.teacher.calls), num_embedded)
                self.assert_trains_on(
                    *(outputs, rows, range(48, 52)),
                    **(omitted if "false_negatives" in options else {}),
                )

    def test_curated_rows_follow_the_others_where_none_are_chosen(self):
        batch = self.batch | {"curated": self.curated}
        (outputs,) = self.run_step(funnel(52), 1, batch)
        self.assertIsNone(outputs.drawn)
        self.assertAllEqual(outputs.rows["trained"]["id"], self.ids)

    def test_curated_rows_that_lack_a_key_are_refused(self):
        settings = funnel(12, *self.TWO)
        without_id = {n: v for n, v in self.curated.items() if n != "id"}
        lacking = r"'curated' rows .*none of \['id'\]"
        not_stored = "needs `reference_image`.*Funnel with sidecars"
        for batch, curated, teacher, message in (
            (self.batch, without_id, None, lacking),
            (self.stored[0], self.curated, self.cached, not_stored),
        ):
            given = settings, 1, batch | {"curated": curated}, teacher
            with self.assertRaisesRegex(ValueError, message):
                self.run_step(*given, distillation_weight=1.0)

"""`JESTModel` under `fit`: steps by hand, and what Keras makes of it."""

import contextlib
import csv
import dataclasses
import functools
import io
import itertools
import math
import os
import re

import keras
import numpy as np
import oracles
import tensorflow as tf
import tiny

import jest_tf
from jest_tf import config, losses, selection, training
from jest_tf.data import augmentation
from jest_tf.embeddings import Embeddings
from jest_tf.models import reference as reference_lib
from jest_tf.training import step as step_lib

SEED, RATE = 7, 0.5
JOINT = config.SelectionConfig("joint", batch_size=4, num_chunks=2)
# float32 against steps by hand, whose sums have another order.
TOLERANCE = {"rtol": 1e-5, "atol": 5e-6}


def build(learner=None, reference="learner", selection=JOINT, **settings):
    """A compiled model with plain SGD, and a reference if it selects."""
    if reference == "learner":
        reference = tiny.learner(5) if selection else None
    options = {
        name: settings.pop(name)
        for name in ("jit_compile", "run_eagerly", "optimizer")
        if name in settings
    }
    model = training.JESTModel(
        learner or tiny.learner(0),
        reference,
        selection,
        **{"seed": SEED} | settings,
    )
    model.compile(
        **{
            "optimizer": keras.optimizers.SGD(RATE),
            "jit_compile": False,
            # A graph takes longer than a few steps; some tests ask for one.
            "run_eagerly": True,
        }
        | options
    )
    return model


def fit(model, batches, **options):
    return model.fit(tiny.dataset(batches), **{"verbose": 0} | options)


class DrawnIds(keras.callbacks.Callback):
    """Remembers the ids of every step."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(self.model.drawn_ids.numpy())


def fit_and_remember(model, batches, **options):
    drawn = DrawnIds()
    fit(model, batches, callbacks=[drawn], **options)
    return np.array(drawn.steps)


def embed(learner, batch):
    return Embeddings(
        *(part.numpy() for part in learner(batch, training=False))
    )


def draw(model, batch, step=0):
    """The `Draw` of a joint step, of which `fit` keeps the rows."""
    return selection.select_jointly(
        *step_lib.score(model.step, batch),
        batch_size=4,
        num_chunks=2,
        seed=(SEED, step),
    )


def rows_of(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


def drawn_by_hand(learner, reference, batch, step, settings, loss="sigmoid"):
    """The rows of a draw, in order, from the NumPy twin of the sampler."""
    chunks = settings.num_chunks if settings.method == "joint" else 1
    noise = selection.gumbel_noise((SEED, step), chunks, len(batch["image"]))
    if settings.method == "top":
        noise = 0.0 * noise
    return oracles.select_jointly(
        embed(learner, batch),
        embed(reference, batch),
        batch_size=settings.batch_size,
        noise=noise.numpy(),
        criterion=settings.criterion,
        loss=loss,
        gain=0.0 if settings.method == "uniform" else settings.gain,
    )


def step_by_hand(learner, batch, rate=RATE, loss=losses.sigmoid_loss):
    """One step of gradient descent; the loss before it."""
    with tf.GradientTape() as tape:
        value = loss(learner(batch, training=True))
    variables = learner.trainable_variables
    gradients = tape.gradient(value, variables)
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_sub(rate * tf.convert_to_tensor(gradient))
    return value.numpy()


class TrainingTestCase(tf.test.TestCase):
    def assert_same_weights(self, ours, theirs, **tolerance):
        self.assertEqual(len(ours.weights), len(theirs.weights))
        for one, other in zip(ours.weights, theirs.weights, strict=True):
            if tolerance:
                self.assertAllClose(one, other, **tolerance)
            else:
                self.assertAllEqual(one, other)

    def assert_moved(self, model, before):
        after = model.get_weights()
        self.assertTrue(
            any(np.any(x != y) for x, y in zip(before, after, strict=True))
        )


class StepTest(TrainingTestCase):
    def test_without_selection_a_step_trains_on_the_batch_as_it_comes(self):
        batches = tiny.super_batches(3)
        for loss, by_hand in (
            ("sigmoid", losses.sigmoid_loss),
            ("softmax", losses.softmax_loss),
        ):
            with self.subTest(loss):
                learner, twin = tiny.learner(0), tiny.learner(0)
                model = build(learner, None, None, loss=loss)
                history = fit(model, batches).history
                values, scales, biases = [], [], []
                for batch in batches:
                    scales.append(math.exp(twin.log_temperature.numpy()))
                    biases.append(twin.bias.numpy())
                    values.append(step_by_hand(twin, batch, loss=by_hand))
                self.assert_same_weights(learner, twin, **TOLERANCE)
                self.assertAllClose(history["loss"], [np.mean(values)])
                self.assertAllClose(history["scale"], [np.mean(scales)])
                self.assertAllClose(history["bias"], [np.mean(biases)])

    def test_a_step_trains_on_the_rows_that_the_draw_picks(self):
        batches = tiny.super_batches(3)
        learner, twin, reference = (tiny.learner(seed) for seed in (0, 0, 5))
        model = build(learner, reference)
        drawn = fit_and_remember(model, batches)
        for step, batch in enumerate(batches):
            rows = drawn_by_hand(twin, reference, batch, step, JOINT)
            self.assertAllEqual(drawn[step], batch["id"][rows])
            step_by_hand(twin, rows_of(batch, rows))
        self.assert_same_weights(learner, twin, **TOLERANCE)

    def test_the_metrics_are_those_of_the_draw_and_the_batch(self):
        (batch,) = tiny.super_batches()
        learner, reference = tiny.learner(0), tiny.learner(5)
        scored = [embed(model, batch) for model in (learner, reference)]
        rows = drawn_by_hand(learner, reference, batch, 0, JOINT)
        dropped = np.setdiff1d(np.arange(12), rows)
        expected = {"scale": 4.0, "bias": -2.0}
        values = [oracles.row_losses(part, rows, "sigmoid") for part in scored]
        for name, value in zip(("learner", "reference"), values, strict=True):
            expected[f"select/{name}_loss_kept"] = value[rows].mean()
            expected[f"select/{name}_loss_dropped"] = value[dropped].mean()
        kept = [
            part._replace(image=part.image[rows], text=part.text[rows])
            for part in scored
        ]
        ours, theirs = (oracles.sigmoid_loss(part) for part in kept)
        expected["loss"] = ours
        expected["select/score"] = ours - theirs

        history = fit(build(learner, reference), [batch]).history
        uniform = history.pop("select/uniform_score")
        self.assertCountEqual(history, expected)
        for name, value in expected.items():
            self.assertAllClose(history[name], [value], msg=name)
        # Of a uniform draw of its own, which the joint one should beat.
        self.assertLess(uniform[0], expected["select/score"])

    def test_every_sampler_criterion_and_loss_runs_and_draws_as_by_hand(self):
        batches = tiny.super_batches(2)
        reference = tiny.learner(5)
        for method, criterion, loss in itertools.product(
            config.SAMPLERS, config.CRITERIA, config.LOSSES
        ):
            if method == "uniform" and criterion != "learnability":
                continue  # it scores nothing
            with self.subTest(method=method, criterion=criterion, loss=loss):
                settings = config.SelectionConfig(method, 4, 2, criterion)
                learner, twin = tiny.learner(0), tiny.learner(0)
                needs = settings.needs_reference
                model = build(
                    learner,
                    reference if needs else None,
                    settings,
                    loss=loss,
                )
                drawn = fit_and_remember(model, batches)
                by_hand = {
                    "sigmoid": losses.sigmoid_loss,
                    "softmax": losses.softmax_loss,
                }[loss]
                for step, batch in enumerate(batches):
                    rows = drawn_by_hand(
                        twin, reference, batch, step, settings, loss
                    )
                    self.assertAllEqual(drawn[step], batch["id"][rows])
                    step_by_hand(twin, rows_of(batch, rows), loss=by_hand)
                self.assert_same_weights(learner, twin, **TOLERANCE)

    def test_the_scores_may_use_another_loss_than_the_training(self):
        (batch,) = tiny.super_batches()
        settings = dataclasses.replace(JOINT, loss="softmax", gain=3.0)
        learner, twin, reference = (tiny.learner(seed) for seed in (0, 0, 5))
        drawn = fit_and_remember(build(learner, reference, settings), [batch])
        rows = drawn_by_hand(twin, reference, batch, 0, settings, "softmax")
        self.assertAllEqual(drawn[0], batch["id"][rows])
        step_by_hand(twin, rows_of(batch, rows))
        self.assert_same_weights(learner, twin, **TOLERANCE)

    def test_a_sub_batch_as_large_as_the_super_batch_drops_nothing(self):
        (batch,) = tiny.super_batches()
        settings = dataclasses.replace(JOINT, batch_size=12)
        model, plain = build(selection=settings), build(selection=None)
        drawn = fit_and_remember(model, [batch])
        self.assertAllEqual(np.sort(drawn[0]), np.sort(batch["id"]))
        fit(plain, [batch])
        self.assert_same_weights(model, plain, **TOLERANCE)

    def test_the_ids_of_equal_captions_follow_the_draw(self):
        (batch,) = tiny.super_batches()
        learner, reference = tiny.learner(0), tiny.learner(5)
        rows = drawn_by_hand(learner, reference, batch, 0, JOINT)
        # Two of the rows that will be drawn share a caption.
        batch["caption_id"] = np.arange(12)
        batch["caption_id"][rows[3]] = rows[0]
        chosen = rows_of(batch, rows)
        expected = oracles.sigmoid_loss(
            embed(learner, chosen), chosen["caption_id"], "ignore"
        )
        model = build(learner, reference, equal_captions="ignore")
        loss = fit(model, [batch]).history["loss"]
        self.assertAllClose(loss, [expected], **TOLERANCE)

    def test_regularizers_of_the_learner_are_trained_on_but_not_shown(self):
        (batch,) = tiny.super_batches()
        learner, twin = (
            tiny.learner(
                0,
                extra=[
                    keras.layers.Dense(
                        6, kernel_initializer="ones", kernel_regularizer="l2"
                    )
                ],
            )
            for _ in range(2)
        )
        (kernel,) = (
            variable
            for variable in twin.trainable_variables
            if variable.shape == (6, 6)
        )
        before = kernel.numpy()
        history = fit(build(learner, None, None), [batch]).history
        value = step_by_hand(twin, batch)
        # l2 is 0.01 times the sum of squares.
        kernel.assign_sub(RATE * 0.01 * 2 * before)
        self.assertAllClose(history["loss"], [value], **TOLERANCE)
        self.assert_same_weights(learner, twin, **TOLERANCE)


class ScoringTest(TrainingTestCase):
    def learner(self):
        """With layers that behave otherwise in training."""
        return tiny.learner(
            0,
            extra=[
                keras.layers.BatchNormalization(momentum=0.5),
                keras.layers.Dropout(0.5, seed=3),
            ],
        )

    def test_scoring_is_in_evaluation_mode(self):
        (batch,) = tiny.super_batches()
        reference = tiny.learner(5)
        rows = drawn_by_hand(self.learner(), reference, batch, 0, JOINT)
        learner = self.learner()
        before = [value.numpy() for value in learner.non_trainable_variables]
        model = build(learner, reference)
        for _ in range(3):  # a dropped unit would change it
            self.assertAllEqual(draw(model, batch).indices, rows)
        for old, new in zip(
            before, learner.non_trainable_variables, strict=True
        ):
            self.assertAllEqual(old, new)

    def test_only_the_trained_rows_move_the_statistics(self):
        (batch,) = tiny.super_batches()
        reference = tiny.learner(5)
        learner = self.learner()
        rows = drawn_by_hand(learner, reference, batch, 0, JOINT)
        flatten, dense, *_ = learner.image_tower.layers
        pixels = np.float32(batch["image"][rows] / 127.5 - 1.0)
        means = dense(flatten(pixels)).numpy().mean(0)
        drawn = fit_and_remember(build(learner, reference), [batch])
        self.assertAllEqual(drawn[0], batch["id"][rows])
        norm = learner.image_tower.layers[2]
        # From zero, with momentum 0.5.
        self.assertAllClose(norm.moving_mean, 0.5 * means, **TOLERANCE)

    def test_a_draw_has_no_gradient(self):
        (batch,) = tiny.super_batches()
        learner = tiny.learner(0)
        model = build(learner)
        with tf.GradientTape() as tape:
            found = draw(model, batch)
            total = found.score + tf.reduce_sum(found.learner_loss)
        gradients = tape.gradient(total, learner.trainable_variables)
        self.assertEqual(gradients, [None] * len(gradients))

    def test_scores_that_are_not_finite_stop_training(self):
        batches = tiny.super_batches(2)

        teacher = tiny.learner(5)

        def reference(batch):
            image, text, scale, bias = teacher(batch)
            return image / 0.0, text, scale, bias

        for how in (
            {"run_eagerly": True},
            {"run_eagerly": False},
            {"run_eagerly": False, "jit_compile": True},
        ):
            for count in (1, 2):
                with self.assertRaisesRegex(
                    ValueError,
                    "Expected finite numbers. Received: select/score, "
                    "select/reference_loss_kept; a model has diverged",
                ):
                    fit(build(reference=reference, **how), batches[:count])


FINE, COARSE = config.View(), config.View(patch_size=4)


class ViewsTest(TrainingTestCase):
    def test_scoring_uses_the_scoring_view(self):
        (batch,) = tiny.super_batches()
        settings = dataclasses.replace(JOINT, view=COARSE)
        for size in (None, 3):
            settings = dataclasses.replace(settings, scoring_batch_size=size)
            model = build(tiny.flexible_learner(), selection=settings)
            seen = functools.partial(tiny.flexible_learner(), view=COARSE)
            rows = drawn_by_hand(seen, tiny.learner(5), batch, 0, settings)
            self.assertAllEqual(draw(model, batch).indices, rows)
        fine = drawn_by_hand(
            tiny.flexible_learner(), tiny.learner(5), batch, 0, JOINT
        )
        self.assertNotEqual(list(fine), list(rows))

    def test_training_views_share_one_loss_over_all_rows(self):
        (batch,) = tiny.super_batches()
        learner, twin = tiny.flexible_learner(), tiny.flexible_learner()
        model = build(learner, views=(FINE, COARSE))
        drawn = fit_and_remember(model, [batch])[0]
        # Which half is seen how is another permutation by chance.
        order = selection.uniform_rows((SEED ^ 0x0715, 0), 4, 4).numpy()
        by_draw = drawn_by_hand(twin, tiny.learner(5), batch, 0, JOINT)
        self.assertAllEqual(drawn, batch["id"][by_draw])
        fine, coarse = (
            rows_of(batch, by_draw[half]) for half in np.split(order, 2)
        )
        with tf.GradientTape() as tape:
            parts = twin(fine), twin(coarse, view=COARSE)
            union = Embeddings(
                *(tf.concat([one[k] for one in parts], 0) for k in range(2)),
                *parts[0][2:],
            )
            value = losses.sigmoid_loss(union)
        gradients = tape.gradient(value, twin.trainable_variables)
        for variable, gradient in zip(
            twin.trainable_variables, gradients, strict=True
        ):
            variable.assign_sub(RATE * tf.convert_to_tensor(gradient))
        self.assert_same_weights(learner, twin, **TOLERANCE)

    def test_training_views_work_without_selection(self):
        (batch,) = tiny.super_batches()
        model = build(tiny.flexible_learner(), None, None, views=(FINE, COARSE))
        drawn = fit_and_remember(model, [batch])[0]
        self.assertAllEqual(drawn, batch["id"])

    def test_views_that_a_learner_cannot_take_are_refused(self):
        for settings, message in (
            ({"views": (FINE, config.View(3))}, "`view.patch_size` must be"),
            (
                {"selection": dataclasses.replace(JOINT, view=config.View(3))},
                "`view.patch_size` must be",
            ),
        ):
            with self.assertRaisesRegex(ValueError, message):
                build(tiny.flexible_learner(), **settings)
        with self.assertRaisesRegex(ValueError, "whose `call` takes a `view`"):
            build(tiny.learner(0), views=(COARSE,))


class ScheduleTest(TrainingTestCase):
    def drawn_by_hand(self, learner, batch, step, settings):
        if settings.candidates:
            stride = len(batch["id"]) // settings.candidates
            batch = {name: value[::stride] for name, value in batch.items()}
        rows = drawn_by_hand(learner, tiny.learner(5), batch, step, settings)
        return batch["id"][rows]

    def test_each_step_draws_by_its_kind_and_each_kind_is_traced_once(self):
        settings = dataclasses.replace(
            JOINT,
            phases=(
                config.Phase(2, criterion="easy_reference", candidates=6),
                config.Phase(5, method="uniform"),
                config.Phase(6),
            ),
            uniform_every=4,
        )
        batches = tiny.super_batches(9)
        learner, traces = tiny.learner(0), []
        call = learner.call

        def counted(batch, training=None, view=None):
            if training:
                traces.append(batch["image"].shape)
            return call(batch, training=training, view=view)

        learner.call = counted
        # A rate of 0, so that all draws are by the same learner.
        model = build(
            learner,
            selection=settings,
            run_eagerly=False,
            optimizer=keras.optimizers.SGD(0.0),
        )
        drawn = fit_and_remember(model, batches)
        for step, (batch, ids) in enumerate(zip(batches, drawn, strict=True)):
            kind = settings.at(step)
            self.assertAllEqual(
                ids, self.drawn_by_hand(tiny.learner(0), batch, step, kind)
            )
        self.assertLen(traces, len(settings.kinds))
        # Another fit goes on from the optimizer's step, with what is compiled.
        ids = fit_and_remember(model, batches[:1])[0]
        kind = settings.at(9)
        self.assertAllEqual(
            ids, self.drawn_by_hand(tiny.learner(0), batches[0], 9, kind)
        )
        self.assertLen(traces, len(settings.kinds))

    def test_draw_metrics_average_only_scoring_steps(self):
        batches = tiny.super_batches(4)
        optimizer = keras.optimizers.SGD(0.0)
        model = build(
            selection=dataclasses.replace(JOINT, uniform_every=2),
            optimizer=optimizer,
        )
        history = fit(model, batches).history
        scores = [
            draw(model, batch, step).score
            for step, batch in enumerate(batches)
            if step % 2 == 0
        ]
        self.assertAllClose(history["select/score"], [np.mean(scores)])

    def teacher(self):
        """A reference that any learner has passed: it likes no pair."""

        def embed(batch, training=False):
            rows = tf.shape(batch["image"])[0]
            image, text = tf.ones([rows, 1]), -tf.ones([rows, 1])
            return Embeddings(image, text, tf.constant(20.0), tf.constant(0.0))

        return embed

    def test_selection_stops_when_the_learner_has_passed_the_reference(self):
        batches = tiny.super_batches(6)
        for together, patience, stop in ((1, 2, 2), (2, 1, 2), (2, 3, 4)):
            settings = dataclasses.replace(JOINT, stop_when_passed=patience)
            model = build(
                reference=self.teacher(),
                selection=settings,
                optimizer=keras.optimizers.SGD(0.0),
                run_eagerly=False,
            )
            model.compile(
                optimizer=model.optimizer, steps_per_execution=together
            )
            self.assertIsNone(model.stopped_at)
            drawn = fit_and_remember(model, batches)
            self.assertEqual(model.stopped_at, stop)
            for ids, step in zip(
                drawn, range(together - 1, 6, together), strict=True
            ):
                expected = JOINT if step < stop else settings.stopped
                rows = drawn_by_hand(
                    tiny.learner(0),
                    self.teacher(),
                    batches[step],
                    step,
                    expected,
                )
                self.assertAllEqual(ids, batches[step]["id"][rows])

    def test_a_learner_that_is_behind_goes_on_selecting(self):
        batches = tiny.super_batches(4)
        model = build(
            selection=dataclasses.replace(JOINT, stop_when_passed=1),
            reference=self.perfect(),
        )
        fit(model, batches)
        self.assertIsNone(model.stopped_at)

    def perfect(self):
        """A reference without any loss on rows whose ids differ."""

        def embed(batch):
            place = tf.range(tf.shape(batch["image"])[0])
            rows = tf.one_hot(place, 12)
            return Embeddings(
                rows, rows, tf.constant(100.0), tf.constant(-50.0)
            )

        return embed

    def test_the_state_of_the_stop_is_saved_with_the_weights(self):
        batches = tiny.super_batches(3)
        path = os.path.join(self.get_temp_dir(), "passed.weights.h5")
        settings = dataclasses.replace(JOINT, stop_when_passed=2)
        model, other = (
            build(reference=self.teacher(), selection=settings)
            for _ in range(2)
        )
        fit(model, batches)
        other.build(None)
        model.save_weights(path)
        other.load_weights(path)
        self.assertEqual(model.stopped_at, 2)
        self.assertEqual(other.stopped_at, 2)


class ReferenceTest(TrainingTestCase):
    def test_a_callable_serves_as_well_as_a_model(self):
        batches = tiny.super_batches(2)
        reference = tiny.learner(5)

        def function(batch):
            return tuple(reference(batch, training=False))

        drawn = [
            fit_and_remember(build(reference=one), batches)
            for one in (reference, function)
        ]
        self.assertAllEqual(*drawn)

    def test_a_reference_may_embed_in_another_size(self):
        (batch,) = tiny.super_batches()
        reference = tiny.learner(5, dim=3)
        drawn = fit_and_remember(build(reference=reference), [batch])
        rows = drawn_by_hand(tiny.learner(0), reference, batch, 0, JOINT)
        self.assertAllEqual(drawn[0], batch["id"][rows])

    def test_a_reference_sees_the_inputs_preprocessed_for_it(self):
        (batch,) = tiny.super_batches()
        (other,) = tiny.super_batches(seed=1)
        reference = tiny.learner(5)
        for size in (None, 6):
            settings = dataclasses.replace(JOINT, scoring_batch_size=size)
            drawn = fit_and_remember(
                build(reference=reference, selection=settings),
                [
                    {
                        **batch,
                        "image_for_reference": other["image"],
                        "text_for_reference": other["text"],
                    }
                ],
            )
            noise = selection.gumbel_noise((SEED, 0), 2, 12).numpy()
            rows = oracles.select_jointly(
                embed(tiny.learner(0), batch),
                embed(reference, other),
                batch_size=4,
                noise=noise,
            )
            self.assertAllEqual(drawn[0], batch["id"][rows])

    def test_a_reference_is_neither_trained_nor_listed(self):
        reference = tiny.learner(5, extra=[keras.layers.BatchNormalization()])
        learner = tiny.learner(0)
        before = reference.get_weights()
        model = build(learner, reference)
        fit(model, tiny.super_batches(2))
        for old, new in zip(before, reference.get_weights(), strict=True):
            self.assertAllEqual(old, new)
        self.assertEqual(
            [id(variable) for variable in model.trainable_variables],
            [id(variable) for variable in learner.trainable_variables],
        )
        self.assertLen(model.weights, len(learner.weights))
        self.assertTrue(reference.trainable)  # its owner's flag is as it was

    def test_another_reference_may_be_attached(self):
        batches = tiny.super_batches(2)
        model = build(tiny.learner(0), tiny.learner(9))
        model.attach_reference(tiny.learner(5))
        drawn = fit_and_remember(model, batches)
        self.assertAllEqual(drawn, fit_and_remember(build(), batches))


class DistillationTest(TrainingTestCase):
    WEIGHT = 3.0

    def by_hand(self, learner, reference, batch, rows):
        """A step on rows; the loss before it, and the distance alone."""
        batch = rows_of(batch, rows)
        target = Embeddings(*map(tf.constant, embed(reference, batch)))
        distances = []

        def loss(embeddings):
            distances.append(losses.feature_distillation(embeddings, target))
            own = losses.sigmoid_loss(embeddings)
            return own + self.WEIGHT * distances[-1]

        return step_by_hand(learner, batch, loss=loss), distances[-1]

    def with_embeddings(self, batch, reference):
        image, text, *_ = embed(reference, batch)
        return {**batch, "reference_image": image, "reference_text": text}

    def test_distillation_uses_live_scored_or_cached_embeddings(self):
        (batch,) = tiny.super_batches()
        reference = tiny.learner(5)
        rows = drawn_by_hand(tiny.learner(0), reference, batch, 0, JOINT)
        cached = reference_lib.cached(4.0, -2.0)
        hard = dataclasses.replace(JOINT, criterion="hard_learner")
        of_hard = oracles.select_jointly(
            embed(tiny.learner(0), batch),
            None,
            batch_size=4,
            noise=selection.gumbel_noise((SEED, 0), 2, 12).numpy(),
            criterion="hard_learner",
        )
        everything = np.arange(12)
        for name, settings, model, given, expected in (
            ("scored by it", JOINT, reference, batch, rows),
            ("cached", JOINT, cached, None, rows),
            ("not asked for scores", hard, reference, batch, of_hard),
            ("cached, not asked", hard, cached, None, of_hard),
            ("no selection", None, reference, batch, everything),
            ("cached, no selection", None, cached, None, everything),
        ):
            with self.subTest(name):
                learner, twin = tiny.learner(0), tiny.learner(0)
                trained = build(
                    learner,
                    model,
                    settings,
                    distillation_weight=self.WEIGHT,
                )
                given = given or self.with_embeddings(batch, reference)
                history = fit(trained, [given]).history
                loss, distance = self.by_hand(twin, reference, batch, expected)
                self.assertAllClose(history["loss"], [loss], **TOLERANCE)
                self.assertAllClose(
                    history["distillation"], [distance], **TOLERANCE
                )
                self.assert_same_weights(learner, twin, **TOLERANCE)

    def test_the_distillation_weight_falls_linearly_to_zero(self):
        batches = tiny.super_batches(4)
        learner, twin = tiny.learner(0), tiny.learner(0)
        reference = tiny.learner(5)
        model = build(
            learner,
            reference,
            None,
            distillation_weight=self.WEIGHT,
            distillation_steps=3,
            run_eagerly=False,
        )
        # 1 - 0/3, 1 - 1/3, 1 - 2/3, and no less than 0.
        for batch, share in zip(batches, (1, 2 / 3, 1 / 3, 0), strict=True):
            target = Embeddings(*map(tf.constant, embed(reference, batch)))
            loss = step_by_hand(
                twin,
                batch,
                loss=lambda found, share=share, target=target: (
                    losses.sigmoid_loss(found)
                    + self.WEIGHT
                    * share
                    * losses.feature_distillation(found, target)
                ),
            )
            history = fit(model, [batch]).history
            self.assertAllClose(history["loss"], [loss], **TOLERANCE)
            self.assert_same_weights(learner, twin, **TOLERANCE)

    def test_distillation_covers_each_view(self):
        (batch,) = tiny.super_batches()
        reference = tiny.learner(5)
        # Of which learner and view see the same.
        model = build(
            tiny.flexible_learner(0),
            reference,
            None,
            views=(config.View(), config.View()),
            distillation_weight=self.WEIGHT,
        )
        expected = oracles.feature_distillation(
            embed(tiny.flexible_learner(0), batch), embed(reference, batch)
        )
        history = fit(model, [batch]).history
        self.assertAllClose(history["distillation"], [expected], **TOLERANCE)

    def test_distillation_brings_the_embeddings_together(self):
        (batch,) = tiny.super_batches(rows=8)
        learner, reference = tiny.learner(0), tiny.learner(5)
        model = build(
            learner,
            reference,
            None,
            distillation_weight=20.0,
            optimizer=keras.optimizers.Adam(0.02),
            run_eagerly=False,
        )
        history = fit(model, [batch] * 300).history
        before = oracles.feature_distillation(
            embed(tiny.learner(0), batch), embed(reference, batch)
        )
        after = oracles.feature_distillation(
            embed(learner, batch), embed(reference, batch)
        )
        self.assertLess(after, 0.05 * before)
        self.assertBetween(history["distillation"][0], after, before)

    def test_a_projection_takes_the_learner_to_the_references_width(self):
        (batch,) = tiny.super_batches(rows=8)
        learner, twin = tiny.learner(0), tiny.learner(0)
        reference = tiny.learner(5, dim=3)
        target = Embeddings(*map(tf.constant, embed(reference, batch)))
        models = [
            build(
                one,
                reference,
                None,
                distillation_weight=self.WEIGHT,
                projection_dim=3,
                micro_batch_size=size,
            )
            for one, size in ((learner, None), (tiny.learner(0), 2))
        ]
        kernels = [one.numpy() for one in models[0].projection.kernels]
        own = [tf.Variable(one) for one in kernels]

        def loss(found):
            values = [
                tf.math.l2_normalize(tf.matmul(one, kernel), -1)
                for one, kernel in zip(found[:2], own, strict=True)
            ]
            distance = losses.feature_distillation(
                found._replace(image=values[0], text=values[1]), target
            )
            return losses.sigmoid_loss(found) + self.WEIGHT * distance

        with tf.GradientTape() as tape:
            value = loss(twin(batch, training=True))
        variables = [*twin.trainable_variables, *own]
        for variable, gradient in zip(
            variables, tape.gradient(value, variables), strict=True
        ):
            variable.assign_sub(RATE * tf.convert_to_tensor(gradient))
        for model in models:
            history = fit(model, [batch]).history
            self.assertAllClose(history["loss"], [value], **TOLERANCE)
            self.assert_same_weights(model.learner, twin, **TOLERANCE)
            for kernel, expected in zip(
                model.projection.kernels, own, strict=True
            ):
                self.assertAllClose(kernel, expected, **TOLERANCE)
        path = os.path.join(self.get_temp_dir(), "model.keras")
        models[0].save(path)
        loaded = keras.saving.load_model(path)
        self.assert_same_weights(loaded, models[0])

    def test_invalid_distillation_settings_are_refused(self):
        (batch,) = tiny.super_batches()
        for weight in (-1.0, np.nan, np.inf):
            with self.assertRaisesRegex(
                ValueError, rf"in \[0, inf\). Received: {weight}"
            ):
                build(distillation_weight=weight)
        for reference, settings, message in (
            (None, None, "`distillation_weight` needs a reference: pass"),
            (
                tiny.learner(5, dim=3),
                JOINT,
                r"`distillation_weight`.*\(4, 6\) and \(4, 3\)",
            ),
        ):
            model = build(
                reference=reference,
                selection=settings,
                distillation_weight=1.0,
            )
            with self.assertRaisesRegex(ValueError, message):
                fit(model, [batch])


class FitTest(TrainingTestCase):
    def test_eager_mode_graphs_xla_and_micro_batches_agree(self):
        batches = tiny.super_batches(3)
        settings = dataclasses.replace(JOINT, view=COARSE)
        whole, *others = (
            build(
                tiny.flexible_learner(),
                selection=settings,
                views=(FINE, COARSE),
                augment=augmentation.Augmentation(flip=True, min_area=1.0),
                distillation_weight=3.0,
                **how,
            )
            for how in (
                {"run_eagerly": True},
                {"run_eagerly": True, "micro_batch_size": 2},
                {"run_eagerly": False, "micro_batch_size": 2},
                {"run_eagerly": False, "jit_compile": True},
            )
        )
        remembered = DrawnIds()
        history = fit(whole, batches, callbacks=[remembered]).history
        for model in others:
            again = DrawnIds()
            found = fit(model, batches, callbacks=[again]).history
            self.assertAllEqual(again.steps, remembered.steps)
            self.assert_same_weights(model, whole, **TOLERANCE)
            self.assertCountEqual(found, history)
            for name, value in history.items():
                self.assertAllClose(found[name], value, **TOLERANCE)

    def test_two_runs_are_equal_and_another_seed_draws_otherwise(self):
        batches = tiny.super_batches(4)
        models, drawn = [], []
        for seed in (SEED, SEED, SEED + 1):
            models.append(build(seed=seed))
            drawn.append(fit_and_remember(models[-1], batches))
        self.assertAllEqual(drawn[0], drawn[1])
        self.assert_same_weights(models[0], models[1])
        self.assertNotAllEqual(drawn[0], drawn[2])

    def test_a_step_is_traced_once(self):
        traces = []
        teacher = tiny.learner(5)

        def reference(batch):
            traces.append(len(batch))
            return teacher(batch)

        counts = []
        count = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: counts.append(len(traces))
        )
        model = build(reference=reference, run_eagerly=False)
        for _ in range(2):
            fit(model, tiny.super_batches(3), epochs=2, callbacks=[count])
        self.assertLen(counts, 12)
        self.assertGreater(counts[0], 0)
        self.assertEqual(counts, counts[:1] * 12)

    def test_a_new_optimizer_does_not_trace_the_step_twice(self):
        learner, traces = tiny.learner(0), []
        call = learner.call

        def counted(batch, training=None, view=None):
            if training:
                traces.append(batch["image"].shape)
            return call(batch, training=training, view=view)

        learner.call = counted
        optimizer = jest_tf.AdamW(0.01)
        fit(
            build(learner, run_eagerly=False, optimizer=optimizer),
            tiny.super_batches(2),
        )
        self.assertEqual(traces, [(4, 4, 4, 3)])
        self.assertEqual(optimizer.iterations, 2)

    def test_the_augmentation_changes_the_trained_images_alone(self):
        batches = tiny.super_batches(2)
        seeds, sizes = [], []

        def augment(images, seed, places, batch_size):
            self.assertAllEqual(places, range(batch_size))
            seeds.append(seed.numpy())
            sizes.append(len(images))
            return 255 - images

        learner, twin, reference = (tiny.learner(seed) for seed in (0, 0, 5))
        model = build(learner, reference, augment=augment)
        drawn = fit_and_remember(model, batches)
        for step, batch in enumerate(batches):
            rows = drawn_by_hand(twin, reference, batch, step, JOINT)
            self.assertAllEqual(drawn[step], batch["id"][rows])
            chosen = rows_of(batch, rows)
            step_by_hand(twin, {**chosen, "image": 255 - chosen["image"]})
        self.assert_same_weights(learner, twin, **TOLERANCE)
        self.assertEqual(sizes, [4, 4])
        # A seed for each step, none of them that of the draw.
        self.assertLen({tuple(seed) for seed in seeds}, 2)
        self.assertNotIn((SEED, 0), {tuple(seed) for seed in seeds})

    def test_replaced_captions_and_records_are_counted(self):
        batches = tiny.super_batches(3)
        for step, batch in enumerate(batches):
            batch["caption_replaced"] = np.arange(12) < step
            batch["record_replaced"] = np.arange(12) < 2 * step
        for settings in (JOINT, None):
            history = fit(build(selection=settings), batches).history
            self.assertEqual(history["data/captions_replaced"], [3.0])
            self.assertEqual(history["data/records_replaced"], [6.0])

    def test_batches_without_ids_train_alike(self):
        batches = tiny.super_batches(2)
        bare = [
            {name: batch[name] for name in ("image", "text")}
            for batch in batches
        ]
        model, other = build(), build()
        fit(model, batches)
        fit(other, bare)
        self.assert_same_weights(other, model)
        self.assertIsNone(other.drawn_ids)

    def test_a_learner_in_bfloat16_trains(self):
        batches = tiny.super_batches(2)
        learner = tiny.learner(0, dtype="mixed_bfloat16")
        optimizer = keras.optimizers.Adam(0.03)
        model = build(
            learner, selection=None, optimizer=optimizer, run_eagerly=False
        )
        history = fit(model, batches, epochs=30).history["loss"]
        self.assertLess(history[-1], 0.5 * history[0])
        fit(build(learner, run_eagerly=False), batches)  # and scores
        for variable in learner.weights:
            self.assertEqual(variable.dtype, "float32")
            self.assertAllInRange(tf.reshape(variable, [-1]), -10.0, 10.0)

    def test_the_bar_is_short_and_the_history_whole(self):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            history = fit(build(), tiny.super_batches(2), verbose=2).history
        self.assertEqual(
            re.findall(r"([\w/]+): ", printed.getvalue()),
            ["loss", "select/score", "select/uniform_score"],
        )
        self.assertContainsSubset(
            ["loss", "scale", "bias", "select/reference_loss_kept"], history
        )
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            fit(build(), tiny.super_batches(2), verbose=0)
        self.assertEqual(printed.getvalue(), "")

    def test_evaluate_gives_the_loss_in_evaluation_mode(self):
        batches = tiny.super_batches(3)
        learner = tiny.learner(0, extra=[keras.layers.Dropout(0.5)])
        expected = np.mean(
            [oracles.sigmoid_loss(embed(learner, batch)) for batch in batches]
        )
        model = build(learner)
        result = model.evaluate(
            tiny.dataset(batches), verbose=0, return_dict=True
        )
        self.assertCountEqual(result, ["loss"])
        self.assertAllClose(result["loss"], expected, **TOLERANCE)

    def test_fit_reports_a_validation_loss(self):
        batches = tiny.super_batches(2)
        held_out = tiny.super_batches(1, rows=5, seed=9)
        model = build()
        history = fit(
            model, batches, validation_data=tiny.dataset(held_out)
        ).history
        self.assertAllClose(
            history["val_loss"],
            [oracles.sigmoid_loss(embed(model.learner, held_out[0]))],
            **TOLERANCE,
        )

    def test_calling_and_predicting_give_the_learners_embeddings(self):
        batches = tiny.super_batches(2)
        model = build()
        expected = [embed(model.learner, batch) for batch in batches]
        for one, same in zip(model(batches[0]), expected[0], strict=True):
            self.assertAllEqual(one, same)
        predicted = model.predict(tiny.dataset(batches), verbose=0)
        self.assertAllClose(
            predicted.image, np.concatenate([part.image for part in expected])
        )
        self.assertAllClose(
            predicted.text, np.concatenate([part.text for part in expected])
        )
        self.assertAllClose(predicted.scale, [4.0, 4.0])  # one a batch
        self.assertAllClose(predicted.bias, [-2.0, -2.0])

    def test_the_usual_callbacks_work(self):
        folder = self.get_temp_dir()
        log, best = (
            os.path.join(folder, name) for name in ("log.csv", "best.keras")
        )
        model = build()
        before = model.learner.get_weights()
        history = fit(
            model,
            tiny.super_batches(2),
            epochs=4,
            callbacks=[
                keras.callbacks.CSVLogger(log),
                keras.callbacks.ModelCheckpoint(
                    best, monitor="loss", save_best_only=True
                ),
                # No loss improves by so much: it stops after patience.
                keras.callbacks.EarlyStopping(
                    "loss", min_delta=1e9, patience=2
                ),
                keras.callbacks.TerminateOnNaN(),
            ],
        ).history
        self.assertLen(history["loss"], 3)
        self.assert_moved(model.learner, before)
        with open(log, encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.assertAllClose(
            [float(row["loss"]) for row in rows], history["loss"]
        )
        self.assertAllClose(
            [float(row["select/score"]) for row in rows],
            history["select/score"],
        )
        self.assertLen(
            keras.saving.load_model(best).weights, len(model.weights)
        )


class SavingTest(TrainingTestCase):
    def test_a_loaded_model_goes_on_as_if_it_had_not_been_saved(self):
        path = os.path.join(self.get_temp_dir(), "model.keras")
        for with_ids, settings in ((True, JOINT), (False, None)):
            batches = tiny.super_batches(4)
            if not with_ids:
                for batch in batches:
                    del batch["id"]
            reference = tiny.learner(5)
            model = build(
                reference=reference,
                selection=settings,
                equal_captions="ignore",
                loss="softmax",
                loss_block_size=3,
                micro_batch_size=2,
                distillation_weight=0.5,
                distillation_steps=3,
                augment=augmentation.Augmentation(flip=True, min_area=0.5),
                optimizer=jest_tf.AdamW(0.05, weight_decay=0.1),
                run_eagerly=False,
            )
            fit(model, batches[:2])
            model.save(path)
            again = keras.saving.load_model(path)
            again.attach_reference(reference)
            self.assert_same_weights(again, model)
            self.assertEqual(again.optimizer.iterations, 2)
            for name in ("selection", "seed"):
                self.assertEqual(getattr(again, name), getattr(model, name))
            plain = dict.fromkeys(
                ("learner", "reference", "optimizer", "augment")
            )
            self.assertEqual(
                dataclasses.replace(again.step, **plain),
                dataclasses.replace(model.step, **plain),
            )
            self.assertEqual(
                again.step.augment.get_config(),
                {"flip": True, "min_area": 0.5},
            )
            histories = [
                fit(one, batches[2:]).history for one in (model, again)
            ]
            self.assertEqual(histories[0], histories[1])
            self.assert_same_weights(again, model)
            for one, same in zip(
                again.optimizer.variables,
                model.optimizer.variables,
                strict=True,
            ):
                self.assertAllEqual(one, same)
            if with_ids:
                self.assertAllEqual(again.drawn_ids, model.drawn_ids)

    def test_a_loaded_model_without_its_reference_says_so(self):
        path = os.path.join(self.get_temp_dir(), "model.keras")
        model = build()
        batches = tiny.super_batches(1)
        fit(model, batches)
        model.save(path)
        again = keras.saving.load_model(path)
        with self.assertRaisesRegex(ValueError, "call `attach_reference`"):
            fit(again, batches)

    def test_a_saved_file_does_not_hold_the_reference(self):
        paths = [
            os.path.join(self.get_temp_dir(), f"{name}.keras")
            for name in ("small", "large")
        ]
        batches = tiny.super_batches(1)
        for path, dim in zip(paths, (2, 2000), strict=True):
            model = build(reference=tiny.learner(5, dim=dim))
            fit(model, batches)
            model.save(path)
        small, large = (os.path.getsize(path) for path in paths)
        self.assertAllClose(small, large, atol=200)


class RefusalsTest(TrainingTestCase):
    def test_settings_that_do_not_fit_are_refused_when_built(self):
        with self.assertRaisesRegex(
            ValueError, r"`loss` must be one of \('sigmoid', .*'clip'"
        ):
            build(loss="clip")
        with self.assertRaisesRegex(
            ValueError, "`equal_captions` must be one of .*Received: 'maybe'"
        ):
            build(equal_captions="maybe")
        with self.assertRaisesRegex(TypeError, "`reference` must be a Keras"):
            build(reference="runs/reference")
        model = training.JESTModel(tiny.learner())
        with self.assertRaisesRegex(ValueError, "not of `compile`.*'mse'"):
            model.compile(loss="mse")

    def test_batches_that_do_not_fit_are_refused_with_the_first(self):
        (batch,) = tiny.super_batches()
        without_caption_id = {
            name: batch[name] for name in ("image", "text", "id")
        }
        large = dataclasses.replace(JOINT, batch_size=13)
        uneven = dataclasses.replace(JOINT, scoring_batch_size=5)
        uniform = dataclasses.replace(large, method="uniform")
        for model, value, message in (
            (build(selection=large), batch, "batch_size=13, B=12"),
            (build(None, None, uniform), batch, "batch_size=13, B=12"),
            (build(selection=uneven), batch, "must divide .*=5, .*B=12"),
            (build(reference=None), batch, "needs a reference: pass"),
            (
                build(equal_captions="ignore"),
                without_caption_id,
                r"needs `caption_id` in the batch. Received: \['id', 'image'",
            ),
            (
                build(),
                {"image": batch["image"]},
                r'"image" and "text". Received: \[\'image\'\]',
            ),
        ):
            with self.subTest(message):
                with self.assertRaisesRegex(ValueError, message):
                    fit(model, [value])
        varying = tf.data.Dataset.from_tensor_slices(batch).batch(8)
        model = build(run_eagerly=False)
        with self.assertRaisesRegex(ValueError, r"be static .*\(None, 4.*R=1"):
            model.fit(varying, verbose=0)
        model.evaluate(varying, verbose=0)
        pairs = tf.data.Dataset.from_tensors((batch["image"], batch["text"]))
        with self.assertRaisesRegex(ValueError, "must be a dict with"):
            build().fit(pairs, verbose=0)


class RecipeTest(TrainingTestCase):
    def test_the_gradient_is_clipped_to_its_global_norm(self):
        (batch,) = tiny.super_batches()
        learner, twin = tiny.learner(0), tiny.learner(0)
        optimizer = keras.optimizers.SGD(RATE, global_clipnorm=0.1)
        fit(build(learner, None, None, optimizer=optimizer), [batch])
        with tf.GradientTape() as tape:
            value = losses.sigmoid_loss(twin(batch))
        gradients = [
            tf.convert_to_tensor(gradient).numpy()
            for gradient in tape.gradient(value, twin.trainable_variables)
        ]
        norm = math.sqrt(sum(np.square(one).sum() for one in gradients))
        self.assertGreater(norm, 0.1)
        for variable, gradient in zip(
            twin.trainable_variables, gradients, strict=True
        ):
            variable.assign_sub(RATE * 0.1 / norm * gradient)
        self.assert_same_weights(learner, twin, **TOLERANCE)

    def test_build_model_is_the_run_that_a_config_describes(self):
        settings = config.TrainConfig(
            seed=3,
            steps=4,
            data=config.DataConfig(
                super_batch_size=12, flip=False, min_crop_area=0.5
            ),
            model=config.ModelConfig(
                loss="softmax",
                equal_captions="positive",
                loss_block_size=2,
                micro_batch_size=2,
            ),
            reference=config.ReferenceConfig("somewhere"),
            selection=JOINT,
            optimizer=config.OptimizerConfig(learning_rate=0.1),
            distribution=config.DistributionConfig(steps_per_execution=2),
        )
        batches = tiny.super_batches(2)
        model = training.build_model(settings, tiny.learner(0), tiny.learner(5))
        by_hand = build(
            loss="softmax",
            equal_captions="positive",
            loss_block_size=2,
            seed=3,
            augment=augmentation.Augmentation(flip=False, min_area=0.5),
            optimizer=jest_tf.build_optimizer(settings.optimizer, 4),
        )
        fit(model, batches)
        fit(by_hand, batches)
        self.assert_same_weights(model, by_hand, **TOLERANCE)
        self.assertEqual(model.steps_per_execution, 2)
        self.assertEqual(model.step.micro_batch_size, 2)
        self.assertFalse(model.jit_compile)


if __name__ == "__main__":
    tf.test.main()

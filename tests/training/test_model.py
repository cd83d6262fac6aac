"""`JESTModel` under `fit`: steps by hand, and what Keras makes of it."""

import copy
import dataclasses
import functools
import itertools
import os
import typing

import hand_draws
import keras
import numpy as np
import oracles
import own_parts
import pytest
import tensorflow as tf
import tiny

import jest_tf
from jest_tf import config, losses, selection, training
from jest_tf.data import augmentation
from jest_tf.embeddings import Embeddings
from jest_tf.training import funnel as funnel_lib
from jest_tf.training import step as step_lib

SEED, RATE = 7, 0.5
LOSSES = {
    "sigmoid": losses.sigmoid_loss,
    "softmax": losses.softmax_loss,
    "own_parts:squares": own_parts.squares().train,
}
# float32 against steps by hand, whose sums have another order.
TOLERANCE = {"rtol": 1e-5, "atol": 5e-6}


def one_of_three(loss=None, **changes):
    """Four of twelve rows, by a draw of two chunks."""
    stage = config.Stage(3, **{"num_chunks": 2} | changes)
    return config.SelectionConfig(4, (stage,), loss=loss)


JOINT = one_of_three()


def build(learner=None, reference="learner", selection=JOINT, **settings):
    """A compiled model with plain SGD, and a reference if it selects."""
    if reference == "learner":
        reference = tiny.learner(5) if selection else None
    # A graph takes longer than a few steps; some tests ask for it.
    compiled = {
        "optimizer": keras.optimizers.SGD(RATE),
        "jit_compile": False,
        "run_eagerly": True,
        "steps_per_execution": 1,
    }
    given = {name: settings.pop(name, compiled[name]) for name in compiled}
    model = training.JESTModel(
        learner or tiny.learner(0),
        reference,
        selection,
        settings.pop("loss", "sigmoid"),
        options=step_lib.StepOptions(**{"seed": SEED} | settings),
    )
    model.compile(**given)
    return model


def fit(model, batches, **options):
    return model.fit(tiny.dataset(batches), **{"verbose": 0} | options)


class DrawnIds(keras.callbacks.Callback):
    """Remembers the ids and the rows of the last step of every execution."""

    def __init__(self):
        super().__init__()
        self.steps, self.rows = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(self.model.drawn_ids.numpy())
        self.rows.append(self.model.rows.drawn)


def fit_and_remember(model, batches, **options):
    drawn = DrawnIds()
    fit(model, batches, callbacks=[drawn], **options)
    return np.array(drawn.steps)


def count_traces(learner):
    """A list that gets the shape of images whenever a step is traced."""
    shapes, call = [], learner.call

    def counted(batch, training=None, view=None):
        if training:
            shapes.append(batch["image"].shape)
        return call(batch, training=training, view=view)

    learner.call = counted
    return shapes


def embed(learner, batch):
    parts = learner(batch, training=False)
    return Embeddings(*(part.numpy() for part in parts))


def draw(model, batch, step=0):
    """The `Draw` of a step of a single stage, of which `fit` keeps the rows."""
    (stage,) = model.selection.stages
    here = dataclasses.replace(
        model.step,
        seed=(SEED, step),
        segment=config.segment_at(model.stepper.plan, step),
    )
    models = step_lib.score(here, 0, batch)
    return step_lib.select(here, 0, 4, models)[1]


def rows_of(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


def drawn_by_hand(learner, reference, batch, step=0, settings=JOINT, **loss):
    """The rows of the draw of a step of a single stage, in order."""
    return hand_draws.rows(
        *(model and embed(model, batch) for model in (learner, reference)),
        settings.stages[0],
        batch_size=4,
        seed=(SEED, step),
        **loss,
    )


def step_by_hand(learner, batch, loss=losses.sigmoid_loss, call=None, more=()):
    """A step of gradient descent, with `more` variables; the loss before it."""
    variables = [*learner.trainable_variables, *more]
    with tf.GradientTape() as tape:
        value = loss((call or learner)(batch, training=True))
    gradients = tape.gradient(value, variables)
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_sub(RATE * tf.convert_to_tensor(gradient))
    return value.numpy()


class TrainingTestCase(tf.test.TestCase):
    def assert_close_weights(self, ours, others):
        for weight, other in zip(ours.weights, others.weights, strict=True):
            self.assertAllClose(weight, other, **TOLERANCE)


class StepTest(TrainingTestCase):
    def test_a_step_trains_on_the_rows_that_the_draw_picks(self):
        batches = tiny.super_batches(2)
        reference = tiny.learner(5)
        joint = one_of_three(criterion="own_parts:doubt")
        cases = [(joint, loss, loss) for loss in LOSSES]
        # Without selection a step trains on the batch as it comes.
        cases.append((None, "softmax", "softmax"))
        # The scores may use another loss than the training.
        cases.append((one_of_three("softmax", gain=3), "sigmoid", "softmax"))
        for method, criterion in (
            *zip(config.METHODS, itertools.cycle(config.CRITERIA)),
            *(("joint", criterion) for criterion in config.CRITERIA),
        ):
            settings = one_of_three(method=method, criterion=criterion)
            cases.append((settings, "sigmoid", "sigmoid"))
        for settings, loss, scored_by in cases:
            learner, twin = tiny.learner(0), tiny.learner(0)
            is_needed = settings and settings.needs("reference")
            teacher = reference if is_needed else None
            model = build(learner, teacher, settings, loss=loss)
            drawn = fit_and_remember(model, batches)
            for step, batch in enumerate(batches):
                rows = np.arange(12)
                if settings is not None:
                    about = batch, step, settings
                    rows = drawn_by_hand(
                        twin, reference, *about, loss=scored_by
                    )
                ids = batch["id"][rows]
                self.assertAllEqual(drawn[step], ids, f"{settings} {loss}")
                step_by_hand(twin, rows_of(batch, rows), LOSSES[loss])
            self.assert_close_weights(learner, twin)

    def test_a_loop_of_ones_own_equals_fit(self):
        batches = tiny.super_batches(2)
        fitted, eager, traced = build(), build(), build()
        history = fit(fitted, batches).history
        for model, step in (
            (eager, eager.train_step),
            (traced, tf.function(traced.train_step)),
        ):
            for batch in batches:
                logs = step(tf.nest.map_structure(tf.constant, batch))
            self.assert_close_weights(model.learner, fitted.learner)
            self.assertAllClose(logs["loss"], history["loss"][-1])

    def test_the_metrics_are_those_of_the_draw_and_the_batch(self):
        (batch,) = tiny.super_batches()
        learner, reference = tiny.learner(0), tiny.learner(5)
        scored = [embed(model, batch) for model in (learner, reference)]
        settings = one_of_three(criterion="own_parts:doubt")
        rows = drawn_by_hand(learner, reference, batch, settings=settings)
        dropped = np.setdiff1d(np.arange(12), rows)
        expected = {"scale": 4.0, "bias": -2.0}
        values = [oracles.row_losses(part, rows, "sigmoid") for part in scored]
        for name, value in zip(("learner", "reference"), values, strict=True):
            expected[f"stages/0/{name}_loss_kept"] = value[rows].mean()
            expected[f"stages/0/{name}_loss_dropped"] = value[dropped].mean()
        ours, theirs = (
            oracles.sigmoid_loss(hand_draws.take(part, rows)) for part in scored
        )
        expected["loss"] = ours
        expected["stages/0/score"] = ours - 2 * theirs

        model = build(learner, reference, settings)
        history = fit(model, [batch]).history
        uniform = history.pop("stages/0/uniform_score")
        self.assertCountEqual(history, expected)
        for name, value in expected.items():
            self.assertAllClose(history[name], [value], msg=name)
        # Of a uniform draw of its own, which the joint draw should beat.
        self.assertLess(uniform[0], expected["stages/0/score"])


class ScoringTest(TrainingTestCase):
    def test_scoring_is_in_evaluation_mode(self):
        (batch,) = tiny.super_batches()

        # Layers that behave otherwise in training.
        def noisy():
            normalise = keras.layers.BatchNormalization(momentum=0.5)
            drop = keras.layers.Dropout(0.5, seed=3)
            return tiny.learner(extra=[normalise, drop])

        learner, twin = noisy(), noisy()
        rows = drawn_by_hand(twin, tiny.learner(5), batch)
        model = build(learner)
        for _ in range(3):  # a dropped unit would change it
            self.assertAllEqual(draw(model, batch).indices, rows)
        tiny.assert_equal_variables(self, learner, twin)

    def test_scores_that_are_not_finite_stop_training(self):
        batches = tiny.super_batches(2)
        teacher = tiny.learner(5)

        def reference(batch):
            image, text, scale, bias = teacher(batch)
            return image / 0.0, text, scale, bias

        message = (
            "Expected finite numbers. Received: "
            "stages/0/reference_loss_kept, stages/0/score; a model has"
        )
        compiled = {"run_eagerly": False, "jit_compile": True}
        for count, how in ((2, {}), (1, compiled)):
            with self.assertRaisesRegex(ValueError, message):
                fit(build(reference=reference, **how), batches[:count])


FINE, COARSE = config.View(), config.View(patch_size=4)


class ViewsTest(TrainingTestCase):
    def test_scoring_uses_the_scoring_view(self):
        (batch,) = tiny.super_batches()
        for size in (None, 3):
            settings = one_of_three(view=COARSE, scoring_batch_size=size)
            model = build(tiny.flexible_learner(), selection=settings)
            seen = functools.partial(tiny.flexible_learner(), view=COARSE)
            rows = drawn_by_hand(seen, tiny.learner(5), batch)
            self.assertAllEqual(draw(model, batch).indices, rows)
        fine = drawn_by_hand(tiny.flexible_learner(), tiny.learner(5), batch)
        self.assertNotEqual(list(fine), list(rows))

    def test_training_views_share_one_loss_over_all_rows(self):
        (batch,) = tiny.super_batches()
        learner, twin = tiny.flexible_learner(), tiny.flexible_learner()
        model = build(learner, views=(FINE, COARSE))
        drawn = fit_and_remember(model, [batch])[0]
        # Which half is seen how is another permutation by chance.
        order = selection.uniform_rows((SEED ^ 0x0715, 0), 4, 4).numpy()
        by_draw = drawn_by_hand(twin, tiny.learner(5), batch)
        self.assertAllEqual(drawn, batch["id"][by_draw])
        halves = [rows_of(batch, by_draw[x]) for x in np.split(order, 2)]

        def in_views(halves, training):
            parts = twin(halves[0]), twin(halves[1], view=COARSE)
            image, text = (
                tf.concat([part[k] for part in parts], 0) for k in range(2)
            )
            return parts[0]._replace(image=image, text=text)

        step_by_hand(twin, halves, call=in_views)
        self.assert_close_weights(learner, twin)

    def test_views_that_a_learner_cannot_take_are_refused(self):
        odd = config.View(3)
        for settings in (
            {"views": (FINE, odd)},
            {"selection": one_of_three(view=odd)},
        ):
            with self.assertRaisesRegex(ValueError, "`view.patch_size` must"):
                build(tiny.flexible_learner(), **settings)
        with self.assertRaisesRegex(ValueError, "whose `call` takes a `view`"):
            build(tiny.learner(0), views=(COARSE,))


class StagesTest(TrainingTestCase):
    """Stages that begin and end; 24 rows, of which 12 and then 4 pass."""

    STAGES = (
        config.Stage(2, num_chunks=2, last_step=5),
        config.Stage(3, num_chunks=2, first_step=2),
    )

    def test_each_step_draws_by_its_kind_and_each_kind_is_traced_once(self):
        settings = config.SelectionConfig(4, self.STAGES)
        batches = tiny.super_batches(10, rows=24)
        learner = tiny.learner(0)
        traces = count_traces(learner)
        model = build(
            learner,
            selection=settings,
            run_eagerly=False,
            # A rate of 0, so that all draws are by the same learner.
            optimizer=keras.optimizers.SGD(0.0),
            steps_per_execution=2,
        )
        # Another fit goes on from the optimizer's step, with what is compiled.
        told = DrawnIds()
        for more in (batches, batches[:2]):
            fit(model, more, callbacks=[told])
        self.assertLen(told.rows, 6)
        twins = [tiny.learner(seed) for seed in (0, 5)]
        for step, rows in zip(range(1, 12, 2), told.rows, strict=True):
            batch = batches[step % 10]
            models = [embed(twin, batch) for twin in twins]
            scoring = step <= 5, step >= 2
            stages = [
                stage
                if scores
                else dataclasses.replace(stage, method="uniform")
                for stage, scores in zip(self.STAGES, scoring, strict=True)
            ]
            *_, expected = hand_draws.through(models, stages, (SEED, step))
            self.assertAllEqual(rows, expected)
        # First alone, both, last alone: no shape differs.
        self.assertEqual(traces, [(4, 4, 4, 3)] * 3)

    def test_an_execution_has_steps_of_one_kind(self):
        settings = config.SelectionConfig(4, self.STAGES)
        batches = tiny.super_batches(8, rows=24)
        model = build(
            tiny.learner(0),
            selection=settings,
            run_eagerly=False,
            steps_per_execution=4,
        )
        with self.assertRaisesRegex(ValueError, "at step 2. Received: .*=4,"):
            fit(model, batches)

    def test_executions_that_end_early_do_not_shift_the_plan(self):
        stored = config.Stage(
            *(2, "stored"), criterion="easy_reference", num_chunks=1
        )
        stepper = build(tiny.learner(0)).stepper
        for stage, count, done, expected in (
            (one_of_three(first_step=5), 2, (0, 2, 3, 5), [0, 0, 0, 1]),
            # Stored stages are no part of the program.
            (dataclasses.replace(stored, first_step=6), 4, (4, 8), [0, 1]),
        ):
            if isinstance(stage, config.Stage):
                stage = config.SelectionConfig(4, (stage,))
            stepper.plan = config.plan(stage)
            stepper.begin_fit(lambda: 0)
            found = [
                stepper.begin_execution(lambda step=step: step, count)
                for step in done
            ]
            self.assertEqual([len(one.scoring) for one in found], expected)

    def test_draw_metrics_average_only_scoring_steps(self):
        batches = tiny.super_batches(4)
        optimizer = keras.optimizers.SGD(0.0)
        settings = one_of_three(first_step=1, last_step=2)
        model = build(selection=settings, optimizer=optimizer)
        history = fit(model, batches).history
        scores = [draw(model, batches[step], step).score for step in (1, 2)]
        self.assertAllClose(history["stages/0/score"], [np.mean(scores)])


class ReferenceTest(TrainingTestCase):
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


class DistillationTest(TrainingTestCase):
    WEIGHTS: typing.ClassVar = {
        "distillation_weight": 3.0,
        "similarity_weight": 2.0,
    }

    def loss_to(self, reference, batch, share=1.0, projection=None):
        """The loss with both kinds of distillation from a reference."""
        target = Embeddings(*map(tf.constant, embed(reference, batch)))

        def loss(found):
            image, text = parts = found[:2]
            if projection is not None:
                image, text = (
                    tf.math.l2_normalize(tf.matmul(values, kernel), -1)
                    for values, kernel in zip(parts, projection, strict=True)
                )
            moved = found._replace(image=image, text=text)
            distance = losses.feature_distillation(moved, target)
            other = losses.similarity_distillation(found, target)
            terms = 3.0 * distance + 2.0 * other
            return losses.sigmoid_loss(found) + share * terms

        return loss

    def test_distillation_uses_live_scored_or_cached_embeddings(self):
        (batch,) = tiny.super_batches()
        reference, cached = tiny.learner(5), funnel_lib.Cached(4.0, -2.0)
        image, text, *_ = embed(reference, batch)
        stored = {**batch, "reference_image": image, "reference_text": text}
        hard = one_of_three(criterion="hard_learner")
        for settings, model, given in (
            # Scored by it, not asked for scores, and no selection.
            (JOINT, reference, batch),
            (JOINT, cached, stored),
            (hard, cached, stored),
            (None, reference, batch),
        ):
            rows = np.arange(12)
            learner, twin = tiny.learner(0), tiny.learner(0)
            if settings:
                rows = drawn_by_hand(twin, reference, batch, settings=settings)
            chosen = rows_of(batch, rows)
            before = embed(twin, chosen)
            distances = [
                distance(before, embed(reference, chosen))
                for distance in (
                    oracles.feature_distillation,
                    oracles.similarity_distillation,
                )
            ]
            trained = build(learner, model, settings, **self.WEIGHTS)
            history = fit(trained, [given]).history
            loss = step_by_hand(twin, chosen, self.loss_to(reference, chosen))
            self.assertAllClose(history["loss"], [loss], **TOLERANCE)
            found = history["distillation"] + history["similarities"]
            self.assertAllClose(found, distances, **TOLERANCE)
            self.assert_close_weights(learner, twin)

    def test_the_distillation_weight_falls_linearly_to_zero(self):
        batches = tiny.super_batches(4)
        learner, twin = tiny.learner(0), tiny.learner(0)
        reference = tiny.learner(5)
        model = build(
            learner,
            reference,
            None,
            distillation_steps=3,
            **self.WEIGHTS,
            run_eagerly=False,
        )
        # 1 - 0/3, 1 - 1/3, 1 - 2/3, and no less than 0.
        for batch, share in zip(batches, (1, 2 / 3, 1 / 3, 0), strict=True):
            loss = self.loss_to(reference, batch, share)
            loss = step_by_hand(twin, batch, loss)
            history = fit(model, [batch]).history
            self.assertAllClose(history["loss"], [loss], **TOLERANCE)
            self.assert_close_weights(learner, twin)

    def test_a_projection_takes_the_learner_to_the_references_width(self):
        (batch,) = tiny.super_batches(rows=8)
        twin, reference = tiny.learner(0), tiny.learner(5, dim=3)
        settings = self.WEIGHTS | {"projection_dim": 3}
        models = [
            build(None, reference, None, micro_batch_size=size, **settings)
            for size in (None, 2)
        ]
        own = [tf.Variable(kernel) for kernel in models[0].projection.kernels]
        loss = self.loss_to(reference, batch, projection=own)
        value = step_by_hand(twin, batch, loss, more=own)
        for model in models:
            history = fit(model, [batch]).history
            self.assertAllClose(history["loss"], [value], **TOLERANCE)
            self.assert_close_weights(model.learner, twin)
            kernels = zip(model.projection.kernels, own, strict=True)
            for kernel, expected in kernels:
                self.assertAllClose(kernel, expected, **TOLERANCE)

    def test_invalid_distillation_settings_are_refused(self):
        (batch,) = tiny.super_batches()
        for weight in (-1.0, np.nan, np.inf):
            message = f"inf.. Received: {weight}"
            with self.assertRaisesRegex(ValueError, message):
                build(distillation_weight=weight)
        narrow = tiny.learner(5, dim=3)
        for reference, settings, message in (
            (None, None, "a reference: pass"),
            (narrow, JOINT, r".*same width.*\(4, 6\) and \(4, 3\)"),
        ):
            model = build(None, reference, settings, distillation_weight=1.0)
            message = f"distillation.*` needs {message}"
            with self.assertRaisesRegex(ValueError, message):
                fit(model, [batch])


class FitTest(TrainingTestCase):
    @pytest.mark.slow
    def test_eager_mode_graphs_xla_and_micro_batches_agree(self):
        batches = tiny.super_batches(3, rows=24)
        first = config.Stage(2, num_chunks=2, view=COARSE)
        stages = first, config.Stage(3, num_chunks=2)
        shared = {
            "selection": config.SelectionConfig(4, stages),
            "views": (FINE, COARSE),
            "augment": augmentation.Augmentation(flip=True, min_area=1.0),
            "distillation_weight": 3.0,
            "similarity_weight": 2.0,
        }
        whole, *others = (
            build(tiny.flexible_learner(), **shared, **how)
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
            self.assert_close_weights(model, whole)
            self.assertCountEqual(found, history)
            for name, value in history.items():
                self.assertAllClose(found[name], value, **TOLERANCE)

    def test_the_augmentation_changes_the_trained_images_alone(self):
        batches = tiny.super_batches(2)
        seeds, sizes = [], []

        def augment(images, seed, places, batch_size):
            self.assertAllEqual(places, range(batch_size))
            seeds.append(tuple(seed.numpy()))
            sizes.append(len(images))
            return 255 - images

        learner, twin, reference = (tiny.learner(seed) for seed in (0, 0, 5))
        model = build(learner, reference, augment=augment)
        drawn = fit_and_remember(model, batches)
        for step, batch in enumerate(batches):
            rows = drawn_by_hand(twin, reference, batch, step)
            self.assertAllEqual(drawn[step], batch["id"][rows])
            chosen = rows_of(batch, rows)
            step_by_hand(twin, {**chosen, "image": 255 - chosen["image"]})
        self.assert_close_weights(learner, twin)
        self.assertEqual(sizes, [4, 4])
        # A seed for each step, none of them that of the draw.
        self.assertLen({*seeds}, 2)
        self.assertNotIn((SEED, 0), seeds)

    def test_batches_without_ids_train_alike(self):
        batches = tiny.super_batches(2)
        bare = [
            {name: batch[name] for name in ("image", "text")}
            for batch in batches
        ]
        model, other = build(), build()
        fit(model, batches)
        fit(other, bare)
        tiny.assert_equal_variables(self, other, model)
        self.assertIsNone(other.drawn_ids)

    def test_data_of_unknown_length_end_without_a_further_step(self):
        batches = tiny.super_batches(3)
        # Decay and metrics alone need no batch.
        known, unknown = (
            build(
                optimizer=keras.optimizers.AdamW(RATE, weight_decay=0.5),
                run_eagerly=False,
            )
            for _ in range(2)
        )
        fit(known, batches)
        data = tiny.dataset(batches).filter(lambda batch: True)
        with self.assertWarnsRegex(UserWarning, "ran out of data"):  # of Keras
            unknown.fit(data, verbose=0)
        self.assertEqual(int(unknown.optimizer.iterations.numpy()), 3)
        tiny.assert_equal_variables(self, unknown, known)
        for metric, other in zip(unknown.metrics, known.metrics, strict=True):
            self.assertAllEqual(metric.variables, other.variables)

    def test_a_learner_in_bfloat16_trains(self):
        batches = tiny.super_batches(2)
        learner = tiny.learner(0, dtype="mixed_bfloat16")
        model = build(
            learner,
            selection=None,
            optimizer=keras.optimizers.Adam(0.03),
            run_eagerly=False,
        )
        history = fit(model, batches, epochs=30).history["loss"]
        self.assertLess(history[-1], 0.5 * history[0])
        fit(build(learner), batches)  # and scores
        for variable in learner.weights:
            self.assertEqual(variable.dtype, "float32")
            self.assertAllInRange(tf.reshape(variable, [-1]), -10.0, 10.0)

    def test_evaluation_gives_the_loss_in_evaluation_mode(self):
        batches = tiny.super_batches(3)
        (held_out,) = tiny.super_batches(1, rows=5, seed=9)
        learner = tiny.learner(0, extra=[keras.layers.Dropout(0.5)])
        embedded = [embed(learner, batch) for batch in batches]
        values = [oracles.sigmoid_loss(each) for each in embedded]
        model = build(learner)
        data = tiny.dataset(batches)
        result = model.evaluate(data, verbose=0, return_dict=True)
        self.assertCountEqual(result, ["loss"])
        self.assertAllClose(result["loss"], np.mean(values), **TOLERANCE)
        history = fit(
            model, batches, validation_data=tiny.dataset([held_out])
        ).history
        expected = oracles.sigmoid_loss(embed(learner, held_out))
        self.assertAllClose(history["val_loss"], [expected], **TOLERANCE)

    def test_evaluation_leaves_out_what_the_bound_reference_finds_to_match(
        self,
    ):
        # In batches that the micro-batches of training don't divide.
        (batch,) = tiny.super_batches(1, rows=5, seed=9)
        batch["caption_id"] = np.arange(5)
        references = [tiny.learner(seed) for seed in (5, 6)]
        settings = {"false_negatives": "reference", "micro_batch_size": 2}
        model = build(reference=references[0], run_eagerly=False, **settings)
        learner, values = embed(model.learner, batch), []
        for reference in references:
            model.bind(
                jest_tf.Funnel(
                    JOINT, reference=reference, loss_needs_reference=True
                )
            )
            expected = losses.sigmoid_loss(
                learner, reference=embed(reference, batch)
            )
            data = tiny.dataset([batch])
            values.append(model.evaluate(data, verbose=0))
            self.assertAllClose(values[-1], expected, **TOLERANCE)
        self.assertNotAllClose(*values)

    def test_calling_and_predicting_give_the_learners_embeddings(self):
        batches = tiny.super_batches(2)
        model = build()
        expected = [embed(model.learner, batch) for batch in batches]
        for part, same in zip(model(batches[0]), expected[0], strict=True):
            self.assertAllEqual(part, same)
        predicted = model.predict(tiny.dataset(batches), verbose=0)
        for name in ("image", "text"):
            self.assertAllClose(
                getattr(predicted, name),
                np.concatenate([getattr(part, name) for part in expected]),
            )
        self.assertAllClose(predicted.scale, [4.0, 4.0])  # a value a batch
        self.assertAllClose(predicted.bias, [-2.0, -2.0])


class SavingTest(TrainingTestCase):
    def test_a_loaded_model_goes_on_as_if_it_had_not_been_saved(self):
        batches = tiny.super_batches(4)
        reference = tiny.learner(5)
        model = build(
            reference=reference,
            micro_batch_size=2,
            distillation_weight=0.5,
            distillation_steps=3,
            augment=augmentation.Augmentation(flip=True, min_area=0.5),
            optimizer=jest_tf.AdamW(0.05, weight_decay=0.1),
        )
        fit(model, batches[:2])
        path = f"{self.get_temp_dir()}/model.keras"
        model.save(path)
        again = keras.saving.load_model(path)
        unbound = "after loading, call `bind` with a Funnel"
        with self.assertRaisesRegex(ValueError, unbound):
            fit(again, batches)
        other = training.Funnel(one_of_three(gain=2.0), reference=reference)
        with self.assertRaisesRegex(ValueError, "its own selection and loss"):
            again.bind(other)
        again.bind(
            training.Funnel(
                again.selection, reference=reference, loss_needs_reference=True
            )
        )
        self.assertEqual(again.optimizer.iterations, 2)
        histories = [fit(each, batches[2:]).history for each in (model, again)]
        self.assertEqual(*histories)
        self.assertAllEqual(again.drawn_ids, model.drawn_ids)
        tiny.assert_equal_variables(self, again, model)
        tiny.assert_equal_variables(self, again.optimizer, model.optimizer)

    def test_a_loaded_model_has_all_settings(self):
        path = os.path.join(self.get_temp_dir(), "model.keras")
        own = {"criterion": "own_parts:doubt", "gain": 0.5, "view": COARSE}
        live = config.Stage(3, num_chunks=2, last_step=2, **own)
        stored = config.Stage(4, "stored", "uniform", "easy_reference")
        model = build(
            tiny.flexible_learner(),
            selection=config.SelectionConfig(
                4, (stored, live), "own_parts:squares", "per_replica"
            ),
            loss="softmax",
            false_negatives="reference",
            false_negative_margin=0.1,
            loss_block_size=3,
            views=(FINE, COARSE),
            micro_batch_size=2,
            distillation_weight=0.5,
            distillation_steps=3,
            projection_dim=3,
            augment=augmentation.Augmentation(flip=True, min_area=0.5),
        )
        model.save(path)
        with self.assertRaisesRegex(
            ValueError,
            "loss=own_parts:squares, .*stages.1.criterion=own_parts:doubt;",
        ):
            keras.saving.load_model(path)
        again = keras.saving.load_model(path, safe_mode=False)
        self.assertEqual(again.selection, model.selection)
        self.assertEqual(again.step.loss, "softmax")
        ours, theirs = (vars(each.step.options) for each in (again, model))
        augment = ours.pop("augment").get_config()
        self.assertEqual(augment, {"flip": True, "min_area": 0.5})
        self.assertEqual(ours, {name: theirs[name] for name in ours})

    def test_a_file_of_0_3_0_has_the_names_of_today(self):
        model = build(false_negatives="equal_captions")
        file = model.get_config()
        del file["options"]["false_negatives"]
        del file["options"]["false_negative_margin"]
        file["options"]["equal_captions"] = "ignore"
        again = training.JESTModel.from_config(copy.deepcopy(file))
        self.assertEqual(again.step.options, model.step.options)
        file["options"]["equal_captions"] = "positive"
        with self.assertRaisesRegex(
            ValueError, "a `.keras` file must be one of .*: 'positive'; use it"
        ):
            training.JESTModel.from_config(file)


class RefusalsTest(TrainingTestCase):
    def test_settings_that_do_not_fit_are_refused_when_built(self):
        learner = tiny.learner()
        for error, message, settings in (
            (ValueError, "`loss` must be .*'clip'", {"loss": "clip"}),
            (ValueError, "`false_neg.*'may", {"false_negatives": "maybe"}),
            (ValueError, "to be 'ref.*'keep'", {"false_negative_margin": 0.1}),
            (TypeError, "`reference` must be a Keras", {"reference": "runs"}),
            (TypeError, "be a SelectionConfig.*: 'j'", {"selection": "j"}),
        ):
            with self.assertRaisesRegex(error, message):
                build(learner, **settings)
        model = training.JESTModel(learner)
        for settings, message in (
            ({"loss": "mse"}, "not of `compile`.*'mse'"),
            ({"metrics": ["accuracy"]}, "without `metrics`.*accuracy"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                model.compile(**settings)

    def test_batches_that_do_not_fit_are_refused_with_the_first(self):
        (batch,) = tiny.super_batches()
        image, text = batch["image"], batch["text"]
        large = dataclasses.replace(JOINT, batch_size=13)
        uneven = one_of_three(scoring_batch_size=5)
        for settings, value, message in (
            ({"selection": large}, batch, r"39 rows .*12 rows, b=13, c=0"),
            ({"selection": uneven}, batch, "divide .* 5, 12 rows, R=1"),
            (
                {"false_negatives": "reference", "selection": None},
                batch,
                "`false_negatives='reference'` needs a reference: pass",
            ),
            (
                {"false_negatives": "equal_captions"},
                {"image": image, "text": text},
                r"needs `caption_id` in the batch. Received: \['image', 'text",
            ),
            ({}, {"image": image}, r'"text". Received: \[\'image\'\]'),
            ({}, batch | {"text": text[:5]}, r"B rows each: .*text \(5, 3\)"),
        ):
            with self.subTest(message):
                with self.assertRaisesRegex(ValueError, message):
                    fit(build(**settings), [value])
        varying = tf.data.Dataset.from_tensor_slices(batch).batch(8)
        model = build(run_eagerly=False)
        with self.assertRaisesRegex(ValueError, r"be static .*\(None, 4.*R=1"):
            model.fit(varying, verbose=0)
        model.evaluate(varying, verbose=0)
        pairs = tf.data.Dataset.from_tensors((image, text))
        with self.assertRaisesRegex(ValueError, "must be a dict with"):
            build().fit(pairs, verbose=0)


class RecipeTest(TrainingTestCase):
    def test_build_model_is_the_run_that_a_config_describes(self):
        of_step = {"false_negatives": "reference", "loss_block_size": 2}
        of_step["false_negative_margin"] = 0.2
        of_step["micro_batch_size"] = 2
        settings = config.TrainConfig(
            seed=3,
            steps=4,
            data=config.DataConfig(flip=False, min_crop_area=0.5),
            model=config.ModelConfig(loss="softmax", **of_step),
            reference=config.ReferenceConfig("somewhere"),
            selection=JOINT,
            optimizer=config.OptimizerConfig(learning_rate=0.1),
        )
        model = training.build_model(settings, tiny.learner(0))
        options = dict(vars(model.step.options))
        augment = options.pop("augment").get_config()
        self.assertEqual(augment, {"flip": False, "min_area": 0.5})
        expected = step_lib.StepOptions(seed=3, **of_step)
        self.assertEqual(options | {"augment": None}, vars(expected))
        self.assertEqual((model.step.loss, model.selection), ("softmax", JOINT))
        self.assertFalse(model.jit_compile)
        ours, theirs = (
            optimizer.get_config() | {"name": ""}
            for optimizer in (
                model.optimizer,
                jest_tf.build_optimizer(settings.optimizer, 4),
            )
        )
        self.assertEqual(ours, theirs)

"""`fit` on several replicas of virtual devices, against one replica.

The CPU is split when `lockstep.py` is imported, before TensorFlow starts.
"""

import dataclasses
import functools

import keras
import lockstep
import numpy as np
import pytest
import tensorflow as tf
import tiny
import worker

import jest_tf
from jest_tf import config, distribution, training
from jest_tf.data import augmentation

pytestmark = pytest.mark.slow

SEED = 7
JOINT = config.SelectionConfig(8, (config.Stage(2, num_chunks=2),))
UNIFORM = config.SelectionConfig(8, (config.Stage(2, method="uniform"),))
STRATEGIES = {}
# float32, summed in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def setUpModule():
    STRATEGIES[1] = tf.distribute.get_strategy()
    for count in (2, 4):
        # Strategies of a process would use the same keys for collectives; this
        # is how TensorFlow's own tests keep them apart.
        tf.distribute.MirroredStrategy._collective_key_base += 100_000
        STRATEGIES[count] = tf.distribute.MirroredStrategy(
            [f"CPU:{number}" for number in range(count)]
        )


def on_replicas(num_replicas, function):
    """The results of all replicas, run in a graph."""
    strategy = STRATEGIES[num_replicas]

    @tf.function(autograph=False)
    def run():
        return tf.nest.map_structure(
            strategy.experimental_local_results, strategy.run(function)
        )

    return run()


def line_data():
    x = np.ones((8, 1), np.float32)
    return tf.data.Dataset.from_tensors({"x": x, "y": 3 * x}).repeat(4)


class KerasTest(tf.test.TestCase):
    """Faults of Keras alone that the hooks mend."""

    def gone(self, what):
        return (
            f"Keras {keras.__version__} does this right now: {what}. Its hook "
            "in jest_tf/distribution/keras_fit.py can go, and this test with it"
        )

    def test_factors_of_the_rate(self):
        # Adam's first step is its rate, and there is nothing to decay.
        for num_replicas in (1, 2):
            with STRATEGIES[num_replicas].scope():
                optimizer = jest_tf.AdamW(1.0, weight_decay=0.5)
                optimizer.rate_factors = [[0.25]]
                model = worker.Line()
                model.compile(optimizer)
            model.fit(line_data().take(1), shuffle=False, verbose=0)
            self.assertAllClose(model.line.kernel, [[0.25]], 1e-5, 1e-5)

    def test_the_average_of_the_weights_is_exchanged_to_the_bit(self):
        class Exchanging(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                self.seen, self.kept = [], []

            def on_train_batch_end(self, batch, logs=None):
                kernel = self.model.line.kernel
                before = kernel.numpy()
                with self.model.averaged():
                    self.seen.append(float(kernel.numpy()[0, 0]))
                self.kept.append(np.array_equal(before, kernel.numpy()))

        # A step leaves 0.9 of what is missing to 3; half the average is new.
        weights = [3 * (1 - 0.9**step) for step in (1, 2, 3, 4)]
        expected = weights[:1]
        for weight in weights[1:]:
            expected.append(0.5 * expected[-1] + 0.5 * weight)
        for num_replicas in (1, 2):
            with STRATEGIES[num_replicas].scope():
                model = worker.Line()
                # As far as the step.
                model({"x": keras.Input((1,)), "y": keras.Input((1,))})
                model.compile(worker.SGD(0.05, use_ema=True, ema_momentum=0.5))
            callback = Exchanging()
            data = line_data()
            model.fit(data, verbose=0, shuffle=False, callbacks=[callback])
            self.assertAllClose(callback.seen, expected)
            self.assertEqual(callback.kept, [True] * 4)
            # At its end, `fit` puts the average in place.
            self.assertAllClose(model.line.kernel, [[expected[-1]]])
        # Sums lose what is small beside the average.
        kernel = model.line.kernel
        kernel.assign([[1e-3 * expected[-1]]])
        before = kernel.numpy()
        stock = keras.callbacks.SwapEMAWeights()
        stock.set_model(model)
        stock.on_test_begin()
        stock.on_test_end()
        self.assertNotAllEqual(kernel, before, self.gone("exchange"))


class CollectivesTest(tf.test.TestCase):
    def test_every_dtype_travels_whole(self):
        random, shape = np.random.default_rng(0), (4, 3, 5)
        everything = {"bool": random.integers(0, 2, shape) == 1}
        for dtype in (tf.float32, tf.int64, tf.float16, tf.bfloat16, tf.uint8):
            content = random.bytes(60 * dtype.size)
            values = np.frombuffer(content, dtype.as_numpy_dtype)
            everything[dtype.name] = values.reshape(shape)

        def function():
            replicas = distribution.current()
            gathered = replicas.all_gather(
                {
                    name: tf.constant(values)[replicas.replica_id]
                    for name, values in everything.items()
                }
            )
            rows = {n: tf.reshape(rows, shape) for n, rows in gathered.items()}
            return gathered, replicas.all_to_all(rows)

        gathered, exchanged = on_replicas(4, function)
        for name, values in everything.items():
            for replica in range(4):
                found = gathered[name][replica].numpy()
                self.assertEqual(found.dtype, values.dtype)
                # NaNs are no less whole.
                self.assertEqual(found.tobytes(), values.tobytes())
                # Each sent the same rows; mine came from everybody.
                found = exchanged[name][replica].numpy()
                self.assertEqual(found.tobytes(), 4 * values[replica].tobytes())

    def test_tensors_that_cannot_be_exchanged_are_refused(self):
        with self.assertRaisesRegex(ValueError, "static shape"):
            on_replicas(
                2, lambda: distribution.current().all_gather(tf.constant(1.0))
            )

    def test_there_are_no_collectives_outside_of_a_step(self):
        self.assertIsNone(distribution.current())
        with STRATEGIES[2].scope():
            with self.assertRaisesRegex(ValueError, "inside `strategy.run`"):
                distribution.current()


def build(
    num_replicas,
    settings=JOINT,
    *,
    learner=tiny.learner,
    teacher=tiny.learner,
    optimizer=worker.SGD,
    steps_per_execution=1,
    loss="sigmoid",
    **more,
):
    augment = augmentation.Augmentation(flip=True, min_area=0.5)
    options = jest_tf.StepOptions(**{"seed": SEED, "augment": augment} | more)
    is_needed = options.distillation_weight or (settings and settings.scores)
    with STRATEGIES[num_replicas].scope():
        model = training.JESTModel(
            learner(0),
            teacher(5) if is_needed else None,
            settings,
            loss,
            options=options,
        )
        model.compile(
            optimizer=optimizer(0.05, global_clipnorm=0.3),
            steps_per_execution=steps_per_execution,
            jit_compile=False,
        )
    return model


def batches_of(steps, rows=16):
    batches = tiny.super_batches(steps, rows=rows)
    for number, batch in enumerate(batches):
        batch["record_replaced"] = np.arange(rows) < number
        batch["caption_replaced"] = np.arange(rows) >= rows - 1
    return batches


def fit(model, batches):
    """The history of an epoch, and the ids drawn after each execution."""
    drawn, data, options = worker.Drawn(), tiny.dataset(batches), {}
    if "curated" in batches[0]:
        # Keras cannot cut batches of two sizes.
        data = distribution.distribute(
            model.distribute_strategy,
            lambda host, num_hosts, data=data: data.repeat(),
        )
        options = {"steps_per_epoch": len(batches)}
    history = model.fit(data, verbose=0, callbacks=[drawn], **options)
    return history.history, np.array(drawn.steps)


class TrainingTest(tf.test.TestCase):
    def assert_same(self, ours, theirs):
        weights = ours.get_weights(), theirs.get_weights()
        self.assertAllClose(*weights, **TOLERANCE)

    def assert_replicas_train_as_one(
        self, counts, settings, batches=None, **more
    ):
        """Checks R replicas, with their steps of an execution, against one."""
        batches = batches or batches_of(20)
        single = build(1, settings, **more)
        history, drawn = fit(single, batches)
        for num_replicas, steps in counts.items():
            model = build(
                num_replicas, settings, steps_per_execution=steps, **more
            )
            same, again = fit(model, batches)
            self.assertAllEqual(again, drawn[steps - 1 :: steps])
            self.assertCountEqual(same, history)
            for name, value in history.items():
                self.assertAllClose(same[name], value, msg=name, **TOLERANCE)
            self.assert_same(model.learner, single.learner)
            self.assert_same_flops(model, single)
            for stage in range(len(settings.stages) if settings else 0):
                self.assert_same_rows(model.rows, single.rows, stage)
            rows = model.rows.drawn
            if rows is not None:
                ids = batches[-1]["id"][rows]
                self.assertAllEqual(ids, drawn[-1][: len(rows)])
        return history

    def assert_same_flops(self, ours, theirs):
        """All replicas together embed what one does."""
        own, other = (model.step_flops() for model in (ours, theirs))
        self.assertEqual(set(own), set(other))
        for kind, flops in other.items():
            for name in ("score", "reference", "forward", "no_reuse", "reuse"):
                more = own[kind][name] - flops[name]
                # Each replica resizes the weights of a view for itself.
                most = 0.5 * flops[name] if ours.step.options.views else 0
                self.assertBetween(more, 0, most, name)
            self.assertGreater(flops["forward"], 0)

    def assert_same_rows(self, ours, theirs, stage):
        """Compares the records of the last step's rows."""
        for mine, other in (
            (ours.scored(stage), theirs.scored(stage)),
            (ours.uniform(stage), theirs.uniform(stage)),
        ):
            self.assertEqual(set(mine), set(other))
            for name, value in other.items():
                self.assertAllClose(mine[name], value, 1e-4, 1e-4, name)

    def test_joint_draws_by_the_sigmoid_loss(self):
        history = self.assert_replicas_train_as_one(
            {2: 4, 4: 1},
            JOINT,
            false_negatives="reference",
            false_negative_margin=0.1,
            loss_block_size=3,
        )
        self.assertEqual(history["data/captions_replaced"], [20.0])
        # 0 + 1 + ... + 15, then all 16 of the last four steps.
        self.assertEqual(history["data/records_replaced"], [120.0 + 4 * 16])

    def test_joint_draws_by_the_softmax_loss(self):
        self.assert_replicas_train_as_one(
            {2: 1, 4: 1}, JOINT, loss="softmax", micro_batch_size=2
        )

    def test_a_reference_that_is_distilled(self):
        weight = {"distillation_weight": 2.0}
        counts = {2: 1, 4: 1}
        history = self.assert_replicas_train_as_one(counts, JOINT, **weight)
        self.assertGreater(history["distillation"][0], 0.0)
        # Nothing has asked the reference before: it is run on what is trained.
        # By way of a projection to another width.
        self.assert_replicas_train_as_one(
            {2: 1},
            None,
            teacher=functools.partial(tiny.learner, dim=3),
            projection_dim=3,
            **weight,
        )

    def test_uniform_draws_and_whole_batches(self):
        self.assert_replicas_train_as_one({4: 1}, UNIFORM)
        self.assert_replicas_train_as_one({2: 1}, None)

    def test_two_stages_of_which_the_second_begins_later(self):
        stages = (
            config.Stage(2, num_chunks=3),
            config.Stage(2, num_chunks=2, first_step=2),
        )
        settings = config.SelectionConfig(8, stages)
        batches = batches_of(6, rows=32)
        self.assert_replicas_train_as_one({2: 2}, settings, batches)

    def test_views(self):
        coarse = config.View(patch_size=4)
        stage = config.Stage(2, num_chunks=2, view=coarse)
        self.assert_replicas_train_as_one(
            {2: 1},
            config.SelectionConfig(8, (stage,)),
            batches_of(6),
            learner=tiny.flexible_learner,
            views=(config.View(), coarse),
        )

    def test_curated_rows(self):
        batches = batches_of(6)
        for number, extra in enumerate(tiny.super_batches(6, rows=4, seed=1)):
            extra["record_replaced"] = np.arange(4) < number
            extra["caption_replaced"] = np.zeros(4, bool)
            batches[number]["curated"] = extra
        history = self.assert_replicas_train_as_one(
            {2: 2, 4: 1},
            dataclasses.replace(JOINT, batch_size=12),
            batches,
            distillation_weight=1.0,
        )
        # 0 to 5 of the super-batches, and 0 to 4 and 4 of the curated rows.
        self.assertEqual(history["data/records_replaced"], [15.0 + 14.0])

    def test_a_quota_for_each_replica(self):
        batches = batches_of(5, rows=32)
        joint = config.Stage(2, num_chunks=2)
        uniform = config.Stage(2, method="uniform")
        for stages in ((joint, joint), (uniform, uniform)):
            settings = config.SelectionConfig(8, stages, quota="per_replica")
            model = build(2, settings, augment=None)
            twin = build(1, None, augment=None)
            history, drawn = fit(model, batches)
            for batch, ids in zip(batches, drawn, strict=True):
                rows = [list(batch["id"]).index(number) for number in ids]
                self.assertLen(set(rows), 8)
                # Four of each replica's sixteen.
                self.assertEqual(sum(row < 16 for row in rows), 4)
                fit(twin, [{n: value[rows] for n, value in batch.items()}])
            self.assert_same(model.learner, twin.learner)

    def test_a_validation_loss_is_of_all_rows(self):
        held_out = tiny.super_batches(2, rows=8, seed=3)
        losses_found = [
            build(count).evaluate(tiny.dataset(held_out), verbose=0)
            for count in (1, 2)
        ]
        self.assertAllClose(*losses_found, **TOLERANCE)


class RefusalsTest(tf.test.TestCase):
    def test_models_from_outside_the_scope_are_refused(self):
        outside = tiny.learner(5)
        count = len(outside.variables)
        with STRATEGIES[2].scope():
            message = f"`reference` .*of its {count}"
            with self.assertRaisesRegex(ValueError, message):
                training.JESTModel(tiny.learner(0), outside, JOINT)
            with self.assertRaisesRegex(ValueError, "`learner` must be"):
                training.JESTModel(outside)

    def test_unsupported_keras_features_are_refused(self):
        model = build(2)
        with self.assertRaisesRegex(ValueError, "`jit_compile=True`.* 2 rep"):
            model.compile(optimizer="adam", jit_compile=True)
        for optimizer, message in (
            (keras.optimizers.Adam(clipnorm=1.0), "Adam clips .*clipnorm=1.0"),
            (
                keras.optimizers.SGD(gradient_accumulation_steps=2),
                "`gradient_accumulation_steps` does not work .*: 2",
            ),
        ):
            with self.assertRaisesRegex(ValueError, message):
                model.compile(optimizer=optimizer)
        with self.assertRaisesRegex(ValueError, "use `fit`.* on 2 replicas"):
            model.train_on_batch(tiny.super_batches(1)[0])

    def test_devices_are_split_only_once(self):
        def build(parts):
            settings = {"virtual_devices": parts}
            settings = config.DistributionConfig("mirrored", **settings)
            return distribution.build_strategy(settings)

        self.assertIs(build(lockstep.DEVICES), build(lockstep.DEVICES))

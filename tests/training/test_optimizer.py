"""The optimizer against its equations."""

import itertools
import math
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
import tiny

import jest_tf
from jest_tf import config
from jest_tf.config import tables
from jest_tf.training import optimizer as optimizer_lib


def build_rmsprop(settings, schedule):
    return keras.optimizers.RMSprop(schedule)


def build_halving(settings, steps):
    return keras.optimizers.schedules.ExponentialDecay(
        settings.learning_rate, 1, 0.5
    )


def build_nothing(settings, steps):
    return settings.learning_rate


def kernel(shape):
    return keras.Variable(np.ones(shape, np.float32), name="kernel")


class OptimizerTest(tf.test.TestCase):
    def test_the_rate_warms_up_and_falls_along_a_cosine_or_stays(self):
        def rate(step, warmup, steps, kind):
            if step < warmup:
                return 0.3 * step / warmup
            share = (step - warmup) / (steps - warmup)
            cosine = 0.5 * (1 + math.cos(math.pi * share))
            return 0.3 * (cosine if kind == "cosine" else 1.0)

        for (warmup, steps), kind in itertools.product(
            ((10, 50), (0, 40), (1, 2)), ("cosine", "constant")
        ):
            settings = config.OptimizerConfig(
                learning_rate=0.3, warmup_steps=warmup, schedule=kind
            )
            schedule = optimizer_lib.build_schedule(settings, steps)
            for step in {0, 1, warmup, steps // 2, steps - 1, steps}:
                expected = rate(step, warmup, steps, kind)
                self.assertAllClose(schedule(step), expected, 1e-5, 1e-7)

    def test_a_schedule_begun_anew_is_that_of_a_run_from_there(self):
        settings = config.OptimizerConfig(learning_rate=0.3, warmup_steps=1)

        def rates(steps, restarts=()):
            schedule = optimizer_lib.build_schedule(settings, steps, restarts)
            again = keras.saving.deserialize_keras_object(
                keras.saving.serialize_keras_object(schedule)
            )
            values = [float(schedule(step)) for step in range(steps)]
            self.assertEqual(values, [float(again(x)) for x in range(steps)])
            return values

        self.assertAllClose(rates(9, (2, 6)), rates(2) + rates(4) + rates(3))

    def test_a_function_or_a_new_name_in_the_tables_is_all_it_takes(self):
        function = {
            "name": f"{__name__}:build_rmsprop",
            "schedule": f"{__name__}:build_halving",
        }
        by_function = config.OptimizerConfig(learning_rate=0.3, **function)
        by_name = config.OptimizerConfig(learning_rate=0.3)
        for field, name in (("name", "rmsprop"), ("schedule", "halving")):
            # The rules of the settings were made before these names.
            object.__setattr__(by_name, field, name)
        halving = tables.Schedule(function["schedule"])
        with (
            mock.patch.dict(config.OPTIMIZERS, rmsprop=function["name"]),
            mock.patch.dict(config.SCHEDULES, halving=halving),
        ):
            for settings in (by_function, by_name):
                optimizer = jest_tf.build_optimizer(settings, 9)
                self.assertIsInstance(optimizer, keras.optimizers.RMSprop)
                for step in (0, 1, 3):
                    optimizer.iterations.assign(step)
                    rate = 0.3 * 0.5**step
                    self.assertAllClose(optimizer.learning_rate, rate)

    def test_functions_that_do_not_fit_are_refused(self):
        for message, factors, field, name in (
            ("that takes factors", [1.0], "name", "build_rmsprop"),
            ("a Keras optimizer. .* 0.3", None, "name", "build_nothing"),
            ("RateSchedule.*0.3", None, "schedule", "build_nothing"),
            ("`optimizer.name`.*imported", None, "name", "build_none"),
        ):
            settings = config.OptimizerConfig(
                learning_rate=0.3, **{field: f"{__name__}:{name}"}
            )
            with self.assertRaisesRegex(ValueError, message):
                jest_tf.build_optimizer(settings, 9, factors)

    def test_settings_reach_the_optimizer(self):
        found = jest_tf.build_optimizer(
            config.OptimizerConfig(weight_decay=0.5), 10
        ).get_config()
        for name, value in (
            ("weight_decay", 0.5),
            ("beta_1", 0.9),
            ("beta_2", 0.95),  # SigLIP, 4.7
            ("global_clipnorm", 1.0),
        ):
            self.assertAllClose(found[name], value)

    def test_the_average_starts_with_the_first_step_and_fades(self):
        learner = tiny.learner(0)
        settings = config.OptimizerConfig(learning_rate=0.3, ema=0.75)
        optimizer = jest_tf.build_optimizer(settings, 4)
        variables = learner.trainable_variables
        optimizer.build(variables)
        expected = None
        random = np.random.default_rng(0)
        for _ in range(3):
            gradients = [
                tf.constant(random.normal(size=variable.shape), tf.float32)
                for variable in variables
            ]
            optimizer.apply(gradients, variables)
            now = [variable.numpy() for variable in variables]
            expected = [
                0.75 * average + 0.25 * weight
                for average, weight in zip(expected or now, now, strict=True)
            ]
        optimizer.finalize_variable_values(variables)
        for variable, average in zip(variables, expected, strict=True):
            self.assertAllClose(variable, average)

    def test_a_factor_scales_the_rate_of_a_variable_or_of_its_blocks(self):
        def train(rate, shapes, factors=None):
            optimizer = jest_tf.AdamW(rate, weight_decay=0.5)
            optimizer.rate_factors = factors
            variables = [kernel(shape) for shape in shapes]
            optimizer.build(variables)
            # Factors are among the settings of a saved model.
            config = optimizer.get_config()
            again = jest_tf.AdamW.from_config(config)
            self.assertEqual(again.get_config(), config)
            for step in range(3):
                gradients = [tf.fill(x.shape, 1.0 + step) for x in variables]
                optimizer.apply(gradients, variables)
            return variables

        factors = [[0.5, 1.0, 0.0], 0.25]
        stack, other = train(0.1, [(3, 2, 2), (2,)], factors)
        for block, factor in zip(stack.numpy(), factors[0], strict=True):
            (alone,) = train(0.1 * factor, [(2, 2)])
            self.assertAllClose(block, alone)
        (alone,) = train(0.1 * 0.25, [(2,)])
        self.assertAllClose(other, alone)
        with self.assertRaisesRegex(ValueError, "each of the 1 variables.*2"):
            train(0.1, [(2,)], factors)

    def test_kernels_alone_decay(self):
        learner = tiny.learner(
            0, extra=[keras.layers.LayerNormalization()], learn_bias=True
        )
        optimizer = jest_tf.AdamW(0.1, weight_decay=0.5)
        variables = learner.trainable_variables
        for variable in variables:
            variable.assign(tf.ones_like(variable))
        optimizer.build(variables)
        for _ in range(3):
            optimizer.apply(
                [tf.zeros(variable.shape) for variable in variables], variables
            )
        kernels = 0
        for variable in variables:
            is_kernel = variable.name == "kernel"
            kernels += is_kernel
            # Decoupled: each step takes rate * decay of the weight.
            value = (1 - 0.1 * 0.5) ** 3 if is_kernel else 1.0
            self.assertAllClose(variable, np.full(variable.shape, value))
        self.assertEqual(kernels, 2)

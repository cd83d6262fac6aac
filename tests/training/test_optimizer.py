"""The optimizer against its equations."""

import math

import keras
import numpy as np
import tensorflow as tf
import tiny

import jest_tf
from jest_tf import config, models


class OptimizerTest(tf.test.TestCase):
    def test_the_rate_warms_up_and_falls_along_a_cosine(self):
        def rate(step, peak, warmup, steps):
            if step < warmup:
                return peak * step / warmup
            share = (step - warmup) / (steps - warmup)
            return peak * 0.5 * (1 + math.cos(math.pi * share))

        for warmup, steps in ((10, 50), (0, 40), (1, 2)):
            optimizer = jest_tf.build_optimizer(
                config.OptimizerConfig(learning_rate=0.3, warmup_steps=warmup),
                steps,
            )
            for step in {0, 1, warmup, steps // 2, steps - 1, steps}:
                optimizer.iterations.assign(step)
                self.assertAllClose(
                    optimizer.learning_rate,
                    rate(step, 0.3, warmup, steps),
                    1e-5,
                    1e-7,
                )

    def test_settings_reach_the_optimizer(self):
        optimizer = jest_tf.build_optimizer(
            config.OptimizerConfig(
                weight_decay=0.5, beta_1=0.8, beta_2=0.7, clip_norm=3.0
            ),
            10,
        )
        found = optimizer.get_config()
        self.assertAllClose(
            [
                found[name]
                for name in (
                    "weight_decay",
                    "beta_1",
                    "beta_2",
                    "global_clipnorm",
                )
            ],
            [0.5, 0.8, 0.7, 3.0],
        )

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
                tf.constant(random.normal(size=one.shape), tf.float32)
                for one in variables
            ]
            optimizer.apply(gradients, variables)
            now = [one.numpy() for one in variables]
            expected = [
                0.75 * average + 0.25 * weight
                for average, weight in zip(expected or now, now, strict=True)
            ]
        optimizer.finalize_variable_values(variables)
        for variable, average in zip(variables, expected, strict=True):
            self.assertAllClose(variable, average)

    def test_a_factor_scales_the_rate_of_a_variable_or_of_its_blocks(self):
        def train(rate, shapes, factors=None, **settings):
            optimizer = jest_tf.AdamW(rate, weight_decay=0.5, **settings)
            optimizer.rate_factors = factors
            variables = [
                keras.Variable(np.ones(shape, np.float32), name="kernel")
                for shape in shapes
            ]
            optimizer.build(variables)
            # Factors are among the settings of a saved model.
            config = optimizer.get_config()
            again = jest_tf.AdamW.from_config(config)
            self.assertEqual(again.get_config(), config)
            for step in range(3):
                optimizer.apply(
                    [tf.fill(one.shape, 1.0 + step) for one in variables],
                    variables,
                )
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

    def test_a_preset_decays_its_matrices(self):
        settings = config.TrainConfig(
            data=config.DataConfig(image_size=8, text_length=3),
            model=config.ModelConfig(preset="tiny"),
        )
        learner = models.build_learner(settings, 12)
        optimizer = jest_tf.AdamW(0.1, weight_decay=0.5)
        optimizer.build(learner.trainable_variables)
        for variable in learner.trainable_variables:
            decays = optimizer._use_weight_decay(variable)
            # Vectors of an encoder are stacked, so rank does not tell them.
            if variable.name.endswith(("bias", "gamma", "beta", "temperature")):
                self.assertFalse(decays, variable.path)
            elif not any(
                word in variable.path
                for word in ("position", "table", "embedding", "probe")
            ):
                self.assertTrue(decays, variable.path)
            else:
                self.assertEqual(
                    decays, variable.name == "kernel", variable.path
                )

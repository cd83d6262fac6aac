"""Sums over tiles against double precision."""

import numpy as np
import oracles
import tensorflow as tf

from jest_tf.losses import tiles


class TileTest(tf.test.TestCase):
    def test_sums_of_a_tile_equal_those_in_double_precision(self):
        random = np.random.default_rng(0)
        ranges = (-60, -15), (-12, -8), (-3, 3), (50, 200), (-20, 20)
        for columns in (5, 37, 1024):
            for low, high in (*ranges, (-1e4, 1e4), (-2e4, -1e4)):
                logits = random.uniform(low, high, size=(7, columns))
                logits = logits.astype(np.float32)
                exact = np.float64(logits)
                scale, bias = tf.constant(1.0), tf.constant(0.0)
                with self.subTest(columns=columns, low=low):
                    self.assertAllClose(
                        tiles.sum_softplus(tf.constant(logits), scale, bias),
                        oracles.softplus(exact).sum(1),
                        rtol=1e-6,
                        atol=1e-34,
                    )
                    self.assertAllClose(
                        tiles.log_sum_exp(tf.constant(logits), scale),
                        np.logaddexp.reduce(exact, 1),
                        rtol=3e-7,
                        atol=3e-7,
                    )

    def test_sums_use_scale_and_bias(self):
        random = np.random.default_rng(1)
        cosines = random.uniform(-1, 1, size=(9, 117)).astype(np.float32)
        for scale, bias in ((10, -10), (117.3, -16.5), (-3, 2), (0, 1)):
            exact = np.float64(np.float32(scale)) * cosines
            scale, bias = (tf.constant(x, tf.float32) for x in (scale, bias))
            self.assertAllClose(
                tiles.sum_softplus(tf.constant(cosines), scale, bias),
                oracles.softplus(exact + bias.numpy()).sum(1),
                rtol=2e-6,
            )
            self.assertAllClose(
                tiles.log_sum_exp(tf.constant(cosines), scale),
                np.logaddexp.reduce(exact, 1),
                rtol=1e-6,
            )

    def test_sums_do_not_depend_on_the_height_of_a_tile(self):
        random = np.random.default_rng(2)
        cosines = random.uniform(-1, 1, size=(100, 200)).astype(np.float32)
        scale, bias = tf.constant(20.0), tf.constant(-5.0)
        for function in (
            lambda tile: tiles.sum_softplus(tile, scale, bias),
            lambda tile: tiles.log_sum_exp(tile, scale),
        ):
            parts = [cosines[:33], cosines[33:]]
            self.assertAllEqual(
                function(tf.constant(cosines)),
                tf.concat([function(tf.constant(part)) for part in parts], 0),
            )

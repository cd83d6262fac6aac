"""Sums over tiles against double precision."""

import graphs
import numpy as np
import oracles
import tensorflow as tf
from keras import ops

from jest_tf.losses import running

sum_softplus = graphs.compiled(running.sum_softplus)
log_sum_exp = graphs.compiled(running.log_sum_exp)


class TileTest(tf.test.TestCase):
    def test_sums_of_a_tile_equal_those_in_double_precision(self):
        random = np.random.default_rng(0)
        ranges = (-60, -15), (-12, -8), (-3, 3), (50, 200), (-20, 20)
        for columns in (5, 37, 1024):
            for low, high in (*ranges, (-1e4, 1e4), (-2e4, -1e4)):
                logits = random.uniform(low, high, size=(7, columns))
                logits = logits.astype(np.float32)
                exact = np.float64(logits)
                scale, bias = ops.array(1.0), ops.array(0.0)
                with self.subTest(columns=columns, low=low):
                    self.assertAllClose(
                        sum_softplus(ops.array(logits), scale, bias),
                        oracles.softplus(exact).sum(1),
                        rtol=1e-6,
                        atol=1e-34,
                    )
                    self.assertAllClose(
                        log_sum_exp(ops.array(logits), scale),
                        np.logaddexp.reduce(exact, 1),
                        rtol=3e-7,
                        atol=3e-7,
                    )

    def test_sums_do_not_depend_on_the_height_of_a_tile(self):
        random = np.random.default_rng(2)
        cosines = random.uniform(-1, 1, size=(100, 200)).astype(np.float32)
        scale, bias = ops.array(20.0), ops.array(-5.0)
        for function in (
            lambda tile: sum_softplus(tile, scale, bias),
            lambda tile: log_sum_exp(tile, scale),
        ):
            parts = [cosines[:33], cosines[33:]]
            self.assertAllEqual(
                function(ops.array(cosines)),
                ops.concatenate(
                    [function(ops.array(part)) for part in parts], 0
                ),
            )

"""Noise: its distribution, and its seed."""

import graphs
import numpy as np
import tensorflow as tf
from keras import ops

from jest_tf import selection
from jest_tf.selection import noise


class NoiseTest(tf.test.TestCase):
    def test_noise_is_gumbel_and_a_function_of_the_seed(self):
        drawn = np.asarray(selection.gumbel_noise((3, 4), 8, 20_000))
        self.assertEqual(drawn.dtype, np.float32)
        self.assertTrue(np.isfinite(drawn).all())
        # mean = Euler's constant, variance = pi^2 / 6; 160,000 variates.
        self.assertAllClose(drawn.mean(), np.euler_gamma, atol=0.015)
        self.assertAllClose(drawn.var(), np.pi**2 / 6, atol=0.05)
        again = selection.gumbel_noise(np.array([3, 4]), 8, 20_000)
        self.assertAllEqual(again, drawn)
        for other in ((3, 5), (4, 4)):
            found = selection.gumbel_noise(other, 8, 20_000)
            self.assertNotAllClose(found, drawn)

    def test_other_backends_have_the_bits_of_tensorflow(self):
        for seed in ((5, -7), (2**31 - 1, 0), (-(2**31), -1)):
            expected = tf.random.stateless_uniform(
                [3, 1001],
                seed,
                minval=None,
                maxval=None,
                dtype=tf.uint32,
                alg="philox",
            )
            found = noise.philox_bits([3, 1001], np.int32(seed))
            self.assertAllEqual(found, expected)

    def test_uniform_floats_are_the_same_bits_eagerly_and_under_xla(self):
        seed = ops.array([5, -7])
        for bits in (23, 24):

            def draw(seed, bits=bits):
                return noise.uniform([3, 4000], seed, bits=bits)

            eager = np.asarray(draw(seed))
            compiled = graphs.compiled(draw, jit_compile=True)
            self.assertAllEqual(eager, compiled(seed))
            cells = eager * 2.0**bits
            self.assertAllEqual(cells, np.round(cells))
            self.assertAllInRange(cells, 0, 2**bits - 1)
            # Standard deviation of the mean of 12,000: 0.0026.
            self.assertAllClose(eager.mean(), 0.5, atol=0.01)

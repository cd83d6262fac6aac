"""Contracts of the towers' layers, whose values are in test_towers.py."""

import numpy as np
import tensorflow as tf

from jest_tf.models import layers


def tokens(batch=3, length=5, width=8, seed=0):
    random = np.random.default_rng(seed)
    return np.float32(random.normal(size=(batch, length, width)))


class SeedTest(tf.test.TestCase):
    def test_a_fused_projection_starts_like_its_parts_alone(self):
        # Glorot for a square [W, W]: uniform in +-sqrt(6 / 2W), so the
        # variance is 1 / W, here of 3 W^2 draws.
        layer = layers.Encoder(1, 1, seed=0)
        layer.build((None, 1, 64))
        kernel = layer.parameters["attention_qkv_kernel"].numpy()
        self.assertNear(kernel.var(), 1 / 64, 0.05 / 64)
        self.assertNear(np.abs(kernel).max(), np.sqrt(3 / 64), 1e-3)


class ArgumentsTest(tf.test.TestCase):
    def test_counts_must_be_positive_integers(self):
        for name, make in {
            "width": lambda value: layers.TokenEmbedding(4, value),
            "vocabulary_size": lambda value: layers.TokenEmbedding(value, 8),
            "num_heads": lambda value: layers.AttentionPooling(value),
            "depth": lambda value: layers.Encoder(value, 2),
            "mlp_ratio": lambda value: layers.Encoder(1, 2, mlp_ratio=value),
        }.items():
            for value in (0, -1, 1.5, True):
                message = f"`{name}` must be a positive integer.*{value}"
                with self.assertRaisesRegex(ValueError, message):
                    make(value)

    def test_heads_must_divide_the_width(self):
        for layer in (layers.Encoder(1, 3), layers.AttentionPooling(3)):
            with self.assertRaisesRegex(ValueError, "`num_heads` must divide"):
                layer(tokens())

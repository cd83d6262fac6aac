"""Contracts of the towers' layers, whose values are in test_towers.py."""

import graphs
import keras
import numpy as np
import tensorflow as tf

from jest_tf.models import layers


def tokens(batch=3, length=5, width=8, seed=0):
    random = np.random.default_rng(seed)
    return np.float32(random.normal(size=(batch, length, width)))


class DropoutTest(tf.test.TestCase):
    def test_only_training_drops(self):
        inputs = tokens()
        for make in (
            lambda rate: layers.Encoder(1, 2, dropout=rate, seed=0),
            lambda rate: layers.AttentionPooling(2, dropout=rate, seed=0),
        ):
            without, layer = make(0.0), make(0.5)
            expected = without(inputs)
            self.assertAllEqual(layer(inputs, training=False), expected)
            self.assertAllEqual(without(inputs, training=True), expected)
            self.assertNotAllClose(layer(inputs, training=True), expected)

    def test_every_block_has_its_own_masks(self):
        # All updates are 1, so a unit of a token is the number of updates that
        # were kept, of two a block, before the normalisation.
        def num_values(depth):
            encoder = layers.Encoder(depth, 1, dropout=0.5, seed=0)
            encoder.build((1, 1, 200))
            for name, weight in encoder.parameters.items():
                is_update = name in ("attention_out_bias", "mlp_contract_bias")
                weight.assign(tf.fill(weight.shape, 1.0 * is_update))
            outputs = encoder(tf.zeros([1, 1, 200]), training=True)
            return len(np.unique(np.round(outputs, 3)))

        self.assertEqual(num_values(1), 3)
        self.assertEqual(num_values(2), 5)

    def test_a_mask_is_the_same_eagerly_in_a_graph_and_under_xla(self):
        inputs = np.ones([4, 25], np.float32)
        for how in (None, {"jit_compile": False}, {"jit_compile": True}):
            layer = layers.Dropout(0.3, seed=5)
            call = layer if how is None else graphs.layer(layer, **how)
            masks = [np.asarray(call(inputs, training=True)) for _ in range(2)]
            self.assertNotAllEqual(*masks)
            if how is None:
                expected = masks
            self.assertAllClose(masks, expected, 1e-6)
        # A unit is kept with probability 0.7, of 200 within five deviations.
        kept = np.array(expected) > 0
        self.assertNear(kept.mean(), 0.7, 5 * (0.3 * 0.7 / 200) ** 0.5)
        self.assertAllClose(np.array(expected)[kept], 1 / 0.7 + 0 * kept[kept])

    def test_loading_weights_continues_with_the_next_mask(self):
        inputs = tokens()
        path = f"{self.get_temp_dir()}/drop.weights.h5"
        models = [
            keras.Sequential([layers.Encoder(2, 2, dropout=0.5, seed=0)])
            for _ in range(2)
        ]
        for model in models:
            model.build(inputs.shape)
        models[0](inputs, training=True)
        models[0].save_weights(path)
        models[1].load_weights(path)
        masked = [model(inputs, training=True) for model in models]
        self.assertAllEqual(*masked)

    def test_a_rate_out_of_range_is_refused(self):
        for rate in (-0.1, 1.0):
            with self.assertRaisesRegex(ValueError, r"`dropout` must be in"):
                layers.Encoder(1, 1, dropout=rate)


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

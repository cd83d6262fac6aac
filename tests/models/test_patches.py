"""Patches of any size, against matrices written out in NumPy float64."""

import numpy as np
import oracles_towers
import tensorflow as tf
import tiny_towers
from keras import ops

from jest_tf.models import towers

WIDTH = 5


def make_images(height=24, width=24, rows=2, seed=0):
    random = np.random.default_rng(seed)
    return np.float32(random.normal(size=(rows, height, width, 3)))


def make_layer(images, patch_size=4, **settings):
    layer = towers.PatchEmbedding(patch_size, WIDTH, seed=0, **settings)
    layer.build(images.shape)
    tiny_towers.randomise(layer)
    return layer


class ResizeMatrixTest(tf.test.TestCase):
    def test_it_resizes_as_tensorflow_does(self):
        for source, target in ((7, 10), (16, 5), (5, 16), (32, 16), (9, 9)):
            for antialias in (False, True):
                with self.subTest(
                    source=source, target=target, smooth=antialias
                ):
                    eye = tf.reshape(tf.eye(source), [source, source, 1, 1])
                    columns = tf.image.resize(
                        eye, [target, 1], antialias=antialias
                    )
                    self.assertAllClose(
                        towers.resize_matrix(
                            source, target, antialias=antialias
                        ),
                        tf.transpose(columns[:, :, 0, 0]),
                        1e-5,
                        1e-5,
                    )


class PatchEmbeddingTest(tf.test.TestCase):
    def test_every_patch_size_equals_its_numpy_twin(self):
        for height, width in ((24, 24), (24, 48)):
            images = make_images(height, width)
            layer = make_layer(images)
            for size in (1, 2, 3, 4, 6, 8, 12, 24):
                with self.subTest(height=height, width=width, size=size):
                    self.assertAllClose(
                        layer(images, patch_size=size),
                        oracles_towers.patches(layer, images, size),
                        1e-5,
                        1e-4,
                    )

    def test_the_built_size_is_bit_for_bit_the_layer_without_views(self):
        images = make_images()
        for dtype in ("float32", "mixed_bfloat16"):
            layer = make_layer(images, dtype=dtype)
            kernel, bias, positions = (
                ops.cast(weight, layer.compute_dtype)
                for weight in layer.weights
            )
            inputs = ops.cast(images, layer.compute_dtype)
            cut = ops.reshape(inputs, [2, 6, 4, 6, 4, 3])
            cut = ops.reshape(ops.transpose(cut, [0, 1, 3, 2, 4, 5]), [-1, 48])
            tokens = ops.matmul(cut, ops.reshape(kernel, [48, WIDTH])) + bias
            expected = ops.reshape(tokens, [2, 36, WIDTH]) + ops.reshape(
                positions, [36, WIDTH]
            )
            self.assertAllEqual(layer(inputs), expected)
            self.assertAllEqual(layer(inputs, patch_size=4), expected)

    def test_under_bfloat16_weights_are_resized_before_they_are_rounded(self):
        # A delta image and no positions: tokens are the kernel's rows.
        images = np.zeros([24, 24, 24, 3], np.float32)
        images[np.arange(24), np.arange(24) // 8, np.arange(24) % 8, 0] = 1.0
        exact = make_layer(images)
        exact.bias.assign(tf.zeros([WIDTH]))
        exact.positions.assign(tf.zeros([6, 6, WIDTH]))
        mixed = make_layer(images, dtype="mixed_bfloat16")
        mixed.set_weights(exact.get_weights())
        tokens = mixed(images, patch_size=8)
        self.assertEqual(tokens.dtype, tf.bfloat16)
        expected = exact(images, patch_size=8)
        self.assertAllEqual(tokens, tf.cast(expected, tf.bfloat16))

    def test_sizes_that_do_not_fit_are_refused(self):
        for value in (0, -1, 1.5, True):
            with self.assertRaisesRegex(ValueError, f"`patch_size` .*{value}"):
                towers.PatchEmbedding(value, 8)
        with self.assertRaisesRegex(ValueError, "`width` must be a pos"):
            towers.PatchEmbedding(4, 0)
        images = make_images()
        with self.assertRaisesRegex(ValueError, "`patch_size` must divide.*=5"):
            towers.PatchEmbedding(5, 8)(images)
        with self.assertRaisesRegex(ValueError, "`patch_size` must divide.*=5"):
            make_layer(images)(images, patch_size=5)

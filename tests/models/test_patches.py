"""Patches of any size, against matrices written out in NumPy float64."""

import itertools

import numpy as np
import oracles_towers
import tensorflow as tf
import tiny_towers

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
        sizes = (7, 10), (16, 5), (5, 16), (32, 16), (9, 9)
        for (source, target), smooth in itertools.product(sizes, (False, True)):
            eye = tf.reshape(tf.eye(source), [source, source, 1, 1])
            columns = tf.image.resize(eye, [target, 1], antialias=smooth)
            expected = tf.transpose(columns[:, :, 0, 0])
            found = towers.resize_matrix(source, target, antialias=smooth)
            with self.subTest(source=source, target=target, smooth=smooth):
                self.assertAllClose(found, expected, 1e-5, 1e-5)


class PatchEmbeddingTest(tf.test.TestCase):
    def test_every_patch_size_equals_its_numpy_twin(self):
        for width in (24, 48):
            images = make_images(24, width)
            layer = make_layer(images)
            for size in (1, 2, 3, 4, 6, 8, 12, 24):
                expected = oracles_towers.patches(layer, images, size)
                with self.subTest(width=width, size=size):
                    found = layer(images, patch_size=size)
                    self.assertAllClose(found, expected, 1e-5, 1e-4)
            self.assertAllEqual(layer(images), layer(images, patch_size=4))

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

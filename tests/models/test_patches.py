"""Patches of any size, against matrices written out in NumPy float64."""

import numpy as np
import oracles_towers
import tensorflow as tf
import tiny_towers

from jest_tf.models import patches

WIDTH = 5


def make_images(height=24, width=24, rows=2, seed=0):
    random = np.random.default_rng(seed)
    return np.float32(random.normal(size=(rows, height, width, 3)))


def make_layer(images, patch_size=4, **settings):
    layer = patches.PatchEmbedding(patch_size, WIDTH, seed=0, **settings)
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
                        patches.resize_matrix(
                            source, target, antialias=antialias
                        ),
                        tf.transpose(columns[:, :, 0, 0]),
                        1e-5,
                        1e-5,
                    )

    def test_resized_images_equal_the_numpy_twin(self):
        images = make_images(12, 8)
        for size in (3, 4, 8, 10, 12):
            expected = [
                oracles_towers.smoothed(np.float64(image), size, size)
                for image in images
            ]
            self.assertAllClose(
                patches.resize_images(images, size), expected, 1e-5, 1e-5
            )
        resized = patches.resize_images(tf.cast(images, tf.bfloat16), 4)
        self.assertEqual(resized.dtype, tf.bfloat16)


class KernelMatrixTest(tf.test.TestCase):
    def test_by_hand(self):
        # B is the matrix from 2 to 4 of above, of full column rank, so that
        # pinv(B^T) = B (B^T B)^-1. B^T B = [[13, 3], [3, 13]] / 8, and its
        # inverse [[13, -3], [-3, 13]] / 20.
        self.assertAllClose(
            patches.kernel_matrix(2, 4),
            np.array([[13, -3], [9, 1], [1, 9], [-3, 13]]) / 20,
            1e-12,
        )

    def test_rows_then_columns_is_the_pseudo_inverse_of_both(self):
        for source, target in ((4, 6), (4, 8), (6, 4), (8, 3), (5, 7), (4, 1)):
            with self.subTest(source=source, target=target):
                one_side = patches.kernel_matrix(source, target)
                both = oracles_towers.nearest_four(source, target)
                self.assertAllClose(
                    np.kron(one_side, one_side), np.linalg.pinv(both.T), 1e-9
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
                tf.cast(one, layer.compute_dtype) for one in layer.weights
            )
            inputs = tf.cast(images, layer.compute_dtype)
            cut = tf.reshape(inputs, [2, 6, 4, 6, 4, 3])
            cut = tf.reshape(tf.transpose(cut, [0, 1, 3, 2, 4, 5]), [-1, 48])
            tokens = tf.matmul(cut, tf.reshape(kernel, [48, WIDTH])) + bias
            expected = tf.reshape(tokens, [2, 36, WIDTH]) + tf.reshape(
                positions, [36, WIDTH]
            )
            self.assertAllEqual(layer(inputs), expected)
            self.assertAllEqual(layer(inputs, patch_size=4), expected)

    def test_gradients_flow_through_resizing(self):
        # With k' = P k P^T for a channel, the gradient for k is P^T g P, g
        # that for k'. Positions likewise, with their own matrix.
        images = make_images()
        layer, coarse = make_layer(images), make_layer(images, 8)
        coarse.kernel.assign(oracles_towers.pi_resized(layer.kernel.numpy(), 8))
        coarse.positions.assign(
            oracles_towers.smoothed(layer.positions.numpy(), 3, 3)
        )
        coarse.bias.assign(layer.bias)
        probe = tf.random.stateless_normal([2, 9, WIDTH], [0, 1])
        gradients = []
        for one in (layer, coarse):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(probe * one(images, patch_size=8))
            gradients.append(tape.gradient(loss, one.trainable_variables))
        (kernel, bias, positions), expected = gradients
        matrix = patches.kernel_matrix(4, 8)
        self.assertAllClose(
            kernel,
            np.einsum("yh,yxcd,xw->hwcd", matrix, expected[0], matrix),
            1e-4,
            1e-4,
        )
        self.assertAllClose(bias, expected[1], 1e-5)
        matrix = patches.resize_matrix(6, 3, antialias=True)
        self.assertAllClose(
            positions,
            np.einsum("yh,yxd,xw->hwd", matrix, expected[2], matrix),
            1e-5,
            1e-5,
        )

    def test_under_bfloat16_weights_are_resized_before_they_are_rounded(self):
        # A delta picture and no positions: tokens are the kernel's rows.
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
                patches.PatchEmbedding(value, 8)
        with self.assertRaisesRegex(ValueError, "`width` must be a pos"):
            patches.PatchEmbedding(4, 0)
        images = make_images()
        with self.assertRaisesRegex(ValueError, "`patch_size` must divide.*=5"):
            patches.PatchEmbedding(5, 8)(images)
        with self.assertRaisesRegex(ValueError, "`patch_size` must divide.*=5"):
            make_layer(images)(images, patch_size=5)

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
    def test_by_hand(self):
        # From 2 to 4 the pixels of the target lie at -1/4, 1/4, 3/4 and 5/4;
        # the outer two see one pixel alone.
        self.assertAllClose(
            patches.resize_matrix(2, 4, antialias=False),
            [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]],
            1e-12,
        )
        # From 4 to 2 they lie at 1/2 and 5/2. A tent of radius 2 counts the
        # distances 1/2, 1/2 and 3/2 as 3/4, 3/4 and 1/4, and one of radius 1
        # the first two alike.
        self.assertAllClose(
            patches.resize_matrix(4, 2, antialias=True),
            np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7,
            1e-12,
        )
        self.assertAllClose(
            patches.resize_matrix(4, 2, antialias=False),
            np.array([[1, 1, 0, 0], [0, 0, 1, 1]]) / 2,
            1e-12,
        )

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

    def test_the_same_size_changes_nothing(self):
        for antialias in (False, True):
            self.assertAllEqual(
                patches.resize_matrix(6, 6, antialias=antialias), np.eye(6)
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

    def test_a_shrunken_kernel_is_the_nearest_over_white_noise(self):
        # E (<x, w> - <B x, w'>)^2 = |w - B^T w'|^2 is least where its
        # gradient, -2 B (w - B^T w'), is zero; here for all unit w at once.
        for source, target in ((8, 4), (32, 16), (16, 12), (9, 2)):
            resize = patches.resize_matrix(source, target, antialias=False)
            rest = np.eye(source) - resize.T @ patches.kernel_matrix(
                source, target
            )
            self.assertAllClose(
                resize @ rest, np.zeros([target, source]), atol=1e-12
            )
            self.assertGreater(np.abs(rest).max(), 0.1)

    def test_matrices_are_cached_and_read_only(self):
        matrix = patches.kernel_matrix(4, 8)
        self.assertIs(patches.kernel_matrix(4, 8), matrix)
        self.assertEqual(matrix.dtype, np.float64)
        with self.assertRaisesRegex(ValueError, "read-only"):
            matrix[0, 0] = 1.0


class KeptPatchesTest(tf.test.TestCase):
    def test_the_requested_number_is_kept_in_order(self):
        for rows, columns, share, count in (
            (4, 4, 0.25, 4),
            (14, 14, 0.5, 98),
            (3, 5, 0.3, 4),  # 4.5, to the even number
            (2, 2, 0.01, 1),
            (3, 3, 1.0, 9),
        ):
            kept = patches.kept_patches(rows, columns, share)
            self.assertLen(kept, count)
            self.assertAllEqual(kept, sorted(set(kept)))
            self.assertBetween(min(kept), 0, rows * columns - 1)
            self.assertBetween(max(kept), 0, rows * columns - 1)

    def test_ranks_by_hand(self):
        # p = 1.32472: 1/p = 0.75488 and 1/p^2 = 0.56984. A grid of 2 by 3 has
        # the ranks 0, 0.570, 0.140 and 0.755, 0.325, 0.895.
        for count, kept in enumerate(
            ([0], [0, 2], [0, 2, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]), 1
        ):
            self.assertAllEqual(patches.kept_patches(2, 3, count / 6), kept)

    def test_they_are_spread_evenly(self):
        # Wherever in the grid a square of 4 x 4 lies, the share within it is
        # the share of the whole up to a few patches; drawn at random, a
        # square would often have none.
        for side in (8, 14, 16):
            for share in (0.25, 0.5, 0.75):
                mask = np.zeros(side * side)
                mask[patches.kept_patches(side, side, share)] = 1
                squares = np.lib.stride_tricks.sliding_window_view(
                    mask.reshape(side, side), (4, 4)
                )
                counts = squares.sum(axis=(2, 3))
                self.assertAllInRange(counts, 16 * share - 3, 16 * share + 3)

    def test_a_smaller_share_is_part_of_a_larger(self):
        shares = [np.float64(part) / 20 for part in range(1, 21)]
        kept = [set(patches.kept_patches(7, 7, share)) for share in shares]
        for smaller, larger in zip(kept, kept[1:], strict=False):
            self.assertTrue(smaller < larger)


class PatchEmbeddingTest(tf.test.TestCase):
    def test_patches_equal_their_numpy_twin(self):
        for size, height, width in ((2, 4, 6), (3, 3, 3), (1, 2, 2)):
            with self.subTest(size=size, height=height, width=width):
                images = np.float32(
                    np.random.default_rng(0).normal(size=(2, height, width, 3))
                )
                layer = patches.PatchEmbedding(size, 5)
                layer.build(images.shape)
                tiny_towers.randomise(layer)
                self.assertAllClose(
                    layer(images), oracles_towers.patches(layer, images), 1e-5
                )

    def test_patches_equal_a_strided_convolution(self):
        images = tf.random.stateless_normal([2, 8, 8, 3], [0, 1])
        layer = patches.PatchEmbedding(4, 5, seed=0)
        layer.build(images.shape)
        layer.positions.assign(tf.zeros([2, 2, 5]))
        convolved = tf.nn.conv2d(images, layer.kernel, 4, "VALID")
        self.assertAllClose(
            layer(images), tf.reshape(convolved, [2, 4, 5]), 1e-5, 1e-5
        )

    def test_a_size_that_does_not_divide_is_refused(self):
        with self.assertRaisesRegex(
            ValueError, r"`patch_size` must divide.*patch_size=3.*\(1, 4, 6, 3"
        ):
            patches.PatchEmbedding(3, 5)(tf.zeros([1, 4, 6, 3]))

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

    def test_patches_that_grow_with_their_picture_give_equal_tokens(self):
        # <B x, pinv(B^T) w> = <x, w> for every x where B grows; every patch
        # is resized by itself and the grid, so the positions, stays.
        images = make_images(8, 8)
        layer = make_layer(images)
        for size in (6, 8, 16):
            resize = oracles_towers.nearest_four(4, size)
            cut = images.reshape(2, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5)
            grown = np.einsum(
                "ts,bijsc->bijtc", resize, cut.reshape(2, 2, 2, 16, 3)
            )
            grown = grown.reshape(2, 2, 2, size, size, 3)
            grown = grown.transpose(0, 1, 3, 2, 4, 5)
            larger = np.float32(grown.reshape(2, 2 * size, 2 * size, 3))
            self.assertAllClose(
                layer(larger, patch_size=size), layer(images), 1e-4, 1e-4
            )

    def test_kept_tokens_equal_those_of_the_full_grid(self):
        images = make_images()
        layer = make_layer(images)
        for size, share in ((4, 0.25), (4, 0.5), (8, 0.3), (24, 0.5)):
            side = 24 // size
            kept = patches.kept_patches(side, side, share)
            found = layer(images, patch_size=size, keep_tokens=share)
            self.assertEqual(found.shape, (2, len(kept), WIDTH))
            self.assertAllClose(
                found,
                tf.gather(layer(images, patch_size=size), kept, axis=1),
                1e-5,
                1e-5,
            )

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
        images = make_images()
        exact = make_layer(images)
        mixed = make_layer(images, dtype="mixed_bfloat16")
        self.assertAllEqual(
            mixed._kernel_at(8), tf.cast(exact._kernel_at(8), tf.bfloat16)
        )
        self.assertAllEqual(
            mixed._positions_at(3, 3),
            tf.cast(exact._positions_at(3, 3), tf.bfloat16),
        )
        tokens = mixed(images, patch_size=8, keep_tokens=0.5)
        self.assertEqual(tokens.dtype, tf.bfloat16)
        expected = exact(images, patch_size=8, keep_tokens=0.5)
        # Eight bits of mantissa, over values of a few units.
        self.assertAllClose(tf.cast(tokens, tf.float32), expected, 0.05, 0.1)

    def test_a_size_that_does_not_divide_a_call_is_refused(self):
        images = make_images()
        with self.assertRaisesRegex(
            ValueError, "`patch_size` must divide.*patch_size=5.*24, 24, 3"
        ):
            make_layer(images)(images, patch_size=5)

    def test_sizes_must_be_positive_integers(self):
        for value in (0, -1, 1.5, True):
            with self.assertRaisesRegex(
                ValueError, f"`patch_size` must be a positive integer.*{value}"
            ):
                patches.PatchEmbedding(value, 8)
        with self.assertRaisesRegex(ValueError, "`width` must be a pos"):
            patches.PatchEmbedding(4, 0)


if __name__ == "__main__":
    tf.test.main()

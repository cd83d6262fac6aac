"""Random crops and flips against a slow implementation."""

import numpy as np
import tensorflow as tf

from jest_tf.data import augmentation


def random_images(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, shape, np.uint8)


def augment_slowly(images, uniform, flip, min_area):
    """`augment` for an image and pixel at a time, in float64."""
    height, width = images.shape[1:3]
    views = np.zeros(images.shape)
    for n, (area, aspect, top, left, mirror) in enumerate(uniform.T):
        area = min_area + (1 - min_area) * area
        # The crop fits if neither side is longer than the image's.
        low, high = max(3 / 4, area), min(4 / 3, 1 / area)
        aspect = low * (high / low) ** aspect
        tall, wide = (area / aspect) ** 0.5, (area * aspect) ** 0.5
        for i in range(height):
            for j in range(width):
                y = (top * (1 - tall) + (i + 0.5) / height * tall) * height
                x = (left * (1 - wide) + (j + 0.5) / width * wide) * width
                y = np.clip(y - 0.5, 0, height - 1)
                x = np.clip(x - 0.5, 0, width - 1)
                above, before = int(y), int(x)
                below = min(above + 1, height - 1)
                after = min(before + 1, width - 1)
                image = images[n].astype(float)
                if flip and mirror < 0.5:
                    image = image[:, ::-1]
                upper, lower = (
                    image[row, before] * (1 - x % 1)
                    + image[row, after] * (x % 1)
                    for row in (above, below)
                )
                views[n, i, j] = upper * (1 - y % 1) + lower * (y % 1)
    return views


class AugmentTest(tf.test.TestCase):
    def augment(self, images, seed=(1, 2), flip=True, min_area=0.3, jit=False):
        function = tf.function(
            augmentation.Augmentation(flip=flip, min_area=min_area),
            jit_compile=jit,
        )
        return function(images, tf.constant(seed, tf.int32)).numpy()

    def uniform(self, count, seed=(1, 2)):
        """The 24 high bits of the same philox integers."""
        bits = tf.random.stateless_uniform(
            [5, count], seed, None, None, tf.uint32, alg="philox"
        )
        return (bits.numpy() >> 8) / 2.0**24

    def test_whole_images_without_flip_are_the_images(self):
        images = random_images(3, 6, 5, 3)
        self.assertAllEqual(
            self.augment(images, flip=False, min_area=1), images
        )

    def test_whole_images_are_flipped_exactly_or_kept(self):
        images = random_images(64, 7, 6, 3)
        views = self.augment(images, min_area=1)
        flipped = self.uniform(64)[4] < 0.5
        self.assertBetween(flipped.mean(), 0.2, 0.8)
        self.assertAllEqual(
            views,
            np.where(flipped[:, None, None, None], images[:, :, ::-1], images),
        )

    def test_crops_equal_a_slow_implementation(self):
        for flip in (False, True):
            for min_area in (0.05, 0.3, 0.9):
                images = random_images(12, 9, 8, 3)
                views = self.augment(images, flip=flip, min_area=min_area)
                expected = augment_slowly(
                    images, self.uniform(12), flip, min_area
                )
                self.assertEqual(views.dtype, np.uint8)
                # Half a level of rounding, and float32 weights.
                self.assertLess(np.abs(views - expected).max(), 0.5 + 0.01)

    def test_eager_graph_and_xla_agree(self):
        images = random_images(32, 8, 8, 3)
        augment = augmentation.Augmentation(flip=True, min_area=0.3)
        eager = augment(tf.constant(images), tf.constant([1, 2])).numpy()
        self.assertAllEqual(self.augment(images), eager)
        # A sum in another order may round to the neighbouring level.
        compiled = self.augment(images, jit=True).astype(int)
        self.assertLessEqual(np.abs(compiled - eager).max(), 1)
        self.assertLess((compiled != eager).mean(), 0.01)

"""The benchmark's towers: shapes, seeds, views, padding, saving."""

import numpy as np
import tensorflow as tf

from jest_tf import config, models


def build(seed=0, name="build"):
    recipe = config.TrainConfig(
        seed=seed,
        data=config.DataConfig(image_size=32, text_length=5),
        model=config.ModelConfig(towers=f"benchmarks.icontext.towers:{name}"),
    )
    return models.build_learner(recipe, 20)


class TowersTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (3, 32, 32, 3), np.uint8)
        self.images = tf.constant(pixels)

    def test_a_view_resizes_the_picture(self):
        model = build()
        view = config.View(image_size=16)
        small = tf.image.resize(
            tf.cast(self.images, tf.float32) / 127.5 - 1.0,
            [16, 16],
            antialias=True,
        )
        self.assertAllClose(
            model.encode_image(self.images, view=view),
            models.unit_norm(model.image_tower(small)),
            atol=1e-5,
        )
        with self.assertRaisesRegex(ValueError, "must have an `image_size`"):
            model.encode_image(self.images, view=config.View(patch_size=4))

    def test_a_small_tower_stretches_the_grid_of_a_small_picture(self):
        tower = build(name="build_small").image_tower
        view = config.View(image_size=16)
        seen = tower.seen(tf.cast(self.images, tf.float32), view)
        self.assertEqual(seen.shape, (3, 16, 16, 3))
        features = seen
        for block in tower.blocks:
            features = block(features)
        self.assertEqual(features.shape, (3, 1, 1, 128))
        expected = tower.head(tower.hidden(tf.tile(features[:, 0, 0], [1, 4])))
        found = tower(tf.cast(self.images, tf.float32), view=view)
        self.assertAllClose(found, expected, atol=1e-5)

    def test_a_bag_ignores_unknown_words_and_the_order_of_tokens(self):
        model = build()
        first, same, other = (
            model.encode_text(tf.constant([tokens]))
            for tokens in ([4, 5, 6, 0, 0], [6, 4, 5, 0, 0], [4, 5, 7, 0, 0])
        )
        self.assertAllClose(first, same, atol=1e-6)
        self.assertNotAllClose(first, other)
        # The mean is of the tokens that are there.
        self.assertAllClose(
            model.encode_text(tf.constant([[4, 5, 4, 5, 0]])),
            model.encode_text(tf.constant([[4, 5, 0, 0, 0]])),
            atol=1e-6,
        )
        # What a text is filled up with, [EOS], is.
        short, long = (
            model.encode_text(tf.constant([tokens]))
            for tokens in ([4, 5, 1, 0, 0], [4, 5, 1, 1, 1])
        )
        self.assertNotAllClose(short, long, atol=1e-3)
        empty = model.encode_text(tf.zeros([1, 5], tf.int32))
        self.assertAllEqual(tf.math.is_finite(empty), tf.ones([1, 128], bool))

"""The benchmark's towers: shapes, seeds, views, padding, saving."""

import numpy as np
import tensorflow as tf

from jest_tf import config, models


def build(name):
    recipe = config.TrainConfig(
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

    def test_a_small_tower_stretches_the_grid_of_a_small_picture(self):
        tower = build("build_small").image_tower
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

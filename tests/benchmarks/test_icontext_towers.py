"""The benchmark's towers: shapes, seeds, views, padding, saving."""

import numpy as np
import tensorflow as tf

from jest_tf import config, models


class TowersTest(tf.test.TestCase):
    def test_a_small_tower_stretches_the_grid_of_a_small_picture(self):
        towers = "benchmarks.icontext.towers:build_small"
        recipe = config.TrainConfig(
            data=config.DataConfig(image_size=32, text_length=5),
            model=config.ModelConfig(towers=towers),
        )
        tower = models.build_learner(recipe, 20).image_tower
        random = np.random.default_rng(0)
        images = np.float32(random.integers(0, 256, (3, 32, 32, 3)))
        view = config.View(image_size=16)
        features = tower.seen(images, view)
        self.assertEqual(features.shape, (3, 16, 16, 3))
        for block in tower.blocks:
            features = block(features)
        self.assertEqual(features.shape, (3, 1, 1, 128))
        expected = tower.head(tower.hidden(tf.tile(features[:, 0, 0], [1, 4])))
        self.assertAllClose(tower(images, view=view), expected, atol=1e-5)

"""The towers against NumPy twins, in every view."""

import itertools

import numpy as np
import oracles_towers
import tensorflow as tf
import tiny_towers

from jest_tf import config
from jest_tf.models import towers


class TowersTest(tf.test.TestCase):
    def test_towers_equal_their_numpy_twins(self):
        batch = tiny_towers.make_batch()
        images = np.float32(batch["image"] / 127.5 - 1)
        image = tiny_towers.image_tower, oracles_towers.image_tower, images
        text = tiny_towers.text_tower, oracles_towers.text_tower, batch["text"]
        for (make, twin, inputs), settings in itertools.product(
            (image, text),
            (
                {},
                {"embedding_dim": 8},  # the width leaves out the head
                {"depth": 1, "num_heads": 4, "mlp_ratio": 3},
            ),
        ):
            tower = make(**settings)
            tower.build(inputs.shape)
            tiny_towers.randomise(tower)
            with self.subTest(tower.name, **settings):
                expected = twin(tower, inputs)
                self.assertAllClose(tower(inputs), expected, 1e-5, 1e-5)
        self.assertIsNone(tiny_towers.image_tower(8).head)

    def test_invalid_settings_are_refused(self):
        for message, settings in (
            ("`patch_size` must .*=3, image", {"patch_size": 3}),
            ("`patch_sizes` .*=3, im", {"patch_sizes": (4, 3)}),
            ("`patch_sizes` .*: 2.0", {"patch_sizes": (2.0,)}),
            ("`embedding_dim` must be a", {"embedding_dim": 1.5}),
        ):
            with self.assertRaisesRegex(ValueError, message):
                tiny_towers.image_tower(**settings)

    def test_towers_that_were_saved_with_dropout_are_refused(self):
        for tower in (tiny_towers.image_tower(), tiny_towers.text_tower()):
            saved = tower.get_config() | {"dropout": 0.0}  # as by 0.3.0
            again = type(tower).from_config(saved)
            self.assertEqual(again.get_config(), tower.get_config())
            with self.assertRaisesRegex(ValueError, "`dropout` .*0.1"):
                type(tower).from_config(saved | {"dropout": 0.1})

    def test_invalid_inputs_are_refused(self):
        image, text = tiny_towers.image_tower, tiny_towers.text_tower
        of_image = r"`images` must be \[B, 4, 4, 3\]"
        for make, shape, dtype, message in (
            (image, [1, 4, 6, 3], "float32", rf"{of_image}.*\(1, 4, 6, 3\)"),
            (image, [4, 4, 3], "float32", rf"{of_image}.*\(4, 4, 3\)"),
            (image, [1, 4, 4, 3], "uint8", "must be floating point.*uint8"),
            (text, [2, 4], "int32", r"`tokens` must be \[B, 5\].*\(2, 4\)"),
            (text, [2, 5], "float32", "`tokens` .*float32"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                make()(tf.zeros(shape, dtype))


class ViewsTest(tf.test.TestCase):
    """Views of a tower for images of 24 pixels and patches of 4."""

    def setUp(self):
        super().setUp()
        random = np.random.default_rng(0)
        self.images = np.float32(random.uniform(-1, 1, (2, 24, 24, 3)))
        self.tower = flexible_tower()
        tiny_towers.randomise(self.tower, scale=0.2)

    def test_every_view_equals_its_numpy_twin(self):
        sizes = (None, 8), (None, 16, 32)
        for patch_size, image_size in itertools.product(*sizes):
            view = config.View(patch_size, image_size)
            with self.subTest(view):
                self.assertAllClose(
                    self.tower(self.images, view=view),
                    oracles_towers.image_tower(
                        self.tower,
                        np.float64(self.images),
                        patch_size=patch_size,
                        image_size=image_size,
                    ),
                    1e-4,
                    1e-4,
                )

    def test_invalid_views_are_refused(self):
        for message, view in (
            (r"`view.patch_size` .*\(4, 2, 8, 12\).*=6", config.View(6)),
            ("`view.image_size` .*8.*=12", config.View(8, image_size=12)),
            ("`view.image_size` .*4.*=10", config.View(image_size=10)),
        ):
            with self.assertRaisesRegex(ValueError, message):
                self.tower.check_view(view)
            with self.assertRaisesRegex(ValueError, message):
                self.tower(self.images, view=view)


def flexible_tower(**settings):
    tower = towers.ImageTower(
        image_size=24,
        embedding_dim=6,
        **{
            "patch_size": 4,
            "patch_sizes": (2, 8, 12),
            "seed": 0,
            **tiny_towers.SIZES,
            **settings,
        },
    )
    tower.build((None, 24, 24, 3))
    return tower

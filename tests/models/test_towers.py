"""The towers against NumPy twins, in every view."""

import itertools

import graphs
import numpy as np
import oracles_towers
import tensorflow as tf
import tiny_towers
from keras import ops

from jest_tf import config, embeddings
from jest_tf.models import towers


class TowersTest(tf.test.TestCase):
    def test_towers_equal_their_numpy_twins(self):
        batch = tiny_towers.make_batch()
        images = np.float32(batch["image"] / 127.5 - 1)
        for embedding_dim in (6, 8):  # 8, the width, leaves out the head.
            for make, inputs, twin in (
                (
                    tiny_towers.image_tower,
                    images,
                    lambda tower, values: oracles_towers.image_tower(
                        tower, np.float64(values)
                    ),
                ),
                (
                    tiny_towers.text_tower,
                    batch["text"],
                    oracles_towers.text_tower,
                ),
            ):
                tower = make(embedding_dim)
                tower.build(inputs.shape)
                tiny_towers.randomise(tower)
                with self.subTest(tower.name, embedding_dim=embedding_dim):
                    self.assertAllClose(
                        tower(inputs), twin(tower, inputs), 1e-5, 1e-5
                    )
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

    def test_invalid_inputs_are_refused(self):
        for message, tower, inputs in (
            (
                r"`images` must be \[B, 4, 4, 3\].*\(1, 4, 6, 3\)",
                tiny_towers.image_tower(),
                tf.zeros([1, 4, 6, 3]),
            ),
            (
                r"`images` must be \[B, 4, 4, 3\].*\(4, 4, 3\)",
                tiny_towers.image_tower(),
                tf.zeros([4, 4, 3]),
            ),
            (
                "`images` must be floating point.*uint8",
                tiny_towers.image_tower(),
                tf.zeros([1, 4, 4, 3], tf.uint8),
            ),
            (
                r"`tokens` must be \[B, 5\].*\(2, 4\)",
                tiny_towers.text_tower(),
                tf.zeros([2, 4], tf.int32),
            ),
            ("`tokens` .*float32", tiny_towers.text_tower(), tf.zeros([2, 5])),
        ):
            with self.assertRaisesRegex(ValueError, message):
                tower(inputs)


class ViewsTest(tf.test.TestCase):
    """Views of a tower for images of 24 pixels and patches of 4."""

    def setUp(self):
        super().setUp()
        random = np.random.default_rng(0)
        self.images = np.float32(random.uniform(-1, 1, (2, 24, 24, 3)))
        self.tower = flexible_tower()
        tiny_towers.randomise(self.tower, scale=0.2)

    def test_every_view_equals_its_numpy_twin(self):
        for patch_size, image_size in itertools.product(
            (None, 8), (None, 16, 32)
        ):
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

    def test_eager_graph_xla_and_loops_agree(self):
        images = np.concatenate([self.images, -self.images])
        tower, view = flexible_tower(depth=1), config.View(8, 16)

        def encode(rows):
            return tower(rows, training=False, view=view)

        def mapped(rows):
            parts = ops.reshape(rows, [2, 2, 24, 24, 3])
            _, (found,) = embeddings.scan(
                lambda state, index: (state, (encode(parts[index]),)),
                *(2, (), (([2, 6], "float32"),)),
            )
            return ops.reshape(found, [4, 6])

        def looped(rows):
            total, _ = embeddings.scan(
                lambda total, _: (total + encode(rows), ()),
                *(2, ops.zeros([4, 6]), ()),
            )
            return total / 2

        eager = encode(images)
        for function, jit_compile in (
            (encode, False),
            (mapped, False),
            (looped, True),
        ):
            graph = graphs.compiled(function, jit_compile)
            self.assertAllClose(graph(images), eager, 1e-4, 1e-4)

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

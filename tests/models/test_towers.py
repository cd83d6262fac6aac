"""The towers against NumPy twins, in every view."""

import functools
import itertools

import numpy as np
import oracles_towers
import tensorflow as tf
import tiny_towers

from jest_tf import config
from jest_tf.models import patches, towers
from jest_tf.training import flops


class TowersTest(tf.test.TestCase):
    def test_an_image_tower_equals_its_numpy_twin(self):
        images = np.float32(tiny_towers.make_batch()["image"] / 127.5 - 1)
        for embedding_dim in (6, 8):  # 8, the width, leaves out the head.
            with self.subTest(embedding_dim=embedding_dim):
                tower = tiny_towers.image_tower(embedding_dim)
                tower.build(images.shape)
                tiny_towers.randomise(tower)
                self.assertAllClose(
                    tower(images),
                    oracles_towers.image_tower(tower, np.float64(images)),
                    1e-5,
                    1e-5,
                )
                self.assertEqual(tower.head is None, embedding_dim == 8)

    def test_a_text_tower_equals_its_numpy_twin(self):
        tokens = tiny_towers.make_batch()["text"]
        for embedding_dim in (6, 8):
            with self.subTest(embedding_dim=embedding_dim):
                tower = tiny_towers.text_tower(embedding_dim)
                tower.build(tokens.shape)
                tiny_towers.randomise(tower)
                self.assertAllClose(
                    tower(tokens),
                    oracles_towers.text_tower(tower, tokens),
                    1e-5,
                    1e-5,
                )

    def test_every_token_reaches_the_last(self):
        tower, tokens = (
            tiny_towers.text_tower(),
            tiny_towers.make_batch(1)["text"],
        )
        for position in range(tiny_towers.LENGTH):
            changed = tokens.copy()
            changed[0, position] = (
                changed[0, position] + 1
            ) % tiny_towers.VOCABULARY_SIZE
            self.assertNotAllClose(tower(changed), tower(tokens))

    def test_both_towers_depend_on_the_order_of_tokens(self):
        batch = tiny_towers.make_batch(1)
        images = np.float32(batch["image"])
        tower = tiny_towers.image_tower()
        self.assertNotAllClose(tower(images[:, ::-1]), tower(images))
        tower, tokens = tiny_towers.text_tower(), np.array([[1, 2, 3, 4, 0]])
        self.assertNotAllClose(tower(tokens[:, [1, 0, 2, 3, 4]]), tower(tokens))

    def test_only_training_drops(self):
        images = np.float32(tiny_towers.make_batch()["image"]) / 255
        without, tower = (
            tiny_towers.image_tower(),
            tiny_towers.image_tower(dropout=0.5),
        )
        self.assertAllEqual(tower(images, training=False), without(images))
        self.assertNotAllClose(tower(images, training=True), without(images))

    def test_invalid_settings_are_refused(self):
        for message, make in (
            (
                "`patch_size` must divide `image_size`.*patch_size=3, image",
                lambda: tiny_towers.image_tower(patch_size=3),
            ),
            (
                "`patch_sizes` must divide `image_size`.*patch_sizes=3, image",
                lambda: tiny_towers.image_tower(patch_sizes=(4, 3)),
            ),
            (
                "`patch_sizes` must be a pos.*Received: 2.0",
                lambda: tiny_towers.image_tower(patch_sizes=(2.0,)),
            ),
            (
                "`width` must be a pos.*Received: 0",
                lambda: tiny_towers.text_tower(width=0),
            ),
            (
                "`dropout` must be in",
                lambda: tiny_towers.image_tower(dropout=1.0),
            ),
            ("`depth` must be a pos", lambda: tiny_towers.image_tower(depth=0)),
            (
                "`num_heads` must be a pos",
                lambda: tiny_towers.text_tower(num_heads=-1),
            ),
            (
                "`embedding_dim` must be a pos",
                lambda: tiny_towers.image_tower(embedding_dim=1.5),
            ),
        ):
            with self.assertRaisesRegex(ValueError, message):
                make()

    def test_invalid_inputs_are_refused(self):
        for message, call in (
            (
                r"`images` must be \[B, 4, 4, 3\].*\(1, 4, 6, 3\)",
                lambda: tiny_towers.image_tower()(tf.zeros([1, 4, 6, 3])),
            ),
            (
                r"`images` must be \[B, 4, 4, 3\].*\(4, 4, 3\)",
                lambda: tiny_towers.image_tower()(tf.zeros([4, 4, 3])),
            ),
            (
                "`images` must be floating point.*uint8",
                lambda: tiny_towers.image_tower()(
                    tf.zeros([1, 4, 4, 3], tf.uint8)
                ),
            ),
            (
                r"`tokens` must be \[B, 5\].*\(2, 4\)",
                lambda: tiny_towers.text_tower()(tf.zeros([2, 4], tf.int32)),
            ),
            (
                "`tokens` must be integers.*float32",
                lambda: tiny_towers.text_tower()(tf.zeros([2, 5])),
            ),
        ):
            with self.assertRaisesRegex(ValueError, message):
                call()


class ViewsTest(tf.test.TestCase):
    """Views of a tower for images of 24 pixels and patches of 4."""

    def setUp(self):
        super().setUp()
        random = np.random.default_rng(0)
        self.images = np.float32(random.uniform(-1, 1, (2, 24, 24, 3)))
        self.tower = flexible_tower()
        tiny_towers.randomise(self.tower, scale=0.2)

    def test_every_view_equals_its_numpy_twin(self):
        for patch_size, share, image_size in itertools.product(
            (None, 8), (1.0, 0.4), (None, 16, 32)
        ):
            view = config.View(patch_size, share, image_size)
            side = (image_size or 24) // (patch_size or 4)
            with self.subTest(view):
                self.assertAllClose(
                    self.tower(self.images, view=view),
                    oracles_towers.image_tower(
                        self.tower,
                        np.float64(self.images),
                        patch_size=patch_size,
                        image_size=image_size,
                        kept=patches.kept_patches(side, side, share),
                    ),
                    1e-4,
                    1e-4,
                )

    def test_the_built_view_is_bit_for_bit_the_tower_without_views(self):
        for dtype in ("float32", "mixed_bfloat16"):
            fixed = flexible_tower(patch_sizes=(), dtype=dtype)
            tower = flexible_tower(dtype=dtype)
            expected = fixed(self.images)
            for view in (
                None,
                config.View(),
                config.View(4),
                config.View(4, 1.0, 24),
            ):
                self.assertAllEqual(tower(self.images, view=view), expected)

    def test_eager_graph_xla_and_loops_agree(self):
        images = np.concatenate([self.images, -self.images])
        tower, view = flexible_tower(depth=1), config.View(8, 0.5, 16)

        def encode(rows):
            return tower(rows, training=False, view=view)

        def mapped(rows):
            parts = tf.reshape(rows, [2, 2, 24, 24, 3])
            embeddings = tf.map_fn(
                encode, parts, fn_output_signature=tf.float32
            )
            return tf.reshape(embeddings, [4, 6])

        def looped(rows):
            _, total = tf.while_loop(
                lambda step, _: step < 2,
                lambda step, total: (step + 1, total + encode(rows)),
                [0, tf.zeros([4, 6])],
            )
            return total / 2

        eager = encode(images)
        for function in (encode, mapped, looped):
            for jit_compile in (False, True):
                graph = tf.function(function, jit_compile=jit_compile)
                self.assertAllClose(graph(images), eager, 1e-4, 1e-4)

    def test_bfloat16_stays_near_in_every_view(self):
        mixed = flexible_tower(dtype="mixed_bfloat16")
        mixed.set_weights(self.tower.get_weights())
        for view in (
            config.View(2),
            config.View(12),
            config.View(keep_tokens=0.5),
            config.View(image_size=12),
        ):
            outputs = mixed(self.images, view=view)
            self.assertEqual(outputs.dtype, tf.bfloat16)
            self.assertAllClose(
                tf.cast(outputs, tf.float32),
                self.tower(self.images, view=view),
                0.05,
                0.05,
            )

    def test_every_weight_gets_a_gradient_in_every_view(self):
        for view in (
            config.View(2),
            config.View(12),
            config.View(keep_tokens=0.5),
            config.View(image_size=12),
        ):
            with tf.GradientTape() as tape:
                outputs = self.tower(self.images, training=True, view=view)
                loss = tf.reduce_sum(tf.square(outputs))
            variables = self.tower.trainable_variables
            for variable, gradient in zip(
                variables, tape.gradient(loss, variables), strict=True
            ):
                with self.subTest(view, path=variable.path):
                    norm = tf.norm(tf.convert_to_tensor(gradient))
                    self.assertTrue(np.isfinite(norm))
                    self.assertGreater(norm, 0)

    def test_a_view_is_traced_once(self):
        traced = []

        @tf.function
        def encode(images, view):
            traced.append(view)
            return self.tower(images, view=view)

        for view in (None, config.View(8), config.View(12)) * 2:
            encode(self.images, view)
            encode(self.images, config.View(8))
        self.assertEqual(traced, [None, config.View(8), config.View(12)])

    def test_invalid_views_are_refused(self):
        for message, view in (
            (
                r"`view.patch_size` must be one.*\(4, 2, 8, 12\).*patch_size=6",
                config.View(6),
            ),
            (
                "`view.image_size` must be a multiple.*8.*image_size=12",
                config.View(8, image_size=12),
            ),
            (
                "`view.image_size` must be a multiple.*4.*image_size=10",
                config.View(image_size=10),
            ),
        ):
            with self.assertRaisesRegex(ValueError, message):
                self.tower.check_view(view)
            with self.assertRaisesRegex(ValueError, message):
                self.tower(self.images, view=view)


class CostTest(tf.test.TestCase):
    def test_a_traced_tower_multiplies_matrices_of_its_token_count(self):
        tower = flexible_tower()
        for view, num_tokens, patch_size, resizing in (
            (config.View(), 36, 4, 0),
            # A matrix for rows and one for columns, of kernel and positions.
            (config.View(8), 9, 8, resizes((4, 8), 24) + resizes((6, 3), 8)),
            (
                config.View(2),
                144,
                2,
                resizes((4, 2), 24) + resizes((6, 12), 8),
            ),
            (config.View(keep_tokens=0.25), 9, 4, 0),
            (
                config.View(image_size=12),
                9,
                4,
                resizes((24, 12), 9) + resizes((6, 3), 8),
            ),
        ):
            with self.subTest(view):
                found, _ = flops.count(
                    functools.partial(tower, training=False, view=view),
                    tf.TensorSpec([3, 24, 24, 3]),
                )
                rows = 3 * tower_products(
                    num_tokens, patch_size, **tiny_towers.SIZES
                )
                once = tiny_towers.SIZES["width"] ** 2  # The pool's probe.
                head = 3 * tiny_towers.SIZES["width"] * 6
                self.assertEqual(found, 2 * (rows + once + head + resizing))

    def test_patches_of_32_pixels_cost_a_quarter_of_those_of_16(self):
        # ViT-B/16 at 256 pixels: 256 tokens against 64. A little less than
        # their ratio, since attention is quadratic in them, and the product
        # of the patches, equal in both, is small.
        sizes = {"width": 768, "depth": 12}
        fine = tower_products(256, 16, **sizes)
        coarse = tower_products(64, 32, **sizes)
        self.assertNear(coarse / fine, 0.245, 0.001)


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


def tower_products(num_tokens, patch_size, width, depth, num_heads=None):
    """Multiplications in the matrix products of one image, without the head."""
    attention = 4 * num_tokens * width**2 + 2 * num_tokens**2 * width
    mlp = 8 * num_tokens * width**2
    pool = 2 * num_tokens * width**2 + 2 * num_tokens * width + 9 * width**2
    embedding = num_tokens * patch_size**2 * 3 * width
    return embedding + depth * (attention + mlp) + pool


def resizes(sizes, depth):
    """Multiplications of resizing a square of `depth` values a pixel."""
    source, target = sizes
    return target * source * depth * (source + target)


if __name__ == "__main__":
    tf.test.main()

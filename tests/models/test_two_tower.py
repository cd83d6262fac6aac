"""TwoTower's promises for any two towers, and the named sizes."""

import dataclasses
import itertools
import os
from unittest import mock

import graphs
import keras
import numpy as np
import oracles_towers
import tensorflow as tf
import tiny_towers
from keras import ops

from jest_tf import config, losses, models
from jest_tf.embeddings import ON_TENSORFLOW, Embeddings
from jest_tf.models import two_tower as two_tower_lib
from jest_tf.training import step as step_lib

# No token ids; JAX has no strings.
NAMES = tf.fill([3], "a") if ON_TENSORFLOW else np.ones([3], np.float32)


def two_tower(dtype="float32", **settings):
    return models.TwoTower(
        tiny_towers.image_tower(dtype=dtype),
        tiny_towers.text_tower(dtype=dtype),
        **settings,
    )


class UnitNormTest(tf.test.TestCase):
    def test_zero_stays_zero_with_a_finite_gradient(self):
        zero = np.zeros([1, 3], np.float32)
        self.assertAllEqual(models.unit_norm(zero), zero)
        _, gradients = graphs.value_and_gradients(
            lambda parts: ops.sum(models.unit_norm(parts.image)), [zero] * 4
        )
        self.assertTrue(np.isfinite(gradients.image).all())

    def test_bfloat16_is_normalised_in_float32(self):
        vectors = tf.cast([[3.0, 4.0]], tf.bfloat16)
        normal = models.unit_norm(vectors)
        self.assertEqual(normal.dtype, tf.float32)
        self.assertAllClose(normal, [[0.6, 0.8]], 1e-6)


class AdaptedTest(tf.test.TestCase):
    def test_positions_follow_the_size_of_the_images(self):
        learner = two_tower()
        learner(tiny_towers.make_batch())
        tiny_towers.randomise(learner.image_tower, 0)
        patch, side = tiny_towers.PATCH_SIZE, tiny_towers.IMAGE_SIZE
        for size in (side + patch, 2 * side):
            data = config.DataConfig(
                image_size=size, text_length=tiny_towers.LENGTH
            )
            start = config.ModelConfig(init_from="it")
            recipe = config.TrainConfig(data=data, model=start)
            other = models.adapted(learner, recipe)
            self.assertEqual(other.input_shapes["image"][1], size)
            changed = 0
            for old, new in zip(
                learner.variables, other.variables, strict=True
            ):
                expected = np.asarray(old)
                if old.shape != new.shape:
                    changed += 1
                    grid = size // patch
                    expected = oracles_towers.smoothed(expected, grid, grid)
                self.assertAllClose(new, expected, 1e-6, 1e-6)
            self.assertEqual(changed, 1)


def one_tower(config, vocabulary_size):
    return keras.layers.Dense(vocabulary_size)


class TwoTowerTest(tf.test.TestCase):
    def test_embeddings_are_the_normalised_outputs_of_the_towers(self):
        model = two_tower(temperature=4.0, bias=-3.0)
        batch = tiny_towers.make_batch()
        model(batch)
        for seed, tower in enumerate((model.image_tower, model.text_tower)):
            tiny_towers.randomise(tower, seed)
        # Other keys are ignored.
        embeddings = model({**batch, "name": NAMES})
        self.assertIsInstance(embeddings, Embeddings)
        images = np.float64(batch["image"]) / 127.5 - 1
        image = oracles_towers.image_tower(model.image_tower, images)
        text = oracles_towers.text_tower(model.text_tower, batch["text"])
        for found, alone, expected in (
            (embeddings.image, model.encode_image(batch["image"]), image),
            (embeddings.text, model.encode_text(batch["text"]), text),
        ):
            self.assertAllEqual(found, alone)
            expected = oracles_towers.unit_norm(expected)
            self.assertAllClose(found, expected, 1e-5, 1e-5)
        self.assertAllClose(embeddings.scale, 4.0)
        self.assertAllClose(embeddings.bias, -3.0)

    def test_uint8_images_are_scaled_and_float_images_are_not(self):
        # The tower returns the first pixel's three channels as they come.
        first = keras.layers.Lambda(lambda images: images[:, 0, 0] + 2.0)
        model = models.TwoTower(first, keras.layers.Identity())
        pixels = tf.constant([[[[0, 255, 127]]]])
        for dtype, channels in (
            (tf.uint8, [1.0, 3.0, 1 + 127 / 127.5]),
            (tf.float32, [2.0, 257.0, 129.0]),
        ):
            found = model.encode_image(tf.cast(pixels, dtype))
            self.assertAllClose(found, [channels / np.linalg.norm(channels)])

    def test_a_bfloat16_policy_leaves_outputs_and_scalars_float32(self):
        model = two_tower("mixed_bfloat16", bias=-10.01)
        batch = tiny_towers.make_batch()
        embeddings = model(batch)
        self.assertEqual(model.image_tower.patches.compute_dtype, "bfloat16")
        for part in embeddings:
            self.assertEqual(part.dtype, tf.float32)
        # bfloat16 would round the bias to -10.
        self.assertAllClose(embeddings.bias, -10.01, 1e-7)
        self.assertAllClose(embeddings.scale, 10.0, 1e-6)
        plain = two_tower(learn_bias=False)
        exact = plain(batch)
        self.assertAllClose(embeddings.image, exact.image, 0.05, 0.05)
        self.assertAllClose(embeddings.text, exact.text, 0.05, 0.05)
        # A policy of the model itself reaches neither scalar.
        mixed = models.TwoTower(
            plain.image_tower,
            plain.text_tower,
            bias=-10.01,
            dtype="mixed_bfloat16",
        )
        self.assertAllClose(mixed(batch).bias, -10.01, 1e-7)
        self.assertEqual(mixed.log_temperature.dtype, "float32")
        # A bias that is not learned is not trainable.
        paths = [variable.path for variable in plain.trainable_variables]
        self.assertNotIn(plain.bias.path, paths)
        self.assertIn(plain.log_temperature.path, paths)

    def test_a_gradient_reaches_every_variable(self):
        model, batch = two_tower(), tiny_towers.make_batch()
        model.build({name: value.shape for name, value in batch.items()})
        gradients = graphs.compiled(
            lambda batch: (
                step_lib.backend.gradients(
                    model,
                    batch,
                    lambda parts: {"loss": losses.sigmoid_loss(parts)},
                ).by_variable
            )
        )(batch)
        # Per tower: the blocks' 12, the last norm's 2, the head's 2; the
        # patches' 3 and the pool's 13, or the tokens' 2; and two scalars.
        self.assertLen(gradients, 2 * (12 + 2 + 2) + 3 + 13 + 2 + 2)
        variables = model.trainable_variables
        for variable, gradient in zip(variables, gradients, strict=True):
            with self.subTest(variable.path):
                self.assertGreater(np.linalg.norm(gradient), 0)

    def test_a_text_tower_of_float_ids_is_refused(self):
        def sequential(*layers):
            return keras.Sequential(
                [
                    *layers,
                    keras.layers.Embedding(1000, 6),
                    keras.layers.GlobalAveragePooling1D(),
                ]
            )

        class Within(keras.Model):
            def __init__(self, *layers):
                super().__init__()
                self.inner = sequential(*layers)

            def call(self, tokens):
                return self.inner(tokens)

        batch = tiny_towers.make_batch()
        batch["text"] = np.arange(900, 909, dtype=np.int32).reshape(3, 3)
        ids = keras.Input([None], dtype="int32")
        before = keras.config.dtype_policy()
        self.addCleanup(keras.config.set_dtype_policy, before)
        for dtype in ("float32", "mixed_bfloat16"):
            keras.config.set_dtype_policy(dtype)
            flatten, dense = keras.layers.Flatten(), keras.layers.Dense(6)
            image = keras.Sequential([flatten, dense])
            for make in (sequential, Within):
                model = models.TwoTower(image, make(ids))
                text = model(batch).text
                self.assertLen(np.unique(np.round(text, 3), axis=0), 3)
                model = models.TwoTower(image, make())
                with self.assertRaisesRegex(
                    ValueError,
                    rf'begin .*keras.Input\(\(length,\), dtype="int32"\)`.*'
                    rf"dtype {dtype.removeprefix('mixed_')};",
                ):
                    model(batch)
        # Nor is a file of such a model loaded, whose error Keras hides.
        path = os.path.join(self.get_temp_dir(), "m.keras")
        with mock.patch.object(two_tower_lib, "_check_takes_ids"):
            model = models.TwoTower(image, sequential())
            model(batch)
            model.save(path)
        with self.assertRaisesRegex(ValueError, "`text_tower` must take"):
            keras.models.load_model(path)

    def test_invalid_arguments_are_refused(self):
        image, text = tiny_towers.image_tower(), tiny_towers.text_tower()
        with self.assertRaisesRegex(TypeError, "`text_tower` must be a Keras"):
            models.TwoTower(image, lambda tokens: tokens)
        for temperature in (0.0, -1.0, float("nan")):
            with self.assertRaisesRegex(ValueError, "`temperature` must be"):
                models.TwoTower(image, text, temperature=temperature)
        with self.assertRaisesRegex(ValueError, r"must both map.*6.*text.*7"):
            models.TwoTower(image, tiny_towers.text_tower(7))(
                tiny_towers.make_batch()
            )

    def test_invalid_batches_are_refused(self):
        batch = tiny_towers.make_batch()
        built = two_tower()
        built(batch)
        for message, change in (
            (r"equally many rows.*\(3, 2\)", {"text": batch["text"][:2]}),
            ("`image` must .*int32", {"image": np.int32(batch["image"])}),
            ("`text` must be token ids.*dtype=[sf]", {"text": NAMES}),
        ):
            with self.assertRaisesRegex(ValueError, message):
                built({**batch, **change})
        for name in ("image", "text"):
            for model in (built, two_tower()):
                message = rf"`batch` must have the keys.*\['{name}'\]"
                with self.assertRaisesRegex(ValueError, message):
                    model({name: batch[name]})


class TowerOfViews(keras.layers.Layer):
    """A user's own: embeds a pixel, or with a view 1, 0, 0."""

    def call(self, images, training=None, view=None):
        pixel = images[:, 0, 0]
        return pixel if view is None else pixel * 0.0 + np.float32([1, 0, 0])

    def check_view(self, view):
        if view.image_size is not None:
            raise ValueError("`view.image_size` is nothing for me")


class ViewsTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        # For images of 4 pixels in patches of 2, and of 4.
        self.model = models.TwoTower(
            tiny_towers.image_tower(patch_sizes=(4,), depth=1),
            tiny_towers.text_tower(depth=1),
        )
        self.batch = tiny_towers.make_batch(rows=4)
        self.coarse = config.View(patch_size=4)

    def test_a_view_or_several_for_parts_of_the_rows_affect_images_alone(self):
        fine, few = config.View(), config.View(image_size=2)
        images, text = self.batch["image"], self.model(self.batch).text
        for views, training in itertools.product(
            (
                self.coarse,
                (fine, self.coarse),
                [self.coarse, fine],
                (fine, self.coarse, self.coarse, few),
            ),
            (None, False, True),
        ):
            found = self.model(self.batch, training=training, view=views)
            each = [views] if isinstance(views, config.View) else views
            parts = np.split(images, len(each))
            expected = [
                self.model.encode_image(part, view=view)
                for part, view in zip(parts, each, strict=True)
            ]
            self.assertAllClose(found.image, tf.concat(expected, 0), 1e-5)
            self.assertAllEqual(found.text, text)

    def test_a_custom_tower_takes_views_if_its_call_does(self):
        model = models.TwoTower(TowerOfViews(), keras.layers.Identity())
        pixels = np.full([2, 1, 1, 3], 255, np.uint8)
        found = model.encode_image(pixels, view=self.coarse)
        self.assertAllClose(found, [[1, 0, 0]] * 2)
        expected = np.full([2, 3], 3**-0.5)
        self.assertAllClose(model.encode_image(pixels), expected)
        with self.assertRaisesRegex(ValueError, "image_size` is nothing for"):
            model.check_view(config.View(image_size=8))

    def test_views_need_a_tower_whose_call_takes_them(self):
        inputs = keras.Input([4, 4, 3])
        for name, tower in (
            ("Sequential", keras.Sequential([keras.layers.Flatten()])),
            ("Functional", keras.Model(inputs, keras.layers.Flatten()(inputs))),
            ("Flatten", keras.layers.Flatten()),
        ):
            model = models.TwoTower(tower, keras.layers.Identity())
            message = (
                r"`view` needs a model whose `call` takes a `view`.*"
                rf"patch_size=4.* for a {name}"
            )
            with self.assertRaisesRegex(ValueError, message):
                model.check_view(self.coarse)
            with self.assertRaisesRegex(ValueError, message):
                model.encode_image(self.batch["image"], view=self.coarse)
            model.check_view(config.View())
            self.assertAllEqual(
                model.encode_image(self.batch["image"], view=config.View()),
                model.encode_image(self.batch["image"]),
            )

    def test_invalid_views_are_refused(self):
        for kind, message, view in (
            (TypeError, "`view` must be a `View`, a tu.*Received: 4", 4),
            (TypeError, r"`view` must be a `View`.*Received: \(\)", ()),
            (TypeError, "`view` must be a `View`", (self.coarse, None)),
            (
                ValueError,
                "must divide the number of rows.*3 views for 4 rows",
                (config.View(), self.coarse, config.View()),
            ),
        ):
            with self.assertRaisesRegex(kind, message):
                self.model(self.batch, view=view)


class SavingTest(tf.test.TestCase):
    def test_a_loaded_model_equals_the_saved_one_in_every_view(self):
        batch = tiny_towers.make_batch()
        for dtype in ("float32", "mixed_bfloat16"):
            model = models.TwoTower(
                tiny_towers.image_tower(dtype=dtype, patch_sizes=(4,)),
                tiny_towers.text_tower(dtype=dtype),
                temperature=3.0,
                learn_bias=False,
            )
            model(batch)
            tiny_towers.randomise(model)
            path = f"{self.get_temp_dir()}/model.keras"
            model.save(path)
            again = keras.saving.load_model(path)
            self.assertEqual(again.text_tower.dtype_policy.name, dtype)
            self.assertFalse(again.bias.trainable)
            self.assertEqual(again.temperature, 3.0)
            for view in (None, config.View(patch_size=4)):
                found, expected = (
                    tower(batch, view=view) for tower in (again, model)
                )
                for part, same in zip(found, expected, strict=True):
                    self.assertAllEqual(part, same)


class BuildTwoTowerTest(tf.test.TestCase):
    def build(self, preset="tiny", **settings):
        defaults = {"image_size": 32, "vocabulary_size": 50, "text_length": 16}
        return models.build_two_tower(preset, **{**defaults, **settings})

    def test_a_seed_fixes_every_weight(self):
        first, again, other = (self.build(seed=seed) for seed in (0, 0, 1))
        kernels = 0
        weights = first.weights, again.weights, other.weights
        for weight, same, new in zip(*weights, strict=True):
            self.assertAllEqual(weight, same)
            if weight.name.endswith(("kernel", "positions", "table", "probe")):
                kernels += 1
                self.assertNotAllClose(weight, new)
            if weight.name.endswith("expand_kernel") and weight.shape[0] == 2:
                self.assertNotAllClose(*weight)  # of two blocks
        # Nor are the towers' weights equal.
        self.assertNotAllClose(
            first.image_tower.encoder.parameters["mlp_expand_kernel"],
            first.text_tower.encoder.parameters["mlp_expand_kernel"],
        )
        # Per tower qkv, out and two of the MLP; kernel and positions; table and
        # positions; probe, three projections and two of the MLP; the text head.
        self.assertEqual(kernels, 8 + 2 + 2 + 6 + 1)

    def test_patch_sizes_make_a_flexible_tower_with_the_same_weights(self):
        fixed, model = self.build(seed=0), self.build(seed=0, patch_sizes=(16,))
        for weight, same in zip(fixed.weights, model.weights, strict=True):
            self.assertAllEqual(weight, same)
        images = tf.zeros([1, 32, 32, 3], tf.uint8)
        view = config.View(patch_size=16)
        self.assertEqual(model.encode_image(images, view=view).shape, (1, 64))

    def recipe(self, towers, seed=5):
        return config.TrainConfig(
            seed=seed,
            data=config.DataConfig(image_size=32, text_length=4),
            model=config.ModelConfig(towers=towers),
        )

    def test_a_recipe_may_name_custom_towers_with_its_seed(self):
        first, same, other = (
            models.build_learner(
                self.recipe("examples.custom_towers:build", seed), 9
            ).get_weights()
            for seed in (1, 1, 2)
        )
        self.assertAllEqual(first[2], same[2])
        self.assertNotAllClose(first[2], other[2])

    def test_custom_towers_compute_in_the_dtype_of_the_settings(self):
        before = keras.config.dtype_policy()

        def build(dtype, towers="examples.custom_towers:build"):
            plain = self.recipe(towers)
            model = dataclasses.replace(plain.model, dtype_policy=dtype)
            plain = dataclasses.replace(plain, model=model)
            return models.build_learner(plain, 9)

        images, texts = tf.zeros([2, 32, 32, 3]), tf.ones([2, 4], "int32")
        for dtype, expected in (
            ("float32", "float32"),
            ("mixed_bfloat16", "bfloat16"),
        ):
            model = build(dtype)
            for layer in (*model.image_tower.layers, *model.text_tower.layers):
                self.assertEqual(layer.compute_dtype, expected)
            embeddings = model({"image": images, "text": texts})
            for value in (*model.weights, *embeddings[:2]):
                self.assertEqual(tf.as_dtype(value.dtype), tf.float32)
            self.assertAllClose(embeddings.scale, 10.0)  # SigLIP, algorithm 1
            self.assertAllClose(embeddings.bias, -10.0)
        with self.assertRaises(ValueError):
            build("mixed_bfloat16", "test_two_tower:one_tower")
        self.assertEqual(keras.config.dtype_policy(), before)

    def test_what_builds_no_two_towers_is_refused(self):
        for towers, message in (
            ("examples.custom_towers:DATA", "must name a function.*Path"),
            ("test_two_tower:one_tower", "must return two Keras layers"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                models.build_learner(self.recipe(towers), 9)

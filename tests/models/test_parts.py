"""Parts of a learner by name: frozen, and factors of the learning rate."""

import graphs
import keras
import numpy as np
import tensorflow as tf
import tiny
from keras import ops

from jest_tf import config, models, training
from jest_tf.models import parts
from jest_tf.training import step as step_lib


def preset(**settings):
    return config.TrainConfig(
        steps=4,
        data=config.DataConfig(image_size=8, text_length=3),
        model=config.ModelConfig(
            preset="tiny", frozen=settings.pop("frozen", ())
        ),
        selection=config.SelectionConfig(12),
        optimizer=config.OptimizerConfig(**settings),
    )


def numbered_learner():
    """Two functional towers with the names of KerasHub's encoders."""

    def tower(role, inputs, *layers):
        first = keras.Input(inputs.shape[1:], dtype=inputs.dtype)
        values = keras.Sequential([first, *layers], name="embedding")(inputs)
        for name in ("encoder_block_0", "encoder_block_1", "head"):
            values = keras.layers.Dense(4, name=name)(values)
        return keras.Model(inputs, values, name=role)

    pixels, tokens = keras.Input([4, 4, 3]), keras.Input([3], dtype="int32")
    flatten, dense = keras.layers.Flatten, keras.layers.Dense(4)
    table = keras.layers.Embedding(12, 4)
    learner = models.TwoTower(
        tower("image_tower", pixels, flatten(), dense),
        tower("text_tower", tokens, table, flatten()),
    )
    learner.build({"image": (None, 4, 4, 3), "text": (None, 3)})
    return learner


def factors_by_name(learner, **settings):
    """The factors of trainable variables, under paths without numbers."""
    factors = parts.rate_factors(learner, config.OptimizerConfig(**settings))
    trained = [variable.path for variable in learner.trainable_variables]
    return list(zip(trained, factors, strict=True))


class FreezeTest(tf.test.TestCase):
    def test_a_tower_is_named_alike_whatever_its_layers(self):
        for learner in (
            models.build_learner(preset(), 12),
            numbered_learner(),
            tiny.learner(),
        ):
            for pattern in ("image_tower", "image_tower/*"):
                learner.trainable = True
                parts.freeze(learner, [pattern])
                self.assertEmpty(learner.image_tower.trainable_variables)
                self.assertLen(
                    learner.text_tower.trainable_variables,
                    len(learner.text_tower.variables),
                )
                self.assertTrue(learner.log_temperature.trainable)

    def test_adapters_are_refused_where_blocks_have_none(self):
        learner = models.build_two_tower(
            "tiny", image_size=32, vocabulary_size=9, text_length=4
        )
        with self.assertRaisesRegex(ValueError, "presets.*image_tower and"):
            parts.add_adapters(learner, 2, 0)

    def test_a_frozen_layer_keeps_its_statistics(self):
        extra = [keras.layers.BatchNormalization()]
        learner = tiny.learner(extra=extra)
        parts.freeze(learner, ["image_tower"])
        before = extra[0].moving_mean.numpy()
        learner(tiny.super_batches()[0], training=True)
        self.assertAllEqual(extra[0].moving_mean, before)

    def test_patterns_that_match_nothing_list_the_names(self):
        with self.assertRaisesRegex(
            ValueError,
            "`model.frozen` must match names .*: log_temperature, bias, "
            r"image_tower/patches/kernel, .*Received: 'image_towr/\*'",
        ):
            models.build_learner(preset(frozen=("image_towr/*",)), 12)
        with self.assertRaisesRegex(ValueError, "something to train"):
            parts.freeze(tiny.learner(), ["*"])

    def test_frozen_parts_cost_no_gradient_and_no_state(self):
        settings = preset(frozen=("image_tower",))
        learner = models.build_learner(settings, 12)
        model = training.build_model(settings, learner)
        model.run_eagerly = True  # a graph takes longer
        batch = tiny.super_batches()[0]
        batch["image"] = np.repeat(np.repeat(batch["image"], 2, 1), 2, 2)
        before = learner.get_weights()
        model.fit(tiny.dataset([batch]), verbose=0)
        moved = {
            weight.path
            for weight, old in zip(learner.weights, before, strict=True)
            if np.any(weight != old)
        }
        trained = {variable.path for variable in learner.trainable_variables}
        self.assertEqual(moved, trained)
        self.assertFalse(any("image_tower" in path for path in moved))
        # Two moments a variable, the iteration.
        self.assertLen(model.optimizer.variables, 2 * len(trained) + 1)
        found = graphs.compiled(
            lambda batch: (
                step_lib.backend.gradients(
                    learner,
                    batch,
                    lambda embeddings: {"loss": ops.sum(embeddings.image)},
                ).by_variable
            )
        )({name: batch[name] for name in ("image", "text")})
        # The loss depends on frozen weights only.
        self.assertLen(found, len(trained))
        self.assertTrue(all(map(graphs.is_none, found)))


class RateFactorsTest(tf.test.TestCase):
    def test_layer_decay_by_hand(self):
        half = {"layer_decay": 0.5}
        stacked = models.build_learner(preset(), 12)
        for path, factor in factors_by_name(stacked, **half):
            if "/encoder/norm" in path or "/encoder/" not in path:
                is_first = "/patches/" in path or "/tokens/" in path
                expected = 0.5**4 if is_first else 1.0
            else:  # blocks 0, 1 and 2 of three
                expected = [0.125, 0.25, 0.5]
            self.assertEqual(factor, expected, path)
        for path, factor in factors_by_name(numbered_learner(), **half):
            parent = path.split("/")[-2]
            expected = {"encoder_block_0": 0.25, "encoder_block_1": 0.5}
            if "embedding" in path:
                expected[parent] = 0.125
            self.assertEqual(factor, expected.get(parent, 1.0), path)

    def test_towers_without_blocks_are_refused(self):
        with self.assertRaisesRegex(ValueError, "numbered transformer blocks"):
            factors_by_name(tiny.learner(), layer_decay=0.5)

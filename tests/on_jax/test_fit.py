"""`fit` on Keras' JAX backend; tests/conftest.py asks for four CPU devices."""

import functools
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from unittest import mock

import fits
import hand_draws
import jax
import keras
import numpy as np
import presets
import random_embeddings
import subprocesses
import tensorflow as tf
import tiny_towers
from keras import tree
from keras.src.backend.jax import nn

import jest_tf
from jest_tf import config, distribution, models, selection, training
from jest_tf.data import augmentation, stores
from jest_tf.embeddings import Embeddings
from jest_tf.training import model as model_lib
from jest_tf.training import optimizer

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples" / "icontext_mini"


def on_devices(count):
    devices = keras.distribution.list_devices("cpu")[:count]
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices)
    )


class BackendTest(tf.test.TestCase):
    """What TensorFlow's process and this one make of the same inputs."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.mkdtemp()
        result, theirs, ours = (
            os.path.join(folder, name)
            for name in ("found.npz", "theirs.keras", "ours.keras")
        )
        fits.save(ours)
        subprocess.run(
            [sys.executable, fits.__file__, result, theirs, ours],
            env=subprocesses.environment(KERAS_BACKEND="tensorflow"),
            check=True,
        )
        cls.expected = dict(np.load(result))
        cls.theirs, cls.ours = theirs, ours

    def test_rounding_seldom_changes_a_draw(self):
        for loss in config.LOSSES:
            ours = np.asarray(fits.many_draws(loss))
            theirs = self.expected[loss]
            sets = (np.sort(ours) == np.sort(theirs)).all(1)
            orders = (ours == theirs).all(1)
            with self.subTest(loss):
                self.assertGreaterEqual(sets.mean(), 0.99)
                self.assertGreaterEqual(orders.mean(), 0.97)

    def test_choices_multiply_at_the_highest_precision(self):
        """TPUs multiply in bfloat16 by default."""
        models = random_embeddings.models(16)
        for loss in config.LOSSES:

            def draw(learner, reference, loss=loss):
                return selection.draw(
                    *(learner, reference, config.Stage(4, num_chunks=2)),
                    size=4,
                    loss=loss,
                    seed=(0, 1),
                )

            traced = str(jax.make_jaxpr(draw)(*models))
            self.assertEqual(
                traced.count("dot_general["),
                traced.count("precision=(Precision.HIGHEST"),
            )
            self.assertIn("dot_general[", traced)

        def loss(learner, reference):
            return jest_tf.sigmoid_loss(learner, reference=reference)

        # Cosines of own pairs and of all pairs; the logits are not.
        traced = str(jax.make_jaxpr(loss)(*models))
        self.assertEqual(traced.count("precision=(Precision.HIGHEST"), 2)
        self.assertEqual(traced.count("dot_general["), 3)

    def test_saved_models_load_on_either_backend(self):
        for path, name in ((self.theirs, "saved"), (self.ours, "loaded")):
            expected = self.expected[name]
            self.assertAllClose(fits.embedded(path), expected, atol=1e-6)

    def test_ten_steps_are_equal(self):
        for name in fits.CASES:
            fits.assert_same(self, self.expected, fits.results(name))


class FitTest(tf.test.TestCase):
    def test_a_resumed_run_has_the_bits_of_an_unbroken_one(self):
        whole = fits.jest()
        fits.trained(whole)
        path = os.path.join(self.get_temp_dir(), "model.keras")
        model = fits.jest()
        fits.trained(model, fits.dataset().take(4))
        model.save(path)
        model = keras.saving.load_model(path)
        model.bind(training.Funnel(model.selection, reference=fits.towers(10)))
        fits.trained(model, fits.dataset().skip(4))
        for ours, other in zip(
            [*whole.get_weights(), *whole.optimizer.variables],
            [*model.get_weights(), *model.optimizer.variables],
            strict=True,
        ):
            self.assertAllEqual(ours, other)

    def test_a_public_preset_is_the_reference(self):
        name = presets.save(f"{self.get_temp_dir()}/preset", "siglip")
        public = jest_tf.load(f"keras_hub:{name}")
        stage = config.Stage(2, num_chunks=2)
        selection = config.SelectionConfig(4, stages=(stage,))
        funnel = training.Funnel(
            selection,
            stores.open_store(f"{EXAMPLES}/pool-*.tfrecord"),
            reference=public,
        )
        data = funnel.super_batches(public.tokenizer, public.image_form).take(1)
        learner = models.build_two_tower(
            "tiny",
            image_size=presets.SIZE,
            vocabulary_size=public.tokenizer.vocabulary_size,
            text_length=presets.LENGTH,
        )
        first = next(iter(data))
        batch = {key: np.asarray(first[key]) for key in ("image", "text")}
        expected = hand_draws.rows(
            *(
                Embeddings(*map(np.asarray, jax.jit(tower)(batch)))
                for tower in (learner, public.learner)
            ),
            stage,
            batch_size=4,
            seed=(0, 0),
            loss="sigmoid",
        )
        model = model_lib.JESTModel(learner, selection=funnel)
        model.compile(optimizer.AdamW(1e-3))
        self.assertAllEqual(fits.trained(model, data).draws[0], expected)

    def test_the_average_of_the_weights_is_exchanged_within_a_fit(self):
        class Exchanging(fits.Record):
            def __init__(self):
                super().__init__()
                self.seen, self.raw = [], []

            def on_train_batch_end(self, batch, logs=None):
                super().on_train_batch_end(batch, logs)
                with self.model.averaged():
                    self.seen.append(fits.weights_of(self.model))
                self.raw.append(fits.weights_of(self.model))

        model, record = fits.jest(ema=0.5), Exchanging()
        model.fit(fits.dataset(), verbose=0, callbacks=[record])
        average = record.raw[0]
        for raw, seen in zip(record.raw, record.seen, strict=True):
            average = 0.5 * average + 0.5 * raw
            self.assertAllClose(seen, average)
        # Training goes by the raw weights; at its end, the average stays.
        expected = fits.results("joint")["joint/losses"][: fits.STEPS]
        self.assertAllClose(record.losses, expected)
        self.assertAllEqual(fits.weights_of(model), record.seen[-1])

    def test_an_error_of_a_step_is_raised_as_it_is(self):
        # The state went into the step, and did not come back to be averaged.
        for error in (ValueError("no"), SystemExit(75)):
            model = fits.jest(ema=0.5)
            with (
                mock.patch.object(
                    model.stepper, "end_execution", side_effect=error
                ),
                self.assertRaises(type(error)) as found,
            ):
                model.fit(fits.dataset(), verbose=0)
            self.assertIs(found.exception, error)

    def test_bfloat16_trains(self):
        model = fits.jest(of_towers={"dtype": "mixed_bfloat16"})
        exact = fits.trained(fits.jest(), fits.dataset().take(1)).losses
        found = fits.trained(model, fits.dataset().take(1)).losses
        self.assertAllClose(found, exact, rtol=0.05)

    def test_attention_of_keras_is_the_same_on_tpus(self):
        # Of an image of 16 x 16 patches; a multiple of 128 fits TPUs' kernel.
        values = np.random.default_rng(0).normal(size=[1, 256, 72])
        layer = keras.layers.MultiHeadAttention(1, 72)
        expected = layer(values, values)
        kernel = nn.splash_attention_kernel
        interpreted = functools.partial(kernel.make_splash_mha, interpret=True)
        tpus = [mock.Mock(platform="tpu")]
        with (
            mock.patch.object(kernel, "make_splash_mha", interpreted),
            mock.patch.object(jax, "devices", return_value=tpus),
        ):
            self.assertAllClose(layer(values, values), expected)

    def test_an_error_of_a_callback_ends_the_fit_as_it_is(self):
        class Failing(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                try:
                    raise KeyError
                except KeyError:
                    _ = None + 1

        model = fits.jest(ema=0.5)
        with self.assertRaisesRegex(TypeError, "unsupported operand"):
            model.fit(fits.dataset(), verbose=0, callbacks=[Failing()])

    def test_scored_embeddings_that_are_not_finite_end_the_fit(self):
        model = fits.jest()
        model.learner.bias.assign(np.nan)
        with self.assertRaisesRegex(ValueError, "stages/0/score"):
            fits.trained(model)

    def test_what_jax_cannot_do_is_refused(self):
        model = model_lib.JESTModel(fits.towers(0))
        inner = keras.optimizers.SGD()
        with self.assertRaisesRegex(ValueError, "mixed_float16.*Received"):
            model.compile(keras.optimizers.LossScaleOptimizer(inner))
        with self.assertRaisesRegex(ValueError, "`x`.*Received: generator"):
            model.evaluate(batch for batch in fits.dataset())
        model.compile(keras.optimizers.SGD(use_ema=True))
        with (
            mock.patch.object(
                model.stepper, "run", side_effect=ValueError("!")
            ),
            self.assertRaisesRegex(ValueError, "!"),
        ):
            model.fit(fits.dataset(), verbose=0)
        strategy = tf.distribute.OneDeviceStrategy("CPU:0")
        with strategy.scope(), self.assertRaisesRegex(ValueError, "Strategy"):
            model_lib.JESTModel(fits.towers(0))


class DevicesTest(tf.test.TestCase):
    """Several devices of `keras.distribution.DataParallel`."""

    def tearDown(self):
        keras.distribution.set_distribution(None)
        super().tearDown()

    def test_two_and_four_devices_give_the_steps_of_one(self):
        options = {
            "stages": (
                config.Stage(2, method="uniform"),
                config.Stage(2, num_chunks=2),
            ),
            "false_negatives": "reference",
            "false_negative_margin": 0.1,
            "augment": augmentation.Augmentation(flip=True, min_area=0.5),
        }
        alone = fits.trained(fits.jest(**options))
        for count in (2, 4):
            on_devices(count)
            model = fits.jest(**options)
            together = fits.trained(model)
            self.assertAllEqual(alone.draws, together.draws)
            self.assertAllEqual(alone.ids, together.ids)
            self.assertAllClose(
                alone.losses, together.losses, rtol=0, atol=1e-5
            )
            self.assertLen(model.rows.scored(1)["number"], fits.ROWS // 2)

    def test_quota_per_replica_draws_as_many_rows_of_every_device(self):
        on_devices(4)
        for rows in fits.trained(fits.jest(quota="per_replica")).draws:
            owners = np.bincount(rows // (fits.ROWS // 4), minlength=4)
            self.assertAllEqual(owners, [fits.SIZE // 4] * 4)

    def test_no_collective_has_the_size_of_the_super_batch(self):
        on_devices(4)
        model = fits.jest()
        fits.trained(model, fits.dataset().take(1))
        found = collectives(model, next(iter(fits.dataset())))
        width, chunk = model.learner.embedding_dim, fits.SIZE // 2
        pixels = 3 * tiny_towers.IMAGE_SIZE**2
        # Images, texts, ids, and ids of captions.
        self.assertLen(found["all-to-all"], 4)
        # All replicas send two rows each to every replica: b rows in all.
        self.assertEqual(max(map(sum, found["all-to-all"])), fits.SIZE * pixels)
        # Keys and rows of a chunk, and the embeddings of the sub-batch.
        sizes = set(sum(found["all-gather"], []))
        self.assertEqual(sizes, {4 * chunk, fits.SIZE * width})
        weights = {math.prod(weight.shape) for weight in model.learner.weights}
        sizes = set(sum(found["all-reduce"], []))
        # Besides gradients, rows of a chunk are summed.
        self.assertEqual(max(sizes - weights), chunk * width)


def collectives(model, batch):
    """Sizes of the results of every collective of a compiled step, by kind."""
    step = model.compiled_step(model.stepper.plan[0])
    groups = ("trainable", "non_trainable", "optimizer", "metrics")
    state = model._get_jax_state(
        **{f"{group}_variables": True for group in groups}
    )
    batch = tree.map_structure(np.asarray, distribution.in_halves(batch))
    lowered = step.lower(state, model.frozen_values(), batch)
    found = {}
    for shapes, kind in re.findall(
        r"= (.*?) (all-[a-z-]+|reduce-scatter|collective-permute)\(",
        lowered.compile().as_text(),
    ):
        sizes = [
            math.prod(map(int, filter(None, shape.split(","))))
            for shape in re.findall(r"\w\[([\d,]*)\]", shapes)
        ]
        found.setdefault(kind, []).append(sizes)
    return found

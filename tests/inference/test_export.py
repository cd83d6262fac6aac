"""Exports are loaded in a process without `jest_tf` and compared in value."""

import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

import keras
import numpy as np
import onnxruntime
import picture_files
import pytest
import sentencepiece_files
import tensorflow as tf
import test_embedder
import tiny
import tiny_towers

import jest_tf
from jest_tf.data import images as images_lib
from jest_tf.data import tokenizers
from jest_tf.inference import export
from jest_tf.models import parts

# What a program has that never heard of `jest_tf`.
ELSEWHERE = """
import sys

sys.modules["jest_tf"] = None
import numpy as np
import onnxruntime
import tensorflow as tf
import tensorflow_text

inputs = dict(np.load("inputs.npz", allow_pickle=True))
images, texts = (tf.constant(list(inputs[n])) for n in ("images", "texts"))
found = {}
for name in ("wordpiece", "sentencepiece"):
    loaded = tf.saved_model.load(name)
    embed_images = loaded.signatures["embed_images"]
    found[f"{name}/images"] = embed_images(images=images)["embeddings"]
    pixels = loaded.embed_pixels(inputs["pixels"])
    found[f"{name}/pixels"] = pixels["embeddings"]
    found[f"{name}/texts"] = loaded.embed_texts(texts)["embeddings"]
    found[f"{name}/scalars"] = [loaded.scale.numpy(), loaded.bias.numpy()]
for tower, value in (("image", "pixels"), ("text", "tokens")):
    session = onnxruntime.InferenceSession(f"onnx/{tower}_tower.onnx")
    (found[f"onnx/{value}"],) = session.run(
        ["embeddings"], {value: inputs[value]}
    )
    about = session.get_modelmeta().custom_metadata_map
    found["onnx/scalars"] = [float(about["scale"]), float(about["bias"])]
np.savez("outputs.npz", **found)
"""


@pytest.mark.slow
class ElsewhereTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.folder = pathlib.Path(folder)
        cls.model = test_embedder.embedder()
        learner = cls.model.learner
        pieces = tokenizers.SentencePieceTokenizer(
            sentencepiece_files.model(), tiny_towers.LENGTH
        )
        cls.pieces = jest_tf.Embedder(learner, pieces)
        every = picture_files.every_kind()
        webp = "lossless webp" if images_lib.READS_WEBP else "png"
        cls.images = [every[name] for name in ("jpeg", "rgba", webp)]
        cls.texts = ["a red cat", "Dogs!", ""]
        batch = tiny_towers.make_batch()
        cls.pixels, cls.tokens = batch["image"], batch["text"]
        inputs = {
            "images": np.array(cls.images, object),
            "texts": np.array([text.encode() for text in cls.texts], object),
            "pixels": cls.pixels,
            "tokens": cls.tokens,
        }
        np.savez(cls.folder / "inputs.npz", **inputs)
        export.saved_model(cls.model, str(cls.folder / "wordpiece"))
        export.saved_model(cls.pieces, str(cls.folder / "sentencepiece"))
        export.onnx(cls.model, str(cls.folder / "onnx"))
        # Without paths of ours.
        subprocess.run(
            [sys.executable, "-I", "-c", ELSEWHERE], cwd=folder, check=True
        )
        cls.found = np.load(cls.folder / "outputs.npz")

    def test_a_saved_model_embeds_images_pixels_and_strings(self):
        images = self.model.embed_images(self.images)
        pixels = self.model.learner.encode_image(self.pixels)
        for name, texts in (
            ("wordpiece", self.model.embed_texts(self.texts)),
            ("sentencepiece", self.pieces.embed_texts(self.texts)),
        ):
            for kind, expected in (
                ("images", images),
                ("texts", texts),
                ("pixels", pixels),
                ("scalars", [4.0, -2.0]),
            ):
                found = self.found[f"{name}/{kind}"]
                self.assertAllClose(found, expected, 1e-6, 1e-6)

    def test_onnx_towers_embed_pixels_and_tokens(self):
        learner = self.model.learner
        for name, expected in (
            ("pixels", learner.encode_image(self.pixels)),
            ("tokens", learner.encode_text(self.tokens)),
            ("scalars", [4.0, -2.0]),
        ):
            found = self.found[f"onnx/{name}"]
            self.assertAllClose(found, expected, 1e-5, 1e-6)
        beside = (self.folder / "onnx" / "vocab.txt").read_text()
        self.assertEqual(beside.split(), test_embedder.WORDS)


class OnnxTest(tf.test.TestCase):
    def test_towers_of_any_policy_and_exact_gelus_compute_in_float32(self):
        path = f"{self.enterContext(tempfile.TemporaryDirectory())}/onnx"
        # The exact gelu is an op that ONNX lacks.
        mixed, exact = (
            tiny.learner(dtype=dtype, extra=[keras.layers.Activation("gelu")])
            for dtype in ("mixed_bfloat16", "float32")
        )
        for learner in (mixed, exact):
            parts.add_adapters(learner, 2, seed=0)
        generator = np.random.default_rng(0)
        mixed.set_weights(
            [
                value + generator.normal(size=value.shape, scale=0.1)
                for value in mixed.get_weights()
            ]
        )
        exact.set_weights(mixed.get_weights())
        export.onnx(jest_tf.Embedder(mixed), path)
        (batch,) = tiny.super_batches(rows=3)
        for tower, value, expected in (
            ("image", {"pixels": batch["image"]}, exact(batch).image),
            ("text", {"tokens": batch["text"]}, exact(batch).text),
        ):
            session = onnxruntime.InferenceSession(f"{path}/{tower}_tower.onnx")
            (found,) = session.run(["embeddings"], value)
            self.assertAllClose(found, expected, 1e-5, 1e-6)
        self.assertNotAllClose(
            mixed(batch).image, exact(batch).image, 1e-5, 1e-6
        )


@pytest.mark.slow
class PresetsTest(tf.test.TestCase):
    def test_public_models_are_exported(self):
        import presets

        every = picture_files.every_kind()
        images = [every["jpeg"], every["rgba"]]
        for family in ("siglip", "siglip2", "clip"):
            folder = self.enterContext(tempfile.TemporaryDirectory())
            path = presets.save(f"{folder}/preset", family)
            with self.subTest(family):
                model = jest_tf.load(f"keras_hub:{path}")
                self.check(model, folder, images, family != "clip")

    def check(self, model, folder, images, has_strings):
        """Compares the exports; CLIP's tokenizer runs in Python."""
        texts = ["A photo of a red dog, running!", ""]
        embedded = model.embed_images(images), model.embed_texts(texts)
        tokens = model.tokenizer(tf.constant(texts)).numpy()
        functions = export.saved_model(model, f"{folder}/saved")
        self.assertEqual("embed_texts" in functions, has_strings)
        loaded = tf.saved_model.load(f"{folder}/saved")
        for name, values, expected in (
            ("embed_images", images, embedded[0]),
            ("embed_texts", texts, embedded[1]),
            ("embed_tokens", tokens, embedded[1]),
        ):
            if name in functions:
                found = getattr(loaded, name)(tf.constant(values))["embeddings"]
                self.assertAllClose(found, expected, 1e-6, 1e-6)

        with self.assertNoLogs("tensorflow", "WARNING"):
            export.onnx(model, f"{folder}/onnx")
        session = onnxruntime.InferenceSession(f"{folder}/onnx/text_tower.onnx")
        (found,) = session.run(None, {"tokens": tokens})
        self.assertAllClose(found, embedded[1], 1e-5, 1e-6)


class ErrorsTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.path = os.path.join(self.folder, "x")
        self.model = jest_tf.Embedder(tiny.learner())

    def test_what_cannot_be_exported_leaves_nothing(self):
        for write in (export.saved_model, export.onnx):
            with self.assertRaisesRegex(ValueError, "must not exist yet"):
                write(self.model, self.folder)
        model = jest_tf.Embedder(
            tiny.learner(), lambda texts: tf.strings.length(texts)
        )
        with self.assertRaises(ValueError):  # of rank 1, no tokens
            export.saved_model(model, self.path)
        self.assertEmpty(os.listdir(self.folder))

    def test_other_formats_of_images_are_refused_by_the_graph(self):
        export.saved_model(self.model, self.path)
        loaded = tf.saved_model.load(self.path)
        self.assertFalse(hasattr(loaded, "embed_texts"))
        every = picture_files.every_kind()
        for name in ("gif", "bmp", "webp alpha", "animated webp"):
            with self.assertRaisesRegex(
                tf.errors.InvalidArgumentError, "must be JPEG, PNG"
            ):
                loaded.embed_images(tf.constant([every["png"], every[name]]))


class KerasExportTest(tf.test.TestCase):
    def test_export_to_onnx_and_saved_model_after_loading(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        path = os.path.join(folder, "x.keras")
        tiny.learner().save(path)
        learner = keras.models.load_model(path)
        (batch,) = tiny.super_batches(rows=3)
        batch = {name: batch[name] for name in ("image", "text")}
        with warnings.catch_warnings():
            # Keras looks for an alias that NumPy 2 has brought back.
            warnings.simplefilter("ignore", FutureWarning)
            learner.export(f"{folder}/x.onnx", format="onnx", verbose=False)
        session = onnxruntime.InferenceSession(f"{folder}/x.onnx")
        for ours, expected in zip(
            session.run(None, batch), learner(batch), strict=True
        ):
            self.assertAllClose(ours, expected, 1e-5, 1e-6)
        tf.saved_model.save(learner, f"{folder}/x")
        loaded = tf.saved_model.load(f"{folder}/x")
        tensors = {name: tf.constant(value) for name, value in batch.items()}
        found = loaded.signatures["serving_default"](**tensors)
        for name, value in learner(batch)._asdict().items():
            self.assertAllClose(found[name], value, 1e-6, 1e-6)

    def test_export_asks_for_a_built_model(self):
        tower = tiny.learner().image_tower
        with self.assertRaisesRegex(ValueError, "must be built first"):
            jest_tf.TwoTower(tower, tower).export("x")

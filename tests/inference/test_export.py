"""Exports are loaded in a process without `jest_tf` and compared in value."""

import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

import keras
import numpy as np
import oracles_towers
import picture_files
import pytest
import safetensors.numpy
import sentencepiece_files
import tensorflow as tf
import test_embedder
import tiny
import tiny_towers

import jest_tf
from jest_tf.data import tokenizers
from jest_tf.inference import export

# What a program has that never heard of `jest_tf`.
ELSEWHERE = """
import sys

sys.modules["jest_tf"] = None
import numpy as np
import onnxruntime
import safetensors.numpy
import tensorflow as tf
import tensorflow_text

inputs = dict(np.load("inputs.npz", allow_pickle=True))
images, texts = (tf.constant(list(inputs[one])) for one in ("images", "texts"))
found = {}
for name in ("float32", "float16", "sentencepiece"):
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
loaded = tf.saved_model.load("served")
served = loaded.serve({"image": inputs["pixels"], "text": inputs["tokens"]})
for name in ("image", "text", "scale", "bias"):
    found[f"served/{name}"] = getattr(served, name)
np.savez("outputs.npz", **found)
"""


@pytest.mark.slow
class ElsewhereTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.model = test_embedder.embedder()
        learner = cls.model.learner
        pieces = tokenizers.SentencePieceTokenizer(
            sentencepiece_files.model(), tiny_towers.LENGTH
        )
        cls.pieces = jest_tf.Embedder(learner, pieces)
        every = picture_files.every_kind()
        cls.images = [every[name] for name in ("jpeg", "rgba", "lossless webp")]
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
        for dtype in export.DTYPES:
            path = str(cls.folder / dtype)
            export.saved_model(cls.model, path, dtype=dtype)
        export.saved_model(cls.pieces, str(cls.folder / "sentencepiece"))
        export.onnx(cls.model, str(cls.folder / "onnx"))
        learner.export(str(cls.folder / "served"), verbose=False)
        # Now, because a test begins with a new seed, which ends SentencePiece.
        cls.pieces_texts = cls.pieces.embed_texts(cls.texts)
        done = subprocess.run(
            [sys.executable, "-I", "-c", ELSEWHERE],
            cwd=cls.folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise AssertionError(done.stderr[-1500:])
        cls.found = np.load(cls.folder / "outputs.npz")

    def test_a_saved_model_embeds_pictures_pixels_and_strings(self):
        images = self.model.embed_images(self.images)
        pixels = self.model.learner.encode_image(self.pixels)
        for name, texts in (
            ("float32", self.model.embed_texts(self.texts)),
            ("sentencepiece", self.pieces_texts),
        ):
            for kind, expected in (
                ("images", images),
                ("texts", texts),
                ("pixels", pixels),
                ("scalars", [4.0, -2.0]),
            ):
                self.assertAllClose(
                    self.found[f"{name}/{kind}"], expected, 1e-6, 1e-6
                )

    def test_float16_halves_the_weights_and_rounds_the_embeddings(self):
        for kind in ("images", "texts", "pixels"):
            ours, exact = (
                self.found[f"{dtype}/{kind}"] for dtype in export.DTYPES[::-1]
            )
            self.assertAllClose(ours, exact, 5e-3, 5e-3)
            self.assertNotAllEqual(ours, exact)
        size16, size32 = (
            os.path.getsize(
                self.folder / dtype / "variables/variables.data-00000-of-00001"
            )
            for dtype in ("float16", "float32")
        )
        weights = sum(one.numpy().nbytes for one in self.model.learner.weights)
        self.assertGreater(size32 - size16, 0.45 * weights)

    def test_onnx_towers_embed_pixels_and_tokens(self):
        learner = self.model.learner
        for name, expected in (
            ("pixels", learner.encode_image(self.pixels)),
            ("tokens", learner.encode_text(self.tokens)),
            ("scalars", [4.0, -2.0]),
        ):
            self.assertAllClose(
                self.found[f"onnx/{name}"], expected, 1e-5, 1e-6
            )
        beside = (self.folder / "onnx" / "vocab.txt").read_text()
        self.assertEqual(beside.split(), test_embedder.WORDS)

    def test_kerass_own_export_serves_the_model(self):
        expected = self.model.learner(
            {"image": self.pixels, "text": self.tokens}
        )
        for name, value in expected._asdict().items():
            self.assertAllClose(self.found[f"served/{name}"], value, 1e-6, 1e-6)


class WeightsTest(tf.test.TestCase):
    def test_numpy_alone_repeats_the_embeddings(self):
        model = test_embedder.embedder()
        folder = self.enterContext(tempfile.TemporaryDirectory())
        path = os.path.join(folder, "learner.safetensors")
        export.weights(model, path)
        arrays = safetensors.numpy.load_file(path)
        self.assertLen(arrays, len(model.learner.weights))
        self.assertIn("image_tower/encoder/attention_qkv_kernel", arrays)
        # The oracle takes a tower's weights for NumPy arrays.
        other = test_embedder.learner(seed=3)
        for variable in other.weights:
            _, _, name = variable.path.partition("/")
            variable.assign(arrays[name])
        batch = tiny_towers.make_batch()
        images = np.float64(batch["image"]) / 127.5 - 1
        expected = oracles_towers.unit_norm(
            oracles_towers.image_tower(other.image_tower, images)
        )
        self.assertAllClose(
            model.learner.encode_image(batch["image"]), expected, 1e-5, 1e-5
        )
        with safetensors.safe_open(path, "numpy") as file:
            about = file.metadata()
        self.assertEqual(float(about["scale"]), model.scale)
        self.assertEqual(float(about["bias"]), -2.0)
        self.assertEqual(about["image_size"], "4")


class SavedModelTest(tf.test.TestCase):
    def test_pictures_and_strings_embed_as_before(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        words = tokenizers.WordPieceTokenizer(tiny.VOCABULARY, tiny.TEXT_LENGTH)
        model = jest_tf.Embedder(tiny.learner(), words)
        export.saved_model(model, os.path.join(folder, "deep/x"))
        loaded = tf.saved_model.load(os.path.join(folder, "deep/x"))
        images = [picture_files.every_kind()["cmyk"]]
        for kind, values, expected in (
            ("images", images, model.embed_images(images)),
            ("texts", ["a b", "C"], model.embed_texts(["a b", "C"])),
        ):
            embed = loaded.signatures[f"embed_{kind}"]
            found = embed(**{kind: tf.constant(values)})["embeddings"]
            self.assertAllClose(found, expected, 1e-6, 1e-6)
        none = loaded.embed_images(tf.zeros([0], tf.string))["embeddings"]
        self.assertEqual(none.shape, (0, 6))


class ErrorsTest(tf.test.TestCase):
    def test_what_exists_is_kept(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        model = jest_tf.Embedder(tiny.learner())
        for write in (export.saved_model, export.onnx, export.weights):
            with self.assertRaisesRegex(ValueError, "must not exist yet"):
                write(model, folder)

    def test_a_failed_export_leaves_nothing(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        model = jest_tf.Embedder(
            tiny.learner(), lambda texts: tf.strings.length(texts)
        )
        with self.assertRaises(ValueError):  # of rank 1, no tokens
            export.saved_model(model, os.path.join(folder, "x"))
        self.assertEmpty(os.listdir(folder))

    def test_unknown_and_unsupported_dtypes(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        path = os.path.join(folder, "x")
        model = jest_tf.Embedder(tiny.learner(dtype="mixed_bfloat16"))
        with self.assertRaisesRegex(ValueError, "in float32.*with bfloat16"):
            export.onnx(model, path)
        with self.assertRaisesRegex(ValueError, "`dtype` must be one of"):
            export.saved_model(model, path, dtype="int8")
        self.assertEmpty(os.listdir(folder))

    def test_other_formats_of_pictures_are_refused_by_the_graph(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        path = os.path.join(folder, "x")
        export.saved_model(jest_tf.Embedder(tiny.learner()), path)
        loaded = tf.saved_model.load(path)
        self.assertFalse(hasattr(loaded, "embed_texts"))
        every = picture_files.every_kind()
        for name in ("gif", "bmp", "webp alpha", "animated webp"):
            with self.assertRaisesRegex(
                tf.errors.InvalidArgumentError, "must be JPEG, PNG"
            ):
                loaded.embed_images(tf.constant([every["png"], every[name]]))


class KerasExportTest(tf.test.TestCase):
    def test_export_to_onnx_and_saved_model_after_loading(self):
        import onnxruntime

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
        found = loaded.signatures["serving_default"](
            **{name: tf.constant(value) for name, value in batch.items()}
        )
        for name, value in learner(batch)._asdict().items():
            self.assertAllClose(found[name], value, 1e-6, 1e-6)

    def test_export_asks_for_a_built_model(self):
        tower = tiny.learner().image_tower
        with self.assertRaisesRegex(ValueError, "must be built first"):
            jest_tf.TwoTower(tower, tower).export("x")


if __name__ == "__main__":
    tf.test.main()

"""Embedding with a trained learner."""

import functools
import io
import os
import pathlib
import tempfile

import keras
import numpy as np
import picture_files
import shard_files
import tensorflow as tf
import tiny_towers
from PIL import Image

import jest_tf
from jest_tf import evaluation, models
from jest_tf.data import images as images_lib
from jest_tf.data import stores, tokenizers
from jest_tf.inference import embedder as embedder_lib

WORDS = ["[UNK]", "[EOS]", "a", "cat", "dog", "red", "##s"]


@functools.cache
def learner():
    """A built learner of images of 4 pixels and texts of 5 tokens."""
    model = models.TwoTower(
        tiny_towers.image_tower(name="image_tower"),
        tiny_towers.text_tower(name="text_tower"),
        temperature=4.0,
        bias=-2.0,
    )
    model(tiny_towers.make_batch())
    for number, tower in enumerate((model.image_tower, model.text_tower)):
        tiny_towers.randomise(tower, number)
    return model


def tokenizer():
    return tokenizers.WordPieceTokenizer(WORDS, tiny_towers.LENGTH)


def embedder(**options):
    return jest_tf.Embedder(learner(), tokenizer(), **options)


class EmbedImagesTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model = embedder()

    def test_embeddings_are_the_learners_of_decoded_resized_images(self):
        for name, encoded in picture_files.every_kind().items():
            pixels = images_lib.decode(encoded)
            square = images_lib.resize_image(tf.constant(pixels), 4)
            expected = self.model.learner.encode_image(square[tf.newaxis])
            found = self.model.embed_images([encoded])
            self.assertAllClose(found, expected, msg=name)

    def test_an_image_is_the_same_as_a_file_bytes_pixels_or_pillows(self):
        encoded = picture_files.every_kind()["rgba"]
        image = Image.open(io.BytesIO(encoded))
        path = pathlib.Path(self.get_temp_dir(), "x.png")
        path.write_bytes(encoded)
        rgba = np.asarray(image)
        found = self.model.embed_images(
            [path, str(path), encoded, image, rgba, rgba[..., :3]]
        )
        for row in found[1:]:
            self.assertAllClose(row, found[0], 1e-6, 1e-6)

    def test_a_pillow_image_is_turned_as_its_file_is(self):
        exif, encoded = Image.Exif(), io.BytesIO()
        exif[0x0112] = 6
        pixels = picture_files.smooth_picture()
        Image.fromarray(pixels).save(encoded, "PNG", exif=exif)
        image = Image.open(encoded)
        turned, same, pixels = self.model.embed_images(
            [encoded.getvalue(), image, pixels]
        )
        self.assertAllClose(same, turned, 1e-6, 1e-6)
        self.assertNotAllClose(pixels, turned, 1e-3, 1e-3)

    def test_a_pillow_image_with_damaged_exif_is_not_turned(self):
        pixels, encoded = picture_files.smooth_picture(), io.BytesIO()
        Image.fromarray(pixels).save(encoded, "PNG", exif=b"no TIFF file")
        image = Image.open(encoded)
        with self.assertRaises(SyntaxError):
            image.getexif()
        same, expected = self.model.embed_images([image, pixels])
        self.assertAllClose(same, expected, 1e-6, 1e-6)

    def test_order_is_kept_over_batches(self):
        images = [picture_files.smooth_picture(seed) for seed in range(11)]
        whole = self.model.embed_images(images)
        parts = jest_tf.Embedder(self.model.learner, batch_size=2)
        self.assertAllClose(parts.embed_images(images), whole, 1e-6, 1e-6)
        self.assertAllClose(np.linalg.norm(whole, axis=1), np.ones(11))
        self.assertEqual(self.model.embed_images([]).shape, (0, 6))
        self.assertEqual(self.model.embed_texts([]).shape, (0, 6))

    def test_evaluations_embed_to_the_same_bits(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        shard_files.write_shipped(folder, val=100)
        store = stores.open_store(f"{folder}/val-*.tfrecord")
        size = 64
        encoder = evaluation.Encoder(
            self.model.learner, self.model.tokenizer, 4, size
        )
        evaluated = evaluation.StoreEvaluation(store).embed(encoder)
        records = store.read(np.arange(size))
        images = self.model.embed_images([record.image for record in records])
        self.assertAllEqual(images, evaluated.images[:size])

    def test_errors_name_the_image(self):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        good = picture_files.every_kind()["png"]
        (folder / "cut.png").write_bytes(good[:20])
        (folder / "text.jpg").write_text("no image")
        for bad, message in (
            (str(folder / "cut.png"), r"images\[1\], '.*cut.png': truncated"),
            (folder / "text.jpg", r"text.jpg': unknown image format"),
            (folder / "none.jpg", r"none.jpg': No such file"),
            (folder, r"Is a directory"),
            (good[:-30], rf"images\[1\], {len(good) - 30} bytes: damaged"),
            (np.zeros([4, 4, 3]), "a ndarray: pixels must be uint8 .* float64"),
            (np.zeros([4, 3, 2], np.uint8), r"be \[H, W, 3\], .*4, 3, 2"),
            (np.zeros([0, 3, 3], np.uint8), r"not \[0, 3, 3\]"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                self.model.embed_images([good, bad])
        for single in ("x.png", folder, good):
            with self.assertRaisesRegex(ValueError, "`images` must be a list"):
                self.model.embed_images(single)


class EmbedTextsTest(tf.test.TestCase):
    def test_embeddings_are_the_learners_of_tokens(self):
        model = embedder(batch_size=2)
        texts = ["a cat", "Red DOGS", "", "\u732b x"]
        tokens = model.tokenizer(tf.constant(texts))
        expected = model.learner.encode_text(tokens)
        self.assertAllClose(model.embed_texts(texts), expected)

    def test_without_a_tokenizer(self):
        model = jest_tf.Embedder(learner())
        with self.assertRaisesRegex(ValueError, "needs a tokenizer"):
            model.embed_texts(["a"])
        with self.assertRaisesRegex(ValueError, "`texts` must be a list"):
            embedder().embed_texts("a cat")


class LoadTest(tf.test.TestCase):
    def test_a_keras_file_takes_the_vocabulary_beside_it(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        model = embedder()
        path = os.path.join(folder, "learner.keras")
        model.learner.save(path)
        image = [picture_files.smooth_picture()]
        alone = jest_tf.load(path)
        found, expected = alone.embed_images(image), model.embed_images(image)
        self.assertAllEqual(found, expected)
        self.assertIsNone(alone.tokenizer)
        self.assertIsNone(alone.config)
        model.tokenizer.save(folder)
        texts = ["a cat"]
        whole = jest_tf.load(pathlib.Path(path))
        self.assertAllEqual(whole.embed_texts(texts), model.embed_texts(texts))
        self.assertEqual(
            (whole.scale, whole.bias, whole.dim, whole.image_form.shape),
            (model.scale, -2.0, 6, (4, 4, 3)),
        )

    def test_a_jest_model_gives_its_learner(self):
        path = f"{self.get_temp_dir()}/model.keras"
        model = embedder()
        jest_tf.JESTModel(model.learner).save(path)
        image = [picture_files.smooth_picture()]
        found = jest_tf.load(path).embed_images(image)
        self.assertAllEqual(found, model.embed_images(image))

    def test_refuses_what_is_no_model(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        other = os.path.join(folder, "other.keras")
        keras.Sequential([keras.Input([3]), keras.layers.Dense(2)]).save(other)
        for source, message in (
            (folder, "finished run"),
            ("/nowhere", "finished run.*Received: '/nowhere'"),
            ("none.keras", "none.keras"),
            (other, "must hold a `TwoTower` or a `JESTModel`. .*Sequential"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                embedder_lib.load(source)
        with self.assertRaisesRegex(ValueError, "`step` selects .*step=3"):
            embedder_lib.load(other, step=3)

    def test_refuses_learners_of_other_inputs(self):
        image, text = keras.layers.Dense(3), keras.layers.Embedding(3, 3)
        model = models.TwoTower(image, text)
        with self.assertRaisesRegex(ValueError, "must be built first"):
            jest_tf.Embedder(model)

"""Pretrained models by name, beside KerasHub's own preprocessor and backbone.

Weights are random; loading, tokens and pixels are those of real presets.
"""

import functools
import json
import os
import sys
import tempfile
from unittest import mock

import keras
import numpy as np
import presets
import pytest
import tensorflow as tf

from jest_tf.data import images as images_lib
from jest_tf.data import tokenizers
from jest_tf.models import pretrained, reference

hub_models = pytest.importorskip("keras_hub.models")

FAMILIES = ("siglip", "siglip2", "clip")
CAPTIONS = [
    "A photo of a Dog, running!",
    "two  cats",
    "",
    "THE QUICK brown fox: jumps over the lazy dog " * 3,
    "CAF\u00c9 don't, 12 of 2023 \u65e5\u672c: e\u0301\u00a0\u3000\ufb01",
]


class KerasHubTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        random = np.random.default_rng(0)
        cls.images = [
            random.integers(0, 256, (*size, 3), np.uint8)
            for size in ((50, 40), (32, 32), (20, 70), (32, 31), (9, 9))
        ]
        cls.names = {}
        for family in FAMILIES:
            path = presets.save(os.path.join(cls.folder, family), family)
            cls.names[family] = f"keras_hub:{path}"

    @classmethod
    @functools.cache
    def load(cls, family):
        """The model of a family; no test changes it."""
        return pretrained.load(cls.names[family])

    def of_keras_hub(self, family):
        """KerasHub's own inputs and logits of the examples."""
        path = self.names[family].removeprefix("keras_hub:")
        preprocessor = hub_models.CausalLMPreprocessor.from_preset(path)
        backbone = hub_models.Backbone.from_preset(path)
        inputs = [
            preprocessor(
                {"images": image[np.newaxis], "prompts": [caption]},
                sequence_length=presets.LENGTH,
            )
            for image, caption in zip(self.images, CAPTIONS, strict=True)
        ]
        inputs = {
            name: tf.concat([part[name] for part in inputs], 0)
            for name in ("images", "token_ids")
        }
        return inputs, backbone

    def test_tokens_pixels_and_embeddings_are_those_of_keras_hub(self):
        for family in FAMILIES:
            inputs, backbone = self.of_keras_hub(family)
            model = self.load(family)
            with self.subTest(family):
                tokens = model.tokenizer(tf.constant(CAPTIONS))
                self.assertAllEqual(tokens, inputs["token_ids"])
                images = tf.stack(
                    [model.image_form(image) for image in self.images]
                )
                self.assertEqual(images.dtype, tf.uint8)
                scale, offset = model.learner.pixels
                pixels = tf.cast(images, tf.float32) * scale + offset
                self.assertAllEqual(pixels, inputs["images"])

                ours = model.learner({"image": images, "text": tokens})
                for found, expected in (
                    (ours.image, backbone.get_vision_embeddings),
                    (ours.text, backbone.get_text_embeddings),
                ):
                    key = "images" if found is ours.image else "token_ids"
                    vectors = expected(inputs[key])
                    squares = tf.reduce_sum(vectors**2, -1, keepdims=True)
                    # Processors differ in the last bit of a square root.
                    unit = vectors / tf.sqrt(squares)
                    self.assertAllClose(found, unit, rtol=1e-6, atol=1e-7)
                logits = ours.scale * ours.image @ tf.transpose(ours.text)
                self.assertAllClose(
                    logits + ours.bias,
                    backbone(inputs)["vision_logits"],
                    atol=1e-5,
                )

    def test_the_description_has_the_name_and_depends_on_the_weights(self):
        path = presets.save(f"{self.folder}/seed1", "siglip", seed=1)
        first = reference.describe(self.load("siglip"))
        second = reference.describe(pretrained.load(f"keras_hub:{path}"))
        self.assertEqual(first.name, self.names["siglip"])
        self.assertNotEqual(first.fingerprint, second.fingerprint)
        self.assertEqual(
            first.preprocessing,
            "RGB, squashed to 32 x 32, bicubic with antialiasing",
        )
        self.assertAllClose(first.scale, 30.0)
        self.assertEqual((first.bias, first.dim), (-5.5, presets.WIDTH))

    def test_softmax_models_have_no_bias(self):
        model = self.load("clip")
        self.assertEqual(model.loss, "softmax")
        self.assertAllClose(tf.exp(model.learner.log_temperature), 1 / 0.07)
        self.assertFalse(model.learner.bias.trainable)
        self.assertEqual(self.load("siglip").loss, "sigmoid")

    def test_a_saved_learner_and_tokenizer_come_back(self):
        for family in FAMILIES:
            model = self.load(family)
            folder = self.enterContext(tempfile.TemporaryDirectory())
            model.tokenizer.save(folder)
            again = tokenizers.load_tokenizer(folder, presets.LENGTH)
            self.assertEqual(again, model.tokenizer)
            texts = tf.constant(CAPTIONS)
            self.assertAllEqual(again(texts), model.tokenizer(texts))
            if family != "clip":  # SigLIP's are loaded from files below
                continue
            path = os.path.join(folder, "learner.keras")
            model.learner.save(path)
            batch = {
                "image": np.stack(
                    [model.image_form(image) for image in self.images]
                ),
                "text": again(texts),
            }
            for part, same in zip(
                keras.saving.load_model(path)(batch),
                model.learner(batch),
                strict=True,
            ):
                self.assertAllEqual(part, same)

    def test_an_integer_offset_of_pixels_is_read(self):
        path = presets.save(os.path.join(self.folder, "integer"), "siglip")
        hub_layers = pytest.importorskip("keras_hub.layers")
        hub_layers.SigLIPImageConverter(
            image_size=(presets.SIZE, presets.SIZE), scale=1 / 127.5, offset=-1
        ).save_to_preset(path)
        learner = pretrained.load(f"keras_hub:{path}").learner
        white = np.full([1, presets.SIZE, presets.SIZE, 3], 255, np.uint8)
        self.assertAllClose(
            learner.encode_image(white),
            learner.encode_image(np.ones_like(white, np.float32)),
        )

    def test_captions_are_tokenised_in_a_dataset_after_a_new_seed(self):
        tokenizer = self.load("siglip").tokenizer
        expected = tokenizer(tf.constant(CAPTIONS))
        data = tf.data.Dataset.from_tensors(CAPTIONS).repeat().map(tokenizer)
        data = iter(data)
        for seed in range(3):
            self.assertAllEqual(next(data), expected)
            # Destroys what SentencePiece has outside of graphs.
            tf.random.set_seed(seed)
            self.assertAllEqual(tokenizer(tf.constant(CAPTIONS)), expected)

    def test_every_size_of_every_family_is_known_by_name(self):
        names = {
            *hub_models.SigLIPBackbone.presets,
            *hub_models.CLIPBackbone.presets,
            *hub_models.MetaCLIP2Backbone.presets,
        }
        self.assertGreater(len(names), 35)
        self.assertIn("siglip2_giant_opt_patch16_384", names)
        for name in names:
            pretrained.check(f"keras_hub:{name}")

    def test_built_in_names_are_loaded_from_their_hub(self):
        expected = reference.describe(self.load("siglip"))
        name = "siglip2_base_patch16_224"
        with presets.hub_of(self.names["siglip"]) as asked:
            found = pretrained.load(f"keras_hub:{name}")
        self.assertContainsSubset([f"keras/siglip/keras/{name}/1"], asked)
        found = reference.describe(found)._replace(name=expected.name)
        self.assertEqual(found, expected)

    def test_without_a_network_the_error_names_source_and_way_out(self):
        name = "siglip_base_patch16_256"
        for preset, source in (
            (name, f"kaggle://keras/siglip/keras/{name}/1"),
            (f"hf://keras/{name}", f"hf://keras/{name}"),
        ):
            with (
                mock.patch("kagglehub.model_download", side_effect=OSError),
                mock.patch(
                    "huggingface_hub.hf_hub_download", side_effect=OSError
                ),
                self.assertRaisesRegex(
                    ValueError,
                    f"'keras_hub:{preset}' cannot .* from {source}: without a "
                    "network, .* name it by 'keras_hub:/path/to/folder'",
                ),
            ):
                pretrained.load(f"keras_hub:{preset}")

    def test_without_its_library_the_error_says_what_to_install(self):
        hub = r"patch16' needs KerasHub: pip install '.\[keras-hub\]'"
        with (
            mock.patch.dict(sys.modules, {"keras_hub": None}),
            self.assertRaisesRegex(ValueError, hub),
        ):
            pretrained.load("keras_hub:clip_vit_base_patch16")

    def test_assets_of_a_tokenizer_have_plain_names(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        pretrained.load(self.names["siglip"]).tokenizer.save(folder)
        path = os.path.join(folder, "preprocessor.json")
        with open(path) as file:
            content = json.load(file)
        assets = {**content["assets"]}
        for name in (f"{folder}/new", "../new", f"..{folder}/new", "a/b", ".."):
            content["assets"] = {**assets, name: "bmV3"}
            with open(path, "w") as file:
                json.dump(content, file)
            with self.assertRaisesRegex(ValueError, "plain names, not paths"):
                tokenizers.load_tokenizer(folder, presets.LENGTH)
        self.assertEqual(os.listdir(folder), ["preprocessor.json"])
        self.assertFalse(os.path.exists(f"{folder}/../new"))

    def test_a_keras_file_needs_a_two_tower_model_and_its_tokenizer(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        path = os.path.join(folder, "learner.keras")
        model = self.load("siglip2")
        model.learner.save(path)
        with self.assertRaisesRegex(ValueError, "needs its tokenizer.*vocab"):
            reference.describe(pretrained.load(path))
        model.tokenizer.save(folder)
        found = pretrained.load(path)
        self.assertEqual(found.tokenizer, model.tokenizer)
        self.assertAllClose(reference.describe(found).scale, 30.0)
        with self.assertRaisesRegex(ValueError, "no file at '/missing.keras'"):
            pretrained.load("/missing.keras")

    def test_a_preset_saved_again_in_place_is_loaded_anew(self):
        path = os.path.join(self.folder, "again")
        found = {
            reference.describe(
                pretrained.load(
                    f"keras_hub:{presets.save(path, 'siglip', seed=seed)}"
                )
            ).fingerprint
            for seed in (0, 1)
        }
        self.assertLen(found, 2)
        os.rename(f"{path}/model.weights.h5", f"{self.folder}/outside")
        os.symlink("../outside", f"{path}/model.weights.h5")
        with self.assertRaisesRegex(ValueError, "again must not lead out"):
            pretrained.load(f"keras_hub:{path}")

    def test_folders_without_a_model_of_two_towers_are_refused(self):
        with self.assertRaisesRegex(ValueError, "has no config.json"):
            pretrained.load(f"keras_hub:{self.folder}")
        path = os.path.join(self.folder, "vision")
        vision = hub_models.Backbone.from_preset(
            self.names["siglip"].removeprefix("keras_hub:")
        ).vision_encoder
        vision.save_to_preset(path)
        with self.assertRaisesRegex(ValueError, "two towers.*SigLIPVision"):
            pretrained.load(f"keras_hub:{path}")

    def test_a_tokenizer_of_another_model_is_refused(self):
        path = presets.save(os.path.join(self.folder, "mixed"), "siglip")
        vocabulary = [f"{letter}{n}" for letter in "abc" for n in range(300)]
        vocabulary += ["a", "0", "<|startoftext|>", "<|endoftext|>"]
        hub_models.CLIPTokenizer(
            {token: number for number, token in enumerate(vocabulary)}, ["a 0"]
        ).save_to_preset(path)
        with self.assertRaisesRegex(ValueError, "does not belong .*: 904 tok"):
            pretrained.load(f"keras_hub:{path}")


class ResizingTest(tf.test.TestCase):
    def test_images_are_resized_as_keras_does(self):
        image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
        for options in (
            {"crop_to_aspect_ratio": True, "interpolation": "bicubic"},
            {"antialias": False},
            {"interpolation": "lanczos3"},
        ):
            form = images_lib.Resizing(12, **options)
            options = {"antialias": True} | options
            layer = keras.layers.Resizing(12, 12, **options)
            self.assertAllEqual(form(image), layer(image))
            data = tf.data.Dataset.from_tensors(image).map(form)
            self.assertAllEqual(next(iter(data)), layer(image))
            self.assertEqual(data.element_spec.dtype, tf.uint8)
        expected = images_lib.resize_image(image, 12)
        self.assertAllEqual(images_lib.Resizing(12)(image), expected)

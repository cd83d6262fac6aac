"""Models of Hugging Face beside transformers' own processor and model.

They need PyTorch and transformers, which `make test-slow` installs. Weights are
random.
"""

import json
import os
import tempfile
from unittest import mock

import numpy as np
import presets
import pytest
import sentencepiece
import tensorflow as tf

from jest_tf.models import pretrained

pytestmark = pytest.mark.slow

SIZE, LENGTH = 32, 16
CAPTIONS = ["A photo of a Dog, running!", "two  cats", "", "the dog " * 30]


def setUpModule():
    """Imports them where they are needed, as it takes seconds."""
    global torch, transformers
    why = "pip install '.[transformers]'"
    transformers = pytest.importorskip("transformers", reason=why)
    torch = pytest.importorskip("torch", reason=why)


def sizes():
    return {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }


def save_siglip(folder, mask):
    """As google/siglip-base-patch16-224, whose tokenizer has no mask."""
    config = transformers.SiglipConfig(
        text_config={
            "vocab_size": 64,
            "max_position_embeddings": LENGTH,
            "projection_size": 16,
            "bos_token_id": 1,
            "eos_token_id": 1,
            **sizes(),
        },
        vision_config={"image_size": SIZE, "patch_size": 8, **sizes()},
    )
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
        model.logit_bias.fill_(-5.0)
    proto = presets.sentence_piece("unigram", unk_id=0, eos_id=1, bos_id=-1)
    path = os.path.join(folder, "spiece.model")
    with open(path, "wb") as file:
        file.write(proto)
    names = ["input_ids", "attention_mask"]
    transformers.SiglipProcessor(
        transformers.SiglipImageProcessor(size={"height": SIZE, "width": SIZE}),
        transformers.SiglipTokenizer(path, model_input_names=names[: 1 + mask]),
    ).save_pretrained(folder)
    model.save_pretrained(folder)


def save_metaclip(folder):
    """The family that KerasHub converts, with tokens as in XLM-R."""
    shared = {**sizes(), "projection_dim": 8}
    config = transformers.MetaClip2Config(
        text_config={
            "vocab_size": 80,
            "max_position_embeddings": LENGTH,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
            **shared,
        },
        vision_config={"image_size": SIZE, "patch_size": 8, **shared},
        projection_dim=8,
    )
    transformers.MetaClip2Model(config).save_pretrained(folder)
    proto = presets.sentence_piece("unigram", unk_id=0, bos_id=1, eos_id=2)
    path = os.path.join(folder, "sentencepiece.bpe.model")
    with open(path, "wb") as file:
        file.write(proto)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = [(piece, 0.0) for piece in vocabulary] + [
        (pieces.IdToPiece(i), pieces.GetScore(i))
        for i in range(3, pieces.vocab_size())
    ]
    transformers.XLMRobertaTokenizer(
        vocab=[*vocabulary, ("<mask>", 0.0)]
    ).save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    ).save_pretrained(folder)


class HuggingFaceTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        torch.manual_seed(0)
        cls.paths = {}
        for name, save in (
            ("siglip", lambda path: save_siglip(path, mask=False)),
            ("masked", lambda path: save_siglip(path, mask=True)),
            ("metaclip", save_metaclip),
        ):
            cls.paths[name] = os.path.join(cls.folder, name)
            os.mkdir(cls.paths[name])
            save(cls.paths[name])
        random = np.random.default_rng(0)
        cls.images = [
            random.integers(0, 256, (*size, 3), np.uint8)
            for size in ((50, 40), (32, 32), (20, 70), (33, 31))
        ]

    def test_inputs_and_logits_are_those_of_transformers(self):
        for name, path in self.paths.items():
            model = pretrained.load(f"hf:{path}")
            processor = transformers.AutoProcessor.from_pretrained(path)
            inputs = processor.tokenizer(
                CAPTIONS,
                padding="max_length",
                truncation=True,
                max_length=LENGTH,
                return_tensors="pt",
            )
            inputs["pixel_values"] = torch.cat(
                [
                    processor.image_processor(image, return_tensors="pt")[
                        "pixel_values"
                    ]
                    for image in self.images
                ]
            )
            with torch.no_grad():
                theirs = transformers.AutoModel.from_pretrained(path)(**inputs)
            with self.subTest(name):
                data = tf.data.Dataset.from_tensors(CAPTIONS)
                tokens = next(iter(data.map(model.tokenizer)))
                ids = np.where(tokens < 0, -1 - tokens, tokens)
                self.assertAllEqual(ids, inputs["input_ids"])
                images = tf.stack(
                    [model.image_form(image) for image in self.images]
                )
                self.assertAllEqual(images, inputs["pixel_values"])
                ours = model.learner({"image": images, "text": tokens})
                # MetaCLIP 2 computes the norm by other operations.
                for found, expected in (
                    (ours.image, theirs.image_embeds),
                    (ours.text, theirs.text_embeds),
                ):
                    self.assertAllClose(found, expected, rtol=2e-7, atol=0)
                logits = ours.scale * ours.image @ tf.transpose(ours.text)
                self.assertAllClose(
                    logits + ours.bias, theirs.logits_per_image, atol=1e-5
                )

    def test_bad_names_and_models_are_refused(self):
        path = os.path.join(self.folder, "bert")
        transformers.BertConfig(**sizes(), vocab_size=64).save_pretrained(path)
        coded = os.path.join(self.folder, "coded")
        os.mkdir(coded)
        with open(f"{coded}/config.json", "w") as file:
            json.dump({"auto_map": {"AutoConfig": "code.Config"}}, file)
        with open(f"{coded}/code.py", "w") as file:
            file.write("raise SystemExit")
        for name, message in (
            (f"hf:{coded}", "transformers. Received: .*coded"),
            ("hf:/missing", "`model` must name a model of Hugging Face.*miss"),
            (f"hf:{path}", "cannot be loaded by transformers"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                pretrained.load(name)
        with (
            mock.patch.object(
                transformers.AutoModel, "from_pretrained", side_effect=OSError
            ),
            self.assertRaisesRegex(ValueError, "name it by 'hf:/path/to/fol"),
        ):
            pretrained.load("hf:google/siglip2-base-patch16-224")

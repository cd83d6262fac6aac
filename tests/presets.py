"""Tiny presets of KerasHub with random weights, saved by its own code."""

import contextlib
import io
import os
from unittest import mock

import keras
import numpy as np
import pytest
import sentencepiece

# It asks for newer versions than we do.
try:
    import kagglehub
    from keras_hub import layers, models
except ModuleNotFoundError:
    models = None

SIZE, LENGTH, WIDTH = 32, 16, 16
TEXTS = (
    "a photo of a red dog, running!",
    "two cats and a dog on the street",
    "the quick brown fox jumps over the lazy dog",
)


def save(folder, family, length=LENGTH, seed=0):
    """Saves a preset of "siglip", "siglip2" or "clip"; returns its folder.

    Skips the test where KerasHub is not installed.
    """
    if models is None:
        pytest.skip("needs KerasHub")
    keras.utils.set_random_seed(seed)
    make = {"siglip": _siglip, "siglip2": _siglip2, "clip": _clip}[family]
    for part in make(length):
        part.save_to_preset(str(folder))
    return str(folder)


@contextlib.contextmanager
def hub_of(folder):
    """Lets Kaggle have a preset under every handle; yields those asked for."""
    folder, asked = folder.removeprefix("keras_hub:"), []

    def download(handle, path):
        asked.append(handle)
        place = os.path.join(folder, path)
        if not os.path.exists(place):
            raise ValueError(f"{path} is not present in the model files")
        return place

    with mock.patch.object(kagglehub, "model_download", download):
        yield asked


def _siglip(length, tokenizer=None):
    vision, text = _encoders(
        models.SigLIPVisionEncoder, models.SigLIPTextEncoder, length
    )
    backbone = models.SigLIPBackbone(vision, text)
    backbone.siglip_head.logit_scale.assign(np.log(30.0))
    backbone.siglip_head.logit_bias.assign(-5.5)
    if tokenizer is None:
        # As google/siglip-base-patch16-224: padded with the end.
        proto = sentence_piece("unigram", unk_id=0, eos_id=1, bos_id=-1)
        tokenizer = models.SigLIPTokenizer(proto, add_eos=True)
    converter = layers.SigLIPImageConverter(
        image_size=(SIZE, SIZE),
        scale=[1 / 255 / 0.5] * 3,
        offset=[-1.0] * 3,
        interpolation="bicubic",
        antialias=True,
        crop_to_aspect_ratio=False,
    )
    return backbone, tokenizer, converter


def _siglip2(length):
    """As `_siglip`, with the tokenizer of Gemma: BPE, padded with 0."""
    pieces = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
    names = {"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"}
    proto = sentence_piece("bpe", **pieces, **names)
    return _siglip(length, models.GemmaTokenizer(proto))


def _clip(length):
    """Another width of tokens than of embeddings, as in ViT-B/32."""
    vision, text = _encoders(
        models.CLIPVisionEncoder, models.CLIPTextEncoder, length
    )
    backbone = models.CLIPBackbone(vision, text, projection_dim=WIDTH // 2)
    # GPT-2's characters for the 256 bytes.
    codes = [*range(33, 127), *range(161, 173), *range(174, 512)][:256]
    letters = [chr(code) for code in codes]
    merges = ["t h", "th e</w>", "d o", "do g</w>", "2 0", "1 2</w>"]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary += ["".join(merge.split()) for merge in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = models.CLIPTokenizer(
        {token: number for number, token in enumerate(vocabulary)},
        merges,
        pad_with_end_token=True,
    )
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    converter = layers.CLIPImageConverter(
        image_size=(SIZE, SIZE),
        scale=[1 / 255 / value for value in std],
        offset=[-m / s for m, s in zip(mean, std, strict=True)],
        interpolation="bicubic",
    )
    return backbone, tokenizer, converter


def _encoders(vision, text, length):
    sizes = {"hidden_dim": WIDTH, "num_layers": 2, "num_heads": 2}
    sizes["intermediate_dim"] = 2 * WIDTH
    return (
        vision(patch_size=8, image_shape=(SIZE, SIZE, 3), **sizes),
        text(
            vocabulary_size=600,
            embedding_dim=WIDTH,
            max_sequence_length=length,
            **sizes,
        ),
    )


def sentence_piece(kind, **settings):
    """Trains a serialized SentencePiece model on `TEXTS`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 9),
        model_writer=model,
        vocab_size=60,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return model.getvalue()

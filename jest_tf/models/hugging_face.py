"""Two-tower models of Hugging Face, in PyTorch, for embedding.

The model's own processor makes tokens and pixels, and its own code embeds them.
TensorFlow calls that Python code: on one machine, without XLA or gradients.
"""

import hashlib
import os
import types
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from keras import ops

from jest_tf import embeddings, files
from jest_tf.embeddings import Embeddings
from jest_tf.models import reference

PREFIX = "hf:"


def check(name: str, setting: str = "model") -> None:
    """Checks that a name can be loaded, without loading it."""
    path = name.removeprefix(PREFIX)
    if files.is_remote(path):
        raise ValueError(
            f"`{setting}` must name a model of Hugging Face by 'hf:OWNER/NAME' "
            "or by a local folder: transformers cannot read buckets. "
            f"Received: {name!r}"
        )
    _import(name)
    is_path = path.startswith((".", "/", "~")) or path.count("/") != 1
    if is_path and not os.path.isfile(os.path.join(path, "config.json")):
        raise ValueError(
            f"`{setting}` must name a model of Hugging Face, 'hf:OWNER/NAME', "
            "or a folder that `save_pretrained` wrote, with config.json. "
            f"Received: {name!r}"
        )


def load(name: str) -> reference.Pretrained:
    """Loads a model such as `hf:google/siglip2-base-patch16-224`."""
    torch, transformers = _import(name)
    path = name.removeprefix(PREFIX)
    try:
        # Without the flag, transformers asks whether to run a model's own code.
        model = transformers.AutoModel.from_pretrained(
            path, trust_remote_code=False
        ).eval()
        processor = transformers.AutoProcessor.from_pretrained(
            path, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise reference.load_error(
            name, "transformers", "huggingface.co", error
        ) from error
    reference.check_towers(name, model, "get_image_features")
    tokenizer = Tokenizer(
        processor.tokenizer, model.config.text_config.max_position_embeddings
    )
    reference.check_tokenizer(
        name, tokenizer, model.config.text_config.vocab_size
    )
    learner = TwoTower(torch, model)
    return reference.Pretrained(
        name,
        learner,
        tokenizer,
        Pixels(processor.image_processor),
        "sigmoid" if hasattr(model, "logit_bias") else "softmax",
        (type(model).__name__,),
    )


class Pixels:
    """An image processor as a form of images, float32 [3, S, S]."""

    dtype = tf.float32

    def __init__(self, processor: Callable):
        self._processor = processor
        self.shape = self._pixels(np.zeros([8, 8, 3], np.uint8)).shape

    def __call__(self, image: tf.Tensor) -> tf.Tensor:
        """Maps uint8 [H, W, 3] to pixels, in a graph."""
        pixels = tf.numpy_function(
            self._pixels, [image], self.dtype, stateful=False
        )
        return tf.ensure_shape(pixels, self.shape)

    def __str__(self):
        settings = self._processor.to_json_string().encode()
        return (
            f"{type(self._processor).__name__} to {list(self.shape)}, "
            f"{hashlib.blake2b(settings, digest_size=8).hexdigest()}"
        )

    def _pixels(self, image):
        processed = self._processor(
            images=image, return_tensors="np", input_data_format="channels_last"
        )
        return np.asarray(processed["pixel_values"][0], np.float32)


class Tokenizer:
    """Maps captions to rows of token ids, by a tokenizer of Hugging Face.

    Where the tokenizer masks a position, the row has -1 - id. Rows have
    `length` tokens, L.
    """

    def __init__(self, tokenizer: Callable, length: int):
        self._tokenizer = tokenizer
        self.length = length
        self.vocabulary_size = len(tokenizer)

    def __call__(self, captions: tf.Tensor) -> tf.Tensor:
        """Tokenises valid UTF-8 string [k] to int32 [k, L]."""
        rows = tf.numpy_function(
            self._rows, [captions], tf.int32, stateful=False
        )
        return tf.ensure_shape(rows, [None, self.length])

    def save(self, directory: str) -> None:
        """Writes the tokenizer's files into an existing directory."""
        self._tokenizer.save_pretrained(directory)

    def _rows(self, captions):
        if not len(captions):
            return np.zeros([0, self.length], np.int32)
        tokenized = self._tokenizer(
            [caption.decode() for caption in captions],
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="np",
        )
        rows = np.asarray(tokenized["input_ids"], np.int32)
        return np.where(tokenized.get("attention_mask", 1), rows, -1 - rows)


class TwoTower:
    """A two-tower model of Hugging Face with the methods of `models.TwoTower`.

    A model without a bias has bias 0. `weights` serve a fingerprint, and as
    `trainable_weights` a count; nothing trains them.
    """

    def __init__(self, torch, model):
        self._torch = torch
        self._model = model
        self.log_temperature = ops.convert_to_tensor(_number(model.logit_scale))
        self.bias = ops.convert_to_tensor(
            _number(getattr(model, "logit_bias", 0.0))
        )
        self.weights = self.trainable_weights = [
            types.SimpleNamespace(
                name=name, shape=tuple(value.shape), numpy=value.numpy
            )
            for name, value in model.state_dict().items()
        ]

    def __call__(self, batch: dict, training=False) -> Embeddings:
        """Embeds a batch; `training` has no effect."""
        del training
        return Embeddings(
            self.encode_image(batch["image"]),
            self.encode_text(batch["text"]),
            ops.exp(self.log_temperature),
            self.bias,
        )

    def encode_image(self, pixels: tf.Tensor, training=False) -> tf.Tensor:
        """Embeds pixels [B, 3, S, S] to unit norm, float32 [B, D]."""
        del training
        return self._call(
            self._model.get_image_features,
            lambda values: {"pixel_values": values},
            pixels,
        )

    def encode_text(self, rows: tf.Tensor, training=False) -> tf.Tensor:
        """Embeds rows of `Tokenizer` [B, L] to unit norm, float32 [B, D]."""
        del training
        return self._call(self._model.get_text_features, _make_inputs, rows)

    def _call(self, embed, inputs_of, values):
        torch = self._torch

        def call(values):
            inputs = {
                name: torch.from_numpy(value.copy())
                for name, value in inputs_of(values).items()
            }
            with torch.no_grad():
                embedded = embed(**inputs)
                embedded = getattr(embedded, "pooler_output", embedded)
                return (
                    embedded / embedded.norm(p=2, dim=-1, keepdim=True)
                ).numpy()

        return embeddings.call_numpy(
            call, values, (*values.shape[:1], self._dim)
        )

    @property
    def _dim(self):
        projection = getattr(self._model.config, "projection_dim", None)
        return projection or self._model.config.vision_config.hidden_size


def _make_inputs(rows):
    mask = rows >= 0
    inputs = {"input_ids": np.where(mask, rows, -1 - rows).astype(np.int64)}
    if not mask.all():
        inputs["attention_mask"] = mask.astype(np.int64)
    return inputs


def _number(value):
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy().reshape(())
    return np.float32(value)


def _import(name):
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ValueError(
            f"{name!r} needs PyTorch and transformers: pip install "
            f"'.[transformers]' in a clone. Received: {error}"
        ) from error
    return torch, transformers

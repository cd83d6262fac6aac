"""The frozen reference: live, cached, the learner of a run, or a public model.

A reference is a function from a batch to `Embeddings` that is not trained.
`describe` and `encoder` serve `jest-tf embed`, which writes sidecars; they take
a `Run` or a `Pretrained`.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from jest_tf import config as config_lib
from jest_tf import embeddings, models
from jest_tf.data import images as images_lib
from jest_tf.data import tokenizers
from jest_tf.data.sidecars import file_format
from jest_tf.embeddings import Embeddings


class Run(NamedTuple):
    """A run's learner with its weights, its tokenizer and its settings."""

    config: config_lib.TrainConfig
    tokenizer: Callable
    learner: models.TwoTower
    name: str = ""
    resizing: images_lib.Resizing | None = None

    @property
    def image_form(self) -> images_lib.Resizing:
        """Returns the form of the learner's images."""
        return self.resizing or images_lib.Resizing(self.config.data.image_size)

    @property
    def loss(self) -> str:
        """Returns the pair loss that trained the learner."""
        return self.config.model.loss

    @property
    def settings(self) -> tuple:
        """Returns the settings of the learner that affect its embeddings."""
        model = self.config.model
        if model.init_from:
            return self.learner.pixels, model.dtype_policy
        # None was a setting of 0.3.0, whose fingerprints stay valid.
        return (model.towers or model.preset, None), model.dtype_policy


class Pretrained(NamedTuple):
    """A pretrained model with its weights, tokenizer and form of images.

    Attributes:
        name: the name by which the model was loaded.
        learner: its towers.
        tokenizer: maps valid UTF-8, string [k], to int32 [k, L]; None if
            unknown.
        image_form: the form of the model's images.
        loss: the pair loss that trained the model; None if unknown.
        settings: settings of the model that affect its embeddings.
    """

    name: str
    learner: models.TwoTower
    tokenizer: Callable
    image_form: images_lib.Form
    loss: str | None
    settings: tuple = ()


def frozen(model: Callable) -> Callable[[dict], Embeddings]:
    """Makes a reference from a Keras model or any callable.

    `model` maps a dict of tensors with n rows to the fields of `Embeddings`; a
    Keras model is called in evaluation mode. If the batch has
    `image_for_reference` or `text_for_reference`, because the reference
    preprocesses differently from the learner, they replace `image` and `text`.

    The returned function has the model's variables as `variables`.
    """
    if not callable(model):
        raise TypeError(
            "`reference` must be a Keras model or a callable that maps a batch "
            f"to Embeddings. Received: {model!r}"
        )
    is_layer = isinstance(model, keras.layers.Layer)
    options = {"training": False} if is_layer else {}

    def embed(batch):
        view = dict(batch)
        for name in ("image", "text"):
            view[name] = view.pop(f"{name}_for_reference", view[name])
        return embeddings.convert_output("reference", model(view, **options))

    embed.variables = tuple(getattr(model, "variables", ()))
    return embed


def describe(run: Run | Pretrained) -> file_format.Description:
    """Describes the embeddings of a model, for its sidecars.

    Models with the same weights, tower settings, tokenizer and preprocessing
    have equal descriptions, except for their names.
    """
    if run.tokenizer is None:
        raise ValueError(
            "A reference needs its tokenizer: expected its file, such as "
            f"{tokenizers.WordPieceTokenizer.FILE}, beside {run.name!r}. "
            "Received: none"
        )
    form = run.image_form
    zeros = np.zeros([1, *form.shape], form.dtype.as_numpy_dtype)
    return file_format.Description(
        fingerprint=fingerprint(run.learner, *run.settings),
        tokenizer=describe_tokenizer(run.tokenizer),
        preprocessing=str(run.image_form),
        dim=int(run.learner.encode_image(zeros).shape[-1]),
        scale=float(_on_host(run.learner.log_temperature, ops.exp)),
        bias=float(_on_host(run.learner.bias)),
        name=run.name,
    )


def fingerprint(model: keras.Model, *settings) -> str:
    """Hashes a built model and settings, as 32 hexadecimal digits.

    The hash covers names, shapes, dtypes and values of the weights, in the
    model's order. `settings` are the other values that the outputs depend on;
    their `repr` must be complete.
    """
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for weight in model.weights:
        # Skips the path, and the number in a name such as `variable_3`: both
        # depend on the other objects that this process has made.
        value = np.ascontiguousarray(weight.numpy())
        name = re.sub(r"_\d+$", "", weight.name)
        about = (name, value.shape, value.dtype.name)
        digest.update(repr(about).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def encoder(run: Run | Pretrained, batch_size: int = 256) -> Callable:
    """Adapts a model to the `encode` argument of `embed.write`.

    The result maps images [k, *run.image_form.shape] and m strings to
    embeddings, float32 [k, D] and [m, D]. Passes are padded to `batch_size`, so
    only one shape is traced.
    """
    learner, form = run.learner, run.image_form
    images = tf.TensorSpec([batch_size, *form.shape], form.dtype)
    tokens = tf.TensorSpec([batch_size, run.tokenizer.length], tf.int32)
    encode_image = embeddings.standalone(
        lambda part: learner.encode_image(part, training=False),
        learner,
        input_signature=[images],
    )
    encode_text = embeddings.standalone(
        lambda part: learner.encode_text(part, training=False),
        learner,
        input_signature=[tokens],
    )

    def encode(images, captions):
        tokens = run.tokenizer(tf.constant(captions, tf.string)).numpy()
        return (
            _in_batches(encode_image, images, batch_size),
            _in_batches(encode_text, tokens, batch_size),
        )

    return encode


def _on_host(variable, function=ops.convert_to_tensor):
    """Applies a function to a variable's value, mirrored or not."""
    with embeddings.on_host():
        return function(ops.convert_to_tensor(np.asarray(variable)))


def describe_tokenizer(tokenizer: Callable) -> str:
    """Describes a tokenizer by its kind, its files and its length."""
    digest = hashlib.blake2b(digest_size=8)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        for name in sorted(os.listdir(folder)):
            with open(os.path.join(folder, name), "rb") as file:
                digest.update(name.encode() + b"\0" + file.read())
    return (
        f"{type(tokenizer).__name__}, {tokenizer.vocabulary_size} tokens, "
        f"length {tokenizer.length}, {digest.hexdigest()}"
    )


def _in_batches(encode, values, size):
    """Runs `encode(values)` by `size` rows; NumPy [n, ...] -> [n, D]."""
    parts = []
    # At least one batch, even without rows, to get the width.
    for start in range(0, max(1, len(values)), size):
        part = values[start : start + size]
        padding = [(0, size - len(part))] + [(0, 0)] * (values.ndim - 1)
        encoded = np.asarray(encode(np.pad(part, padding)))
        parts.append(encoded[: len(part)])
    return np.concatenate(parts)

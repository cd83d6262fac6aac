"""The frozen reference: live, cached, or the learner of a run.

A reference is a function from a batch to `Embeddings` that is not trained.
`describe` and `encoder` serve `jest-tf embed`, which writes sidecars.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import models
from jest_tf.data.sidecars import file_format
from jest_tf.embeddings import Embeddings


class Run(NamedTuple):
    """The learner of a run with its weights, and what it needs to embed."""

    config: config_lib.TrainConfig
    tokenizer: Callable
    learner: models.TwoTower


def frozen(model: Callable) -> Callable[[dict], Embeddings]:
    """Makes a reference from a Keras model or any callable.

    `model` maps a dict of tensors with n rows to the fields of `Embeddings`; a
    Keras model is called in evaluation mode. If the batch has
    `image_for_reference` or `text_for_reference`, because the reference
    preprocesses differently from the learner, they replace `image` and `text`.

    Raises:
        TypeError: if `model` can't be called.
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
        return Embeddings(*model(view, **options))

    return embed


def cached(scale: float, bias: float) -> Callable[[dict], Embeddings]:
    """Makes a reference that reads embeddings from the batch, from sidecars.

    `scale` and `bias` are those of `sidecars.Sidecars`. The reference maps a
    batch with `reference_image` and `reference_text`, float [n, D] each, to
    `Embeddings` in float32; it raises ValueError without them.
    """
    scale, bias = np.float32(scale), np.float32(bias)

    def embed(batch):
        missing = {"reference_image", "reference_text"} - set(batch)
        if missing:
            raise ValueError(
                "A cached reference needs `reference_image` and "
                "`reference_text` in the batch: give the stream its sidecars, "
                f"`pipeline.Options(sidecars=...)`. Received: "
                f"{sorted(batch)}"
            )
        return Embeddings(
            tf.cast(batch["reference_image"], tf.float32),
            tf.cast(batch["reference_text"], tf.float32),
            tf.constant(scale),
            tf.constant(bias),
        )

    return embed


def describe(run: Run) -> file_format.Description:
    """Describes the embeddings of a finished run, for its sidecars.

    Runs with the same weights, tower settings, tokenizer and preprocessing have
    equal descriptions.
    """
    size = run.config.data.image_size
    shape = [1, size, size, 3]
    dim = run.learner.encode_image(tf.zeros(shape, tf.uint8)).shape[-1]
    model = run.config.model
    settings = (model.towers or model.preset, model.patch_size)
    return file_format.Description(
        fingerprint=fingerprint(
            run.learner, settings, run.config.model.dtype_policy
        ),
        tokenizer=_describe_tokenizer(run.tokenizer),
        preprocessing=f"RGB, squashed to {size} x {size} by preprocessing.py",
        dim=int(dim),
        scale=float(_on_host(run.learner.log_temperature, tf.exp)),
        bias=float(_on_host(run.learner.bias)),
    )


def fingerprint(model: keras.Model, *settings) -> str:
    """Hashes a built model and settings, as 32 hexadecimal digits.

    The hash covers names, shapes, dtypes and values of the weights, in the
    model's order. Settings are what else the outputs depend on, with a
    complete `repr`.
    """
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for weight in model.weights:
        # Not its path, which counts the models made in this process.
        value = np.ascontiguousarray(weight.numpy())
        about = (weight.name, value.shape, value.dtype.name)
        digest.update(repr(about).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def encoder(run: Run, batch_size: int = 256) -> Callable:
    """Adapts a finished run to the `model` argument of `embed.write`.

    Takes uint8 images [k, S, S, 3] and m strings, and returns embeddings
    float32 [k, D] and [m, D]. Passes are padded to `batch_size`, one traced
    shape.
    """
    learner, size = run.learner, run.config.data.image_size
    pictures = tf.TensorSpec([batch_size, size, size, 3], tf.uint8)
    length = run.config.data.text_length
    tokens = tf.TensorSpec([batch_size, length], tf.int32)
    encode_image = tf.function(
        lambda part: learner.encode_image(part, training=False), [pictures]
    )
    encode_text = tf.function(
        lambda part: learner.encode_text(part, training=False), [tokens]
    )

    def encode(images, captions):
        tokens = run.tokenizer(tf.constant(captions, tf.string)).numpy()
        return (
            _in_batches(encode_image, images, batch_size),
            _in_batches(encode_text, tokens, batch_size),
        )

    return encode


def _on_host(variable, function=tf.identity):
    """Applies a function to a variable's value, mirrored or not."""
    with tf.device("CPU:0"):
        return function(tf.constant(variable.numpy()))


def _describe_tokenizer(tokenizer):
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
    """`encode(values)`, `size` rows at a time; NumPy [n, ...] -> [n, D]."""
    parts = []
    # At least one batch, even without rows, to get the width.
    for start in range(0, max(1, len(values)), size):
        part = values[start : start + size]
        padding = [(0, size - len(part))] + [(0, 0)] * (values.ndim - 1)
        parts.append(encode(np.pad(part, padding)).numpy()[: len(part)])
    return np.concatenate(parts)

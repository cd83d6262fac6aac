"""Embeddings of whole stores, and of texts, by a learner."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from jest_tf import distribution, models
from jest_tf.data import batches, loading, stores, tokenizers
from jest_tf.data import images as images_lib


class Encoder:
    """Embeds stores and texts, in padded batches.

    Within `fixed` the weights don't change, so nothing is embedded twice.

    Args:
        learner: a built two-tower model.
        tokenizer: maps valid UTF-8 string [k] to int32 [k, L].
        image_form: the form of its images, or their side in pixels.
        batch_size: images or texts per forward pass.
        strategy: the learner's; its replicas share each pass.
    """

    def __init__(
        self,
        learner: models.TwoTower,
        tokenizer: Callable,
        image_form: int | images_lib.Form,
        batch_size: int = 256,
        strategy: Any = None,
    ):
        strategy = strategy or distribution.default()
        self._tokenizer = tokenizer
        self._image_form = images_lib.make_form(image_form)
        self._num_replicas = strategy.num_replicas_in_sync
        self._batch_size = batch_size
        self._encode_image = distribution.spread(
            strategy,
            lambda rows: learner.encode_image(rows, training=False),
            learner,
        )
        self._encode_text = distribution.spread(
            strategy,
            lambda rows: learner.encode_text(rows, training=False),
            learner,
        )
        self._memory: dict | None = None
        self._examples = functools.cache(
            functools.partial(batches.examples, image_size=self._image_form)
        )

    @contextlib.contextmanager
    def fixed(self) -> Iterator[None]:
        """Keeps embeddings in memory within the block."""
        outer = self._memory
        self._memory = {} if outer is None else outer
        try:
            yield
        finally:
            self._memory = outer

    def images(self, store: stores.Store) -> np.ndarray:
        """Embeds the images of all records, float32 [n, D]."""
        return self._kept(store.fingerprint, lambda: self._image_parts(store))

    def texts(self, texts: Sequence[str | bytes]) -> np.ndarray:
        """Embeds texts, float32 [m, D]."""
        if self._tokenizer is None:
            raise ValueError(
                "Texts need the model's tokenizer: put vocab.txt or "
                "tokenizer.model beside the .keras file. Received: a model "
                "without a tokenizer"
            )
        return self._kept(tuple(texts), lambda: self._text_parts(texts))

    def _kept(self, key, parts):
        """Joins embeddings, or takes them from memory if they are there."""
        memory = {} if self._memory is None else self._memory
        if key not in memory:
            memory[key] = np.concatenate(list(parts()))
        return memory[key]

    def _image_parts(self, store):
        size = self._size(len(store))
        with loading.plain_errors():
            for batch in self._examples(store, batch_size=size):
                yield self._padded(self._encode_image, batch["image"], size)

    def _text_parts(self, texts):
        size = self._size(len(texts))
        for start in range(0, len(texts), size):
            clean, _ = tokenizers.sanitize_captions(
                tf.constant(texts[start : start + size])
            )
            yield self._padded(self._encode_text, self._tokenizer(clean), size)

    def _size(self, num_rows):
        """Rows of a pass: few sizes, so that few shapes are traced."""
        size = min(self._batch_size, 2 ** (num_rows - 1).bit_length())
        return -(-size // self._num_replicas) * self._num_replicas

    def _padded(self, encode, batch, size):
        # The last batch is padded with its first row, so that only one shape is
        # traced.
        rows = tf.where(tf.range(size) < len(batch), tf.range(size), 0)
        return np.asarray(encode(tf.gather(batch, rows)))[: len(batch)]

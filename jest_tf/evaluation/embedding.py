"""Embeddings of whole data sets by a learner, cached by what they depend on."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from jest_tf import distribution, files, models
from jest_tf.data import artefacts, batches, pictures, stores, tokenizers
from jest_tf.models import reference

# Rows of a part. A killed process loses only the part being computed.
PART_ROWS = 2**14


class Encoder:
    """Embeds stores and texts, in padded batches.

    Within `fixed` the weights don't change, so nothing is embedded twice: not
    in this process and, with a folder, not in the next.

    Args:
        learner: a built two-tower model.
        tokenizer: maps valid UTF-8 string [k] to int32 [k, L].
        picture: the form of its pictures, or their side in pixels.
        batch_size: pictures or texts per forward pass.
        strategy: the learner's; its replicas share each pass.
    """

    def __init__(
        self,
        learner: models.TwoTower,
        tokenizer: Callable,
        picture: int | pictures.Form,
        batch_size: int = 256,
        strategy: tf.distribute.Strategy | None = None,
    ):
        strategy = strategy or tf.distribute.get_strategy()
        self._learner = learner
        self._tokenizer = tokenizer
        self._picture = pictures.form_of(picture)
        self._num_replicas = strategy.num_replicas_in_sync
        self._batch_size = batch_size
        self._encode_image = distribution.spread(
            strategy, lambda rows: learner.encode_image(rows, training=False)
        )
        self._encode_text = distribution.spread(
            strategy, lambda rows: learner.encode_text(rows, training=False)
        )
        self._memory: dict[str, np.ndarray] | None = None
        self._folder = ""
        self._examples = functools.lru_cache(None)(self._examples_from)

    @contextlib.contextmanager
    def fixed(self, folder: str = "", keep: bool = False) -> Iterator[None]:
        """Keeps embeddings within the block.

        Args:
            folder: for files, from which a process continues after a killed
                one; "" keeps embeddings in memory only.
            keep: whether to keep the files after the block succeeds.
        """
        self._memory = {}
        if folder:
            self._folder = files.inside(folder, self._fingerprint())
        try:
            yield
            if folder and not keep:
                files.remove_folder(folder)
        finally:
            self._memory, self._folder = None, ""

    def images(self, store: stores.Store | stores.Listed) -> np.ndarray:
        """Embeds the pictures of all records, float32 [n, D].

        Raises:
            ValueError: a record has no picture that can be decoded.
        """
        return self._kept(
            lambda: f"image {store.fingerprint}",
            len(store),
            lambda start: self._image_parts(store, start),
        )

    def texts(self, texts: Sequence[str | bytes]) -> np.ndarray:
        """Embeds texts, float32 [m, D].

        Raises:
            ValueError: the model has no tokenizer.
        """
        if self._tokenizer is None:
            raise ValueError(
                "Texts need the model's tokenizer: put vocab.txt or "
                "tokenizer.model beside the .keras file. Received: a model "
                "without a tokenizer"
            )
        texts = [
            text.encode() if isinstance(text, str) else text for text in texts
        ]

        def key():
            digest = hashlib.blake2b(digest_size=16)
            for text in texts:
                digest.update(len(text).to_bytes(8, "little") + text)
            return f"text {digest.hexdigest()}"

        return self._kept(
            key, len(texts), lambda start: self._text_parts(texts, start)
        )

    def _kept(self, key, num_rows, parts):
        """Rows from memory, or from files; computes those that are missing."""
        if self._memory is None:
            return np.concatenate(list(parts(0)))
        key = key()
        if key not in self._memory:
            found = list(self._read(key, num_rows))
            start = sum(map(len, found))
            if start < num_rows:
                for part in parts(start):
                    self._write(key, start, part)
                    found.append(part)
                    start += len(part)
            self._memory[key] = np.concatenate(found)
        return self._memory[key]

    def _image_parts(self, store, start):
        size = self._size(len(store))
        with batches.plain_errors():
            yield from _joined(
                self._padded(self._encode_image, batch["image"], size)
                for batch in self._examples(store, size, start)
            )

    def _examples_from(self, store, size, start):
        return batches.examples(
            store, batch_size=size, image_size=self._picture, start=start
        )

    def _text_parts(self, texts, start):
        size = self._size(len(texts))

        def embed(first):
            clean, _ = tokenizers.sanitize_captions(
                tf.constant(texts[first : first + size])
            )
            return self._padded(self._encode_text, self._tokenizer(clean), size)

        yield from _joined(map(embed, range(start, len(texts), size)))

    def _size(self, num_rows):
        """Rows of a pass: few sizes, so that few shapes are traced."""
        size = min(self._batch_size, 2 ** (num_rows - 1).bit_length())
        return -(-size // self._num_replicas) * self._num_replicas

    def _padded(self, encode, batch, size):
        # The last batch is padded with its first row, so that only one shape is
        # traced.
        rows = tf.range(size)
        rows = tf.where(rows < len(batch), rows, 0)
        return encode(tf.gather(batch, rows)).numpy()[: len(batch)]

    def _fingerprint(self):
        described = ""
        if self._tokenizer is not None and hasattr(self._tokenizer, "save"):
            described = reference.describe_tokenizer(self._tokenizer)
        return reference.fingerprint(
            self._learner, str(self._picture), described
        )

    def _path(self, key, start):
        digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return files.inside(self._folder, f"{digest}-{start}.embeddings")

    def _read(self, key, num_rows):
        start = 0
        while self._folder and start < num_rows:
            try:
                part = artefacts.read(
                    self._path(key, start), "embeddings", verify=True
                ).arrays["embeddings"]
            except (OSError, ValueError):
                return
            if not 0 < len(part) <= num_rows - start:
                return
            yield np.array(part)
            start += len(part)

    def _write(self, key, start, part):
        if self._folder:
            artefacts.write(
                self._path(key, start),
                "embeddings",
                {"of": key},
                {"embeddings": part},
            )


def _joined(arrays):
    """Joins arrays into parts of `PART_ROWS` rows or more, except the last."""
    part, rows = [], 0
    for array in arrays:
        part.append(array)
        rows += len(array)
        if rows >= PART_ROWS:
            yield np.concatenate(part)
            part, rows = [], 0
    if part:
        yield np.concatenate(part)

"""A trained learner with its tokenizer and its preprocessing of pictures.

Pictures are decoded and resized as in training (`data/pictures.py`), to the
same pixels. Embeddings equal those of evaluations and sidecars: bit for bit in
the same batch of rows, and otherwise up to rounding, 1e-6 in float32.
"""

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from jest_tf import config as config_lib
from jest_tf import embeddings as embeddings_lib
from jest_tf import evaluation, files, models
from jest_tf.config import checks
from jest_tf.data import batches, pictures, stores, tokenizers
from jest_tf.models import reference, two_tower
from jest_tf.runs import loading

# A file name, an encoded picture, an image of Pillow, or uint8 pixels.
Picture = str | os.PathLike | bytes | Image.Image | np.ndarray


class Classification(NamedTuple):
    """Pictures classified by labels.

    Attributes:
        labels: the most probable label of each of n pictures.
        probabilities: float32 [n, labels]; rows sum to 1.
    """

    labels: list[str]
    probabilities: np.ndarray


class Hits(NamedTuple):
    """The nearest embeddings of m queries, best first.

    Attributes:
        rows: int64 [m, k], rows of the collection.
        scores: float32 [m, k], cosine similarities.
    """

    rows: np.ndarray
    scores: np.ndarray


class Embedder:
    """Embeds pictures and texts, classifies pictures, and searches.

    Args:
        learner: a built two-tower model.
        tokenizer: maps valid UTF-8 string [k] to int32 [k, L]; None if there
            are no texts to embed.
        picture: the form of its pictures; None resizes them as in training.
        batch_size: pictures or texts per forward pass.
        config: settings of the run that trained the learner, if any.

    Raises:
        ValueError: `picture` is None, and the learner does not take square
            RGB pictures.

    Example:
        >>> learner = models.build_two_tower(
        ...     "tiny", image_size=32, vocabulary_size=4, text_length=8
        ... )
        >>> words = tokenizers.WordPieceTokenizer(
        ...     ["[UNK]", "[EOS]", "a", "cat"], 8
        ... )
        >>> model = Embedder(learner, words)
        >>> model.embed_texts(["a cat"]).shape
        (1, 64)
        >>> grey = np.full([20, 30], 128, np.uint8)
        >>> model.classify([grey], ["cat", "dog"]).probabilities.shape
        (1, 2)
    """

    def __init__(
        self,
        learner: models.TwoTower,
        tokenizer: Callable[[tf.Tensor], tf.Tensor] | None = None,
        *,
        picture: pictures.Form | None = None,
        batch_size: int = 256,
        config: config_lib.TrainConfig | None = None,
    ):
        checks.check("batch_size", batch_size, checks.at_least(1))
        self.learner = learner
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.config = config
        self.picture = picture or _squashed(learner)
        length = getattr(tokenizer, "length", None)
        image = tf.TensorSpec([None, *self.picture.shape], self.picture.dtype)
        self._encode_image = embeddings_lib.compiled(
            lambda images: learner.encode_image(images, training=False),
            input_signature=[image],
        )
        self._encode_text = embeddings_lib.compiled(
            lambda tokens: learner.encode_text(tokens, training=False),
            input_signature=[tf.TensorSpec([None, length], tf.int32)],
        )

    @property
    def dim(self) -> int:
        """D, the width of the embeddings."""
        return self.learner.embedding_dim

    @property
    def scale(self) -> float:
        """Factor by which the logits scale cosine similarities."""
        return float(np.exp(np.asarray(self.learner.log_temperature)))

    @property
    def bias(self) -> float:
        """Bias of the logits."""
        return float(np.asarray(self.learner.bias))

    def embed_images(self, images: Iterable[Picture]) -> np.ndarray:
        """Embeds n pictures to unit norm, float32 [n, D].

        Args:
            images: names of files, encoded pictures as bytes, images of Pillow,
                or uint8 arrays [H, W, 3], [H, W, 4] or [H, W], of any size and
                also mixed. Grey becomes RGB, and alpha is dropped.

        Raises:
            ValueError: a picture cannot be read; the message names it.
        """
        images = _list("images", images)
        parts, done = [np.zeros([0, self.dim], np.float32)], 0
        for faults, part in self.embed_parts(images):
            for number, fault in enumerate(faults, done):
                if fault:
                    raise ValueError(
                        "`images` must be pictures that can be read. Received: "
                        f"images[{number}], {_name(images[number])}: "
                        f"{fault.reason}"
                    )
            parts.append(part)
            done += len(faults)
        return np.concatenate(parts)

    def embed_parts(
        self, images: Sequence[Picture]
    ) -> Iterator[tuple[list[stores.Fault | None], np.ndarray]]:
        """Embeds pictures in batches, skipping damaged pictures.

        Yields:
            For at most `batch_size` pictures, the fault of each or None, and
            the embeddings, float32 [m, D], of the m pictures without a fault.
        """
        workers = os.cpu_count() or 1
        starts = range(0, len(images), self.batch_size)
        parts = (images[start : start + self.batch_size] for start in starts)
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            for read in batches.in_order(pool, self._read, parts, workers):
                yield self._embed_read(read)

    def embed_texts(self, texts: Iterable[str]) -> np.ndarray:
        """Embeds m texts to unit norm, float32 [m, D].

        Raises:
            ValueError: the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError(
                "`embed_texts` needs a tokenizer, and the model was loaded "
                "without it: load a run directory, or put vocab.txt or "
                "tokenizer.model beside the .keras file."
            )
        texts = _list("texts", texts)
        parts = [np.zeros([0, self.dim], np.float32)]
        for start in range(0, len(texts), self.batch_size):
            clean, _ = tokenizers.sanitize_captions(
                tf.constant(texts[start : start + self.batch_size], tf.string)
            )
            with two_tower.plain_id_errors():
                part = self._encode_text(np.asarray(self.tokenizer(clean)))
            parts.append(np.asarray(part))
        return np.concatenate(parts)

    def classify(
        self,
        images: Iterable[Picture] | np.ndarray,
        labels: Sequence[str],
        prompts: Sequence[str] = ("{}",),
    ) -> Classification:
        """Classifies pictures by the texts of their labels.

        Probabilities are softmax(scale cosine) over the labels, which assumes
        that exactly one is right. A label's embedding is the mean over prompts,
        at unit norm, as in `evaluation.class_embeddings`.

        Args:
            images: as for `embed_images`, or embeddings, float [n, D].
            labels: C class names.
            prompts: templates, each with one "{}" where the name goes.

        Raises:
            ValueError: as in `embed_images`, labels are missing, or a prompt
                does not have exactly one "{}".
        """
        labels = _list("labels", labels)
        classes = evaluation.class_embeddings(self.embed_texts, labels, prompts)
        if not _are_embeddings(images):
            images = self.embed_images(images)
        logits = self.scale * self._checked("images", images) @ classes.T
        best = np.argmax(logits, axis=1)
        return Classification(
            [labels[place] for place in best], tf.nn.softmax(logits).numpy()
        )

    def search(
        self,
        queries: Iterable[str] | np.ndarray,
        collection: np.ndarray,
        k: int = 10,
    ) -> Hits:
        """Finds the k nearest of n embeddings, exactly, by cosine similarity.

        Args:
            queries: texts, or embeddings, for instance of pictures, float
                [m, D].
            collection: embeddings by this model, float [n, D].
            k: hits per query; n if that is smaller.

        Returns:
            `Hits`; among equal scores, the lower row comes first.

        Raises:
            ValueError: widths differ.
        """
        checks.check("k", k, checks.at_least(1))
        candidates = self._checked("collection", collection)
        if not _are_embeddings(queries):
            queries = self.embed_texts(queries)
        queries = self._checked("queries", queries)
        k = min(k, len(candidates))
        found = [
            tf.math.top_k(part @ candidates.T, k)
            for part in np.split(
                queries, range(_QUERIES, len(queries), _QUERIES)
            )
        ]
        scores, rows = (
            np.concatenate(parts) for parts in zip(*found, strict=True)
        )
        return Hits(rows.astype(np.int64), scores)

    def _read(self, images):
        """Returns faults, and the other pictures, [m, *picture.shape]."""
        images = [_read(picture) for picture in images]
        encoded = [picture for picture in images if isinstance(picture, bytes)]
        faults, decoded = map(iter, batches.decode(encoded, self.picture))
        found, rows = [], []
        for picture in images:
            fault = picture if isinstance(picture, stores.Fault) else None
            if isinstance(picture, bytes):
                fault = next(faults)
            found.append(fault)
            if fault is None and isinstance(picture, bytes):
                rows.append(next(decoded))
            elif fault is None:
                with tf.device("CPU:0"):
                    rows.append(self.picture(tf.constant(picture)).numpy())
        return found, rows

    def _embed_read(self, read):
        faults, rows = read
        if not rows:
            return faults, np.zeros([0, self.dim], np.float32)
        return faults, np.asarray(self._encode_image(np.stack(rows)))

    def _checked(self, name, embeddings):
        embeddings = np.asarray(embeddings, np.float32)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise ValueError(
                f"`{name}` must be embeddings [rows, {self.dim}]. Received: "
                f"shape={embeddings.shape}"
            )
        return embeddings


def load(
    name: str | os.PathLike,
    *,
    step: int | None = None,
    batch_size: int = 256,
    trust: bool = False,
) -> Embedder:
    """Loads a trained learner, or a public model, for use.

    Args:
        name: a run's directory, a public model by name (docs/models.md), or a
            `.keras` file of a `TwoTower` or `JESTModel`. The tokenizer of a
            `.keras` file, if any, lies beside it, as in a run directory.
        step: step of a checkpoint of the run; None takes the weights of a
            finished run.
        batch_size: pictures or texts per forward pass.
        trust: whether modules in the run's directory may be imported
            (docs/models.md).

    Returns:
        The model, with its `learner`, `tokenizer` and `picture`, and the
        `config` of its run; None for other models.

    Raises:
        ValueError: there is no such model or checkpoint, the run has not
            finished, or it needs code that is not trusted.

    Example:
        ```python
        model = jest_tf.load("runs/jest")
        model.embed_images(["cat.jpg"]) @ model.embed_texts(["a cat"]).T
        ```
    """
    model = loading.load(os.fspath(name), step, trust=trust)
    config = model.config if isinstance(model, reference.Run) else None
    return Embedder(
        model.learner,
        model.tokenizer,
        picture=model.picture,
        batch_size=batch_size,
        config=config,
    )


def _squashed(learner):
    shape = learner.input_shapes["image"]
    if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
        raise ValueError(
            "`learner` must take square RGB pictures, [B, S, S, 3], or "
            f"`picture` must be given. Received: {shape}"
        )
    return pictures.Resizing(shape[1])


# Queries scored at a time; 256 x 1,000,000 scores are 1 GB.
_QUERIES = 256


def _read(picture):
    """Returns bytes, uint8 [H, W, 3] or a fault."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, (str, os.PathLike)):
        try:
            return files.read_whole(os.fspath(picture))
        except OSError as error:
            return stores.Fault(error.strerror or str(error))
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    pixels = np.asarray(picture)
    if fault := two_tower.pixel_fault(pixels):
        return stores.Fault(fault)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., np.newaxis], 3, axis=-1)
    if pixels.ndim != 3 or pixels.shape[-1] not in (3, 4) or not pixels.size:
        return stores.Fault(
            "pixels must be [H, W, 3], [H, W, 4] or [H, W], not "
            f"{list(pixels.shape)}"
        )
    return pixels[..., :3]


def _name(picture):
    if isinstance(picture, (str, os.PathLike)):
        return repr(os.fspath(picture))
    if isinstance(picture, bytes):
        return f"{len(picture)} bytes"
    return f"a {type(picture).__name__}"


def _are_embeddings(values):
    return isinstance(values, (np.ndarray, tf.Tensor)) and (
        np.ndim(values) == 2 and np.asarray(values).dtype.kind == "f"
    )


def _list(name, values):
    if isinstance(values, (str, bytes, os.PathLike, Image.Image)):
        raise ValueError(
            f"`{name}` must be a list; write [x] for a single x. Received: "
            f"{_name(values)}"
        )
    return list(values)

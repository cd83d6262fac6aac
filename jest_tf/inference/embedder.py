"""A trained learner with its tokenizer and its preprocessing of images.

Images are decoded and resized as in training (`data/images.py`), to the
same pixels. Embeddings equal those of evaluations and sidecars: bit for bit in
the same batch of rows, and otherwise up to rounding, 1e-6 in float32.
"""

import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from jest_tf import config as config_lib
from jest_tf import embeddings as embeddings_lib
from jest_tf import files, models
from jest_tf.config import checks
from jest_tf.data import batches, stores, tokenizers
from jest_tf.data import images as images_lib
from jest_tf.models import reference, two_tower
from jest_tf.runs import loading

# A file name, an encoded image, an image of Pillow, or uint8 pixels.
AnyImage = str | os.PathLike | bytes | Image.Image | np.ndarray


class Embedder:
    """Embeds images and texts.

    Args:
        learner: a built two-tower model.
        tokenizer: maps valid UTF-8 string [k] to int32 [k, L]; None if there
            are no texts to embed.
        image_form: the form of its images; None resizes them as in training.
        batch_size: images or texts per forward pass.
        config: settings of the run that trained the learner, if any.
        source: the loaded run or model; identifies its sidecars to a `Funnel`.

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
        >>> model.embed_images([grey]).shape
        (1, 64)
    """

    def __init__(
        self,
        learner: models.TwoTower,
        tokenizer: Callable[[tf.Tensor], tf.Tensor] | None = None,
        *,
        image_form: images_lib.Form | None = None,
        batch_size: int = 256,
        config: config_lib.TrainConfig | None = None,
        source: reference.Run | reference.Pretrained | None = None,
    ):
        checks.check("batch_size", batch_size, checks.at_least(1))
        self.learner = learner
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.config = config
        self.source = source
        self.image_form = image_form or _squashed(learner)
        length = getattr(tokenizer, "length", None)
        image = tf.TensorSpec(
            [None, *self.image_form.shape], self.image_form.dtype
        )
        self._encode_image = embeddings_lib.standalone(
            lambda images: learner.encode_image(images, training=False),
            learner,
            input_signature=[image],
        )
        self._encode_text = embeddings_lib.standalone(
            lambda tokens: learner.encode_text(tokens, training=False),
            learner,
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

    def embed_images(self, images: Iterable[AnyImage]) -> np.ndarray:
        """Embeds n images to unit norm, float32 [n, D].

        Args:
            images: names of files, encoded images as bytes, images of Pillow,
                or uint8 arrays [H, W, 3], [H, W, 4] or [H, W], of any size and
                also mixed. Grey becomes RGB, and alpha is dropped. An image
                that cannot be read is an error.
        """
        images = _list("images", images)
        parts = [np.zeros([0, self.dim], np.float32)]
        workers = os.cpu_count() or 1
        starts = range(0, len(images), self.batch_size)
        read = functools.partial(self._read, images)
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            for pixels in batches.in_order(pool, read, starts, workers):
                parts.append(self._padded(self._encode_image, pixels))
        return np.concatenate(parts)

    def embed_texts(self, texts: Iterable[str]) -> np.ndarray:
        """Embeds m texts to unit norm, float32 [m, D]."""
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
                tokens = np.asarray(self.tokenizer(clean))
                parts.append(self._padded(self._encode_text, tokens))
        return np.concatenate(parts)

    def _padded(self, encode, rows):
        count = size = len(rows)
        if not embeddings_lib.ON_TENSORFLOW:  # JAX compiles for each size
            size = min(self.batch_size, 1 << (count - 1).bit_length())
        places = np.minimum(np.arange(size), count - 1)
        return np.asarray(encode(rows[places]))[:count]

    def _read(self, images, start):
        """Reads and resizes a batch of images, [m, *image_form.shape]."""
        some = [_read(x) for x in images[start : start + self.batch_size]]
        encoded = [image for image in some if isinstance(image, bytes)]
        faults, decoded = map(iter, batches.decode(encoded, self.image_form))
        rows = []
        for number, image in enumerate(some, start):
            fault = image if isinstance(image, stores.Fault) else None
            if isinstance(image, bytes):
                fault = next(faults)
            if fault:
                raise ValueError(
                    "`images` must be readable. Received: "
                    f"images[{number}], {_name(images[number])}: {fault.reason}"
                )
            if isinstance(image, bytes):
                rows.append(next(decoded))
            else:
                with tf.device("CPU:0"):
                    rows.append(self.image_form(tf.constant(image)).numpy())
        return np.stack(rows)


def load(
    name: str | os.PathLike,
    *,
    step: int | None = None,
    batch_size: int = 256,
    trust: bool = False,
    mix: float = 1.0,
) -> Embedder:
    """Loads a trained learner, or a public model, for use.

    Args:
        name: a run's directory, a public model by name (docs/models.md), or a
            `.keras` file of a `TwoTower` or `JESTModel`. The tokenizer of a
            `.keras` file, if any, lies beside it, as in a run directory.
        step: step of a checkpoint of the run; None takes the weights of a
            finished run.
        batch_size: images or texts per forward pass.
        trust: whether modules in the run's directory may be imported
            (docs/models.md).
        mix: share of the run's weights; the rest is of the model that the run
            started from, `model.init_from` (docs/fine_tuning.md).

    Example:
        ```python
        model = jest_tf.load("runs/jest")
        model.embed_images(["cat.jpg"]) @ model.embed_texts(["a cat"]).T
        ```
    """
    model = loading.load(os.fspath(name), step, trust=trust, mix=mix)
    config = model.config if isinstance(model, reference.Run) else None
    return Embedder(
        model.learner,
        model.tokenizer,
        image_form=model.image_form,
        batch_size=batch_size,
        config=config,
        source=model,
    )


def _squashed(learner):
    shape = learner.input_shapes["image"]
    if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
        raise ValueError(
            "`learner` must take square RGB images, [B, S, S, 3], or "
            f"`image_form` must be given. Received: {shape}"
        )
    return images_lib.Resizing(shape[1])


def _read(image):
    """Returns bytes, uint8 [H, W, 3] or a fault."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, os.PathLike)):
        try:
            return files.read_whole(os.fspath(image))
        except OSError as error:
            return stores.Fault(error.strerror or str(error))
    if isinstance(image, Image.Image):
        with contextlib.suppress(Exception):  # of damaged EXIF, any kind
            image = ImageOps.exif_transpose(image)
        return np.asarray(image.convert("RGB"))
    pixels = np.asarray(image)
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


def _name(image):
    if isinstance(image, (str, os.PathLike)):
        return repr(os.fspath(image))
    if isinstance(image, bytes):
        return f"{len(image)} bytes"
    return f"a {type(image).__name__}"


def _list(name, values):
    if isinstance(values, (str, bytes, os.PathLike, Image.Image)):
        raise ValueError(
            f"`{name}` must be a list; write [x] for a single x. Received: "
            f"{_name(values)}"
        )
    return list(values)

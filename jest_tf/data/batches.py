"""Batches of all records, for evaluation; helpers shared with the stream.

An unreadable record is an error here and is not replaced.
"""

import collections
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from jest_tf.config import checks
from jest_tf.data import pictures, reader, stores, tokenizers

# A tokenizer maps string [k] to int32 [k, length].
Tokenizer = Callable[[tf.Tensor], tf.Tensor]

# A batch on the device and a batch in preparation.
_PREFETCH = 2

# Messages of the latest errors in datasets' NumPy functions, in all threads.
_raised: collections.deque = collections.deque(maxlen=64)


def examples(
    store: stores.Store,
    *,
    batch_size: int,
    image_size: int | pictures.Form,
    tokenizer: Tokenizer | None = None,
) -> tf.data.Dataset:
    """Yields every record once, in the store's order.

    Args:
        store: the records.
        batch_size: k; the last batch may be smaller.
        image_size: side S of `image`, or a form of pictures.
        tokenizer: makes `text`; None yields no texts, and needs no captions.

    Returns:
        A finite dataset of dicts of `image`, `id` and, with a tokenizer,
        `text`, `caption_id` and `caption_replaced` of the first nonblank
        caption, as in `super_batches`; k rows each.

    Raises:
        ValueError: an argument is out of range. Iteration raises
            `tf.errors.InvalidArgumentError`, naming the record, if a record has
            no caption or no decodable picture; see `plain_errors`.
    """
    checks.check("batch_size", batch_size, checks.at_least(1))
    form = pictures.form_of(image_size)
    specs = {
        "image": tf.TensorSpec([None, *form.shape], form.dtype),
        "id": tf.TensorSpec([None], tf.int64),
        "caption": tf.TensorSpec([None], tf.string),
    }

    def fetch(start):
        rows = np.arange(start, min(start + batch_size, len(store)))
        found, images = read(store, rows, form)
        captions = [b""] * len(rows)
        for i, record in enumerate(found):
            if tokenizer and isinstance(record, stores.Record):
                choices = reader.candidates(record.captions)
                if choices:
                    captions[i] = record.captions[choices[0]]
                else:
                    found[i] = reader.NO_CAPTION
            if isinstance(found[i], stores.Fault):
                raise ValueError(
                    "Every record must have a picture and a caption here. "
                    f"Received: {store.describe(rows[i])}, {found[i].reason}"
                )
        return images, store.ids(rows), np.array(captions, object)

    def load(start):
        batch = call_numpy(fetch, [start], specs.values())
        batch = dict(zip(specs, batch, strict=True))
        captions = batch.pop("caption")
        if tokenizer:
            batch |= texts_of(captions, {"text": tokenizer})
        return batch

    starts = tf.data.Dataset.range(0, len(store), batch_size)
    return finish(map_in_order(starts, load))


def read(
    store: stores.Store, rows: np.ndarray, form: pictures.Form
) -> tuple[list[stores.Record | stores.Fault], np.ndarray]:
    """Reads and decodes the records of int64 rows [k].

    Returns:
        The k records, or their faults; and the pictures of the m records
        without a fault, [m, *form.shape].
    """
    found = store.read(rows)
    good = [
        i for i, record in enumerate(found) if isinstance(record, stores.Record)
    ]
    faults, images = decode([found[i].image for i in good], form)
    for i, fault in zip(good, faults, strict=True):
        found[i] = fault or found[i]
    return found, images


def decode(
    encoded: Sequence[bytes], form: pictures.Form
) -> tuple[list[stores.Fault | None], np.ndarray]:
    """Decodes k stored pictures of any format in `pictures`.

    Returns:
        The fault of each picture, or None; and the m pictures without a fault,
        [m, *form.shape].
    """
    found = [pictures.prepare(picture) for picture in encoded]
    good = [i for i, result in enumerate(found) if isinstance(result, bytes)]
    with tf.device("CPU:0"):
        kept, images = _decoder(form)(
            [found[i] for i in good] or [b""]  # undecodable: dropped
        )
    for place in np.setdiff1d(np.arange(len(good)), kept):
        i = good[place]
        found[i] = pictures.decode(found[i])
    faults = [
        result if isinstance(result, stores.Fault) else None for result in found
    ]
    return faults, images.numpy()


@functools.cache
def _decoder(form):
    """Compiles `pictures.decode_batch` for a form."""

    def decode(encoded):
        kept, images = pictures.decode_batch(encoded, {"image": form})
        return kept, images["image"]

    return tf.function(decode, [tf.TensorSpec([None], tf.string)])


def texts_of(captions, tokenizer_of):
    """Makes tokens and ids of captions, string [k]; marks invalid UTF-8."""
    captions, replaced = tokenizers.sanitize_captions(captions)
    batch = {name: make(captions) for name, make in tokenizer_of.items()}
    batch["caption_id"] = tf.strings.to_hash_bucket_fast(captions, 2**63 - 1)
    batch["caption_replaced"] = replaced
    return batch


def in_order(pool, function, items, ahead):
    """Maps items in a thread pool, in order; computes `ahead` items ahead."""
    pending = collections.deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    for future in pending:
        yield future.result()


def map_in_order(dataset, function):
    """Maps a dataset in parallel, keeping its order."""
    # AutoGraph would rewrite the NumPy functions too, and run them slowly.
    return dataset.map(
        tf.autograph.experimental.do_not_convert(function),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def finish(dataset):
    """Makes a dataset deterministic, and prefetches it."""
    options = tf.data.Options()
    options.deterministic = True
    return dataset.with_options(options).prefetch(_PREFETCH)


def call_numpy(function, inputs, specs):
    """Calls a NumPy function from a graph; `specs` describe its results."""

    def call(*values):
        try:
            return function(*values)
        except ValueError as error:
            _raised.append(str(error))
            raise

    types = [spec.dtype for spec in specs]
    return ensure_shapes(
        tf.numpy_function(call, inputs, types, stateful=False), specs
    )


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Unwraps the ValueError of a dataset from TensorFlow's error.

    Raises:
        ValueError: a dataset's NumPy function has raised it in the block.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        for text in reversed(_raised):
            if text in error.message:
                raise ValueError(text) from error
        raise


def ensure_shapes(values, specs):
    """Sets static shapes from specs."""
    return [
        tf.ensure_shape(value, spec.shape)
        for value, spec in zip(values, specs, strict=True)
    ]

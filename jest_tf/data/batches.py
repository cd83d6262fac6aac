"""Batches of every record once, for evaluation; helpers shared with the stream.

An unreadable record is an error here and is not replaced.
"""

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from jest_tf.data import pictures, reader, stores, tokenizers

# A tokenizer maps string [k] to int32 [k, length].
Tokenizer = Callable[[tf.Tensor], tf.Tensor]

# One batch on the device and one in preparation.
_PREFETCH = 2

# Texts of the latest errors in NumPy functions of datasets, of any thread.
_raised: collections.deque = collections.deque(maxlen=64)


def examples(
    store: stores.Store,
    *,
    batch_size: int,
    tokenizer: Tokenizer,
    image_size: int,
    metadata: Sequence[str] = (),
) -> tf.data.Dataset:
    """Yields every record once, in the store's order.

    Args:
        store: the records.
        batch_size: k; the last batch may be smaller.
        tokenizer: for `text`.
        image_size: S, for `image`.
        metadata: further fields to yield, such as `concept`; b"" where a record
            lacks one.

    Returns:
        A finite dataset of dicts of `image`, `text`, `id`, `caption_id` and
        `caption_replaced` as in `super_batches`, k rows each, and each field
        of `metadata` as string [k]. The caption is the first nonblank one.

    Raises:
        ValueError: an argument is out of range. Iteration raises
            `tf.errors.InvalidArgumentError`, naming the record, if one has no
            caption or no decodable picture.
    """
    check_at_least(1, batch_size=batch_size, image_size=image_size)

    def load(index):
        fetched = _fetch_rows(store, index, batch_size, ("caption", *metadata))
        return {
            "image": _decode_all(store, fetched, image_size),
            **texts_of(fetched["caption"], {"text": tokenizer}),
            "id": fetched["id"],
            **{name: fetched[name] for name in metadata},
        }

    return finish(map_in_order(_batch_numbers(store, batch_size), load))


def images(
    store: stores.Store, batch_size: int, image_size: int
) -> tf.data.Dataset:
    """Yields every picture once, in the store's order; needs no captions.

    Args:
        store: the records.
        batch_size: k; the last batch may be smaller.
        image_size: S.

    Returns:
        A finite dataset of uint8 [k, S, S, 3]; iteration raises as `examples`.
    """
    check_at_least(1, batch_size=batch_size, image_size=image_size)

    def load(index):
        fetched = _fetch_rows(store, index, batch_size, ())
        return _decode_all(store, fetched, image_size)

    return finish(map_in_order(_batch_numbers(store, batch_size), load))


def texts_of(captions, tokenizer_of):
    """Tokens, ids and validity of captions, string [k]."""
    captions, replaced = tokenizers.sanitize_captions(captions)
    batch = {name: make(captions) for name, make in tokenizer_of.items()}
    batch["caption_id"] = tf.strings.to_hash_bucket_fast(captions, 2**63 - 1)
    batch["caption_replaced"] = replaced
    return batch


def map_in_order(dataset, function):
    """Maps a dataset in parallel, keeping its order."""
    # AutoGraph would rewrite the NumPy functions too, and run them slowly.
    return dataset.map(
        tf.autograph.experimental.do_not_convert(function),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def finish(dataset):
    """Makes a dataset deterministic and prefetches."""
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
    """Raises a dataset's own ValueError, which TensorFlow would wrap.

    Raises:
        ValueError: as the NumPy function of a dataset raised it in the block.
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


def check_at_least(least, **settings):
    """Raises ValueError if a setting is below `least`."""
    for name, value in settings.items():
        if value < least:
            raise ValueError(
                f"`{name}` must be at least {least}. Received: {value}"
            )


def _batch_numbers(store, batch_size):
    return tf.data.Dataset.range(-(-len(store) // batch_size))


def _fetch_rows(store, index, batch_size, fields):

    def fetch(index):
        start = index * batch_size
        rows = np.arange(start, min(start + batch_size, len(store)))
        columns = [np.empty(len(rows), object) for _ in ("picture", *fields)]
        for i, record in enumerate(store.read(rows)):
            values = _fields_of(record, fields, store.max_image_pixels)
            if isinstance(values, stores.Fault):
                _refuse(store, rows[i], values)
            for column, value in zip(columns, values, strict=True):
                column[i] = value
        return rows, store.ids(rows), *columns

    names = ("row", "id", "picture", *fields)
    types = [tf.int64, tf.int64] + [tf.string] * (1 + len(fields))
    specs = [tf.TensorSpec([None], dtype) for dtype in types]
    return dict(zip(names, call_numpy(fetch, [index], specs), strict=True))


def _fields_of(record, fields, max_pixels):
    if isinstance(record, stores.Fault):
        return record
    picture = pictures.prepare(record.image, max_pixels)
    if isinstance(picture, stores.Fault):
        return picture
    values = [picture]
    for name in fields:
        if name == "caption":
            choices = reader.candidates(record.captions)
            if not choices:
                return reader.NO_CAPTION
            values.append(record.captions[choices[0]])
        else:
            values.append(record.metadata.get(name, b""))
    return values


def _decode_all(store, fetched, image_size):
    kept, decoded = pictures.decode_batch(
        fetched["picture"], {"image": image_size}
    )

    def refuse(rows, encoded, kept):
        missing = int(np.setdiff1d(np.arange(len(rows)), kept)[0])
        fault = pictures.decode(encoded[missing], store.max_image_pixels)
        _refuse(store, rows[missing], fault)

    def stop():
        inputs = [fetched["row"], fetched["picture"], kept]
        spec = tf.TensorSpec(decoded["image"].shape, tf.uint8)
        return call_numpy(refuse, inputs, [spec])[0]

    whole = tf.equal(tf.size(kept), tf.size(fetched["row"]))
    return tf.cond(whole, lambda: decoded["image"], stop)


def _refuse(store, row, fault):
    raise ValueError(
        "Every record must have a picture and a caption here. Received: "
        f"{store.describe(row)}, {fault.reason}"
    )

"""Batches of the images of all records, for evaluation.

An unreadable record is an error here and is not replaced.
"""

import collections
import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from jest_tf.config import checks
from jest_tf.data import images as images_lib
from jest_tf.data import loading, stores


def examples(
    store: stores.Store, *, batch_size: int, image_size: int | images_lib.Form
) -> tf.data.Dataset:
    """Yields the image of every record once, in the store's order.

    Args:
        batch_size: k; the last batch may be smaller.
        image_size: side S of `image`, or a form of images.

    Returns:
        A finite dataset of dicts of `image` and `id`, as in `super_batches`; k
        rows each.

    Raises:
        tf.errors.InvalidArgumentError: while iterating, if a record has no
            decodable image; see `loading.plain_errors`.
    """
    checks.check("batch_size", batch_size, checks.at_least(1))
    form = images_lib.make_form(image_size)
    specs = {
        "image": tf.TensorSpec([None, *form.shape], form.dtype),
        "id": tf.TensorSpec([None], tf.int64),
    }

    def fetch(start):
        rows = np.arange(start, min(start + batch_size, len(store)))
        records, images = read(store, rows, form)
        for row, record in zip(rows, records, strict=True):
            if isinstance(record, stores.Fault):
                raise ValueError(
                    "Every record to evaluate on must have an image. Received: "
                    f"{store.describe(row)}, {record.reason}"
                )
        return images, store.ids(rows)

    def load(start):
        batch = loading.call_numpy(fetch, [start], specs.values())
        return dict(zip(specs, batch, strict=True))

    starts = tf.data.Dataset.range(0, len(store), batch_size)
    return loading.finish(loading.map_in_order(starts, load))


def read(
    store: stores.Store, rows: np.ndarray, form: images_lib.Form
) -> tuple[list[stores.Record | stores.Fault], np.ndarray]:
    """Reads and decodes the records of int64 rows [k].

    Returns:
        The k records, or their faults; and the images of the m records
        without a fault, [m, *form.shape].
    """
    records = store.read(rows)
    good = [
        i
        for i, record in enumerate(records)
        if isinstance(record, stores.Record)
    ]
    faults, images = decode([records[i].image for i in good], form)
    for i, fault in zip(good, faults, strict=True):
        records[i] = fault or records[i]
    return records, images


def decode(
    encoded: Sequence[bytes], form: images_lib.Form
) -> tuple[list[stores.Fault | None], np.ndarray]:
    """Decodes k stored images of any format in `images`.

    Returns:
        The fault of each image, or None; and the m images without a fault,
        [m, *form.shape].
    """
    prepared = [images_lib.prepare(image) for image in encoded]
    good = [i for i, result in enumerate(prepared) if isinstance(result, bytes)]
    with tf.device("CPU:0"):
        some = [prepared[i] for i in good] or [b""]  # undecodable: dropped
        turns = [images_lib.orientation(image) for image in some]
        kept, images = _decoder(form)(some, tf.constant(turns, tf.int64))
    for place in np.setdiff1d(np.arange(len(good)), kept):
        i = good[place]
        prepared[i] = images_lib.decode(prepared[i])
    faults = [
        result if isinstance(result, stores.Fault) else None
        for result in prepared
    ]
    return faults, images.numpy()


@functools.cache
def _decoder(form):
    """Compiles `images.decode_batch` for a form."""

    def decode(*encoded):
        kept, images = images_lib.decode_batch(*encoded, {"image": form})
        return kept, images["image"]

    specs = [tf.TensorSpec([None], dtype) for dtype in (tf.string, tf.int64)]
    return tf.function(decode, specs)


def in_order(pool, function, items, ahead):
    """Maps items in a thread pool, in order; computes `ahead` items ahead."""
    pending = collections.deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    for future in pending:
        yield future.result()

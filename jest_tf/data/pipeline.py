"""The `tf.data` datasets: super-batches for training, batches for evaluation.

A super-batch is a pure function of (seed, step). A counter numbers chunks of
positions, NumPy reads a chunk's records (`records.py`) in the stream's order
(`stream.py`), and everything after that is one graph a chunk: parse, choose a
caption, decode, tokenise (`preprocessing.py`). Chunks run in parallel and are
joined in order, so there is no shuffle buffer and no iterator state: resuming
is a start step. Selection and augmentation happen later, on the device.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from google.protobuf import message

from jest_tf.data import preprocessing, records, stream

# A tokenizer maps string [k] to int32 [k, length].
Tokenizer = Callable[[tf.Tensor], tf.Tensor]

# Records in a unit of parallel work. From 128 to 1,280 throughput is equal
# within noise; smaller units balance better and hold less memory.
_CHUNK = 256
# One super-batch for the device and one in the making.
_PREFETCH = 2
# Keeps the choice of a caption apart from other uses of a position.
_CAPTION_SALT = 0x63617074696F6E


def super_batches(
    store: records.TFRecordStore,
    *,
    super_batch_size: int,
    seed: int,
    tokenizer: Tokenizer,
    image_size: int,
    start_step: int = 0,
    reference_tokenizer: Tokenizer | None = None,
    reference_image_size: int | None = None,
) -> tf.data.Dataset:
    """The endless training stream; element n is super-batch start_step + n.

    Super-batch s holds the positions [s B, (s + 1) B) of `stream.Order`. Of a
    record's captions one is chosen by a hash of (seed, position); a blank one
    is a caption like any other.

    Args:
        store: the records.
        super_batch_size: B.
        seed: the run's seed, in [0, 2**63).
        tokenizer: the learner's, for `text`.
        image_size: S, for `image`.
        start_step: the first step to yield.
        reference_tokenizer: adds `text_for_reference` unless it is `tokenizer`.
        reference_image_size: adds `image_for_reference` unless it equals
            `image_size`.

    Returns:
        A dataset of dicts of static shape: `image` uint8 [B, S, S, 3], `text`
        int32 [B, L], `id` int64 [B], `caption_id` int64 [B] (equal captions
        have equal ids), `caption_replaced` bool [B] (bad UTF-8 was replaced),
        and the two above where the reference preprocesses differently.

    Raises:
        ValueError: an argument is out of range. Iteration raises
            `tf.errors.InvalidArgumentError`, naming the record, where one has
            no caption or no picture that can be decoded.
    """
    _check_positive(super_batch_size=super_batch_size, image_size=image_size)
    if start_step < 0:
        raise ValueError(
            f"`start_step` must not be negative. Received: {start_step}"
        )
    order = stream.Order(len(store), seed)
    chunk = _chunk_size(super_batch_size)
    chunks = super_batch_size // chunk  # in a super-batch
    image_sizes = {"image": image_size}
    if reference_image_size not in (None, image_size):
        _check_positive(reference_image_size=reference_image_size)
        image_sizes["image_for_reference"] = reference_image_size
    tokenizers = {"text": tokenizer}
    if reference_tokenizer not in (None, tokenizer):
        tokenizers["text_for_reference"] = reference_tokenizer

    def locate(index):
        positions = np.arange(index * chunk, (index + 1) * chunk)
        choices = stream.uniform_hash(seed, positions, _CAPTION_SALT)
        return order.rows(positions), (choices >> np.uint64(1)).astype(np.int64)

    def load(index):
        fetched = _fetch(store, locate, index, size=chunk)
        return _examples(store, fetched, image_sizes, tokenizers)

    def join(batch):
        return {
            name: tf.reshape(value, [super_batch_size, *value.shape[2:]])
            for name, value in batch.items()
        }

    dataset = tf.data.Dataset.counter(start_step * chunks)
    dataset = _map_in_order(dataset, load)
    dataset = dataset.batch(chunks, drop_remainder=True).map(join)
    return _finish(dataset)


def examples(
    store: records.TFRecordStore,
    *,
    batch_size: int,
    tokenizer: Tokenizer,
    image_size: int,
    metadata: Sequence[str] = (),
) -> tf.data.Dataset:
    """Every record once, in the store's order, with its first caption.

    Args:
        store: the records.
        batch_size: k; the last batch may hold fewer.
        tokenizer: for `text`.
        image_size: S, for `image`.
        metadata: further string features of the schema to yield, such as
            `concept` or `label`; b"" where a record has none.

    Returns:
        A finite dataset of the dicts of `super_batches`, k rows each, and each
        feature of `metadata` as string [k].

    Raises:
        ValueError: an argument is out of range; iteration as in
            `super_batches`.
    """
    _check_positive(batch_size=batch_size, image_size=image_size)
    load = functools.partial(
        _load_in_order,
        store,
        batch_size,
        lambda fetched: _examples(
            store,
            fetched,
            {"image": image_size},
            {"text": tokenizer},
            metadata,
        ),
    )
    return _finish(_map_in_order(_batch_numbers(store, batch_size), load))


def images(
    store: records.TFRecordStore, batch_size: int, image_size: int
) -> tf.data.Dataset:
    """Every picture once, in the store's order; captions are not looked at.

    Args:
        store: the records.
        batch_size: k; the last batch may hold fewer.
        image_size: S.

    Returns:
        A finite dataset of uint8 [k, S, S, 3].

    Raises:
        ValueError: an argument is out of range; iteration as in
            `super_batches`.
    """
    _check_positive(batch_size=batch_size, image_size=image_size)

    def decode(fetched):
        parsed = tf.io.parse_example(
            fetched["serialized"], {"image": _feature(tf.string)}
        )
        encoded = _single(store, "image", parsed["image"], fetched["row"])
        return _decode(store, encoded, fetched["row"], {"image": image_size})[
            "image"
        ]

    load = functools.partial(_load_in_order, store, batch_size, decode)
    return _finish(_map_in_order(_batch_numbers(store, batch_size), load))


def _batch_numbers(store, batch_size):
    return tf.data.Dataset.range(-(-len(store) // batch_size))


def _load_in_order(store, batch_size, parse, index):
    def locate(index):
        start = index * batch_size
        rows = np.arange(start, min(start + batch_size, len(store)))
        return rows, np.zeros(len(rows), np.int64)

    return parse(_fetch(store, locate, index))


def _map_in_order(dataset, function):
    # AutoGraph would rewrite the NumPy functions too, and run them slowly.
    return dataset.map(
        tf.autograph.experimental.do_not_convert(function),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _finish(dataset):
    options = tf.data.Options()
    options.deterministic = True
    return dataset.with_options(options).prefetch(_PREFETCH)


def _chunk_size(super_batch_size):
    """The largest divisor of at most _CHUNK, or all if there is no good one."""
    divisor = max(
        size
        for size in range(1, min(_CHUNK, super_batch_size) + 1)
        if super_batch_size % size == 0
    )
    return divisor if 8 * divisor >= _CHUNK else super_batch_size


def _fetch(store, locate, index, size=None):
    """Reads the records that `locate` names, as tensors of [size]."""

    def read(index):
        rows, choices = locate(int(index))
        # Not an array of type S, which would drop trailing zero bytes.
        serialized = np.empty(len(rows), object)
        serialized[:] = store.read(rows)
        _check_parsable(store, rows, serialized)
        return serialized, rows, choices, store.derived_ids(rows)

    names = ("serialized", "row", "choice", "derived_id")
    types = (tf.string, tf.int64, tf.int64, tf.int64)
    values = tf.numpy_function(read, [index], types, stateful=False)
    return {
        name: tf.ensure_shape(value, [size])
        for name, value in zip(names, values, strict=True)
    }


def _check_parsable(store, rows, serialized):
    # TensorFlow's own error prints the record's bytes, not its place.
    parse = tf.train.Example.FromString
    for row, payload in zip(rows, serialized, strict=True):
        try:
            parse(payload)
        except message.DecodeError as error:
            raise ValueError(
                "Every record must be a serialized `tf.train.Example`. "
                f"Received: {len(payload)} other bytes in "
                f"{store.describe(row)}"
            ) from error


def _examples(store, fetched, image_sizes, tokenizers, metadata=()):
    """Serialized records -> the batch dict of `super_batches`."""
    strings = ("image", "caption", *metadata)
    features = {name: _feature(tf.string) for name in strings}
    features["id"] = _feature(tf.int64)
    parsed = tf.io.parse_example(fetched["serialized"], features)
    rows = fetched["row"]

    encoded = _single(store, "image", parsed["image"], rows)
    batch = _decode(store, encoded, rows, image_sizes)
    captions, replaced = preprocessing.sanitize_captions(
        _choose(store, parsed["caption"], fetched["choice"], rows)
    )
    for name, tokenizer in tokenizers.items():
        batch[name] = tokenizer(captions)
    batch["id"] = _ids(store, parsed["id"], fetched["derived_id"], rows)
    batch["caption_id"] = tf.strings.to_hash_bucket_fast(captions, 2**63 - 1)
    batch["caption_replaced"] = replaced
    for name in metadata:
        batch[name] = _single(store, name, parsed[name], rows, default=b"")
    return batch


def _feature(dtype):
    return tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64)


def _choose(store, captions, choices, rows):
    """One caption of each record: ragged [k, captions] -> [k]."""
    counts = captions.row_lengths()
    _require(store, "caption", "at least one value", rows, counts, counts > 0)
    chosen = tf.math.floormod(choices, tf.maximum(counts, 1))
    return tf.gather(captions.flat_values, captions.row_starts() + chosen)


def _single(store, name, values, rows, default=None):
    """The only value of each record: ragged [k, values] -> [k]."""
    counts = values.row_lengths()
    if default is None:
        _require(store, name, "one value", rows, counts, tf.equal(counts, 1))
        return tf.reshape(values.flat_values, tf.shape(rows))
    _require(store, name, "at most one value", rows, counts, counts <= 1)
    return tf.reshape(
        values.to_tensor(default, shape=[None, 1]), tf.shape(rows)
    )


def _ids(store, ids, derived, rows):
    """Stored ids, or derived ones for records without: [k]."""
    counts = ids.row_lengths()
    _require(store, "id", "at most one value", rows, counts, counts <= 1)
    missing = tf.equal(counts, 0)
    _require(
        store,
        "id",
        "a value where shards share a base name, for ids derived from it "
        "would repeat",
        rows,
        counts,
        tf.logical_not(missing & tf.equal(derived, -1)),
    )
    stored = tf.reshape(ids.to_tensor(0, shape=[None, 1]), tf.shape(rows))
    return tf.where(missing, derived, stored)


def _require(store, name, what, rows, counts, good):
    """Raises, naming the first record at fault, unless all are good."""

    def refuse(good, rows, counts):
        first = int(np.argmin(good))
        if not good[first]:
            raise ValueError(
                f"`{name}` must hold {what}. Received: {counts[first]} values "
                f"in {store.describe(rows[first])}"
            )
        return np.bool_(True)

    # Stateful, so that it runs although nothing uses its result.
    tf.numpy_function(refuse, [good, rows, counts], tf.bool, stateful=True)


def _decode(store, encoded, rows, image_sizes):
    """Decodes string [k] once into uint8 [k, S, S, 3] for each size."""
    signature = {
        name: tf.TensorSpec([size, size, 3], tf.uint8)
        for name, size in image_sizes.items()
    }

    def decode_one(encoded):
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return {
            name: preprocessing.resize_image(image, size)
            for name, size in image_sizes.items()
        }

    def decode(encoded):
        return tf.map_fn(
            decode_one,
            encoded,
            fn_output_signature=signature,
            parallel_iterations=1,
        )

    def refuse(encoded, rows):
        for value, row in zip(encoded, rows, strict=True):
            try:
                tf.io.decode_image(value, channels=3, expand_animations=False)
            except tf.errors.OpError as error:
                raise ValueError(
                    "`image` must be a PNG, JPEG, GIF or BMP picture. "
                    f"Received: {len(value)} bytes that cannot be decoded in "
                    f"{store.describe(row)}: {error.message}"
                ) from error
        return encoded

    # A graph cannot catch an error, but a dataset can drop the element that
    # raised one. The second dataset runs only where the first came out empty:
    # it finds the culprit, or, if there was none, decodes again.
    attempt = tf.data.Dataset.from_tensors(encoded).map(decode).ignore_errors()
    explain = tf.data.Dataset.from_tensors((encoded, rows)).map(
        lambda encoded, rows: decode(
            tf.ensure_shape(
                tf.numpy_function(refuse, [encoded, rows], tf.string),
                encoded.shape,
            )
        )
    )
    return attempt.concatenate(explain).take(1).get_single_element()


def _check_positive(**settings):
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {value}")

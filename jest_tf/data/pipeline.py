"""The `tf.data` datasets: super-batches for training, batches for evaluation.

A super-batch is a pure function of (seed, step). A counter numbers chunks of
positions, NumPy reads a chunk's records (`data/reader.py`) in the stream's
order (`stream.py`), and everything after that is one graph a chunk: decode,
tokenise (`preprocessing.py`). Where a picture turns out damaged, the chunk goes
back to be repaired; whole ones never wait for that. Chunks run in parallel and
are joined in order, so there is no shuffle buffer and no iterator state:
resuming is a start step. A cascade (`cascade.py`) chooses first which positions
are read. Selection and augmentation happen later, on the device.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf.data import cascade as cascade_lib
from jest_tf.data import fault_log, pictures, preprocessing, stores, stream
from jest_tf.data import reader as reader_lib
from jest_tf.data import sidecars as sidecars_lib

FaultLog = fault_log.FaultLog

# A tokenizer maps string [k] to int32 [k, length].
Tokenizer = Callable[[tf.Tensor], tf.Tensor]

# Records in a unit of parallel work. From 128 to 1,280 throughput is equal
# within noise; smaller units balance better and hold less memory.
_CHUNK = 256
# One super-batch for the device and one in the making.
_PREFETCH = 2
_MAX_PIXELS = config_lib.DataConfig.max_image_pixels
_MAX_FAULT_RATE = config_lib.DataConfig.max_fault_rate


def super_batches(
    store: stores.Store,
    *,
    super_batch_size: int,
    seed: int,
    tokenizer: Tokenizer,
    image_size: int,
    start_step: int = 0,
    weights: Sequence[float] = (),
    shuffle_block_size: int | None = None,
    host: int = 0,
    num_hosts: int = 1,
    sidecars: sidecars_lib.Sidecars | None = None,
    cascade: cascade_lib.Cascade | None = None,
    faults: FaultLog | None = None,
    max_image_pixels: int = _MAX_PIXELS,
    reference_tokenizer: Tokenizer | None = None,
    reference_image_size: int | None = None,
) -> tf.data.Dataset:
    """The endless training stream; element n is super-batch start_step + n.

    Super-batch s holds the positions [s B, (s + 1) B) of `stream.Order`, or of
    `stream.Mixture` with weights; with a cascade those B of the K B positions
    [s K B, (s + 1) K B) that it chooses, in this order. Of a record's captions
    that are not blank one is chosen by a hash of (seed, position). A record
    that cannot be had is replaced by another, a function of (seed, position)
    too (`data/reader.py`).

    Args:
        store: the records; of one with a manifest those that are in it.
        super_batch_size: B, over all hosts.
        seed: the run's seed, in [0, 2**63).
        tokenizer: the learner's, for `text`.
        image_size: S, for `image`.
        start_step: the first step to yield.
        weights: shares of `store.parts` in the stream; () takes each by its
            size.
        shuffle_block_size: of `stream.Order`; None shuffles freely.
        host: the number of this host, from 0.
        num_hosts: H, must divide B. Host h yields the rows [h B/H, (h + 1)
            B/H) of every super-batch.
        sidecars: of a reference over the same store; adds `reference_image`
            and `reference_text`.
        cascade: chooses the positions that are read; None reads all.
        faults: counts and logs records that cannot be had, and stops the run
            if there are too many; None counts with the default rate.
        max_image_pixels: a larger picture cannot be had.
        reference_tokenizer: adds `text_for_reference` unless it is `tokenizer`.
        reference_image_size: adds `image_for_reference` unless it equals
            `image_size`.

    Returns:
        A dataset of dicts of static shape, where B is this host's share:
        `image` uint8 [B, S, S, 3], `text` int32 [B, L], `id` int64 [B],
        `caption_id` int64 [B] (equal captions have equal ids),
        `caption_replaced` bool [B] (bad UTF-8 was replaced), `record_replaced`
        bool [B] (another record stands in for one that cannot be had), and
        what the arguments above add: embeddings [B, D] in the sidecars' dtype,
        and the pictures and tokens that the reference preprocesses otherwise.

    Raises:
        ValueError: an argument is out of range. Iteration raises
            `tf.errors.InvalidArgumentError` where too many records cannot be
            had, or sidecars do not fit.
    """
    image_sizes = {"image": image_size}
    if reference_image_size not in (None, image_size):
        image_sizes["image_for_reference"] = reference_image_size
    _check_at_least(1, super_batch_size=super_batch_size, num_hosts=num_hosts)
    _check_at_least(1, max_image_pixels=max_image_pixels)
    _check_at_least(1, image_size=image_size)
    _check_at_least(1, reference_image_size=reference_image_size or 1)
    _check_at_least(0, start_step=start_step)
    tokenizers = {"text": tokenizer}
    if reference_tokenizer not in (None, tokenizer):
        tokenizers["text_for_reference"] = reference_tokenizer
    share = _Share(super_batch_size, host, num_hosts)
    if faults is None:
        faults = FaultLog(None, _MAX_FAULT_RATE)
    faults.start(start_step, start_step * share.size)
    places = order(store, weights, seed, shuffle_block_size)
    embedded = sidecars or (cascade and cascade.sidecars)
    reader = reader_lib.Reader(
        store,
        places,
        seed=seed,
        step_size=cascade.size if cascade else super_batch_size,
        max_pixels=max_image_pixels,
        log=faults,
        embedded=embedded and embedded.valid,
    )

    def load(positions):
        return _load_chunk(
            store, reader, positions, image_sizes, tokenizers, sidecars
        )

    def join(batch):
        return {
            name: tf.reshape(value, [share.size, *value.shape[2:]])
            for name, value in batch.items()
        }

    dataset = share.positions(start_step)
    if cascade:
        chosen = cascade.positions(
            start_step,
            share.rows,
            store=store,
            order=places,
            seed=seed,
            super_batch_size=super_batch_size,
        )
        dataset = share.cut(chosen)
    dataset = _map_in_order(dataset, load)
    dataset = dataset.batch(share.num_chunks, drop_remainder=True).map(join)
    return _finish(dataset)


def examples(
    store: stores.Store,
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
        metadata: further fields to yield, such as `concept` or `label`; b""
            where a record has none.

    Returns:
        A finite dataset of dicts of `image`, `text`, `id`, `caption_id` and
        `caption_replaced` as in `super_batches`, k rows each, and each field
        of `metadata` as string [k]. The first caption is the first that is not
        blank.

    Raises:
        ValueError: an argument is out of range. Iteration raises
            `tf.errors.InvalidArgumentError`, naming the record, where one has
            no caption or no picture that can be decoded.
    """
    _check_at_least(1, batch_size=batch_size, image_size=image_size)

    def load(index):
        fetched = _fetch_rows(
            store, index, batch_size, ("caption", *metadata), _MAX_PIXELS
        )
        batch = _decode_all(store, fetched, image_size, _MAX_PIXELS)
        batch |= _texts(fetched["caption"], {"text": tokenizer})
        batch["id"] = fetched["id"]
        return batch | {name: fetched[name] for name in metadata}

    return _finish(_map_in_order(_batch_numbers(store, batch_size), load))


def images(
    store: stores.Store,
    batch_size: int,
    image_size: int,
    max_image_pixels: int = _MAX_PIXELS,
) -> tf.data.Dataset:
    """Every picture once, in the store's order; captions are not looked at.

    Args:
        store: the records.
        batch_size: k; the last batch may hold fewer.
        image_size: S.
        max_image_pixels: a larger picture is refused.

    Returns:
        A finite dataset of uint8 [k, S, S, 3].

    Raises:
        ValueError: an argument is out of range; iteration as in `examples`.
    """
    _check_at_least(
        1,
        batch_size=batch_size,
        image_size=image_size,
        max_image_pixels=max_image_pixels,
    )

    def load(index):
        fetched = _fetch_rows(store, index, batch_size, (), max_image_pixels)
        decoded = _decode_all(store, fetched, image_size, max_image_pixels)
        return decoded["image"]

    return _finish(_map_in_order(_batch_numbers(store, batch_size), load))


def order(
    store: stores.Store,
    weights: Sequence[float],
    seed: int,
    shuffle_block_size: int | None,
) -> stream.Order | stream.Mixture:
    """The order of a training stream; arguments as of `super_batches`.

    Raises:
        ValueError: as of `stream.Order` and `stream.Mixture`, or the manifest
            leaves nothing of a store that has a share.
    """
    row_weights = store.manifest and store.manifest.weights
    if weights and store.manifest:
        _check_parts(store)
    if not weights:
        return stream.Order(
            len(store),
            seed,
            block_size=shuffle_block_size,
            row_weights=row_weights,
        )
    return stream.Mixture(
        store.parts,
        weights,
        seed,
        block_size=shuffle_block_size,
        row_weights=row_weights,
    )


def _check_parts(store):
    """Refuses a manifest that has no record of a part of the store."""
    starts = np.cumsum([0, *store.parts[:-1]])
    parts = np.split(store.manifest.weights, starts[1:])
    for number, (part, start) in enumerate(zip(parts, starts, strict=True)):
        if not part.any():
            raise ValueError(
                "`data.manifest` must have a record of each pattern of "
                "`data.train` where `data.weights` give it a share. Received: "
                f"{store.manifest.directory!r} with none of the {len(part):,} "
                f"of `data.train[{number}]`, from {store.describe(int(start))} "
                "on"
            )


class Examples(NamedTuple):
    """What stands at positions of a stream.

    Attributes:
        image: uint8 [k, S, S, 3].
        caption: k strings.
        id: int64 [k].
    """

    image: np.ndarray
    caption: list[str]
    id: np.ndarray


def at_positions(
    store: stores.Store,
    positions: np.ndarray,
    *,
    step_size: int,
    seed: int,
    image_size: int,
    weights: Sequence[float] = (),
    shuffle_block_size: int | None = None,
    sidecars: sidecars_lib.Sidecars | None = None,
    max_image_pixels: int = _MAX_PIXELS,
) -> Examples:
    """The examples that `super_batches` yields in a few places.

    Args:
        store: as of `super_batches`, like all that isn't said here.
        positions: int64 [k]; without a cascade, row i of super-batch s is
            position s B + i.
        step_size: positions that the stream offers a step: B, or K B with a
            cascade.

    Raises:
        ValueError: what stands there cannot be had.
    """
    reader = reader_lib.Reader(
        store,
        order(store, weights, seed, shuffle_block_size),
        seed=seed,
        step_size=step_size,
        max_pixels=max_image_pixels,
        log=FaultLog(None, 1.0),  # the run has counted them
        embedded=sidecars and sidecars.valid,
    )
    positions = np.asarray(positions, np.int64)
    chunk = reader.read(positions)
    kept, decoded = _decode(chunk.pictures, {"image": image_size})
    kept = kept.numpy()
    missing = np.setdiff1d(np.arange(len(positions)), kept)
    image = np.empty([len(positions), *decoded["image"].shape[1:]], np.uint8)
    image[kept] = decoded["image"]
    if len(missing):
        (image[missing],) = reader.repair(
            positions, chunk, missing, [image_size]
        )
    captions, _ = preprocessing.sanitize_captions(
        tf.constant(chunk.captions, tf.string)
    )
    return Examples(
        image,
        [one.decode("utf-8") for one in captions.numpy().tolist()],
        store.ids(chunk.rows),
    )


class _Share:
    """This host's part of every super-batch, and how it is cut into chunks."""

    def __init__(self, super_batch_size, host, num_hosts):
        if super_batch_size % num_hosts:
            raise ValueError(
                "`num_hosts` must divide `super_batch_size`. Received: "
                f"{num_hosts} and {super_batch_size}"
            )
        if not 0 <= host < num_hosts:
            raise ValueError(
                f"`host` must be in [0, {num_hosts}). Received: {host}"
            )
        self.size = super_batch_size // num_hosts
        self.chunk = _chunk_size(self.size)
        self.num_chunks = self.size // self.chunk
        self._super_batch_size = super_batch_size
        self.rows = slice(host * self.size, (host + 1) * self.size)

    def positions(self, start_step):
        """A dataset of chunks of this host's positions, int64 [chunk]."""

        def chunk(index):
            step, number = index // self.num_chunks, index % self.num_chunks
            start = step * self._super_batch_size + self.rows.start
            start += number * self.chunk
            return start + tf.range(self.chunk, dtype=tf.int64)

        chunks = tf.data.Dataset.counter(start_step * self.num_chunks)
        return chunks.map(chunk)

    def cut(self, chosen):
        """As `positions`, of a dataset of int64 [size], one a step."""
        shape = [self.num_chunks, self.chunk]
        return chosen.map(lambda rows: tf.reshape(rows, shape)).unbatch()


def _batch_numbers(store, batch_size):
    return tf.data.Dataset.range(-(-len(store) // batch_size))


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


def _load_chunk(store, reader, positions, image_sizes, tokenizers, sidecars):
    """The batch dict of `super_batches` for positions int64 [k]."""
    size = positions.shape[0]

    def read(positions):
        return tuple(reader.read(positions))

    chunk = reader_lib.Chunk(*_call(read, [positions], _chunk_specs(size)))
    kept, decoded = _decode(chunk.pictures, image_sizes)
    chunk, decoded = tf.cond(
        tf.equal(tf.size(kept), size),
        lambda: (chunk, _whole(decoded, size)),
        lambda: _repair(reader, positions, chunk, kept, decoded),
    )
    batch = decoded | _texts(chunk.captions, tokenizers)
    batch |= _joined(store, sidecars, chunk)
    batch["record_replaced"] = chunk.attempts > 0
    return batch


def _repair(reader, positions, chunk, kept, decoded):
    """A chunk and its pictures, with others in place of those not `kept`."""
    count = positions.shape[0]
    sizes = {name: value.shape[1] for name, value in decoded.items()}

    def repair(positions, kept, *values):
        # What TensorFlow hands in is not to be written to.
        chunk = reader_lib.Chunk(*(value.copy() for value in values[:5]))
        missing = np.setdiff1d(np.arange(count), kept)
        replacements = reader.repair(positions, chunk, missing, sizes.values())
        whole = []
        for some, others in zip(values[5:], replacements, strict=True):
            image = np.empty((count, *some.shape[1:]), np.uint8)
            image[kept], image[missing] = some, others
            whole.append(image)
        return *chunk, *whole

    specs = _chunk_specs(count) + [
        tf.TensorSpec([count, size, size, 3], tf.uint8)
        for size in sizes.values()
    ]
    values = _call(repair, [positions, kept, *chunk, *decoded.values()], specs)
    return (
        reader_lib.Chunk(*values[:5]),
        dict(zip(sizes, values[5:], strict=True)),
    )


def _joined(store, sidecars, chunk):
    """What is kept beside the records: ids, the reference's embeddings."""
    rows = chunk.rows.shape[0]
    specs = [tf.TensorSpec([rows], tf.int64)]
    if sidecars is not None:
        dtype = tf.as_dtype(sidecars.dtype)
        specs += [tf.TensorSpec([rows, sidecars.dim], dtype)] * 2

    def join(rows, choices):
        ids = store.ids(rows)
        if sidecars is None:
            return (ids,)
        return ids, *sidecars.read(rows, choices, ids)

    values = _call(join, [chunk.rows, chunk.choices], specs)
    names = ("id", "reference_image", "reference_text")
    return dict(zip(names, values, strict=False))


def _texts(captions, tokenizers):
    """What becomes of string [k]: tokens, and what the captions are."""
    captions, replaced = preprocessing.sanitize_captions(captions)
    batch = {name: make(captions) for name, make in tokenizers.items()}
    batch["caption_id"] = tf.strings.to_hash_bucket_fast(captions, 2**63 - 1)
    batch["caption_replaced"] = replaced
    return batch


def _fetch_rows(store, index, batch_size, fields, max_pixels):
    """Reads a batch in order; refuses what cannot be had."""

    def fetch(index):
        rows = np.arange(
            index * batch_size, min((index + 1) * batch_size, len(store))
        )
        columns = [np.empty(len(rows), object) for _ in ("picture", *fields)]
        for i, record in enumerate(store.read(rows)):
            values = _fields_of(record, fields, max_pixels)
            if isinstance(values, stores.Fault):
                _refuse(store, rows[i], values)
            for column, value in zip(columns, values, strict=True):
                column[i] = value
        return rows, store.ids(rows), *columns

    names = ("row", "id", "picture", *fields)
    types = [tf.int64, tf.int64] + [tf.string] * (1 + len(fields))
    specs = [tf.TensorSpec([None], dtype) for dtype in types]
    return dict(zip(names, _call(fetch, [index], specs), strict=True))


def _fields_of(record, fields, max_pixels):
    """The picture and `fields` of a record, or a fault."""
    if isinstance(record, stores.Fault):
        return record
    picture = pictures.prepare(record.image, max_pixels)
    if isinstance(picture, stores.Fault):
        return picture
    values = [picture]
    for name in fields:
        if name == "caption":
            choices = reader_lib.candidates(record.captions)
            if not choices:
                return reader_lib.NO_CAPTION
            values.append(record.captions[choices[0]])
        else:
            values.append(record.metadata.get(name, b""))
    return values


def _decode_all(store, fetched, image_size, max_pixels):
    """Decodes string [k]; refuses what cannot be decoded."""
    kept, decoded = _decode(fetched["picture"], {"image": image_size})

    def refuse(rows, encoded, kept):
        missing = int(np.setdiff1d(np.arange(len(rows)), kept)[0])
        fault = pictures.decode(encoded[missing], max_pixels)
        _refuse(store, rows[missing], fault)

    def stop():
        inputs = [fetched["row"], fetched["picture"], kept]
        spec = tf.TensorSpec(decoded["image"].shape, tf.uint8)
        return _call(refuse, inputs, [spec])[0]

    whole = tf.equal(tf.size(kept), tf.size(fetched["row"]))
    return {"image": tf.cond(whole, lambda: decoded["image"], stop)}


def _refuse(store, row, fault):
    raise ValueError(
        "Every record must have a picture and a caption here. Received: "
        f"{store.describe(row)}, {fault.reason}"
    )


def _decode(encoded, image_sizes):
    """Decodes string [k] once each: which could be, and uint8 [m, S, S, 3]."""

    def decode_one(place, encoded):
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return place, {
            name: preprocessing.resize_image(image, size)
            for name, size in image_sizes.items()
        }

    # A graph cannot catch an error, but a dataset can drop the element that
    # raised one. If it drops all of them, the empty batch is what is left.
    nothing = tf.data.Dataset.from_tensors(
        (
            tf.zeros([0], tf.int64),
            {
                name: tf.zeros([0, size, size, 3], tf.uint8)
                for name, size in image_sizes.items()
            },
        )
    )
    return (
        tf.data.Dataset.from_tensor_slices(encoded)
        .enumerate()
        .map(decode_one)
        .ignore_errors()
        .batch(tf.size(encoded, tf.int64))
        .concatenate(nothing)
        .take(1)
        .get_single_element()
    )


def _call(function, inputs, specs):
    """`function` of NumPy arrays, which returns arrays of `specs`."""
    types = [spec.dtype for spec in specs]
    values = tf.numpy_function(function, inputs, types, stateful=False)
    return [
        tf.ensure_shape(value, spec.shape)
        for value, spec in zip(values, specs, strict=True)
    ]


def _chunk_specs(size):
    """What the fields of `reader.Chunk` are."""
    types = (tf.int64, tf.int64, tf.string, tf.string, tf.int64)
    return [tf.TensorSpec([size], dtype) for dtype in types]


def _whole(decoded, count):
    return {
        name: tf.ensure_shape(value, [count, *value.shape[1:]])
        for name, value in decoded.items()
    }


def _check_at_least(least, **settings):
    for name, value in settings.items():
        if value < least:
            raise ValueError(
                f"`{name}` must be at least {least}. Received: {value}"
            )

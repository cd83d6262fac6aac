"""The training stream: a `tf.data` dataset of super-batches.

A super-batch is a pure function of (seed, step), so resuming needs only a start
step: there is no shuffle buffer and no iterator state. A counter numbers chunks
of positions, the reader (`data/reader.py`) reads each chunk's records in the
stream's order (`data/stream.py`), and one graph decodes and tokenises it.
Chunks run in parallel and are joined in order. A cascade (`data/cascade.py`)
first chooses the positions. Selection and augmentation follow on the device.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf.config import checks
from jest_tf.data import (
    batches,
    fault_log,
    ops_reader,
    pictures,
    stores,
    stream,
)
from jest_tf.data import cascade as cascade_lib
from jest_tf.data import reader as reader_lib
from jest_tf.data import sidecars as sidecars_lib

FaultLog = fault_log.FaultLog

# Records in a unit of parallel work. Throughput is equal within noise from 128
# to 1,280; smaller units balance better and use less memory.
_CHUNK = 256
# Chunks of a bucket that are read ahead: those of half a window, so that the
# blocks of the next window are on their way before the first of them is needed.
_MIN_AHEAD, _MAX_AHEAD = 8, 32
# Separates the curated set's order from the pool's.
_CURATED_SALT = 0x63757261
_MAX_FAULT_RATE = config_lib.DataConfig.max_fault_rate


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a training stream beyond store, seed and sizes.

    Attributes:
        weights: shares of `store.parts` in the stream; () takes each by size.
        shuffle_block_size: as in `stream.Order`; None shuffles freely.
        host: the number of this host, from 0.
        num_hosts: H, must divide B. Host h yields the rows [h B/H, (h + 1)
            B/H) of every super-batch.
        sidecars: of a reference over the same store; adds `reference_image`
            and `reference_text`.
        rows: bool [n], the rows of the store that are drawn; None draws all.
        num_curated: parts of the store, its last ones, that are the curated
            set; not drawn without `curated_rows`.
        curated_rows: c, rows of every super-batch from the curated set, at
            every B/c-th place. A cascade does not choose them.
        cascade: chooses the positions that are read; None reads all.
        faults: counts and logs unreadable records and limits their rate; None
            counts with the default limit.
        reference_tokenizer: adds `text_for_reference` if it differs from the
            learner's.
        reference_image: form of the reference's pictures; adds
            `image_for_reference` if it differs from the learner's.
        reader: "numpy", or "ops" for TensorFlow's ops alone, see
            `ops_reader.py`; without a cascade.
        token_field: feature of token ids that "ops" reads; "" tokenises.
    """

    weights: Sequence[float] = ()
    shuffle_block_size: int | None = None
    host: int = 0
    num_hosts: int = 1
    sidecars: sidecars_lib.Sidecars | None = None
    rows: np.ndarray | None = None
    num_curated: int = 0
    curated_rows: int = 0
    cascade: cascade_lib.Cascade | None = None
    faults: FaultLog | None = None
    reference_tokenizer: batches.Tokenizer | None = None
    reference_image: pictures.Form | None = None
    reader: str = "numpy"
    token_field: str = ""

    @property
    def embedded(self) -> Callable | None:
        """Maps rows to whether sidecars embed them; None without sidecars."""
        sidecars = self.sidecars or (self.cascade and self.cascade.sidecars)
        return sidecars and sidecars.valid


def super_batches(
    store: stores.Store,
    *,
    super_batch_size: int,
    seed: int,
    tokenizer: batches.Tokenizer,
    image_size: int | pictures.Form,
    start_step: int = 0,
    options: Options = Options(),  # noqa: B008  (it is frozen)
) -> tf.data.Dataset:
    """The endless training stream; element n is super-batch start_step + n.

    Super-batch s has the positions [s B, (s + 1) B) of `stream.Order`, or of
    `stream.Mixture` with weights. A cascade chooses them from the K B positions
    [s K B, (s + 1) K B) and keeps their order. A hash of (seed, position)
    chooses one of a record's nonblank captions, and the replacement of an
    unreadable record.

    Args:
        store: the records; a manifest restricts them.
        super_batch_size: B, over all hosts.
        seed: the run's seed, in [0, 2**63).
        tokenizer: the learner's, for `text`.
        image_size: S, for `image`, or a form of pictures.
        start_step: the first step to yield.
        options: see `Options`.

    Returns:
        A dataset of dicts of static shape, where B is this host's share:
        `image` uint8 [B, S, S, 3], `text` int32 [B, L], `id` int64 [B],
        `caption_id` int64 [B] (equal captions have equal ids),
        `caption_replaced` bool [B] (bad UTF-8 was replaced), `record_replaced`
        bool [B] (the record is a replacement). Options add embeddings [B, D]
        in the sidecars' dtype, and the reference's pictures and tokens.

    Raises:
        ValueError: an argument is out of range. Iteration raises
            `tf.errors.InvalidArgumentError` if too many records are unreadable
            or sidecars do not fit.
    """
    for name, value, least in (
        ("start_step", start_step, 0),
        ("super_batch_size", super_batch_size, 1),
    ):
        checks.check(name, value, checks.at_least(least))
    host, num_hosts = options.host, options.num_hosts
    if not 0 <= host < num_hosts or super_batch_size % num_hosts:
        raise ValueError(
            "`host` must be in [0, `num_hosts`), which must divide "
            f"`super_batch_size`. Received: host={host}, "
            f"num_hosts={num_hosts}, super_batch_size={super_batch_size}"
        )
    size = super_batch_size // num_hosts
    own = slice(host * size, (host + 1) * size)
    forms = {"image": pictures.form_of(image_size)}
    if options.reference_image not in (None, forms["image"]):
        forms["image_for_reference"] = options.reference_image
    tokenizer_of = {"text": tokenizer}
    if options.reference_tokenizer not in (None, tokenizer):
        tokenizer_of["text_for_reference"] = options.reference_tokenizer
    faults = options.faults or FaultLog(None, _MAX_FAULT_RATE)
    faults.start(start_step, start_step * size)
    places = order(store, seed, super_batch_size, options)
    cascade, sidecars = options.cascade, options.sidecars
    by_ops = None
    if options.reader == "ops":
        by_ops = _ops_reader(store, places, seed, forms, tokenizer_of, options)
    reader = reader_lib.Reader(
        store,
        places,
        seed=seed,
        step_size=cascade.size if cascade else super_batch_size,
        log=faults,
        embedded=options.embedded,
        blocks=_blocks(store, options),
    )
    chunk_size = _chunk_size(size)
    ahead = None
    if _is_distant(store, options) and not by_ops:
        window = (options.shuffle_block_size or 1) * stream.WINDOW_BLOCKS
        depth = window // 2 // chunk_size
        depth = min(max(depth, _MIN_AHEAD), _MAX_AHEAD)
        ahead = reader_lib.Ahead(reader.read, depth)

    def load_by_ops(positions):
        batch = by_ops.read(positions)
        captions, tokens = batch.pop("caption"), batch.pop("tokens", None)
        if tokens is None:
            return batch | batches.texts_of(captions, tokenizer_of)
        return batch | batches.texts_of(captions, {}) | {"text": tokens}

    def load(positions):
        chunk, images = _read_chunk(reader, ahead, positions, forms)
        batch = images | batches.texts_of(chunk.captions, tokenizer_of)
        (batch["id"],) = batches.call_numpy(
            lambda rows: [store.ids(rows)],
            [chunk.rows],
            [tf.TensorSpec(chunk.rows.shape, tf.int64)],
        )
        if sidecars is not None:
            spec = tf.TensorSpec(
                [*chunk.rows.shape, sidecars.dim], tf.as_dtype(sidecars.dtype)
            )
            batch["reference_image"], batch["reference_text"] = (
                batches.call_numpy(
                    sidecars.read,
                    [chunk.rows, chunk.choices, batch["id"]],
                    [spec, spec],
                )
            )
        batch["record_replaced"] = chunk.attempts > 0
        return batch

    def join(batch):
        return {
            name: tf.reshape(value, [size, *value.shape[2:]])
            for name, value in batch.items()
        }

    if cascade:
        positions = cascade.positions(
            start_step,
            own,
            store=store,
            order=places,
            seed=seed,
            super_batch_size=super_batch_size,
        )
    else:
        rows = np.arange(own.start, own.stop)
        positions = tf.data.Dataset.counter(start_step).map(
            lambda step: step * super_batch_size + rows
        )
    shape = [-1, chunk_size]
    positions = positions.map(lambda step: tf.reshape(step, shape)).unbatch()
    if ahead:
        positions = positions.map(_starting(ahead)).prefetch(depth)
    chunks = batches.map_in_order(positions, load_by_ops if by_ops else load)
    whole = chunks.batch(size // chunk_size, drop_remainder=True).map(join)
    if by_ops:
        whole = ops_reader.limited(whole, faults.max_rate)
    return batches.finish(whole)


def _ops_reader(store, places, seed, forms, tokenizer_of, options):
    if options.cascade:
        raise ValueError(
            "`data.reader` 'ops' has no cascade: leave "
            "`cascade.hyper_batch_size` empty, or take 'numpy'"
        )
    if options.token_field and len(tokenizer_of) > 1:
        raise ValueError(
            "`data.token_field` holds the tokens of one tokenizer, but the "
            "reference's differs from the learner's: leave it empty"
        )
    return ops_reader.OpsReader(
        store,
        places,
        seed=seed,
        forms=forms,
        token_field=options.token_field,
        length=tokenizer_of["text"].length,
        sidecars=options.sidecars,
    )


def order(
    store: stores.Store, seed: int, super_batch_size: int, options: Options
) -> stream.AnyOrder:
    """Returns the order of a training stream.

    Raises:
        ValueError: as `stream.Order` and `stream.Mixture`, or the manifest has
            no record of a store with a share.
    """
    pool = store.parts[: len(store.parts) - options.num_curated]
    curated = store.parts[len(pool) :]
    places = _order_of_pool(store, pool, seed, options)
    if not options.curated_rows:
        return places
    size = options.cascade.size if options.cascade else super_batch_size
    return stream.WithCurated(
        places,
        stream.Order(
            sum(curated),
            int(stream.uniform_hash(seed, np.zeros(1, int), _CURATED_SALT)[0])
            >> 1,
            block_size=options.shuffle_block_size,
        ),
        size // options.curated_rows,
    )


def _order_of_pool(store, lengths, seed, options):
    weights = options.weights
    settings = {"block_size": options.shuffle_block_size}
    ends, parts = np.cumsum(lengths), []
    row_weights = options.rows
    if store.manifest:
        row_weights = store.manifest.weights
        parts = np.split(row_weights, ends[:-1])
        if options.rows is not None:
            row_weights = np.where(options.rows, row_weights, 0.0)
    if row_weights is not None:
        settings["row_weights"] = row_weights[: ends[-1]]
    if not weights:
        return stream.Order(int(ends[-1]), seed, **settings)
    for number, part in enumerate(parts):
        if not part.any():
            start = store.describe(int(ends[number]) - len(part))
            raise ValueError(
                "`data.manifest` must have a record of each pattern of "
                "`data.train` where `data.weights` give it a share. Received: "
                f"{store.manifest.directory!r} with none of the {len(part):,} "
                f"of `data.train[{number}]`, from {start} on"
            )
    return stream.Mixture(lengths, weights, seed, **settings)


class Examples(NamedTuple):
    """The examples at positions of a stream.

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
    image_size: int | pictures.Form,
    options: Options = Options(),  # noqa: B008  (it is frozen)
) -> Examples:
    """Returns the examples that `super_batches` yields at a few positions.

    Args:
        store: as in `super_batches`, like all arguments not listed.
        positions: int64 [k]; without a cascade, row i of super-batch s is
            position s B + i.
        step_size: positions of a step: B, or K B with a cascade.

    Raises:
        ValueError: an example and all its substitutes are unreadable.
    """
    reader = reader_lib.Reader(
        store,
        order(store, seed, step_size, options),
        seed=seed,
        step_size=step_size,
        log=FaultLog(None, 1.0),  # the run has counted them
        embedded=options.embedded,
    )
    chunk = reader.read(positions)
    # It decodes those that it keeps, too.
    images = reader.repair(positions, chunk, np.arange(len(positions)))
    with tf.device("CPU:0"):
        images = [pictures.form_of(image_size)(one) for one in images]
    return Examples(
        np.stack(images),
        [one.decode("utf-8", "replace") for one in chunk.captions],
        store.ids(chunk.rows),
    )


def _chunk_size(super_batch_size):
    """The largest divisor of at most _CHUNK; all rows if it is too small."""
    divisor = max(
        size
        for size in range(1, min(_CHUNK, super_batch_size) + 1)
        if super_batch_size % size == 0
    )
    return divisor if 8 * divisor >= _CHUNK else super_batch_size


def _is_distant(store, options):
    """Whether a stream reads anything from a bucket."""
    sidecars = options.sidecars or (
        options.cascade and options.cascade.sidecars
    )
    return store.is_remote or bool(sidecars and sidecars.is_remote)


def _blocks(store, options):
    """Whole blocks of a store on a bucket; None elsewhere or without blocks."""
    if not (options.shuffle_block_size and store.is_remote):
        return None
    pool = len(store.parts) - options.num_curated
    # Without weights the pool is one order; the curated set always is.
    firsts = [*range(pool if options.weights else 1)]
    if options.num_curated:
        firsts.append(pool)
    starts = np.cumsum([0, *store.parts])[firsts]
    size, window = options.shuffle_block_size, stream.WINDOW_BLOCKS
    return reader_lib.Blocks(
        store,
        size,
        starts,
        # An epoch's last window has almost two windows' blocks.
        kept=3 * window * len(starts),
        # Otherwise some rows of a block are never asked for, or the store is
        # so small that all blocks are kept.
        once=store.manifest is None
        and options.rows is None
        and options.cascade is None
        and options.num_hosts == 1
        and len(store) > 1.5 * window * size,
    )


def _starting(ahead):
    """A map over chunks of positions that begins to read them."""

    def start(positions):
        ahead.start(positions)
        return (positions,)

    def call(positions):
        spec = tf.TensorSpec(positions.shape, positions.dtype)
        return batches.call_numpy(start, [positions], [spec])[0]

    return tf.autograph.experimental.do_not_convert(call)


def _read_chunk(reader, ahead, positions, forms):
    """A `reader.Chunk` of tensors and its pictures, for positions int64 [k]."""
    size = positions.shape[0]
    types = (tf.int64, tf.int64, tf.string, tf.string, tf.int64)
    specs = [tf.TensorSpec([size], dtype) for dtype in types]
    image_specs = [
        tf.TensorSpec([size, *form.shape], form.dtype)
        for form in forms.values()
    ]

    def read(positions):
        return tuple((ahead or reader).read(positions))

    def repair(positions, kept, *values):
        # TensorFlow's arrays must not be written to.
        chunk = reader_lib.Chunk(*(value.copy() for value in values[:5]))
        missing = np.setdiff1d(np.arange(size), kept)
        replacements = reader.repair(positions, chunk, missing)
        whole = []
        for some, form in zip(values[5:], forms.values(), strict=True):
            image = np.empty([size, *form.shape], some.dtype)
            image[kept] = some
            # Always on the CPU: no wait for an accelerator, same rounding.
            with tf.device("CPU:0"):
                for i, one in zip(missing, replacements, strict=True):
                    image[i] = form(one)
            whole.append(image)
        return *chunk, *whole

    chunk = batches.call_numpy(read, [positions], specs)
    kept, decoded = pictures.decode_batch(chunk[2], forms)
    values = [*chunk, *decoded.values()]
    values = tf.cond(
        tf.equal(tf.size(kept), size),
        lambda: batches.ensure_shapes(values, specs + image_specs),
        lambda: batches.call_numpy(
            repair, [positions, kept, *values], specs + image_specs
        ),
    )
    return (
        reader_lib.Chunk(*values[:5]),
        dict(zip(forms, values[5:], strict=True)),
    )

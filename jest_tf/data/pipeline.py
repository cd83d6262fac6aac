"""The training stream: a `tf.data` dataset of super-batches.

A super-batch is a pure function of (seed, step), so resuming needs only a start
step: there is no shuffle buffer and no iterator state. A counter numbers chunks
of positions, the reader (`data/reader.py`) reads each chunk's records in the
stream's order (`data/stream.py`), and one graph decodes and tokenises it.
Chunks run in parallel and are joined in order. Stored stages
(`data/stored_stages.py`) first choose the positions. Curated rows come from a
stream of their own. Live stages and augmentation follow on the device.
"""

import dataclasses
import functools
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
    stored_stages,
    stores,
    stream,
)
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
        sidecars: of a reference over the same store, for stored stages, which
            pass their first rows without.
        embeddings: add the sidecars' `reference_image` and `reference_text`.
        rows: bool [n], the rows of the store that are drawn; None draws all.
        num_curated: parts of the store, its last ones, that are the curated
            set; not drawn without `curated_rows`.
        curated_rows: c of the b rows trained on come from the curated set, in
            an order of its own. If c is b, nothing is drawn from the pool.
        clean: see `StoredStages`, like `summaries`.
        summaries: of the stored stages' choices, for logs.
        faults: counts and logs unreadable records and limits their rate; None
            counts with the default limit.
        reference_tokenizer: adds `text_for_reference` if it differs from the
            learner's.
        reference_image: form of the reference's pictures; adds
            `image_for_reference` if it differs from the learner's.
        reader: "numpy", or "ops" for TensorFlow's ops alone, see
            `ops_reader.py`; without stored stages.
        token_field: feature of token ids that "ops" reads; "" tokenises.
    """

    weights: Sequence[float] = ()
    shuffle_block_size: int | None = None
    host: int = 0
    num_hosts: int = 1
    sidecars: sidecars_lib.Sidecars | None = None
    embeddings: bool = False
    rows: np.ndarray | None = None
    num_curated: int = 0
    curated_rows: int = 0
    clean: Callable[[np.ndarray], np.ndarray] | None = None
    summaries: stored_stages.Summaries = dataclasses.field(
        default_factory=stored_stages.Summaries
    )
    faults: FaultLog | None = None
    reference_tokenizer: batches.Tokenizer | None = None
    reference_image: pictures.Form | None = None
    reader: str = "numpy"
    token_field: str = ""

    @property
    def embedded(self) -> Callable | None:
        """Maps rows to whether sidecars embed them; None without sidecars."""
        return self.sidecars and self.sidecars.valid


def super_batches(
    store: stores.Store,
    *,
    selection: config_lib.SelectionConfig,
    seed: int,
    tokenizer: batches.Tokenizer,
    image_size: int | pictures.Form,
    start_step: int = 0,
    options: Options = Options(),  # noqa: B008  (it is frozen)
) -> tf.data.Dataset:
    """The endless training stream; element n is super-batch start_step + n.

    Super-batch s comes from the H positions [s H, (s + 1) H) of `stream.Order`,
    or of `stream.Mixture` with weights: the stored stages of the selection
    choose B of them, or all if there are none. A hash of (seed, position)
    chooses one of a record's nonblank captions, and the replacement of an
    unreadable record.

    Args:
        store: the records; a manifest restricts them.
        selection: its sizes, and its stored stages, which are run here.
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
        Curated rows are a dict of the same, under `curated`; if all rows are
        curated, they are the batch.

    Raises:
        ValueError: an argument is out of range. Iteration raises
            `tf.errors.InvalidArgumentError` if too many records are unreadable
            or sidecars do not fit.
    """
    checks.check("start_step", start_step, checks.at_least(0))
    loading = _Loading(store, seed, tokenizer, image_size, start_step, options)
    num_curated = options.curated_rows
    if num_curated == selection.batch_size:
        loading.count(num_curated)
        return batches.finish(loading.curated(num_curated))
    size = selection.super_batch_size(num_curated)
    loading.count(size + num_curated)
    pool = loading.pool(selection)
    if not num_curated:
        return batches.finish(pool)
    both = tf.data.Dataset.zip((pool, loading.curated(num_curated)))
    return batches.finish(
        both.map(lambda rows, curated: rows | {"curated": curated})
    )


@dataclasses.dataclass(frozen=True)
class _Loading:
    """Makes the datasets of a stream; arguments as of `super_batches`."""

    store: stores.Store
    seed: int
    tokenizer: batches.Tokenizer
    image_size: int | pictures.Form
    start_step: int
    options: Options

    @functools.cached_property
    def forms(self):
        forms = {"image": pictures.form_of(self.image_size)}
        if self.options.reference_image not in (None, forms["image"]):
            forms["image_for_reference"] = self.options.reference_image
        return forms

    @functools.cached_property
    def tokenizer_of(self):
        tokenizer_of = {"text": self.tokenizer}
        if self.options.reference_tokenizer not in (None, self.tokenizer):
            tokenizer_of["text_for_reference"] = (
                self.options.reference_tokenizer
            )
        return tokenizer_of

    @functools.cached_property
    def faults(self):
        return self.options.faults or FaultLog(None, _MAX_FAULT_RATE)

    def count(self, step_size):
        """Starts the count of drawn records."""
        size = step_size // self.options.num_hosts
        self.faults.start(self.start_step, self.start_step * size)

    def pool(self, selection):
        """The rows to choose from, of every step."""
        options = self.options
        sizes = selection.sizes(options.curated_rows)
        places = order(self.store, self.seed, options)
        stages = stored_stages_of(
            selection, self.store, places, self.seed, options
        )
        size = sizes[len(selection.stored)]
        own = self._share(size, "the rows into the first live stage")
        if stages is not None:
            positions = stages.positions(self.start_step, own)
        else:
            positions = self._consecutive(size, own)
        return self._load(places, self.seed, positions, sizes[0], "data.train")

    def curated(self, size):
        """The curated rows of every step."""
        own = self._share(size, "`data.curated_rows` (c)")
        pool, curated = _parts(self.store, self.options)
        seed = stream.uniform_hash(self.seed, np.zeros(1, int), _CURATED_SALT)
        seed = int(seed[0]) >> 1
        places = stream.Part(
            stream.Order(
                sum(curated),
                seed,
                block_size=self.options.shuffle_block_size,
            ),
            sum(pool),
        )
        positions = self._consecutive(size, own)
        return self._load(places, seed, positions, size, "data.curated")

    def _share(self, size, what):
        host, num_hosts = self.options.host, self.options.num_hosts
        if not 0 <= host < num_hosts or size % num_hosts:
            raise ValueError(
                "`host` must be in [0, `num_hosts`), which must divide "
                f"{what}. Received: host={host}, num_hosts={num_hosts}, "
                f"{size} rows"
            )
        share = size // num_hosts
        return slice(host * share, (host + 1) * share)

    def _consecutive(self, size, own):
        rows = np.arange(own.start, own.stop)
        return tf.data.Dataset.counter(self.start_step).map(
            lambda step: step * size + rows
        )

    def _load(self, places, seed, positions, step_size, setting):
        """Reads and decodes positions of an order, int64 [rows] a step."""
        options, store, forms = self.options, self.store, self.forms
        size = positions.element_spec.shape[0]
        chunk_size = _chunk_size(size)
        is_chosen = step_size != size * options.num_hosts
        reader = reader_lib.Reader(
            store,
            places,
            seed=seed,
            step_size=step_size,
            log=self.faults,
            embedded=options.embedded,
            blocks=_blocks(store, options, is_chosen),
            setting=setting,
        )
        by_ops = ahead = None
        if options.reader == "ops":
            by_ops = _ops_reader(
                store, places, seed, forms, self.tokenizer_of, options
            )
        elif _is_distant(store, options):
            window = (options.shuffle_block_size or 1) * stream.WINDOW_BLOCKS
            depth = window // 2 // chunk_size
            depth = min(max(depth, _MIN_AHEAD), _MAX_AHEAD)
            ahead = reader_lib.Ahead(reader.read, depth)

        def load_by_ops(positions):
            batch = by_ops.read(positions)
            captions, tokens = batch.pop("caption"), batch.pop("tokens", None)
            if tokens is None:
                return batch | batches.texts_of(captions, self.tokenizer_of)
            return batch | batches.texts_of(captions, {}) | {"text": tokens}

        def load(positions):
            chunk, images = _read_chunk(reader, ahead, positions, forms)
            batch = images | batches.texts_of(chunk.captions, self.tokenizer_of)
            (batch["id"],) = batches.call_numpy(
                lambda rows: [store.ids(rows)],
                [chunk.rows],
                [tf.TensorSpec(chunk.rows.shape, tf.int64)],
            )
            if options.embeddings:
                batch |= _embeddings(options.sidecars, chunk, batch["id"])
            batch["record_replaced"] = chunk.attempts > 0
            return batch

        def join(batch):
            return {
                name: tf.reshape(value, [size, *value.shape[2:]])
                for name, value in batch.items()
            }

        shape = [-1, chunk_size]
        positions = positions.map(
            lambda step: tf.reshape(step, shape)
        ).unbatch()
        if ahead:
            positions = positions.map(_starting(ahead)).prefetch(depth)
        chunks = batches.map_in_order(
            positions, load_by_ops if by_ops else load
        )
        whole = chunks.batch(size // chunk_size, drop_remainder=True).map(join)
        if by_ops:
            whole = ops_reader.limited(whole, self.faults.max_rate)
        return whole


def _embeddings(sidecars, chunk, ids):
    """The reference's embeddings of a chunk of records."""
    shape = [*chunk.rows.shape, sidecars.dim]
    spec = tf.TensorSpec(shape, tf.as_dtype(sidecars.dtype))
    image, text = batches.call_numpy(
        sidecars.read, [chunk.rows, chunk.choices, ids], [spec, spec]
    )
    return {"reference_image": image, "reference_text": text}


def _ops_reader(store, places, seed, forms, tokenizer_of, options):
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
        sidecars=options.sidecars if options.embeddings else None,
    )


def stored_stages_of(
    selection: config_lib.SelectionConfig,
    store: stores.Store,
    order: stream.AnyOrder,
    seed: int,
    options: Options,
) -> stored_stages.StoredStages | None:
    """Returns the stored stages of a stream, None if it has none.

    Raises:
        ValueError: the reader has no stored stages, or a hyper-batch has more
            rows than the order draws.
    """
    if not selection.stored:
        return None
    if options.reader == "ops":
        raise ValueError(
            "`data.reader` 'ops' reads no sidecars before records: leave the "
            "stored stages out of `selection.stages`, or take 'numpy'"
        )
    return stored_stages.StoredStages(
        selection,
        options.sidecars,
        store,
        order,
        seed,
        options.curated_rows,
        options.clean,
        options.summaries,
    )


def order(
    store: stores.Store, seed: int, options: Options
) -> stream.Order | stream.Mixture:
    """Returns the order of the pool's records in a training stream.

    Raises:
        ValueError: as `stream.Order` and `stream.Mixture`, or the manifest has
            no record of a store with a share.
    """
    return _order_of_pool(store, _parts(store, options)[0], seed, options)


def _parts(store, options):
    """Numbers of records of the pool's parts, and of the curated ones."""
    pool = store.parts[: len(store.parts) - options.num_curated]
    return pool, store.parts[len(pool) :]


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
    seed: int,
    image_size: int | pictures.Form,
    options: Options = Options(),  # noqa: B008  (it is frozen)
) -> Examples:
    """Returns the examples of the pool at a few positions of a stream.

    Args:
        store: as in `super_batches`, like all arguments not listed.
        positions: int64 [k].

    Raises:
        ValueError: an example and all its substitutes are unreadable.
    """
    reader = reader_lib.Reader(
        store,
        order(store, seed, options),
        seed=seed,
        step_size=1,
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
    sidecars = options.sidecars
    return store.is_remote or bool(sidecars and sidecars.is_remote)


def _blocks(store, options, is_chosen):
    """Whole blocks of a store on a bucket; None elsewhere or without blocks.

    Of rows that are chosen some of a block are never asked for.
    """
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
        and not is_chosen
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

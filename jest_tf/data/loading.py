"""Loading: from positions of the stream to decoded, tokenised rows.

Positions are cut into chunks, which are read in parallel and joined in order.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from jest_tf.data import images as images_lib
from jest_tf.data import known_images, stores, stream, tokenizers
from jest_tf.data import reader as reader_lib
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.selection import summary

# Records in a unit of parallel work. Throughput is equal within noise from 128
# to 1,280; smaller units balance better and use less memory.
_CHUNK = 256
# Limits on the chunks read ahead from a bucket. Half a window is read ahead, so
# that the next window's blocks are requested before the first is needed.
_MIN_AHEAD, _MAX_AHEAD = 8, 32
# A batch on the device and a batch in preparation.
_PREFETCH = 2

# Messages of the latest errors in datasets' NumPy functions, in all threads.
_raised: collections.deque = collections.deque(maxlen=64)

# A tokenizer maps string [k] to int32 [k, length].
Tokenizer = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a training stream beyond store, seed and sizes.

    Attributes:
        weights: shares of the pool's parts in the stream; () uses their sizes.
        shuffle_block_size: as in `stream.Order`; None shuffles freely.
        host: the number of this host, from 0.
        num_hosts: H, must divide B. Host h yields the rows [h B/H, (h + 1)
            B/H) of every super-batch.
        rows: bool [n], the rows of the store that are drawn; None draws all.
        num_curated: the number of parts, last in the store, that form the
            curated set; they are drawn only as curated rows.
        clean: maps ids, int64 [k], to whether the records are clean, bool [k];
            None if this is unknown.
        summaries: of the stored stages' choices, for logs.
        faults: counts and logs unreadable records and limits their rate; None
            counts with the default limit.
        known: finds these images among the records that are read.
    """

    weights: Sequence[float] = ()
    shuffle_block_size: int | None = None
    host: int = 0
    num_hosts: int = 1
    rows: np.ndarray | None = None
    num_curated: int = 0
    clean: Callable[[np.ndarray], np.ndarray] | None = None
    summaries: summary.Summaries = dataclasses.field(
        default_factory=summary.Summaries
    )
    faults: reader_lib.FaultLog | None = None
    known: known_images.KnownImages | None = None


@dataclasses.dataclass(frozen=True)
class ReferenceInputs:
    """The reference's part of a stream.

    Attributes:
        sidecars: the reference's, of the same store; None if there are none.
        embeddings: add the sidecars' `reference_image` and `reference_text`.
        curated: curated rows have this part, too, which only the loss reads.
        tokenizer: of a live reference; adds `text_for_reference` if it differs
            from the learner's.
        image_form: form of a live reference's images; adds
            `image_for_reference` if it differs from the learner's.
    """

    sidecars: sidecars_lib.Sidecars | None = None
    embeddings: bool = False
    curated: bool = False
    tokenizer: Tokenizer | None = None
    image_form: images_lib.Form | None = None

    @property
    def embedded(self) -> Callable | None:
        """Returns `sidecars.valid`, or None without sidecars."""
        return self.sidecars and self.sidecars.valid


@dataclasses.dataclass(frozen=True)
class Loader:
    """Loads the rows of a stream.

    Forms of images, and tokenizers, are by name in the batch.
    """

    store: stores.Store
    forms: Mapping[str, images_lib.Form]
    tokenizer_of: Mapping[str, Tokenizer]
    faults: reader_lib.FaultLog
    options: Options
    reference: ReferenceInputs

    def load(
        self,
        places: stream.AnyOrder,
        positions: tf.data.Dataset,
        *,
        seed: int,
        step_size: int,
        setting: str,
    ) -> tf.data.Dataset:
        """Reads and decodes the records at positions, in order.

        Args:
            places: the order, which maps positions to rows.
            positions: int64 [rows], one element per step.
            seed, setting: see `reader.Reader`.
            step_size: number of positions of a step, on all hosts.

        Returns:
            A dataset of dicts of `[rows, ...]`, one per step.
        """
        options, store, forms = self.options, self.store, self.forms
        sidecars = self.reference.sidecars
        size = positions.element_spec.shape[0]
        chunk_size = _chunk_size(size)
        is_chosen = step_size != size * options.num_hosts
        reader = reader_lib.Reader(
            store,
            places,
            seed=seed,
            step_size=step_size,
            log=self.faults,
            embedded=self.reference.embedded,
            blocks=_blocks(store, options, is_chosen),
            setting=setting,
            known=options.known,
        )
        ahead = None
        if store.is_remote or sidecars is not None and sidecars.is_remote:
            window = (options.shuffle_block_size or 1) * stream.WINDOW_BLOCKS
            depth = window // 2 // chunk_size
            depth = min(max(depth, _MIN_AHEAD), _MAX_AHEAD)
            ahead = reader_lib.Ahead(reader.read, depth)

        def load(positions):
            chunk, images = _read_chunk(reader, ahead, positions, forms)
            batch = images | tokenize_captions(
                chunk.captions, self.tokenizer_of
            )
            (batch["id"],) = call_numpy(
                lambda rows: [store.ids(rows)],
                [chunk.rows],
                [tf.TensorSpec(chunk.rows.shape, tf.int64)],
            )
            if self.reference.embeddings:
                shape = [*chunk.rows.shape, sidecars.dim]
                spec = tf.TensorSpec(shape, tf.as_dtype(sidecars.dtype))
                batch["reference_image"], batch["reference_text"] = call_numpy(
                    sidecars.read,
                    [chunk.rows, chunk.choices, batch["id"]],
                    [spec, spec],
                )
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
            spec = tf.TensorSpec([chunk_size], tf.int64)

            def start(positions):
                ahead.start(positions)
                return (positions,)

            def begin(positions):
                return call_numpy(start, [positions], [spec])[0]

            begin = tf.autograph.experimental.do_not_convert(begin)
            positions = positions.map(begin).prefetch(depth)
        chunks = map_in_order(positions, load)
        return chunks.batch(size // chunk_size, drop_remainder=True).map(join)


def _chunk_size(super_batch_size):
    """Returns the largest divisor up to _CHUNK; all rows if it is too small."""
    divisor = max(
        size
        for size in range(1, min(_CHUNK, super_batch_size) + 1)
        if super_batch_size % size == 0
    )
    return divisor if 8 * divisor >= _CHUNK else super_batch_size


def _blocks(store, options, is_chosen):
    """Makes the reader of blocks of a store on a bucket; None otherwise.

    `is_chosen` means that stored stages choose the rows of each step.
    """
    if not (options.shuffle_block_size and store.is_remote):
        return None
    pool = len(store.parts) - options.num_curated
    # Without weights the pool has a single order; the curated set always does.
    firsts = [*range(pool if options.weights else 1)]
    if options.num_curated:
        firsts.append(pool)
    starts = np.cumsum([0, *store.parts])[firsts]
    size, window = options.shuffle_block_size, stream.WINDOW_BLOCKS
    return reader_lib.Blocks(
        store,
        size,
        starts,
        # The last window of an epoch may have almost twice as many blocks.
        kept=3 * window * len(starts),
        # If one of these fails, some rows of a block are never read, or the
        # store is so small that all blocks are kept.
        once=store.manifest is None
        and options.rows is None
        and not is_chosen
        and options.num_hosts == 1
        and len(store) > 1.5 * window * size,
    )


def _read_chunk(reader, ahead, positions, forms):
    """Reads positions, int64 [k], to a `Chunk` of tensors, and its images."""
    size = positions.shape[0]
    types = (tf.int64, tf.int64, tf.string, tf.int64, tf.string, tf.int64)
    specs = [tf.TensorSpec([size], dtype) for dtype in types]
    image_specs = [
        tf.TensorSpec([size, *form.shape], form.dtype)
        for form in forms.values()
    ]

    def read(positions):
        return tuple((ahead or reader).read(positions))

    def repair(positions, kept, *values):
        # TensorFlow's arrays must not be written to.
        chunk = reader_lib.Chunk(*(value.copy() for value in values[:6]))
        missing = np.setdiff1d(np.arange(size), kept)
        replacements = reader.repair(positions, chunk, missing)
        whole = []
        for some, form in zip(values[6:], forms.values(), strict=True):
            image = np.empty([size, *form.shape], some.dtype)
            image[kept] = some
            # Always on the CPU: no wait for an accelerator, same rounding.
            with tf.device("CPU:0"):
                for i, decoded in zip(missing, replacements, strict=True):
                    image[i] = form(decoded)
            whole.append(image)
        return *chunk, *whole

    chunk = call_numpy(read, [positions], specs)
    kept, decoded = images_lib.decode_batch(*chunk[2:4], forms)
    values = [*chunk, *decoded.values()]
    values = tf.cond(
        tf.equal(tf.size(kept), size),
        lambda: ensure_shapes(values, specs + image_specs),
        lambda: call_numpy(
            repair, [positions, kept, *values], specs + image_specs
        ),
    )
    return (
        reader_lib.Chunk(*values[:6]),
        dict(zip(forms, values[6:], strict=True)),
    )


def tokenize_captions(captions, tokenizer_of):
    """Makes tokens and ids of captions, string [k]; marks invalid UTF-8."""
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
    """Raises the ValueError of a dataset in place of TensorFlow's error."""
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

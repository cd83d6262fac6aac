"""The training stream: a `tf.data` dataset of super-batches.

A super-batch is a pure function of (seed, step), so resuming needs only a start
step: there is no shuffle buffer and no iterator state. A counter numbers chunks
of positions, the reader (`data/reader.py`) reads each chunk's records in the
stream's order (`data/stream.py`), and a graph decodes and tokenises them.
Chunks run in parallel and are joined in order. Stored stages
(`data/stored_stages.py`) first choose the positions. Curated rows come from a
separate stream. Live stages and augmentation follow on the device.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf.config import checks
from jest_tf.data import images as images_lib
from jest_tf.data import loading, stored_stages, stores, stream
from jest_tf.data import reader as reader_lib

FaultLog = reader_lib.FaultLog
Options = loading.Options
ReferenceInputs = loading.ReferenceInputs

# Separates the curated set's order from the pool's.
_CURATED_SALT = 0x63757261


def super_batches(
    store: stores.Store,
    *,
    plan: Sequence[config_lib.Segment],
    loss: str,
    seed: int,
    tokenizer: loading.Tokenizer,
    image_size: int | images_lib.Form,
    start_step: int = 0,
    reference: ReferenceInputs = ReferenceInputs(),  # noqa: B008
    options: Options = Options(),  # noqa: B008  (it is frozen)
) -> tf.data.Dataset:
    """The endless training stream; element n is super-batch start_step + n.

    Super-batch s comes from the H positions [s H, (s + 1) H) of `stream.Order`,
    or of `stream.Mixture` with weights. The plan's stored stages choose B of
    them; without stored stages, H = B. A hash of (seed, position) chooses
    one of a record's nonblank captions, and the replacement of an unreadable
    record.

    Args:
        store: the records; a manifest restricts them.
        plan: segments of the same sizes, with the stored stages, which run
            here; the last has all later steps.
        loss: pair loss of the scores.
        seed: the run's seed, in [0, 2**31).
        tokenizer: the learner's, for `text`.
        image_size: side S of `image`, or a form of images.
        start_step: the first step to yield.

    Returns:
        A dataset of dicts of static shape, where B is this host's share:
        `image` uint8 [B, S, S, 3], `text` int32 [B, L], `id` int64 [B],
        `caption_id` int64 [B] (equal captions have equal ids),
        `caption_replaced` bool [B] (bad UTF-8 was replaced), `record_replaced`
        bool [B] (the record is a replacement). `reference` adds embeddings
        [B, D] in the sidecars' dtype, or the reference's images and tokens.
        Curated rows are a dict with the same names, under `curated`; if all
        rows are curated, this dict is the batch.

    Raises:
        ValueError: `seed` or `start_step` is out of range.
        tf.errors.InvalidArgumentError: while iterating, if too many records
            are unreadable or sidecars do not fit.
    """
    checks.check("seed", seed, checks.within("[0, 2147483647]"))
    checks.check("start_step", start_step, checks.at_least(0))
    forms = {"image": images_lib.make_form(image_size)}
    if reference.image_form not in (None, forms["image"]):
        forms["image_for_reference"] = reference.image_form
    tokenizer_of = {"text": tokenizer}
    if reference.tokenizer not in (None, tokenizer):
        tokenizer_of["text_for_reference"] = reference.tokenizer
    faults = options.faults or FaultLog(None, lost_share=store.lost_share)
    loader = loading.Loader(
        store, forms, tokenizer_of, faults, options, reference
    )
    parts = _Stream(loader, seed, start_step)
    size, num_curated = plan[0].super_batch_size, plan[0].curated_rows
    drawn = (size + num_curated) // max(options.num_hosts, 1)
    faults.start(start_step, drawn)
    if not size:
        return loading.finish(parts.curated(num_curated))
    pool = parts.pool(plan, loss)
    if not num_curated:
        return loading.finish(pool)
    both = tf.data.Dataset.zip((pool, parts.curated(num_curated)))
    return loading.finish(
        both.map(lambda rows, curated: rows | {"curated": curated})
    )


@dataclasses.dataclass(frozen=True)
class _Stream:
    """The two datasets of a stream; arguments as in `super_batches`."""

    loader: loading.Loader
    seed: int
    start_step: int

    def pool(self, plan, loss):
        """Returns the dataset of the rows that each step chooses from."""
        loader = self.loader
        places = order(loader.store, self.seed, loader.options)
        size = plan[0].super_batch_size
        own = self._share(size, "the rows into the first live stage")
        if not plan[0].stored:
            positions = self._consecutive(size, own)
        else:
            positions = stored_stages.StoredStages(
                plan,
                loss,
                loader.reference.sidecars,
                loader.store,
                places,
                self.seed,
                loader.options,
            ).positions(self.start_step, own)
        return loader.load(
            places,
            positions,
            seed=self.seed,
            step_size=plan[0].sizes[0],
            setting="data.train",
        )

    def curated(self, size):
        """Returns the dataset of each step's curated rows."""
        own = self._share(size, "`data.curated_rows` (c)")
        loader = self.loader
        if not loader.reference.curated:
            loader = dataclasses.replace(
                loader,
                forms={"image": loader.forms["image"]},
                tokenizer_of={"text": loader.tokenizer_of["text"]},
                reference=loading.ReferenceInputs(),
            )
        options = loader.options
        pool, curated = _parts(loader.store, options)
        seed = stream.uniform_hash(self.seed, np.zeros(1, int), _CURATED_SALT)
        seed = int(seed[0]) >> 1
        places = stream.Order(
            sum(curated),
            seed,
            block_size=options.shuffle_block_size,
            start=sum(pool),
        )
        return loader.load(
            places,
            self._consecutive(size, own),
            seed=seed,
            step_size=size,
            setting="data.curated",
        )

    def _share(self, size, what):
        options = self.loader.options
        host, num_hosts = options.host, options.num_hosts
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


def order(
    store: stores.Store, seed: int, options: Options
) -> stream.Order | stream.Mixture:
    """Returns the order of the pool's records in a training stream."""
    lengths, _ = _parts(store, options)
    weights = options.weights
    settings = {"block_size": options.shuffle_block_size}
    ends, parts = np.cumsum(lengths), []
    row_weights = options.rows
    if store.manifest:
        row_weights = store.manifest.weights
        parts = np.split(row_weights, ends[:-1])
        if options.rows is not None:
            row_weights = np.where(options.rows[: ends[-1]], row_weights, 0.0)
    if row_weights is not None:
        settings["row_weights"] = row_weights[: ends[-1]]
    if not weights:
        return stream.Order(int(ends[-1]), seed, **settings)
    for number, part in enumerate(parts):
        if not part.any():
            start = store.describe(int(ends[number]) - len(part))
            raise ValueError(
                "`data.manifest` must draw a record of every pattern of "
                "`data.train` that `data.weights` give a share. Received: "
                f"{store.manifest.directory!r}, which draws none of the "
                f"{len(part):,} of `data.train[{number}]`, from {start} on"
            )
    return stream.Mixture(lengths, weights, seed, **settings)


def _parts(store, options):
    """Returns the lengths of the pool's parts, and of the curated parts."""
    pool = store.parts[: len(store.parts) - options.num_curated]
    return pool, store.parts[len(pool) :]


def at_positions(
    store: stores.Store,
    positions: np.ndarray,
    *,
    seed: int,
    image_size: int | images_lib.Form,
    embedded: Callable | None = None,
    options: Options = Options(),  # noqa: B008  (it is frozen)
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Returns the examples of the pool at a few positions, int64 [k].

    `embedded` is `ReferenceInputs.embedded`; the others as in `super_batches`.

    Returns:
        Images, uint8 [k, S, S, 3], captions and ids, int64 [k].
    """
    reader = reader_lib.Reader(
        store,
        order(store, seed, options),
        seed=seed,
        step_size=1,
        log=FaultLog(None, 1.0),  # the run has counted the faults
        embedded=embedded,
    )
    chunk = reader.read(positions)
    # `repair` also decodes the images that it keeps.
    images = reader.repair(positions, chunk, np.arange(len(positions)))
    form = images_lib.make_form(image_size)
    with tf.device("CPU:0"):
        images = [form(image) for image in images]
    captions = [
        caption.decode("utf-8", "replace") for caption in chunk.captions
    ]
    return np.stack(images), captions, store.ids(chunk.rows)

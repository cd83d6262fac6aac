"""Stage 0: chooses the stream positions of a super-batch before any are read.

The reference's part of the score needs only its embeddings, which sidecars
hold; the learner's part, if it counts, takes sidecars of an earlier step. A
step takes a *hyper-batch*, the next K B positions of the stream, and reads
their sidecar rows. From these it draws the B positions of its super-batch:
jointly (`selection/samplers.py`), except a share drawn uniformly from the rest.
Captions and replacements are those of a stream without a cascade
(`data/reader.py`).

The choice is a pure function of (settings, seed, step, sidecars), so hosts need
not communicate. Each host draws only in the groups that its rows come from.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import selection
from jest_tf.data import batches, reader, stores, stream
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.embeddings import Embeddings

# Separate the noise of the joint draw, the uniform draw and the selection,
# which all have the seed (run seed, step).
_JOINT_SALT = 0x57A6E0
_UNIFORM_SALT = 0xF1004

# Groups in flight: rows of one are read while another is drawn.
_CHOICES = 2


@dataclass(frozen=True)
class Cascade:
    """Chooses super-batches from hyper-batches.

    Attributes:
        settings: with a `hyper_batch_size`.
        sidecars: of the reference, over the stream's store.
        loss: "sigmoid" or "softmax", if the settings have none.
        learner: sidecars of the learner at an earlier step, over the same
            store, if the criterion needs them.

    Raises:
        ValueError: a hyper-batch is larger than the store.
    """

    settings: config_lib.CascadeConfig
    sidecars: sidecars_lib.Sidecars
    loss: str
    learner: sidecars_lib.Sidecars | None = None

    def __post_init__(self):
        _check_size(self.size, len(self.sidecars), "of `data.train`")

    @property
    def size(self) -> int:
        """K B, positions of a hyper-batch."""
        return self.settings.hyper_batch_size

    def positions(
        self,
        start_step: int,
        rows: slice,
        *,
        store: stores.Store,
        order: stream.AnyOrder,
        seed: int,
        super_batch_size: int,
    ) -> tf.data.Dataset:
        """Returns the endless dataset of chosen positions, one element a step.

        Args:
            start_step: the first step.
            rows: the rows of every super-batch that this host reads.
            store: the records.
            order: of the stream.
            seed: the run's seed.
            super_batch_size: B.

        Returns:
            int64 [rows] in [step K B, (step + 1) K B), ascending but for the
            curated rows among them, which are at every B/c-th place.

        Raises:
            ValueError: a hyper-batch is larger than the rows the order draws.
        """
        sidecars, num_groups = self.sidecars, self.settings.num_groups
        num_rows = super_batch_size // num_groups
        size = self.size // num_groups
        # The curated positions of a group, which are not chosen from.
        every, curated_rows, pool = size, 0, order
        if isinstance(order, stream.WithCurated):
            every, pool = order.every, order.pool
            curated_rows = size // every
        offered = size - curated_rows
        what = "that `data.manifest` has"
        if curated_rows:
            what = "of the pool, curated ones aside"
        _check_size(num_groups * offered, pool.num_drawn, what)
        read = [sidecars, *([self.learner] if self.learner else [])]
        specs = [tf.TensorSpec([offered], tf.int64)]
        for one in read:
            shape, dtype = [offered, one.dim], tf.as_dtype(one.dtype)
            specs += 2 * [tf.TensorSpec(shape, dtype)]

        def load(group):
            positions = int(group) * size + np.arange(size)
            if curated_rows:
                positions = positions[~order.is_curated(positions)]
            # Equal positions in equal order, whatever is read.
            is_best = self.settings.captions == "best"
            parts = [
                load_rows(positions, one, store, order, seed, is_best=is_best)
                for one in read
            ]
            rows = [values for part in parts for values in part[1:]]
            return (parts[0][0], *rows)

        def choose(group):
            positions, *rows = batches.call_numpy(load, [group], specs)
            reference, *learner = [
                Embeddings(
                    *(tf.cast(part, tf.float32) for part in parts),
                    tf.constant(one.scale, tf.float32),
                    tf.constant(one.bias, tf.float32),
                )
                for one, parts in zip(
                    read, zip(rows[::2], rows[1::2], strict=True), strict=True
                )
            ]
            places, _ = draw(
                reference,
                self.settings,
                batch_size=num_rows - curated_rows,
                num_uniform=self.settings.num_uniform(
                    super_batch_size - num_groups * curated_rows
                ),
                seed=(seed, group),
                loss=self.settings.loss or self.loss,
                learner=learner[0] if learner else None,
            )
            # In stream order, which spreads the best rows evenly over replicas.
            chosen = tf.sort(tf.gather(positions, places))
            if not curated_rows:
                return chosen
            curated = group * size + np.arange(every - 1, size, every)
            parts = [
                tf.reshape(one, [curated_rows, -1]) for one in (chosen, curated)
            ]
            return tf.reshape(tf.concat(parts, 1), [num_rows])

        return join_groups(choose, start_step, rows, num_rows, num_groups)


def _check_size(size, most, what):
    if size > most:
        raise ValueError(
            "`cascade.hyper_batch_size` (K B) must be at most the records "
            f"{what}, {most:,}, or it would offer some of them twice. "
            f"Received: {size:,}"
        )


def of_run(
    config: config_lib.TrainConfig,
    sidecars: sidecars_lib.Sidecars | None,
    learner: sidecars_lib.Sidecars | None = None,
) -> Cascade | None:
    """Returns the cascade of a run's settings, or None without one.

    Without `learner` it chooses by easy-reference.

    Raises:
        ValueError: as `Cascade` and `check_uniform_share`.
    """
    settings = config.cascade
    if settings.hyper_batch_size is None:
        return None
    check_uniform_share(config)
    if learner is None:
        settings = dataclasses.replace(settings, criterion="easy_reference")
    return Cascade(settings, sidecars, config.model.loss, learner)


def check_uniform_share(config: config_lib.TrainConfig) -> None:
    """Raises ValueError if the uniform share of stage 0 rounds to no row."""
    settings, data = config.cascade, config.data
    size = data.super_batch_size - data.curated_rows
    if settings.hyper_batch_size is None:
        return
    if settings.uniform_share and not settings.num_uniform(size):
        raise ValueError(
            "`cascade.uniform_share` must be 0, or more than half a row of the "
            "B / G that each group gives, or it is rounded to none: take a "
            "larger share, fewer `cascade.num_groups` (G), or a larger "
            "`data.super_batch_size` (B). Received: uniform_share="
            f"{settings.uniform_share}, B={size}, G={settings.num_groups}"
        )


def join_groups(
    choose: Callable[[tf.Tensor], tf.Tensor],
    start_step: int,
    rows: slice,
    num_rows: int,
    num_groups: int,
) -> tf.data.Dataset:
    """Joins the groups of each step and keeps one host's rows.

    Args:
        choose: group number, int64 scalar -> int64 [num_rows]; step s has the
            groups s G to s G + G - 1.
        start_step: the first step.
        rows: this host's rows of a super-batch, the groups joined in order.
        num_rows: rows that each group gives.
        num_groups: G.

    Returns:
        A dataset of int64 [rows], one a step.
    """
    first = rows.start // num_rows
    count = -(-rows.stop // num_rows) - first
    begin, end = (place - first * num_rows for place in (rows.start, rows.stop))

    def number(index):
        return index // count * num_groups + first + index % count

    def own(positions):
        return tf.reshape(positions, [count * num_rows])[begin:end]

    groups = tf.data.Dataset.counter(start_step * count).map(number)
    chosen = groups.map(
        # AutoGraph would rewrite the NumPy functions too, and run them slowly.
        tf.autograph.experimental.do_not_convert(choose),
        num_parallel_calls=_CHOICES,
        deterministic=True,
    )
    return chosen.batch(count, drop_remainder=True).map(own)


def load_rows(
    positions: np.ndarray,
    sidecars: sidecars_lib.Sidecars,
    store: stores.Store,
    order: stream.AnyOrder,
    seed: int,
    *,
    is_best: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads the reference's embeddings at positions of the stream.

    A record without an embedding is replaced by the reader's substitute.

    Args:
        positions: int64 [k].
        sidecars: of the reference.
        store: the records.
        order: of the stream.
        seed: the run's seed.
        is_best: read each record's best caption, not the drawn one.

    Returns:
        The positions, int64 [k], sorted by row, which reads fastest; and in
        the same order the embeddings of the pictures and of the captions,
        each [k, D] in the sidecars' dtype.

    Raises:
        ValueError: ids differ, a sidecar is damaged, or too many substitutes
            in a row have no embedding.
    """
    count = len(positions)
    # Stable for equal rows. Fits int64: 2^21 of 2^42 rows.
    line = np.sort(order.rows(positions) * count + np.arange(count))
    rows, line = np.divmod(line, count)
    positions = positions[line]
    numbers = reader.caption_numbers(seed, positions)

    def read(rows, numbers):
        if is_best:
            return sidecars.read_best(rows, store.ids(rows))
        return sidecars.read_numbered(rows, numbers, store.ids(rows))

    captions, image, text = read(rows, numbers)
    missing = np.flatnonzero(captions < 0)
    for attempt in range(1, reader.MAX_ATTEMPTS + 1):
        if not len(missing):
            break
        rows = order.substitutes(positions[missing], attempt)
        captions, image[missing], text[missing] = read(rows, numbers[missing])
        missing = missing[captions < 0]
    if len(missing):
        raise ValueError(
            f"{reader.MAX_ATTEMPTS} records in a row have no embedding in "
            f"place of one at position {positions[missing[0]]}, the last "
            f"{store.describe(int(rows[captions < 0][0]))}"
        )
    return positions, image, text


def draw(
    reference: Embeddings,
    settings: config_lib.CascadeConfig,
    *,
    batch_size: int,
    num_uniform: int = 0,
    seed: Sequence,
    loss: str,
    learner: Embeddings | None = None,
) -> tuple[tf.Tensor, selection.Draw]:
    """Draws rows jointly, and some of the rest uniformly.

    Args:
        reference: embeddings of a group, [k, D].
        settings: of the joint draw; other settings with these fields will do.
        batch_size: b, rows to draw.
        num_uniform: rows of the b drawn uniformly, after the joint draw.
        seed: two integers, (run seed, number of the group).
        loss: "sigmoid" or "softmax".
        learner: embeddings of the same rows, if the criterion needs them.

    Returns:
        int32 [b], in the order drawn, the uniform rows last; and the joint
        draw.
    """
    seed = tf.stack([tf.cast(part, tf.int32) for part in seed])
    jointly = batch_size - num_uniform
    drawn = selection.select_jointly(
        learner,
        reference,
        batch_size=jointly,
        num_chunks=min(settings.num_chunks, jointly),
        seed=joint_seed(seed),
        criterion=settings.criterion,
        loss=loss,
        first_chunk=settings.first_chunk,
        gain=settings.gain,
    )
    if not num_uniform:
        return drawn.indices, drawn
    seed = tf.bitwise.bitwise_xor(seed, [_UNIFORM_SALT, 0])
    noise = selection.gumbel_noise(seed, 1, drawn.kept.shape[0])[0]
    rest = tf.where(drawn.kept, -np.inf, noise)
    uniform = tf.math.top_k(rest, num_uniform).indices
    return tf.concat([drawn.indices, uniform], 0), drawn


def joint_seed(seed: tf.Tensor) -> tf.Tensor:
    """Returns the seed of the joint draw, from (run seed, group); int32 [2]."""
    return tf.bitwise.bitwise_xor(seed, [_JOINT_SALT, 0])


def flops_at(
    config: config_lib.TrainConfig,
    dims_from: Sequence[tuple[int, tuple[int, ...]]],
    step: int,
) -> int:
    """Counts a host's operations of stage 0 in the first `step` steps.

    Args:
        config: the run.
        dims_from: steps, ascending from 0, and the `dims` of `flops` from each
            of them on.
        step: number of steps.
    """
    total = 0
    stops = [*(start for start, _ in dims_from[1:]), step]
    for (start, dims), stop in zip(dims_from, stops, strict=True):
        before, after = (
            config.num_cascaded(min(one, step)) for one in (start, stop)
        )
        total += (after - before) * flops(
            config.cascade,
            config.data.super_batch_size,
            dims,
            config.curated_rows(start),
        )
    return total


def flops(
    settings: config_lib.CascadeConfig,
    super_batch_size: int,
    dims: tuple[int, ...],
    curated_rows: int = 0,
) -> int:
    """Counts a host's floating-point operations of stage 0 in one step.

    Counts matrix products only, two operations a multiply-add: each of the K B
    rows with itself, and in both directions with each row of its group that is
    drawn jointly. H hosts share G groups evenly if H divides G; with G = 1
    every host does all of the work. `dims` has the D of each model that scores,
    `super_batch_size` is B, of which `curated_rows` are not chosen.
    """
    if settings.hyper_batch_size is None:
        return 0
    chosen = super_batch_size - curated_rows
    jointly = chosen // settings.num_groups - settings.num_uniform(chosen)
    offered = settings.hyper_batch_size - curated_rows
    return 2 * offered * sum(dims) * (1 + 2 * jointly)

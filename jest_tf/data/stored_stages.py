"""Stored stages, which choose stream positions before any record is read.

The reference's part of a score needs only its embeddings, which are in
sidecars. A step takes a *hyper-batch*, the next H positions of the stream, and
reads their sidecar rows. Each stored stage passes some of these rows; the last
stage passes the super-batch. Captions and replacements are the same as in a
stream without stages (`data/reader.py`).

The choice is a pure function of (settings, seed, step, sidecars), so hosts need
not communicate. Large hyper-batches are cut into groups; each host draws only
in the groups that its rows come from.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from jest_tf import config as config_lib
from jest_tf import embeddings, selection
from jest_tf.data import loading, reader, stores, stream
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.embeddings import Embeddings
from jest_tf.selection import summary

# Separates the noise of stored stages from that of live stages, whose seed is
# (run seed, step). Later stages use multiples of the salt.
_SALT = 0x57A6E0
# Limit on a group's rows into the first stage. The work grows with the rows
# times the rows that pass in their group (benchmarks/README.md).
MOST_ROWS = 2**14
# Groups in flight: a group's rows are read while another is drawn.
_GROUPS_AHEAD = 2


@dataclass(frozen=True)
class StoredStages:
    """Chooses super-batches from hyper-batches.

    Attributes:
        plan: segments of the same sizes, with stored stages.
        sidecars: the reference's, of the store; None if no stage scores.
        options: of the stream; `clean` and `summaries` count here.
    """

    plan: Sequence[config_lib.Segment]
    loss: str
    sidecars: sidecars_lib.Sidecars | None
    store: stores.Store
    order: stream.AnyOrder
    seed: int
    options: loading.Options = field(default_factory=loading.Options)

    def __post_init__(self):
        hyper_batch, most = self.sizes[0], self.order.num_drawn
        if self.sidecars is not None and hyper_batch > most:
            raise ValueError(
                "A hyper-batch, `selection.batch_size` (b) times the "
                "`candidates` of all stages, must not exceed the number of "
                f"records to draw from, {most:,}, or a step would see some of "
                f"them twice. Received: {hyper_batch:,}"
            )

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Rows into each stored stage, and out of the last: H to B."""
        return self.plan[0].sizes[: len(self._stages) + 1]

    @property
    def _stages(self):
        return [stage for _, stage in self.plan[0].stored]

    @functools.cached_property
    def num_groups(self) -> int:
        """G, the number of equal parts of a hyper-batch, drawn separately."""
        return num_groups(self._stages, self.sizes)

    def positions(self, start_step: int, rows: slice) -> tf.data.Dataset:
        """Returns the endless dataset of chosen positions, one element a step.

        `rows` are the rows of every super-batch that this host reads. Elements
        are int64 [rows], ascending within a group, in [step H, (step + 1) H).
        """
        count = self.sizes[-1] // self.num_groups  # rows of a group
        first = rows.start // count
        number = -(-rows.stop // count) - first
        begin, end = (
            place - first * count for place in (rows.start, rows.stop)
        )

        def choose(index):
            step, group = np.divmod(index, number)
            return (self.choose(int(step), int(first + group)),)

        def call(index):
            spec = tf.TensorSpec([count], tf.int64)
            return loading.call_numpy(choose, [index], [spec])[0]

        def own(positions):
            return tf.reshape(positions, [number * count])[begin:end]

        chosen = tf.data.Dataset.counter(start_step * number).map(
            tf.autograph.experimental.do_not_convert(call),
            num_parallel_calls=_GROUPS_AHEAD,
            deterministic=True,
        )
        return chosen.batch(number, drop_remainder=True).map(own)

    def choose(self, step: int, group: int) -> np.ndarray:
        """Returns the positions that a group of a step passes.

        They are int64 [B / G] and ascending, which spreads the best rows evenly
        over replicas.
        """
        size = self.sizes[0] // self.num_groups
        first = (step * self.num_groups + group) * size
        positions = np.arange(first, first + size)
        summaries, scoring = {}, config_lib.segment_at(self.plan, step).scoring
        for number, stage in enumerate(self._stages):
            passed = len(positions) // stage.candidates
            if number not in scoring:
                positions = np.sort(positions)[:passed]
                continue
            positions, summaries[number] = self._draw(
                number, stage, positions, passed, step * self.num_groups + group
            )
        if summaries:
            self.options.summaries.put(step, group, summaries)
        return np.sort(positions)

    def _draw(self, number, stage, positions, passed, group):
        positions, image, text = load_rows(
            positions,
            self.sidecars,
            self.store,
            self.order,
            self.seed,
            is_best=stage.captions == "best",
        )
        draw = drawer(stage, self.loss, passed)
        seed = np.array([self.seed ^ _SALT * (number + 1), group], np.int32)
        about = self.sidecars
        drawn = draw(
            seed,
            np.float32(image),
            np.float32(text),
            np.float32(about.scale),
            np.float32(about.bias),
        )
        ids = self.store.ids(self.order.rows(positions))
        rows = {
            "position": positions,
            "id": ids,
            "kept": drawn.kept,
            "reference_loss": drawn.reference_loss,
        }
        if self.options.clean is not None:
            rows["clean"] = self.options.clean(ids)
        details = summary.summarize_rows(
            stage, rows, {"reference_loss": drawn.uniform_reference_loss}
        )
        details |= {
            "score": float(drawn.score),
            "uniform_score": float(drawn.uniform_score),
        }
        return positions[drawn.indices], details


def num_groups(stages: Sequence[config_lib.Stage], sizes: Sequence[int]) -> int:
    """Returns G, the number of groups of a hyper-batch.

    G is the smallest divisor of B that leaves a group at most `MOST_ROWS` rows
    into its first stage. If some stage of a group would then pass fewer rows
    than it has chunks, G is the largest divisor that avoids this. `sizes` has
    the rows into each stored stage, and out of the last.
    """
    number = 1
    for groups in range(1, sizes[-1] + 1):
        if sizes[-1] % groups:
            continue
        passed = [size // groups for size in sizes[1:]]
        if any(
            stage.in_chunks and stage.num_chunks > size
            for stage, size in zip(stages, passed, strict=True)
        ):
            break
        number = groups
        if sizes[0] // groups <= MOST_ROWS:
            break
    return number


def flops(segment: config_lib.Segment, dim: int) -> int:
    """Counts the host's floating-point operations in a step's stored stages.

    Args:
        segment: of the step; only stages that score are counted.
        dim: width of the reference's embeddings; 0 if there is none.
    """
    stages = [stage for _, stage in segment.stored]
    sizes = segment.sizes[: len(stages) + 1]
    groups = num_groups(stages, sizes)
    return sum(
        selection.draw_flops(size, size // stage.candidates, dim, groups)
        for number, (stage, size) in enumerate(zip(stages, sizes, strict=False))
        if number in segment.scoring
    )


@functools.lru_cache(maxsize=32)
def drawer(stage: config_lib.Stage, loss: str, passed: int) -> Callable:
    """Compiles a stage's draw as a function of seed and embeddings.

    It takes (seed, *`Embeddings`), and returns a `selection.Draw` of arrays;
    it runs on the host.
    """

    def draw(seed, *parts):
        reference = Embeddings(*parts)
        drawn = selection.draw(
            None, reference, stage, size=passed, loss=loss, seed=seed
        )
        # A graph cannot return None.
        return drawn._replace(learner_loss=(), uniform_learner_loss=())

    on_backend = embeddings.standalone(draw)

    def on_host(*args):
        with embeddings.on_host():
            drawn = on_backend(*map(ops.convert_to_tensor, args))
        return keras.tree.map_structure(np.asarray, drawn)

    return on_host


def load_rows(
    positions: np.ndarray,
    sidecars: sidecars_lib.Sidecars,
    store: stores.Store,
    order: stream.AnyOrder,
    seed: int,
    *,
    is_best: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads the reference's embeddings at positions, int64 [k], of the stream.

    A record without an embedding is replaced by the reader's substitute.
    `is_best` reads each record's best caption, not the drawn caption.

    Returns:
        The positions, int64 [k], sorted by row, because this reads fastest. In
        the same order, the embeddings of the images and of the captions, each
        [k, D] in the sidecars' dtype.
    """
    count = len(positions)
    positions = np.sort(positions)
    # Stable for equal rows. Fits int64: 2^21 positions times 2^42 rows.
    line = np.sort(order.rows(positions) * count + np.arange(count))
    rows, line = np.divmod(line, count)
    positions = positions[line]

    def read(rows, positions):
        numbers = None if is_best else reader.caption_numbers(seed, positions)
        return sidecars.read_numbered(rows, numbers, store.ids(rows))

    captions, image, text = read(rows, positions)
    missing = np.flatnonzero(captions < 0)
    for attempt in range(1, reader.MAX_ATTEMPTS + 1):
        if not len(missing):
            break
        rows = order.substitutes(positions[missing], attempt)
        captions, image[missing], text[missing] = read(rows, positions[missing])
        missing = missing[captions < 0]
    if len(missing):
        raise ValueError(
            f"{reader.MAX_ATTEMPTS} substitutes in a row for the record at "
            f"position {positions[missing[0]]} have no embedding, the last "
            f"{store.describe(int(rows[captions < 0][0]))}"
        )
    return positions, image, text

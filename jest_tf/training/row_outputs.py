"""Per-row outputs of a training step: draws, ids, scores and losses.

They are groups of tensors by name and stay on the device until a callback reads
them through `RowReport`. They need no callback in the graph and no collective.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from jest_tf import distribution, selection
from jest_tf.distribution import placement

# This group is equal on every replica; the others hold local rows.
_EQUAL = "equal"
_TRAINED = "trained"


def of_trained(
    batch: Mapping[str, tf.Tensor], places: tf.Tensor
) -> dict[str, dict[str, tf.Tensor]]:
    """Ids of the rows trained on here, if the batch has them.

    `places`, int32 `[b/R]`, are the rows' places in the sub-batch.
    """
    if "id" not in batch:
        return {}
    return {_TRAINED: {"place": places, "id": batch["id"]}}


def of_scored(
    pool: Mapping[str, tf.Tensor],
    draw: selection.Draw | None,
    stride: int,
    replicas=None,
) -> dict[str, dict[str, tf.Tensor]]:
    """Scores and losses of the rows scored here, if the step scored.

    Every `stride`-th row of the super-batch is a candidate, in `pool`.
    """
    if draw is None:
        return {}
    rows = placement.rows_of_all(pool["image"].shape[0], replicas)
    groups = {
        "scored": {
            "place": stride * rows,
            "id": pool.get("id"),
            "own_score": draw.own_score,
            "learner_loss": draw.learner_loss,
            "reference_loss": draw.reference_loss,
        },
        "uniform": {
            "place": draw.uniform_places,
            "uniform_learner_loss": draw.uniform_learner_loss,
            "uniform_reference_loss": draw.uniform_reference_loss,
        },
    }
    return {
        group: {name: one for name, one in values.items() if one is not None}
        for group, values in groups.items()
    }


def with_all_trained(groups: dict, replicas) -> dict:
    """Gathers the trained ids of all replicas on each of them."""
    if _TRAINED not in groups:
        return groups
    return groups | {_TRAINED: replicas.all_gather(groups[_TRAINED])}


class RecentDraws:
    """The draws of all steps of an execution; Keras returns only the last.

    `strategy` may be None for one step, `batch_size` if nothing is drawn.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy | None,
        num_steps: int,
        batch_size: int | None,
    ):
        self._lines = None
        if num_steps == 1 or batch_size is None:
            return
        # GPUs have no 32-bit integer variables, TPUs no 64-bit ones.
        dtype = tf.int32 if distribution.is_tpu(strategy) else tf.int64
        with strategy.scope():
            self._lines = tf.Variable(
                tf.zeros([num_steps, batch_size], dtype),
                trainable=False,
                # Equal copies on all replicas.
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )

    def with_draw(self, rows: tf.Tensor | None, step: tf.Tensor) -> dict:
        """Adds a draw; returns the group of all draws of this execution.

        `rows` are int32 `[b]`, None without a draw; `step` is int32.
        """
        if rows is None:
            return {}
        if self._lines is None:
            return {_EQUAL: {"rows": rows[tf.newaxis]}}
        num_lines = self._lines.shape[0]
        is_now = tf.equal(tf.range(num_lines), step % num_lines)
        lines = tf.where(
            is_now[:, tf.newaxis],
            tf.cast(rows, self._lines.dtype)[tf.newaxis],
            tf.convert_to_tensor(self._lines),
        )
        self._lines.assign(lines)
        return {_EQUAL: {"rows": lines}}


def collect(groups: dict) -> dict:
    """Joins the groups of all local replicas.

    `groups` has a tuple of one value per replica in place of each value.
    """
    return {
        group: {
            name: parts[0] if group == _EQUAL else tf.concat(parts, 0)
            for name, parts in values.items()
        }
        for group, values in groups.items()
    }


class RowReport:
    """Per-row outputs of the last step of an execution.

    `groups` are the outputs of the step; {} before the first one. With several
    workers, all must call `scored` and `uniform` together.
    """

    def __init__(self, strategy: tf.distribute.Strategy, groups: dict):
        self._strategy = strategy
        self._groups = groups

    @property
    def is_scored(self) -> bool:
        """True if the step scored rows."""
        return "scored" in self._groups

    def drawn(self, step: int) -> np.ndarray | None:
        """Rows of the super-batch drawn in a step, `[b]`, in the order drawn.

        None without a selection. `step` counts the steps before it.
        """
        if _EQUAL not in self._groups:
            return None
        lines = self._groups[_EQUAL]["rows"].numpy()
        return lines[step % len(lines)]

    def trained_ids(self) -> np.ndarray | None:
        """Ids of the sub-batch, `[b]`, in the order drawn, if known."""
        return _ordered(self._groups.get(_TRAINED)).get("id")

    def scored(self) -> dict[str, np.ndarray]:
        """Arrays `[n]` of the n scored rows, by name; {} without scores.

        `row` is the place in the super-batch. `own_score`, `learner_loss` and
        `reference_loss` are as in `selection.Draw`, if present there. `id` is
        present if the batches have it.
        """
        return self._gathered("scored", "row")

    def uniform(self) -> dict[str, np.ndarray]:
        """The `uniform_..._loss` of `Draw`, by row of the uniform draw."""
        return self._gathered("uniform")

    def _gathered(self, group, place_name=None):
        values = dict(self._groups.get(group, {}))
        if values and distribution.has_workers(self._strategy):
            values = {
                name: self._strategy.gather(part, axis=0)
                for name, part in values.items()
            }
        return _ordered(values, place_name)


def _ordered(values, place_name=None):
    if not values:
        return {}
    parts = {name: part.numpy() for name, part in values.items()}
    # A worker with several devices may repeat its part.
    places, first = np.unique(parts.pop("place"), return_index=True)
    ordered = {name: part[first] for name, part in parts.items()}
    if "id" in ordered:
        ids = distribution.join_halves(tf.constant(ordered["id"]))
        ordered["id"] = ids.numpy()
    return ordered | ({place_name: places} if place_name else {})

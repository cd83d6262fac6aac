"""What a training step tells of single rows, beside its metrics.

The scores and losses of rows are in a step's graph anyway. It returns them, and
they stay on the device until somebody asks: no callback runs within the graph,
and nothing moves between replicas for it. What is made of them is in
`runs/draw_log.py`.

`of_trained`, `of_scored` and `RecentDraws` make what a step returns, groups of
tensors by name; `RowReport` reads it.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from jest_tf import distribution, selection

# What is equal on all replicas; of other groups each tells its own rows.
_EQUAL = "equal"
_TRAINED = "trained"


def of_trained(batch: Mapping[str, tf.Tensor], places: tf.Tensor) -> dict:
    """The ids of the rows that a replica trains on.

    Args:
        batch: with `id` `[b/R]`, or without.
        places: int32 `[b/R]`, their places in the sub-batch.
    """
    if "id" not in batch:
        return {}
    return {_TRAINED: {"place": places, "id": batch["id"]}}


def with_trained_of_all(told: dict, replicas) -> dict:
    """The same with the ids that all replicas train on, on each of them.

    Args:
        told: of a step, with the group of `of_trained` or without.
        replicas: the collectives.
    """
    if _TRAINED not in told:
        return told
    return told | {_TRAINED: replicas.all_gather(told[_TRAINED])}


def of_scored(
    draw: selection.Draw, rows: tf.Tensor, ids: tf.Tensor | None
) -> dict:
    """The scores and losses of the rows that a replica scores.

    Args:
        draw: of `n` rows, `[n/R]` held here.
        rows: int32 `[n/R]`, where they stand in the super-batch, increasing.
        ids: int64 `[n/R]`, or None.
    """
    groups = {
        "scored": {
            "place": rows,
            "id": ids,
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


class RecentDraws:
    """The draws of an execution, of which Keras hands on the last step's alone.

    Args:
        strategy: that the steps run under; None will do for one step.
        num_steps: of an execution.
        batch_size: b; None where nothing is drawn.
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
        # GPUs have no integers of 32 bits in variables, TPUs none of 64.
        dtype = tf.int32 if distribution.is_tpu(strategy) else tf.int64
        with strategy.scope():
            self._lines = tf.Variable(
                tf.zeros([num_steps, batch_size], dtype),
                trainable=False,
                # Each replica has its own, and all are equal.
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )

    def with_draw(self, rows: tf.Tensor, step: tf.Tensor) -> dict:
        """The rows drawn in a step, and before it in the execution.

        Args:
            rows: int32 `[b]`, of the super-batch, equal on every replica.
            step: int32 scalar, steps done before this one.
        """
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


def collect(told: dict) -> dict:
    """What the replicas of a worker told, together.

    Args:
        told: a step's, with a tuple of values, one a replica, in place of each
            value.
    """
    return {
        group: {
            name: parts[0] if group == _EQUAL else tf.concat(parts, 0)
            for name, parts in values.items()
        }
        for group, values in told.items()
    }


class RowReport:
    """What the last step of an execution told of rows.

    With several workers all must ask together for what is not of the trained
    rows alone.

    Args:
        strategy: that the step ran under.
        told: what it returned; {} before the first.
    """

    def __init__(self, strategy: tf.distribute.Strategy, told: dict):
        self._strategy = strategy
        self._told = told

    @property
    def is_scored(self) -> bool:
        """Whether the step has scored rows."""
        return "scored" in self._told

    def drawn(self, step: int) -> np.ndarray | None:
        """The rows of the super-batch that a step of the execution drew.

        Args:
            step: steps done before it.

        Returns:
            Integers `[b]`, in the order drawn; None where nothing is drawn.
        """
        if _EQUAL not in self._told:
            return None
        lines = self._told[_EQUAL]["rows"].numpy()
        return lines[step % len(lines)]

    def trained_ids(self) -> np.ndarray | None:
        """The ids of the sub-batch, `[b]`, in the order drawn, if known."""
        return _ordered(self._told.get(_TRAINED)).get("id")

    def scored(self) -> dict[str, np.ndarray]:
        """Of the n rows scored, by name, `[n]`.

        `row`, where they stand in the super-batch; `own_score`, `learner_loss`
        and `reference_loss` as of `selection.Draw`, as far as it has them; and
        `id` where the batches hold it. Nothing where no row was scored.
        """
        return self._gathered("scored", "row")

    def uniform(self) -> dict[str, np.ndarray]:
        """Of rows of the uniform draw, `uniform_..._loss` as of `Draw`."""
        return self._gathered("uniform")

    def _gathered(self, group, place_name=None):
        """What the replicas of all workers told of a group, in order."""
        told = dict(self._told.get(group, {}))
        if told and distribution.has_workers(self._strategy):
            told = {
                name: self._strategy.gather(part, axis=0)
                for name, part in told.items()
            }
        return _ordered(told, place_name)


def _ordered(told, place_name=None):
    """NumPy arrays by name, in the order of the places."""
    if not told:
        return {}
    parts = {name: part.numpy() for name, part in told.items()}
    # A worker with several devices may have told its part several times.
    places, first = np.unique(parts.pop("place"), return_index=True)
    ordered = {name: part[first] for name, part in parts.items()}
    if "id" in ordered:
        ids = distribution.join_halves(tf.constant(ordered["id"]))
        ordered["id"] = ids.numpy()
    return ordered | ({place_name: places} if place_name else {})

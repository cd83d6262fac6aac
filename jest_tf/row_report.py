"""What a training step tells of single rows, beside its metrics.

The scores and losses of rows are in a step's graph anyway. It returns them, and
they stay on the device until somebody asks: no callback runs within the graph,
and nothing moves between replicas for it. What is made of them is in
`telemetry.py`.
"""

import tensorflow as tf

from jest_tf import selection


class RowReport:
    """Carries the values of rows out of the steps of one model.

    A step returns what `trained_on`, `drawn` and `scored` give; where each of R
    replicas has told of its own rows, `collect` puts them together. The last
    step of an execution is kept in `told`.

    Args:
        strategy: that the steps run under.

    Attributes:
        told: what the last step told; empty before the first.
        batch_size: b, of all replicas.
        super_batch_size: B, of all replicas.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.told = {}
        self.batch_size = self.super_batch_size = None
        self._strategy = strategy
        self._recent = None

    def start(self, steps_per_execution: int, batch_size: int | None) -> None:
        """Makes ready for executions of several steps.

        Keras hands on what the last step returns, and no more, so the draws of
        those before it are kept in a variable.

        Args:
            steps_per_execution: see `keras.Model.compile`.
            batch_size: b; None where nothing is drawn.
        """
        self._recent = None
        if steps_per_execution == 1 or batch_size is None:
            return
        with self._strategy.scope():
            self._recent = tf.Variable(
                # GPUs have no integers of 32 bits in variables.
                tf.zeros([steps_per_execution, batch_size], tf.int64),
                trainable=False,
                # Each replica has its own, and all are equal.
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )

    def trained_on(self, batch: dict, places: tf.Tensor) -> dict:
        """In a step: the ids of the rows trained on here, if there are any.

        Args:
            batch: with `id` `[b/R]`, or without.
            places: int32 `[b/R]`, their places in the sub-batch.
        """
        if "id" not in batch:
            return {"trained": {}}
        return {"trained": {"id": batch["id"], "place": places}}

    def drawn(self, indices: tf.Tensor, step: tf.Tensor) -> dict:
        """In a step: the rows drawn, of all steps of the execution so far.

        Args:
            indices: int32 `[b]`, rows of all, equal on every replica.
            step: integer scalar, steps done before this one.
        """
        if self._recent is None:
            return {"equal": {"rows": indices[tf.newaxis]}}
        num_lines = self._recent.shape[0]
        is_now = tf.equal(
            tf.range(num_lines), tf.cast(step, tf.int32) % num_lines
        )
        recent = tf.where(
            is_now[:, tf.newaxis],
            tf.cast(indices, tf.int64)[tf.newaxis],
            tf.convert_to_tensor(self._recent),
        )
        self._recent.assign(recent)
        return {"equal": {"rows": recent}}

    def scored(
        self, draw: selection.Draw, rows: tf.Tensor, ids: tf.Tensor | None
    ) -> dict:
        """In a step: the scores and losses of the rows held here.

        Args:
            draw: what says so.
            rows: int32 `[B/R]`, the numbers of the rows among all.
            ids: int64 `[B/R]`, or None.
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
            group: {n: one for n, one in values.items() if one is not None}
            for group, values in groups.items()
        }

    def collect(self, told: dict) -> dict:
        """What the replicas of this worker told, together.

        Args:
            told: a step's, with a tuple of values, one a replica, in place of
                each value.
        """
        return {
            group: {
                name: parts[0] if group == "equal" else tf.concat(parts, 0)
                for name, parts in values.items()
            }
            for group, values in told.items()
        }

    def rows(self) -> tf.Tensor | None:
        """Integers `[steps, b]`; see `JESTModel.drawn_rows`."""
        return self.told.get("equal", {}).get("rows")

    def ids(self) -> tf.Tensor | None:
        """`[b]`; see `JESTModel.drawn_ids`."""
        return self._gathered("trained", self.batch_size).get("id")

    def values(self) -> dict[str, tf.Tensor]:
        """By name; see `JESTModel.row_report`."""
        if not self.told.get("scored"):
            return {}
        size = min(self.batch_size, selection.UNIFORM_ROWS)
        return self._gathered("scored", self.super_batch_size) | self._gathered(
            "uniform", size
        )

    def _gathered(self, group, size):
        """What all replicas told of a group of rows, each at its place."""
        told = dict(self.told.get(group, {}))
        if not told:
            return {}
        if len(told["place"]) < size:  # the other workers have the rest
            gather = self._strategy.gather
            told = {name: gather(part, axis=0) for name, part in told.items()}
        # A worker with several devices may have told its part several times.
        places = told.pop("place")[:, tf.newaxis]
        return {
            name: tf.tensor_scatter_nd_update(
                tf.zeros([size], part.dtype), places, part
            )
            for name, part in told.items()
        }

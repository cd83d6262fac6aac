"""The rows of a super-batch on this replica, and what it takes to draw all.

With R replicas the B rows of a super-batch lie B/R to a replica: row i of
replica r is row `r * B/R + i` of all. `LocalRows` hides from scores and
samplers whether a replica has all rows or a share of them.

The collectives are handed in (`distribution.Replicas`, or anything with its
methods); None is one replica. docs/distribution.md has the cost of each.
"""

import tensorflow as tf


class LocalRows:
    """The rows of a super-batch that are on this replica.

    `top`, `fetch` and `means` are collectives.

    Args:
        num_rows: B/R, rows on this replica.
        quota: "global" draws from all rows at once, "per_replica" equally
            many from each replica's rows.
        replicas: the collectives, or None.

    Attributes:
        num_rows: B/R.
        super_batch_size: B.
        num_quotas: parts of the super-batch that each give equally many rows
            to a draw: 1, or R with quota "per_replica".
        in_loops: whether the collectives work inside a `tf.while_loop`.
    """

    def __init__(self, num_rows: int, quota: str = "global", replicas=None):
        self._replicas = replicas
        self._num_replicas, self._number = 1, 0
        self.in_loops = True
        if replicas is not None:
            self._num_replicas = replicas.num_replicas
            self._number = replicas.replica_id
            self.in_loops = replicas.in_loops
        self.num_rows = num_rows
        self.super_batch_size = self._num_replicas * num_rows
        self.num_quotas = 1 if quota == "global" else self._num_replicas
        self._first = self._number * num_rows

    def own(self, values: tf.Tensor) -> tf.Tensor:
        """`[..., B]` of all rows -> `[..., B/R]` of the local rows."""
        leading = values.shape[:-1]
        begin = [0] * len(leading) + [self._first]
        return tf.slice(values, begin, [*leading, self.num_rows])

    def top(self, keys: tf.Tensor, size: int) -> tf.Tensor:
        """The `size` rows of all with the highest keys, highest first.

        Ties go to the lower row. With quota "per_replica" these are the
        highest `size / R` of each replica, one replica after another.

        Args:
            keys: float32 `[B/R]`, of the local rows; -inf is never drawn.
            size: a multiple of `num_quotas`.

        Returns:
            int32 `[size]`, rows of all, equal on every replica.
        """
        if self._replicas is None:
            return tf.math.top_k(keys, size).indices
        offered = min(size // self.num_quotas, self.num_rows)
        best = tf.math.top_k(keys, offered)
        rows = self._replicas.all_gather(self._first + best.indices)
        if self.num_quotas > 1:
            return rows
        # In the order of replicas, and within one of keys, then rows: of equal
        # keys the lower row comes first here too.
        keys = self._replicas.all_gather(best.values)
        return tf.gather(rows, tf.math.top_k(keys, size).indices)

    def fetch(self, tensors, rows: tf.Tensor):
        """Gathers rows of a structure of tensors, on every replica.

        Args:
            tensors: a nest of float tensors `[B/R, ...]`, the local rows.
            rows: int32 `[c]`, rows of all, equal on every replica.

        Returns:
            The nest of `[c, ...]`.
        """
        if self._replicas is None:
            return tf.nest.map_structure(lambda x: tf.gather(x, rows), tensors)
        # All but the owner add zeros: b * dim a draw, not B * dim.
        here, is_local = self._places_here(rows)

        def contribution(tensor):
            values = tf.gather(tensor, tf.where(is_local, here, 0))
            shape = [-1] + [1] * (values.shape.rank - 1)
            return tf.where(tf.reshape(is_local, shape), values, 0.0)

        return self._replicas.all_reduce(
            tf.nest.map_structure(contribution, tensors)
        )

    def mask(self, rows: tf.Tensor) -> tf.Tensor:
        """bool `[B/R]`: true for the local rows among `rows` of all."""
        here, is_local = self._places_here(rows)
        # Rows of other replicas fall on a spare row, which is cut off.
        here = tf.where(is_local, here, self.num_rows)
        mask = tf.tensor_scatter_nd_update(
            tf.zeros([self.num_rows + 1], tf.bool),
            here[:, tf.newaxis],
            tf.ones_like(here, tf.bool),
        )
        return mask[: self.num_rows]

    def share(self, size: int) -> tuple[tf.Tensor, tf.Tensor]:
        """This replica's share of `size` places; int32 and bool `[n]`.

        All replicas get equally many, so the last place may be repeated; the
        second tensor is false for these repeats.
        """
        length = -(-size // self._num_replicas)
        places = self._number * length + tf.range(length)
        return tf.minimum(places, size - 1), places < size

    def means(
        self, values: dict[str, tf.Tensor], counted: tf.Tensor, size: int
    ) -> dict[str, tf.Tensor]:
        """The means of `values` over `size` counted entries of all replicas.

        Args:
            values: by name, float32 `[n]`, the entries on this replica.
            counted: bool `[n]`.
            size: of all replicas, the number of entries that are counted.
        """
        totals = {
            name: tf.reduce_sum(tf.where(counted, value, 0.0))
            for name, value in values.items()
        }
        if self._replicas is not None:
            totals = self._replicas.all_reduce(totals)
        return {name: total / size for name, total in totals.items()}

    def _places_here(self, rows):
        """Rows of all as local rows, and which of them are local."""
        here = rows - self._first
        return here, (here >= 0) & (here < self.num_rows)


def top_rows(keys: tf.Tensor, size: int, num_quotas: int = 1) -> tf.Tensor:
    """As `LocalRows.top`, of keys `[B]` of all rows, without collectives."""
    parts = tf.reshape(keys, [num_quotas, -1])
    best = tf.math.top_k(parts, size // num_quotas).indices
    first = tf.range(num_quotas) * parts.shape[1]
    return tf.reshape(first[:, tf.newaxis] + best, [size])

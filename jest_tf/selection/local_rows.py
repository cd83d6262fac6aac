"""Rows of a super-batch on one replica, and the collectives of a draw.

R replicas hold B/R rows each: row i of replica r is the global row
`r * B/R + i`. `LocalRows` hides the number of replicas from scores and
samplers. docs/distribution.md has the cost of each collective.
"""

from keras import ops, tree

from jest_tf import config, embeddings
from jest_tf.embeddings import Tensor


class LocalRows:
    """The rows of a super-batch that are on this replica.

    `top`, `fetch` and `means` are collectives.

    Args:
        num_rows: B/R, rows on this replica.
        quota: "global" draws from all rows at once, "per_replica" equally many
            from each replica's rows.
        replicas: the collectives, or None.

    Attributes:
        num_quotas: parts of the super-batch that each contribute equally many
            rows to a draw: 1, or R with quota "per_replica".
        in_loops: True if the collectives work inside a loop of the graph.
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
        self.num_quotas = config.QUOTAS[quota].parts(self._num_replicas)
        self._first = self._number * num_rows

    def own(self, values: Tensor) -> Tensor:
        """Slices the local rows, `[..., B] -> [..., B/R]`."""
        leading = values.shape[:-1]
        begin = [0] * len(leading) + [self._first]
        return ops.slice(values, begin, [*leading, self.num_rows])

    def top(self, keys: Tensor, size: int) -> Tensor:
        """Returns the rows with the `size` highest `keys`, highest first.

        Ties go to the lower row. Quota "per_replica" takes `size / R` rows of
        each replica, in replica order. Keys are float32 `[B/R]`, -inf if never
        drawn; the result is int32 `[size]`, global rows, on every replica.
        """
        if self._replicas is None:
            return ops.top_k(keys, size)[1]
        offered = min(size // self.num_quotas, self.num_rows)
        best, rows = ops.top_k(keys, offered)
        rows = self._replicas.all_gather(self._first + rows)
        if self.num_quotas > 1:
            return rows
        # The gathered rows are in the order of replica, key, row: here, too,
        # ties go to the lower row.
        keys = self._replicas.all_gather(best)
        return embeddings.take(rows, ops.top_k(keys, size)[1])

    def fetch(self, tensors, rows: Tensor):
        """Gathers rows of a nest of tensors, `[B/R, ...] -> [c, ...]`.

        `rows` are int32 `[c]`, global rows, equal on every replica.
        """
        if self._replicas is None:
            return tree.map_structure(
                lambda tensor: embeddings.take(tensor, rows), tensors
            )
        # Replicas add zeros for others' rows: b * dim per draw, not B * dim.
        here, is_local = self._places_here(rows)

        def contribution(tensor):
            values = embeddings.take(tensor, ops.where(is_local, here, 0))
            shape = [-1] + [1] * (len(values.shape) - 1)
            return ops.where(ops.reshape(is_local, shape), values, 0.0)

        return self._replicas.all_reduce(
            tree.map_structure(contribution, tensors)
        )

    def mask(self, rows: Tensor) -> Tensor:
        """Returns bool `[B/R]`, true for the local rows among global `rows`."""
        here, is_local = self._places_here(rows)
        # Rows of other replicas map to a spare row, which is cut off.
        here = ops.where(is_local, here, self.num_rows)
        mask = ops.scatter_update(
            ops.zeros([self.num_rows + 1], "bool"),
            here[:, None],
            ops.ones_like(here, "bool"),
        )
        return mask[: self.num_rows]

    def share(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns this replica's share of `size` places; int32 and bool `[n]`.

        The shares are equally large, padded by repeating the last place; the
        second tensor is false for the padding.
        """
        length = -(-size // self._num_replicas)
        places = self._number * length + ops.arange(length, dtype="int32")
        return ops.minimum(places, size - 1), places < size

    def means(
        self, values: dict[str, Tensor], counted: Tensor, size: int
    ) -> dict[str, Tensor]:
        """Averages `values`, float32 `[n]` by name, over the entries `counted`.

        `size` is the number of counted entries on all replicas.
        """
        totals = {
            name: ops.sum(ops.where(counted, value, 0.0))
            for name, value in values.items()
        }
        if self._replicas is not None:
            totals = self._replicas.all_reduce(totals)
        return {name: total / size for name, total in totals.items()}

    def _places_here(self, rows):
        """Converts global to local rows; also returns which rows are local."""
        here = rows - self._first
        return here, (here >= 0) & (here < self.num_rows)


def top_rows(keys: Tensor, size: int, num_quotas: int = 1) -> Tensor:
    """Does `LocalRows.top` on keys `[B]` of all rows, without collectives."""
    parts = ops.reshape(keys, [num_quotas, -1])
    best = ops.top_k(parts, size // num_quotas)[1]
    first = ops.arange(num_quotas, dtype="int32") * parts.shape[1]
    return ops.reshape(first[:, None] + best, [size])

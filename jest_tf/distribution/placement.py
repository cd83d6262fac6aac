"""Who holds which rows of a super-batch, and how rows move between replicas.

With R replicas the B rows of a super-batch lie B/R to a replica: row i of
replica r is row `r * B/R + i` of all. `Whole` and `Share` hide from scores and
samplers whether a replica holds all rows or a share of them; `deal` says which
rows of a draw a replica trains on, and `move` brings them there.

Everything works on static shapes. The collectives are handed in
(`distribution.Replicas`, or anything with its methods); None is one replica.
What each costs is in docs/distribution.md.
"""

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

QUOTAS = ("global", "per_replica")


class Whole:
    """All rows of a super-batch, on the one replica that there is.

    Attributes:
        num_rows: rows held here.
        super_batch_size: B, rows in all.
        num_quotas: parts of the super-batch that each give as many rows to a
            draw: 1, or R with quota "per_replica".
        in_loops: whether `top` and `fetch` work inside a `tf.while_loop`.
    """

    def __init__(self, num_rows: int):
        self.num_rows = self.super_batch_size = num_rows
        self.num_quotas = 1
        self.in_loops = True

    def own(self, values: tf.Tensor) -> tf.Tensor:
        """`[..., B]` of all rows -> `[..., B/R]` of the rows held here."""
        return values

    def top(self, keys: tf.Tensor, size: int) -> tf.Tensor:
        """The `size` rows of all with the highest keys, highest first.

        Ties go to the lower row. With quota "per_replica" they are the highest
        `size / R` of each replica, one replica after another.

        Args:
            keys: float32 `[B/R]`, of the rows held here; -inf is never drawn.
            size: a multiple of `num_quotas`.

        Returns:
            int32 `[size]`, rows of all, equal on every replica.
        """
        return tf.math.top_k(keys, size).indices

    def fetch(self, tensors, rows: tf.Tensor):
        """Rows of a structure of tensors, on every replica.

        Args:
            tensors: a nest of float tensors `[B/R, ...]`, the rows held here.
            rows: int32 `[c]`, rows of all, equal on every replica.

        Returns:
            The nest of `[c, ...]`.
        """
        return tf.nest.map_structure(
            lambda tensor: tf.gather(tensor, rows), tensors
        )

    def mask(self, rows: tf.Tensor) -> tf.Tensor:
        """bool `[B/R]`: whether a row held here is among `rows` of all."""
        return _mask(rows, self.num_rows)

    def means(
        self, values: dict[str, tf.Tensor], rows: tf.Tensor, kept: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The means over `rows` of all, of float32 `[B/R]` of those held here.

        Args:
            values: by name, float32 `[B/R]`.
            rows: int32 `[b]`, rows of all, each once.
            kept: bool `[B/R]`, the mask of `rows`.
        """
        del kept
        return {
            name: tf.reduce_mean(tf.gather(value, rows))
            for name, value in values.items()
        }

    def part(self, size: int) -> tf.Tensor:
        """Places of `size` that this replica works through; int32 `[part]`.

        Every place is some replica's; a place beyond the last is the last
        once more, which `part_means` leaves out.
        """
        return tf.range(size)

    def part_means(
        self, values: dict[str, tf.Tensor], size: int
    ) -> dict[str, tf.Tensor]:
        """The means over `size` places, of float32 `[part]` of those here."""
        del size
        return {name: tf.reduce_mean(value) for name, value in values.items()}


class Share(Whole):
    """The rows of a super-batch that one of R replicas holds.

    Methods as of `Whole`; all but `own`, `mask` and `part` are collectives.

    Args:
        num_rows: B/R, rows held here.
        quota: "global" draws from all rows at once; "per_replica" as many from
            each replica's rows.
        replicas: the collectives.
    """

    def __init__(self, num_rows: int, quota: str, replicas):
        super().__init__(num_rows)
        self.super_batch_size = replicas.num_replicas * num_rows
        self.num_quotas = 1 if quota == "global" else replicas.num_replicas
        self.in_loops = replicas.in_loops
        self._replicas = replicas
        self._first = replicas.replica_id * num_rows

    def own(self, values):
        """A slice of the rows of all."""
        leading = values.shape[:-1]
        begin = [0] * len(leading) + [self._first]
        return tf.slice(values, begin, [*leading, self.num_rows])

    def top(self, keys, size):
        """The best of what every replica offers of its own."""
        offered = min(size // self.num_quotas, self.num_rows)
        best = tf.math.top_k(keys, offered)
        rows = self._replicas.all_gather(self._first + best.indices)
        if self.num_quotas > 1:
            return rows
        # In the order of replicas, and within one of keys, then rows: of equal
        # keys the lower row comes first here too.
        keys = self._replicas.all_gather(best.values)
        return tf.gather(rows, tf.math.top_k(keys, size).indices)

    def fetch(self, tensors, rows):
        """The owner's rows, everywhere."""
        # Everybody but the owner adds zeros: b * dim a draw, not B * dim.
        here, owned = self._local(rows)

        def contribution(tensor):
            values = tf.gather(tensor, tf.where(owned, here, 0))
            shape = [-1] + [1] * (values.shape.rank - 1)
            return tf.where(tf.reshape(owned, shape), values, 0.0)

        return self._replicas.all_reduce(
            tf.nest.map_structure(contribution, tensors)
        )

    def mask(self, rows):
        """Of the rows held here."""
        here, owned = self._local(rows)
        # Rows of others fall on one more row, which is cut off.
        spare = _mask(tf.where(owned, here, self.num_rows), self.num_rows + 1)
        return spare[: self.num_rows]

    def means(self, values, rows, kept):
        """A sum of every replica's part."""
        totals = self._replicas.all_reduce(
            {
                name: tf.reduce_sum(tf.where(kept, value, 0.0))
                for name, value in values.items()
            }
        )
        return {name: total / rows.shape[0] for name, total in totals.items()}

    def part(self, size):
        """The R-th of all places."""
        return tf.minimum(self._places(size), size - 1)

    def part_means(self, values, size):
        """A sum of every replica's part."""
        counted = self._places(size) < size
        totals = self._replicas.all_reduce(
            {
                name: tf.reduce_sum(tf.where(counted, value, 0.0))
                for name, value in values.items()
            }
        )
        return {name: total / size for name, total in totals.items()}

    def _local(self, rows):
        """Rows of all as rows held here, and which of them are."""
        here = rows - self._first
        return here, (here >= 0) & (here < self.num_rows)

    def _places(self, size):
        length = -(-size // self._replicas.num_replicas)
        return self._replicas.replica_id * length + tf.range(length)


def held(num_rows: int, quota: str = "global", replicas=None) -> Whole:
    """The rows that this replica holds, of all.

    Raises:
        ValueError: on an unknown `quota`.
    """
    _check_quota(quota)
    if replicas is None:
        return Whole(num_rows)
    return Share(num_rows, quota, replicas)


class Deal(NamedTuple):
    """The rows of a draw that this replica trains on, and how they move.

    Attributes:
        places: int32 `[b/R]`, places in the draw; the rows are
            `Draw.indices[places]`. Every place is dealt to one replica.
        send: int32 `[R, m]`, rows held here, by the replica that they go to;
            int32 `[b/R]` if no row moves.
        receive: int32 `[b/R]`, positions of the rows of `places` among the
            `R * m` that arrive; None if no row moves.
    """

    places: tf.Tensor
    send: tf.Tensor
    receive: tf.Tensor | None


def deal(
    indices: tf.Tensor,
    super_batch_size: int,
    *,
    quota: str = "global",
    replicas=None,
) -> Deal:
    """Deals the rows of a draw to the replicas, b/R each.

    With quota "per_replica" every row stays on its replica. With "global" the
    drawn rows are sorted by the replica that holds them, then by the order
    drawn; the j-th goes to replica j mod R. Whatever the draw, no replica sends
    more than m = ceil(min(b, B/R) / R) rows to any other, and one exchange of
    fixed size moves them. Dealing itself needs no collective.

    Args:
        indices: int32 `[b]`, rows of all, equal on every replica.
        super_batch_size: B.
        quota: the quota of the draw.
        replicas: the collectives, or None.

    Raises:
        ValueError: on an unknown quota, or if R does not divide b and B.
    """
    _check_quota(quota)
    batch_size = indices.shape[0]
    if replicas is None:
        return Deal(tf.range(batch_size), indices, None)
    num_replicas, replica = replicas.num_replicas, replicas.replica_id
    held_rows = share(super_batch_size, num_replicas, "`super_batch_size`")
    num_dealt = share(batch_size, num_replicas, "`batch_size`")

    owners = indices // held_rows  # [b]
    # Distinct keys, so that the sort need not be stable.
    order = tf.argsort(owners * batch_size + tf.range(batch_size))
    if quota == "per_replica":
        places = tf.reshape(order, [num_replicas, num_dealt])[replica]
        return Deal(
            places, tf.gather(indices, places) - replica * held_rows, None
        )

    every = tf.range(num_replicas)
    counts = tf.reduce_sum(
        tf.cast(owners[tf.newaxis] == every[:, tf.newaxis], tf.int32), 1
    )
    starts = tf.cumsum(counts, exclusive=True)  # [R], of each owner in `order`
    capacity = -(-min(batch_size, held_rows) // num_replicas)

    # The first of this replica's rows in `order` that goes to each replica,
    # and every R-th from there; slots beyond its last row are ignored.
    first = starts[replica] + (every - starts[replica]) % num_replicas
    sent = first[:, tf.newaxis] + num_replicas * tf.range(capacity)
    sent = tf.gather(order, tf.minimum(sent, batch_size - 1))  # [R, m]
    send = tf.gather(indices, sent) - replica * held_rows
    send = tf.clip_by_value(send, 0, held_rows - 1)

    dealt = replica + num_replicas * tf.range(num_dealt)  # places in `order`
    places = tf.gather(order, dealt)
    sources = tf.gather(owners, places)
    begin = tf.gather(starts, sources)
    slots = (dealt - begin - (replica - begin) % num_replicas) // num_replicas
    return Deal(places, send, sources * capacity + slots)


def move(
    batch: Mapping[str, tf.Tensor], dealt: Deal, replicas=None
) -> dict[str, tf.Tensor]:
    """Brings the rows dealt to this replica here, of every tensor of a batch.

    Takes one all-to-all of `R * m` rows for each tensor, if rows move at all.

    Args:
        batch: tensors of any dtype `[B/R, ...]`, the rows held here.
        dealt: the `Deal` of the same super-batch.
        replicas: the collectives, or None.

    Returns:
        By name `[b/R, ...]`, in the order of `dealt.places`.
    """
    if dealt.receive is None:
        return {
            name: tf.gather(value, dealt.send) for name, value in batch.items()
        }
    moved = {}
    for name in sorted(batch):  # the same order on every replica
        arrived = replicas.all_to_all(tf.gather(batch[name], dealt.send))
        arrived = tf.reshape(
            arrived, [dealt.send.shape.num_elements(), *arrived.shape[2:]]
        )
        moved[name] = tf.gather(arrived, dealt.receive)
    return moved


def deal_parts(
    indices: tf.Tensor,
    super_batch_size: int,
    order: tf.Tensor,
    num_parts: int,
    *,
    quota: str = "global",
    replicas=None,
) -> list[Deal]:
    """Deals the rows of a draw in random parts of equal size.

    With quota "global", and on one replica, a row's part depends on its place
    in the draw alone.

    Args:
        indices: int32 `[b]`, rows of all, equal on every replica.
        super_batch_size: B.
        order: int32, a random permutation, equal on every replica: of the
            `[b]` places, with quota "per_replica" of a replica's `[b/R]`.
        num_parts: P.
        quota: the quota of the draw.
        replicas: the collectives, or None.

    Returns:
        P deals of b/(P R) rows each, with `places` in the whole draw.

    Raises:
        ValueError: as `deal`, and if P R does not divide b.
    """
    num_replicas = count(replicas)
    length, rest = divmod(indices.shape[0], num_parts * num_replicas)
    if rest:
        raise ValueError(
            "`views` must cut a replica's share of the sub-batch, b/R, into "
            f"equal parts. Received: {num_parts} views, b={indices.shape[0]}, "
            f"R={num_replicas}"
        )
    if replicas is None or quota == "per_replica":
        own = deal(indices, super_batch_size, quota=quota, replicas=replicas)
        chosen = tf.split(order, [length] * num_parts)
        return [
            Deal(tf.gather(own.places, part), tf.gather(own.send, part), None)
            for part in chosen
        ]
    parts = []
    for places in tf.split(order, num_parts):
        dealt = deal(
            tf.gather(indices, places), super_batch_size, replicas=replicas
        )
        parts.append(dealt._replace(places=tf.gather(places, dealt.places)))
    return parts


def count(replicas) -> int:
    """R; 1 where the collectives are None."""
    return 1 if replicas is None else replicas.num_replicas


def rows_of_all(num_rows: int, replicas=None) -> tf.Tensor:
    """The rows held here, int32 `[num_rows]`, numbered among those of all."""
    number = 0 if replicas is None else replicas.replica_id
    return num_rows * number + tf.range(num_rows)


def share(size: int, num_replicas: int, name: str) -> int:
    """`size / num_replicas`.

    Raises:
        ValueError: if R does not divide `size`, which the message calls `name`.
    """
    if size % num_replicas:
        raise ValueError(
            f"{name} must be a multiple of the number of replicas (R). "
            f"Received: {size}, R={num_replicas}"
        )
    return size // num_replicas


def _check_quota(quota):
    if quota not in QUOTAS:
        raise ValueError(
            f"`quota` must be one of {QUOTAS}. Received: {quota!r}"
        )


def _mask(rows, size):
    mask = tf.zeros([size], tf.bool)
    return tf.tensor_scatter_nd_update(
        mask, rows[:, tf.newaxis], tf.ones_like(rows, tf.bool)
    )

"""Placement of the rows of a draw: `deal` assigns them, `move` moves them.

R replicas have B/R rows each: row i of replica r is row `r * B/R + i` of B.
All shapes are static. docs/distribution.md has the cost of each collective.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from keras import ops

from jest_tf import config, embeddings
from jest_tf.embeddings import Tensor


class Deal(NamedTuple):
    """The rows of a draw that this replica trains on, and how they move.

    `places` in the draw are disjoint across replicas. `receive` has their
    positions among the `R * m` rows that arrive. If no row moves, it is None,
    and `send` has the local rows, `[b/R]`.
    """

    places: Tensor  # int32 [b/R]
    send: Tensor  # int32 [R, m], local rows to send to each replica
    receive: Tensor | None  # int32 [b/R]


def deal(
    indices: Tensor,
    super_batch_size: int,
    *,
    quota: str = "global",
    replicas=None,
) -> Deal:
    """Deals the rows of a draw to the replicas, b/R each.

    With quota "per_replica" every row stays on its replica. With "global" the
    drawn rows are sorted by the replica that holds them, then by the order
    drawn; the j-th goes to replica j mod R. No replica sends more than
    m = ceil(min(b, B/R) / R) rows to another, so one exchange of fixed size
    moves them. Dealing itself needs no collective.

    `indices`, int32 `[b]`, are rows among all B, equal on every replica.
    """
    batch_size = indices.shape[0]
    if replicas is None:
        return Deal(ops.arange(batch_size, dtype="int32"), indices, None)
    num_replicas, replica = replicas.num_replicas, replicas.replica_id
    held_rows = share(super_batch_size, num_replicas, "`super_batch_size`")
    num_dealt = share(batch_size, num_replicas, "`batch_size`")

    owners = indices // held_rows  # [b]
    # Distinct keys, so that the sort need not be stable.
    numbers = ops.arange(batch_size, dtype="int32")
    order = ops.argsort(owners * batch_size + numbers)
    if not config.QUOTAS[quota].exchanges:
        places = ops.reshape(order, [num_replicas, num_dealt])[replica]
        return Deal(
            places, embeddings.take(indices, places) - replica * held_rows, None
        )

    every = ops.arange(num_replicas, dtype="int32")
    counts = ops.sum(ops.cast(owners[None] == every[:, None], "int32"), 1)
    starts = ops.cumsum(counts) - counts  # [R], of each owner in `order`
    capacity = -(-min(batch_size, held_rows) // num_replicas)

    # The first of this replica's rows in `order` that goes to each replica,
    # and every R-th from there; slots beyond its last row are ignored.
    first = starts[replica] + (every - starts[replica]) % num_replicas
    sent = first[:, None] + num_replicas * ops.arange(capacity, dtype="int32")
    sent = embeddings.take(order, ops.minimum(sent, batch_size - 1))  # [R, m]
    send = embeddings.take(indices, sent) - replica * held_rows
    send = ops.clip(send, 0, held_rows - 1)

    # Places in `order`.
    dealt = replica + num_replicas * ops.arange(num_dealt, dtype="int32")
    places = embeddings.take(order, dealt)
    sources = embeddings.take(owners, places)
    begin = embeddings.take(starts, sources)
    slots = (dealt - begin - (replica - begin) % num_replicas) // num_replicas
    return Deal(places, send, sources * capacity + slots)


def move(
    batch: Mapping[str, Tensor], dealt: Deal, replicas=None
) -> dict[str, Tensor]:
    """Brings the dealt rows of every tensor of a batch to this replica.

    Maps tensors `[B/R, ...]` of any dtype to `[b/R, ...]`, in the order of
    `dealt.places`. Takes one all-to-all of `R * m` rows per tensor, if rows
    move at all.
    """
    if dealt.receive is None:
        return {
            name: embeddings.take(value, dealt.send)
            for name, value in batch.items()
        }
    moved = {}
    for name in sorted(batch):  # the same order on every replica
        arrived = replicas.all_to_all(embeddings.take(batch[name], dealt.send))
        arrived = ops.reshape(
            arrived, [math.prod(dealt.send.shape), *arrived.shape[2:]]
        )
        moved[name] = embeddings.take(arrived, dealt.receive)
    return moved


def deal_parts(
    indices: Tensor,
    super_batch_size: int,
    order: Tensor | None,
    num_parts: int,
    *,
    quota: str = "global",
    replicas=None,
) -> list[Deal]:
    """Deals the rows of a draw in P random parts of b/(P R) rows per replica.

    With quota "global", and on one replica, a row's part depends only on its
    place in the draw. `places` refer to the whole draw. Other arguments are as
    in `deal`.

    Args:
        order: int32, a random permutation, equal on every replica: `[b]`, of
            all places; with quota "per_replica" `[b/R]`, of a replica's places.
            None makes one part.
    """
    if order is None:
        return [deal(indices, super_batch_size, quota=quota, replicas=replicas)]
    if replicas is None or not config.QUOTAS[quota].exchanges:
        own = deal(indices, super_batch_size, quota=quota, replicas=replicas)
        chosen = ops.split(order, num_parts)
        return [
            Deal(
                embeddings.take(own.places, part),
                embeddings.take(own.send, part),
                None,
            )
            for part in chosen
        ]
    parts = []
    for places in ops.split(order, num_parts):
        dealt = deal(
            embeddings.take(indices, places),
            super_batch_size,
            replicas=replicas,
        )
        parts.append(
            dealt._replace(places=embeddings.take(places, dealt.places))
        )
    return parts


def number_rows(num_rows: int, replicas=None) -> Tensor:
    """Returns the local rows' numbers among all rows, int32 `[num_rows]`."""
    number = 0 if replicas is None else replicas.replica_id
    return num_rows * number + ops.arange(num_rows, dtype="int32")


def share(size: int, num_replicas: int, name: str) -> int:
    """Returns `size / num_replicas`; raises ValueError unless integral."""
    if size % num_replicas:
        raise ValueError(
            f"{name} must be a multiple of the number of replicas (R). "
            f"Received: {size}, R={num_replicas}"
        )
    return size // num_replicas

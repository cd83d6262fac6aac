"""Traffic, work and memory of R replicas in a step, counted on paper.

Everything is counted from sizes; `tests/benchmarks/test_traffic.py` compares,
collective by collective, with the calls that losses, selection and placement
make. Gradients of the parameters, which any data-parallel training sums, are
left out.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from jest_tf import selection
from jest_tf.losses import running

_FLOAT_BYTES = 4


class Setup(NamedTuple):
    """The sizes of a step.

    Attributes:
        num_replicas: R.
        super_batch_size: B.
        batch_size: b.
        num_chunks: N.
        dim: width of the learner's embeddings.
        reference_dim: of the reference's.
        quota: "global" or "per_replica".
        loss: "sigmoid" or "softmax", of the scores and of the training.
        loss_block_size: rows of the loss's logits held at a time; None is b/R.
        rows: by name shape and dtype of a row of the batch's tensors.
    """

    num_replicas: int
    super_batch_size: int
    batch_size: int
    num_chunks: int
    dim: int
    reference_dim: int
    quota: str = "global"
    loss: str = "sigmoid"
    loss_block_size: int | None = None
    rows: Mapping[str, tuple[tuple[int, ...], str]] = {}

    @property
    def held(self) -> int:
        """B/R."""
        return self.super_batch_size // self.num_replicas

    @property
    def share(self) -> int:
        """b/R."""
        return self.batch_size // self.num_replicas

    @property
    def chunk_sizes(self) -> list[int]:
        """The rows of each chunk over all replicas."""
        parts = self.num_replicas if self.quota == "per_replica" else 1
        sizes = selection.chunk_sizes(
            self.batch_size // parts,
            self.num_chunks,
            self.super_batch_size // parts,
        )
        return [parts * size for size in sizes]

    @property
    def sampled(self) -> int:
        """Rows of the uniform draw that a draw is compared with."""
        return min(self.batch_size, selection.UNIFORM_ROWS)

    @property
    def capacity(self) -> int:
        """Rows that a replica may send to another."""
        return -(-min(self.batch_size, self.held) // self.num_replicas)


class Collective(NamedTuple):
    """A call that every replica makes.

    Attributes:
        purpose: use of the call.
        kind: "all_gather", "all_reduce" or "all_to_all".
        shape: of the tensor that a replica hands in.
        dtype: its dtype's name.
    """

    purpose: str
    kind: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor that a replica hands in."""
        return math.prod(self.shape) * tf.dtypes.as_dtype(self.dtype).size

    def received(self, num_replicas: int) -> float:
        """Bytes that reach a replica, by the best known algorithm."""
        others = num_replicas - 1
        return (
            self.num_bytes
            * {
                "all_gather": others,
                "all_reduce": 2 * others / num_replicas,  # scatter, then gather
                "all_to_all": others / num_replicas,
            }[self.kind]
        )


class Echo:
    """Replica 0 of R replicas, all of which hold the same.

    It has the methods of `distribution.Replicas`, for shapes and memory alone.
    """

    def __init__(self, num_replicas: int):
        self.num_replicas = num_replicas
        self.replica_id = tf.constant(0)
        self.in_loops = True

    def all_gather(self, tensor):
        """`[n, ...]` -> `[R * n, ...]`."""
        return tf.concat([tensor] * self.num_replicas, 0)

    def all_reduce(self, tensors):
        """Any structure, as it is."""
        return tf.nest.map_structure(tf.identity, tensors)

    def all_to_all(self, tensor):
        """`[R, m, ...]`, as it is."""
        return tf.identity(tensor)


def collectives(setup: Setup) -> list[Collective]:
    """Every call of a step with joint learnability selection."""
    widths = (setup.dim, setup.dim, setup.reference_dim, setup.reference_dim)
    calls = []
    for size in setup.chunk_sizes:
        if setup.quota == "per_replica":
            offered = size // setup.num_replicas
        else:
            offered = min(size, setup.held)
            calls.append(Collective("candidates", "all_gather", (offered,)))
        calls.append(
            Collective("candidates", "all_gather", (offered,), "int32")
        )
        calls += [
            Collective("chosen embeddings", "all_reduce", (size, width))
            for width in widths
        ]
    calls += [
        Collective("uniform draw", "all_reduce", (setup.sampled, width))
        for width in widths
    ]
    # Mean losses of either model: the draw's, the uniform draw's, and sums and
    # counts of kept and dropped rows.
    calls += [Collective("report", "all_reduce", ())] * 2 * (1 + 1 + 4)
    if setup.quota == "global":
        calls += [
            Collective(
                f"rows: {name}",
                "all_to_all",
                (setup.num_replicas, setup.capacity, *shape),
                dtype,
            )
            for name, (shape, dtype) in setup.rows.items()
        ]
    calls += [
        Collective("loss embeddings", "all_gather", (setup.share, setup.dim))
    ] * 2
    if setup.loss == "softmax":
        calls.append(
            Collective("loss normalisers", "all_gather", (setup.share, 2))
        )
    return [*calls, Collective("report", "all_reduce", ())]


def flops(setup: Setup) -> dict[str, float]:
    """Multiplications and additions of matrix products, a replica."""
    widths = 2 * (setup.dim + setup.reference_dim)  # images, texts; two models
    uses = 5 if setup.loss == "sigmoid" else 6
    return {
        "selection": 2.0 * setup.held * setup.batch_size * widths,
        "uniform draw": 2.0
        * math.ceil(setup.sampled / setup.num_replicas)
        * setup.sampled
        * widths,
        # Logits for the value, of softmax both ways; logits and sums for the
        # gradient of the images, and again for the texts.
        "loss": 2.0 * uses * setup.share * setup.batch_size * setup.dim,
    }


def memory(setup: Setup) -> dict[str, int]:
    """Bytes of the largest tensors, a replica; not all live at once."""
    widths = 2 * (setup.dim + setup.reference_dim)
    size = max(setup.chunk_sizes)
    block = min(setup.loss_block_size or setup.share, setup.share)
    row = sum(
        math.prod(shape) * tf.dtypes.as_dtype(dtype).size
        for shape, dtype in setup.rows.values()
    )
    moved = setup.num_replicas * setup.capacity * row
    tile = min(setup.held, running.tile_rows(size)) * size
    return {
        "embeddings held": setup.held * widths * _FLOAT_BYTES,
        "noise of all rows": (
            setup.num_chunks * setup.super_batch_size * _FLOAT_BYTES
        ),
        "chosen embeddings": size * widths * _FLOAT_BYTES,
        "tile of scores": tile * _FLOAT_BYTES,
        "rows sent and received": 2 * moved * (setup.quota == "global"),
        "loss embeddings": 2 * setup.batch_size * setup.dim * _FLOAT_BYTES,
        "block of loss logits": block * setup.batch_size * _FLOAT_BYTES,
    }


def totals(setup: Setup) -> dict[str, float]:
    """Bytes that reach a replica in a step, by purpose."""
    result = {}
    for call in collectives(setup):
        purpose = call.purpose.split(":")[0]
        bytes_ = call.received(setup.num_replicas)
        result[purpose] = result.get(purpose, 0.0) + bytes_
    return result

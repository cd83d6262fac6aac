"""The settings of a draw, and the sizes of its chunks."""

import dataclasses

from jest_tf import config


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a draw of a sub-batch from a super-batch.

    Attributes:
        method: "joint", "independent", "top" or "uniform".
        batch_size: b, rows to choose, at most B.
        num_chunks: N, chunks of a joint draw, at most b; the other methods
            draw all rows at once.
        criterion: "learnability" (learner - reference), "easy_reference"
            (- reference) or "hard_learner" (learner).
        loss: pair loss of the scores, "sigmoid" or "softmax".
        first_chunk: "diagonal" draws the first chunk by the rows' own pairs,
            "uniform" uniformly.
        gain: factor of every score before the noise is added; 0 is uniform.
            Unused by "top" and "uniform".
        quota: on several replicas, "global" draws as one replica would;
            "per_replica" draws b/R of each replica's rows, scored given the
            rows chosen on any replica.

    Raises:
        ValueError: if a name is unknown.
    """

    method: str
    batch_size: int
    num_chunks: int = 16  # arXiv 2406.17711, algorithm 1
    criterion: str = "learnability"
    loss: str = "sigmoid"
    first_chunk: str = "diagonal"
    gain: float = 1.0
    quota: str = "global"

    def __post_init__(self):
        for name, allowed in (
            ("method", config.SAMPLERS),
            ("criterion", config.CRITERIA),
            ("loss", config.LOSSES),
            ("first_chunk", config.FIRST_CHUNKS),
            ("quota", config.QUOTAS),
        ):
            check_name(name, getattr(self, name), allowed)


def check_name(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is in `allowed`."""
    if value not in allowed:
        raise ValueError(
            f"`{name}` must be one of {allowed}. Received: {value!r}"
        )


def chunk_sizes(
    batch_size: int,
    num_chunks: int,
    super_batch_size: int,
    *,
    num_quotas: int = 1,
) -> list[int]:
    """Returns the number of rows that each of `num_chunks` chunks draws.

    The remainder of b / N goes one row each to the first chunks. With R
    quotas each chunk draws its share of b/R rows from each.

    Raises:
        ValueError: unless 1 <= num_chunks <= b/R <= B/R, in integers, with
            b = `batch_size`, B = `super_batch_size` and R = `num_quotas`.
    """
    for name, size in (
        ("`batch_size`", batch_size),
        ("`super_batch_size`", super_batch_size),
    ):
        if size % num_quotas:
            raise ValueError(
                f"{name} must be a multiple of the number of replicas (R). "
                f"Received: {size}, R={num_quotas}"
            )
    share, available = batch_size // num_quotas, super_batch_size // num_quotas
    if num_quotas > 1 and not 1 <= num_chunks <= share <= available:
        raise ValueError(
            "`quota='per_replica'` draws b/R rows from the B/R of a replica, "
            "at least one in every chunk; expected num_chunks <= b/R <= B/R. "
            f"Received: num_chunks={num_chunks}, b/R={share}, "
            f"B/R={available} (R={num_quotas})"
        )
    if not 1 <= share <= available:
        raise ValueError(
            "`batch_size` (b) must be from 1 to the size of the super-batch, "
            f"B={super_batch_size}. Received: batch_size={batch_size}"
        )
    if not 1 <= num_chunks <= share:
        raise ValueError(
            "`num_chunks` must be from 1 to `batch_size`, so that every chunk "
            f"draws a row. Received: num_chunks={num_chunks}, "
            f"batch_size={batch_size}"
        )
    size, rest = divmod(share, num_chunks)
    return [num_quotas * (size + (n < rest)) for n in range(num_chunks)]

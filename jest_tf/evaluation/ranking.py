"""Ranks of queries among candidates, exact and with ties.

Ties are broken at random in expectation, so a model that maps everything to one
point scores exactly chance. Scores are formed on the host, block by block.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# Scores are [block, candidates]; 256 x 25,000 (COCO's validation captions) is
# 50 MB in float64.
BLOCK_SIZE = 256


class Places(NamedTuple):
    """The place of each query's first match; int64 [queries] each.

    Attributes:
        above: nonmatching candidates that score higher than any match.
        tied: nonmatching candidates that score as the best match does.
        matching: matches that score as the best match does, at least one.
    """

    above: np.ndarray
    tied: np.ndarray
    matching: np.ndarray


def places(
    name: str,
    queries: np.ndarray,
    query_groups: np.ndarray,
    candidates: np.ndarray,
    groups: np.ndarray,
    block_size: int = BLOCK_SIZE,
) -> Places:
    """Ranks candidates by their inner product with each query.

    A query and a candidate match if their groups are equal.

    Args:
        name: of the measure, for errors.
        queries: float64 [Q, D].
        query_groups: integers [Q].
        candidates: float64 [C, D].
        groups: integers [C].
        block_size: queries scored at a time.

    Raises:
        ValueError: a query has no match.
    """
    missing = ~np.isin(query_groups, groups)
    if missing.any():
        raise ValueError(
            f"`{name}`: every query must have a match. Received: "
            f"{missing.sum()} of {len(queries)} without one, the first in row "
            f"{np.argmax(missing)}"
        )
    blocks = [
        _places_of_block(
            queries[start : start + block_size],
            query_groups[start : start + block_size],
            candidates,
            groups,
        )
        for start in range(0, len(queries), block_size)
    ]
    return Places(*map(np.concatenate, zip(*blocks, strict=True)))


def scores(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Returns inner products, float32 [b, C], of float64 [b, D] and [C, D].

    Float64 sums are rounded to float32, so that equal candidates score equally
    in any order and any blocks.
    """
    return np.float32(queries @ candidates.T)


def expected(
    places: Places, value: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Returns E[value(rank)] of each query, float64; int64 ranks from 1."""
    above, tied, matching = places
    total, missed = np.zeros(len(above)), np.ones(len(above))
    for offset in range(int(tied.max()) + 1):
        # Each remaining candidate of equal score comes next with equal
        # probability; after the last miss a match is certain.
        left = np.maximum(tied + matching - offset, matching)
        hit = missed * matching / left
        total += hit * value(above + offset + 1)
        missed -= hit
    return total


def recall(places: Places, k: int) -> float:
    """Returns the expected share of queries with a match in the first k."""
    return float(np.mean(expected(places, lambda ranks: ranks <= k)))


def check_vectors(name: str, vectors: np.ndarray) -> np.ndarray:
    """Returns finite float64 [rows, D]; raises a ValueError otherwise."""
    vectors = np.asarray(vectors, np.float64)
    if vectors.ndim != 2 or not len(vectors):
        raise ValueError(
            f"`{name}` must be [rows, D] with at least one row. "
            f"Received: shape={vectors.shape}"
        )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"`{name}` must be finite. Received: {(~finite).sum()} of "
            f"{len(vectors)} rows with NaN or infinity"
        )
    return vectors


def check_rows(name: str, values: Sequence, num_rows: int) -> None:
    """Raises a ValueError unless there are `num_rows` values."""
    if len(values) != num_rows:
        raise ValueError(
            f"`{name}` must have a value for each of {num_rows} embeddings. "
            f"Received: {len(values)}"
        )


def _places_of_block(queries, query_groups, candidates, groups):
    table = scores(queries, candidates)
    matches = query_groups[:, None] == groups[None, :]
    best = np.where(matches, table, -np.inf).max(axis=1, keepdims=True)
    ties = table == best
    return (
        (~matches & (table > best)).sum(axis=1),
        (~matches & ties).sum(axis=1),
        (matches & ties).sum(axis=1),
    )

"""Ranks of queries among candidates, exact and with ties.

Ties count by their mean over random orders, so a model that maps everything to
the same point scores exactly chance. The host computes scores, in blocks.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# Scores are [block, tile]; 256 x 16,384 take 34 MB in float64, whatever the
# numbers of queries and candidates.
BLOCK_SIZE = 256
_TILE = 2**14


class Places(NamedTuple):
    """The place of each query's first match, as counts, int64 [queries] each.

    Attributes:
        above: nonmatching candidates that score higher than the best match.
        tied: nonmatching candidates with the score of the best match.
        matching: matches with the score of the best match, at least one.
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
) -> Places:
    """Ranks candidates by their inner product with each query.

    A query and a candidate match if their groups are equal.

    Args:
        name: name of the measure, for errors.
        queries: floats [Q, D].
        query_groups: integers [Q].
        candidates: floats [C, D].
        groups: integers [C].
    """
    missing = ~np.isin(query_groups, groups)
    if missing.any():
        raise ValueError(
            f"`{name}`: every query must have a match. Received: "
            f"{missing.sum()} of {len(queries)} without any, the first in row "
            f"{np.argmax(missing)}"
        )
    order = np.argsort(groups, kind="stable")
    by_group = groups[order]
    blocks = []
    for start in range(0, len(queries), BLOCK_SIZE):
        rows = slice(start, start + BLOCK_SIZE)
        own = np.unique(query_groups[rows])
        first = np.searchsorted(by_group, own)
        last = np.searchsorted(by_group, own, side="right")
        matches = np.concatenate(
            [order[i:j] for i, j in zip(first, last, strict=True)]
        )
        blocks.append(
            _find_block_places(
                queries[rows], query_groups[rows], candidates, groups, matches
            )
        )
    return Places(*map(np.concatenate, zip(*blocks, strict=True)))


def scores(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Returns inner products, float32 [b, C], of floats [b, D] and [C, D].

    Float64 sums are rounded to float32, so that equal candidates score equally
    in any order and with any blocks.
    """
    return np.float32(np.float64(queries) @ np.float64(candidates).T)


def expected(
    places: Places, value: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Returns each query's E[value(rank)], float64; ranks are int64, from 1."""
    above, tied, matching = places
    total, missed = np.zeros(len(above)), np.ones(len(above))
    for offset in range(int(tied.max()) + 1):
        # Each remaining candidate of equal score comes next with equal
        # probability; after the last nonmatching one, a match is certain.
        left = np.maximum(tied + matching - offset, matching)
        hit = missed * matching / left
        total += hit * value(above + offset + 1)
        missed -= hit
    return total


def check_vectors(name: str, vectors: np.ndarray) -> np.ndarray:
    """Returns vectors as floats [rows, D]; raises ValueError unless finite.

    Float32 stays float32; other types become float64.
    """
    vectors = np.asarray(vectors)
    if vectors.dtype != np.float32:
        vectors = vectors.astype(np.float64)
    if vectors.ndim != 2 or not len(vectors):
        raise ValueError(
            f"`{name}` must be [rows, D] with at least one row. "
            f"Received: shape={vectors.shape}"
        )
    # Sums of large numbers may overflow; those of embeddings don't.
    finite = np.isfinite(vectors.sum(axis=1, dtype=np.float64))
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


def _find_block_places(queries, query_groups, candidates, groups, matches):
    """Places of a few queries; `matches` are candidates of all their groups."""
    best = np.full(len(queries), -np.inf, np.float32)
    matching = np.zeros(len(queries), np.int64)
    for rows in _tiles(matches):
        table = scores(queries, candidates[rows])  # [b, tile]
        table[query_groups[:, None] != groups[rows]] = -np.inf
        highest = table.max(axis=1)
        higher, lower = highest > best, highest < best
        best = np.maximum(best, highest)
        count = (table == best[:, None]).sum(axis=1)
        matching = np.where(higher, 0, matching) + np.where(lower, 0, count)
    above, tied = np.zeros_like(matching), np.zeros_like(matching)
    for rows in _tiles(np.arange(len(candidates))):
        table = scores(queries, candidates[rows])
        table[query_groups[:, None] == groups[rows]] = -np.inf
        above += (table > best[:, None]).sum(axis=1)
        tied += (table == best[:, None]).sum(axis=1)
    return above, tied, matching


def _tiles(rows):
    return np.split(rows, range(_TILE, len(rows), _TILE))

"""Surveys a pool by its stored embeddings, in bounded memory.

Similarities are those of samples. For repeats and leaks, sampled images are
compared with every image of the pool, block by block.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jest_tf.curation import estimates
from jest_tf.data.sidecars import Sidecars

# Most records in the samples of similarities, and images compared with all.
_POOL, _CURATED, _COMPARED = 8_192, 4_096, 2_048
_LEAST = 64
_BLOCK = 4_096  # images of the pool at a time
# A usual seed could repeat the random choice that made a data set.
_SEED = 0x73616D706C65


class Pairs(NamedTuple):
    """Images, each with another image of the pool.

    Attributes:
        rows: int64 [k], rows of the images in their store.
        others: int64 [k], rows of the pool.
        cosines: float32 [k].
    """

    rows: np.ndarray
    others: np.ndarray
    cosines: np.ndarray

    def share(self, near: float) -> float:
        """Returns the share of images with a cosine of at least `near`."""
        return float((self.cosines >= near).mean())


class Survey(NamedTuple):
    """Measurements of a pool.

    Attributes:
        reference: name of the reference, "" if unknown.
        rows: int64 [n], rows of the pool in the sample, ascending.
        pool: float32 [n], similarities of these pairs.
        curated: float32 [m], of curated pairs that the reference has not seen.
        counts: int64 [m], weights of the curated pairs, see `count_nearest`.
        mismatched: float32 [n], of images and other images' captions.
        matched: share of the pool's pairs that match.
        candidates: advised number of candidates.
        chosen: expected matched share of their most similar pairs.
        cut: cosine that 1 / candidates of the pool's pairs have or exceed.
        near: least cosine of near-duplicates.
        repeats: images of the pool, with the nearest others.
        leaks: images of the tests, with the nearest of the pool; None without
            tests.
    """

    reference: str
    rows: np.ndarray
    pool: np.ndarray
    curated: np.ndarray
    counts: np.ndarray
    mismatched: np.ndarray
    matched: estimates.Estimate
    candidates: int
    chosen: float
    cut: float
    near: float
    repeats: Pairs
    leaks: Pairs | None


def survey(
    pool: Sidecars,
    curated: Sidecars,
    tests: Sidecars | None = None,
    *,
    near: float = 0.999,
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """Measures a pool.

    Args:
        pool: the reference's embeddings of the pool.
        curated: those of matched pairs that the reference was not trained on.
        tests: those of the tests' examples.
        near: least cosine of near-duplicates. The value depends on the
            reference: a weak model has all cosines near 1.
        progress: called with the records compared so far and in all.
    """
    random = np.random.default_rng(_SEED)
    rows, image, text = _sample(pool, _POOL, random)
    curated_rows, *curated_pairs = _sample(curated, _CURATED, random)
    for name, sampled in (("pool", rows), ("curated set", curated_rows)):
        check_count(name, len(sampled), _LEAST)
    # Records of the same image are often neighbours.
    others = np.roll(text, len(text) // 2, axis=0)
    similar, alike, mismatched = (
        estimates.similarities(*pairs, image, text)
        for pairs in ((image, text), curated_pairs, (image, others))
    )
    counts = estimates.count_nearest(image, curated_pairs[0])
    matched = estimates.matched_share(similar, alike, counts)
    candidates = estimates.count_candidates(matched.mean)
    some = random.permutation(len(rows))[:_COMPARED]
    queries, own = image[some], rows[some]
    if tests is not None:
        test_rows, test_image, _ = _sample(tests, _COMPARED, random)
        check_count("tests", len(test_rows))
        queries = np.concatenate([queries, test_image])
        own = np.concatenate([own, np.full(len(test_rows), -1)])
    neighbours = _find_nearest(queries, own, pool, progress)
    repeats, leaks = (
        [values[part] for values in neighbours]
        for part in (slice(len(some)), slice(len(some), None))
    )
    return Survey(
        reference=pool.description.name,
        rows=rows,
        pool=similar,
        curated=alike,
        counts=counts,
        mismatched=mismatched,
        matched=matched,
        candidates=candidates,
        chosen=estimates.chosen_share(
            similar, alike, counts, mismatched, matched.mean, candidates
        ),
        cut=float(
            np.quantile(
                np.einsum("nd,nd->n", image, text), 1.0 - 1.0 / candidates
            )
        ),
        near=near,
        repeats=Pairs(rows[some], *repeats),
        leaks=None if tests is None else Pairs(test_rows, *leaks),
    )


def check_count(name: str, count: int, least: int = 1) -> None:
    """Raises ValueError if fewer records have embeddings than are needed."""
    if count < least:
        raise ValueError(
            f"At least {least} record{'s' * (least > 1)} of the {name} must "
            f"have embeddings. Received: {count}"
        )


def _sample(sidecars, most, random):
    """Reads random records, in the order of their rows."""
    size = len(sidecars)
    rows = np.sort(random.choice(size, min(most, size), replace=False))
    return read(sidecars, rows)


def read(sidecars, rows):
    """The rows with an image and a caption; embeddings of it and the first.

    Rows are int64, the embeddings float32 [n, D].
    """
    captions, image, text = sidecars.read_numbered(
        rows, 0 * rows, sidecars.store.ids(rows)
    )
    good = captions >= 0
    return (
        rows[good],
        image[good].astype(np.float32),
        text[good].astype(np.float32),
    )


def blocks(
    sidecars: Sidecars, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields the end of a block, then its rows and images as of `read`.

    The blocks have the rows from `start` to `end`, None for the last.
    """
    end = len(sidecars) if end is None else end
    for first in range(start, end, _BLOCK):
        stop = min(first + _BLOCK, end)
        rows, image, _ = read(sidecars, np.arange(first, stop))
        yield stop, rows, image


def _find_nearest(queries, own, pool, progress):
    """Finds for each query the row and cosine of the nearest pool image.

    `own` has the queries' rows in the pool, which don't count, -1 for others.
    """
    best = np.full(len(queries), -1.0, np.float32)
    nearest = np.zeros(len(queries), np.int64)
    for stop, rows, image in blocks(pool):
        if len(rows):
            cosines = queries @ image.T
            cosines[own[:, None] == rows] = -1.0
            places = cosines.argmax(1)
            highest = cosines[np.arange(len(places)), places]
            nearest = np.where(highest > best, rows[places], nearest)
            best = np.maximum(best, highest)
        if progress is not None:
            progress(stop, len(pool))
    return nearest, best

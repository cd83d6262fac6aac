"""Estimates of a pool from similarities of pairs, without labels.

A pool is a mixture: some of its pairs match, and are as similar as curated
pairs of similar images that the reference has not seen; the others are as
similar as an image and another image's caption. If mismatched pairs have a mean
similarity of 0, the share of pairs that match is the pool's mean over that of
curated pairs.
"""

from typing import NamedTuple

import numpy as np

# Numbers of candidates that the advice may name.
_LEAST_CANDIDATES, _MOST_CANDIDATES = 2, 10
_NEAREST = 5  # curated images that stand for an image of the pool
_BLOCK = 1_024  # images of the pool at a time


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    mean: float
    low: float
    high: float


def similarities(
    image: np.ndarray,
    text: np.ndarray,
    pool_image: np.ndarray,
    pool_text: np.ndarray,
) -> np.ndarray:
    """Standardises the cosines of pairs by those of mismatched pool pairs.

    Some images and captions are similar to everything. Subtracts from a
    pair's cosine the mean cosine of its image and the pool's captions, and
    divides by their standard deviation; does the same with its caption and the
    pool's images; averages both.

    Args:
        image: float32 [n, D], of unit length.
        text: float32 [n, D], row for row.
        pool_image: float32 [m, D], a sample of the pool.
        pool_text: float32 [m, D].

    Returns:
        float32 [n]; mismatched pairs have a mean of about 0.
    """
    cosines = np.einsum("nd,nd->n", image, text)
    standardised = [
        (cosines - mean) / deviation
        for mean, deviation in (
            _moments(image, pool_text),
            _moments(text, pool_image),
        )
    ]
    return np.mean(standardised, axis=0, dtype=np.float32)


def _moments(first, second):
    """Mean and deviation of each row's cosines with all of `second`, [n]."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    mean = first @ second.mean(0)
    # The Gram matrix of `second` is smaller than the matrix of all cosines.
    gram = second.T @ second / len(second)
    variance = ((first @ gram) * first).sum(1) - mean**2
    return mean, np.sqrt(np.maximum(variance, 1e-12))


def count_nearest(image: np.ndarray, curated_image: np.ndarray) -> np.ndarray:
    """Counts how often curated images are among the five nearest of the pool's.

    Weighted by these counts, curated pairs have the pool's mix of kinds, which
    may be easier or harder for the reference than those of the curated set.

    Args:
        image: float32 [n, D], a sample of the pool, of unit length.
        curated_image: float32 [m, D].

    Returns:
        int64 [m], of sum 5 n.
    """
    counts = np.zeros(len(curated_image), np.int64)
    for start in range(0, len(image), _BLOCK):
        cosines = image[start : start + _BLOCK] @ curated_image.T
        nearest = np.argpartition(-cosines, _NEAREST, axis=1)[:, :_NEAREST]
        counts += np.bincount(nearest.ravel(), minlength=len(counts))
    return counts


def matched_share(
    pool: np.ndarray, curated: np.ndarray, counts: np.ndarray
) -> Estimate:
    """Estimates the share of a pool's pairs that match, in [0, 1].

    Matched pairs that are harder for the reference than curated pairs of
    similar images count only in part. The interval is of the sampling error
    alone.

    Args:
        pool: float [n], `similarities` of a sample of the pool.
        curated: float [m], of curated pairs that the reference has not seen.
        counts: int [m], the weights of the curated pairs.
    """
    weights = counts / counts.sum()
    mean = weights @ curated
    error = np.linalg.norm(weights * (curated - mean))
    if mean <= 2.0 * error:
        raise ValueError(
            "The reference must find unseen curated pairs more similar than "
            f"mismatched pairs. Received: a mean {mean:.3f} standard "
            f"deviations higher, with a standard error of {error:.3f}; take a "
            "reference that was trained for longer, or a public model, or "
            "more curated pairs"
        )
    share = pool.mean() / mean
    # Of a ratio of independent means, to first order.
    spread = np.hypot(pool.std() / len(pool) ** 0.5, share * error)
    reach = 1.96 * spread / mean
    values = np.clip([share, share - reach, share + reach], 0.0, 1.0)
    return Estimate(*values.tolist())


def count_candidates(share: float) -> int:
    """Returns the number of candidates per matched pair, from 2 to 10."""
    wanted = round(1.0 / max(share, 1e-9))
    return min(max(wanted, _LEAST_CANDIDATES), _MOST_CANDIDATES)


def chosen_share(
    pool: np.ndarray,
    curated: np.ndarray,
    counts: np.ndarray,
    mismatched: np.ndarray,
    share: float,
    candidates: int,
) -> float:
    """Estimates the matched share among the most similar pairs of a pool.

    Args:
        pool: float [n], `similarities` of a sample of the pool.
        curated: float [m], weighted by `counts`, like matched pairs of the
            pool.
        counts: int [m].
        mismatched: float [k], like its other pairs.
        share: the matched share of the pool.
        candidates: pairs for each chosen pair.
    """
    cut = np.quantile(pool, 1.0 - 1.0 / candidates)
    # If nothing is as similar as the cut, the choice is random.
    alike = np.average(curated >= cut, weights=counts)
    matched = share * (alike + 1e-9)
    others = (1.0 - share) * ((mismatched >= cut).mean() + 1e-9)
    return float(matched / (matched + others))

"""Estimates of a pool from embeddings of samples, without labels.

A pool is a mixture: some of its pairs match, and are as similar as curated
pairs that the reference has not seen; the others are as similar as a picture
and another picture's caption. If the pool's pairs have the mean similarity m,
unseen curated pairs m1 and mismatched pairs m0, the share of the pool's pairs
that match is (m - m0) / (m1 - m0).

Similarities are standardised by mismatched pairs of the same picture and of the
same caption, because some pictures and captions are similar to everything.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 1_000
_PERCENTILES = (2.5, 97.5)
_BLOCK = 1_024  # rows of the matrix of similarities at a time
# Pictures clustered to measure breadth; clusters are about their square root.
_CLUSTERED = 1_024


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    mean: float
    low: float
    high: float


class Similarities(NamedTuple):
    """Standardised similarities of n pairs; mismatched pairs have a mean of 0.

    Attributes:
        matched: float32 [n], of each picture with its own caption.
        mismatched: float32 [n], of each picture with another one's caption.
    """

    matched: np.ndarray
    mismatched: np.ndarray


def similarities(image: np.ndarray, text: np.ndarray) -> Similarities:
    """Standardises the cosine similarities of pairs.

    Subtracts from a pair's cosine the mean cosine of all mismatched pairs with
    its picture, and divides by their standard deviation; does the same with its
    caption; averages both.

    Args:
        image: float32 [n, D], of unit length.
        text: float32 [n, D], row for row.

    Raises:
        ValueError: there are fewer than three pairs.
    """
    n = len(image)
    _check_count(n)
    of_image = _moments(image, text, are_pairs=True)
    of_text = _moments(text, image, are_pairs=True)
    places = np.arange(n)
    # Records of the same picture are often neighbours.
    others = np.roll(places, n // 2)
    return Similarities(
        _standardised(image, text, of_image, of_text),
        _standardised(image, text[others], of_image, of_text[:, others]),
    )


def similarities_to(
    image: np.ndarray,
    text: np.ndarray,
    pool_image: np.ndarray,
    pool_text: np.ndarray,
) -> np.ndarray:
    """Standardises the cosines of pairs by those of mismatched pool pairs.

    Works like `Similarities.matched`, but with mismatched pairs of a picture
    and the pool's captions, and of a caption and the pool's pictures. So pairs
    of a narrow set are not compared with mismatched pairs of the same topics,
    which are harder to tell apart.

    Args:
        image: float32 [m, D], of unit length.
        text: float32 [m, D], row for row.
        pool_image: float32 [n, D].
        pool_text: float32 [n, D].

    Returns:
        float32 [m].

    Raises:
        ValueError: either set has fewer than three pairs.
    """
    _check_count(min(len(image), len(pool_image)))
    return _standardised(
        image, text, _moments(image, pool_text), _moments(text, pool_image)
    )


def _check_count(count):
    if count < 3:
        raise ValueError(
            f"At least three pairs must have embeddings. Received: {count}"
        )


def _standardised(image, text, of_image, of_text):
    cosines = np.einsum("nd,nd->n", image, text)
    by_image = (cosines - of_image[0]) / of_image[1]
    by_text = (cosines - of_text[0]) / of_text[1]
    return ((by_image + by_text) / 2).astype(np.float32)


def _moments(first, second, are_pairs=False):
    """Mean and deviation of each row's cosines with all of `second`, [2, n].

    If `are_pairs`, cosines of the same row in both do not count.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    sums = first @ second.sum(0)
    # The Gram matrix of `second` is smaller than the matrix of all cosines.
    squares = ((first @ (second.T @ second)) * first).sum(1)
    if are_pairs:
        own = np.einsum("nd,nd->n", first, second)
        sums, squares = sums - own, squares - own**2
    count = len(second) - are_pairs
    mean = sums / count
    variance = np.maximum(squares / count - mean**2, 0.0)
    return np.stack([mean, np.maximum(np.sqrt(variance), 1e-6)])


def matched_share(
    pool: np.ndarray, curated: np.ndarray, seed: int = 0
) -> Estimate:
    """Estimates the share of a pool's pairs that match.

    Args:
        pool: float [n], `Similarities.matched` of a sample of the pool.
        curated: float [m], `similarities_to` the pool, of curated pairs that
            the reference has not seen.
        seed: seed of the resamples of both; their percentiles are the interval.

    Returns:
        A share in [0, 1]. Matched pairs that are harder for the reference than
        the curated pairs count only in part.

    Raises:
        ValueError: the reference finds the curated pairs no more similar than
            mismatched pairs, so its similarities cannot describe the pool.
    """
    random = np.random.default_rng(seed)
    error = curated.std() / len(curated) ** 0.5
    if curated.mean() <= 2.0 * error:
        raise ValueError(
            "The reference must find unseen curated pairs more similar than "
            f"mismatched pairs. Received: a mean {curated.mean():.3f} standard "
            f"deviations higher, with a standard error of {error:.3f}; take a "
            "reference that was trained for longer, or a public model, or "
            "more curated pairs"
        )
    ratios = [
        _resampled_mean(random, pool) / _resampled_mean(random, curated)
        for _ in range(RESAMPLES)
    ]
    ends = np.percentile(ratios, _PERCENTILES)
    values = np.clip([pool.mean() / curated.mean(), *ends], 0.0, 1.0)
    return Estimate(*values.tolist())


def _resampled_mean(random, values):
    return values[random.integers(0, len(values), len(values))].mean()


def posterior(
    pool: Similarities, curated: np.ndarray, share: float
) -> np.ndarray:
    """Estimates for each pair the probability that it matches.

    Isotonic regression fits the ratio of the densities of matched and of
    mismatched similarities as a rising function; `share` is the prior.

    Args:
        pool: similarities of the n pairs.
        curated: float [m], as for `matched_share`.
        share: the estimate of `matched_share`.

    Returns:
        float64 [n].
    """
    # Imported here: it takes seconds.
    from sklearn import isotonic

    values = np.concatenate([curated, pool.mismatched])
    labels = np.repeat([1.0, 0.0], [len(curated), len(pool.mismatched)])
    # Both kinds have equal weight, so that the odds are the density ratio.
    weights = np.repeat(
        [1.0 / len(curated), 1.0 / len(pool.mismatched)],
        [len(curated), len(pool.mismatched)],
    )
    fitted = isotonic.IsotonicRegression(out_of_bounds="clip").fit(
        values, labels, weights
    )
    # So few pairs cannot make either outcome certain.
    least = 1.0 / (len(curated) + 1)
    chance = np.clip(fitted.predict(pool.matched), least, 1.0 - least)
    odds = chance / (1.0 - chance) * share / max(1.0 - share, 1e-9)
    return odds / (1.0 + odds)


def precision(
    similarity: np.ndarray, probability: np.ndarray, candidates: int
) -> float:
    """Returns the expected share of matched pairs among the most similar.

    Args:
        similarity: float [n], by which pairs are chosen.
        probability: float [n], from `posterior`.
        candidates: pairs for each chosen pair.
    """
    count = max(1, len(similarity) // candidates)
    best = np.argpartition(-similarity, count - 1)[:count]
    return float(probability[best].mean())


class Duplicates(NamedTuple):
    """Near-duplicates of a sample.

    Attributes:
        share: share of pictures with a near-duplicate in the sample.
        copies: expected number of near-duplicates of a picture in the pool.
        pairs: int64 [k, 2], places of the nearest pairs, nearest first.
        cosines: float32 [k], cosines of these pairs.
    """

    share: float
    copies: float
    pairs: np.ndarray
    cosines: np.ndarray


def duplicates(
    image: np.ndarray, size: int, near: float, listed: int = 12
) -> Duplicates:
    """Finds near-duplicates, pairs of pictures whose cosine is at least `near`.

    Args:
        image: float32 [n, D], a random sample of a pool's pictures.
        size: N, the number of pictures in the pool. The sample has a given pair
            of them with a probability of about (n / N)^2.
        near: least cosine of near-duplicates.
        listed: most pairs to return.
    """
    n = len(image)
    counts = np.zeros(n, np.int64)
    found, cosines = [], []
    for start in range(0, n, _BLOCK):
        similar = image[start : start + _BLOCK] @ image.T
        places = np.arange(len(similar))
        similar[places, start + places] = -1.0
        is_near = similar >= near
        counts[start : start + _BLOCK] = is_near.sum(1)
        best = similar.argmax(1)
        found.append(np.stack([start + places, best], 1))
        cosines.append(similar[places, best])
    pairs, values = np.concatenate(found), np.concatenate(cosines)
    # A pair is found from both sides; each is listed once.
    pairs, first = np.unique(np.sort(pairs, 1), axis=0, return_index=True)
    values = values[first]
    order = np.argsort(-values, kind="stable")
    order = order[values[order] >= near][:listed]
    return Duplicates(
        float((counts > 0).mean()),
        float(counts.mean() * (size - 1) / max(1, n - 1)),
        pairs[order],
        values[order],
    )


def breadth(groups: Sequence[np.ndarray], seed: int = 0) -> list[float]:
    """Measures how broad samples of pictures are, in effective clusters.

    K-means clusters the first group; every group's pictures go to the nearest
    cluster. A group's effective clusters are exp(entropy) of its shares of the
    clusters: k if it is spread evenly among k clusters.

    Args:
        groups: float32 [n, D] each, of unit length; the pool first. The same
            number of pictures of each is used, chosen at random, because few
            pictures cannot be spread among many clusters.
        seed: seed of the random choices.

    Returns:
        The effective clusters of each group, among about sqrt(1,024).
    """
    random = np.random.default_rng(seed)
    shuffled = [group[random.permutation(len(group))] for group in groups]
    # Pictures that define the clusters would be spread more evenly than others.
    count = min(_CLUSTERED, len(groups[0]) // 2)
    basis = shuffled[0][:count]
    centres = _centres(basis, max(1, round(count**0.5)))
    shuffled[0] = shuffled[0][count:]
    size = min(map(len, shuffled))
    return [_effective(group[:size], centres) for group in shuffled]


def _centres(points, count):
    """Means of clusters of points of unit length, by k-means.

    With fewer than `count` distinct points, returns fewer clusters.
    """
    # Imported here: it takes seconds, and only clusters need it.
    import sklearn.cluster
    import threadpoolctl

    count = min(count, len(np.unique(points, axis=0)))
    means = sklearn.cluster.KMeans(count, n_init=10, random_state=0)
    # One thread: several add in any order, which may change the last bits.
    with threadpoolctl.threadpool_limits(1):
        labels = means.fit_predict(points)
    return np.stack(
        [points[labels == label].mean(0) for label in np.unique(labels)]
    )


def _effective(image, centres):
    distance = (centres**2).sum(1) - 2.0 * image @ centres.T
    counts = np.bincount(distance.argmin(1), minlength=len(centres))
    shares = counts[counts > 0] / len(image)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def nearer(
    queries: np.ndarray, first: np.ndarray, second: np.ndarray, seed: int = 0
) -> float:
    """Measures the share of pictures that are nearer to the first of two sets.

    Uses only a random part of the larger set, as large as the smaller set. A
    share of 0.5 means that both sets are equally like the queries.

    Args:
        queries: float32 [k, D], of unit length.
        first: float32 [n, D], without the queries.
        second: float32 [m, D].
        seed: seed of the random part.
    """
    random = np.random.default_rng(seed)
    size = min(len(first), len(second))
    best = [
        (queries @ group[random.permutation(len(group))[:size]].T).max(1)
        for group in (first, second)
    ]
    return float(((best[0] > best[1]) + 0.5 * (best[0] == best[1])).mean())

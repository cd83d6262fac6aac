"""Intervals over held-out concepts and seeds.

Concepts are held out, so a resample draws concepts, with all their queries.
Runs are compared on the same resamples, seed by seed.
"""

import functools
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
_SEED = 0


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Concepts(NamedTuple):
    """A run's final evaluation on one split, arrays [concepts]."""

    image_queries: np.ndarray  # pictures of each concept
    text_queries: np.ndarray  # texts of each concept
    image_mrr: np.ndarray  # mean reciprocal rank of pictures asking for texts
    text_mrr: np.ndarray  # and of texts asking for pictures


def score(splits):
    """The score as it is, then in each resample; float64 [1 + RESAMPLES].

    Args:
        splits: `Concepts` of each split; their mean is the score.
    """
    means = []
    for place, split in enumerate(splits):
        columns = (
            *(split.image_mrr * split.image_queries, split.image_queries),
            *(split.text_mrr * split.text_queries, split.text_queries),
        )
        weights = _weights(len(split.image_queries), place)
        image, images, text, texts = (weights @ np.stack(columns, axis=1)).T
        means += [image / images, text / texts]
    return np.mean(means, axis=0)


def over_seeds(scores, num_splits):
    """The mean of runs, which are resampled, too; float64 [1 + RESAMPLES].

    Args:
        scores: of `score`, one per seed.
        num_splits: that the scores are the mean of.
    """
    scores = np.stack(scores)
    drawn, places = draws(len(scores), num_splits)
    resampled = scores[drawn, places].mean(axis=1)
    return np.append(scores[:, 0].mean(), resampled)


def draws(count, num_splits):
    """Indices into [seeds, 1 + RESAMPLES]: the seeds that resamples draw."""
    generator = np.random.default_rng([_SEED, num_splits])
    drawn = generator.integers(0, count, [RESAMPLES, count])
    return drawn, 1 + np.arange(RESAMPLES)[:, None]


def estimate(values):
    """`Estimate` of a value followed by its resamples."""
    low, high = np.percentile(values[1:], PERCENTILES)
    return Estimate(float(values[0]), float(low), float(high))


def chance(splits):
    """The score of a random ranking, over `Concepts` of each split."""
    values = []
    for split in splits:
        for asked, answers in (
            (split.image_queries, split.text_queries),
            (split.text_queries, split.image_queries),
        ):
            by_count = {
                count: _random_reciprocal_rank(count, int(answers.sum()))
                for count in np.unique(answers).tolist()
            }
            expected = [by_count[count] for count in answers.tolist()]
            values.append(np.average(expected, weights=asked))
    return float(np.mean(values))


def _random_reciprocal_rank(count, size):
    """Mean reciprocal rank of the first of `count` matches among `size`."""
    ranks = np.arange(1, size - count + 2)
    here = count / (size - ranks + 1)  # given none at the ranks before
    before = np.cumprod(np.append(1.0, 1.0 - here[:-1]))
    return float(np.sum(before * here / ranks))


@functools.lru_cache(maxsize=8)
def _weights(count, place):
    """How often each of `count` concepts is drawn; [1 + RESAMPLES, count].

    The first row is the concepts as they are.
    """
    generator = np.random.default_rng([_SEED, place])
    drawn = generator.multinomial(
        count, np.full(count, 1 / count), size=RESAMPLES
    )
    return np.concatenate([np.ones([1, count]), drawn])

"""Ladders: full schedules of a method at several lengths.

At a constant rate with averaged weights, a run of every length is a full one.
"""

import zlib
from typing import NamedTuple

import numpy as np

from benchmarks.icontext import bootstrap, comparison


class Line(NamedTuple):
    """A method at one length and one level of noise."""

    level: float
    method: str
    what: str  # the method in words
    steps: int
    runs: dict[int, comparison.Run]  # by seed


def lengths(ladder):
    """Steps of each line."""
    return np.array([line.steps for line in ladder])


def of_seeds(line, seeds):
    """Runs of the seeds that were run; all if none of them was."""
    some = [run for seed, run in line.runs.items() if seed in (seeds or ())]
    return some or list(line.runs.values())


def ends(ladder, splits, seeds, spread):
    """Scores of full schedules with resamples, [lines, 1 + RESAMPLES].

    Args:
        ladder: `Line`s.
        splits: whose mean the score is.
        seeds: of which runs are taken, if there are any; None takes all.
        spread: `steps ->` standard deviation between seeds, over the mean. It
            is added to the resamples of fewer than three runs.
    """
    return np.stack([_end(line, splits, seeds, spread) for line in ladder])


def _end(line, splits, seeds, spread):
    runs = of_seeds(line, seeds)
    scores = bootstrap.over_seeds(
        [run.resampled(splits) for run in runs], len(splits)
    )
    if len(runs) < comparison.LEAST_SEEDS:
        # Draws of the line's own, the same in each comparison.
        key = zlib.crc32(repr((line.level, line.method, line.steps)).encode())
        draws = np.random.default_rng(key).normal(size=bootstrap.RESAMPLES)
        scale = 1.0 + spread(line.steps) / len(runs) ** 0.5 * draws
        scores[1:] *= np.maximum(scale, 0.0)
    return scores


def end_at(lengths, ends, steps):
    """Ends of full schedules between those that were run.

    Args:
        lengths: steps [k], increasing.
        ends: scores [k, n].
        steps: number.

    Returns:
        Scores [n], linear in the logarithm of the steps; NaN beyond `lengths`.
    """
    if not lengths[0] <= steps <= lengths[-1]:
        return np.full(ends.shape[1], np.nan)
    place = max(1, int(np.searchsorted(lengths, steps)))
    if len(lengths) == 1:
        return ends[0]
    share = np.log(steps / lengths[place - 1])
    share /= np.log(lengths[place] / lengths[place - 1])
    return ends[place - 1] + share * (ends[place] - ends[place - 1])


def steps_to_end(lengths, ends, target):
    """Shortest full schedules whose ends, as of `end_at`, reach a target.

    Args:
        lengths: steps [k], increasing.
        ends: scores [k, n].
        target: scores [n].

    Returns:
        Steps [n], at least the first length; inf where none reaches it.
    """
    is_reached = ends >= target
    after = is_reached.argmax(axis=0)
    before, places = np.maximum(after - 1, 0), np.arange(ends.shape[1])
    low, high = ends[before, places], ends[after, places]
    rise = np.where(after > before, high - low, 1.0)
    share = np.where(after > before, (target - low) / rise, 0.0)
    doublings = np.log2(lengths[after] / lengths[before])
    found = lengths[before] * 2.0 ** (share * doublings)
    return np.where(is_reached.any(axis=0), found, np.inf)

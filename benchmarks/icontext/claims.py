"""Verdicts on the claims of claims.csv.

A claim of a difference holds if its 95 % interval is above zero, for each of
its pairs; a claim of a ratio, if its interval is above one and it has three
seeds. "No worse" allows a loss of one point.
"""

import csv
import pathlib
from typing import NamedTuple

from benchmarks.icontext import comparison as comparison_lib
from benchmarks.icontext import targets

HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"
NOT_RUN = "not run yet"
MARGIN = 0.01  # of the score, that "no worse" may lose
JEST = ("jest_750", "jest_2500", "jest_5000")
COSTS = {
    "examples": targets.examples,
    "passes": targets.passes,
    "flops": targets.flops,
}


class Finding(NamedTuple):
    """The evidence on a claim."""

    measured: str  # the difference or ratio in words
    seeds: int  # how many it is of
    verdict: str  # HOLDS, FAILS, OPEN or NOT_RUN


def load():
    """The lines of claims.csv."""
    path = pathlib.Path(__file__).with_name("claims.csv")
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def judge(claim, comparison):
    """`Finding` of one line of claims.csv."""
    cells, against = claim["cells"].split(), claim["against"].split()
    if claim["test"] in ("better", "no_worse"):
        pairs = list(zip(cells, against, strict=True))
        least = -MARGIN if claim["test"] == "no_worse" else 0.0
        found = _differences(comparison, pairs, least)
    elif claim["test"] == "flops_against_jest":
        found = _cheaper_than_jest(comparison, cells)
    else:
        found = _cheaper(comparison, cells, COSTS[claim["test"]], *against)
    return found or Finding(NOT_RUN, 0, NOT_RUN)


def _differences(comparison, pairs, least):
    found = [comparison.difference(*pair) for pair in pairs]
    if None in found:
        return None
    seeds = min(comparison.shared(*pair) for pair in pairs)
    verdict = _verdict(
        all(one.low > least for one in found),
        any(one.high < 0 for one in found),
    )
    return Finding("; ".join(map(points, found)), seeds, verdict)


def _cheaper(comparison, cells, spent, base):
    found = comparison.to_target(cells, spent, base=base)
    if found is None:
        return None
    # A run that misses the target says nothing about a longer one.
    verdict = _verdict(
        found.low > 1, found.value and found.high < 1, found.seeds
    )
    return Finding(times(found), found.seeds, verdict)


def _cheaper_than_jest(comparison, cells):
    first, second = (
        comparison.to_target(one, targets.flops) for one in (cells, JEST)
    )
    if first is None or second is None:
        return None
    seeds = min(first.seeds, second.seeds)
    verdict = _verdict(first.low > second.high, first.high < second.low, seeds)
    return Finding(f"{times(first)}, JEST {times(second)}", seeds, verdict)


def _verdict(holds, fails, seeds=comparison_lib.LEAST_SEEDS):
    if seeds < comparison_lib.LEAST_SEEDS:
        return OPEN
    return HOLDS if holds else FAILS if fails else OPEN


def points(estimate):
    """An `Estimate` of a difference, in points."""
    return interval(estimate, "+")


def interval(estimate, sign=""):
    """An `Estimate` of a score, times 100."""
    value, low, high = (f"{100 * number:{sign}.1f}" for number in estimate)
    return f"{value} [{low}, {high}]"


def times(ratio):
    """A `targets.Ratio` in words."""
    if not ratio.value:
        if ratio.missed == ratio.seeds:
            return "target missed"
        return f"target missed by {ratio.missed} of {ratio.seeds} seeds"
    low = f"{ratio.low:.1f}" if ratio.low else "missed"
    return f"{ratio.value:.1f}x [{low}, {ratio.high:.1f}]"

"""Verdicts on the paper's claims, by the lines of claims.csv.

A claim has a line for each test of it, on emoji art or on the web-like data. A
difference holds if its 95 % interval is above zero, for each of its pairs; a
ratio, if its interval is above one. "No worse" allows a loss of one point.
There is no verdict on fewer than three seeds, nor on a method that the claim is
not about: a line whose `judged` is "no" stands beside the claim for comparison.

On emoji art a ratio is of the costs up to a curve's first crossing of the
target. On the web-like data it is of full schedules, as in summary.json: to the
target, or, where a line misses it, to the line's own end. A ratio to a line's
own end leaves a claim about the target undecided.
"""

import csv
import itertools
import math
import pathlib
import re
from typing import NamedTuple

from benchmarks.icontext import comparison as comparison_lib
from benchmarks.icontext import results, summary, targets

HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"
NOT_RUN = "not run yet"
MARGIN = 0.01  # of the score, that "no worse" may lose
LEVEL = 0.7  # of the web-like data: as much noise as a crawl has
COSTS = {
    "examples": targets.examples,
    "passes": targets.passes,
    "flops": targets.flops,
}
_ONE = {"low": 1.0, "high": 1.0}


class Finding(NamedTuple):
    """The evidence of one line of claims.csv."""

    measured: str  # the difference or ratio in words
    seeds: int  # how many it is of
    verdict: str  # HOLDS, FAILS, OPEN or NOT_RUN; empty if there is none


class Evidence(NamedTuple):
    """What lines are judged by."""

    comparison: comparison_lib.Comparison  # of runs on emoji art
    web: comparison_lib.Comparison | None = None  # of the web-like data
    summary: dict | None = None  # the content of summary.json


def evidence(comparison, folder):
    """`Evidence` of a folder of results.

    Args:
        comparison: of its runs on emoji art.
        folder: path; runs on the web-like data lie in its folder `web`.
    """
    tables, web = results.load(folder / "web"), None
    if tables is not None:
        current = summary.current(tables.runs)
        web = comparison_lib.Comparison(tables._replace(runs=current))
    return Evidence(comparison, web, summary.load(folder))


def load():
    """The claims: lists of the lines of claims.csv, by name."""
    path = pathlib.Path(__file__).with_name("claims.csv")
    with open(path, encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file)
        groups = itertools.groupby(lines, lambda line: line["name"])
        return {name: list(group) for name, group in groups}


def judge(line, found):
    """`Finding` of one line of claims.csv.

    Args:
        line: dict.
        found: `Evidence`.
    """
    judges = {"emoji": _on_emoji, "web": _on_web}
    cells, against = line["cells"].split(), line["against"].split()
    finding = judges[line["data"]](line["test"], cells, against, found)
    if not finding:
        return Finding(NOT_RUN, 0, NOT_RUN)
    is_judged = line["judged"] != "no"
    return finding if is_judged else finding._replace(verdict="")


def _on_emoji(test, cells, against, found):
    if test in ("better", "no_worse"):
        pairs = list(zip(cells, against, strict=True))
        return _differences(found.comparison, pairs, test, comparison_lib.TEST)
    if test == "flops_against":
        return _cheaper_than(found.comparison, cells, against)
    return _cheaper(found.comparison, cells, COSTS[test], *against)


def _on_web(test, cells, against, found):
    if test in ("better", "no_worse"):
        if not (found.web and found.summary):
            return None
        pairs = list(zip(cells, against, strict=True))
        splits = (f"{found.summary['split']}_sets",)
        return _differences(found.web, pairs, test, splits)
    lines = [_line(found.summary, cell) for cell in (*cells, *against)]
    values = [line and _quantity(test, line) for line in lines]
    if None in values:
        return None
    # Of one line the bound is uniform training's; of two, the second line.
    ends = {"low": 0.0, "high": 0.0} if test == "lead" else _ONE
    (first, _), (other, _), *_ = *values, (ends, "")
    # A run that misses the target says nothing about a longer one.
    is_there = not any(where for _, where in values)
    shorter = [] if test in ("lead", "over_uniform") else _shorter(lines, found)
    used = *lines, *shorter, *_baseline(found.summary)
    seeds = min(line["seeds"] for line in used)
    verdict = _verdict(
        is_there and _end(first, "low") > _end(other, "high"),
        is_there and _end(first, "high") < _end(other, "low"),
        seeds,
    )
    words = [_words(test, *value) for value in values]
    return Finding(", JEST ".join(words), seeds, verdict)


def _line(found, cell):
    """A cell's entries in the lists of summary.json; None if not run."""
    steps = int(re.search(r"\d{3,}$", cell)[0])
    names = "rows", "equal_scores", "bills"
    lists = [found[name] for name in names] if found else []
    for row, equal, bill in zip(*lists, strict=True):
        key = row["noise"], row["method"], row["steps"]
        if key == (LEVEL, summary.method_of(cell), steps):
            return bill | row | {"equal": equal}
    return None


def _shorter(lines, found):
    """Rows of the shorter lengths, which ratios are interpolated from."""
    return [
        row
        for row in found.summary["rows"]
        for line in lines
        if row["steps"] < line["steps"]
        and all(row[name] == line[name] for name in ("noise", "method"))
    ]


def _baseline(found):
    """Rows of the uniform training that a target is of."""
    ends = {one["steps"] for one in found["targets"] if one["noise"] == LEVEL}
    return [
        row
        for row in found["rows"]
        if (row["noise"], row["method"]) == (LEVEL, summary.UNIFORM)
        and row["steps"] in ends
    ]


def _quantity(test, line):
    """`(estimate, to which end)` of a line; None if there is none."""
    if test in ("lead", "over_uniform"):
        return line[test] and (line[test], "")
    for costs, where in ((line, ""), (line["equal"], " to its own end")):
        ratio = costs["flops_ratio"]["all"]
        if test == "examples":
            ratio = costs["examples_ratio"]
        if ratio:
            return ratio, where
    return None


def _words(test, estimate, where):
    if test == "lead":
        return told(estimate, factor=100, sign="+")
    if test == "over_uniform":
        return told(estimate, unit=" times as high")
    return told(estimate, unit="x") + where


def told(estimate, unit="", factor=1, sign="", digits=1):
    """An estimate of summary.json in words, empty of none."""
    if not estimate:
        return ""
    mean, low, high = (
        "?"
        if estimate[end] is None
        else f"{factor * estimate[end]:{sign}.{digits}f}"
        for end in ("mean", "low", "high")
    )
    if unit == "x" and estimate["low"] == 0:
        low = "missed"
    return f"{mean}{unit} [{low}, {high}]"


def seeds(count):
    """How many seeds, in words."""
    return f"{count} seed{'s' * (count > 1)}"


def bound(estimate, unit):
    """A lower bound in words, empty of none."""
    return estimate and f"at least {estimate['mean']:.1f}{unit}"


def _end(estimate, end):
    """An end of an interval; null is infinite."""
    return math.inf if estimate[end] is None else estimate[end]


def _differences(comparison, pairs, test, splits):
    found = [comparison.difference(*pair, splits) for pair in pairs]
    if None in found:
        return None
    least = -MARGIN if test == "no_worse" else 0.0
    seeds = min(comparison.shared(*pair) for pair in pairs)
    verdict = _verdict(
        all(one.low > least for one in found),
        any(one.high < least for one in found),
        seeds,
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


def _cheaper_than(comparison, cells, others):
    first, second = (
        comparison.to_target(one, targets.flops) for one in (cells, others)
    )
    if first is None or second is None:
        return None
    seeds = min(first.seeds, second.seeds)
    verdict = _verdict(
        first.low > second.high,
        first.value and first.high < second.low,
        seeds,
    )
    return Finding(f"{times(first)}, JEST {times(second)}", seeds, verdict)


def _verdict(holds, fails, seeds):
    if seeds < comparison_lib.LEAST_SEEDS:
        return ""
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

"""What selection gained where it was measured, and what that lets expect.

evidence.json, which `python -m benchmarks.icontext.advice evidence` writes, has
cells of IconText's web-like data, at several levels of noise. What to expect is
interpolated between them, and says nothing of other data.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jest_tf.curation.estimates import Estimate

FILE = pathlib.Path(__file__).with_name("evidence.json")

# No smaller share of matched pairs is told from others.
_LEAST_MATCHED = 0.02
_DIGITS = 3
# Shares of noise no further from a measured one are as good as measured.
_AROUND = 0.05


class Cell(NamedTuple):
    """A measured run of IconText's web-like data, in evidence.json.

    Attributes:
        noise: share of the pool that is noise.
        method: as in the benchmark's summary.
        steps: of the run.
        seeds: that were run.
        split: "test" or "val".
        score: mean reciprocal rank, {mean, low, high}.
        lead: score less that of uniform training of as many steps.
        over_uniform: score over the best of uniform training at no more FLOPs,
            those of scoring and of references counted.
        over_target: score over uniform training's best end at any length.
    """

    noise: float
    method: str
    steps: int
    seeds: int
    split: str
    score: dict
    lead: dict | None
    over_uniform: dict | None
    over_target: dict | None


class Expectation(NamedTuple):
    """What a method gained where it was measured, at a share of noise.

    Attributes:
        method: of the cells.
        steps: of the cells.
        measure: a field of `Cell`.
        value: interpolated between the levels of noise.
        levels: of the cells, ascending.
        is_inside: whether the share of noise lies between them, or next to one.
        seeds: the fewest of the cells used.
    """

    method: str
    steps: int
    measure: str
    value: Estimate
    levels: tuple[float, ...]
    is_inside: bool
    seeds: int


def cells() -> list[Cell]:
    """Reads the measured cells of evidence.json."""
    values = json.loads(FILE.read_text("utf-8"))
    return [Cell(**cell) for cell in values["cells"]]


class Accuracy(NamedTuple):
    """How well cells were expected from other levels of noise alone.

    Attributes:
        cells: that were left out in turn; 0 if one level was measured.
        rank_correlation: of expected and measured gains; None of too few.
        worst: largest factor between them; None without cells.
    """

    cells: int
    rank_correlation: float | None
    worst: float | None


def accuracy() -> Accuracy:
    """Reads the check of the expectations from evidence.json."""
    values = json.loads(FILE.read_text("utf-8"))
    return Accuracy(**values["accuracy"])


def expect(
    cells: Sequence[Cell], method: str, noise: float, measure: str
) -> list[Expectation]:
    """Interpolates a measure of a method at a share of noise.

    For each length of the runs, the logarithm of the ratio is linear in the
    logarithm of the share of pairs that match, between the measured levels and
    for a factor of two beyond them, where `is_inside` is false.

    Args:
        cells: measured ones.
        method: of the cells.
        noise: share of pairs that do not match, in [0, 1).
        measure: "over_uniform" or "over_target".

    Returns:
        One for each length that was measured, shortest first.
    """
    found: dict[int, dict[float, Cell]] = {}
    for cell in cells:
        if cell.method == method and getattr(cell, measure) is not None:
            found.setdefault(cell.steps, {})[cell.noise] = cell
    return [_between(found[steps], noise, measure) for steps in sorted(found)]


def _between(by_level, noise, measure):
    levels = sorted(by_level)
    # A number without an end of its interval is its own end.
    values = [
        [
            part[end] if part[end] is not None else part["mean"]
            for end in Estimate._fields
        ]
        for part in (getattr(by_level[level], measure) for level in levels)
    ]
    halvings, place = (
        -np.log2(np.maximum(1.0 - np.array(one), _LEAST_MATCHED))
        for one in (levels, noise)
    )
    ends = 2.0 ** _line(place, halvings, np.log2(values))
    cell = by_level[levels[0]]
    return Expectation(
        cell.method,
        cell.steps,
        measure,
        Estimate(*ends.round(_DIGITS).tolist()),
        tuple(levels),
        levels[0] - _AROUND <= noise <= levels[-1] + _AROUND,
        min(one.seeds for one in by_level.values()),
    )


def _line(place, places, values):
    """Lines through values [k, m] at ascending places [k], at a place; [m].

    Ends are continued by one at most.
    """
    if len(places) == 1:
        return values[0]
    place = np.clip(place, places[0] - 1.0, places[-1] + 1.0)
    after = int(np.clip(np.searchsorted(places, place), 1, len(places) - 1))
    width = places[after] - places[after - 1]
    share = (place - places[after - 1]) / width
    return (1.0 - share) * values[after - 1] + share * values[after]

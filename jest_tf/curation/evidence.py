"""What selection gained where it was measured, and what that lets expect.

evidence.json has runs of IconText's web-like data, at several levels of noise.
What to expect is interpolated between them, and says nothing of other data.
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
# Matched shares no further from a measured one, in halvings, are as good as
# measured.
_AROUND = 0.25


class Cell(NamedTuple):
    """A measured run of IconText's web-like data, in evidence.json.

    Attributes:
        noise: share of the pool that is noise.
        matched: share of the pool's pairs that match, as `jest-tf advise`
            estimates it by a quick reference.
        method: as in the benchmark's summary.
        steps: of the run.
        seeds: that were run.
        split: "test" or "val".
        score: mean reciprocal rank, {mean, low, high}.
        lead: score less that of uniform training of as many steps.
        over_uniform: score over the best of uniform training at no more FLOPs,
            those of scoring and of references counted.
        over_uniform_given_reference: the same for a reference that is there
            already; neither its training nor its own renewals count.
        over_target: score over uniform training's best end at any length.
    """

    noise: float
    matched: float
    method: str
    steps: int
    seeds: int
    split: str
    score: dict
    lead: dict | None
    over_uniform: dict | None
    over_uniform_given_reference: dict | None
    over_target: dict | None


class Expectation(NamedTuple):
    """What a method gained where it was measured, at a matched share.

    Attributes:
        method: of the cells.
        steps: of the cells.
        measure: a field of `Cell`.
        value: interpolated between the levels of noise.
        levels: of noise of the cells, ascending.
        is_inside: whether the share lies between theirs, or next to one.
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
    cells: Sequence[Cell], method: str, matched: float, measure: str
) -> list[Expectation]:
    """Interpolates a measure of a method at a share of pairs that match.

    For each length of the runs, the logarithm of the ratio is linear in the
    logarithm of the share, between the measured levels and
    for a factor of two beyond them, where `is_inside` is false.

    Args:
        cells: measured ones.
        method: of the cells.
        matched: share of pairs that match, in [0, 1].
        measure: a field of `Cell`, a ratio.

    Returns:
        One for each length that was measured, shortest first.
    """
    found: dict[int, dict[float, Cell]] = {}
    for cell in cells:
        if cell.method == method and getattr(cell, measure) is not None:
            found.setdefault(cell.steps, {})[cell.noise] = cell
    return [_between(found[steps], matched, measure) for steps in sorted(found)]


def _between(by_level, matched, measure):
    levels = sorted(by_level)
    measured = [by_level[level] for level in levels]
    # A number without an end of its interval is its own end.
    values = [
        [
            part[end] if part[end] is not None else part["mean"]
            for end in Estimate._fields
        ]
        for part in (getattr(cell, measure) for cell in measured)
    ]
    halvings, place = (
        -np.log2(np.maximum(one, _LEAST_MATCHED))
        for one in ([cell.matched for cell in measured], matched)
    )
    ends = 2.0 ** _line(place, halvings, np.log2(values))
    cell = measured[0]
    return Expectation(
        cell.method,
        cell.steps,
        measure,
        Estimate(*ends.round(_DIGITS).tolist()),
        tuple(levels),
        bool(halvings[0] - _AROUND <= place <= halvings[-1] + _AROUND),
        min(one.seeds for one in measured),
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

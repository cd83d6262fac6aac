"""When selection pays: gains over noise, curated pairs and compute.

A gain is a score divided by the best score of uniform training with the same
FLOPs or fewer, everything counted: the score ratio of the report. All of it is
read from the content of summary.json.
"""

import re
from typing import NamedTuple

from benchmarks.icontext import web as web_lib

# Methods in the order of tables and pictures, and their labels.
LABELS = {
    "oracle": "no noise (oracle)",
    "bootstrapped": "bootstrapped cascade",
    "renewed": "curated reference, renewed",
    "jest_curated": "JEST, curated reference",
    "mixed_8": "an eighth curated",
}
_CHANGES = "lead", "slope"
# A method that begins on fewer curated pairs: curated250_bootstrapped.
_FEWER = re.compile(r"curated(\d+)_(.*)")


class Line(NamedTuple):
    """A method at one length and one level of noise.

    Attributes:
        noise: share of the pool's pairs.
        method: as in summary.json.
        steps: its length.
        bill: all FLOPs, in uniform steps.
        seeds: how many.
        gain: estimate, {mean, low, high}.
        lead: points above uniform training at equal steps; None of a length
            that uniform training was not run at.
        slope: points that uniform training gains by a doubling from there; None
            of a length at or beyond its best end.
    """

    noise: float
    method: str
    steps: int
    bill: int
    seeds: int
    gain: dict
    lead: float | None
    slope: float | None


class Gains:
    """The measured gains of a summary.

    Args:
        summary: the content of summary.json.
    """

    def __init__(self, summary):
        self._lines = [
            Line(
                row["noise"],
                row["method"],
                row["steps"],
                bill["uniform_steps"]["all"],
                row["seeds"],
                bill["over_uniform"],
                *(row[name] and 100 * row[name]["mean"] for name in _CHANGES),
            )
            for row, bill in zip(summary["rows"], summary["bills"], strict=True)
            if bill["over_uniform"]
        ]
        self._headrooms = {
            (row["noise"], row["steps"]): 100 * row["lead"]["mean"]
            for row in summary["rows"]
            if row["method"] == "oracle" and row["lead"]
        }
        self.levels = sorted({line.noise for line in self._lines})

    def by_noise(self, method):
        """Lines of a method at the longest length that most levels share."""
        lines = [line for line in self._lines if line.method == method]
        steps = shared_length(lines)
        return _sorted([line for line in lines if line.steps == steps], "noise")

    def by_compute(self, method, level):
        """Lines of a method at one level of noise, cheapest first."""
        key = level, method
        return _sorted(
            [line for line in self._lines if (line.noise, line.method) == key],
            "bill",
        )

    def by_curated(self, method, level):
        """`(curated pairs, line)` of a method at one length, fewest first."""
        found = {}
        for line in self._lines:
            fewer = _FEWER.fullmatch(line.method)
            if fewer and (line.noise, fewer[2]) == (level, method):
                found[int(fewer[1])] = line
        lengths = {line.steps for line in found.values()}
        for line in self.by_compute(method, level):
            if line.steps in lengths:
                found[web_lib.NUM_CURATED] = line
        return sorted(found.items())

    def headroom(self, noise, steps, lead):
        """Share of the oracle's lead, in points, at equal steps.

        Returns:
            None where the oracle was not run or does not lead.
        """
        most = self._headrooms.get((noise, steps), 0.0)
        return lead / most if lead is not None and most > 0 else None

    def verdicts(self, method):
        """Levels of noise at which a method "gains", "loses", or is "open".

        Open where the interval of its gain holds one.
        """
        found = {"gains": [], "loses": [], "open": []}
        for line in self.by_noise(method):
            gains, loses = line.gain["low"] > 1, line.gain["high"] < 1
            verdict = "gains" if gains else "loses" if loses else "open"
            found[verdict].append(line.noise)
        return found

    def words(self, method, level):
        """What the picture says of a method, in words, by the panel.

        Args:
            method: as in summary.json.
            level: share of noise of the panels of one level.
        """
        curated = self.by_curated(method, level)
        compute = self.by_compute(method, level)
        slopes = [
            f"{line.lead:.1f} / {line.slope:.1f} at {line.noise:.0%}"
            for line in self.by_noise(method)
            if line.lead is not None and line.slope
        ]
        over_noise = self.by_noise(method)
        single = [line for line in over_noise if line.seeds == 1]
        return {
            "steps": f"{over_noise[0].steps:,}" if over_noise else "",
            "curated_steps": f"{curated[0][1].steps:,}" if curated else "",
            **{
                verdict: series(f"{100 * level:.0f}" for level in levels)
                for verdict, levels in self.verdicts(method).items()
            },
            "single": series(f"{100 * line.noise:.0f}" for line in single),
            "pairs": series(f"{pairs:,}" for pairs, _ in curated[:-1]),
            "of_pairs": series(
                f"{_interval(line)} with {pairs:,}"
                + " (1 seed)" * (line.seeds == 1)
                for pairs, line in curated[:-1]
            ),
            "of_all_pairs": "".join(
                _interval(line) for _, line in curated[-1:]
            ),
            "bills": series(f"{line.bill:,}" for line in compute),
            "of_bills": series(map(_times, compute)),
            "slopes": series(slopes).replace("%", " %"),
        }


def shared_length(lines):
    """The longest of the lengths that most levels of noise share.

    Args:
        lines: with `steps` and `noise`.

    Returns:
        steps; None of no lines.
    """
    levels = {}
    for line in lines:
        levels.setdefault(line.steps, set()).add(line.noise)
    return max(levels, key=lambda n: (len(levels[n]), n), default=None)


def series(items):
    """Words in a row: "a, b and c"."""
    *first, last = [*items] or [""]
    return " and ".join([", ".join(first), last] if first else [last])


def _times(line):
    return f"{line.gain['mean']:.1f}"


def _interval(line):
    return "{mean:.1f} [{low:.1f}, {high:.1f}]".format(**line.gain)


def _sorted(lines, name):
    return sorted(lines, key=lambda line: getattr(line, name))

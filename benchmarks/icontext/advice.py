"""The advice of `jest-tf advise`, measured on the web-like data.

    python -m benchmarks.icontext.advice evidence
    python -m benchmarks.icontext.advice check

`evidence` writes the measured cells of `results/summary.json`, and of
`results/validation.json` where there is no test of a cell, to the package, for
what the advice expects, with the accuracy that `check` finds:
`jest_tf/curation/evidence.json`.

`check` leaves one level of noise out at a time, expects its cells from the
others at the share of noise that `estimates.py` found, and compares with what
was measured: rank correlation, worst miss, and whether "do not select" is right
where nothing selected beats uniform training. `results/advice.json` and
`results/advice.md`.
"""

import argparse
import json
import pathlib
from typing import NamedTuple

import numpy as np

from benchmarks import report
from benchmarks.icontext import estimates, gains, matrix, results, summary
from jest_tf import config as config_lib
from jest_tf.curation import advice, decision_table
from jest_tf.curation import evidence as evidence_lib
from jest_tf.curation.decision_table import ROWS
from jest_tf.curation.estimates import Estimate

_SUMMARIES = {"test": "summary.json", "val": "validation.json"}
# The gain: score over the best of uniform training at no more FLOPs.
_GAIN = "over_uniform"
# A decision depends on no setting of the learner.
_RECIPE = config_lib.TrainConfig(
    steps=1000, data=config_lib.DataConfig(train=("pool",))
)
_HEADER = (
    *("noise", "estimated", "method", "steps", "expected", "measured"),
    *("expected / measured", "expectation given"),
)


def main(arguments=None):
    """Parse the flags and run a part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("part", choices=("evidence", "check"))
    add("--results", type=pathlib.Path, default=results.FOLDER)
    add("--out", type=pathlib.Path, help="the file of the evidence")
    options = parser.parse_args(arguments)
    if options.part == "evidence":
        _write(options.out or evidence_lib.FILE, evidence(options.results))
    else:
        levels = estimates.read(options.results)
        if not levels:
            raise SystemExit(
                f"error: no '{options.results / estimates.FILE}'; run "
                "`python -m benchmarks.icontext.estimates` first"
            )
        found = check(measured(options.results), levels)
        _write(options.results / "advice.json", found.values())
        page = options.results / "advice.md"
        page.write_text(found.render(), "utf-8")


def _write(path, content):
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    path.write_text(text, "utf-8")


def measured(folder):
    """The cells of the summaries in a folder, `evidence.Cell`s.

    Trials of settings are left out. A level whose uniform training was run for
    less than another's has no best end to compare with.
    """
    found = {}
    matched = {
        noise: level["matched"]["mean"]
        for noise, level in estimates.read(folder).items()
    }
    trials = _methods("web_tuning") - _methods("web") - _methods("web_levels")
    for split, name in _SUMMARIES.items():
        path = folder / name
        if not path.exists():
            continue
        values = json.loads(path.read_text("utf-8"))
        ends = {one["noise"]: one["steps"] for one in values["targets"]}
        longest = max(ends.values(), default=0)
        for row, bill in zip(values["rows"], values["bills"], strict=True):
            if row["method"] in trials:
                continue
            has_end = ends.get(row["noise"]) == longest
            cell = evidence_lib.Cell(
                row["noise"],
                matched.get(row["noise"], 1.0 - row["noise"]),
                row["method"],
                row["steps"],
                row["seeds"],
                split,
                row["score"],
                row["lead"],
                bill["over_uniform"],
                bill["over_uniform_given_reference"],
                bill["over_target"] if has_end else None,
            )
            found.setdefault((cell.noise, cell.method, cell.steps), cell)
    return [found[key] for key in sorted(found)]


def _methods(name):
    """Methods with a cell in a matrix."""
    return {summary.method_of(cell.cell) for cell in matrix.cells(name)}


def evidence(folder):
    """The content of evidence.json: the cells, and how well they are expected.

    Args:
        folder: of the summaries and of estimates.json.
    """
    cells = measured(folder)
    return {
        "accuracy": check(cells, estimates.read(folder)).accuracy()._asdict(),
        "cells": [cell._asdict() for cell in cells],
    }


class Miss(NamedTuple):
    """A cell that was left out, and what the others make of it.

    Attributes:
        cell: `evidence.Cell`.
        noise: share of noise that was estimated of its pool.
        expected: gain, from the other levels.
        is_told: whether `jest-tf advise` would say so: the level lies between
            others that were measured, or next to one.
    """

    cell: evidence_lib.Cell
    noise: float
    expected: float
    is_told: bool

    @property
    def measured(self):
        """The gain that was measured."""
        return getattr(self.cell, _GAIN)["mean"]

    @property
    def ratio(self):
        """Expected over measured."""
        return self.expected / self.measured

    @property
    def factor(self):
        """The larger of both over the other."""
        return max(self.ratio, 1.0 / self.ratio)


class Verdict(NamedTuple):
    """What is advised at a level, and whether it was right.

    Attributes:
        noise: the level.
        is_quick: whether the pool came without a reference.
        row: of the decision table.
        selects: whether it advises to select.
        gain: {mean, low, high}, measured there: of the advised method or, if
            none is to select, the best of those that do; None if none was run.
    """

    noise: float
    is_quick: bool
    row: str
    selects: bool
    gain: dict | None

    @property
    def is_right(self):
        """Whether the gain says the same; None of an interval around one."""
        if not self.gain or self.gain["low"] <= 1 <= self.gain["high"]:
            return None
        return self.selects == (self.gain["low"] > 1)


class Check(NamedTuple):
    """Advice on levels that it was not fitted to.

    Attributes:
        misses: a `Miss` for each cell.
        verdicts: a `Verdict` for each level, without and with a reference
            that is there already.
    """

    misses: list[Miss]
    verdicts: list["Verdict"]

    def told(self, is_told=True):
        """The misses that are told, or those that are not."""
        return [miss for miss in self.misses if miss.is_told == is_told]

    def rank_correlation(self, is_told=True):
        """Spearman's, of expected and measured gains; None of too few."""
        pairs = [(miss.expected, miss.measured) for miss in self.told(is_told)]
        if len(pairs) < 3:
            return None
        from scipy import stats

        value = float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
        return value if np.isfinite(value) else None

    def worst(self, is_told=True):
        """The miss with the largest factor; None without any."""
        found = self.told(is_told)
        return max(found, key=lambda miss: miss.factor, default=None)

    def accuracy(self):
        """`evidence.Accuracy`."""
        correlation, worst = self.rank_correlation(), self.worst()
        return evidence_lib.Accuracy(
            len(self.told()),
            None if correlation is None else round(correlation, 3),
            worst and round(worst.factor, 3),
        )

    def _summed(self, is_told):
        correlation, worst = self.rank_correlation(is_told), self.worst(is_told)
        if not worst:
            return "no cell."
        shown = "-" if correlation is None else f"{correlation:.2f}"
        count = len(self.told(is_told))
        steps = sorted({miss.cell.steps for miss in self.told(is_told)})
        lengths = gains.series(f"{one:,}" for one in steps)
        return (
            f"{count} cell{'s' * (count > 1)} of {lengths} steps, rank "
            f"correlation {shown}, worst "
            f"miss a factor of {worst.factor:.2f} (`{worst.cell.method}`, "
            f"{worst.cell.steps:,} steps at {worst.cell.noise:.0%} of noise)."
        )

    def values(self):
        """The content of advice.json."""
        return {
            "cells": [
                {
                    "noise": miss.cell.noise,
                    "estimated": miss.noise,
                    "method": miss.cell.method,
                    "steps": miss.cell.steps,
                    "expected": round(miss.expected, 3),
                    "measured": round(miss.measured, 3),
                    "told": miss.is_told,
                }
                for miss in self.misses
            ],
            "accuracy": self.accuracy()._asdict(),
            "verdicts": [
                one._asdict() | {"is_right": one.is_right}
                for one in self.verdicts
            ],
        }

    def render(self):
        """The content of advice.md."""
        if not self.misses:
            words = (
                "No method has been measured at two levels of noise, so that "
                "none can be left out."
            )
        else:
            words = (
                "Each cell is expected from the other levels of noise alone. "
                "Between measured levels, or within a factor of 1.19 of one "
                f"in the matched share: {self._summed(True)} Farther out, "
                "where `jest-tf advise` gives no expectation: "
                f"{self._summed(False)}"
            )
        rows = [
            (
                f"{miss.cell.noise:.0%}",
                f"{miss.noise:.0%}",
                miss.cell.method,
                f"{miss.cell.steps:,}",
                f"{miss.expected:.2f}",
                f"{miss.measured:.2f}",
                f"{miss.ratio:.2f}",
                "yes" if miss.is_told else "no",
            )
            for miss in self.misses
        ]
        verdicts = [
            (
                f"{one.noise:.0%}",
                "no" if one.is_quick else "yes",
                f"{'select' if one.selects else 'do not select'} (`{one.row}`)",
                "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**one.gain)
                if one.gain
                else "-",
                {None: "undecided", True: "yes", False: "no"}[one.is_right]
                if one.gain
                else "-",
            )
            for one in self.verdicts
        ]
        return (
            "# The advice on levels that it was not fitted to\n\n"
            "A *score ratio* is a score divided by the best score of uniform "
            "training with the same FLOPs or fewer, everything counted.\n\n"
            f"{words}\n\n"
            + (f"{report.table(_HEADER, rows)}\n\n" if rows else "")
            + "Each verdict is likewise made from the other levels. The score "
            "ratio is that of the advised method's longest run; if the advice "
            "is not to select, it is the best among the methods that select. "
            "*Right*: its interval lies on the advised side of 1. The "
            "threshold for `clean` was set on the pool without noise, so that "
            "row is no test. The other rows were chosen after these runs had "
            "been seen, but for those at 15 % of noise, which were made later. "
            "The training of a given reference is not counted; "
            "here it was trained on the curated set.\n\n"
            + report.table(
                ("noise", "has a reference", "advice", "score ratio", "right"),
                verdicts,
            )
            + "\n"
        )


def check(cells, estimates):
    """Leaves each level out.

    Args:
        cells: `evidence.Cell`s.
        estimates: by level of noise, as of `estimates.read`.

    Returns:
        `Check`, of all that the advice tells expectations of: the methods that
        select, mixing, and the oracle.
    """
    # What was only validated may have been chosen by it.
    cells = [cell for cell in cells if cell.split == "test"] or cells
    misses, verdicts = [], []
    for level, found in sorted(estimates.items()):
        matched = found["matched"]["mean"]
        others = [cell for cell in cells if cell.noise != level]
        here = [
            cell
            for cell in cells
            if cell.noise == level and getattr(cell, _GAIN) is not None
        ]
        for cell in here:
            if cell.method == "uniform" or cell.method == "curated":
                continue
            (*same,) = (
                one
                for one in evidence_lib.expect(
                    others, cell.method, matched, _GAIN
                )
                if one.steps == cell.steps
            )
            misses += [
                Miss(cell, 1.0 - matched, one.value.mean, one.is_inside)
                for one in same
            ]
        verdicts += [
            _verdict(level, found, is_quick, others, cells)
            for is_quick in (True, False)
        ]
    return Check(misses, verdicts)


def _verdict(level, found, is_quick, others, cells):
    facts = decision_table.Facts(
        Estimate(**found["matched"]),
        {int(factor): one for factor, one in found["precision"].items()},
        is_quick=is_quick,
    )
    row = advice.advise(facts, _RECIPE, others).row
    wanted = [one for one in ROWS if one.selects and one.applies(facts)]
    measured = {
        cell.method: getattr(cell, one.gain)
        for one in ([row] if row.selects else wanted)
        for cell in cells
        if (cell.noise, cell.method) == (level, one.method)
        and getattr(cell, one.gain) is not None
    }
    best = max(measured.values(), key=lambda gain: gain["mean"], default=None)
    return Verdict(level, is_quick, row.name, row.selects, best)


if __name__ == "__main__":
    main()

"""The advice of `jest-tf advise`, measured on the web-like data.

    python -m benchmarks.icontext.advice estimate --data icontext-work/web
    python -m benchmarks.icontext.advice evidence
    python -m benchmarks.icontext.advice check

`estimate` embeds a sample of every pool by one quick reference and compares the
estimates with what the records' labels say: `results/estimates.json`, and the
block of docs/advise.md with `--page`.

`evidence` writes the measured cells of `results/summary.json`, and of
`results/validation.json` where there is no test of a cell, to the package, for
what the advice expects, with the accuracy that `check` finds:
`jest_tf/curation/evidence.json`.

`check` leaves one level of noise out at a time, expects its cells from the
others at the share of noise that `estimate` found, and compares with what was
measured: rank correlation, worst miss, and whether "do not select" is right
where nothing selected beats uniform training. `results/advice.json` and
`results/advice.md`.
"""

import argparse
import dataclasses
import json
import pathlib
import re
from typing import NamedTuple

import numpy as np

from benchmarks import report
from benchmarks.icontext import results
from jest_tf import config as config_lib
from jest_tf.curation import advice
from jest_tf.curation import evidence as evidence_lib
from jest_tf.curation.advice import ROWS
from jest_tf.curation.estimates import Estimate

ESTIMATES_FILE = "estimates.json"
_SUMMARIES = {"test": "summary.json", "val": "validation.json"}
_LEVELS = (0.0, 0.3, 0.5, 0.7, 0.9)
# Names of noise whose pairs match nevertheless.
_MATCHED = ("", "near-duplicate")
_FACTORS = (2, 3, 5, 10)
_SHOWN_FACTORS = (3, 5)
_SELECTING = tuple(row.method for row in ROWS if row.selects)
# The gain: score over the best of uniform training at no more FLOPs.
_GAIN = "over_uniform"
# A decision depends on no setting of the learner.
_RECIPE = config_lib.TrainConfig(
    steps=1000, data=config_lib.DataConfig(train=("pool",))
)
_ESTIMATE_COMMAND = (
    "python -m benchmarks.icontext.advice estimate --page docs/advise.md"
)
_HEADER = (
    *("noise", "estimated", "method", "steps", "expected", "measured"),
    *("expected / measured", "between levels"),
)


def main(arguments=None):
    """Parse the flags and run a part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("part", choices=("estimate", "evidence", "check"))
    add("--results", type=pathlib.Path, default=results.FOLDER)
    add(
        "--data",
        type=pathlib.Path,
        default="icontext-work/web",
        help="the web-like data, for `estimate`",
    )
    add(
        "--out",
        type=pathlib.Path,
        help="folder of the reference, or the file of the evidence",
    )
    add(
        "--page",
        type=pathlib.Path,
        help="Markdown file whose block has the estimates, written anew",
    )
    options = parser.parse_args(arguments)
    if options.part == "estimate":
        out = options.out or options.data / "advice"
        found = estimate(options.data, out)
        _write(options.results / ESTIMATES_FILE, found)
        if options.page:
            report.write_block(
                options.page, "advise", block(found), _ESTIMATE_COMMAND
            )
    elif options.part == "evidence":
        _write(options.out or evidence_lib.FILE, evidence(options.results))
    else:
        levels = estimated(options.results)
        if not levels:
            raise SystemExit(
                f"error: no '{options.results / ESTIMATES_FILE}'; run "
                "`estimate` on the web-like data first"
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

    A level whose uniform training was run for less than another's has no best
    end to compare with.
    """
    found = {}
    matched = {
        noise: level["labelled_matched"]
        for noise, level in estimated(folder).items()
    }
    for split, name in _SUMMARIES.items():
        path = folder / name
        if not path.exists():
            continue
        values = json.loads(path.read_text("utf-8"))
        ends = {one["noise"]: one["steps"] for one in values["targets"]}
        longest = max(ends.values(), default=0)
        for row, bill in zip(values["rows"], values["bills"], strict=True):
            has_end = ends.get(row["noise"]) == longest
            cell = evidence_lib.Cell(
                row["noise"],
                matched.get(row["noise"], 1.0 - row["noise"]),
                _method(row["method"], row["noise"]),
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


def _method(name, noise):
    """A method by one name at all levels."""
    kept = re.fullmatch(r"filtered_(\d+)", name)
    if kept and int(kept[1]) == round(100 * (1.0 - noise)):
        return "filtered"
    return name


def evidence(folder):
    """The content of evidence.json: the cells, and how well they are expected.

    Args:
        folder: of the summaries and of estimates.json.
    """
    cells = measured(folder)
    return {
        "accuracy": check(cells, estimated(folder)).accuracy()._asdict(),
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


class Check(NamedTuple):
    """Advice on levels that it was not fitted to.

    Attributes:
        misses: a `Miss` for each cell.
        verdicts: by level, whether it was advised to select, and the best
            measured gain of selecting there, {mean, low, high}; None where
            nothing was run.
    """

    misses: list[Miss]
    verdicts: dict[float, tuple[bool, dict | None]]

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

    def wrong(self):
        """Levels whose verdict the interval of the best gain contradicts."""
        return [
            level
            for level, (selects, gain) in self.verdicts.items()
            if gain and (gain["high"] < 1 if selects else gain["low"] > 1)
        ]

    def _right(self, level):
        gain = self.verdicts[level][1]
        if not gain:
            return "-"
        if gain["low"] <= 1 <= gain["high"]:
            return "undecided"
        return "no" if level in self.wrong() else "yes"

    def _summed(self, is_told):
        correlation, worst = self.rank_correlation(is_told), self.worst(is_told)
        if not worst:
            return "no cell."
        shown = "-" if correlation is None else f"{correlation:.2f}"
        count = len(self.told(is_told))
        return (
            f"{count} cell{'s' * (count > 1)}, rank correlation {shown}, worst "
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
                {"noise": level, "selects": selects, "best_gain": gain}
                for level, (selects, gain) in self.verdicts.items()
            ],
            "wrong": self.wrong(),
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
                f"Between measured levels: {self._summed(True)} Beyond them, "
                "where `jest-tf advise` tells no expectation: "
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
                f"{level:.0%}",
                "select" if selects else "do not select",
                "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**gain)
                if gain
                else "-",
                self._right(level),
            )
            for level, (selects, gain) in self.verdicts.items()
        ]
        return (
            "# The advice on levels that it was not fitted to\n\n"
            "A gain is a score over the best of uniform training at no more "
            f"FLOPs, everything counted.\n\n{words}\n\n"
            + (f"{report.table(_HEADER, rows)}\n\n" if rows else "")
            + report.table(
                ("noise", "advice", "best gain by selecting", "right"),
                verdicts,
            )
            + "\n"
        )


def check(cells, estimates):
    """Leaves each level out.

    Args:
        cells: `evidence.Cell`s.
        estimates: by level of noise, as of `estimated`.

    Returns:
        `Check`, of all that the advice tells expectations of: the methods that
        select, mixing, and the oracle.
    """
    misses, verdicts = [], {}
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
        gains = [
            getattr(cell, _GAIN) for cell in here if cell.method in _SELECTING
        ]
        facts = advice.Facts(
            Estimate(**found["matched"]),
            {int(factor): one for factor, one in found["precision"].items()},
        )
        row = advice.advise(facts, _RECIPE, others).row
        best = max(gains, key=lambda gain: gain["mean"], default=None)
        verdicts[level] = row.selects, best
    return Check(misses, verdicts)


def estimated(folder):
    """The content of estimates.json in a folder, by level; {} without it."""
    path = folder / ESTIMATES_FILE
    if not path.exists():
        return {}
    values = json.loads(path.read_text("utf-8"))
    return {level["noise"]: level for level in values["levels"]}


def block(content):
    """The estimates beside the labels, in Markdown.

    Args:
        content: of estimates.json.
    """
    rows = [
        (
            f"{level['noise']:.0%}",
            f"{level['labelled_matched']:.2f}",
            "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**level["matched"]),
            *(
                f"{level['precision'][factor]:.2f} / "
                f"{level['labelled_precision'][factor]:.2f}"
                for factor in map(str, _SHOWN_FACTORS)
            ),
            f"{level['apart']:.2f}",
        )
        for level in content["levels"]
    ]
    header = (
        *("noise", "matched, by labels", "matched, estimated"),
        *(
            f"matched of the best 1 / {factor}, expected / by labels"
            for factor in _SHOWN_FACTORS
        ),
        "kind",
    )
    return (
        "By a quick reference, on the pools of IconText's web-like data, "
        f"{content['sample']:,} pairs of each; near-duplicates of clean pairs "
        f"match:\n\n{report.table(header, rows)}"
    )


def estimate(data, folder):
    """Estimates every level of the web-like data, and what its labels say.

    Args:
        data: folder of the data.
        folder: of the quick reference.

    Returns:
        The content of estimates.json.
    """
    # Imported here: the other parts read results alone.
    from configs import icontext_web
    from jest_tf import runs
    from jest_tf.curation import survey
    from jest_tf.data import stores

    recipe = icontext_web.config()
    recipe = dataclasses.replace(
        recipe,
        data=dataclasses.replace(
            recipe.data, vocabulary=str(data / "vocab.txt")
        ),
    )

    def open_store(pattern):
        patterns = (str(data / pattern),)
        return stores.open_stores(
            dataclasses.replace(recipe.data, train=patterns)
        )

    curated = open_store("curated-*.tfrecord")
    tests = open_store("val_sets-*.tfrecord")
    name = survey.quick_reference(
        recipe, curated, (str(data / "curated-*.tfrecord"),), str(folder)
    )
    model = runs.load_model(name)
    levels = []
    for level in _LEVELS:
        pool = open_store(f"pool{round(100 * level):02}/pool-*.tfrecord")
        found = survey.survey(
            survey.Data(pool, curated, tests),
            model,
            survey.Settings(),
            unseen=survey.held_out(curated),
        )
        labels = np.array(
            [
                record.metadata.get("noise", b"").decode()
                for record in pool.read(found.rows)
            ]
        )
        matches = np.isin(labels, _MATCHED)
        order = np.argsort(-found.similarity.matched, kind="stable")
        levels.append(
            {
                "noise": level,
                "matched": found.facts.matched._asdict(),
                "labelled_matched": round(float(matches.mean()), 4),
                "precision": {
                    str(factor): round(value, 4)
                    for factor, value in found.facts.precision.items()
                },
                "labelled_precision": {
                    str(factor): round(
                        float(matches[order[: len(order) // factor]].mean()), 4
                    )
                    for factor in _FACTORS
                },
                "posterior": {
                    kind or "none": round(
                        float(found.posterior[labels == kind].mean()), 4
                    )
                    for kind in np.unique(labels).tolist()
                },
                "near_duplicates": round(found.duplicates.share, 4),
                "copies": round(found.duplicates.copies, 3),
                "breadth": {
                    kind: round(value, 2)
                    for kind, value in found.breadth.items()
                },
                "apart": found.facts.apart,
                "covered": found.facts.covered,
                "power": round(found.facts.power, 4),
            }
        )
        print(level, levels[-1], flush=True)
    return {"sample": survey.Settings().sample, "levels": levels}


if __name__ == "__main__":
    main()

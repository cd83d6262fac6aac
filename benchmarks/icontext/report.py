"""The benchmark's report, from the result tables alone.

    python -m benchmarks.icontext.report --pages README.md docs/recipes.md
    python -m benchmarks.icontext.report --matrix quick \
        --results icontext-work/results

Fills the numbers of templates/ in: report.md beside the results, with its
pictures, and the block of each page, from the template of the page's name. No
run and no data are needed.
"""

import argparse
import os
import pathlib

import pandas as pd

from benchmarks import report as benchmark_report
from benchmarks.icontext import (
    advice,
    bootstrap,
    claims,
    figures,
    matrix,
    results,
    summary,
    targets,
)
from benchmarks.icontext import comparison as comparison_lib

_COMMAND = (
    "python -m benchmarks.icontext.report --pages README.md docs/recipes.md"
)
_UNIFORM = {"standard": "uniform", "quick": "quick_uniform"}
_CURVES = {
    "uniform_10000": ("uniform", 5, (10, -4), "left"),
    "best_3000_half": (
        *("stage 0, distilled, 3,000 steps", -1),
        *((-6, 10), "right"),
    ),
    "best_by_wide": ("stage 0, distilled,\n380 steps", -1, (-14, 22), "right"),
    "jest_5000": ("JEST", -1, (0, 10), "left"),
    "mixed_3000": ("curated and\npool, uniform", 0, (-8, -20), "center"),
}
# The web-like data, with as much noise as a crawl has.
_LEVEL = 0.7
# Method: its label, and where that stands.
_WEB = {
    "oracle": ("no noise (oracle)", (-1, (0, 12), "right")),
    "bootstrapped": ("bootstrapped cascade", (-1, (8, 0), "left")),
    "mixed_8": ("an eighth curated", (0, (26, 22), "right")),
    "uniform": ("uniform", (-1, (0, -14), "center")),
}
_RATIOS = {
    ("learnability", -8): "jest_400_f50 jest_400 jest_400_f90 jest_400_f95",
    ("easy-reference", 8): "easy_reference_f50 easy_reference_f80 "
    "easy_reference_f90 easy_reference_f95",
    ("hard-learner", 9): "hard_learner_f50 hard_learner_f80 "
    "hard_learner_f90 hard_learner_f95",
}


def main(arguments=None):
    """Parse the flags and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--results", type=pathlib.Path, default=results.FOLDER)
    add("--out", type=pathlib.Path, help="folder to write to; the results'")
    add("--matrix", default="standard", choices=_UNIFORM)
    add(
        "--pages",
        nargs="*",
        default=(),
        type=pathlib.Path,
        metavar="PAGE",
        help="Markdown files whose block is replaced",
    )
    options = parser.parse_args(arguments)
    tables = results.load(options.results)
    if tables is None:
        raise SystemExit(f"error: no results in '{options.results}'")
    comparison = comparison_lib.Comparison(tables, _UNIFORM[options.matrix])
    if comparison.uniform not in comparison:
        raise SystemExit(
            f"error: '{options.results}' lacks the cell "
            f"{comparison.uniform!r}, whose final score is the target"
        )
    out = options.out or options.results
    out.mkdir(parents=True, exist_ok=True)
    words = Words(comparison, tables, options.results)
    is_kept = options.results.samefile(results.FOLDER)
    name, file = f"{options.matrix}.md", f"{options.matrix}_report.md"
    if options.matrix == "standard":
        draw(comparison, summary.load(options.results), out)
        name = file = "report.md"
    (out / file).write_text(words.render(name, is_kept=is_kept), "utf-8")
    for page in options.pages:
        folder = os.path.relpath(out, page.resolve().parent)
        block = words.render(page.name, results=folder)
        benchmark_report.write_block(page, "icontext", block, _COMMAND)


def draw(comparison, web, out):
    """Draw the pictures whose cells have been run.

    Args:
        comparison: `comparison.Comparison`.
        web: the content of summary.json, or None.
        out: folder to write to.
    """
    ladders = {
        method: [
            (bill["uniform_steps"]["all"], 100 * row["score"]["mean"])
            for row, bill in _web_lines(web, method)
        ]
        for method in _WEB
    }
    if all(map(len, ladders.values())):
        figures.ladders(
            {
                label: tuple(zip(*ladders[method], strict=True))
                for method, (label, _) in _WEB.items()
            },
            dict(_WEB.values()),
            "Noise of 70 %: a run that renews its own reference",
            out / "web.png",
        )
    if all(cell in comparison for cell in _CURVES):
        figures.frontier(
            comparison,
            _CURVES,
            "Selection with distillation is early;\n"
            "training on the curated set ends as high",
            out / "frontier.png",
        )
    lines = {label: cells.split() for label, cells in _RATIOS.items()}
    if all(cell in comparison for line in lines.values() for cell in line):
        figures.filter_ratios(
            comparison,
            (2, 5, 10, 20),
            lines,
            "uniform_400",
            "Larger super-batches teach more per step (400 steps)",
            out / "filter_ratios.png",
        )


def _web_lines(web, method):
    """`(row, bill)` of each length of a method, shortest first."""
    pairs = zip(web["rows"], web["bills"], strict=True) if web else ()
    return sorted(
        (
            pair
            for pair in pairs
            if (pair[0]["noise"], pair[0]["method"]) == (_LEVEL, method)
        ),
        key=lambda pair: pair[0]["steps"],
    )


class Words:
    """Results in words, by the names that templates use.

    Args:
        comparison: `comparison.Comparison`.
        tables: `results.Tables` that it was made of.
        folder: of the results.
    """

    def __init__(self, comparison, tables, folder):
        self._comparison = comparison
        self._folder = folder
        self._views = folder / "views.csv"
        self._web = summary.load(folder)
        self._runs = tables.runs
        self._costs = claims.COSTS | {
            "flops_with_reference": targets.flops_with_reference(comparison)
        }

    def render(self, name, **context):
        """A template with its numbers filled in."""
        words = {
            word: getattr(self, word)
            for word in dir(self)
            if not word.startswith("_")
        }
        words |= {"find": matrix.find, "cells": matrix.cells}
        folder = pathlib.Path(__file__).with_name("templates")
        return benchmark_report.render(folder, name, **words, **context)

    def score(self, cell, *splits):
        """Final score of a cell, with its interval."""
        found = self._comparison.score(cell, splits or comparison_lib.TEST)
        return claims.interval(found) if found else claims.NOT_RUN

    def gain(self, first, second, *splits):
        """Score of one cell less another's, with its interval."""
        found = self._comparison.difference(
            first, second, splits or comparison_lib.TEST
        )
        return claims.points(found) if found else claims.NOT_RUN

    def times(self, cells, cost, *splits, base=None, all_steps=False):
        """How many times less a method spends than uniform training."""
        try:
            found = self._comparison.to_target(
                tuple(cells.split()),
                self._costs[cost],
                splits or comparison_lib.TEST,
                base,
            )
        except ValueError:  # the reference that is charged was not run
            found = None
        if found is None:
            return claims.NOT_RUN
        if all_steps:
            return f"{found.all_steps:.1f}x" if found.value else ""
        few = found.value and found.seeds < comparison_lib.LEAST_SEEDS
        return claims.times(found) + ", 1 seed" * bool(few)

    def seeds(self, first, second=None):
        """How many seeds a score or a difference is of."""
        return self._comparison.shared(first, second or first)

    def steps(self, cell):
        """Steps of a run of a cell."""
        runs = self._comparison.of(cell)
        return f"{runs[0].row.steps:,}" if runs else claims.NOT_RUN

    def effort(self, cell):
        """Forward passes of a step over those of a uniform step."""
        runs = self._comparison.of(cell)
        if not runs:
            return claims.NOT_RUN
        (row, *_) = [run.row for run in runs]
        passes = targets.passes(runs[0], row.steps)
        return f"{passes / (3 * row.examples_trained):.2f}"

    def percent(self, cell, column):
        """Mean of a column of runs.csv over a cell's seeds, times 100."""
        values = self._runs.loc[self._runs["cell"] == cell, column].dropna()
        return f"{100 * values.mean():.1f}" if len(values) else claims.NOT_RUN

    def rows(self):
        """The decision table of `jest-tf advise`."""
        return advice.ROWS

    def web(self, method, level=None):
        """Gains of a method on the web-like data, of its longest runs."""
        longest = {}
        for cell in advice.measured(self._folder):
            if cell.method == method and level in (None, cell.noise):
                longest[cell.noise] = cell
        return "; ".join(map(_gains, longest.values())) or claims.NOT_RUN

    def web_row(self, method):
        """Columns of a method's longest run on the web-like data, in words."""
        lines = _web_lines(self._web, method)
        if not lines:
            return None
        row, _ = lines[-1]
        share = row["oracle_share"]
        return {
            "steps": f"{row['steps']:,}",
            "seeds": row["seeds"],
            "score": _interval(row["score"], 100),
            "examples": _interval(row["examples_ratio"]) or "missed",
            "flops": _interval(row["flops_ratio"]["all"]) or "missed",
            "oracle": f"{share['mean']:.2f}" if share else "",
        }

    def web_split(self):
        """The split of the web-like results, "test" or "val"."""
        return self._web["split"] if self._web else None

    def estimated(self, level):
        """The matched share that is estimated at a level of noise."""
        found = advice.estimated(self._folder).get(level)
        if not found:
            return claims.NOT_RUN
        return "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**found["matched"])

    def claims(self, source):
        """`(line of claims.csv, claims.Finding)` of each claim of a source."""
        return [
            (claim, claims.judge(claim, self._comparison))
            for claim in claims.load()
            if claim["source"] == source
        ]

    def chance(self):
        """Score of a random ranking."""
        (run, *_) = self._comparison.of(self._comparison.uniform)
        concepts = [run.concepts[split] for split in comparison_lib.TEST]
        return f"{100 * bootstrap.chance(concepts):.1f}"

    def missing(self):
        """Names of runs of the main matrices that have no results."""
        main = ("standard", "diagnosis", "beyond")
        wanted = [
            f"{cell.cell}-{seed}"
            for cell in matrix.load().values()
            for seed in cell.seeds
            if cell.matrices[0] in main
        ]
        there = {f"{row.cell}-{row.seed}" for row in self._runs.itertuples()}
        return [name for name in wanted if name not in there]

    def views(self):
        """Rows of views.csv, if the results have it."""
        if not self._views.exists():
            return []
        return pd.read_csv(self._views).to_dict("records")

    def provenance(self):
        """Processors and versions of all runs."""
        machines, versions = (
            "; ".join(sorted(self._runs[column].unique()))
            for column in ("machine", "versions")
        )
        return f"Machines: {machines}. Versions: {versions}."


def _interval(found, factor=1):
    """An estimate of summary.json in words, empty of none."""
    if not found:
        return ""
    mean, low, high = (
        "?" if found[end] is None else f"{factor * found[end]:.1f}"
        for end in ("mean", "low", "high")
    )
    unit = "x" if factor == 1 else ""
    return f"{mean}{unit} [{low}, {high}]"


def _gains(cell):
    """An `evidence.Cell` in words."""
    parts = [
        f"{part['mean']:.1f} [{part['low']:.1f}, {part['high']:.1f}] times {of}"
        for part, of in (
            (cell.over_uniform, "uniform training's score at equal FLOPs"),
            (cell.over_target, "its best end"),
        )
        if part and None not in part.values()
    ]
    seeds = f"{cell.seeds} seed{'s' * (cell.seeds > 1)}"
    split = ", validation" * (cell.split == "val")
    return (
        f"at {cell.noise:.0%} of noise {', '.join(parts)} "
        f"({cell.steps:,} steps, {seeds}{split})"
    )


if __name__ == "__main__":
    main()

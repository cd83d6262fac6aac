"""The benchmark's report, from the result tables alone.

    python -m benchmarks.icontext.report \
        --pages README.md docs/recipes.md docs/bootstrap.md
    python -m benchmarks.icontext.report --matrix quick \
        --results icontext-work/results

Fills the numbers of templates/ in: report.md beside the results, with its
pictures, and the block of each page, from the template of the page's name. No
run and no data are needed. The web-like data's numbers are those of the
folder's summary.json, see `summary.py`; without it, report.md leaves them out.
"""

import argparse
import functools
import os
import pathlib

import pandas as pd

from benchmarks import report as benchmark_report
from benchmarks.icontext import (
    bootstrap,
    claims,
    figures,
    gains,
    matrix,
    results,
    summary,
    targets,
    web_words,
)
from benchmarks.icontext import comparison as comparison_lib

_COMMAND = (
    "python -m benchmarks.icontext.report --pages README.md docs/recipes.md "
    "docs/bootstrap.md"
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
# Method: its label, and where that stands.
_WEB = {
    "oracle": ("no noise (oracle)", (-1, (0, 12), "right")),
    "bootstrapped": ("bootstrapped cascade", (-1, (8, 0), "left")),
    "mixed_8": ("an eighth curated", (-1, (8, 0), "left")),
    "uniform": ("uniform", (-1, (0, -14), "center")),
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


def _other_leads(comparison):
    """JEST on emoji art: its lead after 5,000 steps over what a doubling gains.

    Both are points, `(label, slope, lead)` of `figures.gains`.
    """
    lead = comparison.difference("jest_5000", "uniform")
    slope = comparison.difference("uniform_10000", "uniform")
    if not lead or not slope:
        return []
    return [("JEST on emoji art", 100 * slope.value, 100 * lead.value)]


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
            for row, bill, *_ in web_words.lines_of(web, method)
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
            "Score against compute at 70 % noise",
            out / "web.png",
        )
    found = web and gains.Gains(web)
    if found and len(found.levels) > 1:
        figures.gains(
            found, claims.LEVEL, out / "map.png", _other_leads(comparison)
        )
    if all(cell in comparison for cell in _CURVES):
        figures.frontier(
            comparison,
            _CURVES,
            "Selection with distillation is early;\n"
            "training on the curated set ends as high",
            out / "frontier.png",
        )


class Words(web_words.WebWords):
    """Results in words, by the names that templates use.

    Args:
        comparison: `comparison.Comparison`.
        tables: `results.Tables` that it was made of.
        folder: of the results.
    """

    def __init__(self, comparison, tables, folder):
        self._comparison = comparison
        self._views = folder / "views.csv"
        self._evidence = claims.evidence(comparison, folder)
        super().__init__(self._evidence.summary, folder)
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

    def times(self, cells, cost):
        """How many times less a method spends than uniform training."""
        try:
            found = self._comparison.to_target(
                tuple(cells.split()), self._costs[cost]
            )
        except ValueError:  # the reference that is charged was not run
            found = None
        if found is None:
            return claims.NOT_RUN
        few = found.value and found.seeds < comparison_lib.LEAST_SEEDS
        return claims.times(found) + f", {claims.seeds(found.seeds)}" * bool(
            few
        )

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

    def claims(self):
        """The paper's claims and what became of them.

        Returns:
            dicts: claim, paper, the results on emoji art and on the web-like
            data in words, and a note.
        """
        return [
            {
                "claim": lines[0]["claim"],
                "paper": lines[0]["paper"],
                "emoji": _findings(judged, "emoji"),
                "web": _findings(judged, "web"),
                "note": " ".join(
                    line["note"]
                    for line, found in judged
                    if line["note"] and line["explains"] == found.verdict
                ),
            }
            for lines, judged in self._judged()
        ]

    def verdicts(self):
        """How many tests of a difference or a ratio have a verdict."""
        found = [
            one.verdict
            for _, lines in self._judged()
            for line, one in lines
            if line["test"] != "no_worse"
        ]
        return sum(one not in ("", claims.NOT_RUN) for one in found)

    @functools.cache  # noqa: B019 - lives as long as the report
    def _judged(self):
        return [
            (
                lines,
                [(line, claims.judge(line, self._evidence)) for line in lines],
            )
            for lines in claims.load().values()
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

    def kept(self, cell, view):
        """Share of a choice's gain that scoring on a view keeps."""
        if not self._views.exists():
            return claims.NOT_RUN
        rows = pd.read_csv(self._views).query("cell == @cell & view == @view")
        return f"{rows['gain_kept'].mean():.2f}"

    def provenance(self):
        """Processors and versions of all runs."""
        machines, versions = (
            "; ".join(sorted(self._runs[column].unique()))
            for column in ("machine", "versions")
        )
        return f"Machines: {machines}. Versions: {versions}."


def _findings(judged, data):
    """The findings of a claim on one of the data, in words."""
    found = [
        (line["part"], one) for line, one in judged if line["data"] == data
    ]
    if not found:
        return "-"
    done = [line for line in found if line[1].verdict != claims.NOT_RUN]
    if not done:
        return claims.NOT_RUN
    words = [f"{part + ': ' * bool(part)}{_finding(one)}" for part, one in done]
    left = [part for part, one in found if one.verdict == claims.NOT_RUN]
    if left:
        words.append(f"{', '.join(left)}: {claims.NOT_RUN}")
    return "; ".join(words)


def _finding(found):
    verdict = f"**{found.verdict}**" if found.verdict else ""
    return f"{found.measured} {verdict or f'({claims.seeds(found.seeds)})'}"


if __name__ == "__main__":
    main()

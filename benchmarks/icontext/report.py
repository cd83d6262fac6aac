"""The benchmark's report, from the result tables alone.

    python -m benchmarks.icontext.report --pages README.md docs/recipes.md
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
    advice,
    bootstrap,
    claims,
    figures,
    gains,
    matrix,
    results,
    summary,
    targets,
)
from benchmarks.icontext import comparison as comparison_lib
from benchmarks.icontext import web as web_lib

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
# Method: its label, and where that stands.
_WEB = {
    "oracle": ("no noise (oracle)", (-1, (0, 12), "right")),
    "bootstrapped": ("bootstrapped cascade", (-1, (8, 0), "left")),
    "mixed_8": ("an eighth curated", (0, (26, 22), "right")),
    "uniform": ("uniform", (-1, (0, -14), "center")),
}
# Rows of the web-like table: method and its training in words.
_ROWS = {
    "uniform": "uniform, to its best end",
    "mixture": "{} of every batch curated, {}",
    "cascade_curated": "cascade by a reference of the curated set",
    "bootstrapped": "**cascade that renews its own reference**",
    "oracle": "uniform without the noise, the oracle",
}
# Of summary.json.
_LISTS = "rows", "bills", "held_out", "first_crossings", "other_ends"
# How much of a batch each mixture takes from the curated set.
_SHARES = {
    "mixed_16": "a sixteenth",
    "mixed_8": "an eighth",
    "mixed_4": "a quarter",
    "mixed_2": "a half",
}
_METHOD = "bootstrapped"  # of which the goals are asked
# What is asked: the least value, its digits, what it is of, and its name.
_GOALS = (
    (13.1, 1, "x fewer examples than uniform training", "examples"),
    (9.9, 1, "x fewer FLOPs than uniform training", "flops"),
    (5.0, 1, "x fewer examples than the best mixture", "mixture"),
    (
        1.5,
        2,
        " times uniform training's best score, at no higher cost",
        "over_target",
    ),
    (0.9, 2, " of the oracle's score", "oracle"),
)


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
            for row, bill, *_ in _web_lines(web, method)
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
    found = web and gains.Gains(web)
    if found and len(found.levels) > 1:
        figures.gains(found, claims.LEVEL, out / "map.png")
    if all(cell in comparison for cell in _CURVES):
        figures.frontier(
            comparison,
            _CURVES,
            "Selection with distillation is early;\n"
            "training on the curated set ends as high",
            out / "frontier.png",
        )


def _web_lines(web, method, level=claims.LEVEL):
    """A method's entries in `_LISTS` for each length, shortest first."""
    lists = [web[name] for name in _LISTS] if web else []
    return sorted(
        (
            line
            for line in zip(*lists, strict=True)
            if (line[0]["noise"], line[0]["method"]) == (level, method)
        ),
        key=lambda line: line[0]["steps"],
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
        self._evidence = claims.evidence(comparison, folder)
        self._web = self._evidence.summary
        self._validation = summary.load(folder, ("val",))
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
        return claims.times(found) + f", {_seeds(found.seeds)}" * bool(few)

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
            is_wanted = cell.method == method and level in (None, cell.noise)
            if is_wanted and (cell.over_uniform or cell.over_target):
                longest[cell.noise] = cell
        return "; ".join(map(_gains, longest.values())) or claims.NOT_RUN

    def web_rows(self):
        """`web_row` of each method of the table that was run."""
        target = self.web_target() or {"steps": None, "mixture": None}
        places = {
            summary.UNIFORM: (summary.UNIFORM, target["steps"]),
            "mixture": (target["mixture"], None),
        }
        run = self._methods_run("mixed_")
        words = (
            _SHARES.get(target["mixture"]),
            f"the best of {len(run)} mixtures"
            if len(run) > 1
            else "the only mixture run",
        )
        rows = {
            name: self.web_row(*places.get(name, (name, None)))
            for name in _ROWS
        }
        cascade, method = rows["cascade_curated"], rows[_METHOD]
        if cascade and method and cascade["steps"] != method["steps"]:
            del rows["cascade_curated"]  # not run for as long
        return [
            row | {"what": _ROWS[name].format(*words)}
            for name, row in rows.items()
            if row
        ]

    def longer_uniform(self):
        """`web_row` of the uniform run beyond the target's; None without it."""
        target, row = self.web_target(), self.web_row(summary.UNIFORM)
        is_longer = row and row["steps"] != f"{target['steps']:,}"
        return row if is_longer else None

    def by_end(self):
        """The method's ratios to the ends of all uniform runs, in words.

        Returns:
            `(steps, ratio of examples, ratio of FLOPs)` of each end that is
            neither the target nor below the method's shortest run.
        """
        lines = _web_lines(self._web, _METHOD)
        if not lines:
            return []
        target = self.web_target()["steps"]
        return [
            (
                f"{end['steps']:,}"
                + f" ({_seeds(end['seeds'])})"
                * (end["seeds"] < comparison_lib.LEAST_SEEDS),
                claims.told(end["examples_ratio"], "x"),
                claims.told(end["all"], "x"),
            )
            for end in lines[-1][-1]["ends"]
            if end["examples_ratio"]
            and not end["is_bound"]
            and end["steps"] != target
        ]

    def on_validation(self):
        """The method's ratios on validation, `(examples, FLOPs)` in words."""
        if self.web_split() != "test":
            return None
        lines = _web_lines(self._validation, _METHOD)
        if not lines:
            return None
        row = lines[-1][0]
        found = row["examples_ratio"], row["flops_ratio"]["all"]
        return [claims.told(one, "x") or "missed" for one in found]

    def web_row(self, method, steps=None, level=claims.LEVEL):
        """What the web-like data say of a method, in words.

        Args:
            method: as in summary.json.
            steps: None is the longest length.
            level: share of noise.

        Returns:
            dict; None if it was not run.
        """
        lines = _web_lines(self._web, method, level)
        if steps:
            lines = [line for line in lines if line[0]["steps"] == steps]
        if not lines:
            return None
        row, bill, held_out, crossing, other = lines[-1]
        share, lead, slope = row["oracle_share"], row["lead"], row["slope"]
        oracle = [
            line[0]["lead"]["mean"]
            for line in _web_lines(self._web, summary.ORACLE, level)
            if line[0]["steps"] == row["steps"] and line[0]["lead"]
        ]
        told, ratios = claims.told, row["mixture_ratio"]
        times = claims.bound if other["is_bound"] else claims.told
        doublings = 0.0
        if lead and slope and slope["mean"] > 0:
            doublings = lead["mean"] / slope["mean"]
        return {
            "steps": f"{row['steps']:,}",
            "seeds": row["seeds"],
            "score": told(row["score"], factor=100),
            "examples": times(row["examples_ratio"], "x") or "missed",
            "flops": times(row["flops_ratio"]["all"], "x") or "missed",
            "mixture": told(ratios["examples"], "x") or "missed",
            "mixture_flops": told(ratios["all"], "x") or "missed",
            "crossing": told(crossing["examples_ratio"], "x") or "missed",
            "crossing_flops": told(crossing["flops_ratio"]["all"], "x")
            or "missed",
            "oracle": f"{share['mean']:.2f}" if share else "",
            "headroom": f"{lead['mean'] / oracle[0]:.2f}"
            if lead and oracle and oracle[0] > 0
            else "",
            "lead": told(lead, factor=100),
            "slope": f"{100 * slope['mean']:.1f}" if slope else "",
            "doublings": f"{doublings:.1f}",
            "times": f"{2**doublings:.1f}x",
            "bill": f"{bill['uniform_steps']['all']:,}",
            "over_uniform": told(bill["over_uniform"]),
            "concepts": told(
                held_out["concepts_over_target"], factor=100, sign="+"
            ),
            "styles": told(
                held_out["styles_over_target"], factor=100, sign="+"
            ),
        }

    def goals(self):
        """`(goal, value, whether it is met)` of each goal, in words."""
        lines = _web_lines(self._web, _METHOD)
        if not lines:
            return []
        row, *_ = lines[-1]
        most = self.web_target()["steps"]
        cheap = [
            bill
            for _, bill, *_ in lines
            if bill["uniform_steps"]["all"] <= most
        ]
        values = {
            "examples": row["examples_ratio"],
            "flops": row["flops_ratio"]["all"],
            "mixture": row["mixture_ratio"]["examples"],
            "over_target": cheap[-1]["over_target"] if cheap else None,
            "oracle": row["oracle_share"],
        }
        return [
            (
                f"{least:g}{what}",
                claims.told(values[name], digits=digits) or "never there",
                bool(values[name]) and values[name]["mean"] >= least,
            )
            for least, digits, what, name in _GOALS
        ]

    def web_target(self):
        """The entry of `targets` in summary.json at the main level."""
        found = self._web["targets"] if self._web else ()
        return next((t for t in found if t["noise"] == claims.LEVEL), None)

    def web_run(self, start=""):
        """How many methods of matrix `web` have results, of how many.

        Args:
            start: of the methods' names.
        """
        methods = {summary.method_of(c.cell) for c in matrix.cells("web")}
        methods = {name for name in methods if name.startswith(start)}
        return f"{len(methods & self._methods_run(start))} of {len(methods)}"

    def _methods_run(self, start):
        rows = self._web["rows"] if self._web else ()
        return {
            row["method"]
            for row in rows
            if row["noise"] == claims.LEVEL and row["method"].startswith(start)
        }

    def map(self):
        """Levels of noise and `gains.Gains.words`; None of a single level."""
        found = self._web and gains.Gains(self._web)
        if not found or len(found.levels) < 2:
            return None
        return {"levels": found.levels} | found.words(_METHOD, claims.LEVEL)

    def web_pool(self):
        """Pairs of the pool, share of noise and curated pairs, in words."""
        sizes = matrix.WEB_POOL_SIZE, web_lib.NUM_CURATED
        pool, curated = (f"{size:,}" for size in sizes)
        return {
            "pool": pool,
            "curated": curated,
            "noise": f"{claims.LEVEL:.0%}".replace("%", " %"),
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
    return f"{found.measured} {verdict or f'({_seeds(found.seeds)})'}"


def _seeds(count):
    return f"{count} seed{'s' * (count > 1)}"


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
    split = ", validation" * (cell.split == "val")
    return (
        f"at {cell.noise:.0%} of noise {', '.join(parts)} "
        f"({cell.steps:,} steps, {_seeds(cell.seeds)}{split})"
    )


if __name__ == "__main__":
    main()

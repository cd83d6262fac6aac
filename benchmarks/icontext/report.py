"""The tables and figures of the benchmark's pages, from the kept tables.

    python -m benchmarks.icontext.report
    python -m benchmarks.icontext.report methods noise --results runs/results
    python -m benchmarks.icontext.report --figures benchmarks/icontext/results

Prints all tables in Markdown, or those named. Pages are written by hand around
them; a test compares the numbers. No run and no data are needed.
"""

import argparse
import json
import pathlib
from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmarks import report
from benchmarks.icontext import cells, contents, figures
from benchmarks.protocol import measures
from benchmarks.protocol.benchmark import GIVEN, OWN

RESULTS = pathlib.Path(__file__).with_name("results")
_LEVEL = 0.7  # of noise, where no other is named


def main(arguments=None):
    """Print tables, or draw figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}")
    add("--results", type=pathlib.Path, default=RESULTS)
    add("--figures", type=pathlib.Path, help="folder to draw them in")
    add("--summary", type=pathlib.Path, help="file to write scores and ratios")
    options = parser.parse_args(arguments)
    unknown = {*options.tables} - {*TABLES}
    if unknown:
        parser.error(f"no table is called {', '.join(sorted(unknown))}")
    try:
        found = everything(options.results)
        if options.figures:
            figures.draw(found, options.figures)
        if options.summary:
            text = json.dumps(summary(found), indent=1)
            options.summary.write_text(f"{text}\n", encoding="utf-8")
        if options.figures or options.summary:
            return
        for name in options.tables or TABLES:
            try:
                header, *rows = TABLES[name](found, options.results)
            except (FileNotFoundError, KeyError) as error:
                report.log(f"{name}: left out, as there is no {error}")
                continue
            if rows:
                print(f"\n{name}:\n\n{report.table(header, rows)}")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


# Ends of intervals of ratios in which a side misses the target.
_WORDS = {("x", float("inf")): "?", ("x", 0.0): "missed"}


class Found(NamedTuple):
    """`measures.Results` of both regimes.

    Attributes:
        own: references made of the pool and the curated set.
        same: a given reference, learners as wide.
        narrow: a given reference, learners of half its width.
    """

    own: measures.Results
    same: measures.Results
    narrow: measures.Results


def everything(folder=RESULTS):
    """Reads the tables in a folder, of both regimes."""
    which = cells.BENCHMARK, folder / cells.BENCHMARK.data
    return Found(
        measures.Results(*which),
        measures.Results(*which, GIVEN),
        measures.Results(*which, GIVEN, "narrow"),
    )


def told(estimate, unit="", factor=1, sign="", digits=1):
    """An `Estimate` in words, empty of None."""
    if estimate is None:
        return ""
    value, low, high = (
        _WORDS.get((unit, number), f"{factor * number:{sign}.{digits}f}")
        for number in estimate
    )
    return f"{value}{unit} [{low}, {high}]"


def methods(found, folder):
    """Score and ratios to the target of methods without a given model."""
    yield (
        *("training", "steps", "seeds", "score"),
        *("fewer examples", "fewer FLOPs"),
    )
    for what, line in _rows(found.own, contents.OWN):
        yield (
            *(what, f"{line.steps:,}", str(len(line.seeds))),
            *(_score(found.own, line), *_fewer(found.own, line, ["all"])),
        )


def half_width(found, folder):
    """Scores and ratios of learners of half the width of a given reference."""
    return _given(found.narrow, contents.GIVEN)


def half_width_more(found, folder):
    """The same of further methods."""
    return _given(found.narrow, contents.MORE_GIVEN)


def two_targets(found, folder):
    """Ratios of learners of half the width to two lengths of the target."""
    lengths = contents.TARGETS
    yield (
        "training",
        *(f"fewer examples, {steps:,} steps" for steps in lengths),
        *(f"fewer FLOPs, {steps:,}" for steps in lengths),
    )
    for what, line in _rows(found.narrow, contents.GIVEN[1:]):
        by_length = [
            found.narrow.by_seed(line, steps=steps) for steps in lengths
        ]
        yield (
            what,
            *(
                _seeds([ratios[place] for ratios in some.values()])
                for place in (0, 1)
                for some in by_length
            ),
        )


def same_width(found, folder):
    """Scores and ratios of learners as wide as a given reference."""
    return _given(found.same, contents.SAME)


def readme(found, folder):
    """What each kind of user gets, for the README: a ratio a claim."""

    def gives(results, method, cost):
        ratios = results.by_seed(results.line(method, _LEVEL), cost)
        examples, flops = map(np.median, zip(*ratios.values(), strict=True))
        return f"{examples:.1f}x fewer examples, {flops:.1f}x fewer FLOPs"

    yield "you have", "use", "it gives"
    for have, use, *line in contents.OFFERS:
        results = getattr(found, line[0])
        if results.line(line[1], _LEVEL):
            yield have, use, gives(results, *line[1:])


def _given(results, rows):
    yield (
        *("training", "steps", "seeds", "score", "fewer examples"),
        *("fewer FLOPs", "with 1/4 of the reference", "with all of it"),
    )
    for what, line in _rows(results, rows):
        yield (
            *(what, f"{line.steps:,}", str(len(line.seeds))),
            _score(results, line),
            *_fewer(results, line, measures.COSTS),
        )


def _rows(results, rows):
    for what, method, steps in rows:
        line = results.line(method, _LEVEL, steps)
        if method == measures.UNIFORM and line:
            line = results.target(_LEVEL)
        if line:
            yield what, line


def held_out(found, folder):
    """Scores on emoji art, of learners of half the width and the reference."""
    yield "training", "steps", "concepts", "styles"
    rows = *contents.ALL_GIVEN, ("the reference", "reference", 3000)
    for what, line in _rows(found.narrow, rows):
        scores = (
            100 * found.narrow.mean(line, f"test_{split}")
            for split in ("concept", "style")
        )
        yield what, f"{line.steps:,}", *(f"{score:.1f}" for score in scores)


def validation(found, folder):
    """The tests' scores and ratios beside validation's."""
    yield (
        *("reference", "training", "steps", "tests", "validation"),
        *("fewer examples, tests", "validation"),
    )
    for kind, tests, rows, *which in (
        ("strong", found.narrow, contents.ALL_GIVEN, GIVEN, "narrow"),
        ("weak", found.own, contents.OWN, OWN, ""),
    ):
        seen = measures.Results(
            cells.BENCHMARK, folder / "web", *which, measures.VALIDATION
        )
        for what, line in _rows(tests, rows):
            both = tests, seen
            yield (
                *(kind, what, f"{line.steps:,}"),
                *(f"{100 * results.end(line)[0]:.1f}" for results in both),
                *(_median(results, line) for results in both),
            )


def _median(results, line):
    """The median of a line's ratios of examples over the seeds."""
    ratios = [examples for examples, _ in results.by_seed(line).values()]
    ratio = np.median(ratios)
    return f"{ratio:.1f}x" if ratio else "missed"


def over_noise(found, folder):
    """Score ratios at equal FLOPs over levels of noise."""
    return _noise(found.own, contents.OVER_NOISE, "all")


def given_noise(found, folder):
    """Score ratios at equal FLOPs over levels of noise, a given reference."""
    return _noise(found.same, contents.GIVEN_NOISE, "paper")


def _noise(results, rows, cost):
    levels = [f"{100 * level:.0f} % noise" for level in results.levels]
    yield ("training", "steps", *levels)
    for what, method, steps in rows:
        ratios = [
            _ratio(results, method, level, steps, cost)
            for level in results.levels
        ]
        if any(ratios):
            yield what, f"{steps:,}", *ratios


def claims(found, folder):
    """What the paper's claims ask of JEST, in points, in both regimes."""
    yield "comparison", "paper", "strong reference", "weak reference"
    for what, paper, own, given in contents.CLAIMS:
        shown = [
            _difference(results, names)
            if names and all(name in results.runs.index for name in names)
            else ""
            for results, names in ((found.same, given), (found.own, own))
        ]
        if any(shown):
            yield what, paper, *shown


def strengths(found, folder):
    """Score ratios at equal FLOPs over the strength of the reference."""
    results, lines = found.same, {}
    for method in figures.BY_STRENGTH:
        places, of_method = figures.strength(results, method)
        lines[method] = dict(zip(places, of_method, strict=True))
    yield (
        *("reference / target", "JEST", "easy-reference", "distillation alone"),
        "stored stage, distillation",
        *("clean rows of JEST, %", "of easy-reference, %"),
    )
    for place in sorted(
        {place for by_place in lines.values() for place in by_place}
    ):
        yield (
            f"{place:.2f}",
            *(
                told(results.over_uniform(by_place[place], "paper"))
                if place in by_place
                else ""
                for by_place in lines.values()
            ),
            *(
                " to ".join(
                    f"{100 * results.mean(lines[method][place], column):.0f}"
                    for column in ("clean_first", "clean_last")
                    if place in lines[method]
                )
                for method in ("jest", "easy_reference")
            ),
        )


def tried(found, folder):
    """Settings tried on validation, seed 0, beside what was kept."""
    yield "trial", "steps", "trial's score", "kept setting's score"
    for what, *names in contents.TRIED:
        rows = [found.own.runs.loc[f"web_{name}", 0] for name in names]
        scores = [f"{100 * row['val_sets']:.1f}" for row in rows]
        yield (what, f"{rows[0]['steps']:,}", *scores)


def tried_given(found, folder):
    """Trials by a given reference, on validation and tests, seed 1."""
    yield (
        *("learner", "trial", "steps", "validation", "kept setting's"),
        *("tests", "kept setting's"),
    )
    for learner, what, *names, steps in contents.TRIED_GIVEN:
        results = getattr(found, learner)
        lines = [results.line(name, _LEVEL, steps) for name in names]
        if all(lines):
            rows = [results.runs.loc[line.cell, 1] for line in lines]
            yield (
                "half width" if learner == "narrow" else "same width",
                *(what, f"{steps:,}"),
                *(f"{100 * row['val_sets']:.1f}" for row in rows),
                *(f"{100 * row['test_sets']:.1f}" for row in rows),
            )


def emoji(found, folder):
    """Scores on emoji art, the mean of both tests, from its own runs.csv."""
    yield "method", "steps", "seeds", "score", "concepts", "style"
    runs = pd.read_csv(folder / "runs.csv").set_index("cell")
    for what, cell in contents.EMOJI_ART:
        rows = runs.loc[[cell]]
        scores = 100 * rows[["test_concept", "test_style"]].mean()
        yield (
            *(what, f"{rows['steps'].iloc[0]:,}", str(len(rows))),
            *(f"{score:.1f}" for score in (scores.mean(), *scores)),
        )


# Rows of text, the first of which is the header, by the table's name.
TABLES = {
    "methods": methods,
    "readme": readme,
    "half_width": half_width,
    "half_width_more": half_width_more,
    "two_targets": two_targets,
    "same_width": same_width,
    "given_noise": given_noise,
    "strengths": strengths,
    "noise": over_noise,
    "claims": claims,
    "tried": tried,
    "tried_given": tried_given,
    "held_out": held_out,
    "validation": validation,
    "emoji": emoji,
}


def summary(found):
    """The rows of summary.json: each method of both regimes, at 70 % noise."""

    def rounded(estimate):
        return estimate and [round(number, 4) for number in estimate]

    def each(by_seed, place):
        return {
            seed: round(ratios[place], 4) for seed, ratios in by_seed.items()
        }

    def median(by_seed, place):
        ratios = [*each(by_seed, place).values()]
        # Most of the seeds reach the target, or there is no ratio.
        return round(float(np.median(ratios)), 4) or None

    rows = []
    for regime, learner, results, methods in (
        (OWN, "same width", found.own, contents.OWN),
        (GIVEN, "same width", found.same, contents.SAME),
        (GIVEN, "half width", found.narrow, contents.ALL_GIVEN),
    ):
        for what, line in _rows(results, methods):
            ratios = results.to_target(line)
            by_seed = {
                cost: results.by_seed(line, cost) for cost in measures.COSTS
            }
            rows.append(
                {
                    "benchmark": cells.BENCHMARK.name,
                    "arm": "moved",
                    "noise": line.noise,
                    "regime": regime,
                    "learner": learner,
                    "method": what.strip("*"),
                    "cell": line.cell,
                    "steps": line.steps,
                    "seeds": line.seeds,
                    "score": rounded(measures.estimate(results.end(line))),
                    "validation": round(results.mean(line, "val_sets"), 4),
                    "examples_ratio": median(by_seed["paper"], 0),
                    "examples_ratio_by_seed": each(by_seed["paper"], 0),
                    "flops_ratio": {
                        cost: median(some, 1) for cost, some in by_seed.items()
                    },
                    "flops_ratio_by_seed": {
                        cost: each(some, 1) for cost, some in by_seed.items()
                    },
                    "is_lower_bound": ratios.is_bound,
                }
            )
    return rows


def _score(found, line):
    return told(measures.estimate(found.end(line)), factor=100)


def _fewer(found, line, costs):
    """Ratios of examples, and of FLOPs in each count, to the target."""
    ratios = found.to_target(line)
    if ratios.examples is None:
        estimates = found.to_own_end(line, costs)
        return [
            f"{told(estimate, 'x')} to its own end" if estimate else ""
            for estimate in estimates
        ]
    if ratios.is_bound:
        estimates = [ratios.examples, *(ratios.flops[cost] for cost in costs)]
        return [f"at least {estimate.value:.1f}x" for estimate in estimates]
    of_costs = [found.by_seed(line, cost) for cost in costs]
    return [
        _seeds([examples for examples, _ in of_costs[0].values()]),
        *(_seeds([flops for _, flops in some.values()]) for some in of_costs),
    ]


def _seeds(ratios):
    """The median over the seeds, then the ratio of each."""
    words = f"{np.median(ratios):.1f}x"
    if len(ratios) > 1:
        each = ", ".join(f"{r:.1f}" if r else "missed" for r in ratios)
        words += f" ({each})"
    return words


def _difference(results, names):
    found, count = results.difference(*names)
    words = told(found, factor=100, sign="+")
    if count < measures.LEAST_SEEDS:
        words += f" ({count} seed{'s' * (count > 1)})"
    return words


def _ratio(found, method, noise, steps, cost="all"):
    """Score ratio of a method at a length, empty if it was not run."""
    line = found.line(method, noise, steps)
    if not line:
        return ""
    ratio = told(found.over_uniform(line, cost))
    count = len(line.seeds)
    return f"{ratio} ({count} seeds)" if ratio and count > 1 else ratio


if __name__ == "__main__":
    main()

"""The tables and figures of the benchmark's pages, from the kept tables.

    python -m benchmarks.icontext.report
    python -m benchmarks.icontext.report methods noise --results runs/results
    python -m benchmarks.icontext.report --figures benchmarks/icontext/results

Prints all tables in Markdown, or those named. Pages are written by hand around
them; a test compares the numbers. No run and no data are needed.
"""

import argparse
import pathlib

import pandas as pd

from benchmarks import report
from benchmarks.icontext import figures, measures

RESULTS = pathlib.Path(__file__).with_name("results")
_LEVEL = 0.7  # of noise, where no other is named
# Rows of the table of methods: what it is, in runs.csv, steps, whether the
# README has it.
_METHODS = (
    ("uniform, the target", "uniform", 36_000, True),
    (
        "an eighth of every batch curated, the best of 2 mixtures run to "
        "18,000 steps",
        *("mixed_8", 18_000, True),
    ),
    (
        "the best-matching half of the pool, cut once by a reference of the "
        "curated set",
        *("filtered_50", 9000, True),
    ),
    (
        "JEST, f = 0.8, reference of the curated set alone",
        *("jest_curated", 1400, False),
    ),
    (
        "Flexi-JEST, f = 0.8, reference of the curated set alone",
        *("flexi", 1400, False),
    ),
    (
        "cascade by a reference of the curated set",
        *("cascade_curated", 4500, False),
    ),
    (
        "cascade begun by a reference of the curated set, then renewed",
        *("renewed", 4500, False),
    ),
    ("**bootstrapped cascade**", "bootstrapped", 4500, True),
    ("bootstrapped cascade, longer", "bootstrapped", 14_000, True),
    (
        "uniform on the clean pairs of the pool alone",
        *("clean", 4500, True),
    ),
    ("uniform on the curated set alone", "curated", 1000, False),
)
# Its ratios are of the way to the target, which a shorter run has passed.
_LONGER = ("bootstrapped", 14_000)
# Rows of the table over noise: steps, and how FLOPs are counted.
_OVER_NOISE = (
    ("an eighth of every batch curated", "mixed_8", 2250, "all"),
    (
        "JEST, f = 0.8, reference of the curated set alone",
        *("jest_curated", 1400, "all"),
    ),
    (
        "cascade, K = 5, by a reference of the curated set",
        *("cascade_curated", 1400, "all"),
    ),
    (
        "cascade begun by a reference of the curated set, K = 3, K = 5 at 90 % "
        "noise; its training not counted",
        *("renewed", 1400, "given reference"),
    ),
    ("the same; its training counted", "renewed", 1400, "all"),
    (
        "bootstrapped cascade, K = 3, K = 5 at 90 % noise",
        *("bootstrapped", 1400, "all"),
    ),
    ("clean pairs of the pool alone", "clean", 1400, "all"),
)
# Differences in points that the paper's claims ask for.
_CLAIMS = (
    (
        "joint less independent selection",
        *("significant", "jest_f80_700", "independent_700"),
    ),
    ("f = 0.8 less 0.5", "monotone", "jest_f80_700", "jest_f50_700"),
    ("f = 0.9 less 0.8", "monotone", "jest_f90_700", "jest_f80_700"),
    ("f = 0.95 less 0.9", "monotone", "jest_f95_700", "jest_f90_700"),
    (
        "learnability less easy-reference",
        *("scales better", "jest_f80_700", "easy_reference_700"),
    ),
    (
        "learnability less hard-learner",
        *("scales better", "jest_f80_700", "hard_learner_700"),
    ),
    (
        "16 chunks less 32",
        *("no worse", "jest_f80_700", "chunks_32_700"),
    ),
    (
        "JEST less its reference",
        *("on many tasks", "jest_curated_1400", "curated_1000"),
    ),
    (
        "JEST less the cascade by the same reference",
        *("scales better", "jest_curated_1400", "cascade_curated_1400"),
    ),
    (
        "cascade: curated reference less one of curated and pool",
        *("essential", "cascade_curated_1400", "cascade_mixed_1400"),
    ),
)
_NO_WORSE = -0.01  # the score that "no worse" may lose
# Runs of seed 0 on validation beside what was kept.
_TRIED = (
    ("bootstrapped, K = 2", "bootstrapped_k2_2700", "bootstrapped_2700"),
    ("bootstrapped, K = 5", "bootstrapped_k5_2700", "bootstrapped_2700"),
    (
        "bootstrapped, eight renewals of smaller shares",
        *("bootstrapped_often_2000", "bootstrapped_2000"),
    ),
    (
        "bootstrapped, from a pool without near-duplicates",
        *("bootstrapped_distinct_2700", "bootstrapped_2700"),
    ),
    (
        "bootstrapped, begun half curated",
        *("bootstrapped_half_2700", "bootstrapped_2700"),
    ),
    ("uniform, learning rate 2e-3", "uniform_fast_4500", "uniform_4500"),
    (
        "an eighth curated, learning rate 1e-3",
        *("mixed_8_slow_4500", "mixed_8_4500"),
    ),
)

# Rows of the table of emoji art, by cell.
_EMOJI_ART = (
    ("uniform", "uniform_10000"),
    ("uniform, the target", "uniform"),
    ("JEST, f = 0.8", "jest_5000"),
    ("stage 0 only, K = 25", "stage_0_3000"),
    ("stage 0 with distillation", "best"),
    ("stage 0 with distillation, reference twice as wide", "best_by_wide"),
    (
        "stage 0 with distillation for the first quarter, half of its rows "
        "uniform",
        "best_3000_half",
    ),
    (
        "uniform on curated set and pool, half each (the reference)",
        "mixed_3000",
    ),
    ("uniform on the curated set only", "reference_curated"),
)


def main(arguments=None):
    """Print tables, or draw figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}")
    add("--results", type=pathlib.Path, default=RESULTS)
    add("--figures", type=pathlib.Path, help="folder to draw them in")
    options = parser.parse_args(arguments)
    unknown = {*options.tables} - {*TABLES}
    if unknown:
        parser.error(f"no table is called {', '.join(sorted(unknown))}")
    try:
        found = measures.Results(options.results / "web")
        if options.figures:
            figures.draw(found, options.figures)
            return
        for name in options.tables or TABLES:
            try:
                header, *rows = TABLES[name](found, options.results)
            except (FileNotFoundError, KeyError) as error:
                report.log(f"{name}: left out, as there is no {error}")
                continue
            print(f"\n{name}:\n\n{report.table(header, rows)}")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


def told(estimate, unit="", factor=1, sign="", digits=1):
    """An `Estimate` in words, empty of None."""
    if estimate is None:
        return ""
    value, low, high = (
        "?" if one == float("inf") else f"{factor * one:{sign}.{digits}f}"
        for one in estimate
    )
    return f"{value}{unit} [{low}, {high}]"


def methods(found, folder):
    """Score, lead and ratios to the target of each method."""
    yield (
        *("training", "steps", "seeds", "score", "lead in points"),
        *("fewer examples", "fewer FLOPs, three counts"),
        "of clean pairs' score",
    )
    for what, method, steps, _ in _METHODS:
        line = found.line(method, _LEVEL, steps)
        if line:
            fewer, flops = _fewer(found, line, with_parts=True)
            lead = found.lead(line) if method != measures.UNIFORM else None
            yield (
                *(
                    what,
                    f"{steps:,}",
                    str(len(line.seeds)),
                    _score(found, line),
                ),
                *(told(lead, factor=100), fewer, flops),
                _share(found, line),
            )


def readme(found, folder):
    """The same for the README: fewer methods and columns."""
    yield (
        *("training", "steps", "score", "fewer examples to the target"),
        "fewer FLOPs to the target",
        "of clean pairs' score, equal steps",
    )
    for what, method, steps, is_shown in _METHODS:
        line = found.line(method, _LEVEL, steps)
        if line and is_shown:
            few = len(line.seeds) < measures.LEAST_SEEDS
            yield (
                what + f", {_seeds(line)}" * few,
                *(f"{steps:,}", _score(found, line), *_fewer(found, line)),
                _share(found, line),
            )


def over_noise(found, folder):
    """Score ratios at equal FLOPs over levels of noise."""
    levels = [f"{100 * level:.0f} % noise" for level in found.levels]
    yield ("training", "steps", *levels)
    for what, method, steps, cost in _OVER_NOISE:
        yield (
            *(what, f"{steps:,}"),
            *(
                _ratio(found, method, level, steps, cost)
                for level in found.levels
            ),
        )


def claims(found, folder):
    """What the paper's claims ask of JEST, in points, and the verdicts."""
    yield "comparison", "paper", "points", "verdict"
    line = found.line("jest_curated", _LEVEL, 1400)
    lead = found.lead(line)
    yield (
        *("JEST less uniform training, 1,400 steps", "by a wide margin"),
        *(told(lead, factor=100, sign="+"), _verdict(lead)),
    )
    for what, paper, cell, other in _CLAIMS:
        estimate = found.difference(f"web_{cell}", f"web_{other}")
        bound = _NO_WORSE if paper == "no worse" else 0.0
        yield (
            *(what, paper, told(estimate, factor=100, sign="+")),
            _verdict(estimate, bound),
        )


def tried(found, folder):
    """Settings tried on validation, seed 0, beside what was kept."""
    yield "trial", "steps", "trial's score", "kept setting's score"
    for what, *names in _TRIED:
        rows = [found.runs.loc[f"web_{name}", 0] for name in names]
        scores = [f"{100 * row['val_sets']:.1f}" for row in rows]
        yield (what, f"{rows[0]['steps']:,}", *scores)


def emoji(found, folder):
    """Scores on emoji art, the mean of both tests, from its own runs.csv."""
    yield "method", "steps", "seeds", "score", "concepts", "style"
    runs = pd.read_csv(folder / "runs.csv").set_index("cell")
    for what, cell in _EMOJI_ART:
        rows = runs.loc[[cell]]
        scores = 100 * rows[["test_concept", "test_style"]].mean()
        yield (
            *(what, f"{rows['steps'].iloc[0]:,}", str(len(rows))),
            *(f"{one:.1f}" for one in (scores.mean(), *scores)),
        )


# Rows of text, the first of which is the header, by the table's name.
TABLES = {
    "methods": methods,
    "readme": readme,
    "noise": over_noise,
    "claims": claims,
    "tried": tried,
    "emoji": emoji,
}


def _score(found, line):
    return told(measures.estimate(found.end(line)), factor=100)


def _seeds(line):
    count = len(line.seeds)
    return f"{count} seed{'s' * (count > 1)}"


def _share(found, line):
    share = found.clean_share(line)
    return f"{share.value:.2f}" if share else ""


def _fewer(found, line, with_parts=False):
    """Ratios of examples and of FLOPs to the target, in words."""
    if (line.method, line.steps) == _LONGER:
        return "as above", "as above"
    ratios = found.to_target(line)
    if ratios.examples is None:
        own = [told(one, "x") for one in found.to_own_end(line)]
        return [
            f"{one} to its own end" if one else "not reached" for one in own
        ]
    if ratios.is_bound:
        return [
            f"at least {one.value:.1f}x"
            for one in (ratios.examples, ratios.flops["all"])
        ]
    flops = told(ratios.flops["all"], "x")
    if with_parts:
        parts = [
            f"{ratios.flops[kind].value:.1f}x / "
            for kind in ("scores", "reference")
        ]
        flops = "".join(parts) + flops
    return told(ratios.examples, "x"), flops


def _ratio(found, method, noise, steps, cost="all"):
    """Score ratio of a method at one length, empty if it was not run."""
    line = found.line(method, noise, steps)
    if not line:
        return ""
    ratio = told(found.over_uniform(line, cost))
    few = len(line.seeds) == 1
    return ratio if few or not ratio else f"{ratio} ({_seeds(line)})"


def _verdict(estimate, bound=0.0):
    if estimate.low > bound:
        return "holds"
    return "does not hold" if estimate.high < bound else "undecided"


if __name__ == "__main__":
    main()

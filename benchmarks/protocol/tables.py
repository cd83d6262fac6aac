"""The tables that benchmarks share: rows of text, the first the header.

A table has a row for each method of a `Group` that was run, and is empty if
none was.
"""

from typing import NamedTuple

import numpy as np

from benchmarks.protocol import measures
from benchmarks.protocol.measures import SCORE, UNIFORM, VALIDATION

_NAMES = {
    "paper": "fewer FLOPs",
    "shared": "with 1/4 of the reference",
    "all": "with all of it",
}


class Group(NamedTuple):
    """Methods that are compared on the same tests.

    Attributes:
        results: `measures.Results`.
        methods: what each is, its name in runs.csv and its steps, None for the
            longest.
        noise: share of the pool.
        costs: of `measures.COSTS`, the first for "fewer FLOPs".
        about: what the rows of the summary say of the group.
    """

    results: measures.Results
    methods: tuple
    noise: float
    costs: tuple[str, ...]
    about: dict[str, str | None]

    def lines(self):
        """Yields what each method is, and its `measures.Line`."""
        for what, method, steps in self.methods:
            line = self.line(method, steps)
            if line:
                yield what, line

    def line(self, method, steps=None):
        """A line of a method; without steps that of the target, if uniform."""
        if method == UNIFORM and not steps:
            return self.results.target(self.noise)
        return self.results.line(method, self.noise, steps)


def ratios(group):
    """Score, and ratios to uniform training's best, in each count of FLOPs."""
    costs = [_NAMES["paper"], *(_NAMES[cost] for cost in group.costs[1:])]
    return rows_under(
        ("training", "steps", "seeds", "score", "fewer examples", *costs),
        (
            (
                *(what, f"{line.steps:,}", str(len(line.seeds))),
                *(score(group.results, line), *fewer(group, line)),
            )
            for what, line in group.lines()
        ),
    )


def two_targets(group, lengths):
    """Ratios to uniform training after two lengths."""

    def cells(line):
        found = [group.results.by_seed(line, steps=n) for n in lengths]
        for place in (0, 1):
            for by_seed in found:
                yield _seeds([each[place] for each in by_seed.values()])

    return rows_under(
        (
            "training",
            *(f"fewer examples, {steps:,} steps" for steps in lengths),
            *(f"fewer FLOPs, {steps:,}" for steps in lengths),
        ),
        (
            (what, *cells(line))
            for what, line in group.lines()
            if line.method != UNIFORM
        ),
    )


def over_noise(group, unit="noise"):
    """Score over uniform training's at equal FLOPs, at each level of noise.

    Where the cells differ in their number of seeds, each says its own.
    """
    results, cost = group.results, group.costs[0]
    lines = [
        [results.line(method, level, steps) for level in results.levels]
        for _, method, steps in group.methods
    ]
    differ = len({len(line.seeds) for row in lines for line in row if line}) > 1

    def cell(line):
        ratio = told(line and results.over_uniform(line, cost))
        seeds = len(line.seeds) if line else 0
        shown = bool(ratio and differ and seeds > 1)
        return ratio + f" ({seeds} seeds)" * shown

    rows = (
        (what, f"{n:,}", *(cell(line) for line in row))
        for (what, _, n), row in zip(group.methods, lines, strict=True)
    )
    levels = (f"{100 * level:.0f} % {unit}" for level in results.levels)
    return rows_under(
        ("training", "steps", *levels), (row for row in rows if any(row[2:]))
    )


def tried(group):
    """Learning rates tried beside those that were kept, of a single seed.

    Those of a method that ends in "_at_" and a rate, where a method of the
    group differs from it in the rate alone.
    """
    results, rows = group.results, []
    for what, kept, _ in group.methods:
        base = kept.partition("_at_")[0]
        what = what.strip("*").removesuffix(", the target")
        trials = {
            method.partition("_at_")[2]: method
            for level, method in results.lines
            if level == group.noise and method.startswith(f"{base}_at_")
        }
        for rate in sorted(trials, key=float):
            pair = _compared(group, trials[rate], kept)
            if trials[rate] != kept and pair:
                steps, *both = pair
                rows.append(
                    (
                        *(f"{what}, rate {rate}", f"{steps:,}"),
                        *(
                            f"{100 * row[column]:.1f}"
                            for column in (VALIDATION, SCORE)
                            for row in both
                        ),
                    )
                )
    return rows_under(
        (
            *("trial", "steps", "validation", "kept setting's"),
            *("tests", "kept setting's"),
        ),
        rows,
    )


def _compared(group, *methods):
    """The greatest steps, and the runs of a seed that both methods have."""
    results, noise = group.results, group.noise
    ladders = [results.ladder(method, noise) for method in methods]
    steps = set.intersection(*({n.steps for n in lines} for lines in ladders))
    for longest in sorted(steps, reverse=True):
        lines = [results.line(name, noise, longest) for name in methods]
        for seed in sorted(set.intersection(*(set(n.seeds) for n in lines))):
            return longest, *(results.runs.loc[n.cell, seed] for n in lines)
    return None


def offers(found, rows):
    """What a user has, what to use, and the ratios that it gives.

    Args:
        found: `Group`s by name.
        rows: what a user has, what to use, a group's name, its method, and one
            of `measures.COSTS`.
    """

    def gives(results, line, cost):
        found = results.by_seed(line, cost).values()
        examples, flops = map(_median, zip(*found, strict=True))
        words = f"{examples:.1f}x fewer examples, {flops:.1f}x fewer FLOPs"
        return words + " (1 seed)" * (len(found) == 1)

    return rows_under(
        ("you have", "use", "it gives"),
        (
            (have, use, gives(found[name].results, line, cost))
            for have, use, name, method, cost in rows
            if (line := found[name].line(method))
        ),
    )


def summary(group):
    """The rows of summary.json, a dict for each method of a group."""
    results = group.results

    def each(by_seed, place):
        return {
            seed: round(ratios[place], 4) or None
            for seed, ratios in by_seed.items()
        }

    def median(by_seed, place):
        found = _median([ratios[place] for ratios in by_seed.values()])
        return round(found, 4) if found else None

    for what, line in group.lines():
        by_seed = {cost: results.by_seed(line, cost) for cost in measures.COSTS}
        ends = measures.estimate(results.end(line))
        yield {
            **group.about,
            "noise": group.noise,
            "method": what.strip("*"),
            "cell": line.cell,
            "steps": line.steps,
            "seeds": line.seeds,
            "score": [round(number, 4) for number in ends],
            "validation": round(results.mean(line, VALIDATION), 4),
            "examples_ratio": median(by_seed["paper"], 0),
            "examples_ratio_by_seed": each(by_seed["paper"], 0),
            "flops_ratio": {
                cost: median(some, 1) for cost, some in by_seed.items()
            },
            "flops_ratio_by_seed": {
                cost: each(some, 1) for cost, some in by_seed.items()
            },
            "is_lower_bound": results.is_bound(line),
        }


def score(results, line):
    """The score of a line x 100, with its interval."""
    return told(measures.estimate(results.end(line)), factor=100)


def fewer(group, line):
    """Ratios of examples, and of FLOPs in each count, to the target."""
    found = [group.results.by_seed(line, cost) for cost in group.costs]
    if not found[0]:
        return ["" for _ in range(1 + len(found))]
    columns = [[ratio for ratio, _ in found[0].values()]]
    columns += [[ratio for _, ratio in some.values()] for some in found]
    if group.results.is_bound(line):
        return [f"at least {_median(column):.1f}x" for column in columns]
    return [_seeds(column) for column in columns]


def _median(ratios):
    """The median over the seeds; 0.0 unless most of them reach the target."""
    if 2 * np.count_nonzero(ratios) <= len(ratios):
        return 0.0
    return float(np.median(ratios))


def _seeds(ratios):
    """The median over the seeds, then the ratio of each where they differ."""
    if not any(ratios):
        return "missed" if ratios else ""
    median, *each = (
        f"{ratio:.1f}" if ratio else "missed"
        for ratio in (_median(ratios), *ratios)
    )
    words = median if median == "missed" else f"{median}x"
    return f"{words} ({', '.join(each)})" if len({*each}) > 1 else words


def medians(by_seed):
    """Median ratios of examples and of FLOPs, of `Results.by_seed`."""
    found = [_median(ratios) for ratios in zip(*by_seed.values(), strict=True)]
    shown = ", ".join(f"{ratio:.1f}x" for ratio in found)
    return shown if any(found) else "missed" * bool(found)


def told(estimate, factor=1, sign=""):
    """A `measures.Estimate` in words, empty of None."""
    if estimate is None:
        return ""
    value, low, high = (f"{factor * number:{sign}.1f}" for number in estimate)
    return f"{value} [{low}, {high}]"


def rows_under(header, rows):
    """The header before the rows; nothing without rows."""
    rows = [[*row] for row in rows]
    return [[*header], *rows] if rows else []

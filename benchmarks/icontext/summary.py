"""Tables of the web-like benchmark: scores, leads, ratios and bills.

    python -m benchmarks.icontext.summary \
        --results benchmarks/icontext/results/web
    python -m benchmarks.icontext.summary --splits val \
        --results icontext-work/results-web --out icontext-work/results-web

Writes `summary.json` and `summary.md`, or `validation.json` and
`validation.md`, from the result tables alone. Every line is a method at one
length, with the seeds that were run.

- **Score**: mean reciprocal rank on icon sets that nobody trains on. Each
  `{mean, low, high}` is a mean over seeds with a 95 % interval over seeds and
  concepts; with one seed or two, the usual spread between seeds is added, that
  of the cells with three and at least half of the steps. `held_out` has the
  scores on held-out concepts and styles, and what is won or lost there against
  uniform training's best end.
- **Uniform training at a cost**: between the ends of its full schedules, linear
  in the logarithm of the steps; never a point of a longer run's curve. Lines of
  fewer seeds are compared with uniform training of these seeds.
- **Lead**: the score less uniform training's at equal steps. **Slope**: what
  uniform training gains by a doubling, in the mean from these steps to those at
  which it first has the score of its best end. 2^(lead / slope) is how many
  times longer uniform training would take, if all its doublings were worth the
  same.
- **Target**: uniform training's best end, at the length that validation chose
  among those with three seeds, or with the most.
  A ratio is the cost of reaching it by uniform training, or by the best
  mixture, over that by the method's, both by ends of full schedules: between
  two lengths where the shorter one misses, never less than the shortest, and
  the method's up to the line's length. A ratio is null where the line misses
  the target or the mixture does. The best mixture is the one that reaches the
  target soonest on validation, or else ends highest. Where `is_bound`, the
  method's shortest run reaches the target, and its ratios are lower bounds.
- `first_crossings` have the same ratios by curves, on both sides: the cost when
  a run, of whatever length, first crosses the target of its seed, as if it had
  been stopped there. Tests are looked at once, at the end of a run, so these
  are of validation splits. `targets` have the steps at which a curve of uniform
  training, or of the mixture, is first at the target (`reached`).
- `uniform_ends` are ratios to the ends of all uniform runs: an end that uniform
  training nears slowly makes them large. `reached` is the line's step at the
  target. `mixture` is the mixture's cost of its own best end over the line's
  cost of the same.
- `equal_scores` are ratios to the line's own end, or to the target if that is
  lower; null below uniform training's shortest schedule.
- **FLOPs**, three ways. `scores`: steps, with the learner's scores, and stage
  0. `reference`: and the training of all references, those by which pools were
  cut and the references' own. `all`: and every embedding of the pool, by them
  or by the run's own renewals. Examples are those that the learner trains on.
- `bills` are the FLOPs of a line in uniform steps (`without_references`: but
  for what references cost before the run), the best end of uniform training at
  that bill or a lower one, and the score over it and over the
  target. What uniform training does with a bill beyond its longest run is null.
- **Oracle's share**: the score over that of training without noise, at equal
  steps; null beyond the lengths that were run.

Rows of a cell that has changed in matrix.csv since are left out.
"""

import argparse
import functools
import json
import pathlib
import re
from typing import NamedTuple

import numpy as np

from benchmarks.icontext import (
    bootstrap,
    comparison,
    ladders,
    matrix,
    results,
    summary_page,
    targets,
)

UNIFORM, ORACLE = "uniform", "oracle"
_MIXTURE = re.compile(r"mixed_\d+")
# Kind of a bill without what was spent on references before the run.
_WITHOUT = "without_references"
_DOMAIN = "icontext"
_FILES = {"test": "summary", "val": "validation"}
_VALIDATION = ("val_sets",)


def main(arguments=None):
    """Parse the flags and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--results", type=pathlib.Path, default=results.FOLDER / "web")
    add("--out", type=pathlib.Path, default=results.FOLDER)
    add("--splits", choices=[*_FILES], default="test")
    options = parser.parse_args(arguments)
    tables = results.load(options.results)
    if tables is None:
        raise SystemExit(f"error: no results in '{options.results}'")
    found = Summary(tables, options.splits)
    if not found.lines:
        raise SystemExit(
            f"error: no run in '{options.results}' has the split "
            f"'{options.splits}_sets'; run a matrix of the web-like data first"
        )
    try:
        values = found.values()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / _FILES[options.splits]
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    path.with_suffix(".json").write_text(text, "utf-8")
    page = summary_page.render(values, found.lines)
    path.with_suffix(".md").write_text(page, "utf-8")


def load(folder, splits=tuple(_FILES)):
    """The content of summary.json in a folder, else of validation.json.

    Args:
        folder: of the results.
        splits: those wanted, the first that is there; None stands for none.
    """
    for split in splits:
        path = folder / f"{_FILES[split]}.json"
        if path.exists():
            return json.loads(path.read_text("utf-8"))
    return None


def current(runs):
    """The rows of runs.csv whose cell has not changed in matrix.csv since."""
    digests = {name: cell.digest for name, cell in matrix.load().items()}
    return runs[runs["digest"] == runs["cell"].map(digests)]


class Base(NamedTuple):
    """What the lines of a level are compared with."""

    uniform: list[ladders.Line]  # by length
    best: int  # place of uniform training's best end
    mixture: list[ladders.Line]  # of the best mixture, by length; maybe none
    oracle: list[ladders.Line]  # by length; maybe none


class Summary:
    """The lines of the tables of the web-like data.

    Args:
        tables: `results.Tables`.
        splits: "test" or "val".

    Attributes:
        lines: `ladders.Line`s, by level, then as in matrix.csv.
    """

    def __init__(self, tables, splits="test"):
        self._prefix = splits
        self._score = (f"{splits}_sets",)
        tables = tables._replace(runs=current(tables.runs))
        self._comparison = comparison.Comparison(tables)
        self._spent = targets.flops_three_ways(self._comparison)
        self._costs = self._spent | {_WITHOUT: targets.flops_without_references}
        self.lines = self._lines()
        levels = dict.fromkeys(line.level for line in self.lines)
        self._bases = {level: self._base(level) for level in levels}

    def values(self):
        """The content of summary.json; a row for each line in all lists."""
        bases = self._bases.items()
        return {
            "split": self._prefix,
            "targets": [self._target(*one) for one in bases if one[1]],
            **{
                name: [self._key(line) | row(line) for line in self.lines]
                for name, row in (
                    ("rows", self._row),
                    ("first_crossings", self._first_crossing),
                    ("equal_scores", self._equal_score),
                    ("uniform_ends", self._uniform_ends),
                    ("held_out", self._held_out),
                    ("bills", self._bills),
                )
            },
        }

    def _lines(self):
        found = {}
        for cell in matrix.load().values():
            runs = {
                run.row.seed: run
                for run in self._comparison.of(cell.cell)
                if self._score[0] in run.concepts
            }
            if cell.data == "web" and runs:
                steps = next(iter(runs.values())).row.steps
                key = cell.level, method_of(cell.cell), steps
                found[key] = ladders.Line(*key[:2], cell.what, steps, runs)
        levels = sorted({level for level, *_ in found} - {None})
        # A method that sees no pool has no noise: it stands at all levels.
        return [
            line._replace(level=level)
            for level in levels
            for line in found.values()
            if line.level in (level, None)
        ]

    def _base(self, level):
        """`Base` of a level; None without uniform training."""
        methods = {}
        for line in self.lines:
            if line.level == level:
                methods.setdefault(line.method, []).append(line)
        for ladder in methods.values():
            ladder.sort(key=lambda line: line.steps)
        uniform = methods.get(UNIFORM)
        if not uniform:
            return None
        best, ends = self._best(uniform), self._ends(uniform, _VALIDATION)[:, 0]

        def rank(ladder):
            """Soonest at the target, or else highest."""
            ours = self._ends(ladder, _VALIDATION)[:, :1]
            needed = ladders.steps_to_end(
                ladders.lengths(ladder), ours, ends[best:][:1]
            )
            return needed[0], -ours.max()

        mixtures = [
            ladder
            for method, ladder in methods.items()
            if _MIXTURE.fullmatch(method)
        ]
        return Base(
            uniform,
            best,
            min(mixtures, key=rank, default=[]),
            methods.get(ORACLE, []),
        )

    def _best(self, ladder):
        """Place of the line with the best end on validation."""
        # A length with fewer seeds than others is no target yet.
        seeds = [len(line.runs) for line in ladder]
        most = min(max(seeds), comparison.LEAST_SEEDS)
        ends = self._ends(ladder, _VALIDATION)[:, 0]
        return int(np.argmax(np.where(np.array(seeds) >= most, ends, -1.0)))

    def _ends(self, ladder, splits, seeds=None):
        spread = functools.partial(self._spread, splits)
        return ladders.ends(ladder, splits, seeds, spread)

    @functools.cache  # noqa: B019 - a summary lives as long as the command
    def _spread(self, splits, steps):
        return self._comparison.spread(splits, steps)

    def _key(self, line):
        return {
            "domain": _DOMAIN,
            "noise": line.level,
            "method": line.method,
            "seeds": len(line.runs),
            "steps": line.steps,
        }

    def _row(self, line):
        """A row of summary.json."""
        base = self._bases[line.level]
        lead = slope = share = np.array([np.nan])  # is null
        score = self._ends([line], self._score)[0]
        if base:
            lengths = ladders.lengths(base.uniform)
            ends = self._ends(base.uniform, self._score, line.runs)
            lead = score - ladders.end_at(lengths, ends, line.steps)
            doublings = np.log2(self._reached(base) / line.steps)
            if doublings[0] > 0:
                gained = ends[base.best] - score + lead
                with np.errstate(divide="ignore"):
                    slope = gained / np.maximum(doublings, 0.0)
            if base.oracle:
                oracle = self._ends(base.oracle, self._score, line.runs)
                lengths = ladders.lengths(base.oracle)
                share = score / ladders.end_at(lengths, oracle, line.steps)
        ratios = self._ratios(line)
        del ratios["reached"]
        return {
            "score": _estimate(score),
            "lead": _estimate(lead),
            "slope": _estimate(slope),
            **ratios,
            "oracle_share": _estimate(share),
        }

    def _held_out(self, line):
        """Scores of the other splits, beside those of the target's runs."""
        base, found = self._bases[line.level], {}
        for what in ("concept", "style"):
            splits = (f"{self._prefix}_{what}",)
            scores = self._ends([line], splits)[0]
            gain = np.array([np.nan])
            if base:
                best = [base.uniform[base.best]]
                gain = scores - self._ends(best, splits, line.runs)[0]
            found |= {f"{what}s": _estimate(scores)}
            found |= {f"{what}s_over_target": _estimate(gain)}
        return found

    def _target(self, level, base):
        """The costs of the target by uniform training and by mixing."""
        best = base.uniform[base.best]
        values = {
            "domain": _DOMAIN,
            "noise": level,
            "steps": best.steps,
            "score": _estimate(self._ends([best], self._score)[0]),
            "is_longest": base.best + 1 == len(base.uniform),
            "reached": _estimate(self._reached(base)),
            "mixture": None,
            "mixture_reached": None,
        }
        if base.mixture:
            values["mixture"] = base.mixture[0].method
            needed = self._target_steps(base.mixture, base)
            values["mixture_reached"] = _estimate(needed)
        return values

    def _target_score(self, base):
        return self._ends(base.uniform, self._score)[base.best]

    def _needed(self, ladder, target, seeds=None):
        ends = self._ends(ladder, self._score, seeds)
        return ladders.steps_to_end(ladders.lengths(ladder), ends, target)

    def _reached(self, base):
        """Steps at which uniform training first has the target's score."""
        return self._target_steps(base.uniform, base)

    def _target_steps(self, ladder, base):
        """Steps to the target by a baseline that may stop early."""
        full = self._needed(ladder, self._target_score(base))
        best = base.uniform[base.best]
        usual = np.mean([run.score(_VALIDATION) for run in best.runs.values()])
        ends = {s: run.score(_VALIDATION) for s, run in best.runs.items()}
        early = [
            np.mean(
                [
                    targets.steps_to(
                        run.steps,
                        run.curve(_VALIDATION),
                        ends.get(run.row.seed, usual),
                    )
                    for run in line.runs.values()
                ]
            )
            for line in ladder
        ]
        return np.minimum(full, min(early))

    def _ratios(self, line, end=None):
        """Ratios to the target by full schedules.

        Args:
            line: `ladders.Line`.
            end: the line whose end is the target; None is the target's own.
        """
        base = self._bases[line.level]
        if not base:
            return _no_ratios() | {
                "reached": None,
                "is_bound": False,
                "mixture_ratio": _nothing("examples", "all"),
            }
        end = end or base.uniform[base.best]
        target = self._ends([end], self._score, line.runs)[0]
        ladder = [
            one
            for one in self.lines
            if (one.level, one.method) == (line.level, line.method)
            and one.steps <= line.steps
        ]
        ladder.sort(key=lambda one: one.steps)
        ours = self._needed(ladder, target, line.runs)
        spent = {
            kind: np.where(
                np.isinf(ours),
                np.inf,
                np.interp(
                    ours,
                    ladders.lengths(ladder),
                    [self._bill(one, kind, line.runs) for one in ladder],
                ),
            )
            for kind in targets.KINDS
        }
        uniform = self._needed(base.uniform, target, line.runs)
        found = self._over(base.uniform[base.best], uniform, ours, spent)
        mixed = _nothing("examples", "all")
        if base.mixture:
            needed = self._needed(base.mixture, target, line.runs)
            ratios = self._over(base.mixture[-1], needed, ours, spent)
            mixed = {
                "examples": ratios["examples_ratio"],
                "all": ratios["flops_ratio"]["all"],
            }
        shortest = ladder[0].steps
        return found | {
            "reached": float(ours[0]) if np.isfinite(ours[0]) else None,
            "is_bound": line.method != UNIFORM and bool(ours[0] <= shortest),
            "mixture_ratio": mixed,
        }

    def _uniform_ends(self, line):
        """Ratios to the end of each uniform line, and to the mixture's."""
        base = self._bases[line.level]
        mixture = _nothing("examples", "all")
        if not base:
            unknown = {"is_bound": False, "reached": None, "ends": []}
            return unknown | {"mixture": mixture}
        if base.mixture:
            end = base.mixture[self._best(base.mixture)]
            mixture = self._ratios(line, end)["mixture_ratio"]
        ends = [
            {
                "steps": other.steps,
                "seeds": len({*line.runs} & {*other.runs}),
                "examples_ratio": found["examples_ratio"],
                "all": found["flops_ratio"]["all"],
                "is_bound": found["is_bound"],
                "reached": found["reached"],
            }
            for other in base.uniform
            for found in [self._ratios(line, other)]
        ]
        own = {name: ends[base.best][name] for name in ("is_bound", "reached")}
        return own | {"ends": ends, "mixture": mixture}

    def _over(self, other, theirs, ours, spent):
        """Ratios of the costs of `theirs` steps of a line without a reference.

        Args:
            other: the line.
            theirs: steps.
            ours: steps, of as many examples.
            spent: FLOPs by kind.
        """
        a_step = self._bill(other, "all") / other.steps
        return {
            "examples_ratio": _ratio(theirs, ours),
            "flops_ratio": {
                kind: _ratio(a_step * theirs, spent[kind])
                for kind in targets.KINDS
            },
        }

    def _equal_score(self, line):
        base = self._bases[line.level]
        if not base:
            return _no_ratios()
        ends = self._ends(base.uniform, self._score, line.runs)
        score = self._ends([line], self._score)[0]
        score = np.minimum(score, ends[base.best])
        needed = ladders.steps_to_end(
            ladders.lengths(base.uniform), ends, score
        )
        # Below the shortest schedule the cost is not known: 0 is the least.
        needed = np.where(score < ends[0], 0.0, needed)
        if score[0] < ends[0, 0]:
            return _no_ratios()
        spent = {kind: self._bill(line, kind) for kind in targets.KINDS}
        best = base.uniform[base.best]
        return self._over(best, needed, line.steps, spent)

    def _bills(self, line):
        """What uniform training does with the bill of a line."""
        base = self._bases[line.level]
        if not base:
            return _nothing(
                *("uniform_steps", "uniform_score", "over_uniform"),
                *("over_uniform_given_reference", "over_target"),
            )
        best = base.uniform[base.best]
        a_step = self._bill(best, "all") / best.steps
        steps = {kind: self._bill(line, kind) / a_step for kind in self._costs}
        lengths = ladders.lengths(base.uniform)
        ends = self._ends(base.uniform, self._score, line.runs)
        score = self._ends([line], self._score)[0]
        highest = np.maximum.accumulate(ends)
        # Unknown beyond the longest run.
        uniform, beside_reference = (
            ladders.end_at(lengths, highest, bill)
            for bill in (steps["all"], steps[_WITHOUT])
        )
        return {
            "uniform_steps": {kind: round(steps[kind]) for kind in steps},
            "uniform_score": _estimate(uniform),
            "over_uniform": _estimate(score / uniform),
            "over_uniform_given_reference": _estimate(score / beside_reference),
            "over_target": _estimate(score / ends[base.best]),
        }

    def _first_crossing(self, line):
        base = self._bases[line.level]
        if not base:
            return _no_ratios()
        theirs = base.uniform[base.best].runs
        seeds = sorted({*line.runs} & {*theirs})
        if not seeds:
            return _no_ratios()
        sides = [[runs[seed] for seed in seeds] for runs in (line.runs, theirs)]

        def ratio(spent):
            found = targets.ratio(spent, _VALIDATION, *sides)
            if not found.value:
                return None
            return _numbers(found.value, found.low, found.high)

        return {
            "examples_ratio": ratio(targets.examples),
            "flops_ratio": {
                kind: ratio(spent) for kind, spent in self._spent.items()
            },
        }

    def _bill(self, line, kind, seeds=None):
        """Mean FLOPs of the full schedules of a line."""
        runs = ladders.of_seeds(line, seeds)
        spent = self._costs[kind]
        return np.mean([spent(run, run.row.steps) for run in runs])


def method_of(cell):
    """The method of a cell, web_jest_1400 or web30_jest_1400: jest."""
    return re.sub(r"^web\d*_|_\d{3,}$", "", cell)


def _ratio(theirs, ours):
    """Estimate of a ratio of costs; None where the target is missed."""
    theirs, ours = np.broadcast_arrays(theirs, ours)
    if not (np.isfinite(theirs[0]) and np.isfinite(ours[0])):
        return None
    # A resample in which only the method misses it counts as 0.
    there = np.isfinite(ours)
    ratios = np.zeros(ours.shape)
    np.divide(theirs, ours, out=ratios, where=there)
    return _estimate(ratios)


def _estimate(values):
    if not np.isfinite(values[0]):
        return None
    # Without interpolation, which infinite resamples do not bear.
    ends = np.percentile(values[1:], bootstrap.PERCENTILES, method="nearest")
    return _numbers(values[0], *ends)


def _numbers(mean, low, high):
    """An estimate as in summary.json; an infinite end is null."""
    numbers = {"mean": mean, "low": low, "high": high}
    return {
        name: float(f"{value:.5g}") if np.isfinite(value) else None
        for name, value in numbers.items()
    }


def _nothing(*names):
    return dict.fromkeys(names)


def _no_ratios():
    return {"examples_ratio": None, "flops_ratio": _nothing(*targets.KINDS)}


if __name__ == "__main__":
    main()

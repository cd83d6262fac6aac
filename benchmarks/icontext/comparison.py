"""Comparisons of runs: scores, differences, ratios to a target."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from benchmarks.icontext import bootstrap, matrix, results, targets

TEST = ("test_concept", "test_style")
# A longer uniform run, which may reach the score of the first sooner.
_LONGER = {"uniform": "uniform_10000"}
LEAST_SEEDS = 3  # for an interval that has their spread
_NORMAL_QUANTILE = 1.96  # of 95 %


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run."""

    row: NamedTuple  # its line of runs.csv
    steps: np.ndarray  # of each evaluation
    curves: dict[str, np.ndarray]  # scores at each evaluation, by split
    concepts: dict[str, bootstrap.Concepts]  # by split
    costs: dict[str, np.ndarray]  # FLOPs so far at each evaluation

    def curve(self, splits=TEST):
        """Mean score over splits, at each evaluation."""
        return np.mean([self.curves[split] for split in splits], axis=0)

    def score(self, splits=TEST):
        """The final score."""
        return self.curve(splits)[-1]

    @functools.cache  # noqa: B019 - runs live as long as the report
    def resampled(self, splits=TEST):
        """The final score, then its resamples."""
        return bootstrap.score([self.concepts[split] for split in splits])


class Comparison:
    """All runs of a folder, by cell.

    Args:
        tables: `results.Tables`.
        uniform: cell of the uniform run whose final score is the target.
    """

    def __init__(self, tables, uniform="uniform"):
        self.uniform = uniform
        self._cells = {}
        flops = [*results.COSTS, "flops_embedded"]
        runs = tables.runs.reindex(columns=tables.runs.columns.union(flops))
        runs = runs.fillna(dict.fromkeys(flops, 0))
        curves = dict(list(tables.curves.groupby(["cell", "seed"])))
        concepts = dict(
            list(tables.concepts.groupby(["cell", "seed"], observed=True))
        )
        for row in runs.itertuples(index=False):
            curve = curves[row.cell, row.seed].sort_values("step")
            known = ["cell", "seed", "step"]
            known += [*results.COSTS, *results.RENEWALS]
            by_split = curve.drop(columns=known, errors="ignore")
            parts = concepts[row.cell, row.seed].groupby("split", observed=True)
            run = Run(
                row,
                curve["step"].to_numpy(),
                {name: values.to_numpy() for name, values in by_split.items()},
                {
                    split: bootstrap.Concepts(
                        *part[list(bootstrap.Concepts._fields)]
                        .to_numpy(np.float64)
                        .T
                    )
                    for split, part in parts
                },
                {name: _costs(row, curve, name) for name in results.COSTS},
            )
            self._cells.setdefault(row.cell, {})[row.seed] = run

    def __contains__(self, cell):
        return cell in self._cells

    def of(self, cell):
        """Returns a cell's runs, one per seed."""
        by_seed = self._cells.get(cell, {})
        return [by_seed[seed] for seed in sorted(by_seed)]

    def score(self, cell, splits=TEST):
        """`Estimate` of a cell's final score; None if it was not run."""
        runs = self.of(cell)
        return bootstrap.estimate(_over_seeds(runs, splits)) if runs else None

    def difference(self, first, second, splits=TEST):
        """`Estimate` of one cell's score less another's, paired by seed.

        With fewer than three shared seeds the resamples lack the spread
        between seeds, and `spread` is added to the interval.

        Returns:
            None where no seed is shared.
        """
        sides = self._paired(first, second)
        shared = len(sides[0])
        if not shared:
            return None
        one, other = (_over_seeds(runs, splits) for runs in sides)
        value, low, high = bootstrap.estimate(one - other)
        if shared >= LEAST_SEEDS:
            return bootstrap.Estimate(value, low, high)
        ends = [
            np.mean([run.resampled(splits)[0] for run in self.of(cell)])
            for cell in (first, second)
        ]
        least = min(self.of(cell)[0].row.steps for cell in (first, second))
        spread = self.spread(splits, least)
        between = _NORMAL_QUANTILE * spread * np.hypot(*ends)
        between /= shared**0.5
        return bootstrap.Estimate(
            value,
            float(value - np.hypot(value - low, between)),
            float(value + np.hypot(high - value, between)),
        )

    def shared(self, first, second):
        """How many seeds two cells share."""
        return len(self._paired(first, second)[0])

    def spread(self, splits=TEST, steps=0):
        """Standard deviation between the seeds of a cell, over its mean.

        Pooled over the cells that have three seeds, without the effect that a
        seed has on all of them; 0 where no cell has three. Scores of shorter
        runs vary more, so cells of less than half as many steps are left out,
        if others are there.

        Args:
            splits: whose mean the score is.
            steps: of the run whose spread is wanted.
        """
        cells = [
            self.of(cell)
            for cell in self._cells
            if len(self._cells[cell]) >= LEAST_SEEDS
        ]
        long = [runs for runs in cells if 2 * runs[0].row.steps >= steps]
        ends = [
            np.array([run.resampled(splits)[0] for run in runs])
            for runs in long or cells
        ]
        if not ends:
            return 0.0
        relative = np.stack([one / one.mean() - 1 for one in ends])
        count, seeds = relative.shape
        if count > 1:
            relative -= relative.mean(axis=0)
        freedom = max(1, count - 1) * (seeds - 1)
        return float((np.sum(relative**2) / freedom) ** 0.5)

    def to_target(self, cells, spent, base=None):
        """Cost of uniform training over the cost of a method.

        Cells are a method at several lengths, of which the cheapest counts. If
        none reaches the target, the closest does.

        Args:
            cells: names.
            spent: `(run, steps) -> cost`.
            base: uniform cell whose final score, the mean of the tests, is
                the target.

        Returns:
            `targets.Ratio`; None where a length that could reach the target
            was not run.
        """
        base = base or self.uniform
        theirs = self._cells.get(base, {})
        longer = self._cells.get(_LONGER.get(base), {})
        if _LONGER.get(base) in cells or not {*longer} >= {*theirs}:
            longer = {}
        found = []
        for cell in cells:
            ours = self._cells.get(cell, {})
            seeds = sorted({*ours} & {*theirs})
            if seeds:
                sides = (
                    [by_seed[seed] for seed in seeds]
                    for by_seed in (ours, theirs, longer)
                    if by_seed
                )
                found.append(targets.ratio(spent, TEST, *sides))
        if not found:
            return None
        best = max(found, key=lambda one: (one.value, -one.all_steps))
        return best if best.value or len(found) == len(cells) else None

    def _paired(self, first, second):
        """Runs of both cells, seed by seed.

        A reference has one seed, which is compared with each of a learner's.
        """
        sides = [dict(self._cells.get(one, {})) for one in (first, second)]
        if sides[1] and matrix.find(second).recipe == "reference":
            (run, *_) = sides[1].values()
            sides[1] = dict.fromkeys(sides[0], run)
        seeds = sorted({*sides[0]} & {*sides[1]})
        return [[side[seed] for seed in seeds] for side in sides]


def _costs(row, curve, name):
    """FLOPs so far at each evaluation; in proportion where not recorded."""
    if name in curve and curve[name].notna().all():
        return curve[name].to_numpy(np.float64)
    return curve["step"].to_numpy() / row.steps * getattr(row, name)


def _over_seeds(runs, splits):
    return bootstrap.over_seeds(
        [run.resampled(splits) for run in runs], len(splits)
    )

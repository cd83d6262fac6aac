"""Scores, ratios to uniform training, and their intervals.

Everything is computed from the tables in a folder: `runs.csv` has a line for
each run, `pairs.csv` the score of each test pair, of the runs whose score gets
an interval, and `families.csv` the split and the family of each test pair.

- A *line* is a method at a length and a level of noise, with its seeds.
- An *interval* covers 95 % of resamples of the test's families and of the
  seeds: pairs of a family are alike, so they are drawn together. Runs are
  compared on the same resamples. One or two seeds get the usual spread between
  seeds: that of the cells with three and at least half of the steps.
- *Uniform training at a cost* is interpolated between the ends of full
  schedules, linearly in the logarithm of the steps.
- The *target* is uniform training's best end, at the length that validation
  chooses among those with the most seeds.
"""

import functools
import zlib
from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmarks.protocol.benchmark import GIVEN, OWN, regime_of

RESAMPLES = 2000
LEAST_SEEDS = 3  # for an interval that has their spread
UNIFORM = "uniform"
# Ways to count FLOPs. Training, scoring and embedding count in all of them; of
# the references' training nothing does, as in the paper or of a public model; a
# quarter, for four learners that share it; or all.
COSTS = ("paper", "shared", "all")
_SHARED = 4
# Columns that `Results` adds to those of runs.csv.
SCORE, VALIDATION = "score", "validation"
_SCALE = 10_000  # of the scores in pairs.csv
_PERCENTILES = (2.5, 97.5)
_SEED = 0


class Estimate(NamedTuple):
    """A value with its 95 % interval, whose ends may be infinite."""

    value: float
    low: float
    high: float


class Line(NamedTuple):
    """A method at a length and a level of noise.

    Attributes:
        noise: share of the pool.
        method: as in runs.csv.
        steps: its length.
        cell: as in runs.csv.
        seeds: those that were run, increasing.
    """

    noise: float
    method: str
    steps: int
    cell: str
    seeds: tuple[int, ...]


class Ratios(NamedTuple):
    """How many times less than uniform training a line spends.

    Attributes:
        examples: `Estimate`, as each of the others; None if the line misses the
            target.
        flops: by the names of `COSTS`.
        is_bound: whether the method's shortest length is at the target, so that
            the ratios are lower bounds.
    """

    examples: Estimate | None
    flops: dict[str, Estimate | None]
    is_bound: bool


@functools.lru_cache(maxsize=4)
def weights(count):
    """How often each of `count` families is drawn, [1 + RESAMPLES, count].

    The first row is the families as they are.
    """
    generator = np.random.default_rng([_SEED, 0])
    drawn = generator.multinomial(
        count, np.full(count, 1 / count), size=RESAMPLES
    )
    return np.concatenate([np.ones([1, count]), drawn])


def resample(scores, families):
    """The mean of the scores of pairs, then of resamples of their families.

    Args:
        scores: float [pairs].
        families: int [pairs], the family of each, from 0.

    Returns:
        float64 [1 + RESAMPLES].
    """
    sizes, sums = np.bincount(families), np.bincount(families, scores)
    drawn = weights(len(sizes))
    return drawn @ sums / (drawn @ sizes)


def over_seeds(scores):
    """The mean of runs, which are resampled as well, [1 + RESAMPLES].

    Args:
        scores: of `resample`, a row for each seed.
    """
    scores = np.stack(scores)
    generator = np.random.default_rng([_SEED, 1])
    drawn = generator.integers(0, len(scores), [RESAMPLES, len(scores)])
    places = 1 + np.arange(RESAMPLES)[:, None]
    resampled = scores[drawn, places].mean(axis=1)
    return np.append(scores[:, 0].mean(), resampled)


def estimate(values):
    """`Estimate` of a value followed by its resamples; None if not finite."""
    if not np.isfinite(values[0]):
        return None
    # Without interpolation, which infinite resamples do not bear.
    ends = np.percentile(values[1:], _PERCENTILES, method="nearest")
    return Estimate(*map(float, (values[0], *ends)))


def ratio(theirs, ours):
    """`Estimate` of a ratio of costs, arrays [1 + RESAMPLES].

    Costs are infinite where the target is missed. None if either side misses
    it; a resample in which only `ours` misses it counts as 0.
    """
    theirs, ours = np.broadcast_arrays(theirs, ours)
    if not (np.isfinite(theirs[0]) and np.isfinite(ours[0])):
        return None
    ratios = np.zeros(ours.shape)
    np.divide(theirs, ours, out=ratios, where=np.isfinite(ours))
    return estimate(ratios)


def end_at(lengths, ends, steps):
    """Ends of full schedules between those that were run.

    Args:
        lengths: steps [k], increasing.
        ends: scores [k, n].
        steps: number.

    Returns:
        Scores [n], linear in the logarithm of the steps; NaN beyond `lengths`.
    """
    if not lengths[0] <= steps <= lengths[-1]:
        return np.full(ends.shape[1], np.nan)
    if len(lengths) == 1:
        return ends[0]
    place = max(1, int(np.searchsorted(lengths, steps)))
    share = np.log(steps / lengths[place - 1])
    share /= np.log(lengths[place] / lengths[place - 1])
    return ends[place - 1] + share * (ends[place] - ends[place - 1])


def steps_to_end(lengths, ends, target):
    """Shortest full schedules whose ends, as of `end_at`, reach a target.

    Args:
        lengths: steps [k], increasing.
        ends: scores [k, n].
        target: scores [n].

    Returns:
        Steps [n], at least the first length; inf where none reaches it.
    """
    is_reached = ends >= target
    after = is_reached.argmax(axis=0)
    before, places = np.maximum(after - 1, 0), np.arange(ends.shape[1])
    low, high = ends[before, places], ends[after, places]
    rise = np.where(after > before, high - low, 1.0)
    share = np.where(after > before, (target - low) / rise, 0.0)
    doublings = np.log2(lengths[after] / lengths[before])
    found = lengths[before] * 2.0 ** (share * doublings)
    return np.where(is_reached.any(axis=0), found, np.inf)


class Results:
    """The runs of a folder that compare: of one regime and one learner.

    Args:
        benchmark: `benchmark.Benchmark`.
        folder: with runs.csv, pairs.csv and families.csv; the published one
            by default.
        regime: of the references, `benchmark.OWN` or `benchmark.GIVEN`.
        learner: the start of the names of its methods, such as "narrow".
        score: `SCORE`, or `VALIDATION`, which has no intervals.
        domain: the runs that a reference of this domain steers, and those
            without a reference, on the tests of the domain; all others if
            empty.

    Attributes:
        runs: DataFrame, by cell and seed, with the means over the tests and
            over the validation splits in the columns `SCORE` and `VALIDATION`.
        levels: of noise, increasing.
    """

    def __init__(
        self,
        benchmark,
        folder=None,
        regime=OWN,
        learner="",
        score=SCORE,
        domain="",
    ):
        self._benchmark, self._score = benchmark, score
        folder = folder or benchmark.published
        key = ["cell", "seed"]
        rows = pd.read_csv(folder / "runs.csv").set_index(key).sort_index()
        names = rows.index.get_level_values("cell")
        is_steered = names.str.startswith(benchmark.domain_prefixes)
        is_wanted = ~is_steered
        if domain:
            is_wanted &= rows["reference"].isna()
            is_wanted |= names.str.startswith(f"part_{domain}_")
        rows = rows[is_wanted & (names.map(regime_of) == regime)]
        if regime == GIVEN:
            start = f"{learner}_" if learner else ""
            is_own = rows["noise"].isna() | (
                rows["method"].str.startswith(start)
                if start
                else ~rows["method"].str.startswith(benchmark.learners)
            )
            rows = rows[is_own]
            rows["method"] = rows["method"].str.removeprefix(start)
        tests, validation = benchmark.of(domain)
        self.runs = rows.assign(
            **{
                SCORE: rows[[*tests]].mean(axis=1, skipna=False),
                VALIDATION: rows[[*validation]].mean(axis=1, skipna=False),
            }
        )
        pairs = pd.read_csv(folder / "pairs.csv").set_index(key)["scores"]
        self._pairs = pairs.to_dict()
        families = pd.read_csv(folder / "families.csv")
        self._is_tested = families["split"].isin(tests).to_numpy()
        families = families["family"][self._is_tested]
        self._families = pd.factorize(families)[0]
        self.levels = sorted(
            map(float, self._tested["noise"].dropna().unique())
        )

    @property
    def _tested(self):
        """The runs that the tests have seen."""
        return self.runs.dropna(subset=[SCORE])

    @functools.cached_property
    def lines(self):
        """`Line`s by level and method, each a list by length.

        A method without a pool has no noise: it stands at all levels.
        """
        found = {}
        for cell, rows in self._tested.groupby(level="cell"):
            first = rows.iloc[0]
            levels = [float(first["noise"])]
            if np.isnan(levels[0]):
                levels = self.levels
            for noise in levels:
                line = Line(
                    noise,
                    first["method"],
                    int(first["steps"]),
                    cell,
                    tuple(rows.index.get_level_values("seed")),
                )
                found.setdefault((noise, line.method), []).append(line)
        return {
            key: sorted(lines, key=lambda line: line.steps)
            for key, lines in found.items()
        }

    def ladder(self, method, noise, most=np.inf):
        """The lines of a method, shortest first, of at most so many steps."""
        lines = self.lines.get((noise, method), [])
        return [line for line in lines if line.steps <= most]

    def line(self, method, noise, steps=None):
        """A line of a method, the longest without `steps`; None if not run."""
        lines = self.ladder(method, noise)
        if steps:
            lines = [line for line in lines if line.steps == steps]
        return lines[-1] if lines else None

    def mean(self, line, column):
        """Mean of a column of runs.csv over the seeds of a line."""
        rows = [self.runs.loc[line.cell, seed] for seed in line.seeds]
        return float(np.mean([row[column] for row in rows]))

    @functools.cache  # noqa: B019 - lives as long as the report
    def _resampled(self, cell, seed):
        if self._score != SCORE:
            score = self.runs.loc[cell, seed][self._score]
            return np.full(1 + RESAMPLES, score)
        found = self._pairs.get((cell, seed))
        if found is None:
            raise ValueError(
                f"`pairs.csv` must have the scores of {cell!r}, seed {seed}, "
                "for an interval. Received: none"
            )
        scores = np.array(found.split(), np.float64) / _SCALE
        return resample(scores[self._is_tested], self._families)

    @functools.cache  # noqa: B019
    def spread(self, steps):
        """Standard deviation between the seeds of a cell, over its mean.

        Pooled over the cells that have three seeds and at least half of
        `steps`, without the effect that a seed has on all of them.
        """
        found = {}
        for cell, rows in self._tested.groupby(level="cell"):
            if len(rows) >= LEAST_SEEDS:
                found[cell] = rows["steps"].iloc[0], rows[SCORE].to_numpy()
        if not found:  # of no cell yet: the published runs'
            return Results(self._benchmark).spread(steps)
        long = [ends for length, ends in found.values() if 2 * length >= steps]
        ends = np.stack(long or [ends for _, ends in found.values()])
        relative = ends / ends.mean(axis=1, keepdims=True) - 1
        count, seeds = relative.shape
        if count > 1:
            relative -= relative.mean(axis=0)
        freedom = max(1, count - 1) * (seeds - 1)
        return float((np.sum(relative**2) / freedom) ** 0.5)

    def end(self, line, seeds=()):
        """The score of a line with its resamples, [1 + RESAMPLES].

        Args:
            line: `Line`.
            seeds: those wanted, if any of them was run; all without.
        """
        seeds = [seed for seed in line.seeds if seed in seeds] or line.seeds
        return self._end(line.cell, seeds)

    def _end(self, cell, seeds):
        scores = over_seeds([self._resampled(cell, seed) for seed in seeds])
        if len(seeds) < LEAST_SEEDS:
            # Draws of the cell's own, the same in each comparison.
            draws = np.random.default_rng(zlib.crc32(cell.encode()))
            steps = self.runs.loc[cell, seeds[0]]["steps"]
            spread = self.spread(steps) / len(seeds) ** 0.5
            spread *= draws.normal(size=RESAMPLES)
            scores[1:] *= np.maximum(1.0 + spread, 0.0)
        return scores

    def ends(self, ladder, seeds=()):
        """`end` of each line, [lines, 1 + RESAMPLES]."""
        return np.stack([self.end(line, seeds) for line in ladder])

    def difference(self, *names):
        """The score of a cell less another's.

        Returns:
            `Estimate` and the number of seeds, those that both have; if they
            share none, all of each count, and the number is the first's.
        """
        first, second = (self.runs.loc[name].index for name in names)
        shared = sorted({*first} & {*second})
        left, right = (
            self._end(name, shared or sorted(own))
            for name, own in zip(names, (first, second), strict=True)
        )
        return estimate(left - right), len(shared or first)

    def target(self, noise):
        """The line of uniform training that ends best on validation.

        Returns:
            None if uniform training was not run.
        """
        ladder = self.ladder(UNIFORM, noise)
        if not ladder:
            return None
        # A length with fewer seeds than others is no target yet.
        most = min(max(len(rung.seeds) for rung in ladder), LEAST_SEEDS)
        return max(
            (rung for rung in ladder if len(rung.seeds) >= most),
            key=lambda rung: self.mean(rung, VALIDATION),
        )

    def _needed(self, ladder, target, seeds=()):
        lengths = np.array([line.steps for line in ladder])
        return steps_to_end(lengths, self.ends(ladder, seeds), target)

    def to_target(self, line):
        """`Ratios` by full schedules of up to the line's length."""
        target = self.target(line.noise)
        if not target:
            return Ratios(None, dict.fromkeys(COSTS), False)
        end = self.end(target, line.seeds)
        ladder = self.ladder(line.method, line.noise, line.steps)
        ours = self._needed(ladder, end, line.seeds)
        lengths = [rung.steps for rung in ladder]
        uniform = self.ladder(UNIFORM, line.noise)
        theirs = self._needed(uniform, end, line.seeds)
        flops = {}
        for kind in COSTS:
            bills = [self.flops(rung, kind, line.seeds) for rung in ladder]
            spent = np.interp(ours, lengths, bills)
            spent = np.where(np.isinf(ours), np.inf, spent)
            flops[kind] = ratio(self._a_step(target) * theirs, spent)
        is_bound = line.method != UNIFORM and bool(ours[0] <= lengths[0])
        return Ratios(ratio(theirs, ours), flops, is_bound)

    def by_seed(self, line, cost="paper", steps=None):
        """Ratios of examples and of FLOPs to the target, of each seed alone.

        Args:
            line: `Line`.
            cost: of `COSTS`.
            steps: length of the uniform training that sets the target; None
                for that of `target`.

        Returns:
            `{seed: (examples, FLOPs)}` of the seeds that uniform training has,
            too; 0.0 where the method misses its seed's target.
        """
        target = self.line(UNIFORM, line.noise, steps) if steps else None
        target = target or self.target(line.noise)
        if not target:
            return {}
        ladder = self.ladder(line.method, line.noise, line.steps)
        uniform = self.ladder(UNIFORM, line.noise, target.steps)
        lengths = [rung.steps for rung in ladder]
        found = {}
        for seed in sorted({*line.seeds} & {*target.seeds}):
            end = self.end(target, [seed])
            (ours, *_), (theirs, *_) = (
                self._needed(rungs, end, [seed]) for rungs in (ladder, uniform)
            )
            bills = [self.flops(rung, cost, [seed]) for rung in ladder]
            spent = np.interp(ours, lengths, bills)
            missed = np.isinf(ours)
            found[seed] = (
                0.0 if missed else float(theirs / ours),
                0.0 if missed else float(self._a_step(target) * theirs / spent),
            )
        return found

    def to_own_end(self, line, costs=("all",)):
        """Ratios of examples, then of FLOPs, to the line's own last score.

        The target takes its place where that is lower.

        Args:
            line: `Line`.
            costs: of `COSTS`, a ratio for each.

        Returns:
            `Estimate`s; Nones below uniform training's shortest schedule, or
            without one.
        """
        target = self.target(line.noise)
        if not target:
            return [None] * (1 + len(costs))
        ladder = self.ladder(UNIFORM, line.noise)
        ends = self.ends(ladder, line.seeds)
        score = np.minimum(
            self.end(line, line.seeds), self.end(target, line.seeds)
        )
        if score[0] < ends[0, 0]:
            return [None] * (1 + len(costs))
        lengths = np.array([rung.steps for rung in ladder])
        needed = steps_to_end(lengths, ends, score)
        # Below the shortest schedule the cost is not known: 0 is the least.
        needed = np.where(score < ends[0], 0.0, needed)
        spent = [self.flops(line, cost) for cost in costs]
        return [
            ratio(needed, np.float64(line.steps)),
            *(ratio(self._a_step(target) * needed, flops) for flops in spent),
        ]

    def over_uniform(self, line, cost="all"):
        """`Estimate` of the score over uniform training's best at that cost.

        Returns:
            None where uniform training was not run for so long.
        """
        ladder = self.ladder(UNIFORM, line.noise)
        if not ladder:
            return None
        highest = np.maximum.accumulate(self.ends(ladder, line.seeds))
        lengths = [rung.steps for rung in ladder]
        best = end_at(lengths, highest, self.bill(line, cost))
        return estimate(self.end(line, line.seeds) / best)

    def bill(self, line, cost="all"):
        """FLOPs of a line in steps of uniform training."""
        return self.flops(line, cost) / self._a_step(self.target(line.noise))

    def _a_step(self, line):
        return self.flops(line, "all") / line.steps

    def flops(self, line, cost, seeds=()):
        """Mean FLOPs of the runs of a line, counted as any of `COSTS`."""
        seeds = [seed for seed in line.seeds if seed in seeds] or line.seeds
        spent = [self._flops(line.cell, seed, cost) for seed in seeds]
        return float(np.mean(spent))

    def _flops(self, cell, seed, cost):
        counts = ["flops_step", "flops_stored"]
        counts += ["flops_renewals", "flops_embedded"]
        own = self.runs.loc[cell, seed].fillna(0)[counts].sum()
        references = sum(
            self._flops(name, self.runs.loc[name].index[0], "paper")
            for name in self._references(cell)
        )
        shares = {"paper": 0, "shared": 1 / _SHARED, "all": 1}
        return own + shares[cost] * references

    def _references(self, cell):
        """The cells of all models that chose for a run, or for those models."""
        found, left = [], [cell]
        while left:
            row = self.runs.loc[left.pop()].iloc[0]
            names = str(row["reference"]).split() if row["reference"] else []
            new = [name for name in names if name not in (*found, "nan")]
            found += new
            left += new
        return found

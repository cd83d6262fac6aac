"""Scores, ratios to uniform training, and their intervals.

Everything is computed from the tables in a folder: `runs.csv` has a line for
each run, `pairs.csv` the score of each test pair, of the runs whose score gets
an interval, and `families.csv` the split and the family of each test pair.
Scores are those of `runs.csv`; the pairs' are rounded, and make the intervals.

- A *line* is a method at a length and a level of noise, with its seeds.
- A length without pairs has the relative resamples of its method's longest.
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
_COUNTS = ["flops_step", "flops_stored", "flops_renewals", "flops_embedded"]
# Columns that `Results` adds to those of runs.csv.
SCORE, VALIDATION, _FLOPS = "score", "validation", "flops"
PAIR_SCALE = 1000  # of the scores in pairs.csv
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
    """The shortest full schedule whose end reaches a target.

    Args:
        lengths: steps, increasing.
        ends: the score after each.
        target: score.

    Returns:
        Steps between the lengths, as of `end_at`, and at least the first; inf
        if no end reaches the target.
    """
    reached = np.flatnonzero(np.asarray(ends) >= target)
    if not reached.size:
        return np.inf
    after = reached[0]
    if not after:
        return float(lengths[0])
    before = after - 1
    share = (target - ends[before]) / (ends[after] - ends[before])
    return lengths[before] * (lengths[after] / lengths[before]) ** share


class Results:
    """The runs of a folder that compare: of one regime and one learner.

    Args:
        benchmark: `benchmark.Benchmark`.
        folder: with runs.csv, pairs.csv and families.csv; the published one
            by default.
        regime: of the references, `benchmark.OWN` or `benchmark.GIVEN`.
        learner: the start of the names of its methods, such as "narrow".
        domain: on its tests, the runs that its reference steers, and of those
            without a reference the methods that it does not steer; all other
            runs if empty.

    Attributes:
        folder: of the tables.
        runs: DataFrame, by cell and seed, with the means over the tests and
            over the validation splits in the columns `SCORE` and `VALIDATION`.
        levels: of noise, increasing.
    """

    def __init__(
        self, benchmark, folder=None, regime=OWN, learner="", domain=""
    ):
        self._of = functools.partial(
            Results, benchmark, regime=regime, learner=learner, domain=domain
        )
        self._is_published = folder in (None, benchmark.published)
        self.folder = folder = folder or benchmark.published
        key = ["cell", "seed"]
        rows = pd.read_csv(folder / "runs.csv").set_index(key).sort_index()
        names = rows.index.get_level_values("cell")
        is_steered = names.str.startswith(benchmark.domain_prefixes)
        is_wanted = ~is_steered
        if domain:
            is_own = names.str.startswith(f"part_{domain}_")
            is_wanted &= rows["reference"].isna()
            steered = {cell.method for cell in benchmark.cells if cell.domain}
            is_wanted &= ~rows["method"].isin(steered)
            is_wanted |= is_own
        rows = rows[is_wanted & (names.map(regime_of) == regime)]
        if regime == GIVEN:
            start = f"{learner}_" if learner else ""
            is_learner = rows["noise"].isna() | (
                rows["method"].str.startswith(start)
                if start
                else ~rows["method"].str.startswith(benchmark.learners)
            )
            rows = rows[is_learner]
            rows["method"] = rows["method"].str.removeprefix(start)
        tests, validation = benchmark.of(domain)
        self.runs = rows.assign(
            **{
                SCORE: rows[[*tests]].mean(axis=1, skipna=False),
                VALIDATION: rows[[*validation]].mean(axis=1, skipna=False),
                _FLOPS: rows.reindex(columns=_COUNTS).sum(axis=1),
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
        by_seed = self.runs[column][line.cell]
        return float(np.mean([by_seed[seed] for seed in line.seeds]))

    @functools.cache  # noqa: B019 - lives as long as the report
    def _resampled(self, cell, seed):
        found = self._pairs.get((cell, seed))
        if found is None and self._longer(cell, seed):
            longer = self._longer(cell, seed)
            share = self._score(cell, seed) / self._score(longer, seed)
            return share * self._resampled(longer, seed)
        if found is None:
            raise ValueError(
                f"`pairs.csv` must have the scores of {cell!r}, seed {seed}, "
                "for an interval. Received: none"
            )
        scores = np.array(found.split(), np.float64) / PAIR_SCALE
        scores = resample(scores[self._is_tested], self._families)
        missing = self._score(cell, seed) - scores[0]
        if abs(missing) > 1 / PAIR_SCALE:
            raise ValueError(
                f"`pairs.csv` must have the scores of {cell!r}, seed {seed}, "
                f"x {PAIR_SCALE:,}, with the mean of `runs.csv`, "
                f"{PAIR_SCALE * self._score(cell, seed):.1f}. Received: a mean "
                f"of {PAIR_SCALE * scores[0]:.1f}"
            )
        return scores + missing

    def _longer(self, cell, seed):
        """The cell of the same method that has pairs, with most steps."""
        row = self.runs.loc[cell, seed]
        noise = self.levels[0] if np.isnan(row["noise"]) else row["noise"]
        ladder = self.ladder(row["method"], noise)
        cells = [rung.cell for rung in ladder if rung.steps > row["steps"]]
        return next((x for x in cells[::-1] if (x, seed) in self._pairs), None)

    def _score(self, cell, seed):
        return float(self.runs.at[(cell, seed), SCORE])

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
        if not found:  # of no cell yet: the published runs', if any
            return 0.0 if self._is_published else self._of().spread(steps)
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

    def is_bound(self, line):
        """Whether a method's shortest length ends at the target or above.

        Its ratios are then lower bounds.
        """
        target = self.target(line.noise)
        if line.method == UNIFORM or not target:
            return False
        shortest = self.ladder(line.method, line.noise)[0]
        ends = (self.mean(each, SCORE) for each in (shortest, target))
        return next(ends) >= next(ends)

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
        target = self.target(line.noise)
        if steps:
            target = self.line(UNIFORM, line.noise, steps)
        if not target:
            return {}
        ladder = self.ladder(line.method, line.noise, line.steps)
        uniform = self.ladder(UNIFORM, line.noise, target.steps)
        lengths = [rung.steps for rung in ladder]
        found = {}
        for seed in sorted({*line.seeds} & {*target.seeds}):
            end = self._of_seed(target, seed)
            ours, theirs = (
                steps_to_end(
                    [rung.steps for rung in rungs],
                    [self._of_seed(rung, seed) for rung in rungs],
                    end,
                )
                for rungs in (ladder, uniform)
            )
            bills = [self.flops(rung, cost, [seed]) for rung in ladder]
            spent = np.interp(ours, lengths, bills)
            found[seed] = (
                (0.0, 0.0)
                if np.isinf(ours)
                else (
                    float(theirs / ours),
                    float(self._a_step(target) * theirs / spent),
                )
            )
        return found

    def _of_seed(self, line, seed):
        """The score of a line with a seed, its mean without this seed."""
        if seed in line.seeds:
            return self._score(line.cell, seed)
        return self.mean(line, SCORE)

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
        own = self.runs.at[(cell, seed), _FLOPS]
        share = {"paper": 0, "shared": 1 / _SHARED, "all": 1}[cost]
        names = self._references(cell) if share else ()
        return own + share * sum(
            self._flops(name, self.runs.loc[name].index[0], "paper")
            for name in names
        )

    @functools.cache  # noqa: B019
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

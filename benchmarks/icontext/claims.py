"""The paper's claims, and what the results say of each.

A claim is computed from results alone. Where a result that it needs is not
there, it is "not run yet"; nothing here is typed in after a run but `WHY`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from benchmarks.icontext import bootstrap, matrix

NOT_RUN = "not run yet"
MISSED = "target not reached"
_LEAST_SEEDS = 3  # for an interval of their spread
_NORMAL_QUANTILE = 1.96  # of 95 %
_MARGIN = 0.01  # of MRR, a point, that "no worse" may lose
OURS = "not in the paper"
HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"

# What a diagnosis found, by claim and the verdict that it explains; shown in
# the table's last column.
WHY: dict[tuple[str, str], str] = {
    ("iterations", HOLDS): "less than the paper: known concepts come soon, "
    "held-out ones take longer; higher filter ratios, of which a step teaches "
    "more, were not run so long",
    ("iterations_longer", OPEN): "in some resamples it stays below; held-out "
    "concepts alone it does not come to",
    ("compute_longer", OPEN): "as to the nearer end",
    ("joint", HOLDS): "of 16 chunks each is drawn given those before it; one "
    "chunk is what independent selection has",
    ("ratio", HOLDS): "per step; at equal compute no gain is seen at any of "
    "these, by one seed each",
    ("equal", HOLDS): "in as many steps, without what the scoring costs; after "
    "5,000 of them held-out concepts alone do not decide",
    ("static_joint", OPEN): "no difference is seen, and a choice made once "
    "costs no pass in the run",
    ("criterion", OPEN): "no difference is seen at any ratio, and "
    "easy-reference spends no pass of the learner on scores",
    ("hard", HOLDS): "with half of the captions moved, hard-learner chooses "
    "the moved as often as not, and in the end more often",
    ("chunks", HOLDS): "two are as good, by one seed",
    ("coarse", FAILS): "half of its training is on 16 pixels as well; of "
    "coarse scores alone one seed does not decide (the cell flexi_scoring)",
    ("compute", OPEN): "a step of JEST has the passes of 2.7 uniform ones; of "
    "2.3, as a table of the paper counts, if passes that score the chosen "
    "served for training, too",
    ("flexi", OPEN): "it ends about where uniform training does; one seed of "
    "three never comes to its target",
    ("equal_compute", OPEN): "a step of JEST has the passes of 2.7 uniform "
    "ones, so that 5,000 have more than 10,000 uniform ones; it is ahead on "
    "known concepts, and not on held-out ones",
    ("teacher", HOLDS): "most of it on held-out concepts; uniform training "
    "for 10,000 steps ends about as far above; after 2,500 steps JEST is above "
    "on held-out concepts and below in style",
    ("static", FAILS): "the fifth was cut by a reference of the curated set "
    "alone, and JEST scored by one of that and the pool",
    ("steers", HOLDS): "the tests are emoji art, as the curated set is and a "
    "fiftieth of the pool, and the reference of the pool is a weak one",
    ("best", HOLDS): "the reference ends above the target, and distillation "
    "hands over what it knows",
    ("best_compute", HOLDS): "no pass is spent on scores, and what stage 0 "
    "takes is a few per cent; the reference is charged in the table of "
    "methods, not here",
    ("stage_0", HOLDS): "it draws from 25 times what it trains on, where JEST "
    "draws from five times",
    ("stage_0_compute", HOLDS): "no pass is spent on scores",
    ("longer", HOLDS): "by known concepts in a style that is held out; on "
    "held-out concepts it ends below",
    ("same_data", OPEN): "who may train on the curated set has in as many "
    "steps what choice and distillation give, but for held-out concepts; and "
    "needs no reference",
    ("fade", HOLDS): "on both splits; how much of it the fading gives, one "
    "seed does not decide",
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """One row of the table.

    Attributes:
        name: in the keys of `WHY`.
        text: what the paper says.
        paper: its number.
        measure: `Runs` and splits -> (ours, seeds, verdict), or None where
            runs are missing.
    """

    name: str
    text: str
    paper: str
    measure: Callable


class Runs:
    """Rows of results, by cell.

    Args:
        rows: of `results.read`, of a cell's one settings; of several runs of
            a seed the first counts.
        queries: `{key: row}` of the file of queries.
        uniform: cell of the long uniform run, whose end is the target.
    """

    def __init__(self, rows, queries, uniform="uniform"):
        self.queries = queries
        self.uniform = uniform
        self._cells = {}
        self._again = {}
        for row in rows:
            by_seed = self._cells.setdefault(row["cell"], {})
            first = by_seed.setdefault(row["seed"], row)
            if row is not first:
                key = row["cell"], row["seed"]
                self._again.setdefault(key, []).append(row)

    def __contains__(self, cell):
        return cell in self._cells

    def of(self, cell):
        """A cell's rows, one a seed."""
        by_seed = self._cells.get(cell, {})
        return [by_seed[seed] for seed in sorted(by_seed)]

    def seeds(self, cell):
        """The seeds that a cell has results of."""
        return {*self._cells.get(cell, {})}

    @property
    def again(self):
        """Pairs (first, again) of rows of equal cells, settings and seeds."""
        return [
            (self._cells[cell][seed], row)
            for (cell, seed), rows in self._again.items()
            for row in rows
        ]

    @property
    def cells(self):
        """Names of the cells that have results."""
        return list(self._cells)

    def difference(self, first, second, splits=bootstrap.SPLITS):
        """Of two cells, the first less the second; None without shared seeds.

        Where fewer than three seeds are shared the spread between seeds is not
        in the resamples, and is added to the interval, see `spread`.

        Returns:
            `bootstrap.Estimate`.
        """
        rows = self._beside(first, second)
        shared = len(rows[0])
        if not shared:
            return None
        value, low, high = bootstrap.difference(*rows, self.queries, splits)
        if shared >= _LEAST_SEEDS:
            return bootstrap.Estimate(value, low, high)
        ends = [np.mean(self._ends(one, splits)) for one in (first, second)]
        between = self.spread(splits) * np.hypot(*ends) / shared**0.5
        between *= _NORMAL_QUANTILE
        return bootstrap.Estimate(
            value,
            float(value - np.hypot(value - low, between)),
            float(value + np.hypot(high - value, between)),
        )

    def shared(self, first, second):
        """How many seeds a difference of two cells is of."""
        return len(self._beside(first, second)[0])

    def _beside(self, first, second):
        """Rows of both, seed by seed.

        References have one seed, which stands beside each of a learner's.
        """
        sides = [self._cells.get(one, {}) for one in (first, second)]
        if any(row.get("recipe") == "reference" for row in sides[1].values()):
            (row, *_) = sides[1].values()
            sides[1] = {seed: row | {"seed": seed} for seed in sides[0]}
        seeds = sorted({*sides[0]} & {*sides[1]})
        return [[side[seed] for seed in seeds] for side in sides]

    def validation(self, cell):
        """Mean of the main measure on `val_concept`, over a cell's seeds."""
        ends = [
            bootstrap.curve(run, ("val_concept",))[1][-1]
            for run in self.of(cell)
        ]
        return float(np.mean(ends))

    def spread(self, splits=bootstrap.SPLITS):
        """Standard deviation between the seeds of a cell, over its mean.

        Of the cells that have all three, and without what a seed does to all
        of them alike, as runs are compared within their seed. 0 where no cell
        has three.
        """
        ends = [
            self._ends(cell, splits)
            for cell in self.cells
            if len(self.seeds(cell)) >= _LEAST_SEEDS
        ]
        if not ends:
            return 0.0
        relative = np.stack([one / one.mean() - 1 for one in ends])
        count, seeds = relative.shape
        if count > 1:
            relative -= relative.mean(axis=0)
        freedom = max(1, count - 1) * (seeds - 1)
        return float((np.sum(relative**2) / freedom) ** 0.5)

    def _ends(self, cell, splits):
        return np.array(
            [bootstrap.curve(run, splits)[1][-1] for run in self.of(cell)]
        )

    def to_target(
        self,
        cells,
        spent,
        splits=bootstrap.SPLITS,
        base=None,
        seeds=matrix.SEEDS,
    ):
        """What uniform training took over what a method did.

        Of several cells, which are the method at several lengths, the one
        counts that spends least over all of its seeds; if none comes to the
        target, the one that tells most. So it is with uniform training, of
        which a longer run is there sooner than the one whose end is the target:
        it counts where it has all seeds, and is not what is held against it.

        Args:
            cells: names.
            spent: `(run, steps) -> number or None`.
            splits: whose mean the target is.
            base: cell of the uniform run whose end is the target, if not the
                long one.
            seeds: those that count.

        Returns:
            `bootstrap.Ratio`; None where nothing can be compared, or a length
            that is missing may come to the target.
        """
        base = base or self.uniform
        longs = {run["seed"]: run for run in self.of(base)}
        longer = UNIFORM[UNIFORM.index(base) + 1 :] if base in UNIFORM else ()
        longer = [
            {run["seed"]: run for run in self.of(cell)}
            for cell in longer
            if cell not in cells and self.seeds(cell) >= {*longs}
        ]
        found = []
        for cell in cells:
            pairs = [
                (run, longs[run["seed"]])
                for run in self.of(cell)
                if run["seed"] in longs and run["seed"] in seeds
            ]
            pairs = [
                (run, long)
                for run, long in pairs
                if bootstrap.comparable(spent, run, long)
                and None
                not in (spent(run, run["steps"]), spent(long, long["steps"]))
            ]
            if pairs:
                ours, theirs = zip(*pairs, strict=True)
                found.append(
                    bootstrap.ratio(
                        ours,
                        theirs,
                        self.queries,
                        spent,
                        splits,
                        [[by[one["seed"]] for one in ours] for by in longer],
                    )
                )
        if not found:
            return None
        best = max(found, key=lambda one: (one.value, -one.bound))
        # A length that can't be compared, as another processor timed it, may
        # come to the target as well as one that has not been run.
        is_whole = len(found) == len(cells)
        return best if best.value or is_whole else None


def table(runs):
    """The rows (claim, paper, ours, by split..., seeds, verdict, why).

    The verdict is of both splits together.
    """
    rows = []
    for claim in CLAIMS:
        missing = NOT_RUN, "", NOT_RUN
        ours, seeds, found = claim.measure(runs, bootstrap.SPLITS) or missing
        by_split = [
            (claim.measure(runs, (split,)) or missing)[0]
            for split in bootstrap.SPLITS
        ]
        why = WHY.get((claim.name, found), "")
        if found != NOT_RUN and seeds < _LEAST_SEEDS:
            found += f", by {of_seeds(seeds)}"
        rows.append(
            (claim.text, claim.paper, ours, *by_split, str(seeds), found, why)
        )
    return rows


def of_seeds(count):
    """How many seeds, in words."""
    return f"{count} seed{'s' if count > 1 else ''}"


def points(estimate):
    """An `Estimate` of a difference in points of 100."""
    value, low, high = (100 * number for number in estimate)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def interval(estimate):
    """An `Estimate` of a measure, times 100."""
    value, low, high = (100 * number for number in estimate)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def verdict(estimate):
    """What an interval says of "more than zero"."""
    if estimate.low > 0:
        return HOLDS
    return FAILS if estimate.high < 0 else OPEN


def ratio(found):
    """A `bootstrap.Ratio` in words."""
    if not found.value:
        return (
            MISSED
            if found.missed == found.seeds
            else f"{MISSED} by {found.missed} of {found.seeds} seeds"
        )
    low = f"{found.low:.1f}" if found.low else "missed"
    return f"{found.value:.1f}x [{low}, {found.high:.1f}]"


def _better(first, second):
    return _each((first, second))


def _no_worse(first, second):
    def measure(runs, splits=bootstrap.SPLITS):
        found = runs.difference(first, second, splits)
        if found is None:
            return None
        seeds = runs.shared(first, second)
        if found.low > -_MARGIN:
            return points(found), seeds, HOLDS
        return points(found), seeds, FAILS if found.high < 0 else OPEN

    return measure


def _each(*pairs):
    """Several differences, all of which must be above zero."""

    def measure(runs, splits=bootstrap.SPLITS):
        found = [runs.difference(*pair, splits) for pair in pairs]
        if None in found:
            return None
        verdicts = {verdict(one) for one in found}
        joined = (
            HOLDS
            if verdicts == {HOLDS}
            else FAILS
            if FAILS in verdicts
            else OPEN
        )
        seeds = min(runs.shared(a, b) for a, b in pairs)
        return "; ".join(map(points, found)), seeds, joined

    return measure


def _cheaper(cells, spent, base=None):
    """That a method, cells or what finds them among runs, spends less.

    It is held against the cell `base`, or the long uniform run.
    """

    def measure(runs, splits=bootstrap.SPLITS):
        of_method = cells(runs) if callable(cells) else cells
        found = runs.to_target(of_method, spent, splits, base)
        if found is None:
            return None
        # A run that ends below the target says nothing of a longer one, which
        # may be there sooner; and of seeds only other seeds can tell.
        text = ratio(found)
        if found.seeds < _LEAST_SEEDS:
            return text, found.seeds, OPEN
        if found.low > 1:
            return text, found.seeds, HOLDS
        is_dearer = found.value and found.high < 1
        return text, found.seeds, FAILS if is_dearer else OPEN

    return measure


def _cheaper_than(cells, others, spent):
    """That one method is cheaper, to the target, than another is."""

    def measure(runs, splits=bootstrap.SPLITS):
        first, second = (
            runs.to_target(one, spent, splits) for one in (cells, others)
        )
        if first is None or second is None:
            return None
        text = f"{ratio(first)}, and JEST {ratio(second)}"
        seeds = min(first.seeds, second.seeds)
        if seeds < _LEAST_SEEDS:
            return text, seeds, OPEN
        if first.low > second.high:
            return text, seeds, HOLDS
        return text, seeds, FAILS if first.high < second.low else OPEN

    return measure


def _steps(run, steps):
    return steps


# Uniform runs whose ends are targets, and longer ones that may be there sooner;
# and that which is twice as long as the first.
UNIFORM = ("uniform", "uniform_10000")
LONGER = UNIFORM[1]
JEST_LENGTHS = ("jest_750", "jest_2500", "jest_5000")
FLEXI_LENGTHS = ("flexi", "flexi_2500")
CASCADES = ("cascade_1500",)
BEST_PLAIN = ("best", "best_200")
# What the best is chosen of: all that are as long, in three seeds, and are
# scored for by a reference to which the validation's concepts are held out.
BEST_OF = ("best", "best_by_filtered", "best_by_wide")
STAGE_0 = ("best_plain", "stage_0_1500", "stage_0_3000")


def best(runs):
    """The best by validation, the only one of it: `(cell,)`, or `()`."""
    there = [cell for cell in BEST_OF if cell in runs]
    return tuple(sorted(there, key=runs.validation)[-1:])


CLAIMS = (
    Claim(
        "iterations",
        "JEST reaches the uniform learner's end in fewer iterations",
        "up to 13x",
        _cheaper(JEST_LENGTHS, _steps),
    ),
    Claim(
        "compute",
        "JEST needs less compute to reach it, scoring included (forward "
        "passes)",
        "about 4x",
        _cheaper(JEST_LENGTHS, bootstrap.passes),
    ),
    Claim(
        "iterations_longer",
        "JEST reaches the end of uniform training for 10,000 steps in fewer "
        "iterations",
        "up to 13x",
        _cheaper(JEST_LENGTHS, _steps, LONGER),
    ),
    Claim(
        "compute_longer",
        "JEST needs less compute to reach that end (forward passes)",
        "about 4x",
        _cheaper(JEST_LENGTHS, bootstrap.passes, LONGER),
    ),
    Claim(
        "flexi",
        "Flexi-JEST needs less still (FLOPs of the graph)",
        "up to 10x",
        _cheaper_than(FLEXI_LENGTHS, JEST_LENGTHS, bootstrap.flops),
    ),
    Claim(
        "coarse",
        "Scoring coarsely loses little: Flexi-JEST minus JEST",
        "no significant loss",
        _no_worse("flexi", "jest_750"),
    ),
    Claim(
        "joint",
        "Joint selection beats independent",
        "significantly",
        _better("jest_750", "independent"),
    ),
    Claim(
        "ratio",
        "Larger super-batches help: f = 0.8 over 0.5, 0.9 over 0.8, 0.95 over "
        "0.9",
        "monotone",
        _each(
            ("jest_400", "jest_400_f50"),
            ("jest_400_f90", "jest_400"),
            ("jest_400_f95", "jest_400_f90"),
        ),
    ),
    Claim(
        "criterion",
        "Learnability beats easy-reference at high filter ratios: f = 0.9; "
        "0.95",
        "scales better",
        _each(
            ("jest_400_f90", "easy_reference_f90"),
            ("jest_400_f95", "easy_reference_f95"),
        ),
    ),
    Claim(
        "hard",
        "Learnability beats hard-learner",
        "no number",
        _better("jest_400", "hard_learner_f80"),
    ),
    Claim(
        "steers",
        "A curated reference steers better than one of the pool (stage 0)",
        "essential",
        _better("stage_0_by_curated", "stage_0_by_pool"),
    ),
    Claim(
        "equal",
        "At equal iterations JEST beats uniform: 750 steps; 5,000 steps",
        "by a wide margin",
        _each(("jest_750", "uniform_750"), ("jest_5000", "uniform")),
    ),
    Claim(
        "equal_compute",
        "At equal compute JEST beats uniform: JEST after 750 steps minus "
        "uniform after 2,000; after 5,000 minus uniform after 10,000",
        "by a wide margin",
        _each(("jest_750", "uniform_2000"), ("jest_5000", LONGER)),
    ),
    Claim(
        "teacher",
        "The learner ends above its reference: JEST after 5,000 steps",
        "on many tasks",
        _better("jest_5000", "reference"),
    ),
    Claim(
        "static",
        "Online selection beats choosing once: JEST minus uniform on the fifth "
        "of the pool that fits the curated best",
        "yes",
        _better("jest_750", "filtered"),
    ),
    Claim(
        "static_joint",
        "Online selection beats choosing once: JEST minus uniform on the fifth "
        "that is jointly easiest",
        "yes",
        _better("jest_400", "uniform_chosen"),
    ),
    Claim(
        "chunks",
        "16 chunks are enough: no worse than 32",
        "learnability 0.99 of 1.00",
        _no_worse("jest_400", "chunks_32"),
    ),
    Claim(
        "stage_0",
        "Stage 0 alone reaches the uniform learner's end in fewer iterations",
        OURS,
        _cheaper(STAGE_0, _steps),
    ),
    Claim(
        "stage_0_compute",
        "Stage 0 alone needs fewer FLOPs for it, its own counted",
        OURS,
        _cheaper(STAGE_0, bootstrap.flops),
    ),
    Claim(
        "best",
        "Stage 0 with the reference distilled takes fewer iterations",
        OURS,
        _cheaper(best, _steps),
    ),
    Claim(
        "best_compute",
        "Stage 0 with the reference distilled takes fewer FLOPs, the reference "
        "not counted",
        OURS,
        _cheaper(best, bootstrap.flops),
    ),
    Claim(
        "best_choice",
        "The choice helps the distilled: the best minus the same without it",
        OURS,
        _better("best", "best_uniform"),
    ),
    Claim(
        "best_distilled",
        "Distillation helps the choice: the best minus the same without it",
        OURS,
        _better("best", "best_plain"),
    ),
    Claim(
        "longer",
        "Distilled for the first quarter of 3,000 steps, half of stage 0 "
        "uniform, it ends above uniform training for 10,000",
        OURS,
        _better("best_3000_half", LONGER),
    ),
    Claim(
        "same_data",
        "So trained it ends above as many steps of uniform training on the "
        "curated set and the pool, half each",
        OURS,
        _better("best_3000_half", "mixed_3000"),
    ),
    Claim(
        "fade",
        "Distilled for the first half only, it ends above its reference",
        OURS,
        _better("best_1500_fade", "reference"),
    ),
)

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
_LEAST_SEEDS = 3  # for a verdict on ratios
_MARGIN = 0.01  # of MRR, a point, that "no worse" may lose
HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"

# What a diagnosis found, by claim; shown in the table's last column.
WHY: dict[str, str] = {
    "steers": "the tests are emoji art, as the curated set is and a fiftieth "
    "of the pool",
    "criterion": "at f = 0.8 both choose emoji art about as often, and "
    "easy-reference spends no pass of the learner on it",
    "best": "the reference ends above the target, and distillation hands over "
    "what it knows",
    "best_compute": "no pass is spent on scores, and what stage 0 takes is a "
    "few per cent; the reference is charged in the table below, not here",
    "stage_0_compute": "no pass is spent on scores",
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """One row of the table.

    Attributes:
        name: key of `WHY`.
        text: what the paper says.
        paper: its number.
        measure: `Runs` -> (ours, verdict), or None where runs are missing.
    """

    name: str
    text: str
    paper: str
    measure: Callable


class Runs:
    """Rows of results, by cell.

    Args:
        rows: of `results.read`.
        queries: `{key: row}` of the file of queries.
        uniform: cell of the long uniform run, whose end is the target.
    """

    def __init__(self, rows, queries, uniform="uniform"):
        self.queries = queries
        self.uniform = uniform
        self._cells = {}
        for row in rows:
            # The newest of equal settings counts.
            self._cells.setdefault(row["cell"], {})[row["seed"]] = row

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
    def cells(self):
        """Names of the cells that have results."""
        return list(self._cells)

    def difference(self, first, second, **options):
        """`bootstrap.difference` of two cells, or None."""
        if first not in self or second not in self:
            return None
        return bootstrap.difference(
            self.of(first), self.of(second), self.queries, **options
        )

    def to_target(
        self,
        cells,
        spent,
        splits=bootstrap.SPLITS,
        base=None,
        seeds=matrix.SEEDS,
    ):
        """What the long uniform run took over what others did, seed by seed.

        The target is the uniform learner's score at its end, of each seed its
        own. Of several cells, which are one method at several lengths, the one
        counts that spends least; a seed that was not run at all of them counts
        only if it comes to the target.

        Args:
            cells: names.
            spent: `(run, steps) -> number or None`.
            splits: whose mean is the target.
            base: cell of the uniform run, if not the long one.
            seeds: those that count.

        Returns:
            List with a ratio for every seed, 0 where the target was missed;
            empty without results.
        """
        uniform = {run["seed"]: run for run in self.of(base or self.uniform)}
        ratios = []
        for seed in sorted(uniform.keys() & set(seeds)):
            long = uniform[seed]
            runs = [
                run
                for cell in cells
                for run in self.of(cell)
                if run["seed"] == seed
            ]
            is_whole = len(runs) == len(cells)
            runs = [r for r in runs if bootstrap.comparable(spent, r, long)]
            whole = spent(long, long["steps"])
            if not runs or whole is None:
                continue
            target = bootstrap.curve(long, splits)[1][-1]
            costs = []
            for run in runs:
                steps = bootstrap.steps_to(run, target, splits)
                if steps is not None:
                    costs.append(spent(run, steps))
            if costs or is_whole:
                ratios.append(whole / min(costs) if costs else 0.0)
        return ratios


def table(runs):
    """The rows (claim, paper, ours, verdict, why)."""
    rows = []
    for claim in CLAIMS:
        ours, verdict = claim.measure(runs) or (NOT_RUN, NOT_RUN)
        why = "" if verdict == NOT_RUN else WHY.get(claim.name, "")
        rows.append((claim.text, claim.paper, ours, verdict, why))
    return rows


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


def ratios(values):
    """Mean and range of ratios, and how many missed the target; text."""
    hits = [value for value in values if value]
    if not hits:
        return MISSED
    text = f"{np.mean(hits):.1f}x"
    if len(hits) > 1:
        text += f" [{min(hits):.1f}, {max(hits):.1f}]"
    missed = len(values) - len(hits)
    return text + (f", {missed} of {len(values)} missed" if missed else "")


def _better(first, second):
    def measure(runs):
        found = runs.difference(first, second)
        return found and (points(found), verdict(found))

    return measure


def _no_worse(first, second):
    def measure(runs):
        found = runs.difference(first, second)
        if found is None:
            return None
        if found.low > -_MARGIN:
            return points(found), HOLDS
        return points(found), FAILS if found.high < -_MARGIN else OPEN

    return measure


def _each(*pairs):
    """Several differences, all of which must be above zero."""

    def measure(runs):
        found = [runs.difference(*pair) for pair in pairs]
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
        return "; ".join(map(points, found)), joined

    return measure


def _cheaper(cells, spent):
    def measure(runs):
        found = runs.to_target(cells, spent)
        if not found:
            return None
        # A run that ends below the target says nothing of a longer one, and
        # of ratios only other seeds can tell how far they vary.
        hits = [value for value in found if value]
        signs = {value > 1 for value in hits}
        if len(hits) < _LEAST_SEEDS or len(signs) > 1:
            return ratios(found), OPEN
        return ratios(found), HOLDS if hits[0] > 1 else FAILS

    return measure


def _steps(run, steps):
    return steps


JEST_LENGTHS = ("jest_750", "jest_2500")
FLEXI_LENGTHS = ("flexi", "flexi_2500")
CASCADES = ("cascade_600", "cascade_1500")
BEST = ("best", "best_200")
STAGE_0 = ("best_plain", "stage_0_600", "stage_0_1500")

CLAIMS = (
    Claim(
        "iterations",
        "JEST reaches the uniform learner's end in fewer iterations",
        "up to 13x",
        _cheaper(JEST_LENGTHS, _steps),
    ),
    Claim(
        "compute",
        "JEST needs less compute for it, scoring counted (forward passes)",
        "about 4x",
        _cheaper(JEST_LENGTHS, bootstrap.passes),
    ),
    Claim(
        "flexi",
        "Flexi-JEST needs less still (FLOPs of the graph)",
        "up to 10x",
        _cheaper(FLEXI_LENGTHS, bootstrap.flops),
    ),
    Claim(
        "coarse",
        "Scoring coarsely loses little: Flexi-JEST less JEST",
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
        "Learnability beats easy-reference",
        "scales better",
        _better("jest_750", "easy"),
    ),
    Claim(
        "hard",
        "Learnability beats hard-learner",
        "not in the paper's figure",
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
        "At equal iterations JEST beats uniform",
        "by a wide margin",
        _better("jest_750", "uniform_750"),
    ),
    Claim(
        "teacher",
        "The learner ends above its reference",
        "on many tasks",
        _better("jest_2500", "reference"),
    ),
    Claim(
        "static",
        "Online selection beats choosing a fifth of the pool once",
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
        "not in the paper",
        _cheaper(STAGE_0, _steps),
    ),
    Claim(
        "stage_0_compute",
        "and, as it spends no pass on scores, for fewer FLOPs, its own counted",
        "not in the paper",
        _cheaper(STAGE_0, bootstrap.flops),
    ),
    Claim(
        "best",
        "With the reference distilled, too, it takes fewer iterations",
        "not in the paper",
        _cheaper(BEST, _steps),
    ),
    Claim(
        "best_compute",
        "and fewer FLOPs",
        "not in the paper",
        _cheaper(BEST, bootstrap.flops),
    ),
    Claim(
        "best_choice",
        "The choice helps the distilled: the best less the same without it",
        "not in the paper",
        _better("best", "best_uniform"),
    ),
    Claim(
        "best_distilled",
        "Distillation helps the choice: the best less the same without it",
        "not in the paper",
        _better("best", "best_plain"),
    ),
    Claim(
        "fade",
        "Distilled for the first half only, it ends above its reference",
        "not in the paper",
        _better("best_1500_fade", "reference"),
    ),
)

"""Intervals over concepts, and what it took to reach a target.

A concept is what is held out, so it is what is resampled: all its queries at
once, in whatever style. Two methods are compared on the same resamples, and
seed by seed.
"""

import functools
from typing import NamedTuple

import numpy as np

from benchmarks.icontext import matrix, results

SPLITS = ("test_concept", "test_style")
RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
_SEED = 0

# Measures of a query by its rank: ranks of which direction, and what of them.
MEASURES = {
    "i2t_mrr": ("image_to_text", lambda ranks: 1 / ranks),
    "t2i_mrr": ("text_to_image", lambda ranks: 1 / ranks),
    "i2t_r1": ("image_to_text", lambda ranks: ranks <= 1),
    "i2t_r5": ("image_to_text", lambda ranks: ranks <= 5),
    "t2i_r1": ("text_to_image", lambda ranks: ranks <= 1),
    "t2i_r5": ("text_to_image", lambda ranks: ranks <= 5),
    "zs_1": ("zero_shot", lambda ranks: ranks <= 1),
    "zs_5": ("zero_shot", lambda ranks: ranks <= 5),
}
# What all claims are about: both directions alike.
MAIN_MEASURES = ("i2t_mrr", "t2i_mrr")


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


class Ratio(NamedTuple):
    """What one method took over what another took, to the same score.

    Attributes:
        value: over all seeds together; 0 if a seed missed the score.
        low: the 95 % interval's; 0 if the score is missed there.
        high: its upper end.
        seeds: how many.
        missed: how many of them stayed below.
        bound: the same with all that the one took until its own end counted.
    """

    value: float
    low: float
    high: float
    seeds: int
    missed: int
    bound: float


def estimate(runs, queries, splits=SPLITS, measures=MAIN_MEASURES, subset=None):
    """Mean of measures over splits and seeds, with its interval.

    Args:
        runs: rows of `results.read`, one a seed.
        queries: `{key: row}` of the file of queries.
        splits: of the evaluation.
        measures: keys of `MEASURES`.
        subset: of the concepts whose queries count, see `members`; ranks are
            among all. None is all.
    """
    return _summary(_resampled(runs, queries, splits, measures, subset))


def members(run, queries, split, subset):
    """Which concepts of a split are in a subset, float64 [concepts].

    Args:
        run: a row of results, whose queries they are.
        queries: see `estimate`.
        split: of the evaluation.
        subset: "named", "icons_only" (`concepts.taught_by_icons`) or "rest".
    """
    row = queries[run["ranks"][split]["queries"]]
    subsets = {
        name: np.array(values, np.float64)
        for name, values in row["subsets"].items()
    }
    subsets["rest"] = 1.0 - np.max(list(subsets.values()), axis=0)
    return subsets[subset]


def difference(
    runs, others, queries, splits=SPLITS, measures=MAIN_MEASURES, subset=None
):
    """`estimate` of `runs` less that of `others`, paired.

    Runs are paired by seed; seeds that one side lacks are left out.

    Returns:
        `Estimate`, or None where no seed is on both sides.
    """
    seeds = sorted(
        {run["seed"] for run in runs} & {run["seed"] for run in others}
    )
    if not seeds:
        return None
    first, second = (
        _resampled(_of_seeds(side, seeds), queries, splits, measures, subset)
        for side in (runs, others)
    )
    return _summary(first - second)


def curve(run, splits=SPLITS, measures=MAIN_MEASURES):
    """Steps, and the mean of the measures over the splits at each."""
    values = [
        run["curve"][f"{split}/{measure}"]
        for split in splits
        for measure in measures
    ]
    return np.array(run["curve"]["step"]), np.mean(values, axis=0)


def steps_to(run, target, splits=SPLITS):
    """Steps after which the curve first reaches a target; inf if it does not.

    Between two evaluations the curve is taken for a straight line, from zero
    at the start.

    Args:
        run: a row of results.
        target: one, or an array of any shape.
        splits: whose mean the target is of.

    Returns:
        float64, of the shape of `target`.
    """
    steps, values = (np.append(0.0, one) for one in curve(run, splits))
    target = np.asarray(target)
    after = np.searchsorted(np.maximum.accumulate(values), target)
    is_missed = after == len(values)
    after = np.clip(after, 1, len(values) - 1)
    rise = values[after] - values[after - 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.maximum(target - values[after - 1], 0.0) / rise
    before = steps[after - 1]
    found = before + share * (steps[after] - before)
    return np.where(is_missed, np.inf, np.where(target <= 0, 0.0, found))


def ratio(runs, others, queries, spent, splits=SPLITS, longer=()):
    """What `others` spent until their ends over what `runs` did until the same.

    Each seed of `others` has a target of its own, its score at its end, and
    what it spent is counted until its curve first is there, as of `runs`; or
    that of one of the `longer`, where this is there after fewer steps. In a
    resample of concepts the curve of a run is as many times as high as its end.

    Args:
        runs: rows of results, one a seed.
        others: rows of the same seeds.
        queries: see `estimate`.
        spent: `(run, steps) -> cost`, of arrays of steps as well; the same in
            `steps` for any length of the others.
        splits: whose mean the target is.
        longer: of lists of rows of the same seeds, what `others` are when they
            are given more steps.

    Returns:
        `Ratio`.
    """
    ends = np.array([curve(one, splits)[1][-1] for one in others])
    theirs = _by_seed(others, queries, splits, MAIN_MEASURES)

    def crossings(rows):  # [seeds, 1 + RESAMPLES]
        own = _by_seed(rows, queries, splits, MAIN_MEASURES)
        targets = ends[:, None] * theirs / theirs[:, :1] * own[:, :1] / own
        return np.stack(
            [
                steps_to(row, target, splits)
                for row, target in zip(rows, targets, strict=True)
            ]
        )

    # Theirs at their own ends, which move with the targets.
    first = np.stack(
        [
            np.full(theirs.shape[1], steps_to(other, end, splits))
            for other, end in zip(others, ends, strict=True)
        ]
    )
    costs, whole = (
        np.stack([spent(row, at) for row, at in zip(rows, steps, strict=True)])
        for rows, steps in (
            (runs, crossings(runs)),
            (others, np.min([first, *map(crossings, longer)], axis=0)),
        )
    )
    drawn = _draw_seeds(len(runs), splits)
    places = 1 + np.arange(RESAMPLES)[:, None]
    # A target that a resample moves to zero is free.
    with np.errstate(divide="ignore"):
        resampled = whole[drawn, places].sum(axis=1) / (
            costs[drawn, places].sum(axis=1)
        )
    low, high = np.percentile(resampled, PERCENTILES)
    at_end = sum(spent(run, run["steps"]) for run in runs)
    taken = whole[:, 0].sum()
    return Ratio(
        float(taken / costs[:, 0].sum()),
        float(low),
        float(high),
        len(runs),
        int(np.isinf(costs[:, 0]).sum()),
        float(taken / at_end),
    )


def chance(run, queries, splits=SPLITS):
    """The main measure of a ranking by chance, mean over splits.

    Args:
        run: a row of results, whose queries they are.
        queries: see `estimate`.
        splits: of the evaluation.
    """
    values = []
    for split in splits:
        row = queries[run["ranks"][split]["queries"]]
        image, text = (
            results.decode_ranks(row[side]) for side in ("image", "text")
        )
        for asked, answers in ((image, text), (text, image)):
            by_concept = np.bincount(answers, minlength=int(asked.max()) + 1)
            for_count = {
                count: _mean_reciprocal_rank(count, len(answers))
                for count in np.unique(by_concept[asked]).tolist()
            }
            values.append(
                np.mean([for_count[count] for count in by_concept[asked]])
            )
    return float(np.mean(values))


def _mean_reciprocal_rank(count, size):
    """Of the first of `count` matches among `size` in random order."""
    ranks = np.arange(1, size - count + 2)
    # Of none of the ranks before, and of this one given that.
    left = size - ranks + 1
    here = count / left
    before = np.cumprod(np.append(1.0, 1.0 - here[:-1]))
    return float(np.sum(before * here / ranks))


def passes(run, steps):
    """Forward passes of one example that so many steps of a run take.

    Three for each example trained on and one for each that is scored, as the
    paper's figure 1 counts; the cached reference has none, and a coarse view
    counts as a fine one here. A cascade's stage 0, which needs no pass, has
    its FLOPs counted alone.
    """
    costs = run["costs"]
    scored = costs["examples/scored"]
    if run["differs"].get("selection.criterion") == "easy_reference":
        scored = 0  # by the cached reference alone
    return steps / run["steps"] * (3 * costs["examples/trained"] + scored)


def flops(run, steps):
    """FLOPs that so many steps of a run take, or None if not counted.

    All that is in the step, without reuse, and what a cascade takes before it.
    """
    costs = run["costs"]
    if "flops/step" not in costs:
        return None
    total = costs["flops/step"] + costs.get("flops/cascade", 0)
    return steps / run["steps"] * total


def flops_with(references):
    """`flops`, and of a run with a reference all that this took before it.

    That is its training, and its forward pass over the pool for the sidecars,
    charged to the one run, though any number can share them; and the same of
    the references that cut the pools that the two were trained on, if any did.

    Args:
        references: rows of their runs.
    """
    by_digest = {row["digest"][:8]: row for row in references}
    by_cell = {row["cell"]: row for row in references}

    def charge(made):
        if made is None:
            return None
        costs = made["costs"]
        forward = costs["flops/forward"] / costs["examples/trained"]
        own = flops(made, made["steps"]) + matrix.POOL_SIZE * forward
        return _sum(own, *map(charge, judges(made)))

    def judges(run):
        sources = matrix.find(run["cell"]).sources
        names = {matrix.JUDGES[one] for one in sources if one in matrix.JUDGES}
        return [by_cell.get(name) for name in sorted(names)]

    def spent(run, steps):
        before = judges(run)
        folder = run["differs"].get("reference.sidecar_dir", "")
        if folder:
            before.append(by_digest.get(folder[-8:]))
        # One that did both is charged once.
        each = {one and one["digest"]: one for one in before}
        return _sum(flops(run, steps), *map(charge, each.values()))

    return spent


def _sum(*numbers):
    """None if one is not known."""
    return None if any(one is None for one in numbers) else sum(numbers)


def offered(run, steps):
    """Examples looked at in so many steps, by stage 0 or as super-batches."""
    costs = run["costs"]
    seen = costs.get("examples/cascaded") or costs["examples/drawn"]
    return steps / run["steps"] * seen


def examples(run, steps):
    """Examples trained on in so many steps of a run."""
    return steps / run["steps"] * run["costs"]["examples/trained"]


def seconds(run, steps):
    """Processor seconds of so many steps, or None if they were not taken."""
    total = run["processor_seconds"]
    return total and steps / run["steps"] * total


# By what a run can be said to be cheap: what it is called, and how much of it
# so many steps of a run take.
COSTS = {
    "examples trained on": examples,
    "FLOPs": flops,
    "processor seconds": seconds,
}


def comparable(spent, run, other):
    """Whether two runs' costs can be held against each other.

    Seconds of one processor say nothing of another's.
    """
    return spent is not seconds or run["machine"] == other["machine"]


def _of_seeds(runs, seeds):
    by_seed = {run["seed"]: run for run in runs}
    return [by_seed[seed] for seed in seeds]


def _resampled(runs, queries, splits, measures, subset=None):
    """The mean as it is, then of each resample; float64 [1 + RESAMPLES]."""
    by_seed = _by_seed(runs, queries, splits, measures, subset)
    # Seeds are resampled as well: a few runs of a method are a sample, too.
    drawn = _draw_seeds(len(runs), splits)
    places = 1 + np.arange(RESAMPLES)[:, None]
    return np.append(by_seed[:, 0].mean(), by_seed[drawn, places].mean(axis=1))


def _by_seed(runs, queries, splits, measures, subset=None):
    """The same for each run; float64 [seeds, 1 + RESAMPLES]."""
    parts = [
        _split_means(runs, queries, split, measure, place, subset)
        for place, split in enumerate(splits)
        for measure in measures
    ]
    return np.mean(parts, axis=0)


def _draw_seeds(count, splits):
    """Places of seeds in every resample; integers [RESAMPLES, count]."""
    generator = np.random.default_rng([_SEED, len(splits)])
    return generator.integers(0, count, [RESAMPLES, count])


@functools.lru_cache(maxsize=8)
def _weights(count, place):
    """How often each of `count` concepts is drawn; [1 + RESAMPLES, count].

    The first row is the concepts as they are.
    """
    generator = np.random.default_rng([_SEED, place])
    drawn = generator.multinomial(
        count, np.full(count, 1 / count), size=RESAMPLES
    )
    return np.concatenate([np.ones([1, count]), drawn])


def _split_means(runs, queries, split, measure, place, subset):
    """Weighted means over concepts; float64 [seeds, 1 + RESAMPLES]."""
    direction, _ = MEASURES[measure]
    (key,) = {run["ranks"][split]["queries"] for run in runs}
    side = "text" if direction == "text_to_image" else "image"
    chosen = subset and tuple(members(runs[0], queries, split, subset))
    return np.stack(
        [
            _run_means(
                queries[key][side],
                run["ranks"][split][direction],
                measure,
                place,
                chosen,
            )
            for run in runs
        ]
    )


# A run stands beside many others.
@functools.lru_cache(maxsize=4096)
def _run_means(concepts, ranks, measure, place, chosen):
    """Of one run; concepts and ranks are encoded, chosen is None for all."""
    _, value = MEASURES[measure]
    concepts = results.decode_ranks(concepts)
    count = int(concepts.max()) + 1
    sizes = np.bincount(concepts, minlength=count)
    values = value(results.decode_ranks(ranks).astype(np.float64))
    sums = np.bincount(concepts, values, minlength=count)
    weights = _weights(count, place)
    if chosen:
        weights = weights * np.array(chosen)
    with np.errstate(invalid="ignore"):
        return (weights @ sums) / (weights @ sizes)


def _summary(values):
    # A resample may lack the concepts of a small subset.
    low, high = np.nanpercentile(values[1:], PERCENTILES)
    return Estimate(float(values[0]), float(low), float(high))

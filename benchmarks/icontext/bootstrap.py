"""Intervals over concepts, and what it took to reach a target.

A concept is what is held out, so it is what is resampled: all its queries at
once, in whatever style. Two methods are compared on the same resamples, and
seed by seed.
"""

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


def difference(runs, others, queries, splits=SPLITS, measures=MAIN_MEASURES):
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
        _resampled(_of_seeds(side, seeds), queries, splits, measures)
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
    """Steps after which the curve first reaches a target, or None.

    Between two evaluations the curve is taken for a straight line.
    """
    steps, values = curve(run, splits)
    steps, values = np.append(0, steps), np.append(0.0, values)
    reached = np.flatnonzero(values >= target)
    if not len(reached):
        return None
    after = reached[0]
    if after == 0:
        return 0.0
    share = (target - values[after - 1]) / (values[after] - values[after - 1])
    return float(steps[after - 1] + share * (steps[after] - steps[after - 1]))


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
    the reference that cut the pool that this one was trained on, if one did.

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
        for source in matrix.find(made["cell"]).sources:
            if source in matrix.JUDGES:
                before = charge(by_cell.get(matrix.JUDGES[source]))
                own = None if None in (own, before) else own + before
        return own

    def spent(run, steps):
        total = flops(run, steps)
        folder = run["differs"].get("reference.sidecar_dir", "")
        if total is None or not folder:
            return total
        before = charge(by_digest.get(folder[-8:]))
        return None if before is None else total + before

    return spent


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
    parts = [
        _split_means(runs, queries, split, measure, place, subset)
        for place, split in enumerate(splits)
        for measure in measures
    ]
    by_seed = np.mean(parts, axis=0)  # [seeds, 1 + resamples]
    generator = np.random.default_rng([_SEED, len(splits)])
    count = len(runs)
    # Seeds are resampled as well: a few runs of a method are a sample, too.
    drawn = generator.integers(0, count, [RESAMPLES, count])
    places = 1 + np.arange(RESAMPLES)[:, None]
    return np.append(by_seed[:, 0].mean(), by_seed[drawn, places].mean(axis=1))


def _split_means(runs, queries, split, measure, place, subset):
    """Weighted means over concepts; float64 [seeds, 1 + RESAMPLES]."""
    direction, value = MEASURES[measure]
    (key,) = {run["ranks"][split]["queries"] for run in runs}
    side = "text" if direction == "text_to_image" else "image"
    concepts = results.decode_ranks(queries[key][side])
    count = int(concepts.max()) + 1
    sizes = np.bincount(concepts, minlength=count)
    sums = np.stack(
        [
            np.bincount(
                concepts,
                value(
                    results.decode_ranks(run["ranks"][split][direction]).astype(
                        np.float64
                    )
                ),
                minlength=count,
            )
            for run in runs
        ]
    )  # [seeds, concepts]
    generator = np.random.default_rng([_SEED, place])
    weights = generator.multinomial(
        count, np.full(count, 1 / count), size=RESAMPLES
    )
    weights = np.concatenate([np.ones([1, count]), weights])
    if subset:
        weights = weights * members(runs[0], queries, split, subset)
    with np.errstate(invalid="ignore"):
        return (sums @ weights.T) / (sizes @ weights.T)


def _summary(values):
    # A resample may lack the concepts of a small subset.
    low, high = np.nanpercentile(values[1:], PERCENTILES)
    return Estimate(float(values[0]), float(low), float(high))

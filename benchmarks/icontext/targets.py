"""Ratios of the costs of two methods to reach the same score."""

from typing import NamedTuple

import numpy as np

from benchmarks.icontext import bootstrap, matrix

# Ways to count FLOPs, see `flops_three_ways`.
KINDS = ("scores", "reference", "all")


class Ratio(NamedTuple):
    """Cost of uniform training over the cost of a method."""

    value: float  # over all seeds together; 0 if a seed misses the target
    low: float  # end of the 95 % interval; 0 if the target is missed there
    high: float
    seeds: int  # how many
    missed: int  # how many of them miss the target
    all_steps: float  # the value with all of the method's steps counted


def steps_to(steps, scores, target):
    """Steps at which a curve first reaches a target; inf if it never does.

    The curve is linear between evaluations and starts from zero.

    Args:
        steps: of each evaluation, increasing.
        scores: at each evaluation.
        target: float or array.
    """
    steps, scores = np.append(0.0, steps), np.append(0.0, scores)
    target = np.asarray(target)
    after = np.searchsorted(np.maximum.accumulate(scores), target)
    is_missed = after == len(scores)
    after = np.clip(after, 1, len(scores) - 1)
    rise = scores[after] - scores[after - 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.maximum(target - scores[after - 1], 0.0) / rise
    before = steps[after - 1]
    found = before + share * (steps[after] - before)
    return np.where(is_missed, np.inf, np.where(target <= 0, 0.0, found))


def ratio(spent, splits, runs, others, longer=None):
    """Cost of `others` to reach their final scores, over the cost of `runs`.

    Each seed of `others` sets a target for that seed. Its cost is counted up to
    the first time its curve, or that of the `longer` run, reaches the target.
    Where a resample of concepts moves a final score, the curve scales with it.

    Args:
        spent: `(run, steps) -> cost`, for arrays of steps as well.
        splits: whose mean is the score.
        runs: `Run`s, one per seed.
        others: `Run`s of the same seeds.
        longer: `Run`s of the same seeds, if any.

    Returns:
        `Ratio`.
    """
    ends = np.array([other.score(splits) for other in others])
    theirs = np.stack([other.resampled(splits) for other in others])

    def crossings(rows):  # [seeds, 1 + RESAMPLES]
        ours = np.stack([row.resampled(splits) for row in rows])
        moved = ends[:, None] * theirs / theirs[:, :1] * ours[:, :1] / ours
        return np.stack(
            [
                steps_to(row.steps, row.curve(splits), target)
                for row, target in zip(rows, moved, strict=True)
            ]
        )

    # A run reaches its final score at the same step in all resamples.
    whole = np.stack(
        [
            np.full(
                theirs.shape[1],
                steps_to(other.steps, other.curve(splits), end),
            )
            for other, end in zip(others, ends, strict=True)
        ]
    )
    if longer:
        whole = np.minimum(whole, crossings(longer))
    costs, whole = (
        np.stack([spent(row, at) for row, at in zip(rows, steps, strict=True)])
        for rows, steps in ((runs, crossings(runs)), (others, whole))
    )
    drawn, places = bootstrap.draws(len(runs), len(splits))
    with np.errstate(divide="ignore"):  # a target of zero costs nothing
        resampled = whole[drawn, places].sum(axis=1) / (
            costs[drawn, places].sum(axis=1)
        )
    low, high = np.percentile(resampled, bootstrap.PERCENTILES)
    taken = whole[:, 0].sum()
    return Ratio(
        float(taken / costs[:, 0].sum()),
        float(low),
        float(high),
        len(runs),
        int(np.isinf(costs[:, 0]).sum()),
        float(taken / sum(spent(run, run.row.steps) for run in runs)),
    )


def examples(run, steps):
    """Examples trained on in `steps` steps."""
    return steps / run.row.steps * run.row.examples_trained


def passes(run, steps):
    """Forward passes in `steps` steps, counted as in the paper's Figure 1.

    Three for each example trained on and one for each scored by the learner.
    The cached reference and stage 0 need none; a coarse view counts in full.
    """
    settings = matrix.find(run.row.cell).settings
    needs_learner = "selection.criterion=easy_reference" not in settings
    scored = run.row.examples_scored * needs_learner
    return steps / run.row.steps * (3 * run.row.examples_trained + scored)


def flops(run, steps):
    """FLOPs of `steps` steps, stage 0 included."""
    return steps / run.row.steps * (run.row.flops_step + run.row.flops_cascade)


def flops_three_ways(comparison):
    """Costs by kind, each `(run, steps) -> FLOPs`.

    "scores" are of steps and stage 0; "reference" has the training of all
    models whose embeddings chose for the run, or for those models; "all" has
    every embedding, of theirs and of the run's renewals.

    Args:
        comparison: `Comparison` that has the models' runs. Where it has not,
            the costs raise ValueError.
    """

    def chain(cell):
        names, left = {}, [cell]
        while left:
            found = matrix.find(left.pop())
            new = {*found.judges, found.reference} - {"", *names}
            names |= dict.fromkeys(sorted(new))
            left += new
        for name in names:
            if name not in comparison:
                raise ValueError(
                    f"The tables must have the runs of {name!r}, which is "
                    f"charged to {cell!r}. Received: none; run "
                    f"cell {name} with its matrix first"
                )
        return [comparison.of(name)[0] for name in names]

    def with_reference(run, steps):
        needed = chain(run.row.cell)
        trained = sum(flops_at(one, one.row.steps) for one in needed)
        return flops_at(run, steps) + trained

    def everything(run, steps):
        needed = chain(run.row.cell)
        embedded = sum(_embedding(one, one.row.steps) for one in needed)
        return with_reference(run, steps) + _embedding(run, steps) + embedded

    return dict(zip(KINDS, (flops_at, with_reference, everything), strict=True))


def flops_without_references(run, steps):
    """FLOPs of `steps` steps and of every embedding, by no matter whom."""
    return flops_at(run, steps) + _embedding(run, steps)


def _embedding(run, steps):
    return renewals_at(run, steps) + run.row.flops_embedded


def flops_at(run, steps):
    """FLOPs of the first `steps` steps and their stage 0, as recorded."""
    spent = run.costs["flops_step"] + run.costs["flops_cascade"]
    found = np.interp(steps, np.append(0, run.steps), np.append(0.0, spent))
    return np.where(np.isinf(steps), np.inf, found)


def renewals_at(run, steps):
    """FLOPs of the renewals up to the first evaluation from `steps` on."""
    place = np.searchsorted(run.steps, steps).clip(max=len(run.steps) - 1)
    return run.costs["flops_renewals"][place]


def flops_with_reference(comparison):
    """`flops` with everything that led to a run charged to it.

    That is the training of its reference and a forward pass over the pool for
    the sidecars, and the same for the references that cut its pools.

    Args:
        comparison: `Comparison` that has the references' runs.
    """

    def charge(name):
        (run, *_) = comparison.of(name)
        forward = run.row.flops_forward / run.row.examples_trained
        before = sum(map(charge, {*matrix.find(name).judges}))
        return flops(run, run.row.steps) + matrix.POOL_SIZE * forward + before

    def spent(run, steps):
        cell = matrix.find(run.row.cell)
        needs = {*cell.judges, cell.reference} - {""}
        return flops(run, steps) + sum(map(charge, needs))

    return spent

"""Costs to the target on emoji art, whose curated set covers the tests.

The target is the final score of `uniform`, 5,000 steps, the mean of the two
tests, seed by seed. What a method spends counts up to where its curve first
reaches the target, over all seeds together; of several lengths the cheapest
counts. `uniform_10000` may reach the target sooner than `uniform` itself.
"""

import numpy as np
import pandas as pd

from benchmarks.icontext import measures

_TESTS = ["test_concept", "test_style"]
_POOL_SIZE = 352_327  # pairs, which a reference embeds once
_TARGET, _LONGER = "uniform", "uniform_10000"
# What it is, its cells by length, and the reference that chose.
_ROWS = (
    ("uniform", "uniform_10000", ""),
    ("uniform, the target", "uniform", ""),
    ("JEST, f = 0.8", "jest_750 jest_2500 jest_5000", "reference"),
    (
        "stage 0 only, K = 25",
        *("best_plain stage_0_1500 stage_0_3000", "reference"),
    ),
    ("stage 0 with distillation", "best_200 best", "reference"),
    (
        "stage 0 with distillation, reference twice as wide",
        *("best_by_wide", "reference_wide"),
    ),
    (
        "stage 0 with distillation for the first quarter, half of its rows "
        "uniform",
        *("best_3000_half", "reference"),
    ),
    (
        "uniform on curated set and pool, half each (the reference)",
        *("reference mixed_3000", ""),
    ),
    ("uniform on the curated set only", "reference_curated", ""),
)


def table(folder):
    """Rows of text, the header first, from runs.csv and curves.csv."""
    key = ["cell", "seed"]
    runs = pd.read_csv(folder / "runs.csv").set_index(key).sort_index()
    curves = pd.read_csv(folder / "curves.csv").set_index(key).sort_index()
    yield (
        *("method", "longest run, steps", "score", "fewer examples"),
        *("fewer FLOPs", "with the reference"),
    )
    for what, names, reference in _ROWS:
        cells = names.split()
        rows = runs.loc[cells[-1]]
        ratios = ["1x" if cells == [_TARGET] else ""] * 3
        if cells not in ([_TARGET], [_LONGER]):
            charge = (
                _flops_of_reference(runs.loc[reference, 0]) if reference else 0
            )
            ratios = [
                _cheapest(runs, curves, cells, *cost)
                for cost in ((_examples, 0), (_flops, 0), (_flops, charge))
            ]
        yield (
            *(what, f"{rows['steps'].iloc[0]:,}"),
            f"{100 * rows[_TESTS].to_numpy().mean():.1f}",
            *ratios,
        )


def ratio(runs, curves, cell, cost, charge=0.0):
    """Cost of `uniform` to its final scores over that of a cell.

    Args:
        runs: DataFrame by cell and seed.
        curves: DataFrame of evaluations by cell and seed.
        cell: its name.
        cost: `row of runs ->` cost of its steps.
        charge: cost of what led to each run of the cell.

    Returns:
        The ratio, 0 if a seed misses the target, and the number of seeds.
    """
    seeds = sorted({*runs.loc[cell].index} & {*runs.loc[_TARGET].index})
    ours = theirs = 0.0
    for seed in seeds:
        goal = _curve(curves, _TARGET, seed)[1][-1]
        needed = _crossing(curves, _TARGET, seed, goal)
        if cell != _LONGER:
            needed = min(needed, _crossing(curves, _LONGER, seed, goal))
        row, target = runs.loc[cell, seed], runs.loc[_TARGET, seed]
        theirs += needed / target["steps"] * cost(target)
        own = _crossing(curves, cell, seed, goal)
        ours += own / row["steps"] * cost(row) + charge
    return theirs / ours, len(seeds)


def steps_to(steps, scores, target):
    """Steps at which a curve first reaches a target; inf if it never does.

    The curve is linear between evaluations and starts from zero.

    Args:
        steps: of each evaluation, increasing.
        scores: at each evaluation.
        target: number.
    """
    steps, scores = np.append(0.0, steps), np.append(0.0, scores)
    after = int(np.searchsorted(np.maximum.accumulate(scores), target))
    if after == len(scores):
        return np.inf
    if after == 0:
        return 0.0
    share = (target - scores[after - 1]) / (scores[after] - scores[after - 1])
    return steps[after - 1] + share * (steps[after] - steps[after - 1])


def _cheapest(runs, curves, cells, cost, charge):
    """The largest ratio of several lengths, in words."""
    found = [ratio(runs, curves, cell, cost, charge) for cell in cells]
    value, seeds = max(found, key=lambda one: one[0])
    if not value:
        return "missed"
    few = seeds < measures.LEAST_SEEDS
    return f"{value:.1f}x" + f", {seeds} seed{'s' * (seeds > 1)}" * few


def _curve(curves, cell, seed):
    """Steps of each evaluation, and the mean of the tests."""
    rows = curves.loc[[(cell, seed)]].sort_values("step")
    return rows["step"].to_numpy(), rows[_TESTS].mean(axis=1).to_numpy()


def _crossing(curves, cell, seed, goal):
    return steps_to(*_curve(curves, cell, seed), goal)


def _examples(row):
    return row["examples_trained"]


def _flops(row):
    return np.nansum([row["flops_step"], row["flops_stored"]])


def _flops_of_reference(row):
    """FLOPs of its training, and of a forward pass over the pool."""
    forward = row["flops_forward"] / row["examples_trained"]
    return _flops(row) + _POOL_SIZE * forward

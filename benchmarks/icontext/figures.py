"""Pictures of the report: learning curves, and what was chosen over time."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.icontext import bootstrap  # noqa: E402

_DPI = 110


def curves(runs, cells, path):
    """Draw the measures of cells against steps and forward passes.

    Args:
        runs: `claims.Runs`.
        cells: names of those to draw.
        path: PNG file.

    Returns:
        Whether there was anything to draw.
    """
    if not cells:
        return False
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), sharey="row")
    for row, split in zip(axes, bootstrap.SPLITS, strict=True):
        for axis, by in zip(row, ("steps", "passes"), strict=True):
            for place, cell in enumerate(cells):
                _curve(axis, runs.of(cell), split, by, cell, f"C{place}")
            axis.set_title(split)
            axis.set_xlabel("steps" if by == "steps" else "forward passes")
            axis.set_ylabel("MRR, both directions, %")
            axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
    return True


def kinds(runs, cells, path):
    """Draw the shares of each kind of picture among the drawn, over time.

    The arguments are those of `curves`. Dotted is the kind's share of the pool.
    """
    cells = [
        cell
        for cell in cells
        if runs.of(cell) and all(run["kinds"] for run in runs.of(cell))
    ]
    if not cells:
        return False
    names = sorted(runs.of(cells[0])[0]["kinds"]["pool"])
    figure, axes = plt.subplots(
        1, len(names), figsize=(3 * len(names), 3.2), squeeze=False
    )
    for axis, name in zip(axes[0], names, strict=True):
        for place, cell in enumerate(cells):
            found = [run["kinds"] for run in runs.of(cell)]
            if name not in found[0]["drawn"]:
                continue
            values = 100 * np.array([one["drawn"][name] for one in found])
            axis.plot(found[0]["step"], values.mean(0), f"C{place}", label=cell)
            axis.axhline(
                100 * found[0]["pool"][name], color="0.4", ls=":", lw=1
            )
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("steps")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("% of the drawn")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
    return True


def _curve(axis, found, split, by, label, colour):
    """The mean over seeds in a band from the least to the most."""
    steps, _ = bootstrap.curve(found[0], (split,))
    values = np.stack([bootstrap.curve(run, (split,))[1] for run in found])
    values = 100 * values
    places = (
        steps
        if by == "steps"
        else [bootstrap.passes(found[0], step) for step in steps]
    )
    axis.plot(places, values.mean(0), color=colour, label=label)
    axis.fill_between(
        places, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0
    )

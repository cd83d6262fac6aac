"""Pictures of the report: learning curves, and what was chosen over time."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.icontext import bootstrap, matrix  # noqa: E402

_DPI = 110


def _style(place):
    """Of a curve, different for the first twenty."""
    return {"color": f"C{place % 10}", "ls": "-" if place < 10 else "--"}


def frontier(runs, cells, path):
    """Draw the measures of cells against all that they cost.

    Args:
        runs: `claims.Runs`.
        cells: names of those to draw.
        path: PNG file.

    Returns:
        Whether there was anything to draw.
    """
    if not cells:
        return False
    rows = (bootstrap.SPLITS, *((split,) for split in bootstrap.SPLITS))
    figure, axes = plt.subplots(
        len(rows), len(bootstrap.COSTS), figsize=(13, 10), sharey="row"
    )
    for line, splits in zip(axes, rows, strict=True):
        for axis, (about, spent) in zip(
            line, bootstrap.COSTS.items(), strict=True
        ):
            for place, cell in enumerate(cells):
                # The first cell is what the others are compared with.
                found = [
                    run
                    for run in runs.of(cell)
                    if bootstrap.comparable(spent, run, runs.of(cells[0])[0])
                ]
                if found:
                    _curve(axis, found, splits, spent, cell, _style(place))
            axis.set_xscale("log")
            axis.set_xlabel(about)
            axis.grid(alpha=0.3)
        line[0].set_ylabel(f"MRR, {' and '.join(splits)}, %")
    lines, labels = axes[0, 0].get_legend_handles_labels()
    labels = [f"{cell}: {matrix.find(cell).about}" for cell in labels]
    figure.legend(lines, labels, fontsize=8, ncols=3, loc="lower center")
    below = 0.02 * (1 + -(-len(labels) // 3))
    figure.tight_layout(rect=(0, below, 1, 1))
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
    return True


def sweeps(runs, panels, path):
    """Draw the measure of one seed against what is swept.

    Args:
        runs: `claims.Runs`.
        panels: `diagnosis.Panel`s.
        path: PNG file.

    Returns:
        Whether there was anything to draw.
    """

    def measured(cell):
        found = [run for run in runs.of(cell) if run["seed"] == 0]
        return found and bootstrap.estimate(found, runs.queries)

    drawn = {
        panel: {
            label: [
                (place, measured(cell))
                for place, cell in line
                if measured(cell)
            ]
            for label, line in panel.lines.items()
        }
        for panel in panels
    }
    panels = [panel for panel in panels if any(drawn[panel].values())]
    if not panels:
        return False
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.6 * len(panels), 3.4), squeeze=False
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        for label, line in drawn[panel].items():
            if not line:
                continue
            places = [place for place, _ in line]
            values, low, high = 100 * np.array([one for _, one in line]).T
            axis.errorbar(
                places,
                values,
                (values - low, high - values),
                marker="o",
                capsize=3,
                label=label,
            )
        if panel.level and measured(panel.level):
            axis.axhline(
                100 * measured(panel.level).value,
                color="0.4",
                ls=":",
                label="uniform",
            )
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(panel.axis)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("MRR, %")
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
    return True


def kinds(runs, cells, path):
    """Draw the shares of each kind of picture among the drawn, over time.

    The arguments are those of `frontier`. Dotted is a share of the pool.
    """
    # As in the frontier.
    styles = {cell: _style(place) for place, cell in enumerate(cells)}
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
        for cell in cells:
            found = [run["kinds"] for run in runs.of(cell)]
            if name not in found[0]["drawn"]:
                continue
            values = 100 * np.array([one["drawn"][name] for one in found])
            axis.plot(
                found[0]["step"], values.mean(0), label=cell, **styles[cell]
            )
            axis.axhline(
                100 * found[0]["pool"][name], color="0.4", ls=":", lw=1
            )
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("steps")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("% of the drawn")
    lines, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, fontsize=8, ncols=6, loc="lower center")
    figure.tight_layout(rect=(0, 0.08 * -(-len(labels) // 6), 1, 1))
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
    return True


def _curve(axis, found, splits, spent, label, style):
    """The mean over seeds in a band from the least to the most."""
    steps, _ = bootstrap.curve(found[0], splits)
    values = np.stack([bootstrap.curve(run, splits)[1] for run in found])
    values = 100 * values
    # What has not been counted of one seed is as of another.
    costs = [[spent(run, step) for run in found] for step in steps]
    costs = [[one for one in line if one is not None] for line in costs]
    if not all(costs):
        return
    places = [np.mean(line) for line in costs]
    axis.plot(places, values.mean(0), label=label, **style)
    axis.fill_between(
        places,
        values.min(0),
        values.max(0),
        color=style["color"],
        alpha=0.2,
        lw=0,
    )

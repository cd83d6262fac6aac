"""Pictures of the report: learning curves, and what was chosen over time."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.icontext import bootstrap  # noqa: E402

_DPI = 110
# Of what stands in several panels, so that a colour means one thing.
_SWEPT_STYLES = {
    "uniform": {"color": "0.4"},
    "learnability": {"color": "C0"},
    "easy-reference": {"color": "C1"},
    "hard-learner": {"color": "C2"},
    "stage 0": {"color": "C3"},
}


def _styles(cells):
    """Of the cells' curves: the first is black, the next ten have colours."""
    return {
        cell: {
            "color": f"C{(place - 1) % 10}" if place else "black",
            "ls": "-" if place < 11 else "--",
        }
        for place, cell in enumerate(cells)
    }


def frontier(runs, cells, path, rows):
    """Draw the measures of cells against all that they cost.

    Args:
        runs: `claims.Runs`.
        cells: `{name: label}` of those to draw; the others are compared with
            the first.
        path: PNG file.
        rows: of panels, the splits of each.

    Returns:
        Whether there was anything to draw.
    """
    if not cells:
        return False
    figure, axes = plt.subplots(
        *(len(rows), len(bootstrap.COSTS)),
        figsize=(13, 2 + 3 * len(rows)),
        squeeze=False,
        sharey="row",
    )
    styles = _styles(cells)
    first = runs.of(next(iter(cells)))
    for line, splits in zip(axes, rows, strict=True):
        for axis, (about, spent) in zip(
            line, bootstrap.COSTS.items(), strict=True
        ):
            for cell, label in cells.items():
                found = [
                    run
                    for run in runs.of(cell)
                    if bootstrap.comparable(spent, run, first[0])
                ]
                if found:
                    _curve(axis, found, splits, spent, label, styles[cell])
            target = np.mean([bootstrap.curve(x, splits)[1][-1] for x in first])
            axis.axhline(100 * target, color="0.4", ls=":", lw=1)
            axis.set_xscale("log")
            axis.set_xlabel(about)
            axis.grid(alpha=0.3)
        names = " and\n".join(splits) if splits[1:] else splits[0]
        line[0].set_ylabel(f"MRR, %, {names}")
    lines, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, fontsize=8, ncols=2, loc="lower center")
    below = 0.2 * (1 + -(-len(labels) // 2)) / figure.get_figheight()
    figure.tight_layout(rect=(0, below, 1, 1))
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
    return True


def sweeps(runs, panels, path):
    """Draw the measure of one seed against what is swept.

    Args:
        runs: `claims.Runs`.
        panels: `questions.Panel`s.
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
        *(1, len(panels)),
        figsize=(3.6 * len(panels), 3.6),
        squeeze=False,
        sharey=True,
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        lines = {label: line for label, line in drawn[panel].items() if line}
        for number, (label, line) in enumerate(lines.items()):
            places = [place for place, _ in line]
            values, low, high = 100 * np.array([one for _, one in line]).T
            axis.errorbar(
                # Beside each other, where they are of the same places.
                np.array(places) * 1.05 ** (number - (len(lines) - 1) / 2),
                values,
                (values - low, high - values),
                marker="o",
                capsize=3,
                label=label,
                **_SWEPT_STYLES.get(label, {}),
            )
        if panel.level and measured(panel.level):
            axis.axhline(
                100 * measured(panel.level).value,
                label="uniform",
                **_SWEPT_STYLES["uniform"] | {"ls": ":"},
            )
        axis.set_xscale("log")
        ticks = sorted({place for line in lines.values() for place, _ in line})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(panel.axis)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper left")
    # Of all at once, or what is drawn later would be cut off.
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].set_ylabel("MRR, %, seed 0")
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
    return True


def kinds(runs, cells, path):
    """Draw the shares of each kind of picture among the drawn, over time.

    The arguments are those of `frontier`. Dotted is a share of the pool.
    """
    # As in the frontier, where they are of the same cells.
    styles = _styles(cells)
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
            # Runs are of several lengths.
            share = 100 * np.array(found[0]["step"]) / found[0]["step"][-1]
            axis.plot(share, values.mean(0), label=cell, **styles[cell])
            axis.axhline(
                100 * found[0]["pool"][name], color="0.4", ls=":", lw=1
            )
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("% of the run")
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

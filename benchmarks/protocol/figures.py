"""Figures of a benchmark: scores against cost, and gain against forgetting."""

from typing import NamedTuple

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib import figure as mpl_figure

from benchmarks.protocol import tables
from benchmarks.protocol.measures import SCORE

_RC = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
_TICKS = 250 * 4.0 ** np.arange(-1, 6)  # steps
_APART = 13  # points between labels
_NEAR = 0.15  # of the score


class Panel(NamedTuple):
    """Scores of full schedules against FLOPs.

    Attributes:
        group: `tables.Group`, whose target sets the cost of a step.
        title: of the panel.
        curves: label, colour, style and mark of each method's line.
        reference: cell whose score is a horizontal line.
    """

    group: tables.Group
    title: str
    curves: dict[str, tuple[str, str, str, str]]
    reference: str = ""


def draw(panels, path):
    """Draws panels to a file, whose folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_RC):
        size = 5 * len(panels), 4.2
        figure = mpl_figure.Figure(figsize=size, layout="tight")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            _scores(axis, panel)
        figure.savefig(path, dpi=130)


def draw_changes(by_method, curves, path):
    """Draws gain against forgetting, a line from the start for each method.

    Args:
        by_method: as `phototext.contents.tuning` returns.
        curves: label, colour, style and mark of each method's line.
        path: the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_RC):
        figure = mpl_figure.Figure(figsize=(6.4, 4.2), layout="tight")
        axis, ends = figure.subplots(), []
        for method, (label, color, style, marker) in curves.items():
            if method not in by_method:
                continue
            mixes = sorted(by_method[method].items())
            means = [change.mean(0) for _, change in mixes]
            gain, forgotten = np.transpose([(0.0, 0.0), *means])
            options = {"color": color, "ls": style, "marker": marker}
            axis.plot(forgotten, gain, **options, lw=2, ms=5)
            ends.append((forgotten[-1], gain[-1], label, color))
        axis.set(xlabel="lost on other photographs, mean reciprocal rank x 100")
        axis.set(ylabel="gained on the shop's")
        axis.set_xlim(right=1.5 * axis.get_xlim()[1])
        _label(axis, ends)
        figure.savefig(path, dpi=130)


def _scores(axis, panel):
    results, noise = panel.group.results, panel.group.noise
    ends = []
    for method, (label, color, style, marker) in panel.curves.items():
        lines = results.ladder(method, noise)
        if lines and results.target(noise):
            bills = [results.bill(line, "paper") for line in lines]
            scores = [100 * results.end(line)[0] for line in lines]
            options = {"color": color, "ls": style, "marker": marker}
            axis.plot(bills, scores, **options, lw=2, ms=5)
            ends.append((bills[-1], scores[-1], label, color))
    if panel.reference in results.runs.index:
        score = 100 * results.runs.loc[panel.reference][SCORE].mean()
        axis.axhline(score, color="0.85", lw=1, zorder=0)
        # On the right, unless a label is near there.
        right = [y for _, y, label, _ in ends if "\n" not in label]
        is_near = any(abs(y / score - 1) < _NEAR for y in right)
        axis.annotate(
            *("the reference", (1 - is_near, score), (5 if is_near else -5, 5)),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="left" if is_near else "right",
            color="0.5",
        )
    axis.set_title(panel.title, loc="left")
    axis.set(xlabel="FLOPs, in steps of uniform training")
    axis.set(ylabel="mean reciprocal rank x 100")
    axis.set_xscale("log", base=2)
    low, high = axis.get_xlim()
    low, high = low / 3, 5 * high
    axis.set_xlim(low, high)
    shown = [tick for tick in _TICKS if low <= tick <= high]
    axis.set_xticks(shown, map("{:,.0f}".format, shown))
    axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axis.set_ylim(0, 1.12 * axis.get_ylim()[1])
    _label(axis, ends)


def _label(axis, ends):
    """Labels beside the ends of curves; a label of two lines is on the left.

    Those on the right are moved up where they would hide each other.
    """
    # Points of the panel by score, about.
    scale = 72 * axis.figure.get_figheight() * 0.75 / axis.get_ylim()[1]
    before = -np.inf
    for x, y, label, color in sorted(ends, key=lambda end: end[1]):
        is_left, place = "\n" in label, scale * y
        if not is_left:
            place = before = max(place, before + _APART)
        axis.annotate(
            *(label, (x, y), (-14 if is_left else 7, place - scale * y)),
            textcoords="offset points",
            va="bottom" if is_left else "center",
            ha="right" if is_left else "left",
            color=color,
            bbox={"fc": "white", "ec": "none", "pad": 0, "alpha": 0.8},
            zorder=1 if is_left else 3,
        )

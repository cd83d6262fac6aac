"""Line charts as inline SVG, drawn by matplotlib without a display."""

import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import markupsafe
import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure

KEPT, DROPPED, UNIFORM, CHANCE = "#c2410c", "#64748b", "#2563eb", "#a1a1aa"

_MAX_POINTS = 500
# Replaced by the page's text colour, so that charts follow dark mode.
_TEXT = "#010203"
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 11,
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "text.color": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "legend.frameon": False,
    "grid.color": "#8883",
    "path.simplify": True,
}


class Line(NamedTuple):
    """A line of a chart, with a shaded band of lower and upper values."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None


class Chart(NamedTuple):
    """A chart of a page: its title and its SVG element."""

    title: str
    svg: markupsafe.Markup


def draw(
    title: str,
    lines: Sequence[Line],
    *,
    xlabel: str = "step",
    unit_range: bool = False,
) -> Chart:
    """Draws lines over their bands, each thinned to 500 points.

    `unit_range` shows the range [0, 1] whatever the values.
    """
    with matplotlib.rc_context(_STYLE):
        figure = mpl_figure.Figure(figsize=(5, 3.1), layout="constrained")
        axes = figure.subplots()
        shown = [line for line in lines if len(line.x)]
        for line in shown:
            _add(axes, line)
        axes.set(xlabel=xlabel, ylim=(0, 1) if unit_range else None)
        axes.tick_params(length=0)
        if shown:
            wide = sum(len(line.label) for line in shown) > 36
            figure.legend(
                loc="outside lower center", ncols=2 if wide else 3, fontsize=10
            )
        written = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(
            written, format="svg", transparent=True, metadata=nothing
        )
    return Chart(title, _inline(written.getvalue()))


def histogram(
    title: str,
    groups: Sequence[tuple[str, str, np.ndarray]],
    edges: np.ndarray,
    xlabel: str,
) -> Chart:
    """Draws shares of values by bin; the outer bins include outliers.

    Args:
        title: shown above the chart.
        groups: label, colour and values `[k]` of each.
        edges: of the bins, ascending.
        xlabel: name of the horizontal axis.
    """
    middles = (edges[:-1] + edges[1:]) / 2
    lines = []
    for label, colour, values in groups:
        clipped = np.clip(values, edges[0], edges[-1])
        shares = np.histogram(clipped, edges)[0] / max(1, len(values))
        band = (np.zeros_like(shares), shares)
        lines.append(Line(label, colour, middles, shares, band))
    return draw(title, lines, xlabel=xlabel)


def evenly(length: int, count: int) -> np.ndarray:
    """Returns at most `count` indices, with the first and the last."""
    places = np.linspace(0, length - 1, min(count, length))
    return places.round().astype(int)


def _add(axes, line):
    places = evenly(len(line.x), _MAX_POINTS)
    x, y = np.asarray(line.x)[places], np.asarray(line.y)[places]
    dashed = "--" if line.colour == CHANCE else "-"
    # The limits hold every point, so nothing is clipped; clipping needs ids.
    style = {"color": line.colour, "clip_on": False}
    axes.plot(x, y, dashed, label=line.label, **style)
    if line.band is not None:
        lower, upper = (np.asarray(one)[places] for one in line.band)
        around = np.concatenate([lower, upper[::-1]])
        axes.fill(np.concatenate([x, x[::-1]]), around, alpha=0.15, **style)


def _inline(svg):
    """The SVG element without ids, which would repeat in a page."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r' (?:id|xmlns[:\w]*|clip-path)="[^"]*"', "", element)
    element = re.sub(r"<defs>.*?</defs>", "", element, flags=re.DOTALL)
    element = re.sub(r' (?:width|height)="[\d.]+pt"', "", element)
    return markupsafe.Markup(element.replace(_TEXT, "currentColor"))

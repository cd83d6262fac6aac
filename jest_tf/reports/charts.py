"""Line charts as inline SVG, drawn by matplotlib without a display."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import markupsafe
import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure

KEPT, DROPPED, UNIFORM = "#c2410c", "#64748b", "#2563eb"

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
    "axes.xmargin": 0.01,
    "legend.frameon": False,
    "grid.color": "#8883",
    "path.simplify": True,
}


class Line(NamedTuple):
    """A line of a chart."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]


class Chart(NamedTuple):
    """A chart of a page: its title and its SVG element."""

    title: str
    svg: markupsafe.Markup


def draw(title: str, lines: Sequence[Line], xlabel: str) -> Chart:
    """Draws the lines that have points, with a legend below."""
    with _figure() as (figure, axes):
        for line in lines:
            if len(line.x):
                _add(axes, line)
        return _finish(title, figure, axes, xlabel)


def histogram(
    title: str,
    groups: Sequence[tuple[str, str, np.ndarray]],
    edges: np.ndarray,
    xlabel: str,
) -> Chart:
    """Draws shares of values by bin; the outer bins include outliers.

    Args:
        groups: label, colour and values `[k]` of each group.
        edges: edges of the bins, ascending.
    """
    middles = (edges[:-1] + edges[1:]) / 2
    with _figure() as (figure, axes):
        for label, colour, values in groups:
            clipped = np.clip(values, edges[0], edges[-1])
            shares = np.histogram(clipped, edges)[0] / max(1, len(values))
            _add(axes, Line(label, colour, middles, shares))
            around = np.pad(middles, 1, "edge"), np.pad(shares, 1)
            axes.fill(*around, color=colour, alpha=0.15, clip_on=False)
        return _finish(title, figure, axes, xlabel)


def evenly(length: int, count: int) -> np.ndarray:
    """Returns at most `count` evenly spread indices in [0, length).

    The first and the last are among them; if `count` is 1, only the first.
    """
    places = np.linspace(0, length - 1, min(count, length))
    return places.round().astype(int)


@contextlib.contextmanager
def _figure():
    with matplotlib.rc_context():
        # A `matplotlibrc` in the working directory may be someone else's, and
        # have LaTeX set the text.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = mpl_figure.Figure(figsize=(4.4, 2.9), layout="constrained")
        axes = figure.subplots()
        axes.tick_params(length=0)
        yield figure, axes


def _finish(title, figure, axes, xlabel):
    axes.set(xlabel=xlabel)
    figure.legend(loc="outside lower center", ncols=2, fontsize=10)
    written = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    svg = written.getvalue()
    # Without ids, of which a page would have duplicates.
    element = svg[svg.index("<svg") :]
    element = re.sub(r' (?:id|xmlns[:\w]*|clip-path)="[^"]*"', "", element)
    element = re.sub(r"<defs>.*?</defs>", "", element, flags=re.DOTALL)
    element = re.sub(r' (?:width|height)="[\d.]+pt"', "", element)
    element = element.replace(_TEXT, "currentColor")
    return Chart(title, markupsafe.Markup(element))


def _add(axes, line):
    # Width distinguishes the main line where colours do not.
    axes.plot(
        line.x,
        line.y,
        label=line.label,
        color=line.colour,
        linewidth=2.2 if line.colour == KEPT else 1.3,
        clip_on=False,  # clipping needs ids; points lie within the limits
    )

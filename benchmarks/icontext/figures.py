"""The figures of the web-like data: scores against cost, and the map."""

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib import figure as mpl_figure

_LEVEL = 0.7  # of noise, where no other is named
_RC = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
# Methods with their labels and marks, in all figures.
_METHODS = {
    "clean": ("clean pairs alone", "0.55", "--", "D"),
    "bootstrapped": ("bootstrapped cascade", "black", "-", "o"),
    "renewed": ("curated reference, renewed", "0.35", ":", "s"),
    "jest_curated": ("JEST, curated reference", "0.35", "-.", "x"),
    "mixed_8": ("an eighth curated", "0.55", "-", "^"),
}


def draw(found, folder):
    """Draws web.png and map.png.

    Args:
        found: `measures.Results`.
        folder: to write to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_RC):
        _web(found).savefig(folder / "web.png", dpi=130)
        _map(found).savefig(folder / "map.png", dpi=130)


def _web(found):
    """Scores of full schedules against all FLOPs."""
    figure = mpl_figure.Figure(figsize=(7, 4.4), layout="tight")
    axis = figure.subplots()
    marks = {"uniform": ("uniform", "0.55", "-", ".")} | _METHODS
    for method in ("clean", "bootstrapped", "mixed_8", "uniform"):
        lines = found.ladder(method, _LEVEL)
        if not lines:
            continue
        label, color, style, marker = marks[method]
        bills = [found.bill(line) for line in lines]
        scores = [100 * found.end(line)[0] for line in lines]
        options = {"color": color, "ls": style, "marker": marker}
        axis.plot(bills, scores, **options, lw=2, ms=5)
        _label(axis, label, (bills[-1], scores[-1]), (8, 0), va="center")
    axis.set_title("Score against compute at 70 % noise", loc="left")
    axis.set_xscale("log", base=2)
    axis.set_xlim(right=90_000)
    _marked(axis.xaxis, 1000 * 2.0 ** np.arange(-1, 6), "{:,.0f}")
    axis.set(xlabel="FLOPs, everything counted, in uniform steps")
    axis.set(ylabel="mean reciprocal rank x 100")
    axis.set_ylim(bottom=0)
    return figure


def _map(found):
    """Score ratios over noise, and over compute."""
    figure = mpl_figure.Figure(figsize=(9, 4.6))
    by_noise, by_compute = figure.subplots(1, 2)
    for method, (label, color, style, marker) in _METHODS.items():
        marks = {"color": color, "ls": style, "marker": marker, "ms": 5}
        lines = _over_noise(found, method)
        places = [100 * line.noise for line in lines]
        _ratios(by_noise, found, places, lines, marks)
        lines = found.ladder(method, _LEVEL)
        places = [found.bill(line) for line in lines]
        _ratios(by_compute, found, places, lines, marks)
        by_noise.plot([], [], **marks, label=label)
    for axis, title, words in (
        (by_noise, "Noise", "noise in the pool, %"),
        (
            *(by_compute, "Compute"),
            "all FLOPs, in uniform steps, at 70 % noise",
        ),
    ):
        axis.set_title(title, loc="left", fontsize=11)
        axis.set(xlabel=words, ylabel="score / uniform's, equal FLOPs")
        axis.axhline(1.0, color="0.3", lw=1)
        axis.set_yscale("log", base=2)
        _marked(axis.yaxis, 2.0 ** np.arange(-2, 5), "{:g}x")
    by_compute.set_xscale("log", base=2)
    _marked(by_compute.xaxis, 1000 * 2.0 ** np.arange(-1, 6), "{:,.0f}")
    figure.tight_layout(rect=(0, 0, 1, 0.88), w_pad=2)
    figure.legend(loc="upper center", ncols=3, frameon=False)
    return figure


def _over_noise(found, method):
    """Lines of a method at the longest length that most levels share."""
    lines = [
        line for level in found.levels for line in found.ladder(method, level)
    ]
    levels = {}
    for line in lines:
        levels.setdefault(line.steps, set()).add(line.noise)
    shared = max(levels, key=lambda n: (len(levels[n]), n), default=None)
    return [line for line in lines if line.steps == shared]


def _ratios(axis, found, places, lines, marks):
    """Score ratios with their band."""
    ratios = [found.over_uniform(line) for line in lines]
    points = [(x, *one) for x, one in zip(places, ratios, strict=True) if one]
    if points:
        places, values, low, high = zip(*points, strict=True)
        axis.plot(places, values, **marks, lw=1.8)
        color = marks["color"]
        axis.fill_between(places, low, high, color=color, alpha=0.12, lw=0)


def _label(axis, text, point, shift, **options):
    axis.annotate(text, point, shift, textcoords="offset points", **options)


def _marked(axis, ticks, form):
    """Those of the ticks that an axis shows, and no others."""
    low, high = axis.get_view_interval()
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(shown, map(form.format, shown))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())

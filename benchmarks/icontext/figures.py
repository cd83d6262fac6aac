"""The figures of the web-like data: scores against cost, and the map."""

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib import figure as mpl_figure

from benchmarks.icontext import cells

_LEVEL = 0.7  # of noise, where no other is named
_RC = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
# Labels and marks of methods, in both figures.
_GIVEN = {
    "uniform": ("uniform", "0.6", "-", "."),
    "clean": ("the pool's\nclean pairs", "0.6", "--", "D"),
    "distilled": ("distillation alone", "0.35", ":", "s"),
    "jest": ("JEST", "tab:blue", "-", "o"),
    "easy_reference": ("live easy-reference", "tab:green", "--", "x"),
    "stored_3_distilled": ("stored stage, distillation", "black", "-", "o"),
}
_OWN = {
    **{method: _GIVEN[method] for method in ("uniform", "clean")},
    "mixed_8": ("an eighth curated", "0.35", ":", "^"),
    "bootstrapped": ("stored stage, bootstrapped", "tab:red", "-", "v"),
}
# Where a label is not beside the end of its line: point, offset, alignment.
_PLACES = {
    "clean": (-1, (-8, 6), "right"),
    "distilled": (0, (-8, -4), "right"),
    "stored_3_distilled": (-1, (7, 5), "left"),
}
# Methods by references of several strengths.
BY_STRENGTH = "jest", "easy_reference", "distilled", "stored_3_distilled"
# Steps of the runs that the map compares, by regime.
_OWN_STEPS, _GIVEN_STEPS = 1400, 700


def draw(found, folder):
    """Draws results.png and map.png.

    Args:
        found: `report.Found`.
        folder: to write to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_RC):
        _scores(found).savefig(folder / "results.png", dpi=130)
        _map(found).savefig(folder / "map.png", dpi=130)


def _scores(found):
    """Scores of full schedules against FLOPs, in both regimes."""
    figure = mpl_figure.Figure(figsize=(10, 4.2), layout="tight")
    given, own = figure.subplots(1, 2)
    for axis, results, methods, title in (
        (
            given,
            found.narrow,
            _GIVEN,
            "Strong reference, small learner, 70 % noise",
        ),
        (own, found.own, _OWN, "4,000 clean pairs, no model, 70 % noise"),
    ):
        for method, (label, color, style, marker) in methods.items():
            lines = results.ladder(method, _LEVEL)
            if not (lines and results.target(_LEVEL)):
                continue
            bills = [results.bill(line, "paper") for line in lines]
            scores = [100 * results.end(line)[0] for line in lines]
            options = {"color": color, "ls": style, "marker": marker}
            axis.plot(bills, scores, **options, lw=2, ms=5)
            index, offset, side = _PLACES.get(method, (-1, (7, 0), "left"))
            axis.annotate(
                *(label, (bills[index], scores[index]), offset),
                textcoords="offset points",
                va="center",
                ha=side,
                color=color,
                bbox={"fc": "white", "ec": "none", "pad": 0},
                zorder=1,
            )
        if results is found.narrow and cells.STRONG in results.runs.index:
            score = 100 * results.runs.loc[cells.STRONG, 0]["test_sets"]
            axis.axhline(score, color="0.85", lw=1, zorder=0)
            axis.annotate(
                *("the reference", (1, score), (0, 5)),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                color="0.5",
            )
        axis.set_title(title, loc="left")
        axis.set_xscale("log", base=2)
        low, high = axis.get_xlim()
        axis.set_xlim(low / 3, 5 * high)
        _marked(axis.xaxis, 250 * 4.0 ** np.arange(-1, 6), "{:,.0f}")
        axis.set(xlabel="FLOPs, in steps of uniform training")
        axis.set(ylabel="mean reciprocal rank x 100")
        axis.set_ylim(0, 1.06 * axis.get_ylim()[1])
    return figure


def _map(found):
    """Score ratios over noise, and over the strength of the reference."""
    by_strength = {
        method: strength(found.same, method) for method in BY_STRENGTH
    }
    figure = mpl_figure.Figure(figsize=(10, 4.2), layout="tight")
    axes = figure.subplots(1, 2)
    for results, methods, steps, shown in (
        (found.same, _GIVEN, _GIVEN_STEPS, ("jest", "stored_3_distilled")),
        (found.own, _OWN, _OWN_STEPS, ("bootstrapped",)),
    ):
        for method in shown:
            lines = [
                line
                for level in results.levels
                if (line := results.line(method, level, steps))
            ]
            places = [100 * line.noise for line in lines]
            _ratios(axes[0], results, places, lines, methods[method])
    for method, (strengths, lines) in by_strength.items():
        _ratios(axes[1], found.same, strengths, lines, _GIVEN[method])
    for axis, title, words in zip(
        axes,
        ("Noise", "The reference's strength"),
        (
            "noise in the pool, %",
            "reference's score / learner's target, at 70 % noise",
        ),
        strict=True,
    ):
        axis.set_title(title, loc="left")
        axis.set(
            xlabel=words, ylabel="score / uniform training's, at equal FLOPs"
        )
        axis.axhline(1.0, color="0.3", lw=1)
        axis.set_yscale("log", base=2)
        _marked(axis.yaxis, 2.0 ** np.arange(-2, 5), "{:g}x")
        axis.legend(frameon=False)
    return figure


def strength(results, method):
    """Lines of a method by references of each strength.

    Returns:
        The references' scores over the target's, increasing, and `Line`s.
    """
    best, found = results.target(_LEVEL), []
    for reference in results.ladder("reference", _LEVEL) if best else ():
        name = f"{method}_by_{reference.steps}"
        if reference.cell == cells.STRONG:
            name = method
        line = results.line(name, _LEVEL, _GIVEN_STEPS)
        if line:
            ratio = results.end(reference)[0] / results.end(best)[0]
            found.append((ratio, line))
    return [place for place, _ in found], [line for _, line in found]


def _ratios(axis, results, places, lines, marks):
    """Score ratios at equal FLOPs in the paper's count, with their band."""
    ratios = [results.over_uniform(line, "paper") for line in lines]
    points = [
        (x, *ratio) for x, ratio in zip(places, ratios, strict=True) if ratio
    ]
    if points:
        label, color, style, marker = marks
        places, values, low, high = zip(*points, strict=True)
        options = {"color": color, "ls": style, "marker": marker}
        axis.plot(places, values, **options, lw=1.8, ms=5, label=label)
        axis.fill_between(places, low, high, color=color, alpha=0.12, lw=0)


def _marked(axis, ticks, form):
    """Those of the ticks that an axis shows, and no others."""
    low, high = axis.get_view_interval()
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(shown, map(form.format, shown))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())

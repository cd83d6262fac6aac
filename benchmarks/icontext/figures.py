"""The report's pictures: grey lines, labelled where they end."""

import contextlib

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib import figure as mpl_figure

from benchmarks.icontext import gains as gains_lib
from benchmarks.icontext import targets

_DPI = 130
_STYLES = (
    {"color": "0.55", "lw": 2.0},
    {"color": "black", "lw": 2.0},
    {"color": "black", "lw": 2.0, "ls": "--"},
    {"color": "black", "lw": 1.5, "ls": ":"},
    {"color": "0.55", "lw": 2.0, "ls": "--"},
)
_RC = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}


@contextlib.contextmanager
def _axis(height, title, path, pad=6):
    """Yields an axis to draw on; then the picture is written."""
    with matplotlib.rc_context(_RC):
        figure = mpl_figure.Figure(figsize=(7, height))
        axis = figure.subplots()
        yield axis
        axis.set_title(title, loc="left", fontsize=13, pad=pad)
        figure.tight_layout()
        figure.savefig(path, dpi=_DPI)


def _label(axis, text, point, shift, **options):
    axis.annotate(text, point, shift, textcoords="offset points", **options)


def frontier(comparison, cells, title, path):
    """Draw the score against the examples trained on.

    Args:
        comparison: `comparison.Comparison`.
        cells: `{cell: (label, place, shift, alignment)}`: a label stands at
            the evaluation `place`, shifted by (x, y) points.
        title: the picture's message.
        path: PNG file.
    """
    with _axis(4.6, title, path, pad=14) as axis:
        for (cell, label), style in zip(cells.items(), _STYLES, strict=False):
            runs = comparison.of(cell)
            scores = 100 * np.mean([run.curve() for run in runs], axis=0)
            examples = targets.examples(runs[0], runs[0].steps)
            axis.plot(examples, scores, **style)
            text, place, shift, alignment = label
            point = examples[place], scores[place]
            _label(axis, text, point, shift, va="center", ha=alignment)
        target = 100 * comparison.score(comparison.uniform).value
        axis.axhline(target, color="0.55", lw=1)
        coordinates = "axes fraction", "data"
        _label(axis, "target", (0.01, target), (0, 4), xycoords=coordinates)
        axis.set_xscale("log")
        axis.set(xlabel="examples trained on", ylabel="score", ylim=(0, 40))


def ladders(lines, places, title, path):
    """Draw the scores of full schedules against all FLOPs that they took.

    Args:
        lines: `{label: (uniform steps of as many FLOPs, scores)}`.
        places: `{label: (place, shift, alignment)}`, where a label stands.
        title: the picture's message.
        path: PNG file.
    """
    with _axis(4.4, title, path, pad=12) as axis:
        ticks, highest = set(), 0.0
        for (label, (bills, scores)), style in zip(
            lines.items(), _STYLES, strict=False
        ):
            axis.plot(bills, scores, marker="o", ms=4, **style)
            place, shift, alignment = places[label]
            point = bills[place], scores[place]
            _label(axis, label, point, shift, va="center", ha=alignment)
            ticks |= {*bills}
            highest = max(highest, *scores)
        axis.set_xscale("log", base=2)
        first, last = min(ticks), max(ticks)
        marks = [
            mark
            for mark in (500, 1000, 2000, 4000, 8000, 16_000, 32_000)
            if first / 1.5 <= mark <= 1.5 * last
        ]
        axis.set_xticks(marks, [f"{mark:,}" for mark in marks])
        axis.minorticks_off()
        axis.set(
            xlabel="FLOPs, everything counted, in uniform steps",
            ylabel="mean reciprocal rank x 100",
            ylim=(0, 1.15 * highest),
        )


# Marks of `gains.LABELS`, in every panel.
_MARKS = {
    "oracle": {"color": "0.55", "ls": "--", "marker": "D"},
    "bootstrapped": {"color": "black", "ls": "-", "marker": "o"},
    "renewed": {"color": "0.35", "ls": ":", "marker": "s"},
    "jest_curated": {"color": "0.35", "ls": "-.", "marker": "x"},
    "mixed_8": {"color": "0.55", "ls": "-", "marker": "^"},
}
_SIZES = {"lw": 1.8, "ms": 5}
# Ratios of examples whose rays are drawn; the paper's own is in bold.
_RAYS, _PAPER = (2, 4, 13), 13
_LABELLED = "bootstrapped"  # by the noise, in the panel of leads


def gains(found, level, path, others=()):
    """Draw when selection pays: over noise, curated pairs and compute.

    The fourth panel has the lead at equal steps over the baseline's slope: on a
    ray from the corner the ratio of examples, 2^(lead / slope), is the same.

    Args:
        found: `gains.Gains`.
        level: share of noise of the panels of one level.
        path: PNG file.
        others: `(label, slope, lead)` of other data, in points.
    """
    with matplotlib.rc_context(_RC | {"font.size": 10}):
        figure = mpl_figure.Figure(figsize=(9, 8))
        (by_noise, by_curated), (by_compute, leads) = figure.subplots(2, 2)
        lines = {
            method: (
                [(100 * one.noise, one) for one in found.by_noise(method)],
                found.by_curated(method, level),
                [(one.bill, one) for one in found.by_compute(method, level)],
            )
            for method in _MARKS
        }
        at_level = f"at {100 * level:.0f} % noise"
        for place, (axis, title, words) in enumerate(
            (
                (by_noise, "Noise", _noise_words(found)),
                (
                    *(by_curated, "Curated pairs"),
                    f"curated pairs, {at_level}",
                ),
                (
                    *(by_compute, "Compute"),
                    f"all FLOPs, in uniform steps, {at_level}",
                ),
            )
        ):
            for method, marks in _MARKS.items():
                points = lines[method][place]
                _gain(axis, [(x, one.gain) for x, one in points], marks)
                if method == _LABELLED:
                    _headroom(axis, found, points)
            if not any(panels[place] for panels in lines.values()):
                axis.text(0.5, 0.6, "not run yet", transform=axis.transAxes)
            axis.set_title(title, loc="left", fontsize=11)
            axis.set(xlabel=words, ylabel="score / uniform's, equal FLOPs")
            axis.axhline(1.0, color="0.3", lw=1)
            axis.set_yscale("log", base=2)
            _marked(axis.yaxis, (0.25, 0.5, 1, 2, 4, 8, 16), "{:g}x")
        for axis in (by_curated, by_compute):
            axis.set_xscale("log", base=2)
            _marked(axis.xaxis, (250, 1000, 4000, 16_000), "{:,}")
        _label(
            *(by_noise, "%: of the oracle's lead", (0.02, 0.97), (0, 0)),
            **{"xycoords": "axes fraction", "va": "top", "fontsize": 8},
        )
        _leads(leads, found, others)
        handles = [
            by_noise.plot([], [], **marks, **_SIZES)[0]
            for marks in _MARKS.values()
        ]
        figure.tight_layout(rect=(0, 0, 1, 0.93), h_pad=2, w_pad=2)
        figure.legend(
            *(handles, [gains_lib.LABELS[method] for method in _MARKS]),
            **{"loc": "upper center", "ncols": 3, "frameon": False},
        )
        figure.savefig(path, dpi=_DPI)


def _noise_words(found):
    """The label of the panel over noise, with the lengths of the runs."""
    methods = {}
    for method in _MARKS:
        for line in found.by_noise(method)[:1]:
            methods.setdefault(line.steps, []).append(gains_lib.LABELS[method])
    if not methods:
        return "noise in the pool, %"
    usual = max(methods, key=lambda steps: len(methods[steps]))
    others = "".join(
        f"; {', '.join(labels)}: {steps:,}"
        for steps, labels in methods.items()
        if steps != usual
    )
    return f"noise in the pool, %\n(after {usual:,} steps{others})"


def _gain(axis, points, marks):
    """A line with its interval."""
    if not points:
        return
    places, gain = zip(*points, strict=True)
    mean, low, high = (
        [one[end] for one in gain] for end in ("mean", "low", "high")
    )
    axis.plot(places, mean, **marks, **_SIZES)
    axis.fill_between(places, low, high, color=marks["color"], alpha=0.12, lw=0)


def _headroom(axis, found, points):
    """Shares of the oracle's lead, above the points of a line."""
    for x, line in points:
        share = found.headroom(line.noise, line.steps, line.lead)
        if share is not None:
            words = f"{100 * share:.0f} %"
            options = {"ha": "center", "va": "bottom", "fontsize": 8}
            _label(axis, words, (x, line.gain["mean"]), (0, 5), **options)


def _marked(axis, ticks, form):
    """Those of the ticks that an axis shows, and no others."""
    low, high = axis.get_view_interval()
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(shown, map(form.format, shown))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


def _leads(axis, found, others):
    """Leads over slopes, with the rays of equal ratios."""
    highest = widest = 0.0
    for method, marks in _MARKS.items():
        lines = [
            line
            for line in found.by_noise(method)
            if line.lead is not None and line.slope
        ]
        for line in lines:
            axis.plot(line.slope, line.lead, **marks, **_SIZES)
            if method == _LABELLED:
                noise = f"{100 * line.noise:.0f} %"
                point = line.slope, line.lead
                _label(axis, noise, point, (6, 0), va="center", fontsize=8)
            widest = max(widest, line.slope)
            highest = max(highest, line.lead)
    for label, slope, lead in others:
        axis.plot(slope, lead, marker="*", color="0.3", ms=10, ls="none")
        place = {"ha": "center", "va": "top", "fontsize": 8}
        _label(axis, label, (slope, lead), (0, -6), **place)
        widest, highest = max(widest, slope), max(highest, lead)
    axis.axhline(0.0, color="0.3", lw=1)
    if not widest:
        return
    axis.set_xlim(0, 1.2 * widest)
    axis.set_ylim(top=1.2 * highest)
    for ratio in _RAYS:
        doublings = np.log2(ratio)
        x = min(1.2 * widest, 1.1 * highest / doublings)
        bold = {"fontweight": "bold"} if ratio == _PAPER else {}
        axis.plot([0, x], [0, x * doublings], color="0.8", lw=1, zorder=0)
        words = f"{ratio}x" + " as in the paper" * (ratio == _PAPER)
        _label(
            *(axis, words, (x, x * doublings), (-2, 2)),
            **{"ha": "right", "fontsize": 8, "color": "0.45"},
            **bold,
        )
    axis.set_title("Why: 2^(lead / slope) by rays", loc="left", fontsize=11)
    axis.set(
        xlabel="slope: points that uniform gains by a doubling",
        ylabel="lead in points at equal steps",
    )

"""The report's pictures: grey lines, labelled where they end."""

import contextlib

import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure

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
        ticks = set()
        for (label, (bills, scores)), style in zip(
            lines.items(), _STYLES, strict=False
        ):
            axis.plot(bills, scores, marker="o", ms=4, **style)
            place, shift, alignment = places[label]
            point = bills[place], scores[place]
            _label(axis, label, point, shift, va="center", ha=alignment)
            ticks |= {*bills}
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
            ylabel="score",
            ylim=(0, None),
        )

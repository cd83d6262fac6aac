"""The report's pictures: grey lines, labelled where they end."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.icontext import targets  # noqa: E402

_DPI = 130
_STYLES = (
    {"color": "0.55", "lw": 2.0},
    {"color": "black", "lw": 2.0},
    {"color": "black", "lw": 2.0, "ls": "--"},
    {"color": "black", "lw": 1.5, "ls": ":"},
    {"color": "0.55", "lw": 2.0, "ls": "--"},
)


def _style():
    return plt.rc_context(
        {
            "font.size": 12,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )


def frontier(comparison, cells, title, path):
    """Draw the score against the examples trained on.

    Args:
        comparison: `comparison.Comparison`.
        cells: `{cell: (label, place, shift, alignment)}`: a label stands at
            the evaluation `place`, shifted by (x, y) points.
        title: of the picture, its message.
        path: PNG file.
    """
    with _style():
        figure, axis = plt.subplots(figsize=(7, 4.6))
        for (cell, label), style in zip(cells.items(), _STYLES, strict=False):
            runs = comparison.of(cell)
            scores = 100 * np.mean([run.curve() for run in runs], axis=0)
            examples = targets.examples(runs[0], runs[0].steps)
            axis.plot(examples, scores, **style)
            text, place, shift, alignment = label
            axis.annotate(
                text,
                (examples[place], scores[place]),
                shift,
                textcoords="offset points",
                va="center",
                ha=alignment,
            )
        target = 100 * comparison.score(comparison.uniform).value
        axis.axhline(target, color="0.55", lw=1)
        axis.annotate(
            "target",
            (0.01, target),
            (0, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
        )
        axis.set_xscale("log")
        axis.set_xlabel("examples trained on")
        axis.set_ylabel("score")
        axis.set_ylim(0, 40)
        axis.set_title(title, loc="left", fontsize=13, pad=14)
        figure.tight_layout()
        figure.savefig(path, dpi=_DPI)
        plt.close(figure)


def filter_ratios(comparison, lines, base, title, path):
    """Draw gains over uniform training against the size of a super-batch.

    Args:
        comparison: `comparison.Comparison`.
        lines: `{(label, its shift in points): {super-batch / b: cell}}`.
        base: the uniform cell.
        title: of the picture, its message.
        path: PNG file.
    """
    with _style():
        figure, axis = plt.subplots(figsize=(7, 4.2))
        for (label, line), style in zip(lines.items(), _STYLES, strict=False):
            text, shift = label
            gains = [
                comparison.difference(cell, base) for cell in line.values()
            ]
            values, low, high = 100 * np.array(gains).T
            axis.errorbar(
                list(line),
                values,
                (values - low, high - values),
                marker="o",
                ms=4,
                capsize=3,
                **style,
            )
            axis.annotate(
                text,
                (list(line)[-1], values[-1]),
                (10, shift),
                textcoords="offset points",
                va="center",
            )
        axis.axhline(0, color="0.55", lw=1)
        axis.set_xscale("log")
        places = list(next(iter(lines.values())))
        names = [f"{place}\nf = {1 - 1 / place:.2g}" for place in places]
        axis.set_xticks(places, names)
        axis.minorticks_off()
        axis.set_xlim(right=2.2 * places[-1])
        axis.set_xlabel("super-batch / sub-batch")
        axis.set_ylabel("points above uniform")
        axis.set_title(title, loc="left", fontsize=13)
        figure.tight_layout()
        figure.savefig(path, dpi=_DPI)
        plt.close(figure)

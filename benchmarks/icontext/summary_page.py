"""The tables of the web-like data in Markdown, of `summary.py`'s numbers."""

import numpy as np

from benchmarks import report
from benchmarks.icontext import targets

_SCORES = (
    *("method", "steps", "seeds", "score"),
    *("concepts", "less the target's", "styles", "less the target's"),
    *("clean pairs, first to last", "of the oracle's", "lead", "slope"),
    "2^(lead / slope)",
)
_COSTS = (
    *("method", "steps", "bill in uniform steps: scores / reference / all"),
    *("uniform at this bill", "score over the target"),
    "to its own end: examples / FLOPs",
    "first crossing: examples / FLOPs",
    *("examples", "FLOPs, scores", "with reference", "all"),
    *("mixture's examples", "and FLOPs"),
)
_LEGEND = """# IconText's web-like data: every method at every length

Scores are mean reciprocal ranks x 100; brackets are 95 % intervals. *Bill*: all
FLOPs of a run in uniform steps: scores alone; with the training of references;
with all embeddings, too. *First crossing*: the run stops when its validation
curve first reaches the target. *To its own end*: how much less the method
spends than uniform training on the method's last score, or on the target if
that is lower. *Lead* and *slope*: points above uniform training after as many
steps, and its points by a doubling from there to the target's score. A ratio of
0 is a missed target; a dash was not measured. [report.md](report.md) reads the
tables; `python -m benchmarks.icontext.summary --help` has the definitions."""


def render(values, lines):
    """The content of summary.md.

    Args:
        values: the content of summary.json.
        lines: `ladders.Line`s, of which `values` has a row in each list.
    """
    targets = {one["noise"]: one for one in values["targets"]}
    parts = [_LEGEND]
    for level in dict.fromkeys(line.level for line in lines):
        places = [n for n, line in enumerate(lines) if line.level == level]
        scores = [_scores(lines[place], values, place) for place in places]
        title = f"{level:.0%} of noise" if level else "No noise added"
        parts += [f"## {title}", report.table(_SCORES, scores)]
        if level in targets:
            costs = [_costs(lines[place], values, place) for place in places]
            parts.insert(-1, _target(targets[level]))
            parts.append(report.table(_COSTS, costs))
    return "\n\n".join(parts) + "\n"


def _target(target):
    words = (
        f"Uniform training ends best at {target['steps']:,} steps, with "
        f"{_percent(target['score'])}: the target. It first has this score "
        f"after {target['reached']['mean']:,.0f} steps."
    )
    if target["is_longest"]:
        words += (
            " It is the longest length that was run: a longer one may end "
            "higher, and ratios to that end would be others."
        )
    if target["mixture"]:
        words += f" The best mixture is `{target['mixture']}`, which "
        reached = target["mixture_reached"]
        words += (
            f"is there after {reached['mean']:,.0f} steps."
            if reached
            else "never gets there."
        )
    return words


def _scores(line, values, place):
    row, held_out = values["rows"][place], dict(values["held_out"][place])
    lead, slope = row["lead"], row["slope"]
    times = "-"
    if lead and slope and slope["mean"] > 0:
        doublings = lead["mean"] / slope["mean"]
        times = f"{2**doublings:.1f}x" if doublings < 7 else "> 100x"
    return (
        line.what,
        f"{line.steps:,}",
        len(line.runs),
        _percent(row["score"]),
        *(
            _percent(held_out[f"{what}s{over}"])
            for what in ("concept", "style")
            for over in ("", "_over_target")
        ),
        _clean(line),
        _number(row["oracle_share"], 2),
        _percent(lead),
        _number(slope, 1, 100),
        times,
    )


def _clean(line):
    """Share of clean pairs in the first and last fifth of training."""
    ends = [
        [getattr(run.row, name, np.nan) for run in line.runs.values()]
        for name in ("clean_first", "clean_last")
    ]
    if np.isnan(ends).any():
        return "-"
    return " to ".join(f"{np.mean(values):.2f}" for values in ends)


def _costs(line, values, place):
    row, bills = values["rows"][place], values["bills"][place]
    is_bound = values["uniform_ends"][place]["is_bound"]
    ratio = _bound if is_bound else _interval
    curves = [
        values[name][place] for name in ("equal_scores", "first_crossings")
    ]
    return (
        line.what,
        f"{line.steps:,}",
        " / ".join(f"{bills['uniform_steps'][one]:,}" for one in targets.KINDS),
        _percent(bills["uniform_score"]),
        _interval(bills["over_target"], 2),
        *(
            f"{_number(one['examples_ratio'])} / "
            f"{_number(one['flops_ratio']['all'])}"
            for one in curves
        ),
        ratio(row["examples_ratio"]),
        *map(ratio, row["flops_ratio"].values()),
        *map(ratio, row["mixture_ratio"].values()),
    )


def _percent(found):
    return _interval(found, 1, 100)


def _interval(found, digits=1, factor=1):
    if not found:
        return "-"
    ends = (
        "?" if found[end] is None else f"{factor * found[end]:.{digits}f}"
        for end in ("low", "high")
    )
    return f"{_number(found, digits, factor)} [{', '.join(ends)}]"


def _bound(found):
    return f"at least {found['mean']:.1f}" if found else "-"


def _number(found, digits=1, factor=1):
    return f"{factor * found['mean']:.{digits}f}" if found else "-"

"""The quickstart's report: one table, learning curves, a gallery.

Everything is read from the run directories; nothing is typed by hand.
"""

import json
import os
import pathlib
import platform
import re
import shutil
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib  # noqa: E402

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from jest_tf import evaluation
from jest_tf.data import stores as stores_lib  # noqa: E402
from jest_tf.models import reference  # noqa: E402
from jest_tf.reports import run_page
from jest_tf.runs import log as log_lib

RECIPES = ("reference", "uniform", "jest", "best")

_NAMES = {
    "reference": "reference",
    "uniform": "uniform",
    "jest": "JEST",
    "best": "cascade, distilled",
}
_COLOURS = {
    "reference": "0.55",
    "uniform": "tab:blue",
    "jest": "tab:red",
    "best": "tab:green",
}
# Those that choose what they train on.
_CHOOSING = ("jest", "best")
# What the table shows: column, where it comes from, how it is written.
_EXAMPLES = ("cascaded", "drawn", "scored", "trained")
_FLOPS = {
    "TFLOPs": "step",
    "no_reuse": "no_reuse",
    "reuse": "reuse",
}
_SECONDS = {
    "seconds": "seconds",
    "evaluating": "time/evaluation_seconds",
    "saving": "time/save_seconds",
}
_STEP = {
    "step": "time/step_seconds",
    "score": "time/score_seconds",
    "select": "time/select_seconds",
    "train": "time/train_seconds",
}
_MEASURES = {
    "image→text R@1": "image_to_text/recall@1",
    "R@5": "image_to_text/recall@5",
    "R@10": "image_to_text/recall@10",
    "MRR": "image_to_text/mrr",
    "text→image R@1": "text_to_image/recall@1",
    " R@5": "text_to_image/recall@5",
    " R@10": "text_to_image/recall@10",
    " MRR": "text_to_image/mrr",
    "zero-shot top-1": "zero_shot/accuracy@1",
    "top-5": "zero_shot/accuracy@5",
}
# The kind of picture in the pool that the curated set is made of.
_CURATED_LIKE = "emoji"
_GALLERY_DRAWS, _GALLERY_SIZE = 4, 20


def workdir(runs: pathlib.Path, recipe: str, seed: int) -> pathlib.Path:
    """Where a run of the quickstart lies."""
    return runs / (recipe if seed == 0 else f"{recipe}-seed{seed}")


def write(runs: pathlib.Path, seeds: Sequence[int]) -> str:
    """Writes `report.md` and its pictures into `runs`; returns the tables."""
    text = tables(runs, seeds)
    curves(runs, seeds, runs / "curves.png")
    gallery(runs, seeds[0], runs / "gallery.png")
    run_page.write(
        os.fspath(workdir(runs, "jest", seeds[0])),
        os.fspath(runs / "selection.html"),
    )
    (runs / "report.md").write_text(
        f"# JEST quickstart\n\n{text}\n\n"
        "![Learning curves](curves.png)\n\n"
        f"{_gallery_caption()}\n\n![Gallery](gallery.png)\n\n"
        "More of them, over time: [selection.html](selection.html).\n",
        encoding="utf-8",
    )
    return text


def publish(
    runs: pathlib.Path, seeds: Sequence[int], root: pathlib.Path
) -> None:
    """Renews the result in README.md and docs/quickstart.md."""
    figures = root / "docs" / "figures"
    figures.mkdir(exist_ok=True)
    for name in ("curves", "gallery"):
        shutil.copy(runs / f"{name}.png", figures / f"quickstart_{name}.png")
    text = tables(runs, seeds)
    seed_list = " ".join(map(str, seeds))
    command = f"python -m examples.quickstart --seeds {seed_list} --publish"
    (root / "docs" / "quickstart.md").write_text(
        "# The quickstart's result\n\n"
        "Written by this command, which trains the runs that are missing:\n\n"
        f"```sh\n{command}\n```\n\n{text}\n\n"
        "![Learning curves](figures/quickstart_curves.png)\n\n"
        f"{_gallery_caption()}\n\n![Gallery](figures/quickstart_gallery.png)\n",
        encoding="utf-8",
    )
    readme = root / "README.md"
    block = (
        "<!-- quickstart:begin -->\n"
        f"{text}\n\n![Learning curves](docs/figures/quickstart_curves.png)\n\n"
        f"Written by `{command}`; seed by seed in "
        "[docs/quickstart.md](docs/quickstart.md).\n"
        "<!-- quickstart:end -->"
    )
    before = readme.read_text(encoding="utf-8")
    after, count = re.subn(
        r"<!-- quickstart:begin -->.*<!-- quickstart:end -->",
        lambda _: block,
        before,
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError("README.md must hold one pair of quickstart marks.")
    readme.write_text(after, encoding="utf-8")


def tables(runs: pathlib.Path, seeds: Sequence[int]) -> str:
    """The result as Markdown: cost, quality, and what was drawn."""
    rows = {
        recipe: [_result(workdir(runs, recipe, seed)) for seed in seeds]
        for recipe in RECIPES
    }
    cost = _table(
        ("learner", "steps", *_EXAMPLES, *_FLOPS),
        [
            (
                _NAMES[recipe],
                f"{results[0]['step']:,}",
                # Without a cascade there is no such count.
                *(f"{results[0].get(f'examples/{e}', 0):,}" for e in _EXAMPLES),
                *(
                    f"{results[0][f'flops/{name}'] / 1e12:,.1f}"
                    for name in _FLOPS.values()
                ),
            )
            for recipe, results in rows.items()
        ],
    )
    quality = _table(
        ("learner", *(name.strip() for name in _MEASURES)),
        [
            (
                _NAMES[recipe],
                *(
                    _spread(
                        [100 * r[f"eval/test_concept/{m}"] for r in results],
                        ".1f",
                    )
                    for m in _MEASURES.values()
                ),
            )
            for recipe, results in rows.items()
        ]
        + [_chance(workdir(runs, "jest", seeds[0]))],
    )
    count = f"seed {seeds[0]}"
    if len(seeds) > 1:
        count = f"seeds {', '.join(map(str, seeds))}: mean ± standard deviation"
    return "\n\n".join(
        (
            "Examples and FLOPs of training, the same for every seed; "
            "*cascaded* are the examples that stage 0 of the cascade chose "
            "from, and embedding the pool once for it is not counted. "
            "`no_reuse` and `reuse` are the paper's two ways to count "
            "(docs/ledger.md):",
            cost,
            f"Seconds of training and of a step, and peak memory ({count}):",
            _clock(rows),
            f"Held-out concepts, `test_concept`, percent ({count}):",
            quality,
            *_per_seed(rows, seeds),
            _shares(runs, seeds),
            _provenance(workdir(runs, "jest", seeds[0])),
        )
    )


def _clock(rows):
    """The table of what was measured; parts of a step where they were."""
    parts = {
        name: key
        for name, key in _STEP.items()
        if any(key in result for results in rows.values() for result in results)
    }
    return _table(
        (
            "learner",
            *_SECONDS,
            *(f"{name}, ms" for name in parts),
            "waiting for input, %",
            "peak, GB",
        ),
        [
            (
                _NAMES[recipe],
                *(
                    _spread([r[key] for r in results], ".0f")
                    for key in _SECONDS.values()
                ),
                *(
                    _spread([1e3 * r[key] for r in results], ".0f")
                    if key in results[0]
                    else "-"
                    for key in parts.values()
                ),
                _spread(
                    [100 * r["time/input_wait_share"] for r in results], ".1f"
                ),
                _spread(
                    [r["memory/host_peak_rss_bytes"] / 1e9 for r in results],
                    ".1f",
                ),
            )
            for recipe, results in rows.items()
        ],
    )


def curves(
    runs: pathlib.Path, seeds: Sequence[int], path: pathlib.Path
) -> None:
    """Draws quality over steps and FLOPs, learnability, what was drawn."""
    figure, panels = plt.subplots(1, 4, figsize=(17, 3.8), layout="constrained")
    quality, by_flops, score, share = panels
    for recipe in RECIPES:
        runs_of = [workdir(runs, recipe, seed) for seed in seeds]
        rows = [log_lib.read_log(run / "evaluation.jsonl") for run in runs_of]
        steps = [row["step"] for row in rows[0]]
        means = np.array([[_mean_mrr(row) for row in run] for run in rows])
        flops = [row["flops/step"] / 1e12 for row in rows[0]]
        for axes, values in ((quality, steps), (by_flops, flops)):
            _band(axes, values, 100 * means, _NAMES[recipe], _COLOURS[recipe])
    for axes in (quality, by_flops):
        axes.set(title="Held-out concepts (val_concept)", ylabel="mean MRR, %")
    jests = [workdir(runs, "jest", seed) for seed in seeds]
    logs = [log_lib.read_log(run / "metrics.jsonl") for run in jests]
    steps = [row["step"] for row in logs[0]]
    for name, label, colour in (
        ("select/score", "JEST's draw", _COLOURS["jest"]),
        ("select/uniform_score", "a uniform draw", _COLOURS["uniform"]),
    ):
        values = np.array([[row[name] for row in log] for log in logs])
        _band(score, steps, values, label, colour)
    score.set(title="Batch learnability", ylabel="learner - reference loss")
    kinds = _kinds(jests[0])
    pool = np.mean([kind == _CURATED_LIKE for kind in kinds.values()])
    for recipe in _CHOOSING:
        found = [workdir(runs, recipe, seed) for seed in seeds]
        shares = np.array([_draw_shares(run, kinds) for run in found])
        draws = log_lib.read_log(found[0] / "draws.jsonl")
        # A recipe may have fewer steps.
        steps = [draw["step"] for draw in draws]
        _band(share, steps, 100 * shares, _NAMES[recipe], _COLOURS[recipe])
    share.axhline(100 * pool, color=_COLOURS["uniform"], label="the pool")
    share.set(title="Curated-like (emoji) share", ylabel="%", ylim=(0, None))
    for axes in panels:
        axes.set_xlabel("TFLOPs" if axes is by_flops else "learner steps")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def gallery(runs: pathlib.Path, seed: int, path: pathlib.Path) -> None:
    """Draws the most and least learnable examples of the last logged draws."""
    run = workdir(runs, "jest", seed)
    shown = run_page.moments(
        os.fspath(run), run_page.read(os.fspath(run))[-_GALLERY_DRAWS:]
    )
    kinds = _kinds(run)
    figure = plt.figure(figsize=(13, 9), layout="constrained")
    parts = figure.subfigures(2, 1)
    for part, title, sign, cards in (
        (parts[0], "Most learnable", -1, [m.highest for m in shown]),
        (parts[1], "Least learnable", 1, [m.lowest for m in shown]),
    ):
        part.suptitle(title, fontsize=13, fontweight="bold")
        # A picture may come twice.
        each = {card.id: card for some in cards for card in some}.values()
        each = sorted(each, key=lambda card, sign=sign: sign * card.score)
        grid = list(part.subplots(2, _GALLERY_SIZE // 2).flat)
        for axes in grid:
            axes.set_axis_off()
        for axes, card in zip(grid, each, strict=False):
            axes.imshow(card.image, interpolation="nearest")
            lines = _wrap(card.caption, f"[{kinds[card.id]}]")
            axes.set_title(f"{card.score:+.1f}\n{lines}", fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _result(run):
    """The last lines of a run's logs, joined."""
    last = log_lib.read_log(run / "metrics.jsonl")[-1]
    measures = log_lib.read_log(run / "evaluation.jsonl")[-1]
    # Its costs are those of the moment after the last evaluation.
    return {**measures, **last}


class _Collapsed:
    """A learner that maps everything to one point: it scores chance."""

    def encode_image(self, images, training):
        del training
        return tf.ones([tf.shape(images)[0], 1])

    encode_text = encode_image


def _chance(run):
    """The row of the table of quality that chance would get."""
    settings = reference.load_run(os.fspath(run))
    stores = evaluation.open_stores(
        settings.config.evaluation.data, settings.config.evaluation_data
    )
    results = evaluation.evaluate_store(
        _Collapsed(),
        stores["test_concept"],
        tokenizer=settings.tokenizer,
        image_size=settings.config.data.image_size,
    )
    return "chance", *(
        f"{100 * results[measure]:.1f}" for measure in _MEASURES.values()
    )


def _mean_mrr(row, split="val_concept"):
    both = ("image_to_text", "text_to_image")
    return np.mean([row[f"eval/{split}/{way}/mrr"] for way in both])


def _per_seed(rows, seeds):
    """All learners against uniform, seed by seed; nothing for one seed."""
    if len(seeds) < 2:
        return ()
    lines = []
    for place, seed in enumerate(seeds):
        uniform, *others = (
            100 * _mean_mrr(rows[recipe][place], "test_concept")
            for recipe in ("uniform", *_CHOOSING)
        )
        shown = (f"{one:.1f} ({one - uniform:+.1f})" for one in others)
        lines.append((str(seed), f"{uniform:.1f}", *shown))
    header = ("seed", "uniform", *(_NAMES[recipe] for recipe in _CHOOSING))
    return (
        "Mean of the two MRRs, percent, seed by seed, and what it is above "
        "uniform's:",
        _table(header, lines),
    )


def _kinds(run):
    """The kind of every picture of a run's training data, by id."""
    config = json.loads((run / reference.CONFIG_FILE).read_text())
    store = stores_lib.open_store(config["data"]["train"])
    columns = store.columns(["id", "kind"])
    return {
        key: kind.decode()
        for key, kind in zip(columns["id"], columns["kind"], strict=True)
    }


def _draw_shares(run, kinds):
    """The curated-like share of each logged draw of a run."""
    return [
        np.mean([kinds[key] == _CURATED_LIKE for key in draw["ids"]])
        for draw in log_lib.read_log(run / "draws.jsonl")
    ]


def _shares(runs, seeds):
    kinds = _kinds(workdir(runs, "jest", seeds[0]))
    pool = np.mean([kind == _CURATED_LIKE for kind in kinds.values()])
    jest, best = (
        _spread(
            [
                100 * np.mean(_draw_shares(workdir(runs, recipe, seed), kinds))
                for seed in seeds
            ],
            ".1f",
        )
        for recipe in _CHOOSING
    )
    return (
        f"Curated-like ({_CURATED_LIKE}) pictures are {100 * pool:.1f} % of "
        f"the pool, {jest} % of what JEST chose and {best} % of what stage 0 "
        "of the cascade chose."
    )


def _provenance(run):
    versions = json.loads((run / "versions.json").read_text())
    listed = ", ".join(
        f"{name} {version}"
        for name, version in versions["versions"].items()
        if version
    )
    return f"{platform.machine()}, {os.cpu_count()} CPU cores; {listed}."


def _gallery_caption():
    return (
        "The most and least learnable examples, eight of each a super-batch, "
        f"of the last {_GALLERY_DRAWS} that were logged, with their "
        "learnability given the sub-batch (learner's loss minus the "
        "reference's) and the kind of picture:"
    )


def _band(axes, steps, values, label, colour):
    """A line of means over seeds in a band from the least to the most."""
    axes.plot(steps, values.mean(0), color=colour, label=label)
    axes.fill_between(
        steps, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0
    )


def _spread(values, form):
    mean = format(np.mean(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ± {format(np.std(values, ddof=1), form)}"


def _table(header, rows):
    """A Markdown table whose columns line up."""
    rows = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    rule = [
        "-" * width + ("-:" if place else "--")
        for place, width in enumerate(widths)
    ]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])


def _wrap(caption, kind, width=17, most=3):
    """At most `most` lines of about `width` letters, the kind on the last."""
    lines = re.findall(rf".{{1,{width}}}(?:\s+|$)|.{{{width}}}", caption)
    if len(lines) > most - 1:
        lines = [*lines[: most - 2], lines[most - 2].rstrip() + "…"]
    return "\n".join([*(line.strip() for line in lines), kind])

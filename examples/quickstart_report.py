"""The quickstart's report: tables, learning curves, offered against chosen.

Everything is read from the run directories; nothing is typed by hand.
"""

import json
import os
import pathlib
import shutil
import textwrap
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import tensorflow as tf  # noqa: E402
from matplotlib import figure as mpl_figure  # noqa: E402

import jest_tf  # noqa: E402
from benchmarks import report as markdown  # noqa: E402
from jest_tf import evaluation  # noqa: E402
from jest_tf.data import stores as stores_lib  # noqa: E402
from jest_tf.reports import run_page  # noqa: E402
from jest_tf.runs import directory  # noqa: E402

RECIPES = ("reference", "uniform", "jest", "bootstrap")
PUBLISHED_BY = "python -m examples.quickstart --seeds 0 1 2 --publish"

_NAMES = {
    "reference": "reference",
    "uniform": "uniform",
    "jest": "JEST",
    "bootstrap": "bootstrapped cascade",
}
_COLOURS = {
    "reference": "0.5",
    "uniform": "C0",
    "jest": "C3",
    "bootstrap": "C2",
}
_EXAMPLES = ("offered", "drawn", "scored", "trained")
_FLOPS = {"TFLOPs": "step", "no_reuse": "no_reuse", "reuse": "reuse"}
# Column of a table: column of the log, its unit, its format.
_CLOCK = {
    "seconds": ("seconds", 1, ".0f"),
    "evaluating": ("time/evaluation_seconds", 1, ".0f"),
    "saving": ("time/save_seconds", 1, ".0f"),
    "step, ms": ("time/step_seconds", 1e-3, ".0f"),
    "waiting for input, %": ("time/input_wait_share", 1e-2, ".1f"),
    "peak, GB": ("memory/host_peak_rss_bytes", 1e9, ".1f"),
}
_TEST = "eval/test/"
_MRR = {
    "image→text MRR": (f"{_TEST}image_to_text/mrr", 1e-2, ".1f"),
    "text→image MRR": (f"{_TEST}text_to_image/mrr", 1e-2, ".1f"),
}
_QUALITY = {
    **_MRR,
    **{
        f"{label} R@{k}": (f"{_TEST}{way}/recall@{k}", 1e-2, ".1f")
        for label, way in (
            ("image→text", "image_to_text"),
            ("text→image", "text_to_image"),
        )
        for k in (1, 5, 10)
    },
}
_COLUMNS, _LINES = 8, 2  # of pictures


def workdir(runs: pathlib.Path, recipe: str, seed: int) -> pathlib.Path:
    """The run directory of a recipe and a seed."""
    return runs / (recipe if seed == 0 else f"{recipe}-seed{seed}")


def write(runs: pathlib.Path, seeds: Sequence[int]) -> str:
    """Writes the report into `runs`; returns its summary, for a terminal."""
    curves(runs, seeds, runs / "curves.png")
    jest = workdir(runs, "jest", seeds[0])
    pictures(jest, runs / "pictures.png")
    run_page.write(os.fspath(jest), os.fspath(runs / "selection.html"))
    summary_lines = summary(runs, seeds)
    (runs / "report.md").write_text(
        f"# JEST quickstart\n\n{summary_lines}\n\n"
        "![Learning curves](curves.png)\n\n"
        "![Offered and chosen](pictures.png)\n\n"
        f"{tables(runs, seeds)}\n\n"
        "What JEST selected over time: [selection.html](selection.html).\n",
        encoding="utf-8",
    )
    return summary_lines


def publish(
    runs: pathlib.Path, seeds: Sequence[int], root: pathlib.Path
) -> None:
    """Renews the result in README.md and docs/quickstart.md."""
    figures = root / "docs" / "figures"
    figures.mkdir(exist_ok=True)
    shutil.copy(runs / "curves.png", figures / "quickstart_curves.png")
    shutil.copy(runs / "pictures.png", figures / "offered_and_chosen.png")
    (root / "docs" / "quickstart.md").write_text(
        "# The quickstart's result\n\n"
        "This command writes the page and trains the runs that are missing:\n\n"
        f"```sh\n{PUBLISHED_BY}\n```\n\n{summary(runs, seeds)}\n\n"
        "![Learning curves](figures/quickstart_curves.png)\n\n"
        "![Offered and chosen](figures/offered_and_chosen.png)\n\n"
        f"{tables(runs, seeds)}\n",
        encoding="utf-8",
    )
    markdown.write_block(
        root / "README.md", "quickstart", summary(runs, seeds), PUBLISHED_BY
    )


def summary(runs: pathlib.Path, seeds: Sequence[int]) -> str:
    """The result in one table and two sentences."""
    frame = _results(runs, seeds)
    means = frame.groupby("recipe")[[column for column, *_ in _MRR.values()]]
    mrr = 100 * means.mean().mean(axis=1)
    store, _ = _pool(workdir(runs, "uniform", seeds[0]))
    totals = _totals(frame, len(store))
    clean = _clean(runs, seeds)
    rows = [
        (
            _NAMES[recipe],
            f"{results['step'].iloc[0]:,}",
            f"{results['examples/trained'].iloc[0]:,}",
            f"{totals[recipe] / 1e12:.1f}",
            f"{clean[recipe]:.0%}",
            *_spreads(results, _MRR),
        )
        for recipe, results in frame.groupby("recipe", sort=False)
    ]
    chance = _chance(workdir(runs, "jest", seeds[0]))
    rows.append(("chance", "", "", "", "", *_spreads(chance, _MRR)))
    header = (
        *("learner", "steps", "examples trained", "TFLOPs, all counted"),
        *("clean pairs", *_MRR),
    )
    least = min(totals[one] for one in RECIPES[1:])
    most = max(totals[one] for one in RECIPES[1:])
    return (
        f"{markdown.table(header, rows)}\n\n"
        f"At equal cost (within {most / least - 1:.0%}; references, scores and "
        f"embeddings counted), the mean MRR is {mrr['bootstrap']:.1f} % for "
        f"the bootstrapped cascade, {mrr['jest']:.1f} % for JEST and "
        f"{mrr['uniform']:.1f} % for uniform training. The reference of JEST "
        f"has {mrr['reference']:.1f} %. *Clean pairs*: the share of the "
        "training examples that are not noise."
    )


def _totals(frame, num_pool):
    """FLOPs of each recipe with all that led to its learner."""
    last = frame.groupby("recipe").first()
    found = {
        recipe: row["flops/step"] + row["flops/stored"] + row["flops/renewals"]
        for recipe, row in last.iterrows()
    }
    # JEST's sidecars are a forward pass of the reference over the pool.
    reference = last.loc["reference"]
    a_pass = reference["flops/forward"] / reference["examples/trained"]
    found["jest"] += found["reference"] + a_pass * num_pool
    return found


def tables(runs: pathlib.Path, seeds: Sequence[int]) -> str:
    """The result in full: costs, times, quality, seed by seed."""
    frame = _results(runs, seeds)
    groups = [
        (_NAMES[recipe], results)
        for recipe, results in frame.groupby("recipe", sort=False)
    ]
    count = f"seed {seeds[0]}"
    if len(seeds) > 1:
        count = f"seeds {', '.join(map(str, seeds))}: mean ± standard deviation"
    costs = [
        (
            name,
            f"{results['step'].iloc[0]:,}",
            *(f"{results[f'examples/{e}'].iloc[0]:,.0f}" for e in _EXAMPLES),
            *(
                f"{results[f'flops/{column}'].iloc[0] / 1e12:,.1f}"
                for column in _FLOPS.values()
            ),
        )
        for name, results in groups
    ]
    chance = _chance(workdir(runs, "jest", seeds[0]))
    quality = [(name, *_spreads(rows, _QUALITY)) for name, rows in groups]
    quality.append(("chance", *_spreads(chance, _QUALITY)))
    return "\n\n".join(
        (
            "Examples and FLOPs of training, equal for every seed. *Offered*: "
            "the examples from which the stored stage chose. FLOPs here are "
            "those of the steps; the first table also counts the reference, "
            "embeddings and the stored stage. `no_reuse` and `reuse` are the "
            "paper's two ways to count ([logs](logs.md#flops)).",
            markdown.table(("learner", "steps", *_EXAMPLES, *_FLOPS), costs),
            f"Seconds of training and of a step, and peak memory ({count}).",
            markdown.table(
                ("learner", *_CLOCK),
                [(name, *_spreads(rows, _CLOCK)) for name, rows in groups],
            ),
            f"Held-out icon sets, `test`, percent ({count}).",
            markdown.table(("learner", *_QUALITY), quality),
            *_seed_by_seed(frame, seeds),
            _provenance(workdir(runs, "jest", seeds[0])),
        )
    )


def curves(
    runs: pathlib.Path, seeds: Sequence[int], path: pathlib.Path
) -> None:
    """Draws held-out quality against steps and against FLOPs."""
    figure = mpl_figure.Figure(figsize=(8, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for recipe in RECIPES:
        logs = [
            pd.DataFrame(
                directory.read_rows(
                    workdir(runs, recipe, seed), "evaluation.jsonl"
                )
            )
            for seed in seeds
        ]
        mrr = 100 * np.array(
            [
                log[
                    [
                        "eval/val/image_to_text/mrr",
                        "eval/val/text_to_image/mrr",
                    ]
                ].mean(axis=1)
                for log in logs
            ]
        )
        style = {"color": _COLOURS[recipe]}
        for axes, x in zip(
            panels, (logs[0]["step"], logs[0]["flops/step"] / 1e12), strict=True
        ):
            axes.plot(x, mrr.mean(0), **style)
            axes.fill_between(x, mrr.min(0), mrr.max(0), alpha=0.2, **style)
            axes.annotate(
                _NAMES[recipe].split()[0],
                (x.iloc[-1], mrr.mean(0)[-1]),
                (4, 0),
                textcoords="offset points",
                va="center",
                **style,
            )
    panels[0].set(xlabel="steps", ylabel="mean MRR on val, %")
    panels[1].set(xlabel="TFLOPs of steps")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.02)
        axes.set_xlim(right=1.35 * axes.get_xlim()[1])
    figure.savefig(path, dpi=120)


def pictures(run: pathlib.Path, path: pathlib.Path) -> None:
    """Draws random pairs of the pool, and random ones that a run chose.

    As many are clean as of all that were offered or chosen. Captions of noise
    are red.
    """
    store, noise = _pool(run)
    rows = {key: row for row, key in enumerate(noise)}
    captions = store.columns(["caption"])["caption"]
    kinds = list(noise.values())
    draws = directory.read_rows(run, "draws.jsonl")
    chosen = [rows[key] for draw in draws for key in draw["ids"] if key in rows]
    random = np.random.default_rng(0)
    figure = mpl_figure.Figure(figsize=(8, 5.8), layout="constrained")
    for part, name, places in zip(
        figure.subfigures(2, 1),
        ("Offered", "Chosen"),
        (range(len(store)), chosen),
        strict=True,
    ):
        clean = [place for place in places if not kinds[place]]
        noisy = [place for place in places if kinds[place]]
        share = len(clean) / len(places)
        part.suptitle(
            f"{name}: {share:.0%} clean", x=0.01, ha="left", weight="bold"
        )
        count = min(_COLUMNS * _LINES, len({*places}))
        num_clean = round(share * count)
        # A pair that was chosen in several steps is shown once.
        ones, others = (
            list(dict.fromkeys(random.permutation(some).tolist()))
            for some in (clean, noisy)
        )
        some = random.permutation(
            [*ones[:num_clean], *others[: count - num_clean]]
        ).astype(int)
        axes = part.subplots(_LINES, _COLUMNS).flat
        for axis in part.axes:
            axis.set_axis_off()
        for axis, record, place in zip(
            axes, store.read(some), some, strict=False
        ):
            axis.imshow(
                tf.io.decode_image(record.image, channels=3).numpy(),
                interpolation="nearest",
            )
            words = textwrap.wrap(
                captions[place][0].decode(), 15, max_lines=2, placeholder="…"
            )
            axis.set_title(
                "\n".join(words),
                fontsize=7.5,
                parse_math=False,
                color="C3" if kinds[place] else "black",
            )
    figure.savefig(path, dpi=200)


def _results(runs, seeds):
    """The last line of every run's logs, as a table."""
    lines = []
    for recipe in RECIPES:
        for seed in seeds:
            run = workdir(runs, recipe, seed)
            measures = directory.read_rows(run, "evaluation.jsonl")[-1]
            # The costs are later than those of the last evaluation.
            last = directory.read_rows(run, "metrics.jsonl")[-1]
            lines.append({"recipe": recipe, "seed": seed, **measures, **last})
    frame = pd.DataFrame(lines)
    # Not every run logs these.
    some = ("examples/offered", "flops/stored", "flops/renewals")
    return frame.reindex(columns=[*dict.fromkeys((*frame, *some))]).fillna(
        dict.fromkeys(some, 0)
    )


def _spreads(results, columns):
    """The mean of each column, ± the standard deviation over seeds."""
    for column, unit, form in columns.values():
        values = results[column] / unit
        spread = f" ± {values.std():{form}}" if len(values) > 1 else ""
        yield f"{values.mean():{form}}{spread}"


class _Collapsed:
    """A learner that maps everything to one point, and so scores chance."""

    def encode_image(self, images, training):
        del training
        return tf.ones([tf.shape(images)[0], 1])

    encode_text = encode_image


def _chance(run):
    model = jest_tf.load(run)
    stores = evaluation.open_stores(
        model.config.evaluation.data, model.config.data
    )
    results = evaluation.StoreEvaluation(
        _Collapsed(),
        stores["test"],
        tokenizer=model.tokenizer,
        image_size=model.picture,
    ).measure()
    return pd.DataFrame([results]).add_prefix(_TEST)


def _seed_by_seed(frame, seeds):
    """Mean MRR of each learner, and its difference from uniform training."""
    if len(seeds) < 2:
        return ()
    columns = [column for column, *_ in _MRR.values()]
    mrr = 100 * frame.set_index(["seed", "recipe"])[columns].mean(axis=1)
    mrr = mrr.unstack("recipe")
    rows = [
        (
            seed,
            f"{row.uniform:.1f}",
            f"{row.jest:.1f} ({row.jest - row.uniform:+.1f})",
            f"{row.bootstrap:.1f} ({row.bootstrap - row.uniform:+.1f})",
        )
        for seed, row in mrr.iterrows()
    ]
    header = (
        "seed",
        *(_NAMES[name] for name in ("uniform", "jest", "bootstrap")),
    )
    return (
        "Mean of the two MRRs, percent, seed by seed, and the difference from "
        "uniform training.",
        markdown.table(header, rows),
    )


def _pool(run):
    """The pool of a run, and the kind of noise of every record, by id."""
    config = json.loads((run / directory.CONFIG_FILE).read_text())
    store = stores_lib.open_store(config["data"]["train"])
    columns = store.columns(["id", "noise"])
    kinds = (kind.decode() for kind in columns["noise"])
    return store, dict(zip(columns["id"], kinds, strict=True))


def _clean(runs, seeds):
    """Share of clean pairs among those that each recipe trained on."""
    _, noise = _pool(workdir(runs, "uniform", seeds[0]))
    found = {
        "reference": 1.0,
        "uniform": np.mean([not kind for kind in noise.values()]),
    }
    for recipe in ("jest", "bootstrap"):
        ids = [
            key
            for seed in seeds
            for draw in directory.read_rows(
                workdir(runs, recipe, seed), "draws.jsonl"
            )
            for key in draw["ids"]
        ]
        # Curated records are not in the pool, and clean.
        found[recipe] = np.mean([not noise.get(key) for key in ids])
    return found


def _provenance(run):
    versions = json.loads((run / "versions.json").read_text())["versions"]
    listed = (f"{name} {version}" for name, version in versions.items())
    return f"{markdown.processor()}; {', '.join(listed)}."

"""The quickstart's report: a table, learning curves, what JEST chose.

Everything is read from the run directories; nothing is typed by hand.
"""

import pathlib
import shutil
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import figure as mpl_figure

import jest_tf
from benchmarks import report as markdown
from jest_tf import evaluation
from jest_tf.data import stores as stores_lib
from jest_tf.reports import run_page
from jest_tf.runs import bootstrap, directory

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = f"{ROOT}/examples/icontext_mini"
POOL, REFERENCE = f"{DATA}/pool-*.tfrecord", f"{DATA}/reference"
EMBEDDINGS = "embeddings"  # folder of the sidecars, in the folder of the runs
COMMAND = "python -m examples.quickstart --seeds 0 1 2 --publish"
# By recipe, in the order of the tables.
NAMES = {"uniform": "uniform", "jest": "JEST", "distilled": "stored, distilled"}
_COLOURS = {"uniform": "C0", "jest": "C3", "distilled": "C2"}
_WAYS = {"image→text MRR": "image_to_text", "text→image MRR": "text_to_image"}
_COLUMNS = 8  # of images


def workdir(runs: pathlib.Path, recipe: str, seed: int) -> str:
    """Returns the run directory of a recipe and a seed."""
    return str(runs / (recipe if seed == 0 else f"{recipe}-seed{seed}"))


def write(
    runs: pathlib.Path, seeds: Sequence[int], is_published: bool = False
) -> str:
    """Writes the report into `runs`; returns its summary, for a terminal.

    `is_published` also renews README.md, and docs/quickstart.md with figures.
    """
    given = _given(runs)
    frame = _results(runs, seeds, given)
    jest = workdir(runs, "jest", seeds[0])
    curves(frame, runs / "quickstart_curves.png")
    draw_images(jest, runs / "offered_and_chosen.png")
    shown = summary(frame, given)
    versions = directory.read(jest, directory.VERSIONS_FILE)["versions"]
    by_seed = [
        (seed, *some["score"].map("{:.1f}".format))
        for seed, some in frame.groupby("seed")
    ]
    page = (
        "# The quickstart's result\n\n"
        f"Reproduce it with:\n\n```sh\n{COMMAND}\n```\n\n{shown}\n\n"
        "![Learning curves](figures/quickstart_curves.png)\n\n"
        "![What JEST chooses](figures/offered_and_chosen.png)\n\n"
        "Mean of both MRRs on the test, percent, seed by seed:\n\n"
        f"{markdown.table(('seed', *NAMES.values()), by_seed)}"
        "\n\nValidation on seed 0 chose the learning rates, after we had seen "
        f"test scores at other rates.\n\n{markdown.processor()}; "
        f"{', '.join(f'{name} {one}' for name, one in versions.items())}.\n"
    )
    (runs / "report.md").write_text(page.replace("figures/", ""), "utf-8")
    if is_published:
        for figure in runs.glob("*.png"):
            shutil.copy(figure, ROOT / "docs" / "figures")
        (ROOT / "docs" / "quickstart.md").write_text(page, "utf-8")
        markdown.write_block(ROOT / "README.md", "quickstart", shown, COMMAND)
    return shown


def summary(frame: pd.DataFrame, given: dict) -> str:
    """Returns the result in one table and a few sentences."""
    header = ("learner", "steps", "examples trained", "TFLOPs")
    header += ("with the reference's training", "clean pairs", *_WAYS)
    rows = [
        (
            NAMES[recipe],
            f"{runs['step'].iloc[0]:,}",
            f"{runs['examples/trained'].iloc[0]:,}",
            f"{runs['tflops'].iloc[0]:.2f}",
            f"{runs['tflops_in_all'].iloc[0]:.2f}",
            f"{runs['clean'].mean():.0%}",
            *map(_spread, (runs[way] for way in _WAYS.values())),
        )
        for recipe, runs in frame.groupby("recipe", sort=False)
    ]
    scores = [f"{given[way]:.1f}" for way in _WAYS.values()]
    taught = f"{given['taught']:.2f}"
    rows.append(("the reference, given", "", "", "", taught, "100%", *scores))
    rows.append(("chance", *[""] * 5, *[f"{given['chance']:.1f}"] * 2))
    means = frame.groupby("recipe")[["score", "tflops", "tflops_in_all"]].mean()
    score, tflops, in_all = (means[name] for name in means)
    apart = np.ceil(1000 * (tflops.max() / tflops.min() - 1)) / 1000
    return (
        f"{markdown.table(header, rows)}\n\n"
        "At equal FLOPs by the paper's count (within "
        f"{apart:.1%}; embedding and scoring count, "
        "the reference's training does not), the mean MRR is "
        f"{score['uniform']:.1f} % for uniform training, {score['jest']:.1f} % "
        f"for JEST, and {score['distilled']:.1f} % for a stored stage with "
        "distillation. With the reference's training, JEST and the stored "
        f"stage would cost {in_all['jest'] / tflops['uniform']:.0f} times what "
        "uniform training does. They pay where a reference already exists, or "
        "serves many runs. *Clean pairs*: the share of the training examples "
        "that are not noise."
    )


def curves(frame: pd.DataFrame, path: pathlib.Path) -> None:
    """Draws validation scores against examples and against FLOPs."""
    figure = mpl_figure.Figure(figsize=(8, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for recipe, runs in frame.groupby("recipe", sort=False):
        logs = [
            pd.DataFrame(directory.read_rows(run, directory.EVALUATION_FILE))
            for run in runs["run"]
        ]
        columns = [f"eval/val/{way}/mrr" for way in _WAYS.values()]
        mrr = np.array([100 * log[columns].mean(axis=1) for log in logs])
        steps, last = logs[0]["step"], runs.iloc[0]
        # Embedding comes before the steps.
        tflops = last["tflops"] - last["embedded"]
        tflops = last["embedded"] + tflops * steps / last["step"]
        style = {"color": _COLOURS[recipe]}
        for axes, x in zip(
            panels, (logs[0]["examples/trained"] / 1000, tflops), strict=True
        ):
            axes.plot(x, mrr.mean(0), marker=".", **style)
            axes.fill_between(x, mrr.min(0), mrr.max(0), alpha=0.2, **style)
            axes.annotate(
                NAMES[recipe].replace(", ", ",\n"),
                (x.iloc[-1], mrr.mean(0)[-1]),
                (6, 0),
                textcoords="offset points",
                va="center",
                **style,
            )
    panels[0].set(xlabel="thousand examples trained", ylabel="val MRR, %")
    panels[1].set(xlabel="TFLOPs, embedding and scoring counted")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlim=(0, 1.3 * axes.get_xlim()[1]), ylim=(0, None))
    figure.savefig(path, dpi=120)


def draw_images(run: str, path: pathlib.Path) -> None:
    """Draws pairs of a JEST step: some offered, most and least learnable ones.

    Captions of noise are red.
    """
    lines = directory.read_rows(run, directory.TELEMETRY_FILE)
    line = lines[len(lines) // 2]
    (stage,) = line["stages"]
    size = stage["rows_in"]
    line["offered"] = [
        {"position": line["super_batch"] * size + place}
        for place in range(0, size, size // _COLUMNS)
    ]
    run_page.add_images(run, [line], trust=True)
    columns = stores_lib.open_store(POOL).columns(["id", "noise"])
    noise = dict(zip(columns["id"], columns["noise"], strict=True))
    titles = {
        f"Some of the {size:,} pairs that a step draws, "
        f"{stage['clean_in']:.0%} of them clean": line["offered"],
        f"The most learnable pairs; JEST trains on {stage['rows_out']}, "
        f"{stage['clean_out']:.0%} of them clean": stage["highest"],
        "The least learnable pairs": stage["lowest"],
    }
    figure = mpl_figure.Figure(figsize=(8, 4.6), layout="constrained")
    for part, title in zip(figure.subfigures(3, 1), titles, strict=True):
        part.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=10)
        for axes, row in zip(
            part.subplots(1, _COLUMNS), titles[title], strict=False
        ):
            axes.set_axis_off()
            axes.imshow(row["image"], interpolation="nearest")
            axes.set_title(
                textwrap.fill(row["caption"], 15, max_lines=2, placeholder="…"),
                fontsize=7.5,
                parse_math=False,
                color="C3" if noise[row["id"]] else "black",
            )
    figure.savefig(path, dpi=200)


def _given(runs):
    """The reference's scores, and the TFLOPs before a learner's first step."""
    model = jest_tf.load(REFERENCE, trust=True)
    step = directory.read(REFERENCE, directory.FLOPS_FILE)["0"]["step"]
    pool, test = map(stores_lib.open_store, (POOL, f"{DATA}/test-*.tfrecord"))
    embedded = bootstrap.embedding_cost(model, pool, str(runs / EMBEDDINGS))
    encoder = evaluation.Encoder(
        model.learner, model.tokenizer, model.image_form
    )
    found = evaluation.StoreEvaluation(test).measure(encoder)
    return {
        **{way: 100 * found[f"{way}/mrr"] for way in _WAYS.values()},
        "chance": 100 * np.mean(1 / np.arange(1, len(test) + 1)),
        "embedded": embedded.flops / 1e12,
        "taught": model.config.steps * step / 1e12,
    }


def _results(runs, seeds, given):
    """A row for each run: its last line of the log, its costs and scores."""
    noise = stores_lib.open_store(POOL).columns(["noise"])["noise"]
    rows = []
    for recipe in NAMES:
        for seed in seeds:
            run = workdir(runs, recipe, seed)
            measured = directory.read_rows(run, directory.EVALUATION_FILE)[-1]
            log = directory.read_rows(run, directory.METRICS_FILE)
            row = log[-1] | {"recipe": recipe, "seed": seed, "run": run}
            row |= {
                way: 100 * measured[f"eval/test/{way}/mrr"]
                for way in _WAYS.values()
            }
            row["score"] = np.mean([row[way] for way in _WAYS.values()])
            row["clean"] = np.mean([not kind for kind in noise])
            row["embedded"] = row["taught"] = 0.0
            if recipe != "uniform":
                clean = [row["stages/0/clean_out"] for row in log]
                row["clean"] = np.mean(clean)
                row |= {name: given[name] for name in ("embedded", "taught")}
            steps = row["flops/step"] + row.get("flops/stored", 0)
            row["tflops"] = steps / 1e12 + row["embedded"]
            row["tflops_in_all"] = row["tflops"] + row["taught"]
            rows.append(row)
    return pd.DataFrame(rows)


def _spread(values):
    """The mean, ± the standard deviation over seeds."""
    spread = f" ± {values.std():.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{spread}"

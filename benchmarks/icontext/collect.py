"""Adds a finished run to the result tables; `run.py` calls this.

    python -m benchmarks.icontext.collect --cell jest_750 --seed 0 \
        --digest 0123abcd --workdir icontext-work/runs/jest_750-0-0123abcd \
        --splits 'icontext-work/data/test_style-*.tfrecord' \
        --results icontext-work/results

The final weights are evaluated on `--splits`, which a run may not have seen
while it trained. `--embedded` names the sidecars that led to the run: they
cost what their model takes for each picture and caption in them.
"""

import argparse
import pathlib

import numpy as np
import pandas as pd

from benchmarks import report
from benchmarks.icontext import matrix, results, runner, variants
from jest_tf import evaluation
from jest_tf.data import stores
from jest_tf.runs import bootstrap, directory, loading

_DIRECTIONS = ("image_to_text", "text_to_image")


def main(arguments=None):
    """Collect one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag in ("--workdir", "--cell", "--digest", "--results"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--splits", nargs="+", required=True)
    parser.add_argument(
        "--embedded",
        nargs="*",
        default=(),
        help="run directory, sidecar folder and shards, three for each model",
    )
    options = parser.parse_args(arguments)
    identity = {"cell": options.cell, "seed": options.seed}
    tables = collect(
        options.workdir,
        identity,
        options.digest,
        options.splits,
        zip(*[iter(options.embedded)] * 3, strict=True),
    )
    results.add(options.results, tables)


def collect(workdir, identity, digest, splits, embedded=()):
    """`results.Tables` of the run of a cell.

    Args:
        workdir: of the run.
        identity: its cell and seed.
        digest: of the cell.
        splits: patterns of the shards of the final evaluation.
        embedded: `(run directory, sidecar folder, patterns of its shards)` of
            each model whose embeddings chose for the run.
    """
    config = directory.load_config(workdir)
    metrics = directory.read_rows(workdir, directory.METRICS_FILE)
    curves = _curves(
        directory.read_rows(workdir, directory.EVALUATION_FILE), metrics
    )
    concepts = _concepts(workdir, config, splits)
    chosen = chosen_by(workdir, config)
    last = metrics[-1]
    versions = directory.read(workdir, directory.VERSIONS_FILE)["versions"]
    run = {
        **identity,
        "digest": digest,
        "steps": config.steps,
        "batch_size": config.batch_size,
        **_ends(concepts),
        **_scores(curves).iloc[-1].to_dict(),
        **{
            f"examples_{what}": last[f"examples/{what}"]
            for what in ("drawn", "scored", "trained")
        },
        **{
            f"flops_{what}": last.get(f"flops/{what}")
            for what in ("step", "cascade", "forward", "renewals")
        },
        "flops_embedded": sum(_embedding_flops(*one) for one in embedded),
        "processor_seconds": runner.processor_seconds(workdir),
        **ends_of(chosen),
        "effective_filter_ratio": last.get("select/effective_filter_ratio"),
        "repeat_rate": last.get("train/repeat_rate"),
        "machine": report.processor(),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if v),
    }
    return results.Tables(
        pd.DataFrame([run]),
        with_renewals(curves, chosen, workdir, config).assign(**identity),
        concepts.assign(**identity),
    )


def _scores(curves):
    return curves.drop(columns=["step", *results.COSTS])


def _ends(concepts):
    """Final score of each split."""
    found = {}
    for split, part in concepts.groupby("split"):
        sides = [
            np.average(part[f"{side}_mrr"], weights=part[f"{side}_queries"])
            for side in ("image", "text")
        ]
        found[split] = round(float(np.mean(sides)), 5)
    return found


def _curves(evaluations, metrics):
    """Score of each split and FLOPs so far at each evaluation.

    FLOPs are those of the next row of the metrics, which are at most
    `evaluation.log_every_steps` later.
    """
    suffix = "/image_to_text/mrr"
    splits = sorted(
        key.removeprefix("eval/").removesuffix(suffix)
        for key in evaluations[0]
        if key.startswith("eval/") and key.endswith(suffix)
    )
    table = pd.DataFrame(evaluations)
    scores = {
        split: table[[f"eval/{split}/{d}/mrr" for d in _DIRECTIONS]].mean(
            axis=1
        )
        for split in splits
    }
    steps = [row["step"] for row in metrics]
    after = np.searchsorted(steps, table["step"]).clip(max=len(steps) - 1)
    costs = {
        name: [metrics[place].get(name.replace("_", "/")) for place in after]
        for name in results.COSTS
    }
    return (
        pd.DataFrame({"step": table["step"]} | scores).round(5).assign(**costs)
    )


def _embedding_flops(workdir, folder, patterns):
    """FLOPs of the pictures and captions in a folder of sidecars."""
    run = loading.load(workdir)
    return sum(
        bootstrap.embedding_cost(run, stores.open_store(pattern), folder).flops
        for pattern in patterns.split(",")
    )


def chosen_by(workdir, config):
    """What the rows trained on are, by the step whose draw is on record.

    Returns:
        DataFrame of shares: of emoji art and of moved captions; of the web-like
        data, of clean pairs. Empty if no draw is on record.
    """
    draws = directory.read_rows(workdir, directory.DRAWS_FILE)
    draws = {row["step"]: row["ids"] for row in draws}
    if not draws:
        return pd.DataFrame()
    store = stores.open_stores(config.data)
    columns = store.columns(["id", "kind", "noise"])
    ids = np.asarray(columns["id"])
    folder = pathlib.Path(config.data.train[0]).parent.name
    flags = {"emoji": columns["kind"] == b"emoji"}
    if matrix.web_pool(folder.partition("-")[0]):
        flags = {"clean": columns["noise"] == b""}
    if folder.startswith("noise"):
        moved = flags["moved"] = np.zeros(len(ids), bool)
        share = int(folder.removeprefix("noise")) / 100
        moved[variants.moved(len(ids), share)] = True
    order = np.argsort(ids)
    rows = {
        step: order[np.searchsorted(ids, drawn, sorter=order)]
        for step, drawn in draws.items()
    }
    return pd.DataFrame(
        {
            name: {step: values[some].mean() for step, some in rows.items()}
            for name, values in flags.items()
        }
    )


def ends_of(chosen):
    """Shares of the first and of the last fifth of the draws on record."""
    count = max(1, len(chosen) // 5)
    return {
        f"{name}_{end}": round(float(some[name].mean()), 4)
        for end, some in (
            ("first", chosen[:count]),
            ("last", chosen[-count:]),
        )
        for name in chosen
    }


def with_renewals(curves, chosen, workdir, config):
    """Curves of a run that renews its reference, with what chose it.

    `recognised`, `is_kept` and `agreement`, with the renewal before, are of the
    renewal at a step, if it embedded anything. `clean` is the share of clean
    pairs trained on from there to the next evaluation.
    """
    renewals = bootstrap.renewals(config, workdir)
    if not renewals or "clean" not in chosen:
        return curves
    renewals = pd.DataFrame(renewals).set_index("step")
    renewals = renewals[renewals["images"] > 0]
    after = np.searchsorted(curves["step"], chosen.index, side="left") - 1
    clean = chosen["clean"].groupby(after).mean()
    return curves.assign(
        recognised=curves["step"].map(renewals["recognised"]),
        is_kept=curves["step"].map(renewals["kept"]),
        agreement=curves["step"].map(renewals["agreement"]),
        clean=clean.reindex(range(len(curves))).round(4).to_numpy(),
    )


def _concepts(workdir, config, splits):
    """Mean reciprocal ranks of each concept of each split."""
    run = loading.load(workdir)
    tables = []
    for split, store in evaluation.open_stores(splits).items():
        found = evaluation.StoreEvaluation(
            run.learner,
            store,
            tokenizer=run.tokenizer,
            image_size=config.data.image_size,
            batch_size=config.evaluation.batch_size,
            prompts=config.evaluation.prompts,
        ).embed()
        ranks = evaluation.ranks(
            found.images, found.texts, found.image_groups, found.text_groups
        )
        numbers = {}
        columns = {"split": split}
        for side, direction, groups in (
            ("image", "image_to_text", found.image_groups),
            ("text", "text_to_image", found.text_groups),
        ):
            by_concept = pd.Series(1 / np.rint(ranks[direction])).groupby(
                [numbers.setdefault(group, len(numbers)) for group in groups]
            )
            columns[f"{side}_queries"] = by_concept.size().astype("int16")
            columns[f"{side}_mrr"] = by_concept.mean().astype("float32")
        table = pd.DataFrame(columns).rename_axis("concept").reset_index()
        tables.append(table)
    return pd.concat(tables)


if __name__ == "__main__":
    main()

"""Adds a finished run to the result tables; `run.py` calls this.

    python -m benchmarks.icontext.collect --cell jest_750 --seed 0 \
        --digest 0123abcd --workdir icontext-work/runs/jest_750-0-0123abcd \
        --results icontext-work/results
"""

import argparse
import json
import pathlib

import numpy as np
import pandas as pd

from benchmarks import report
from benchmarks.icontext import results, runner, variants

_DIRECTIONS = ("image_to_text", "text_to_image")


def main(arguments=None):
    """Collect one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag in ("--workdir", "--cell", "--digest", "--results"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args(arguments)
    identity = {"cell": options.cell, "seed": options.seed}
    results.add(
        options.results,
        collect(options.workdir, identity, options.digest),
    )


def collect(workdir, identity, digest):
    """`results.Tables` of one run.

    Args:
        workdir: the run directory.
        identity: its cell and seed.
        digest: of its cell.
    """
    from jest_tf import config as config_lib

    workdir = pathlib.Path(workdir)
    config = config_lib.load_config(workdir / "config.json")
    curves = _curves(_read(workdir / "evaluation.jsonl"))
    last = _read(workdir / "metrics.jsonl")[-1]
    versions = json.loads((workdir / "versions.json").read_text())["versions"]
    run = {
        **identity,
        "digest": digest,
        "steps": config.steps,
        "batch_size": config.batch_size,
        **curves.drop(columns="step").iloc[-1].to_dict(),
        **{
            f"examples_{what}": last[f"examples/{what}"]
            for what in ("drawn", "scored", "trained")
        },
        **{
            f"flops_{what}": last.get(f"flops/{what}")
            for what in ("step", "cascade", "forward")
        },
        "processor_seconds": runner.processor_seconds(workdir),
        **_trained_on(workdir, config),
        "effective_filter_ratio": last.get("select/effective_filter_ratio"),
        "repeat_rate": last.get("train/repeat_rate"),
        "machine": report.processor(),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if v),
    }
    return results.Tables(
        pd.DataFrame([run]),
        curves.assign(**identity),
        _concepts(workdir, config).assign(**identity),
    )


def _read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _curves(evaluations):
    """Score of each split at each evaluation."""
    splits = sorted(
        {
            key.split("/")[1]
            for key in evaluations[0]
            if key.startswith("eval/") and key.endswith("/mrr")
        }
    )
    return pd.DataFrame(
        [
            {"step": row["step"]}
            | {
                split: np.mean(
                    [row[f"eval/{split}/{d}/mrr"] for d in _DIRECTIONS]
                )
                for split in splits
            }
            for row in evaluations
        ]
    ).round(5)


def _trained_on(workdir, config):
    """Shares of emoji art and of moved captions, first and last fifth."""
    from jest_tf.data import stores

    path = workdir / "draws.jsonl"
    if not path.exists():
        return {}
    draws = [np.array(line["ids"]) for line in _read(path)]
    store = stores.open_stores(config.data)
    columns = store.columns(["id", "kind"])
    ids = np.asarray(columns["id"])
    flags = {"emoji": np.array([kind == b"emoji" for kind in columns["kind"]])}
    folder = pathlib.Path(config.data.train[0]).parent.name
    if folder.startswith("noise"):
        moved = flags["moved"] = np.zeros(len(ids), bool)
        share = int(folder.removeprefix("noise")) / 100
        moved[variants.moved(len(ids), share)] = True
    order = np.argsort(ids)
    count = max(1, len(draws) // 5)
    found = {}
    for end, some in (("first", draws[:count]), ("last", draws[-count:])):
        drawn = np.concatenate(some)
        rows = order[np.searchsorted(ids, drawn, sorter=order)]
        for name, values in flags.items():
            found[f"{name}_{end}"] = round(float(values[rows].mean()), 4)
    return found


def _concepts(workdir, config):
    """Mean reciprocal ranks of each concept of each split."""
    from jest_tf import evaluation, runs

    run = runs.load_run(str(workdir))
    tables = []
    for split, store in evaluation.open_stores(config.evaluation.data).items():
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
        sides = [
            pd.Series(1 / np.rint(ranks[direction])).groupby(
                [numbers.setdefault(group, len(numbers)) for group in groups]
            )
            for direction, groups in zip(
                _DIRECTIONS,
                (found.image_groups, found.text_groups),
                strict=True,
            )
        ]
        (image, text) = sides
        table = pd.DataFrame(
            {
                "split": split,
                "image_queries": image.size().astype("int16"),
                "text_queries": text.size().astype("int16"),
                "image_mrr": image.mean().astype("float32"),
                "text_mrr": text.mean().astype("float32"),
            }
        )
        tables.append(table.rename_axis("concept").reset_index())
    return pd.concat(tables)


if __name__ == "__main__":
    main()

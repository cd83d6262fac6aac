"""The lines of a finished run in the result tables, one for each length.

| file | a line for each | contents |
| --- | --- | --- |
| runs.csv | run | final scores, costs, what was selected, machine |
| pairs.csv | run at its last step | the score of each test pair, x 1,000 |
| families.csv | pair of the tests | its split and its family |

A score is the mean reciprocal rank of retrieval in both directions. The tests
choose nothing: validation does.
"""

import fcntl
import os

import numpy as np
import pandas as pd

import jest_tf
from benchmarks import report
from benchmarks.protocol import measures
from jest_tf import evaluation
from jest_tf.data import stores
from jest_tf.runs import bootstrap, directory

_KEY = ["cell", "seed"]
_COSTS = ("flops_step", "flops_stored", "flops_renewals")
_COUNTS = (*_COSTS, "flops_forward", "flops_embedded")
_DIRECTIONS = ("image_to_text", "text_to_image")


def name_of(run, mix):
    """The name in the tables of a run, mixed with its start if `mix` < 1."""
    return run.name if mix == 1 else f"{run.name}_mixed_{mix:g}"


def collect(benchmark, run, workdir, data, mix=1.0):
    """The line of a run at a length.

    Args:
        benchmark: `benchmark.Benchmark`.
        run: `benchmark.Run`; the folder's may be longer.
        workdir: the directory of a finished run.
        data: folder of the data.
        mix: share of the run's weights, the rest the start's; 0 or 1 before
            the run's last step.

    Returns:
        A dict for runs.csv, and a string of the scores of the tests' pairs;
        empty before the last step, and of tuned runs, which need no interval.
    """
    workdir = str(workdir)
    config = directory.load_config(workdir, trust=True)
    splits, pairs, scores = (*benchmark.tests, *benchmark.validation), [], {}
    evaluated = directory.read_rows(workdir, directory.EVALUATION_FILE)
    # It has the costs of the steps up to it.
    last = next(row for row in evaluated if row["step"] == run.steps)
    if run.steps < config.steps:
        scores = _scores(last if mix else evaluated[0], splits)
    else:
        model = jest_tf.load(workdir, trust=True, mix=mix)
        encoder = evaluation.Encoder(
            model.learner, model.tokenizer, model.image_form, model.batch_size
        )
        kept = () if run.cell.start else benchmark.tests
        for split in splits:
            scores[split], found = _score(encoder, f"{data}/{split}-*.tfrecord")
            pairs += found if split in kept else []
    words = " ".join(str(round(measures.PAIR_SCALE * pair)) for pair in pairs)
    chosen = clean_share(workdir, config)
    chosen = chosen[chosen.index <= run.steps]
    count = max(1, len(chosen) // 5)
    versions = directory.read(workdir, directory.VERSIONS_FILE)["versions"]
    row = {
        "cell": name_of(run, mix),
        "method": run.cell.method + f"_mixed_{mix:g}" * (mix < 1),
        "noise": run.cell.noise,
        "seed": run.seed,
        "reference": run.cell.reference,
        "steps": run.steps,
        **scores,
        **{
            f"examples_{what}": last[f"examples/{what}"]
            for what in ("drawn", "scored", "trained")
        },
        **{
            f"flops_{what}": last.get(f"flops/{what}")
            for what in ("step", "stored", "forward", "renewals")
        },
        "clean_first": chosen[:count].mean(),
        "clean_last": chosen[-count:].mean(),
        "machine": report.processor(),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if v),
    }
    return row, words


def add(folder, row, pairs):
    """Adds a run to the tables in a folder, runs.csv last."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another runner may add, too
        _add(folder, row, pairs)
    finally:
        os.close(lock)


def _add(folder, row, pairs):
    line = {name: row[name] for name in _KEY} | {"scores": pairs}
    for name, new in (("pairs.csv", line), ("runs.csv", row)):
        path, new = folder / name, pd.DataFrame([new])
        if name == "pairs.csv" and not pairs:
            continue
        if path.exists():
            counts = dict.fromkeys(_COUNTS, "Int64")
            new = pd.concat([pd.read_csv(path, dtype=counts), new])
        for count in _COUNTS:
            if count in new:
                new[count] = new[count].astype("Int64")
        whole = path.with_suffix(".part")
        new.to_csv(whole, index=False)
        whole.replace(path)


def families(benchmark, data):
    """The split and the family of each pair of the tests, a DataFrame."""
    rows = []
    for split in benchmark.tests:
        store = stores.open_store(f"{data}/{split}-*.tfrecord")
        styles = store.columns(["style"])["style"]
        rows += [(split, benchmark.family(style.decode())) for style in styles]
    return pd.DataFrame(rows, columns=["split", "family"])


def embedding_flops(workdir, shards, sidecars):
    """FLOPs of the images and captions of a pool in sidecars."""
    model = jest_tf.load(str(workdir), trust=True)
    store = stores.open_store(shards)
    return bootstrap.embedding_cost(model, store, str(sidecars)).flops


def clean_share(workdir, config):
    """The clean share of each draw on record, a Series by step."""
    rows = directory.read_rows(workdir, directory.DRAWS_FILE)
    store = stores.open_stores(config.data)
    columns = store.columns(["id", "noise"])
    noise = pd.Series(columns["noise"], index=columns["id"])
    clean = noise == b""
    return pd.Series(
        {row["step"]: clean[row["ids"]].mean() for row in rows}, dtype=float
    ).round(4)


def _score(encoder, pattern):
    """The score of a split, and of each of its pairs."""
    evaluated = evaluation.StoreEvaluation(stores.open_store(pattern))
    found = evaluated.embed(encoder)
    image_groups, text_groups = evaluated.image_groups, evaluated.text_groups
    ranks = evaluation.ranks(
        found.images, found.texts, image_groups, text_groups
    )
    images, texts = (1 / np.rint(ranks[direction]) for direction in _DIRECTIONS)
    by_group = pd.Series(
        texts, index=pd.Index(text_groups, tupleize_cols=False)
    )
    pairs = [
        (image + by_group[[group]].mean()) / 2
        for image, group in zip(images, image_groups, strict=True)
    ]
    return round(float(images.mean() + texts.mean()) / 2, 5), pairs


def _scores(row, splits):
    """The scores of splits in a row of a run's evaluations."""
    return {
        split: round(
            sum(row[f"eval/{split}/{side}/mrr"] for side in _DIRECTIONS) / 2, 5
        )
        for split in splits
    }

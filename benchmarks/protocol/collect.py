"""The lines of a finished run in the result tables.

| file | a line for each | contents |
| --- | --- | --- |
| runs.csv | run | final scores, costs, what was selected, machine |
| curves.csv | run and evaluation | validation scores, FLOPs so far |
| pairs.csv | run | the score of each pair of the tests, x 1,000 |
| families.csv | pair of the tests | its split and its family |

A score is the mean reciprocal rank of retrieval in both directions. The tests
are looked at here alone, once, with the final weights.
"""

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


def collect(benchmark, run, workdir, data):
    """The lines of a finished run.

    Args:
        benchmark: `benchmark.Benchmark`.
        run: `benchmark.Run`.
        workdir: its run directory.
        data: folder of the data.

    Returns:
        A dict for runs.csv, a DataFrame for curves.csv, and a string of the
        scores of the tests' pairs.
    """
    workdir = str(workdir)
    config = directory.load_config(workdir, trust=True)
    metrics = directory.read_rows(workdir, directory.METRICS_FILE)
    last, chosen = metrics[-1], clean_share(workdir, config)
    count = max(1, len(chosen) // 5)
    model = jest_tf.load(workdir, trust=True)
    scores, pairs = {}, []
    for split in (*benchmark.tests, *benchmark.validation):
        scores[split], found = _score(model, f"{data}/{split}-*.tfrecord")
        if split in benchmark.tests:
            pairs += found
    versions = directory.read(workdir, directory.VERSIONS_FILE)["versions"]
    row = {
        "cell": run.name,
        "method": run.cell.method,
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
        "repeat_rate": last.get("train/repeat_rate"),
        "clean_first": chosen[:count].mean(),
        "clean_last": chosen[-count:].mean(),
        "machine": report.processor(),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if v),
    }
    curve = _curve(benchmark, workdir, metrics)
    words = " ".join(str(round(measures.PAIR_SCALE * pair)) for pair in pairs)
    return row, curve.assign(cell=run.name, seed=run.seed), words


def add(folder, row, curve, pairs):
    """Adds a run to the tables in a folder, runs.csv last."""
    folder.mkdir(parents=True, exist_ok=True)
    line = {name: row[name] for name in _KEY} | {"scores": pairs}
    for name, new in (
        ("pairs.csv", pd.DataFrame([line])),
        ("curves.csv", curve),
        ("runs.csv", pd.DataFrame([row])),
    ):
        path = folder / name
        if path.exists():
            counts = dict.fromkeys(_COUNTS, "Int64")
            old = pd.read_csv(path, dtype=counts)
            new = pd.concat([old, new])
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


def _score(model, pattern):
    """The score of a split, and of each of its pairs."""
    encoder = evaluation.Encoder(
        model.learner, model.tokenizer, model.image_form, model.batch_size
    )
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


def _curve(benchmark, workdir, metrics):
    """Scores and FLOPs so far at each evaluation.

    FLOPs are those of the next row of the metrics.
    """
    rows = directory.read_rows(workdir, directory.EVALUATION_FILE)
    table = pd.DataFrame(rows)
    found = table[["step"]].copy()
    for split in benchmark.validation:
        sides = [f"eval/{split}/{direction}/mrr" for direction in _DIRECTIONS]
        found[split] = table[sides].mean(axis=1).round(5)
    steps = [row["step"] for row in metrics]
    after = np.searchsorted(steps, found["step"]).clip(max=len(steps) - 1)
    for name in _COSTS:
        key = name.replace("_", "/")
        found[name] = [metrics[place].get(key) for place in after]
    return found

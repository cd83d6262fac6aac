"""What is kept of a run: one line of JSON, from which the report is made.

    python -m benchmarks.icontext.results --workdir icontext-work/runs/jest-0 \
        --work icontext-work --cell jest --recipe jest \
        --out benchmarks/icontext/results/standard.jsonl

`run.py` calls this after each run. A line has the settings that differ from the
uniform recipe, the measures over time, what it cost, what was chosen by kind of
picture, and the rank of every query, so that no run is needed again for a
bootstrap or another target.
"""

import argparse
import base64
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import zlib

import numpy as np

from benchmarks import report

FOLDER = pathlib.Path(__file__).parent / "results"

# Measures that are kept, by their name in a run's log.
MEASURES = {
    "image_to_text/mrr": "i2t_mrr",
    "text_to_image/mrr": "t2i_mrr",
    "image_to_text/recall@1": "i2t_r1",
    "image_to_text/recall@5": "i2t_r5",
    "text_to_image/recall@1": "t2i_r1",
    "text_to_image/recall@5": "t2i_r5",
    "zero_shot/accuracy@1": "zs_1",
    "zero_shot/accuracy@5": "zs_5",
}
QUERIES_FILE = "queries.jsonl"
# Of each process that trained a line when it started, and one when it had
# ended, its seconds of processor time.
PROCESSOR_FILE = "processor_seconds.txt"
STARTED = "started"
NUM_BINS = 20  # of the draws, over time
# The reference's embeddings of two pictures that one takes for the same have a
# cosine above this.
LOOK_ALIKE = 0.95
_COSTS = ("examples/", "flops/")


def read(path):
    """The rows of a file of results; none if there is no file.

    A last line without an end, of a process that was killed, is left out.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def find_run(work, run):
    """The directory of a finished run, of the newest settings, or None."""
    found = pathlib.Path(work, "runs").glob(f"{run}-*/final.weights.h5")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return newest and newest.parent


def digest(config, work):
    """What tells a run's settings from others, wherever its folder is.

    Settings at their defaults have no part in it, so that a setting that the
    package gains leaves the results there are.
    """
    usual = _settings(type(config)(), work)
    changed = {
        key: value
        for key, value in _settings(config, work).items()
        if usual[key] != value
    }
    text = json.dumps(changed, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encode_ranks(ranks):
    """Text of ranks, a byte or so each: rounded, compressed, base 64."""
    whole = np.minimum(np.rint(ranks), 2**16 - 1).astype("<u2")
    return base64.b64encode(zlib.compress(whole.tobytes(), 9)).decode()


def decode_ranks(text):
    """Ranks that `encode_ranks` wrote, uint16 [queries]."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u2")


def collect(workdir, *, cell, recipe, work):
    """The row of a finished run, and what its queries were.

    Args:
        workdir: its run directory.
        cell: name of its cell.
        recipe: name of its recipe.
        work: folder of the data, left out of paths.
    """
    from jest_tf import config as config_lib
    from jest_tf.runs import log as log_lib

    workdir = pathlib.Path(workdir)
    config = config_lib.load_config(workdir / "config.json")
    base = config_lib.load_config(
        pathlib.Path(__file__).parents[2] / "configs" / "icontext_uniform.py"
    )
    settings, usual = _settings(config, work), _settings(base, work)
    evaluations = log_lib.read_log(workdir / "evaluation.jsonl")
    log = log_lib.read_log(workdir / "metrics.jsonl")
    versions = json.loads((workdir / "versions.json").read_text())
    ranks, queries = _ranks(workdir, config, work)
    row = {
        "cell": cell,
        "seed": config.seed,
        "recipe": recipe,
        "digest": digest(config, work),
        "steps": config.steps,
        "batch_size": config.batch_size,
        "differs": {
            key: value
            for key, value in settings.items()
            if usual.get(key) != value
        },
        "curve": _curve(evaluations),
        "log": _log(log),
        "costs": {
            key: value
            for key, value in log[-1].items()
            if key.startswith(_COSTS)
        },
        "seconds": log[-1]["seconds"],
        "processor_seconds": _processor_seconds(workdir),
        # Of its steps' time, what they waited for pictures or for stage 0.
        "input_wait_share": _mean(
            [line.get("time/input_wait_share") for line in log]
        ),
        "kinds": _kinds(workdir, config, work),
        "look_alikes": _look_alikes(workdir, config, work),
        "ranks": ranks,
        "versions": versions["versions"],
        "machine": report.processor(),
    }
    return row, queries


def append(path, row):
    """Write a row after the others; several processes may."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _cut_after_last_line(file)
        line = json.dumps(row, separators=(",", ":"))
        file.write(line.encode() + b"\n")


def _cut_after_last_line(file):
    """Cuts off what a process that was killed has left half-written."""
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def _settings(config, work):
    """Settings by their dotted names, with the data's folder left out."""
    flat = {}

    def walk(prefix, value):
        if isinstance(value, dict):
            for key, one in value.items():
                walk(f"{prefix}.{key}" if prefix else key, one)
        else:
            flat[prefix] = value

    text = json.dumps(dataclasses.asdict(config), ensure_ascii=False)
    for folder in (os.fspath(pathlib.Path(work).resolve()), "icontext-work"):
        text = text.replace(f"{folder}/", "")
    walk("", json.loads(text))
    return flat


def _curve(evaluations):
    """`{"step": [...], "<split>/<measure>": [...]}`, four decimals."""
    curve = {"step": [row["step"] for row in evaluations]}
    for key in evaluations[0]:
        # Other columns are not an evaluation's, or of one number alone.
        _, split, measure = (*key.split("/", 2), "", "")[:3]
        if key.startswith("eval/") and measure in MEASURES:
            curve[f"{split}/{MEASURES[measure]}"] = [
                round(row[key], 4) for row in evaluations
            ]
    return curve


def _log(log):
    """Loss, scale and the draws' scores, in at most `NUM_BINS` means."""
    names = [
        key
        for key, value in log[-1].items()
        if key.startswith(("train/", "select/")) and not isinstance(value, str)
    ]
    parts = np.array_split(np.arange(len(log)), min(NUM_BINS, len(log)))
    return {
        "step": [log[part[-1]]["step"] for part in parts],
        **{
            name: [_mean([log[i].get(name) for i in part]) for part in parts]
            for name in names
        },
    }


def _mean(values):
    """Mean of those that are there, five digits, or None without any."""
    there = [value for value in values if value is not None]
    return float(f"{np.mean(there):.5g}") if there else None


def _processor_seconds(workdir):
    """Of all processes that trained the run, start and evaluations included.

    None where the time of one is not known, which was killed with its runner.
    """
    path = workdir / PROCESSOR_FILE
    if not path.exists():
        return None
    lines = path.read_text().split()
    times = [line for line in lines if line != STARTED]
    if 2 * len(times) != len(lines):
        return None
    return round(sum(map(float, times)), 1)


def _kinds(workdir, config, work):
    """Shares of the kinds of picture among the drawn, over time."""
    from jest_tf.runs import log as log_lib

    path = workdir / "draws.jsonl"
    if not path.exists():
        return {}
    draws = log_lib.read_log(path)
    ids, kinds = _kinds_of(config, work)
    names, numbers = np.unique(kinds, return_inverse=True)
    is_moved = _is_moved(config, len(ids))
    order = np.argsort(ids)
    parts = np.array_split(np.arange(len(draws)), min(NUM_BINS, len(draws)))
    shares, moved = [], []
    for part in parts:
        drawn = np.concatenate([draws[i]["ids"] for i in part])
        rows = order[np.searchsorted(ids, drawn, sorter=order)]
        found = np.bincount(numbers[rows], minlength=len(names))
        shares.append(found / len(rows))
        moved.append(round(float(is_moved[rows].mean()), 4))
    pool = np.bincount(numbers) / len(numbers)
    return {
        "step": [draws[part[-1]]["step"] for part in parts],
        "pool": dict(zip(names.tolist(), pool.round(4).tolist(), strict=True)),
        "drawn": {
            name: [round(float(share[i]), 4) for share in shares]
            for i, name in enumerate(names.tolist())
        },
        **({"moved": moved} if is_moved.any() else {}),
    }


def in_percent_at_both_ends(shares):
    """Means over the first and the last fifth of runs, to be shown.

    Args:
        shares: of each run as many values over time.
    """
    shares = np.array(shares)
    count = max(1, shares.shape[1] // 5)
    parts = shares[:, :count], shares[:, -count:]
    return [f"{100 * part.mean():.1f}" for part in parts]


def _is_moved(config, count):
    """Which of a pool's rows have a caption that is another picture's."""
    from benchmarks.icontext import variants

    _, is_noisy, percent = pathlib.Path(
        config.data.train[0]
    ).parent.name.partition("noise")
    share = int(percent) / 100 if is_noisy else 0.0
    is_moved = np.zeros(count, bool)
    is_moved[variants.moved(count, share)] = True
    return is_moved


def share_of_look_alikes(pictures):
    """Of unit rows [n, D], the share that has a look-alike among the others."""
    cosines = pictures @ pictures.T
    np.fill_diagonal(cosines, -1.0)
    return float((cosines.max(1) > LOOK_ALIKE).mean())


def _look_alikes(workdir, config, work):
    """The share in draws spread over the run, and in uniform ones as large."""
    from jest_tf.data import sidecars as sidecars_lib
    from jest_tf.data import stores as stores_lib
    from jest_tf.runs import log as log_lib

    path = workdir / "draws.jsonl"
    if not path.exists() or not config.reference.sidecars:
        return {}
    draws = log_lib.read_log(path)
    ids, _ = _kinds_of(config, work)
    order = np.argsort(ids)
    sidecars = sidecars_lib.Sidecars(
        stores_lib.open_stores(config.data), config.reference.sidecar_dir, None
    )
    generator = np.random.default_rng(config.seed)

    def share(rows):
        first = np.zeros(len(rows), np.int64)
        pictures, _ = sidecars.read(rows, first, ids[rows])
        return share_of_look_alikes(pictures.astype(np.float32))

    places = np.linspace(0, len(draws) - 1, min(NUM_BINS, len(draws)))
    drawn, uniform = [], []
    for place in np.unique(places.astype(int)):
        chosen = draws[place]["ids"]
        drawn.append(share(order[np.searchsorted(ids, chosen, sorter=order)]))
        uniform.append(share(generator.choice(len(ids), len(chosen), False)))
    return {
        "drawn": round(float(np.mean(drawn)), 4),
        "uniform": round(float(np.mean(uniform)), 4),
    }


def _kinds_of(config, work):
    """Ids and kinds of all pictures trained on, read once and kept."""
    from jest_tf.data import stores as stores_lib

    name = digest_of(config.data.train)
    path = pathlib.Path(work) / f"kinds-{name}.npz"
    if not path.exists():
        store = stores_lib.open_stores(config.data)
        columns = store.columns(["id", "kind"])
        kinds = np.array([kind.decode() for kind in columns["kind"]])
        partial = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, ids=np.asarray(columns["id"]), kinds=kinds)
        partial.replace(path)
    with np.load(path) as file:
        return file["ids"], file["kinds"]


def _ranks(workdir, config, work):
    """Ranks of all queries at the end, by split and direction, and `Queries`.

    What the queries are is the same in every run, so the ranks have a digest
    of it alone.
    """
    from jest_tf import evaluation
    from jest_tf.models import reference

    run = reference.load_run(os.fspath(workdir))
    stores = evaluation.open_stores(config.evaluation.data)
    ranks, queries = {}, {}
    for split, store in stores.items():
        found = evaluation.embed_store(
            run.learner,
            store,
            tokenizer=run.tokenizer,
            image_size=config.data.image_size,
            batch_size=config.evaluation.batch_size,
            prompts=config.evaluation.prompts,
        )
        by_direction = evaluation.ranks(
            found.images, found.texts, found.image_groups, found.text_groups
        )
        by_direction["zero_shot"] = evaluation.ranks(
            found.images, found.classes, found.labels, found.class_names
        )["image_to_text"]
        ranks[split] = {
            name: encode_ranks(values) for name, values in by_direction.items()
        }
        key = ranks[split]["queries"] = digest_of(
            (found.image_groups, found.text_groups)
        )
        queries[key] = _concepts(found, store, work)
    return ranks, queries


def _concepts(found, store, work):
    """The concept of each query, numbered; zero-shot has the images'.

    With them, 0 or 1 for each number, which concepts icons teach.
    """
    numbers = {}
    image, text = (
        [numbers.setdefault(group, len(numbers)) for group in groups]
        for groups in (found.image_groups, found.text_groups)
    )
    row = {"image": encode_ranks(image), "text": encode_ranks(text)}
    path = pathlib.Path(work) / f"subsets-{digest_of(sorted(numbers))}.json"
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}.json")
        partial.write_text(json.dumps(_subsets(numbers, store, work)))
        partial.replace(path)
    return row | {"subsets": json.loads(path.read_text())}


def _subsets(numbers, store, work):
    """`concepts.taught_by_icons` of numbered concepts; minutes of reading."""
    from benchmarks.icontext import concepts
    from jest_tf.data import stores as stores_lib

    names = [""] * len(numbers)
    columns = store.columns(["concept", "label"])
    for concept, name in zip(*columns.values(), strict=True):
        names[numbers["concept", concept]] = name.decode()
    captions = {True: set(), False: set()}
    for split in ("reference", "pool"):
        trained = stores_lib.open_store(f"{work}/data/{split}-*.tfrecord")
        columns = trained.columns(["kind", "caption"])
        for kind, texts in zip(*columns.values(), strict=True):
            captions[kind == b"emoji"].update(text.decode() for text in texts)
    found = concepts.taught_by_icons(names, captions[False], captions[True])
    return {name: values.astype(int).tolist() for name, values in found.items()}


def digest_of(value):
    """Twelve digits that tell a value from others, by its `repr`."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def append_queries(path, queries):
    """Add what is not there yet to the file of all queries."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _cut_after_last_line(file)
        file.seek(0)
        known = {json.loads(line)["key"] for line in file}
        for key, value in queries.items():
            if key not in known:
                line = json.dumps({"key": key, **value})
                file.write(line.encode() + b"\n")


def main(arguments=None):
    """Collect one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag in ("--workdir", "--work", "--cell", "--recipe", "--out"):
        parser.add_argument(flag, required=True)
    options = parser.parse_args(arguments)
    row, queries = collect(
        options.workdir,
        cell=options.cell,
        recipe=options.recipe,
        work=options.work,
    )
    append_queries(pathlib.Path(options.out).with_name(QUERIES_FILE), queries)
    append(options.out, row)


if __name__ == "__main__":
    main()

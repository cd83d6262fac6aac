"""Runs a matrix of cells, one process a core, and keeps compact results.

    python -m benchmarks.icontext.run --work icontext-work --jobs 2
    python -m benchmarks.icontext.run --matrix beyond
    python -m benchmarks.icontext.run --matrix quick
    python -m benchmarks.icontext.run --list

`make icontext-data` makes the data before that. What a cell needs, a reference
with its sidecars or another pool, comes before it. A result that is in the
results' folder is not made again, a run that was stopped goes on where it was,
and a cell whose settings have changed is run anew. `--only` takes names of
cells, with wildcards; what they need comes along. Several of these may work in
one folder, and wait for each other's runs.
"""

import argparse
import dataclasses
import fnmatch
import functools
import hashlib
import os
import pathlib
import signal
import sys

from benchmarks.icontext import matrix, results, runner
from jest_tf import config as config_lib

_ROOT = pathlib.Path(__file__).resolve().parents[2]

_EVALUATION_SPLITS = ("val_concept", "test_concept", "test_style")
# What embedding the pool or writing another one costs, in training steps, and
# the processor's seconds of such a step and of what a run does beside them;
# fitted to the kept runs of two processors, for the time left alone.
_PREPARATION_STEPS = 500
_STEP_SECONDS, _RUN_SECONDS = 0.32, 60
# Of a net twice as wide, over the usual one, as the kept references took.
_WIDE, _WIDE_SECONDS = "benchmarks.icontext.towers:build_wide", 2.5


def main(arguments=None):
    """Parse the flags and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--work", default="icontext-work", help="folder of data and runs")
    add("--results", default=os.fspath(results.FOLDER))
    add("--matrix", default="standard", choices=sorted(matrix.MATRICES))
    add(
        "--only",
        nargs="+",
        default=["*"],
        metavar="CELL",
        help="of the matrix's cells only these, '*' for any letters",
    )
    add("--seeds", nargs="+", type=int, help="of the cells' seeds, only these")
    add(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes at a time, 1.2 GB each (default: one a core)",
    )
    add("--list", action="store_true", help="print the cells and their costs")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be 1 or more, and is {options.jobs}")
    work = pathlib.Path(options.work).resolve()
    cells = matrix.MATRICES[options.matrix]
    path = pathlib.Path(options.results).resolve() / f"{options.matrix}.jsonl"
    splits = matrix.TUNED_ON.get(options.matrix, _EVALUATION_SPLITS)
    tasks = plan(cells, work, path, splits)
    wanted = [
        name(cell, seed)
        for cell in cells
        for seed in cell.seeds
        if any(fnmatch.fnmatch(cell.name, one) for one in options.only)
        and (options.seeds is None or seed in options.seeds)
    ]
    names = [cell.name for cell in cells]
    unknown = [one for one in options.only if not fnmatch.filter(names, one)]
    if unknown or not wanted:
        parser.error(
            f"the matrix {options.matrix!r} has no cell "
            f"{unknown or options.only} with seeds "
            f"{options.seeds or 'of any number'}; it has: {', '.join(names)}"
        )
    tasks = _with_needs(tasks, wanted)
    if options.list:
        _list(tasks, options.jobs)
        return
    runner.say(
        f"{len(wanted)} runs of {options.matrix!r} are wanted; their results "
        f"in {str(path.parent)!r} leave {len(tasks)} tasks to do"
    )
    if tasks:
        _claim_data(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, runner.stop)
    if not runner.Runner(tasks, work, options.jobs).run():
        sys.exit(1)


def _claim_data(work):
    """Refuse a folder whose runs are of other data than it has now.

    Raises:
        SystemExit: so it is, or there are no data.
    """
    stats = work / "data" / "stats.json"
    if not stats.exists():
        raise SystemExit(
            f"error: no data in {str(stats.parent)!r}; `make icontext-data` or "
            "`python -m benchmarks.icontext.build full` builds them"
        )
    now = hashlib.sha256(stats.read_bytes()).hexdigest()
    mark = work / "data.sha256"
    if mark.exists() and mark.read_text() != now:
        raise SystemExit(
            f"error: what lies in {str(work)!r} was made of other data than "
            f"{str(stats.parent)!r} has now. Name another folder with --work, "
            "or remove all in it but 'cache' and 'data'"
        )
    mark.write_text(now)


def name(cell, seed):
    """Name of a run."""
    return f"{cell.name}-{seed}"


def folder(cell, seed, work, splits=_EVALUATION_SPLITS):
    """Where a run lies: other settings have another folder."""
    config = resolve(cell, seed, work, splits)
    digest = results.digest(config, work)
    return work / "runs" / f"{name(cell, seed)}-{digest[:8]}"


def digest(cell, seed):
    """What tells the settings of a cell's run from others, see `results`."""
    work = pathlib.Path("icontext-work")
    return results.digest(resolve(cell, seed, work), work)


@functools.cache
def resolve(cell, seed, work, splits=_EVALUATION_SPLITS):
    """The settings of a run, whole.

    Args:
        cell: `matrix.Cell`.
        seed: of the run.
        work: folder of the data.
        splits: to evaluate a learner on; a reference sees all.

    Returns:
        `config.TrainConfig`.
    """
    work = pathlib.Path(work)
    sidecars = cell.reference and os.fspath(_sidecar_folder(work, cell))
    config = config_lib.load_config(
        _ROOT / "configs" / f"icontext_{cell.recipe}.py",
        (*cell.settings, f"seed={seed}"),
    )
    if cell.recipe == "reference":
        splits = _EVALUATION_SPLITS
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data,
            train=tuple(_shards(work, one) for one in cell.sources),
            weights=(1.0,) * len(cell.sources) if cell.sources[1:] else (),
            vocabulary=f"{work}/data/vocab.txt",
        ),
        reference=dataclasses.replace(config.reference, sidecar_dir=sidecars),
        evaluation=dataclasses.replace(
            config.evaluation,
            data=tuple(f"{work}/data/{one}-*.tfrecord" for one in splits),
            every_steps=max(1, config.steps // cell.evaluations),
        ),
    )


def plan(cells, work, path, splits=_EVALUATION_SPLITS):
    """Everything to do, `{name: Task}`; what is done is left out.

    Args:
        cells: of `matrix`.
        work: folder of data and runs.
        path: of the results.
        splits: see `resolve`.
    """
    finished = _finished(path)
    tasks = {}
    for cell in cells:
        for seed in cell.seeds:
            config = resolve(cell, seed, work, splits)
            needs = [_pool(tasks, one, work) for one in cell.sources]
            if cell.reference:
                needs.append(_sidecars(tasks, cell, work))
            workdir = folder(cell, seed, work, splits)
            digest = results.digest(config, work)
            weights = workdir / "final.weights.h5"
            is_known = digest in finished
            is_done = is_known and (
                cell.recipe != "reference" or weights.exists()
            )
            settings = work / "settings" / f"{workdir.name}.json"
            train, collect = _training(cell, settings, workdir, work, path)
            tasks[name(cell, seed)] = runner.Task(
                name(cell, seed),
                (train,) if is_known else (train, collect),
                tuple(need for need in needs if need),
                0.0 if is_done else cost(config),
                weights.exists
                if is_known
                else functools.partial(_is_collected, path, digest),
                settings=(config, settings),
                is_known=is_known,
            )
    return tasks


def _finished(path):
    """Digests of the runs that have a row, a reference's in any matrix."""
    files = {
        path,
        *(path.with_name(f"{one}.jsonl") for one in matrix.MATRICES),
    }
    return {row["digest"] for file in files for row in results.read(file)}


def _is_collected(path, digest):
    """Whether another runner has added the row since."""
    return digest in _finished(path)


def cost(config):
    """What a run costs, in uniform steps of b = 256.

    A step on b examples is three forward passes of them, and a scored example
    is one, but a share of one from small pictures. Stage 0 of a cascade is left
    out.
    """

    def passes_of(view):
        size = view.image_size or config.data.image_size
        return (size / config.data.image_size) ** 2

    views = config.model.views or (config_lib.View(),)
    trained = sum(map(passes_of, views)) / len(views)
    passes = 3 * config.steps * config.batch_size * trained
    if config.selection.needs_learner:
        passes += passes_of(config.selection.view) * (
            config.selection.num_scored(
                config.steps, config.data.super_batch_size
            )
        )
    width = _WIDE_SECONDS if config.model.towers == _WIDE else 1.0
    return width * passes / (3 * 256)


def _shards(work, source):
    if source in ("reference", "pool", *_EVALUATION_SPLITS):
        return f"{work}/data/{source}-*.tfrecord"
    return f"{_pool_folder(work, source)}/pool-*.tfrecord"


def _pool_folder(work, source):
    """Where another pool lies: one that a reference made has its digest."""
    return work / "pools" / _with_judge(work, source)


def _with_judge(work, source):
    if source not in matrix.JUDGES:
        return source
    judge = matrix.find(matrix.JUDGES[source])
    return f"{source}-{_short_digest(judge, work)}"


def _sidecar_folder(work, cell):
    digest = _short_digest(matrix.find(cell.reference), work)
    return work / "sidecars" / f"{cell.key}-{digest}"


@functools.cache
def _short_digest(reference, work):
    config = resolve(reference, 0, work)
    return results.digest(config, work)[:8]


def _training(cell, settings, workdir, work, path):
    """Commands that train a cell and collect what came out."""
    collect = (
        *("-m", "benchmarks.icontext.results", "--workdir", str(workdir)),
        *("--work", str(work), "--cell", cell.name, "--recipe", cell.recipe),
        *("--out", str(path)),
    )
    train = "-m", "trainers.train", "--config", settings, "--workdir", workdir
    return tuple(map(str, train)), collect


def _pool(tasks, source, work):
    """Name of the task that makes a pool, added if need be."""
    if source in ("reference", "pool"):
        return None
    out = _pool_folder(work, source)
    kind, options, needs, before = source, (), (), ()
    if source.startswith("noise"):
        kind = "noise"
        options = ("--share", f"{int(source.removeprefix('noise')) / 100}")
    elif source in matrix.JUDGES:
        judge = matrix.Cell("", "jest", "", reference=matrix.JUDGES[source])
        needs = (_sidecars(tasks, judge, work),)
        kind = "distinct" if source == "distinct" else "filter"
        options = ("--sidecars", _sidecar_folder(work, judge))
        if source in _CURATED:
            kind = "manifest"
            options = ("--manifest", work / "manifests" / out.name)
            before = (_curation(source, judge, work, options[1]),)
    command = (
        *("-m", "benchmarks.icontext.variants", kind),
        *("--data", f"{work}/data", "--out", f"{out}", *map(str, options)),
    )
    done = out / "done"
    task = runner.Task(
        *(f"pool {source}", (*before, command), needs, _PREPARATION_STEPS),
        *(done.exists, done),
    )
    tasks[task.name] = task
    return task.name


# What `trainers.curate` is asked for: as many as are curated by hand, like the
# tasks of the validation; or the fifth that is jointly easiest.
_CURATED = {
    "inferred": ("size=2778",),
    "chosen": ("share=0.2", "loss=softmax"),
}


def _curation(source, judge, work, out):
    """Command that writes the manifest of a pool."""
    like = ()
    if source == "inferred":
        like = (
            *("--like", _shards(work, "val_concept"), "--evaluation"),
            *(_shards(work, split) for split in _EVALUATION_SPLITS[1:]),
        )
    return (
        *("-m", "trainers.curate", "--data", _shards(work, "pool")),
        *("--workdir", f"{folder(matrix.find(judge.reference), 0, work)}"),
        *("--sidecar-dir", f"{_sidecar_folder(work, judge)}"),
        *("--output", f"{out}", *like, "--set", *_CURATED[source]),
    )


def _sidecars(tasks, cell, work):
    """Name of the task that embeds a cell's data, added if need be."""
    judge = matrix.find(cell.reference)
    out = _sidecar_folder(work, cell)
    needs = [name(judge, 0)]
    needs += [_pool(tasks, one, work) for one in cell.sources]
    command = (
        *("-m", "trainers.embed", "--output", f"{out}"),
        *("--workdir", f"{folder(judge, 0, work)}"),
        *("--data", *(_shards(work, one) for one in cell.sources)),
    )
    needs, done = tuple(need for need in needs if need), out / "done"
    task = runner.Task(
        *(f"sidecars {cell.key}", (command,), needs, _PREPARATION_STEPS),
        *(done.exists, done),
    )
    tasks[task.name] = task
    return task.name


def _with_needs(tasks, wanted):
    """The tasks that are wanted and not done, with all that they need."""
    found = {}

    def add(one):
        task = tasks[one]
        is_done = task.done.exists() if task.done else not task.steps
        if one in found or is_done:
            return
        for need in task.needs:
            add(need)
        found[one] = task

    for one in wanted:
        if not tasks[one].is_known:
            add(one)
    return found


def _list(tasks, jobs):
    for task in tasks.values():
        print(f"{task.steps:8,.0f}  {task.name}")
    total = sum(task.steps for task in tasks.values())
    seconds = total * _STEP_SECONDS + len(tasks) * _RUN_SECONDS
    print(
        f"{total:8,.0f}  uniform steps, {len(tasks)} tasks to do, about "
        f"{seconds / jobs / 3600:.1f} h by {jobs} at a time"
    )


if __name__ == "__main__":
    main()

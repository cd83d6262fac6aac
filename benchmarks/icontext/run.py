"""Runs cells of matrix.csv, one process per core, and collects their results.

    python -m benchmarks.icontext.run --work icontext-work --jobs 2
    python -m benchmarks.icontext.run --matrix quick
    python -m benchmarks.icontext.run --cells jest_750 'stage_0_*' --seeds 0
    python -m benchmarks.icontext.run --matrix web_quick --list

`make icontext-data` makes the data first. References, sidecars and pools that a
cell needs are made before it. Finished runs are kept, stopped runs continue,
and a cell that has changed in matrix.csv is run again. A finished run of which
only some splits are in the tables is evaluated on all, not trained.
"""

import argparse
import dataclasses
import fnmatch
import os
import pathlib
import sys

from benchmarks import report
from benchmarks.icontext import matrix, results, runner, variants, web
from jest_tf import config as config_lib
from jest_tf.runs import directory

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# Costs in training steps of the data's uniform recipe: embedding a pool or
# writing one; processor seconds of a step and of the rest of a run, fitted to
# the kept runs; and a step of a network twice as wide.
_PREPARATION_STEPS = 500
_STEP_SECONDS = {"data": 0.32, "web": 0.067}
_RUN_SECONDS = {"data": 60, "web": 15}
_WIDE, _WIDE_STEPS = "model.towers=benchmarks.icontext.towers:build_wide", 2.5
_WEB_POOLS = tuple(f"pool{level:02d}" for level in web.LEVELS)
_WEB_CURATED = ("curated", *(f"curated{size}" for size in web.FEWER_CURATED))
# Options of `variants.py` by the start of the pool's name.
_WEB_VARIANTS = {
    "oracle": "clean",
    "deduplicated": "deduplicate",
    "balanced": "balance",
    "filtered": "filter",
}
# Options of `trainers.curate`: as many pairs as the curated set has, like the
# validation tasks; and the fifth that is jointly easiest.
_CURATED = {
    "inferred": "--like {val_concept} --evaluation {test_concept} {test_style} "
    "--set size=2778",
    "chosen": "--set share=0.2 loss=softmax",
}


def main(arguments=None):
    """Parse the flags and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--work", default="icontext-work", help="folder of data and runs")
    add(
        "--results",
        help="folder of the result tables; WORK/results, or WORK/results-web "
        "for the web-like data",
    )
    add(
        "--matrix",
        nargs="+",
        default=["standard", "diagnosis", "beyond"],
        choices=matrix.MATRICES,
    )
    add("--cells", nargs="+", default=["*"], help="of these only; * matches")
    add("--seeds", nargs="+", type=int, help="of the cells' seeds, only these")
    add(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes at a time, 1.2 GB each (default: one per core)",
    )
    add("--list", action="store_true", help="print the tasks and their costs")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1. Received: {options.jobs}")
    wanted = [
        (cell, seed)
        for name in options.matrix
        for cell in matrix.cells(name)
        for seed in cell.seeds
        if any(fnmatch.fnmatch(cell.cell, one) for one in options.cells)
        and (options.seeds is None or seed in options.seeds)
    ]
    if not wanted:
        parser.error(
            f"--cells must name cells of {options.matrix} with --seeds "
            f"{options.seeds or 'of any'}. Received: {options.cells}"
        )
    work = pathlib.Path(options.work).resolve()
    folders = {cell.data for cell, _ in wanted}
    if len(folders) > 1:
        parser.error(
            "--matrix must name matrices of one data set: all of 'web_...', or "
            f"none. Received: {options.matrix}"
        )
    (data,) = folders
    tables = work / ("results-web" if data == "web" else "results")
    plan = Plan(work, pathlib.Path(options.results or tables))
    for cell, seed in wanted:
        plan.add_run(cell, seed)
    if options.list:
        _list(plan.tasks.values(), options.jobs, data)
        return
    report.log(f"{len(wanted)} runs wanted, {len(plan.tasks)} tasks to do")
    if plan.tasks and not (work / data / "stats.json").exists():
        raise SystemExit(
            f"error: no data in '{work / data}'; `make icontext-data` or "
            "`python -m benchmarks.icontext.build full` builds them, then "
            "`python -m benchmarks.icontext.web` the web-like ones"
        )
    runner.exit_on_signals()
    if not runner.Runner(plan.tasks, work, options.jobs).run():
        sys.exit(1)


class Plan:
    """The tasks that some runs need, in folder `work`, beyond `tables`."""

    def __init__(self, work, tables):
        self.tasks = {}
        self._work = work
        self._tables = tables.resolve()
        self._finished = results.finished(tables)

    def add_run(self, cell, seed, for_others=False):
        """Adds a run and its needs; `for_others` needs only its weights.

        Returns:
            The name of its task, done or not.
        """
        name = f"{cell.cell}-{seed}"
        workdir = self.workdir(cell, seed)
        is_trained = (workdir / "final.weights.h5").exists()
        digest, splits = self._finished.get((cell.cell, seed), ("", ()))
        is_collected = digest == cell.digest and {*cell.splits} <= {*splits}
        if name in self.tasks or (is_trained if for_others else is_collected):
            return name
        needs = [self._add_pool(source) for source in cell.sources]
        if cell.reference:
            needs.append(self._add_sidecars(cell.reference, cell.sources))
        settings = self.settings(cell, seed)
        shorter = self._shorter(cell, seed)
        train = (
            *("trainers.train", "--config", _recipe(cell)),
            *("--workdir", workdir, "--set", *settings),
        )
        steps = config_lib.load_config(_recipe(cell), settings).steps
        is_finished = is_trained and _is_evaluated(workdir, steps)
        if shorter and not is_finished:
            needs.append(self.add_run(shorter, seed, for_others=True))
            train = (
                *(runner.PROLONG, "--source", self.workdir(shorter, seed)),
                *("--workdir", workdir, "--steps", steps),
            )
        commands = [] if is_finished else [train]
        if not is_collected:
            commands.append(
                (
                    *("benchmarks.icontext.collect", "--workdir", workdir),
                    *("--cell", cell.cell, "--seed", seed),
                    *("--digest", cell.digest, "--results", self._tables),
                    *("--splits", *self._held_out(cell, cell.splits)),
                    *("--embedded", *self._embedded(cell)),
                )
            )
        steps = 0 if is_finished else cost(_recipe(cell), settings)
        if shorter and not is_finished:
            steps -= cost(_recipe(cell), self.settings(shorter, seed))
        return self._add(name, commands, needs, steps)

    def _shorter(self, cell, seed):
        """The longest cell that this one only prolongs, at a constant rate."""
        ours = config_lib.load_config(_recipe(cell), self.settings(cell, seed))
        if ours.optimizer.schedule != "constant":
            return None
        found = {}
        for other in matrix.load().values():
            if matrix.but_for_steps(other) == matrix.but_for_steps(cell):
                settings = self.settings(other, seed)
                config = config_lib.load_config(_recipe(other), settings)
                if dataclasses.replace(config, steps=ours.steps) == ours:
                    found[config.steps] = other
        lengths = [steps for steps in found if steps < ours.steps]
        return found[max(lengths)] if lengths else None

    def workdir(self, cell, seed):
        """Run directory: a changed cell has another one."""
        return self._work / "runs" / f"{cell.cell}-{seed}-{cell.digest}"

    def settings(self, cell, seed):
        """Changes to the recipe, "a.b=c" each."""
        config = config_lib.load_config(_recipe(cell), cell.settings)
        data = self._work / cell.data
        weights = ["1"] * len(cell.sources) if cell.sources[1:] else []
        evaluated = ",".join(self._held_out(cell, cell.watched))
        found = [
            f"seed={seed}",
            f"data.train={','.join(map(self._shards, cell.sources))}",
            f"data.weights={','.join(weights)}",
            f"data.vocabulary={data}/vocab.txt",
            f"evaluation.data={evaluated}",
            *cell.settings,
        ]
        if cell.evaluations:
            every_steps = max(1, config.steps // cell.evaluations)
            found.append(f"evaluation.every_steps={every_steps}")
        for pattern in config.data.curated:
            # The recipe's has a folder, a cell's is a name.
            name = pathlib.PurePath(pattern).name.partition("-")[0]
            found.append(f"data.curated={self._shards(name)}")
        if cell.reference:
            folder = self._sidecar_folder(cell.reference, cell.sources)
            found.append(f"reference.sidecar_dir={folder}")
        return found

    def _held_out(self, cell, splits):
        """Patterns of the shards of splits."""
        return [f"{self._work}/{cell.data}/{one}-*.tfrecord" for one in splits]

    def _embedded(self, cell):
        """Where the embeddings that a cell needs are, and of which model.

        Returns:
            Run directory, sidecar folder and shards, for each reference.
        """
        needs = [
            (judge, (matrix.web_pool(source) or "pool",))
            for source in cell.sources
            for judge in [matrix.judge(source)]
            if judge
        ]
        if cell.reference:
            needs.append((cell.reference, cell.sources))
        return [
            part
            for name, sources in dict.fromkeys(needs)
            for part in (
                self.workdir(matrix.find(name), 0),
                self._sidecar_folder(name, sources),
                ",".join(map(self._shards, sources)),
            )
        ]

    def _add(self, name, commands, needs, steps=_PREPARATION_STEPS, done=None):
        commands = tuple(tuple(map(str, command)) for command in commands)
        needs = tuple(need for need in needs if need)
        self.tasks[name] = runner.Task(name, commands, needs, steps, done)
        return name

    def _shards(self, source):
        if source in ("reference", "pool", *matrix.SPLITS):
            return f"{self._work}/data/{source}-*.tfrecord"
        if source in _WEB_CURATED:
            return f"{self._work}/web/{source}-*.tfrecord"
        if source in _WEB_POOLS:
            return f"{self._work}/web/{source}/pool-*.tfrecord"
        return f"{self._pool_folder(source)}/pool-*.tfrecord"

    def _pool_folder(self, source):
        judge = matrix.judge(source)
        digest = f"-{matrix.find(judge).digest}" if judge else ""
        return self._work / "pools" / f"{source}{digest}"

    def _sidecar_folder(self, reference, sources):
        name = f"{reference}-{'-'.join(sources)}"
        digest = matrix.find(reference).digest
        return self._work / "sidecars" / f"{name}-{digest}"

    def _add_sidecars(self, reference, sources):
        """Embedding of sources by a reference."""
        name = f"sidecars {reference} {' '.join(sources)}"
        folder = self._sidecar_folder(reference, sources)
        done = folder / "done"
        if name in self.tasks or done.exists():
            return name
        cell = matrix.find(reference)
        needs = [self.add_run(cell, 0, for_others=True)]
        needs += [self._add_pool(source) for source in sources]
        command = (
            *("trainers.embed", "--workdir", self.workdir(cell, 0)),
            *("--output", folder, "--data", *map(self._shards, sources)),
        )
        return self._add(name, [command], needs, done=done)

    def _add_pool(self, source):
        """Adds a pool made from the pool; None for a split of the data."""
        if source in ("reference", "pool", *_WEB_CURATED, *_WEB_POOLS):
            return None
        name, folder = f"pool {source}", self._pool_folder(source)
        done = folder / "done"
        if name in self.tasks or done.exists():
            return name
        commands, needs, options = [], [], (source,)
        data, pool = self._work / "data", matrix.web_pool(source)
        if pool:
            data = self._work / "web" / pool
            options = (_WEB_VARIANTS[source.partition(pool[-2:])[0]],)
        if source.startswith("noise"):
            share = int(source.removeprefix("noise")) / 100
            options = ("noise", "--share", share)
        judge = matrix.judge(source) and matrix.find(matrix.judge(source))
        if judge:
            judged = (pool or "pool",)
            sidecars = self._sidecar_folder(judge.cell, judged)
            needs.append(self._add_sidecars(judge.cell, judged))
            share = matrix.share(source) if pool else variants.FILTERED_SHARE
            options = ("filter", "--sidecars", sidecars, "--share", share)
            options += ("--captions", "best") if pool else ()
        if source in _CURATED:
            manifest = self._work / "manifests" / folder.name
            options = ("manifest", "--manifest", manifest)
            shards = {split: self._shards(split) for split in matrix.SPLITS}
            more = [one.format(**shards) for one in _CURATED[source].split()]
            commands.append(
                (
                    *("trainers.curate", "--data", self._shards("pool")),
                    *("--workdir", self.workdir(judge, 0)),
                    *("--output", manifest),
                    *("--sidecar-dir", sidecars, *more),
                )
            )
        commands.append(
            (
                *("benchmarks.icontext.variants", *options),
                *("--data", data, "--out", folder),
            )
        )
        return self._add(name, commands, needs, done=done)


def _is_evaluated(workdir, steps):
    """Whether a run's evaluations go up to so many steps."""
    rows = directory.read_rows(workdir, directory.EVALUATION_FILE)
    return bool(rows) and rows[-1]["step"] == steps


def _recipe(cell):
    return _ROOT / "configs" / f"icontext_{cell.recipe}.py"


def cost(recipe, settings):
    """Cost of a run in uniform steps of b = 256, without stage 0.

    A step on b examples costs three forward passes of each, a scored or
    embedded example costs one, less by the area of smaller pictures.
    """
    config = config_lib.load_config(recipe, settings)
    full_size = config.data.image_size

    def area(view):
        return ((view.image_size or full_size) / full_size) ** 2

    views = config.model.views or (config_lib.View(),)
    trained = sum(map(area, views)) / len(views)
    passes = 3 * config.steps * config.batch_size * trained
    if config.selection.needs_learner:
        scored = config.selection.num_scored(
            config.steps, config.data.super_batch_size
        )
        passes += area(config.selection.view) * scored
    renewals = config.bootstrap.renew_at
    embedded = sum(map(config.bootstrap.share, renewals))
    passes += embedded * matrix.WEB_POOL_SIZE
    steps = _WIDE_STEPS if _WIDE in settings else 1.0
    return steps * passes / (3 * 256)


def _list(tasks, jobs, data):
    for task in tasks:
        print(f"{task.steps:8,.0f}  {task.name}")
    total = sum(task.steps for task in tasks)
    seconds = total * _STEP_SECONDS[data] + len(tasks) * _RUN_SECONDS[data]
    print(
        f"{total:8,.0f}  uniform steps, {len(tasks)} tasks, about "
        f"{seconds / jobs / 3600:.1f} h with {jobs} at a time, if a step takes "
        f"{_STEP_SECONDS[data]} s of a core"
    )


if __name__ == "__main__":
    main()

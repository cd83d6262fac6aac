"""Trains the cells that the result tables lack, and adds them as they end.

    python -m benchmarks.protocol.run icons --list
    python -m benchmarks.protocol.run photos --work photos-work --jobs 2
    python -m benchmarks.protocol.run icons --cells 'web_uniform_*' --seeds 0
    python -m benchmarks.protocol.run photos --quick --jobs 2

`make icontext-data` or `make photos-data` makes the data first. References and
sidecars that a cell needs are made before it. A cell is trained once for each
seed, at the greatest length wanted: the rate is constant, so evaluations on the
way are those of the shorter lengths. A run that was stopped continues when the
command is given again; only one command may work in a folder. `--quick` trains
one short run of each main method, 20 to 30 minutes on two cores, and prints
their scores; they go into the tables, too.
"""

import argparse
import concurrent.futures
import fnmatch
import math
import os
import pathlib
import subprocess
import sys
import threading

import pandas as pd

from benchmarks import report
from benchmarks.icontext import cells as icons
from benchmarks.phototext import cells as photos
from benchmarks.protocol import collect

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (icons.BENCHMARK, photos.BENCHMARK)
}
# A process per core: more threads would slow each other down.
_ONE_THREAD = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def main(arguments=None):
    """Parse the flags and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("benchmark", choices=BENCHMARKS)
    add("--work", type=pathlib.Path, help="folder of data and runs")
    add(
        "--results",
        type=pathlib.Path,
        help="folder of the tables; runs in them count as done (WORK/results)",
    )
    add("--cells", nargs="+", default=["*"], help="of these only; * matches")
    add("--seeds", nargs="+", type=int, help="of the cells' seeds, only these")
    add("--quick", action="store_true", help="one short run a main method")
    add("--jobs", type=int, default=1, help="processes, 1.2 GB each (1)")
    add("--list", action="store_true", help="print what is missing")
    options = parser.parse_args(arguments)
    benchmark = BENCHMARKS[options.benchmark]
    work = (options.work or pathlib.Path(benchmark.work)).resolve()
    results = (options.results or work / "results") / benchmark.data
    found = benchmark.runs()
    order = sorted(found, key=lambda run: found[run].steps)
    if options.quick:
        order = benchmark.quick
        if not order:
            parser.error(f"expected no `--quick`: {benchmark.name} has none")
    wanted = [
        (name, seed)
        for name, seed in order
        if any(fnmatch.fnmatch(name, pattern) for pattern in options.cells)
        and (options.seeds is None or seed in options.seeds)
        and (name, seed) not in finished(results)
    ]
    if options.list:
        for name, seed in wanted:
            print(name, seed)
        return
    data = work / benchmark.data
    if wanted and not (data / "stats.json").exists():
        raise SystemExit(
            f"error: '{data}' has no data: run `{benchmark.build}`"
        )
    report.log(f"{len(wanted)} runs to do")
    if not Runner(benchmark, work, results, options.jobs).run(wanted):
        sys.exit(1)
    if options.quick:
        rows = pd.read_csv(results / "runs.csv").set_index(["cell", "seed"])
        rows = rows.loc[list(benchmark.quick)].reset_index()
        score = rows[list(benchmark.tests)].mean(axis=1)
        shown = rows[["cell", "seed", "examples_trained", "processor_seconds"]]
        shown = shown.assign(score=(100 * score).round(2))
        print(report.table(shown.columns, shown.to_numpy()))


def finished(results):
    """The `(cell, seed)` that the tables in a folder have."""
    path = results / "runs.csv"
    if not path.exists():
        return set()
    rows = pd.read_csv(path)
    return set(zip(rows["cell"], rows["seed"], strict=True))


class Runner:
    """Trains runs, each after what it needs.

    Args:
        benchmark: `benchmark.Benchmark`.
        work: folder of data, runs, sidecars and logs.
        results: folder of the tables.
        jobs: processes at a time.
    """

    def __init__(self, benchmark, work, results, jobs):
        self._benchmark, self._runs = benchmark, benchmark.runs()
        self._work, self._results = work, results
        self._data = work / benchmark.data
        self._pool = concurrent.futures.ThreadPoolExecutor(jobs)
        self._lock = threading.Lock()  # of the tables and of TensorFlow
        self._futures = {}

    def run(self, wanted):
        """Trains and collects; returns whether all went well.

        Args:
            wanted: `(name, seed)` of each run.
        """
        longest = {}
        for name, seed in wanted:
            run = self._runs[name, seed]
            known = longest.setdefault((run.cell, seed), run)
            longest[run.cell, seed] = max(known, run, key=lambda x: x.steps)
        futures = {
            run: self._trained(run.name, run.seed) for run in longest.values()
        }
        failed = 0
        with self._pool:
            for number, (run, future) in enumerate(futures.items(), start=1):
                words = f"[{number}/{len(futures)}] {run.name}, seed {run.seed}"
                try:
                    future.result()
                except (OSError, RuntimeError, ValueError) as error:
                    failed += 1
                    report.log(f"{words} failed: {error}")
                else:
                    report.log(f"{words} done")
        return not failed

    def _once(self, key, needs, function, *arguments):
        """The future of a call after others, submitted once.

        What it needs has been submitted before, so waiting in a thread of the
        pool cannot block what is waited for.
        """

        def call():
            for need in needs:
                need.result()
            return function(*arguments)

        if key not in self._futures:
            self._futures[key] = self._pool.submit(call)
        return self._futures[key]

    def _trained(self, name, seed):
        run = self._runs[name, seed]
        needs = []
        if run.cell.start:
            needs.append(self._trained(run.cell.start, 0))
        if run.cell.reference:
            needs.append(self._embedded(run.cell))
        if run.cell.cut:
            needs.append(self._cut(run.cell))
        return self._once((name, seed), needs, self._train, run)

    def _embedded(self, cell):
        """Sidecars of what a cell reads, by seed 0 of its reference."""
        name, shards = cell.reference, self._referred(cell)
        needs = [self._trained(name, 0)]
        return self._once(
            ("embed", name, *shards),
            needs,
            self._command,
            f"embed-{name}-{cell.pool}",
            *("embed", "--model", self._workdir(name, 0), "--data", *shards),
            *("--output", self._sidecars(name, cell.pool)),
        )

    def _cut(self, cell):
        """A manifest of the pairs that a reference matches best."""
        name, pool, output = cell.reference, cell.pool, self._manifest(cell)
        return self._once(
            output.name,
            [self._embedded(cell)],
            self._command,
            output.name,
            *("curate", "--workdir", self._workdir(name, 0)),
            *("--data", self._shards(pool)),
            *("--sidecar-dir", self._sidecars(name, pool)),
            *("--output", output),
            *("--set", f"stage.candidates={cell.cut}", "stage.method=top"),
        )

    def _train(self, run):
        name, seed = run.name, run.seed
        workdir, seconds = self._workdir(name, seed), None
        is_new = not workdir.exists()
        if not (workdir / "final.weights.h5").exists():
            config = f"{report.ROOT}/configs/{run.cell.recipe}.py"
            seconds = self._command(
                f"{name}-{seed}",
                *("train", "--config", config, "--workdir", workdir),
                *("--set", *self.settings(run)),
            )
        with self._lock:
            done, embedded = finished(self._results), 0
            if run.cell.reference:
                embedded = collect.embedding_flops(
                    self._workdir(run.cell.reference, 0),
                    self._referred(run.cell),
                    self._sidecars(run.cell.reference, run.cell.pool),
                )
            mixes = (*run.cell.mixes, 1.0)
            lines = [
                (run._replace(steps=n), mix)
                for n in run.shorter
                for mix in mixes
                if mix in (0, 1)
            ]
            lines += [(run, mix) for mix in mixes]
            for one, mix in lines:
                if (collect.name_of(one, mix), seed) in done:
                    continue
                row, pairs = collect.collect(
                    self._benchmark, one, workdir, self._data, mix
                )
                row["flops_embedded"] = embedded
                # A run that was stopped took more than its last process.
                row["processor_seconds"] = None
                if one == run and is_new and mix == 1:
                    row["processor_seconds"] = seconds
                collect.add(self._results, row, pairs)
            path = self._results / "families.csv"
            if not path.exists():
                families = collect.families(self._benchmark, self._data)
                families.to_csv(path, index=False)

    def settings(self, run):
        """Changes to the recipe of a run, "a.b=c" each."""
        # The tests as well, for the lines of shorter lengths.
        benchmark, lengths = self._benchmark, run.shorter
        splits = (*benchmark.tests * bool(lengths), *benchmark.validation)
        watched = ",".join(f"{self._data}/{x}-*.tfrecord" for x in splits)
        found = [
            f"steps={run.steps}",
            f"seed={run.seed}",
            f"data.train={self._shards(run.cell.pool)}",
            f"evaluation.data={watched}",
            "evaluation.log_ids=true",
            *(
                [f"evaluation.every_steps={math.gcd(run.steps, *lengths)}"]
                if lengths
                else []
            ),
            *run.cell.settings.format(data=self._data).split(),
        ]
        if run.cell.start:  # has its towers and its tokenizer
            start = self._workdir(run.cell.start, 0)
            found += ["model.towers=", f"model.init_from={start}"]
            found.append("data.vocabulary=")
        else:
            found.append(f"data.vocabulary={self._data}/vocab.txt")
        if run.cell.cut:
            found.append(f"data.manifest={self._manifest(run.cell)}")
        if run.cell.reference and run.cell.reads_sidecars:
            folder = self._sidecars(run.cell.reference, run.cell.pool)
            found.append(f"reference.sidecar_dir={folder}")
        return found

    def _workdir(self, name, seed):
        return self._work / "runs" / f"{name}-{seed}"

    def _sidecars(self, name, pool):
        return self._work / "sidecars" / f"{name}-{pool}"

    def _manifest(self, cell):
        name = f"cut-{cell.cut}-{cell.reference}-{cell.pool}"
        return self._work / "manifests" / name

    def _shards(self, pool):
        if pool in self._benchmark.clean_sets:
            return f"{self._data}/{pool}-*.tfrecord"
        return f"{self._data}/{pool}/pool-*.tfrecord"

    def _referred(self, cell):
        """The shards whose embeddings a cell needs."""
        words = cell.settings.format(data=self._data).split()
        curated = "data.curated="
        return [
            self._shards(cell.pool),
            *(
                word.removeprefix(curated)
                for word in words * cell.step_reads_sidecars
                if word.startswith(curated)
            ),
        ]

    def _command(self, log, *words):
        """Runs `jest-tf`; returns its processor seconds."""
        folder = self._work / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{log}.log", "a", encoding="utf-8") as file:
            process = subprocess.Popen(
                [
                    pathlib.Path(sys.executable).with_name("jest-tf"),
                    *words,
                    "--trust",  # runs name towers of this package
                ],
                env=os.environ | _ONE_THREAD | {"PYTHONPATH": report.ROOT},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"`jest-tf {words[0]}` failed, see {file.name}")
        return round(usage.ru_utime + usage.ru_stime, 1)


if __name__ == "__main__":
    main()

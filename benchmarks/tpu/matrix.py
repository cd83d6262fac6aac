"""Runs all unfinished cases on their topologies, a process a case."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from benchmarks import report
from benchmarks.tpu import table, twins

_COMMAND = "python -m benchmarks.tpu_compile"


def run(
    *,
    topologies: Sequence[str],
    replicas: int,
    only: str,
    again: bool,
    minutes: float,
    results: pathlib.Path,
    page: pathlib.Path,
) -> None:
    """Compiles the requested cases that are not in the results.

    A line of the results is whole once it is there, and the last of a case and
    a topology counts. It is done as long as code, settings and replicas are
    those that it was compiled with; older lines stay in the table, marked,
    until they are compiled again. Lines of dropped cases stay out.

    Args:
        topologies: such as "v5e:2x2"; the first is for all cases, the others
            for those that are compiled everywhere.
        replicas: R of every case.
        only: part of the names of the cases that are wanted.
        again: also compile what is done.
        minutes: after which a case is given up.
        results: file of lines, read and appended to.
        page: Markdown file whose block `tpu-compile` is written.

    Raises:
        ValueError: if no case's name holds `only`.
    """
    cases = twins.cases(replicas)
    wanted = [case for case in cases if only in case.name]
    if not wanted:
        raise ValueError(
            f"`only` must be part of the name of a case. Received: {only!r}; "
            f"there are {[case.name for case in cases]}"
        )
    done, code = read(results), present_code()

    def made_by(case):
        return {"code": code, "config": case.digest, "replicas": replicas}

    def is_current(case, topology):
        line = done.get((case.name, topology), {})
        return made_by(case).items() <= line.items()

    def planned(case):
        return topologies if case.is_everywhere else topologies[:1]

    for number, case in enumerate(wanted, 1):
        left = [
            topology
            for topology in planned(case)
            if again or not is_current(case, topology)
        ]
        place = f"{number}/{len(wanted)} {case.name}"
        if not left:
            report.log(f"{place}: done before")
            continue
        report.log(f"{place}: tracing and compiling")
        for line in compile_case(case, left, replicas, minutes):
            line = made_by(case) | line
            report.log(f"{place}, {table.describe(line)}")
            append(results, line)
            done[case.name, line["topology"]] = line
    lines = [
        done[case.name, topology] | {"is_current": is_current(case, topology)}
        for case in cases
        for topology in planned(case)
        if (case.name, topology) in done
    ]
    report.write_block(page, "tpu-compile", table.markdown(lines), _COMMAND)
    report.log(f"{len(lines)} results, in the table of {page}")


def read(path: pathlib.Path) -> dict[tuple[str, str], dict]:
    """The last line of each (case, topology)."""
    if not path.exists():
        return {}
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return {(line["case"], line["topology"]): line for line in lines}


def present_code() -> str:
    """The `code` of a line that is compiled now."""
    command = [sys.executable, "-m", "benchmarks.tpu.worker", "--code"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def append(path: pathlib.Path, line: dict) -> None:
    """Adds a line of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def compile_case(
    case: twins.Case,
    topologies: Sequence[str],
    replicas: int,
    minutes: float,
) -> Iterator[dict]:
    """Yields the lines of a case as its process writes them.

    A process that dies or takes too long leaves a line with the error for every
    topology that it owes.
    """
    owed = list(topologies)
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "lines")
        errors = pathlib.Path(folder, "errors")
        out.touch()
        command = [
            *(sys.executable, "-m", "benchmarks.tpu.worker"),
            *("--case", case.name, "--out", str(out)),
            *("--replicas", str(replicas)),
            *("--topologies", *topologies),
        ]
        with open(errors, "w") as stderr, open(out) as lines:
            process = subprocess.Popen(
                command, stderr=stderr, stdout=stderr, env=os.environ
            )
            ended = None
            limit = time.monotonic() + 60 * minutes
            while ended is None:
                ended = process.poll()
                if ended is None and time.monotonic() > limit:
                    process.kill()
                    ended = process.wait()
                for line in map(json.loads, lines):
                    owed.remove(line["topology"])
                    yield line
                time.sleep(0.2)
        last = errors.read_text(errors="replace").strip().splitlines()[-1:]
    for topology in owed:
        yield {
            "case": case.name,
            "recipes": case.recipes,
            "variant": case.variant,
            "topology": topology,
            "stage": "process",
            "error": f"ended with {ended}: {''.join(last)[:400]}",
        }

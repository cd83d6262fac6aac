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

# Of every case: the chips of a slice's smallest host.
REPLICAS = 4
_COMMAND = "python -m benchmarks.tpu_compile"
_ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(
    *,
    backends: Sequence[str],
    topologies: Sequence[str],
    only: str,
    full_size: bool,
    again: bool,
    minutes: float,
    results: pathlib.Path,
) -> None:
    """Compiles the requested cases that are not in the results.

    A line of the results is whole once it is there, and the last of a case, a
    backend and a topology counts, as long as its settings are the case's.

    Args:
        backends: Keras' backends.
        topologies: such as "v5e:2x2"; the first is for all cases, the others
            for those at full size.
        only: part of the names of the cases that are wanted.
        full_size: leave the small twins out.
        again: also compile what is done.
        minutes: after which a case is given up.
        results: file of lines, read and appended to.

    Raises:
        ValueError: if no case's name holds `only`.
    """
    cases = twins.cases(REPLICAS)
    wanted = [
        case
        for case in cases
        if only in case.name and (case.is_full_size or not full_size)
    ]
    if not wanted:
        raise ValueError(
            f"`only` must be part of the name of a case. Received: {only!r}; "
            f"there are {[case.name for case in cases]}"
        )
    done = read(results)
    for backend in backends:
        for number, case in enumerate(wanted, 1):
            left = [
                topology
                for topology in (
                    topologies if case.is_full_size else topologies[:1]
                )
                if again or (case.digest, backend, topology) not in done
            ]
            place = f"{backend} {number}/{len(wanted)} {case.name}"
            if not left:
                report.log(f"{place}: done before")
                continue
            report.log(f"{place}: tracing and compiling")
            for line in compile_case(case, backend, left, minutes):
                report.log(f"{place}, {table.describe(line)}")
                append(results, line)
    done = read(results)
    for path, of_cases, write in (
        ("docs/tpu.md", [c for c in cases if c.is_full_size], table.full_size),
        (
            "benchmarks/tpu/README.md",
            [c for c in cases if not c.is_full_size],
            table.twins,
        ),
    ):
        digests = [case.digest for case in of_cases]
        lines = [line for key, line in done.items() if key[0] in digests]
        lines.sort(key=lambda line: digests.index(line["config"]))
        text = write(lines) if lines else "Nothing is compiled yet."
        report.write_block(_ROOT / path, "tpu-compile", text, _COMMAND)


def read(path: pathlib.Path) -> dict[tuple[str, str, str], dict]:
    """The last line of each (settings, backend, topology).

    A process that died, which has no versions, said nothing of its program.
    """
    if not path.exists():
        return {}
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return {
        (line["config"], line["backend"], line["topology"]): line
        for line in lines
        if "versions" in line
    }


def append(path: pathlib.Path, line: dict) -> None:
    """Adds a line of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def compile_case(
    case: twins.Case, backend: str, topologies: Sequence[str], minutes: float
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
            *("--case", case.digest, "--out", str(out)),
            *("--topologies", *topologies),
        ]
        with open(errors, "w") as stderr, open(out) as lines:
            process = subprocess.Popen(
                command,
                stderr=stderr,
                stdout=stderr,
                env=os.environ | {"KERAS_BACKEND": backend},
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
            "config": case.digest,
            "backend": backend,
            "topology": topology,
            "error": f"process ended with {ended}: {''.join(last)[:400]}",
        }

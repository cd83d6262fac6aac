"""Compiles a case for several topologies, in a process of its own.

    python -m benchmarks.tpu.worker --case 1741cea6 --topologies v5e:2x2 \
        --out lines.jsonl

A compiler that aborts or fills the memory then takes a single case with it. The
results go to a file, a JSON object a line. Run by matrix.py, in the environment
of `tpu_compile.ENVIRONMENT`, for the backend that Keras has.
"""

import argparse
import importlib.metadata
import json
import pathlib
import subprocess
import time

import keras

from benchmarks.tpu import compiler, hlo, matrix, twins

if keras.backend.backend() == "jax":
    from benchmarks.tpu import on_jax as backend
else:
    from benchmarks.tpu import on_tensorflow as backend

PACKAGES = ("tensorflow-tpu", "keras", "jax", "libtpu")
_ROOT = pathlib.Path(__file__).resolve().parents[2]


def main(argv: list[str] | None = None) -> None:
    """Appends a line for every topology to the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tpu.worker")
    parser.add_argument("--case", help="digest of its settings")
    parser.add_argument("--topologies", nargs="+")
    parser.add_argument("--out", help="file, appended to")
    options = parser.parse_args(argv)
    (case,) = (
        case
        for case in twins.cases(matrix.REPLICAS)
        if case.digest == options.case
    )
    with open(options.out, "a", encoding="utf-8") as file:
        for line in run(case, options.topologies):
            file.write(json.dumps(line) + "\n")
            file.flush()


def run(case: twins.Case, topologies: list[str]):
    """Yields what became of a case, topology by topology.

    Each is a dict: the case, and either an `error` or what hlo.py and the
    compiler say of the program.
    """
    curated = case.config.data.curated_rows
    common = {
        "case": case.name,
        "config": case.digest,
        "backend": keras.backend.backend(),
        "super_batch_size": case.config.selection.super_batch_size(curated),
        "batch_size": case.config.selection.batch_size,
        "date": time.strftime("%Y-%m-%d"),
        "revision": _revision(),
        "versions": {
            name: importlib.metadata.version(name) for name in PACKAGES
        },
    }
    start = time.monotonic()
    try:
        program = backend.Program(case.config, matrix.REPLICAS)
    except Exception as error:
        for topology in topologies:
            yield common | {"topology": topology} | _failure(error)
        return
    common["trace_seconds"] = round(time.monotonic() - start, 1)
    for topology in topologies:
        line = common | {"topology": topology}
        line["available"] = compiler.available_memory(topology)
        start = time.monotonic()
        try:
            executable = program.compile(topology)
        except Exception as error:
            yield line | _failure(error)
            continue
        seconds = round(time.monotonic() - start, 1)
        yield line | {"seconds": seconds} | _of_executable(executable)


def _revision():
    """The commit, "-dirty" if files have been changed since."""
    return subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()


def _failure(error):
    message = " ".join(str(error).split())
    found = {"error": f"{type(error).__name__}: {message[:600]}"}
    try:
        return found | compiler.read_memory(message)._asdict()
    except ValueError:
        return found


def _of_executable(executable):
    found = {"memory": executable.memory}
    if executable.text is not None:
        found |= {
            "collectives": {
                kind: traffic._asdict()
                for kind, traffic in hlo.collectives(executable.text).items()
            },
            "dynamic_shapes": hlo.dynamic_shapes(executable.text),
            "host_operations": hlo.host_operations(executable.text),
        }
    return found


if __name__ == "__main__":
    main()

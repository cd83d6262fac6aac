"""Compiles a case for several topologies, in a process of its own.

    python -m benchmarks.tpu.worker --case "siglip_b16 siglip_l16 sigmoid" \
        --replicas 4 --topologies v5e:2x2 --out lines.jsonl
    python -m benchmarks.tpu.worker --code

A compiler that aborts or fills the memory then takes a single case with it. The
results go to a file, a JSON object a line. Run by matrix.py, in the environment
of `tpu_compile.ENVIRONMENT`.
"""

import argparse
import ast
import contextlib
import hashlib
import importlib.metadata
import json
import pathlib
import subprocess
import sys
import time

import tensorflow as tf

from benchmarks.tpu import compiler, fake_strategy, hlo, lifter, step, twins

PACKAGES = ("tensorflow-tpu", "keras", "jax", "libtpu")
_ROOT = pathlib.Path(__file__).resolve().parents[2]
# Where the operations of a step and its executable are made. Readers of data
# and settings make none; settings' values are in the digest of a case.
_MAKERS = (
    "benchmarks/tpu/",
    "jest_tf/config/methods.py",
    "jest_tf/config/selection.py",
    "jest_tf/data/augmentation.py",
    "jest_tf/data/policies.py",
    "jest_tf/distribution/",
    "jest_tf/embeddings.py",
    "jest_tf/losses/",
    "jest_tf/models/",
    "jest_tf/selection/",
    "jest_tf/training/",
)
_NO_MAKERS = ("benchmarks/tpu/twins.py", "jest_tf/training/flops.py")


def _sources():
    """The makers among the loaded modules, and the towers that recipes name."""
    files = [__file__, *(getattr(m, "__file__", None) for m in _loaded())]
    paths = {pathlib.Path(file).resolve() for file in files if file}
    names = {
        path.relative_to(_ROOT).as_posix()
        for path in paths
        if path.is_relative_to(_ROOT)
    }
    return sorted(
        {name for name in names - set(_NO_MAKERS) if name.startswith(_MAKERS)}
        | {"benchmarks/icontext/towers.py"}
    )


def _loaded():
    return [
        module
        for name, module in sys.modules.items()
        if name.split(".")[0] in ("benchmarks", "jest_tf")
    ]


_SOURCES = _sources()


def main(argv: list[str] | None = None) -> None:
    """Appends a line for every topology to the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tpu.worker")
    parser.add_argument("--code", action="store_true", help="print it, and end")
    parser.add_argument("--case", help="its name")
    parser.add_argument("--replicas", type=int)
    parser.add_argument("--topologies", nargs="+")
    parser.add_argument("--out", help="file, appended to")
    options = parser.parse_args(argv)
    if options.code:
        print(code())
        return
    (case,) = (
        case
        for case in twins.cases(options.replicas)
        if case.name == options.case
    )
    with open(options.out, "a", encoding="utf-8") as file:
        for line in run(case, options.replicas, options.topologies):
            file.write(json.dumps(line) + "\n")
            file.flush()


def run(case: twins.Case, num_replicas: int, topologies: list[str]):
    """Yields what became of a case, topology by topology.

    Each is a dict: the case, and either an `error` with the `stage` that it
    came from or what hlo.py and the compiler say of the program.
    """
    common = {
        "case": case.name,
        "recipes": case.recipes,
        "variant": case.variant,
        "replicas": num_replicas,
        "super_batch_size": case.config.selection.super_batch_size(
            case.config.data.curated_rows
        ),
        "batch_size": case.config.selection.batch_size,
        "date": time.strftime("%Y-%m-%d"),
        "code": code(),
        "config": case.digest,
        "revision": _revision(),
        "versions": {
            name: importlib.metadata.version(name) for name in PACKAGES
        },
    }
    seconds = {}
    stage = "trace"
    try:
        with _timed(seconds, "trace"):
            strategy = fake_strategy.build_strategy(num_replicas)
            program = lifter.Program(_trace(case.config, strategy))
        stage = "export"
        with _timed(seconds, "export"):
            exported = compiler.export(program)
    except Exception as error:
        for topology in topologies:
            yield common | {"topology": topology} | _failure(stage, error)
        return
    common |= _of_program(program, compiler.text(exported))
    for topology in topologies:
        line = common | {"topology": topology}
        try:
            available = compiler.available_memory(topology)
            executable = compiler.compile_program(
                exported, program.donated, topology, num_replicas
            )
        except Exception as error:
            yield line | _failure("compile", error) | _shortage(error)
            continue
        times = seconds | {"compile": round(executable.seconds, 1)}
        yield (
            line | {"available": available, "seconds": times}
        ) | _of_executable(executable)


def code() -> str:
    """Eight digits that tell the sources that a case is made by from others.

    What they say is left out, comments and docstrings: a case takes minutes to
    compile, and none of it goes into the program.
    """
    found = hashlib.sha256()
    for path in _SOURCES:
        found.update(f"{path}\n".encode())
        found.update(bare(_ROOT / path).encode())
    return found.hexdigest()[:8]


def bare(path: pathlib.Path) -> str:
    """A source's syntax tree without docstrings."""
    tree = ast.parse(path.read_bytes())
    documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def _revision():
    """The commit, "-dirty" if the sources have been changed since."""

    def git(*arguments):
        return subprocess.run(
            ["git", *arguments],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()

    changed = git("status", "--porcelain", "--", *map(str, _SOURCES))
    return git("describe", "--always") + ("-dirty" if changed else "")


def _trace(config, strategy):
    return step.trace(
        step.build_model(config, strategy),
        step.super_batches(config),
    )


@contextlib.contextmanager
def _timed(seconds, name):
    """Notes the seconds that a block takes."""
    start = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - start, 1)


def _failure(stage, error):
    message = " ".join(str(error).split())
    return {"stage": stage, "error": f"{type(error).__name__}: {message[:600]}"}


def _shortage(error):
    """How much memory a refused program needs, if that is why."""
    try:
        return compiler.read_memory(str(error))._asdict()
    except ValueError:
        return {}


def _of_program(program, text):
    """Findings in the program before libtpu compiles it."""
    specs = program.specs[-len(program.handles) :]
    donated = {
        number - len(program.specs) + len(specs) for number in program.donated
    }
    return {
        "variables": len(specs),
        "donated": len(donated),
        "donated_bytes": sum(_size(specs[number]) for number in donated),
        "around": program.host_operations,
        "wide": hlo.wide_numbers(text),
        "dynamic_shapes": hlo.dynamic_shapes(text),
        "host_operations": hlo.host_operations(text),
    }


def _of_executable(executable):
    found = {
        "device": executable.device,
        "compiled_replicas": executable.num_replicas,
        "memory": executable.memory,
        "is_read": executable.text is not None,
    }
    return found | (_of_text(executable.text) if executable.text else {})


def _of_text(text):
    """Findings in the optimised HLO."""
    return {
        "collectives": {
            kind: traffic._asdict()
            for kind, traffic in hlo.collectives(text).items()
        },
        "compiled_dynamic_shapes": hlo.dynamic_shapes(text),
        "compiled_host_operations": hlo.host_operations(text),
        "compiled_wide": hlo.wide_numbers(text),
    }


def _size(spec):
    return spec.dtype.size * tf.TensorShape(spec.shape).num_elements()


if __name__ == "__main__":
    main()

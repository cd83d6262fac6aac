"""Blocks, tables and machine descriptions that benchmarks write into pages.

A block lies between two marks that name it. Only the block is replaced; the
prose around it is written by hand.
"""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import types
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

_PACKAGES = ("tensorflow", "keras", "numpy")
_PAGE = pathlib.Path(__file__).with_name("README.md")
ROOT = pathlib.Path(__file__).resolve().parent.parent


def parser(
    command: str, description: str, parts: Iterable[str] = ()
) -> argparse.ArgumentParser:
    """The options of all benchmarks: `part`, `--small` and `--out`."""
    result = argparse.ArgumentParser(prog=command, description=description)
    if parts:
        result.add_argument("part", choices=[*parts, "all"])
    result.add_argument(
        "--small", action="store_true", help="fast; its numbers mean nothing"
    )
    result.add_argument(
        "--out", type=pathlib.Path, help="the Markdown file of the blocks"
    )
    return result


def page(
    options: argparse.Namespace, default: pathlib.Path = _PAGE
) -> pathlib.Path | None:
    """Returns the file for blocks: `--out`, or a page unless they are small."""
    return options.out or (None if options.small else default)


def publish(
    path: pathlib.Path | None, name: str, text: str, command: str
) -> None:
    """Prints a block and replaces it in a page, if there is a page."""
    print(text)
    if path:
        write_block(path, name, text, command)


def write_block(path: pathlib.Path, name: str, text: str, command: str) -> None:
    """Replaces the block `name` of a Markdown file, or appends it.

    Args:
        path: the file.
        name: name of the block.
        text: Markdown that replaces the content.
        command: command that writes the block, named in its first mark.
    """
    begin, end = (
        f"<!-- {name}: written by {command} -->",
        f"<!-- end {name} -->",
    )
    block = f"{begin}\n{text.strip()}\n{end}\n"
    old = path.read_text("utf-8") if path.exists() else ""
    head, found, rest = old.partition(begin)
    if found:
        _, closed, tail = rest.partition(f"{end}\n")
        if not closed:
            raise ValueError(
                f"Expected the mark {end!r} after {begin!r} in {path}. "
                "Received: a file without it; restore the mark"
            )
        path.write_text(head + block + tail, "utf-8")
    else:
        path.write_text(f"{old.rstrip()}\n\n{block}".lstrip(), "utf-8")


def command(
    module: str,
    *arguments: object,
    python: str = sys.executable,
    environment: Mapping[str, str] = types.MappingProxyType({}),
) -> str:
    """Returns the output of `python -m module`, in a new process."""
    return subprocess.run(
        [python, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def environment() -> str:
    """The processor and the versions in a line."""
    # Imported late: most reports need no TensorFlow.
    import tensorflow as tf

    packages = (
        f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES
    )
    gpus = len(tf.config.list_physical_devices("GPU"))
    return (
        f"{processor()}, {gpus} GPUs; Python "
        f"{platform.python_version()}, {', '.join(packages)}."
    )


def processor() -> str:
    """The processor's name and its number of cores."""
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {os.cpu_count()} cores"


def table(header: Sequence, rows: Iterable[Sequence]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def mean_range(values: list[float]) -> str:
    """Mean [lowest, highest]."""
    return f"{np.mean(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def spread(values: list[float]) -> str:
    """Lowest / median / highest."""
    return f"{min(values):.2f} / {np.median(values):.2f} / {max(values):.2f}"


def log(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)

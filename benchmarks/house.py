"""Draws the house, the rooms of `jest_tf`, and traces a batch through it.

    python -m benchmarks.house docs/figures/house.png
    python -m benchmarks.house --trace

The picture has the imports between rooms, read from the source. The trace has
the modules that a batch passes from record to loss, and replaces its block of
docs/design.md. `tests/test_house.py` fails when an import goes up, and when the
picture or the block is out of date.
"""

import argparse
import ast
import collections
import inspect
import math
import pathlib
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import numpy as np
import tensorflow as tf
from matplotlib import figure as mpl_figure

from benchmarks import report
from jest_tf import config as config_lib
from jest_tf import losses, models, training
from jest_tf.data import sidecars, stores, tokenizers
from jest_tf.data.sidecars import embed, file_format
from jest_tf.training import funnel

PACKAGE = report.ROOT / "jest_tf"
PAGE = report.ROOT / "docs/design.md"
# From the ground up: a room imports rooms to its left only.
ROOMS = (
    *("files", "embeddings", "config", "losses", "selection", "distribution"),
    *("data", "models", "training", "evaluation", "runs", "inference"),
    *("curation", "reports", "cli"),
)
_EXAMPLES = report.ROOT / "examples/icontext_mini"
_COMMAND = "python -m benchmarks.house --trace"


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, and draws or traces."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("path", nargs="?", help="the picture, such as house.png")
    what.add_argument("--trace", action="store_true", help="trace a batch")
    options = parser.parse_args(argv)
    if options.path:
        draw(imports(), options.path)
        return
    functions = trace()
    for room in dict.fromkeys(map(_room, functions)):
        for module, function in functions.items():
            if _room(module) == room:
                print(f"{module:36} {function}")
    report.publish(PAGE, "trace", summary(functions), _COMMAND)


def imports() -> dict[tuple[str, str], set[tuple[str, str]]]:
    """The imports between rooms.

    Returns:
        For a room and a room that it imports, the pairs of modules that do.
    """
    found = collections.defaultdict(set)
    for module, path in modules().items():
        for target in targets(path):
            edge = _room(module), _room(target)
            if edge[0] != edge[1] and "" not in edge:
                found[edge].add((module, target))
    return dict(found)


def modules() -> dict[str, pathlib.Path]:
    """The files of the package by module."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def targets(path: pathlib.Path) -> Iterator[str]:
    """The modules of the package that a file imports, also in functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("jest_tf."))


def _room(module):
    """The room of a module; "" for the package's own list of names."""
    return [*module.split("."), ""][1]


def upward(edges) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """The imports of a room to the right in `ROOMS`."""
    place = {room: number for number, room in enumerate(ROOMS)}
    return {
        (room, other): modules
        for (room, other), modules in edges.items()
        if place[room] < place[other]
    }


def draw(edges, path: str) -> None:
    """Draws the rooms by floors, with the imports that no others imply.

    Args:
        edges: as `imports` returns them. They are in the file's metadata, too.
        path: the picture, PNG.
    """
    below = {
        room: {other for importer, other in edges if importer == room}
        - {other for importer, other in upward(edges) if importer == room}
        for room in ROOMS
    }
    floors, implied = {}, {}
    for room in filter(_size, ROOMS):
        floors[room] = 1 + max(
            (floors[lower] for lower in below[room]), default=-1
        )
        implied[room] = set().union(
            *(below[lower] | implied[lower] for lower in below[room])
        )
    places = {}
    for floor in set(floors.values()):
        rooms = [room for room in floors if floors[room] == floor]
        for number, room in enumerate(rooms):
            # The ground floor is wider, for arrows that pass the others.
            width = 1.0 if floor else 1.6
            places[room] = (width * (number - (len(rooms) - 1) / 2), floor)
    figure = mpl_figure.Figure(figsize=(6, 7), layout="constrained")
    axes = figure.subplots()
    for room, (x, y) in places.items():
        for other in below[room] - implied[room]:
            # Around the rooms in between.
            bend = 0.45 if y - places[other][1] > 1 else 0.0
            bend = math.copysign(bend, x - places[other][0])
            axes.annotate(
                "",
                xy=(places[other][0], places[other][1] + 0.3),
                xytext=(x, y - 0.3),
                zorder=1,
                arrowprops={
                    "arrowstyle": "->",
                    "color": "0.5",
                    "connectionstyle": f"arc3,rad={bend}",
                },
            )
        axes.text(
            x,
            y,
            f"{room}\n{_size(room):,} lines",
            ha="center",
            va="center",
            size=9,
            bbox={
                "boxstyle": "round,pad=0.5",
                "fc": "#fff7ed",
                "ec": "#c2410c",
            },
        )
    width = max(abs(x) for x, _ in places.values()) + 0.6
    axes.set(xlim=(-width, width), ylim=(-0.6, max(floors.values()) + 0.6))
    axes.set_axis_off()
    names = " ".join(sorted("->".join(edge) for edge in edges))
    figure.savefig(path, dpi=110, metadata={"Description": names})


def trace() -> dict[str, str]:
    """Traces one batch from its record to its loss, on one replica.

    The program is a run's: a stream with a stored stage and the embeddings of
    the reference, and the first step of `fit` with a live stage. The step runs
    eagerly, so that it follows the reading of its records.

    Returns:
        The modules of `jest_tf` of which a function was called, in the order of
        the first call, with that function. Calls count from the making of the
        stream to the return of the loss, in all threads; imports and methods
        that `dataclasses` generates do not.
    """
    easy = config_lib.Stage(2, "stored", criterion="easy_reference")
    selection = config_lib.SelectionConfig(
        16, stages=(easy, config_lib.Stage(2))
    )
    config = config_lib.TrainConfig(
        steps=1,
        data=config_lib.DataConfig(
            train=(f"{_EXAMPLES}/val-*.tfrecord",),
            vocabulary=f"{_EXAMPLES}/reference/vocab.txt",
            image_size=32,
        ),
        selection=selection,
        model=config_lib.ModelConfig(preset="tiny"),
    )
    with tempfile.TemporaryDirectory() as folder:
        store = stores.open_store(config.data.train[0], index_dir=folder)
        embeddings = _write_sidecars(store, folder)
        tokenizer = tokenizers.read_tokenizer(
            config.data.vocabulary, config.data.text_length
        )
        bound = funnel.Funnel(
            selection, store, loss=config.model.loss, sidecars=embeddings
        )
        learner = models.build_learner(config, tokenizer.vocabulary_size)
        model = training.build_model(config, learner, bound)
        model.run_eagerly = True
        model.optimizer.build(model.step.variables)

        def program():
            stream = bound.super_batches(
                seed=config.seed,
                tokenizer=tokenizer,
                image_size=config.data.image_size,
            )
            model.fit(stream, steps_per_epoch=1, verbose=0)

        return _calls(program, until=losses.sigmoid_loss)


def _write_sidecars(store, folder):
    """Writes and opens sidecars that no model has made."""
    dim, records = 16, store.read(range(len(store)))
    counts = [len(record.captions) for record in records]
    image = np.eye(dim)[np.arange(len(store)) % dim]
    embed.write_arrays(
        store,
        image,
        np.repeat(image, counts, 0),
        file_format.Description("one-hot", "none", "none", dim, 10.0, -10.0),
        embed.Output(folder),
        captions=counts,
    )
    return sidecars.Sidecars(store, folder)


def _calls(program: Callable, until: Callable) -> dict[str, str]:
    """Runs a program; returns what `trace` does, until `until` returns."""
    functions, is_over = {}, False

    def profile(frame, event, _):
        nonlocal is_over
        code, module = frame.f_code, frame.f_globals.get("__name__", "")
        # Bodies of modules and of classes have no flag, generated methods no
        # file. Functions that AutoGraph has converted keep their module.
        if (
            event == "call"
            and not is_over
            and module.startswith("jest_tf.")
            and code.co_flags & inspect.CO_OPTIMIZED
            and code.co_filename != "<string>"
        ):
            function = code.co_qualname.partition(".<locals>")[0]
            functions.setdefault(module, function)
        is_over |= event == "return" and code is until.__code__

    def profiled(function):
        # TensorFlow calls it in a thread of its own.
        def call(*values):
            before = sys.getprofile()
            sys.setprofile(profile)
            try:
                return function(*values)
            finally:
                sys.setprofile(before)

        return call

    numpy_function = tf.numpy_function
    with mock.patch.object(
        tf,
        "numpy_function",
        lambda function, *args, **kwargs: numpy_function(
            profiled(function), *args, **kwargs
        ),
    ):
        threading.setprofile(profile)
        sys.setprofile(profile)
        try:
            program()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    return functions


def summary(functions: dict[str, str]) -> str:
    """Returns Markdown: the number of modules of `trace`, and each by room."""
    lines = [f"{len(functions)} modules:\n"]
    for room in ROOMS:
        names = sorted(name for name in functions if _room(name) == room)
        # A room's own functions are in its `__init__`, or it is a module.
        parts = ", ".join(
            name.removeprefix(f"jest_tf.{room}")[1:] or "itself"
            for name in names
        )
        if names:
            lines.append(f"- `{room}`: {parts}")
    return "\n".join(lines)


def _size(room):
    """The number of lines of a room; 0 if there is none."""
    paths = [PACKAGE / f"{room}.py", *(PACKAGE / room).rglob("*.py")]
    return sum(
        len(path.read_text(encoding="utf-8").splitlines())
        for path in paths
        if path.exists()
    )


if __name__ == "__main__":
    main()

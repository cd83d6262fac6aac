"""Draws the house: the rooms of `jest_tf` and the imports between them.

    python -m benchmarks.house docs/figures/house.png

Imports are read from the source. `tests/test_house.py` fails when an import
goes up, and when the picture is out of date.
"""

import argparse
import ast
import collections
import math
import pathlib
from collections.abc import Iterator, Sequence

from matplotlib import figure as mpl_figure

PACKAGE = pathlib.Path(__file__).parent.parent / "jest_tf"
# From the ground up: a room imports rooms to its left only.
ROOMS = (
    *("files", "embeddings", "config", "losses", "selection", "distribution"),
    *("data", "models", "training", "evaluation", "runs", "inference"),
    *("curation", "reports", "cli"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="the picture, such as house.png")
    draw(imports(), parser.parse_args(argv).path)


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

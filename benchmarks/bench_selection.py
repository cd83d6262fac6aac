"""Measures the sub-batches of joint selection, and their cost.

    python -m benchmarks.bench_selection figure \
        --workdir runs/uniform --reference runs/reference
    python -m benchmarks.bench_selection speed
    python -m benchmarks.bench_selection tile

Each part replaces its block of README.md in the folder `--out`. With `--small`
it takes seconds, its numbers mean nothing, and it writes only with `--out`.
"""

import argparse
import pathlib

from benchmarks import (
    report,
    selection_figure,
    selection_speed,
    selection_tile,
)

_COMMAND = "python -m benchmarks.bench_selection"


def main(argv: list[str] | None = None) -> None:
    """Runs the parts asked for and writes their blocks."""
    parser = argparse.ArgumentParser(
        prog=_COMMAND, description="Benchmarks joint selection."
    )
    parser.add_argument("part", choices=["figure", "speed", "tile", "all"])
    parser.add_argument("--workdir", help="a finished run, the learner")
    parser.add_argument("--reference", help="a finished run, the reference")
    parser.add_argument(
        "--data", default=selection_figure.POOL, help="shards that they embed"
    )
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", help="the folder of README.md")
    options = parser.parse_args(argv)
    if (options.workdir is None) != (options.reference is None):
        parser.error("--workdir and --reference come together")
    out = options.out and pathlib.Path(options.out)
    if not out and not options.small:
        out = pathlib.Path(__file__).resolve().parent

    if options.part in ("figure", "all"):
        workdirs = options.workdir and (options.workdir, options.reference)
        picture = out and out / "figures" / "selection.png"
        _finish(
            out,
            "figure",
            selection_figure.run(
                workdirs, options.data, options.small, picture, _COMMAND
            ),
        )
    if options.part in ("speed", "all"):
        _finish(out, "speed", selection_speed.run(options.small, _COMMAND))
    if options.part in ("tile", "all"):
        _finish(out, "tile", selection_tile.run(options.small, _COMMAND))


def _finish(out, name, text):
    print(text)
    if out:
        report.write_block(out / "README.md", name, text, _COMMAND)


if __name__ == "__main__":
    main()

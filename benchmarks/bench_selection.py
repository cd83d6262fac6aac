"""Measures the sub-batches of joint selection, and their cost.

    python -m benchmarks.bench_selection figure \
        --workdir runs/uniform --reference runs/reference
    python -m benchmarks.bench_selection speed
    python -m benchmarks.bench_selection tile

Each part replaces its block of README.md, or of the file `--out`. With
`--small` it takes seconds, its numbers mean nothing, and it writes only to
`--out`.
"""

from benchmarks import (
    report,
    selection_figure,
    selection_speed,
    selection_tile,
)

_COMMAND = "python -m benchmarks.bench_selection"


def main(argv: list[str] | None = None) -> None:
    """Runs the parts asked for and writes their blocks."""
    parser = report.parser(_COMMAND, "Benchmarks joint selection.", _PARTS)
    parser.add_argument("--workdir", help="a finished run, the learner")
    parser.add_argument("--reference", help="a finished run, the reference")
    options = parser.parse_args(argv)
    if (options.workdir is None) != (options.reference is None):
        parser.error("--workdir and --reference come together")
    for name, run in _PARTS.items():
        if options.part in (name, "all"):
            page = report.page(options)
            report.publish(page, name, run(options), _COMMAND)


def _figure(options):
    page = report.page(options)
    return selection_figure.run(
        options.workdir and (options.workdir, options.reference),
        options.small,
        page and page.parent / "figures" / "selection.png",
        _COMMAND,
    )


_PARTS = {
    "figure": _figure,
    "speed": lambda options: selection_speed.run(options.small, _COMMAND),
    "tile": lambda options: selection_tile.run(options.small, _COMMAND),
}


if __name__ == "__main__":
    main()

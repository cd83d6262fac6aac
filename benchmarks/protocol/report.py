"""The tables and figures of a benchmark's pages, from the kept tables.

    python -m benchmarks.protocol.report icons
    python -m benchmarks.protocol.report photos moved noise \
        --results photos-work/results
    python -m benchmarks.protocol.report icons \
        --figures benchmarks/icontext/results \
        --summary benchmarks/results/summary.json

Prints all tables in Markdown, or those named. `--figures` and `--summary` write
files instead; a summary keeps the rows of other benchmarks. Pages are written
by hand around the tables; a test compares the numbers. No run and no data are
needed.
"""

import argparse
import json
import pathlib

from benchmarks import report
from benchmarks.icontext import contents as icons
from benchmarks.phototext import contents as photos
from benchmarks.protocol import tables

CONTENTS = {module.BENCHMARK.name: module for module in (icons, photos)}


def main(arguments=None):
    """Print tables, or draw figures and write a summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("benchmark", choices=CONTENTS)
    add("tables", nargs="*", metavar="TABLE", help="all without")
    add("--results", type=pathlib.Path, help="folder (the published results')")
    add("--figures", type=pathlib.Path, help="folder to draw them in")
    add("--summary", type=pathlib.Path, help="file to write scores and ratios")
    options = parser.parse_args(arguments)
    contents = CONTENTS[options.benchmark]
    known = contents.TABLES
    unknown = sorted({*options.tables} - {*known})
    if unknown:
        parser.error(
            f"a table of {options.benchmark} must be one of "
            f"{', '.join(known)}. Received: {', '.join(unknown)}"
        )
    try:
        folder = options.results and options.results / contents.BENCHMARK.data
        groups = contents.groups(folder)
        if options.figures:
            for name, draw in contents.FIGURES.items():
                draw(groups, options.figures / name)
        if options.summary:
            write_summary(options.summary, contents, groups)
        if options.figures or options.summary:
            return
        for name in options.tables or known:
            found = known[name](groups)
            if found:
                header, *rows = found
                print(f"\n{name}:\n\n{report.table(header, rows)}")
            else:
                report.log(f"{name}: left out, as none of its rows was run")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


def summary(contents, groups):
    """The rows of summary.json of a benchmark."""
    names = contents.SUMMARY
    return [row for name in names for row in tables.summary(groups[name])]


def write_summary(path, contents, groups):
    """Replaces the rows of a benchmark in a file, which may not exist yet."""
    rows = {name: [] for name in CONTENTS}
    if path.exists():
        for row in json.loads(path.read_text(encoding="utf-8")):
            rows[row["benchmark"]].append(row)
    rows[contents.BENCHMARK.name] = summary(contents, groups)
    every = [row for some in rows.values() for row in some]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{json.dumps(every, indent=1)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Writes a page that shows what a run selects.

    python -m trainers.page --workdir runs/jest

One HTML file that needs no server and no network: the examples with the highest
and the lowest scores over time, and charts of the selection. It is made from
the run directory and the run's data; a run that is going on may be looked at.
"""

import argparse
import os
from collections.abc import Sequence

import trainers
from jest_tf.reports import run_page


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="the run directory")
    parser.add_argument(
        "--output", help="the file; by default selection.html in the workdir"
    )
    parser.add_argument(
        "--moments", type=int, default=8, help="logged draws that are shown"
    )
    flags = parser.parse_args(argv)
    path = flags.output or os.path.join(flags.workdir, "selection.html")
    trainers.run(lambda: run_page.write(flags.workdir, path, flags.moments))
    print(path)


if __name__ == "__main__":
    main()

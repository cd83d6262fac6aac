"""Write a page that shows what a run selects.

One HTML file that needs no server and no network: the examples with the highest
and the lowest scores over time, and charts of the selection. It is made from
the run directory and the run's data. The run may still be training.
"""

import argparse
import os

from jest_tf.config import checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument("--workdir", required=True, help="the run directory")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the page (default: selection.html in the run directory)",
    )
    parser.add_argument(
        "--moments",
        type=int,
        default=8,
        metavar="N",
        help="logged draws to show (default: 8)",
    )


def run(flags: argparse.Namespace) -> None:
    """Writes the page and prints its path."""
    checks.check("--moments", flags.moments, checks.at_least(1))
    from jest_tf.reports import run_page
    from jest_tf.runs import directory

    path = flags.output or os.path.join(flags.workdir, directory.PAGE_FILE)
    run_page.write(flags.workdir, path, flags.moments)
    print(path)

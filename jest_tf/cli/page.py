"""Write a page that shows what a run selects, and its scores.

The page is an HTML file that needs no server and no network. It shows the
funnel, the examples with the highest and the lowest scores over time, and the
scores of evaluations against their cost; of a run without a stage, these alone.
It is made from the run directory and the run's data, also while the run is
training. With `--by`, it also shows what selection does to the share of the
records with each value of a field.
"""

import argparse
import contextlib

from jest_tf.cli import flags as flags_lib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument("--workdir", required=True, help="the run directory")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the page (default: selection.html in the run directory)",
    )
    flags_lib.add_by(parser, "count the rows offered and kept of each value")
    flags_lib.add_trust(parser)


def run(flags: argparse.Namespace) -> None:
    """Writes the page and prints its path."""
    import tensorflow as tf

    # A run may need the GPUs' memory; those in use here cannot be hidden.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    from jest_tf.reports import run_page
    from jest_tf.runs import directory

    workdir = flags.workdir
    path = flags.output or directory.path(workdir, directory.PAGE_FILE)
    run_page.write(workdir, path, by=flags.by)
    print(path)

"""Write a page that shows what a run selects.

The page is an HTML file that needs no server and no network. It shows the
examples with the highest and the lowest scores over time, and charts of the
selection. It is made from the run directory and the run's data. While the run
is training, `--watch` writes the page again until the run has finished.
"""

import argparse
import contextlib
import pathlib
import sys

from jest_tf import files
from jest_tf.cli import flags as flags_lib
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
        help="logged draws to show (default: 8; the newest alone while "
        "--watch goes on)",
    )
    parser.add_argument(
        "--watch",
        type=int,
        nargs="?",
        const=30,
        metavar="SECONDS",
        help="every SECONDS seconds (30 without a number), write the page "
        "again if the run has logged more; the browser reloads it. Ends with "
        "the run; waits for a run that has not begun or has stopped",
    )
    flags_lib.add_trust(parser)


def run(flags: argparse.Namespace) -> None:
    """Writes the page and prints its path; `--watch` prints a URL first."""
    checks.check("--moments", flags.moments, checks.at_least(1))
    if flags.watch is not None:
        checks.check("--watch", flags.watch, checks.at_least(1))
    _leave_accelerators()
    from jest_tf.reports import run_page
    from jest_tf.runs import directory

    workdir = flags.workdir
    path = flags.output or directory.path(workdir, directory.PAGE_FILE)
    if flags.watch is None:
        run_page.write(workdir, path, flags.moments)
        print(path)
        return
    shown = path
    if not files.is_remote(path):
        shown = pathlib.Path(path).absolute().as_uri()
    print(f"open {shown}, renewed until the run ends", flush=True)
    try:
        run_page.watch(workdir, path, flags.moments, flags.watch)
    except KeyboardInterrupt:
        sys.exit(130)


def _leave_accelerators():
    """Hides GPUs, whose memory a run may need, unless already in use here."""
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")

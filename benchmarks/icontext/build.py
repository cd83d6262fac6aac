"""Builds IconText data sets from public packages.

    python -m benchmarks.icontext.build fetch --cache icontext-work/cache
    python -m benchmarks.icontext.build full --cache icontext-work/cache \
        --out icontext-work/data
    python -m benchmarks.icontext.build mini --cache icontext-work/cache \
        --data icontext-work/data --out examples/icontext_mini

`fetch` needs npm, apt-get and dpkg-deb, and continues where it stopped. `full`
and `mini` need resvg-py (`pip install --editable '.[icontext]'`) and no
network; `mini` samples what `full` built. The same versions give the same
bytes, except for letters in clip art, which are drawn in the fonts of the
machine.
"""

import argparse
import os
import sys

from benchmarks.icontext import full, mini, packages


def main(arguments=None):
    """Run one sub-command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    fetch, whole, small = map(commands.add_parser, ("fetch", "full", "mini"))
    for command in (fetch, whole, small):
        command.add_argument("--cache", default="icontext-work/cache")
    whole.add_argument("--out", default="icontext-work/data")
    small.add_argument("--data", default="icontext-work/data")
    small.add_argument("--out", default="examples/icontext_mini")
    whole.add_argument(
        "--permissive-only",
        action="store_true",
        help="only licences that ask for no more than a notice",
    )
    whole.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes that render (default: one per core)",
    )
    options = vars(parser.parse_args(arguments))
    builds = {"fetch": packages.fetch, "full": full.build, "mini": mini.build}
    build = builds[options.pop("command")]
    try:
        build(**options)
    except (ImportError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    if "out" in options:
        print(f"built: {options['out']}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Builds IconText data sets from public packages.

    python -m benchmarks.icontext.build fetch --cache icontext-work/cache
    python -m benchmarks.icontext.build full --cache icontext-work/cache \
        --out icontext-work/data
    python -m benchmarks.icontext.build mini --cache icontext-work/cache \
        --out examples/icontext_mini

`fetch` needs npm, apt-get and dpkg-deb, and continues where it stopped. `full`
and `mini` need pillow and resvg-py (`pip install --editable '.[icontext]'`) and
no network. The same versions give the same bytes, except for letters in clip
art, which are drawn in the fonts of the machine.
"""

import argparse
import os
import sys

from benchmarks.icontext import full, mini, packages, pictures

_OUT = {"full": "icontext-work/data", "mini": "examples/icontext_mini"}


def main(arguments=None):
    """Run one sub-command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("fetch", "full", "mini"):
        command = commands.add_parser(name)
        command.add_argument("--cache", default="icontext-work/cache")
        if name != "fetch":
            command.add_argument("--out", default=_OUT[name])
        if name == "full":
            command.add_argument("--size", type=int, default=32, help="pixels")
            command.add_argument(
                "--permissive-only",
                action="store_true",
                help="only licences that ask for no more than a notice",
            )
            command.add_argument(
                "--jobs",
                type=int,
                default=len(os.sched_getaffinity(0)),
                help="processes that render (default: one per core)",
            )
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except (ImportError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error


def _run(options):
    if options.command == "fetch":
        packages.fetch(options.cache, say=_say)
        return
    pictures.libraries()
    if options.command == "mini":
        mini.build(options.cache, options.out)
    else:
        settings = full.Settings(options.size, options.permissive_only)
        full.build(options.cache, options.out, settings, jobs=options.jobs)
    _say(f"built: {options.out}")


def _say(line):
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

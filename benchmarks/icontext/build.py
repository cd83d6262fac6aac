"""Builds IconText data sets from public packages.

    python -m benchmarks.icontext.build fetch --work icontext-work
    python -m benchmarks.icontext.build full --work icontext-work
    python -m benchmarks.icontext.build web --work icontext-work
    python -m benchmarks.protocol.run icons \
        --cells apart_permissive_reference_3000
    python -m benchmarks.icontext.build mini --work icontext-work \
        --out examples/icontext_mini

`fetch` needs npm, apt-get and dpkg-deb, and continues where it stopped. The
others need resvg-py (`pip install --editable '.[icontext]'`) and no network;
each is made of what the command before it built. The same versions give the
same bytes, except for letters in clip art, which are drawn in the fonts of the
machine.
"""

import argparse
import os
import pathlib
import sys

from benchmarks.icontext import full, mini, packages, sources, web


def main(arguments=None):
    """Run a command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("command", choices=("fetch", "full", "web", "mini"))
    add("--work", type=pathlib.Path, default="icontext-work")
    add("--out", type=pathlib.Path, help="of web, mini (WORK/web, WORK/mini)")
    add("--split", type=int, default=web.SEED, help="seed of web's splits (0)")
    add(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes that render (default: one per core)",
    )
    options = parser.parse_args(arguments)
    work = options.work
    cache, data = work / "cache", work / "data"
    try:
        if options.command == "fetch":
            packages.fetch(cache)
        elif options.command == "full":
            full.build(cache, data, options.jobs)
        elif options.command == "web":
            descriptions = sources.load_collections(cache)
            out = options.out or work / "web"
            web.build(data, out, descriptions, options.split)
        else:
            mini.build(work, options.out or work / "mini")
    except (ImportError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{options.command}: done, in {work}", file=sys.stderr)


if __name__ == "__main__":
    main()

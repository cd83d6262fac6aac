"""Build IconText data sets from public packages.

    python -m benchmarks.icontext.build fetch --cache icontext-work/cache
    python -m benchmarks.icontext.build full --cache icontext-work/cache \
        --out icontext-work/data
    python -m benchmarks.icontext.build mini --cache icontext-work/cache \
        --out examples/icontext_mini

`fetch` needs npm, apt-get and dpkg-deb; `full` and `mini` need pillow and
resvg-py (`pip install --editable '.[icontext]'`) and no network. Each goes on
where it stopped. The same versions give the same bytes, but for letters in clip
art, which are drawn in the fonts of the machine.
"""

import argparse
import collections
import os
import pathlib
import sys

from benchmarks.icontext import (
    concepts,
    full,
    manifest,
    packages,
    selection,
    sources,
)

SEED = 0
SIZE = 32
# 48 colours hold emoji art at about 45 dB and halve its bytes.
NUM_COLOURS = 48
MAX_BYTES = 8_000_000

# Noto whole; of fluent-3d what the size leaves room for.
REFERENCE_ROWS = {"noto": None, "fluent-3d": 300}
HELD_OUT_STYLES = ("noto", "fluent-3d", "fluent-emoji-flat")
POOL_STYLES = ("fluent-emoji-flat", "fluent-emoji", "noto-v1")
# The four other kinds stand to each other as in the full pool. Emoji art is
# a tenth of this pool and a fiftieth of the full one: at a fiftieth, a pool
# of this size would hold too little of it to learn from.
POOL_ROWS = {
    sources.EMOJI: 820,
    sources.MONO_ICON: 5_950,
    sources.LOGO: 870,
    sources.COLOUR_ICON: 430,
    sources.CLIP_ART: 130,
}
# Every permissive set is there, be it small.
LEAST_ROWS_OF_A_SET = 4


def main(arguments=None):
    """Run one sub-command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.icontext.build",
        description="Build IconText data sets from public packages.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser("fetch", help="download the packages")
    whole = commands.add_parser("full", help="build the whole data set")
    mini = commands.add_parser("mini", help="build examples/icontext_mini")
    for command in (fetch, whole, mini):
        command.add_argument(
            "--cache",
            default="icontext-work/cache",
            help="folder of the packages (default: %(default)s)",
        )
    whole.add_argument(
        "--out",
        default="icontext-work/data",
        help="folder to write to (default: %(default)s)",
    )
    whole.add_argument("--size", type=int, default=SIZE, help="pixels a side")
    whole.add_argument(
        "--permissive-only",
        action="store_true",
        help="only licences that ask for no more than a notice",
    )
    whole.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes that render (default: one a core)",
    )
    mini.add_argument(
        "--out",
        default="examples/icontext_mini",
        help="folder to write to (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except (ImportError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error


def _run(options):
    if options.command == "fetch":
        packages.fetch(options.cache, report=_say)
    elif options.command == "full":
        full.build(
            options.cache,
            options.out,
            full.Settings(
                size=options.size, permissive_only=options.permissive_only
            ),
            jobs=options.jobs,
            say=_say,
        )
    else:
        build_mini(options.cache, options.out, say=_say)


def build_mini(cache, out, say=None):
    """Write the small data set: shards, stats.json, tables and licences.

    Args:
        cache: folder that `packages.fetch` filled.
        out: folder to write to; a README.md there keeps its prose.
        say: called with lines of progress, or `None`.

    Raises:
        FileNotFoundError: a package is missing.
        ValueError: the shards are larger than `MAX_BYTES`.
    """
    from benchmarks.icontext import shards  # imports TensorFlow

    sieve = selection.Sieve(
        size=SIZE,
        num_colours=NUM_COLOURS,
        report=say,
        # About as many emoji outside the pool; only the time left needs it.
        total=sum(POOL_ROWS.values()) + 2_700,
    )
    left_out = collections.Counter()
    splits = _mini_splits(cache, sieve, left_out)

    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    num_bytes = {
        split: shards.write_split(
            out, split, selection.shuffled(records, split, SEED), 1
        )
        for split, records in splits.items()
    }
    if sum(num_bytes.values()) > MAX_BYTES:
        raise ValueError(
            f"the shards must not exceed {MAX_BYTES} bytes. "
            f"Received: {num_bytes}"
        )
    stats = manifest.statistics(splits, num_bytes)
    stats["settings"] = {
        "seed": SEED,
        "size": SIZE,
        "num_colours": NUM_COLOURS,
        "split_salt": concepts.SPLIT_SALT,
        "licenses": sorted(sources.PERMISSIVE_LICENSES),
    }
    stats["dropped"] = dict(sorted(sieve.drops.items()))
    stats["left_out"] = dict(sorted(left_out.items()))
    stats["versions"] = manifest.versions(cache)
    manifest.write(cache, out, stats)
    if say:
        say(f"{sum(num_bytes.values())} bytes of shards in {str(out)!r}")


def _mini_splits(cache, sieve, left_out):
    """Records of every split, `{split: list of selection.Record}`."""
    # A flag is the same picture in every style: nothing to learn from.
    table = {
        key: concept
        for key, concept in sources.load_concepts(cache).items()
        if concept.category != "Flags"
    }
    splits = {"reference": [], "pool": []}
    # Held-out splits first: what copies them is then turned away.
    for split, part in (("val_concept", "val"), ("test_concept", "test")):
        rows = _emoji_of(cache, table, HELD_OUT_STYLES, part)
        splits[split] = _accepted(sieve, rows, split)
    for style, at_most in REFERENCE_ROWS.items():
        rows = _emoji_of(cache, table, (style,), "train")
        rows = selection.sampled(rows, SEED)
        splits["reference"] += _accepted(sieve, rows, "reference", at_most)
    candidates = _pool_candidates(cache, table, left_out)
    for kind, wanted in POOL_ROWS.items():
        sizes = {style: len(rows) for style, rows in candidates[kind].items()}
        shares = selection.quotas(sizes, wanted, LEAST_ROWS_OF_A_SET)
        for style, share in sorted(shares.items()):
            rows = selection.sampled(candidates[kind][style], SEED)
            splits["pool"] += _accepted(sieve, rows, "pool", share)
    return splits


def _emoji_of(cache, table, styles, part):
    """Emoji rows of one part of the split by concept."""
    for style in styles:
        for row in sources.emoji_rows(cache, table, style):
            if row.license not in sources.PERMISSIVE_LICENSES:
                raise ValueError(
                    f"style {style!r} has licence {row.license}, "
                    f"expected one of {sorted(sources.PERMISSIVE_LICENSES)}"
                )
            if table[row.concept].split == part:
                yield row


def _pool_candidates(cache, table, left_out):
    """Rows that the pool may draw from, `{kind: {style: list of rows}}`."""
    candidates = collections.defaultdict(dict)
    for row in _emoji_of(cache, table, POOL_STYLES, "train"):
        candidates[sources.EMOJI].setdefault(row.style, []).append(row)
    descriptions = sources.load_collections(cache)
    for style in sources.icon_sets(cache):
        description = descriptions[style]
        license_id = description["license"].get("spdx", "none")
        if license_id not in sources.PERMISSIVE_LICENSES:
            left_out[license_id] += description["total"]
        elif not description["license"].get("url"):
            left_out["no address of the licence"] += description["total"]
        else:
            kind = sources.kind_of_set(description)
            candidates[kind][style] = list(sources.icon_rows(cache, style))
    candidates[sources.CLIP_ART][sources.CLIP_ART_STYLE] = list(
        sources.clip_art_rows(cache)
    )
    return candidates


def _accepted(sieve, rows, split, at_most=None):
    records = []
    for row in rows:
        if len(records) == at_most:
            break
        record = sieve.accept(row, split)
        if record is not None:
            records.append(record)
    return records


def _say(line):
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

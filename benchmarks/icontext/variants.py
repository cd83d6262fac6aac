"""Other pools made of the pool: noisier ones, and parts of it.

    python -m benchmarks.icontext.variants noise --data icontext-work/data \
        --out icontext-work/noise50 --share 0.5
    python -m benchmarks.icontext.variants emoji --data icontext-work/data \
        --out icontext-work/emoji
    python -m benchmarks.icontext.variants filter --data icontext-work/data \
        --out icontext-work/filtered --sidecars icontext-work/sidecars/reference
    python -m benchmarks.icontext.variants distinct --data icontext-work/data \
        --out icontext-work/distinct --sidecars \
        icontext-work/sidecars/reference_pool
    python -m benchmarks.icontext.variants manifest --data icontext-work/data \
        --out icontext-work/chosen --manifest icontext-work/manifests/chosen

Records keep their ids and their order. What is left out or changed does not
depend on the learner's seed.
"""

import argparse
import dataclasses
import pathlib

import numpy as np

from benchmarks.icontext import results, shards, sources

SEED = 0


def main(arguments=None):
    """Run one sub-command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    noise = commands.add_parser("noise", help="captions of other pictures")
    emoji = commands.add_parser("emoji", help="emoji art alone")
    best = commands.add_parser("filter", help="what a reference finds fitting")
    apart = commands.add_parser("distinct", help="no two look-alikes")
    manifest = commands.add_parser("manifest", help="what it has a weight for")
    for command in (noise, emoji, best, apart, manifest):
        command.add_argument("--data", required=True, help="the whole data set")
        command.add_argument("--out", required=True, help="folder to write to")
    noise.add_argument("--share", type=float, required=True)
    for command in (best, apart):
        command.add_argument("--sidecars", required=True, help="of the pool")
    best.add_argument("--share", type=float, default=0.2)
    manifest.add_argument("--manifest", required=True, help="of the pool")
    options = parser.parse_args(arguments)
    pool = sorted(pathlib.Path(options.data).glob("pool-*.tfrecord"))
    if not pool:
        raise ValueError(f"`--data` has no pool-*.tfrecord: {options.data!r}")
    records = [record for file in pool for record in shards.read(file)]
    if options.command == "noise":
        records = with_noise(records, options.share)
    elif options.command == "emoji":
        records = [one for one in records if one.row.kind == sources.EMOJI]
    elif options.command == "distinct":
        kept = distinct(*pictures_of(options.data, options.sidecars))
        records = [records[row] for row in np.flatnonzero(kept)]
    elif options.command == "manifest":
        kept = np.flatnonzero(weights(options.data, options.manifest))
        records = [records[row] for row in kept]
    else:
        scores = similarities(options.data, options.sidecars)
        records = best_of(records, scores, options.share)
    write(records, options.out, len(pool))


def with_noise(records, share):
    """The records, a share of them with captions of one another.

    Args:
        records: list of `selection.Record`.
        share: of the records that get another's captions, in [0, 1].
    """
    chosen = moved(len(records), share)
    found = list(records)
    # A cycle through all of them, so that none gets its own.
    for place, giver in zip(chosen, np.roll(chosen, 1), strict=True):
        record = records[place]
        captions = records[giver].row.captions
        found[place] = dataclasses.replace(
            record, row=dataclasses.replace(record.row, captions=captions)
        )
    return found


def moved(count, share):
    """Rows of `with_noise` that get another's captions, in no order."""
    order = np.random.default_rng(SEED).permutation(count)
    return order[: round(share * count)]


def best_of(records, scores, share):
    """The share of the records that score highest, in their order."""
    count = round(share * len(records))
    kept = np.sort(np.argsort(-scores, kind="stable")[:count])
    return [records[place] for place in kept]


def distinct(pictures, valid, above=results.LOOK_ALIKE, block_size=4096):
    """Which pictures look like none that is kept before them.

    Args:
        pictures: unit vectors [N, D].
        valid: bool [N]; what has no vector is not kept.
        above: cosine from which two look alike.
        block_size: pictures compared at a time.

    Returns:
        bool [N].
    """
    kept = np.zeros(len(pictures), bool)
    for start in range(0, len(pictures), block_size):
        block = np.float32(pictures[start : start + block_size])
        is_new = valid[start : start + block_size].copy()
        before = np.flatnonzero(kept)
        for first in range(0, len(before), block_size):
            others = np.float32(pictures[before[first : first + block_size]])
            is_new &= (block @ others.T).max(axis=1) <= above
        alike = block @ block.T > above
        for row in np.flatnonzero(is_new):
            is_new[row] = not (alike[row, :row] & is_new[:row]).any()
        kept[start : start + block_size] = is_new
    return kept


def pictures_of(data, sidecars):
    """Vectors of the pool's pictures, and which of them have one."""
    rows = _read_sidecars(data, sidecars)
    return rows.image, rows.valid


def similarities(data, sidecars):
    """Cosine of each pool picture with its first caption, float32 [records]."""
    rows = _read_sidecars(data, sidecars)
    first = rows.text[rows.offsets[:-1]]
    products = np.float32(rows.image) * np.float32(first)
    return np.where(rows.valid, products.sum(axis=1), -np.inf)


def _read_sidecars(data, sidecars):
    from jest_tf.data import sidecars as sidecars_lib
    from jest_tf.data import stores

    store = stores.open_store(f"{data}/pool-*.tfrecord")
    return sidecars_lib.Sidecars(store, sidecars).read_rows(0, len(store))


def weights(data, manifest):
    """Weight of each pool record in a manifest, [records]."""
    from jest_tf.data import stores
    from jest_tf.data.stores import manifest as manifest_lib

    store = stores.open_store(f"{data}/pool-*.tfrecord")
    return manifest_lib.Manifest(manifest, store).weights


def write(records, out, count):
    """Write records as a pool of `count` shards."""
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    shards.write_split(out, "pool", records, count)
    (out / "done").touch()


if __name__ == "__main__":
    main()

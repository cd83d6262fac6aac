"""Other pools made of the pool: noisier ones, and parts of it.

    python -m benchmarks.icontext.variants noise --share 0.5 \
        --data icontext-work/data --out icontext-work/pools/noise50
    python -m benchmarks.icontext.variants filter --data icontext-work/data \
        --sidecars icontext-work/sidecars/reference-pool \
        --out icontext-work/pools/filtered

| kind | the pool's |
| --- | --- |
| noise | pairs, a `--share` of them with the captions of other pictures |
| emoji | emoji art |
| clean | pairs that are not noise, of a pool of `web.py` |
| filter | fifth whose pictures match their captions best, by `--sidecars` |
| manifest | pairs that `--manifest` gives a weight |

Records keep their ids and their order.
"""

import argparse
import os
import pathlib

import numpy as np

from benchmarks.icontext import shards, sources
from jest_tf.data import sidecars, stores
from jest_tf.data.stores import manifest

FILTERED_SHARE = 0.2
_SEED = 0


def main(arguments=None):
    """Write one pool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "kind", choices=("noise", "emoji", "clean", "filter", "manifest")
    )
    parser.add_argument("--data", required=True, help="the whole data set")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--share", type=float)
    for flag in ("--sidecars", "--manifest"):
        parser.add_argument(flag, help="of the pool")
    options = parser.parse_args(arguments)
    pool = sorted(pathlib.Path(options.data).glob("pool-*.tfrecord"))
    if not pool:
        raise ValueError(
            f"`--data` must have pool-*.tfrecord. Received: {options.data!r}"
        )
    records = [record for file in pool for record in shards.read(file)]
    if options.kind == "noise":
        records = with_noise(records, options.share)
    else:
        records = [records[row] for row in _kept(options, records)]
    os.makedirs(options.out, exist_ok=True)
    shards.write(options.out, "pool", records, len(pool))


def _kept(options, records):
    """Rows of the pool that are kept, increasing."""
    if options.kind == "emoji":
        is_kept = [record.row.kind == sources.EMOJI for record in records]
        return np.flatnonzero(is_kept)
    store = stores.open_store(f"{options.data}/pool-*.tfrecord")
    if options.kind == "clean":
        return np.flatnonzero(store.columns(["noise"])["noise"] == b"")
    if options.kind == "manifest":
        weights = manifest.Manifest(options.manifest, store).weights
        return np.flatnonzero(weights)
    found, scores = sidecars.Sidecars(store, options.sidecars), []
    for shard in range(len(store.shards.paths)):
        rows = found.read_shard(shard)
        # Cosine of each picture with its first caption; -inf where invalid.
        first = rows.text[rows.offsets[:-1]]
        products = np.float32(rows.image) * np.float32(first)
        scores.append(np.where(rows.valid, products.sum(axis=1), -np.inf))
    return best(np.concatenate(scores), FILTERED_SHARE)


def with_noise(records, share):
    """Returns the records, a share of them with the captions of others."""
    chosen = moved(len(records), share)
    found = list(records)
    # A cycle through all of them, so that no record keeps its captions.
    for place, giver in zip(chosen, np.roll(chosen, 1), strict=True):
        record = records[place]
        captions = records[giver].row.captions
        row = record.row._replace(captions=captions)
        found[place] = record._replace(row=row)
    return found


def moved(count, share):
    """Returns the rows whose captions `with_noise` exchanges."""
    order = np.random.default_rng(_SEED).permutation(count)
    return order[: round(share * count)]


def best(scores, share):
    """Rows of the highest scores, increasing."""
    count = round(share * len(scores))
    return np.sort(np.argsort(-scores, kind="stable")[:count])


if __name__ == "__main__":
    main()

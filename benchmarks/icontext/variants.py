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
| filter | `--share` whose pictures match their captions best, by `--sidecars` |
| manifest | pairs that `--manifest` gives a weight |
| deduplicate | pairs without those whose picture is all but one before |
| balance | pairs as balance by concept draws them, the oftener the more often |

Records keep their ids and their order.

Balance by concept is that of CABS (arXiv 2511.20643) done before training: in
five passes over the pool, a fifth of every super-batch of 1,280 pairs is chosen
greedily, each the pair whose words have been chosen least. Training then draws
its batches from all that were chosen, so a batch itself is not balanced.
"""

import argparse
import collections
import os
import pathlib
import re

import numpy as np
import sklearn.cluster

from benchmarks.icontext import noise, pictures, shards, sources
from jest_tf.data import sidecars, stores
from jest_tf.data.stores import manifest

FILTERED_SHARE = 0.2
_SEED = 0
# Correlation of two drawings, whatever their place, that are one.
_EQUAL_FROM = 0.97
_NUM_CLUSTERS = 500  # only pictures of one cluster are compared
# A super-batch of concept balance, the part of it that is chosen, and passes
# over the pool: as many pairs are chosen as there are.
_SUPER_BATCH, _SUB_BATCH = 1280, 256
_LEAST_COUNT = 10  # pairs with a word that is a concept


def main(arguments=None):
    """Write one pool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("kind", choices=("noise", *_KEPT))
    parser.add_argument("--data", required=True, help="the whole data set")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--share", type=float, default=FILTERED_SHARE)
    parser.add_argument(
        "--captions",
        choices=("first", "best"),
        default="first",
        help="the caption that is matched",
    )
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
        kept = _KEPT[options.kind](options, records)
        records = [records[row] for row in kept]
    os.makedirs(options.out, exist_ok=True)
    shards.write(options.out, "pool", records, len(pool))


def _emoji(options, records):
    return np.flatnonzero(
        [record.row.kind == sources.EMOJI for record in records]
    )


def _clean(options, records):
    return np.flatnonzero([not record.noise for record in records])


def _of_manifest(options, records):
    weights = manifest.Manifest(options.manifest, _store(options)).weights
    return np.flatnonzero(weights)


def _matching(options, records):
    store = _store(options)
    found, scores = sidecars.Sidecars(store, options.sidecars), []
    for shard in range(len(store.shards.paths)):
        scores.append(matches(found.read_shard(shard), options.captions))
    return best(np.concatenate(scores), options.share)


def _store(options):
    return stores.open_store(f"{options.data}/pool-*.tfrecord")


def _distinct(options, records):
    shapes = [
        pictures.shape_vector(pictures.decode(record.png)) for record in records
    ]
    return distinct(np.stack(shapes))


def _balanced(options, records):
    return balanced([words(record.row.captions) for record in records])


# Rows of the pool that are kept, increasing; a row may come twice.
_KEPT = {
    "emoji": _emoji,
    "clean": _clean,
    "filter": _matching,
    "manifest": _of_manifest,
    "deduplicate": _distinct,
    "balance": _balanced,
}


def matches(rows, captions="first"):
    """Cosine of each picture with a caption, float32 [n]; -inf where invalid.

    Args:
        rows: of a shard of sidecars.
        captions: "first", or "best" for the one that matches best.
    """
    starts = rows.offsets[:-1]
    owners = np.repeat(np.arange(len(starts)), np.diff(rows.offsets))
    cosines = np.float32(rows.image)[owners] * np.float32(rows.text)
    cosines = cosines.sum(axis=1)
    found = cosines[starts]
    if captions == "best":
        found = np.maximum.reduceat(cosines, starts)
    return np.where(rows.valid, found, -np.inf)


def distinct(shapes, num_clusters=_NUM_CLUSTERS):
    """Rows unlike every row before them, of `pictures.shape_vector`s."""
    clusters = sklearn.cluster.MiniBatchKMeans(
        min(num_clusters, len(shapes)), random_state=_SEED, n_init=1
    ).fit_predict(shapes)
    kept = np.ones(len(shapes), bool)
    for cluster in range(clusters.max() + 1):
        rows = np.flatnonzero(clusters == cluster)
        alike = shapes[rows] @ shapes[rows].T >= _EQUAL_FROM
        kept[rows] = ~np.tril(alike, -1).any(axis=1)
    return np.flatnonzero(kept)


def words(captions):
    """The different words of captions."""
    return {*re.findall(r"[a-z]{3,}", " ".join(captions).lower())}


def balanced(
    concepts, least=_LEAST_COUNT, batch=_SUPER_BATCH, chosen=_SUB_BATCH
):
    """Rows that balance by concept chooses; one may be chosen repeatedly.

    Args:
        concepts: a set of words for each row.
        least: rows that a word must be in to count.
        batch: rows of a super-batch.
        chosen: rows chosen of each; there are batch / chosen passes.
    """
    counts = collections.Counter(word for one in concepts for word in one)
    known = sorted(word for word in counts if counts[word] >= least)
    known = {word: number for number, word in enumerate(known)}
    numbers = [sorted(known[w] for w in one if w in known) for one in concepts]
    random, found = np.random.default_rng(_SEED), []
    for _ in range(batch // chosen):
        order = random.permutation(len(concepts))
        for start in range(0, len(order) - batch + 1, batch):
            rows = order[start : start + batch]
            places = _spread([numbers[row] for row in rows], chosen, len(known))
            found.append(rows[places])
    return np.sort(np.concatenate(found))


def _spread(numbers, count, num_concepts):
    """Chooses rows one by one, each of the concepts chosen least so far."""
    lengths = np.array([len(one) for one in numbers])
    owners = np.repeat(np.arange(len(numbers)), lengths)
    flat = np.array([one for some in numbers for one in some], np.int64)
    worth, times = np.ones(num_concepts), np.zeros(num_concepts)
    taken, found = np.zeros(len(numbers)), []
    for _ in range(count):
        gains = np.bincount(owners, worth[flat], len(numbers))
        row = int(np.argmax(gains / np.maximum(lengths, 1) - taken))
        found.append(row)
        taken[row] = np.inf
        times[numbers[row]] += 1
        worth[numbers[row]] = 1 / (1 + times[numbers[row]])
    return found


def with_noise(records, share):
    """Returns the records, a share of them with the captions of others."""
    places, found = moved(len(records), share), list(records)
    changed = noise.moved(records, places)
    for place, record in zip(places, changed, strict=True):
        found[place] = record
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

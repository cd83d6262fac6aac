"""The small data set that ships: examples/icontext_mini.

The web-like data (`web.py`), small: what has a permissive licence, sampled.

| split | pairs |
| --- | --- |
| pool | 18,000, of which seven tenths are noise (`noise.py`) |
| reference | 2,000 clean pairs of the pool's icons, no longer in the pool |
| val, test | captions of icon sets that nobody trains on |

One shard per split, at most 16 MB.
"""

import collections

from benchmarks.icontext import manifest, noise, selection, sources, web

SEED = 0
NOISE_LEVEL = 0.7
MAX_BYTES = 16_000_000
# Splits of the web-like data that are sampled, and how many pairs at most.
_SPLITS = {
    "reference": ("curated", 2_000),
    "pool": ("pool", 18_000),
    "val": ("val_sets", 1_300),
    "test": ("test_sets", 1_300),
}


def build(cache, data, out):
    """Write shards and stats.json.

    Args:
        cache: folder that `packages.fetch` filled.
        data: folder of the whole data set, made from the same packages.
        out: folder to write to.

    Raises:
        FileNotFoundError: a package or the whole data set is missing.
        ValueError: the shards are larger than `MAX_BYTES`.
    """
    if not (data / "stats.json").exists():
        raise FileNotFoundError(
            f"{str(data)!r} does not hold the whole data set. Build it with "
            "`python -m benchmarks.icontext.build full`"
        )
    settings = {
        "seed": SEED,
        "size": selection.SIZE,
        "noise_level": NOISE_LEVEL,
        "noise": noise.CRAWL,
        "licenses": sorted(sources.PERMISSIVE_LICENSES),
    }
    descriptions = sources.load_collections(cache)
    whole, foreign, dropped = web.split(data)
    splits, left_out = sampled(whole, foreign, descriptions)
    stats = manifest.write(out, splits, settings, dropped, left_out)
    if stats["bytes"] > MAX_BYTES:
        raise ValueError(
            f"the shards must not exceed {MAX_BYTES} bytes. "
            f"Received: {stats['bytes']}"
        )


def sampled(whole, foreign, descriptions):
    """Samples the splits, and adds the noise to the pool.

    Args:
        whole: `{split: list of selection.Record}`, as `web.split` returns.
        foreign: records of another domain.
        descriptions: iconify's description of each set.

    Returns:
        `{split: list of selection.Record}`, and counts of the pairs left out,
        by licence.
    """
    left_out = collections.Counter()

    def permissive(records):
        found = []
        for record in records:
            reason = _objection(record.row, descriptions)
            if reason:
                left_out[reason] += 1
            else:
                found.append(record)
        return selection.shuffled(found, "mini", SEED)

    splits = {
        name: permissive(whole[source])[:at_most]
        for name, (source, at_most) in _SPLITS.items()
    }
    # Some sets have logos among their icons.
    foreign = permissive(foreign)
    is_copy = web.copies(foreign, splits["val"] + splits["test"])
    foreign = [
        record
        for record, drop in zip(foreign, is_copy, strict=True)
        if not drop
    ]
    splits["pool"] = noise.add(splits["pool"], NOISE_LEVEL, foreign)
    return splits, left_out


def _objection(row, descriptions):
    """Why the licence of a row is not permissive enough, or ""."""
    if row.license not in sources.PERMISSIVE_LICENSES:
        return row.license or "none"
    # Emoji in 3D and clip art come with a notice of their own.
    terms = descriptions.get(row.style, {"license": {"url": "its package"}})
    return "" if terms["license"].get("url") else "no address of the licence"

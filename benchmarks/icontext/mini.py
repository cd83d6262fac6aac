"""The small data set that ships: examples/icontext_mini.

Permissive licences only, one shard per split, at most 8 MB. A tenth of its pool
is emoji art, a fiftieth of the full pool: at a fiftieth, so small a pool would
hold too little of it to learn from.
"""

import collections

import tqdm

from benchmarks.icontext import concepts, manifest, selection, sources

SEED = 0
SIZE = 32
NUM_COLOURS = 48  # emoji art at about 45 dB, in half the bytes
MAX_BYTES = 8_000_000
# Noto whole; of fluent-3d what the size leaves room for.
REFERENCE_ROWS = {"noto": None, "fluent-3d": 300}
HELD_OUT_STYLES = ("noto", "fluent-3d", "fluent-emoji-flat")
POOL_STYLES = ("fluent-emoji-flat", "fluent-emoji", "noto-v1")
# Kinds other than emoji art are in the proportions of the full pool.
POOL_ROWS = {
    sources.EMOJI: 820,
    sources.MONO_ICON: 5_950,
    sources.LOGO: 870,
    sources.COLOUR_ICON: 430,
    sources.CLIP_ART: 130,
}
LEAST_ROWS_OF_A_SET = 4


def build(cache, out):
    """Write shards, stats.json, tables and licences.

    Args:
        cache: folder that `packages.fetch` filled.
        out: folder to write to; a README.md there keeps its prose.

    Raises:
        FileNotFoundError: a package is missing.
        ValueError: the shards are larger than `MAX_BYTES`.
    """
    sieve = selection.Sieve(size=SIZE, num_colours=NUM_COLOURS)
    left_out = collections.Counter()
    splits = _splits(cache, sieve, left_out)
    about = {
        "settings": {
            "seed": SEED,
            "size": SIZE,
            "num_colours": NUM_COLOURS,
            "split_salt": concepts.SPLIT_SALT,
            "licenses": sorted(sources.PERMISSIVE_LICENSES),
        },
        "dropped": dict(sorted(sieve.drops.items())),
        "left_out": dict(sorted(left_out.items())),
        "versions": manifest.versions(cache),
    }
    stats = manifest.write(cache, out, splits, about, seed=SEED)
    if stats["bytes"] > MAX_BYTES:
        raise ValueError(
            f"the shards must not exceed {MAX_BYTES} bytes. "
            f"Received: {stats['bytes']}"
        )


def _splits(cache, sieve, left_out):
    """Records of every split, `{split: list of selection.Record}`."""
    # A flag is the same picture in every style: nothing to learn from.
    table = {
        key: concept
        for key, concept in sources.load_concepts(cache).items()
        if concept.category != "Flags"
    }
    splits = {"reference": [], "pool": []}
    # Held-out splits first, so that the sieve turns their copies away.
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
                    f"style {style!r} must have a licence of "
                    f"{sorted(sources.PERMISSIVE_LICENSES)}. "
                    f"Received: {row.license}"
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
    for row in tqdm.tqdm(rows, split, leave=False):
        if len(records) == at_most:
            break
        record = sieve.accept(row, split)
        if record is not None:
            records.append(record)
    return records

"""The small data set that ships: examples/icontext_mini.

Permissive licences only, one shard per split, at most 8 MB. A tenth of its pool
is emoji art, a fiftieth of the full pool: at a fiftieth, so small a pool would
hold too little of it to learn from.
"""

import collections
import itertools

import tqdm

from benchmarks.icontext import concepts, manifest, selection, sources

SEED = 0
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
    sieve = selection.Sieve(NUM_COLOURS)
    left_out = collections.Counter()
    splits = _splits(cache, sieve, left_out)
    settings = {
        "seed": SEED,
        "size": selection.SIZE,
        "num_colours": NUM_COLOURS,
        "split_salt": concepts.SPLIT_SALT,
        "licenses": sorted(sources.PERMISSIVE_LICENSES),
    }
    stats = manifest.write(cache, out, splits, settings, sieve.drops, left_out)
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
    splits = {
        name: []
        for name in ("reference", "pool", "val_concept", "test_concept")
    }

    def add(split, rows, at_most=None):
        rows = tqdm.tqdm(rows, split, leave=False)
        splits[split] += itertools.islice(sieve.accept(rows, split), at_most)

    # Held-out splits first, so that the sieve turns their copies away.
    for part in ("val", "test"):
        rows = sources.emoji_of_part(cache, table, HELD_OUT_STYLES, part)
        add(f"{part}_concept", rows)
    for style, at_most in REFERENCE_ROWS.items():
        rows = sources.emoji_of_part(cache, table, (style,), "train")
        add("reference", selection.sampled(rows, SEED), at_most)
    candidates = _pool_candidates(cache, table, left_out)
    for kind, wanted in POOL_ROWS.items():
        sizes = {style: len(rows) for style, rows in candidates[kind].items()}
        shares = selection.quotas(sizes, wanted, LEAST_ROWS_OF_A_SET)
        for style, share in sorted(shares.items()):
            rows = selection.sampled(candidates[kind][style], SEED)
            add("pool", rows, share)
    return splits


def _pool_candidates(cache, table, left_out):
    """Rows that the pool may draw from, `{kind: {style: list of rows}}`."""
    candidates = collections.defaultdict(dict)
    for style in POOL_STYLES:
        candidates[sources.EMOJI][style] = list(
            sources.emoji_of_part(cache, table, (style,), "train")
        )
    for style in sources.icon_sets(cache):
        description = sources.load_collections(cache)[style]
        license_id = description["license"].get("spdx", "none")
        if not sources.admits(license_id, permissive_only=True):
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

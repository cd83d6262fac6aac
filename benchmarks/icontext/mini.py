"""The small data set that ships, and its reference: examples/icontext_mini.

The web-like data (`web.py`), small: what has a permissive licence, sampled.

| split | pairs |
| --- | --- |
| pool | 18,000 of the learner's part, seven tenths of them noise (`noise.py`) |
| curated | clean pairs of the same icon sets, no longer in the pool |
| val, test | captions of icon sets that nobody trains on |

A split is a shard of at most 16 MB. The reference is a run of the benchmark,
trained on the other part: it has seen no icon set of any split.
"""

import collections
import shutil

from benchmarks.icontext import cells, manifest, noise, selection, sources, web

SEED = 0
NOISE_LEVEL = 0.7
MAX_BYTES = 16_000_000
# Splits of the web-like data that are sampled, and how many pairs at most.
_SPLITS = {
    "curated": ("curated", 2_000),
    "pool": ("pool", 18_000),
    "val": ("val_sets", 1_300),
    "test": ("test_sets", 1_300),
}
# Of a run directory, what a reference needs.
_MODEL_FILES = ("config.json", "flops.json", "vocab.txt", "final.weights.h5")


def build(work, out):
    """Writes the reference, shards and stats.json.

    Args:
        work: folder of the packages, the whole data set and the runs.
        out: folder to write to.

    Raises:
        FileNotFoundError: a package, the whole data set or the reference's run
            is missing.
        ValueError: the shards are larger than `MAX_BYTES`.
    """
    data = work / "data"
    if not (data / "stats.json").exists():
        raise FileNotFoundError(
            f"{str(data)!r} does not hold the whole data set. Build it with "
            "`python -m benchmarks.icontext.build full`"
        )
    copy_reference(work, out / "reference")
    settings = {
        "seed": SEED,
        "size": selection.SIZE,
        "noise_level": NOISE_LEVEL,
        "noise": noise.CRAWL,
        "licenses": sorted(sources.PERMISSIVE_LICENSES),
    }
    descriptions = sources.load_collections(work / "cache")
    whole, foreign, dropped = web.split(data)
    splits, left_out = sampled(whole, foreign, descriptions)
    stats = manifest.write(out, splits, settings, dropped, left_out)
    if stats["bytes"] > MAX_BYTES:
        raise ValueError(
            f"the shards must not exceed {MAX_BYTES} bytes. "
            f"Received: {stats['bytes']}"
        )


def copy_reference(work, out):
    """Copies the shipped reference's run, without what its folder is called.

    Raises:
        FileNotFoundError: it has not finished.
    """
    run = work / "runs" / f"{cells.SHIPPED}-0"
    if not (run / _MODEL_FILES[-1]).exists():
        raise FileNotFoundError(
            f"{str(run)!r} is no finished run. Train it with "
            f"`python -m benchmarks.protocol.run icons --cells {cells.SHIPPED}`"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name in _MODEL_FILES:
        shutil.copyfile(run / name, out / name)
    config = out / _MODEL_FILES[0]
    text = config.read_text(encoding="utf-8")
    text = text.replace(str(run.resolve().parents[1]), "icontext-work")
    config.write_text(text, encoding="utf-8")


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
            reason = sources.objection(record.row, descriptions)
            if reason:
                left_out[reason] += 1
            else:
                found.append(record)
        return selection.shuffled(found, "mini", SEED)

    parts = {name: web.apart(whole[name])[0] for name in ("pool", "curated")}
    whole = whole | parts
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

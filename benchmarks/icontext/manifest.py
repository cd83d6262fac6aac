"""A data set's files: shards, and stats.json with its numbers and versions.

Every record names its licence. LICENSES.md and licenses/ of the set that ships
are kept by hand; a test compares them with the records.
"""

import collections
import importlib.metadata
import json

from benchmarks.icontext import packages, selection


def write(out, splits, settings, drops, left_out, num_pool_shards=1):
    """Write a data set, stats.json last: a folder that has it is whole.

    Args:
        out: folder to write to.
        splits: `{split: list of selection.Record}`.
        settings: as stats.json lists them; `seed` is that of the order.
        drops: counts of pictures turned away, by reason.
        left_out: counts of icons left out, by licence.
        num_pool_shards: files of the pool; the other splits have a file each.

    Returns:
        The contents of stats.json.

    Raises:
        ValueError: two rows have the same id.
    """
    from benchmarks.icontext import shards  # imports TensorFlow

    identifiers = collections.Counter(
        record.identifier for records in splits.values() for record in records
    )
    if len(identifiers) < identifiers.total():
        raise ValueError(f"two rows have id {identifiers.most_common(1)[0][0]}")
    out.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for split, records in splits.items():
        count = num_pool_shards if split == "pool" else 1
        records = selection.shuffled(records, split, settings["seed"])
        sizes[split] = shards.write(out, split, records, count)
    stats = {
        **statistics(splits, sizes),
        "settings": settings,
        "dropped": dict(sorted(drops.items())),
        "left_out": dict(sorted(left_out.items())),
        "versions": versions(),
    }
    text = json.dumps(stats, indent=1, ensure_ascii=False) + "\n"
    (out / "stats.json").write_text(text, encoding="utf-8")
    return stats


def versions():
    """Versions of everything that the bytes depend on."""
    return {
        "packages": [*packages.NPM_PACKAGES, packages.OPENCLIPART],
        "python": {
            name: importlib.metadata.version(name)
            for name in ("numpy", "pillow", "resvg-py", "tensorflow")
        },
    }


def statistics(splits, sizes):
    """Counts of pairs by split, kind, noise and licence.

    Args:
        splits: `{split: list of selection.Record}`.
        sizes: bytes of the shards, by split.
    """

    def counts(records, name):
        values = collections.Counter(map(name, records))
        return dict(sorted(values.items()))

    everything = [record for records in splits.values() for record in records]
    return {
        "splits": {
            split: {
                "pairs": len(records),
                "bytes": sizes[split],
                "kinds": counts(records, lambda record: record.row.kind),
            }
            for split, records in splits.items()
        },
        "bytes": sum(sizes.values()),
        "noise_of_pool": counts(
            splits["pool"], lambda record: record.noise or "pairs"
        ),
        "licenses": counts(everything, lambda record: record.row.license),
        "styles": counts(everything, lambda record: record.row.style),
    }

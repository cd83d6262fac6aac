"""The web-like data: a noisy pool, a small curated set, broad tests.

Made of the whole data set (`full.py`), whose pool is cut by icon set:

| split | pairs |
| --- | --- |
| pool00 to pool90 | all sets but those held out, at six levels of noise |
| clean15 to clean90 | these without their noise |
| part00 to part90 | seven tenths of these sets, at four levels of noise |
| part_clean30 to part_clean90 | these without their noise |
| apart | the other sets, clean, for a reference; no picture is in the part |
| apart_permissive | of these, what has a permissive licence |
| curated | 4,000 clean pairs of the pool's icons, no longer in the pool |
| curated1000, curated250 | the first of these |
| val_sets, test_sets | captions of icon sets that nobody trains on |
| val_concept, test_concept | emoji art of held-out concepts, as in `full.py` |
| val_style, test_style | emoji art in styles that nobody trains on |

A part consists of whole families of icon sets. Settings are chosen on the `val`
splits. Logos are in no pool: they are the noise of another domain (`noise.py`).
Pictures of the pool that copy a held-out picture are dropped.
"""

import collections
import hashlib
import json
import re

import numpy as np

from benchmarks.icontext import (
    full,
    noise,
    pictures,
    selection,
    shards,
    sources,
)

LEVELS = {"pool": (0, 15, 30, 50, 70, 90), "part": (0, 30, 70, 90)}
CLEAN = {"pool": "clean", "part": "part_clean"}
PART = 0.7  # of the families
NUM_CURATED = 4_000
FEWER_CURATED = (1_000, 250)
VAL_STYLE = "emojione"
SEED = 0
# Families of icon sets held out, and the pairs taken from them.
NUM_FAMILIES = {"test_sets": 14, "val_sets": 7}
NUM_HELD_OUT = {"test_sets": 2_500, "val_sets": 1_500}
# Families much larger would take too much from the pool.
FAMILY_SIZES = range(300, 4_001)
_MAX_WORDS = 6
_ICONS = (sources.MONO_ICON, sources.COLOUR_ICON)
NUM_SHARDS = 16
_BLOCK_SIZE = 4_096  # pictures compared at a time with all that are held out


def build(data, out, descriptions, seed=SEED):
    """Writes all splits, the vocabulary and, last, stats.json.

    Args:
        data: folder of the whole data set.
        out: folder to write to; left alone if it has the data.
        descriptions: iconify's description of each set.
        seed: of what is held out, apart and curated; the published results
            have `SEED`.

    Raises:
        RuntimeError: if the folder has the data of another seed.
    """
    stats = out / "stats.json"
    if stats.exists():
        made = json.loads(stats.read_text(encoding="utf-8"))["seed"]
        if made != seed:
            raise RuntimeError(
                f"`--split` must be {made}, as '{out}' was made with it. "
                f"Received: {seed}. Name another folder with `--out`."
            )
        return
    splits, foreign, dropped = split(data, seed)
    out.mkdir(parents=True, exist_ok=True)
    pool = splits.pop("pool")
    part, splits["apart"] = apart(pool, seed)
    splits["apart_permissive"] = [
        record
        for record in splits["apart"]
        if not sources.objection(record.row, descriptions)
    ]
    full.write_vocabulary(out, (*pool, *splits["curated"]))
    sizes = {name: len(records) for name, records in splits.items()}
    for name, records in splits.items():
        shards.write(out, name, records, 1)
    for kind, records in (("pool", pool), ("part", part)):
        for level in LEVELS[kind]:
            noisy = noise.add(records, level / 100, foreign)
            pools = {f"{kind}{level:02d}": noisy}
            if level:
                clean = [record for record in noisy if not record.noise]
                pools[f"{CLEAN[kind]}{level:02d}"] = clean
            for name, some in pools.items():
                (out / name).mkdir(exist_ok=True)
                shards.write(out / name, "pool", some, NUM_SHARDS)
            counts = collections.Counter(record.noise for record in noisy)
            sizes[f"{kind}{level:02d}"] = {
                label or "pairs": counts[label] for label in sorted(counts)
            }
    facts = {
        "seed": seed,
        "sizes": sizes,
        "held_out": {
            name: sorted({record.row.style for record in splits[name]})
            for name in NUM_FAMILIES
        },
        "dropped": dropped,
        "noise": noise.CRAWL,
    }
    stats.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def split(data, seed):
    """Splits the whole data set; see `build`.

    Returns:
        `{split: list of selection.Record}` with a `pool` without noise, the
        records of another domain, and counts of dropped pictures by reason.
    """
    records = {
        name: [
            record
            for file in sorted(data.glob(f"{name}-*.tfrecord"))
            for record in shards.read(file)
        ]
        for name in ("pool", "val_concept", "test_concept", "test_style")
    }
    everything = records.pop("pool")
    held_out = families(everything, seed)
    of_split = {
        style: name for name, styles in held_out.items() for style in styles
    }
    parts = collections.defaultdict(list)
    for record in everything:
        row = record.row
        if row.style in of_split:
            name = of_split[row.style]
        elif row.style == VAL_STYLE:
            name = "val_style"
        else:
            name = "foreign" if row.kind == sources.LOGO else "pool"
        parts[name].append(record)
    foreign, pool = _sampled(parts["foreign"], seed), parts["pool"]
    splits = records | {
        "val_style": parts["val_style"],
        **{
            name: _distinct(parts[name], count, seed)
            for name, count in NUM_HELD_OUT.items()
        },
    }
    tests = [record for some in splits.values() for record in some]
    is_copy = copies(pool, tests)
    pool = [
        record for record, drop in zip(pool, is_copy, strict=True) if not drop
    ]
    sampled = _sampled(pool, seed)
    candidates = [record for record in sampled if _is_plain(record.row)]
    for count in FEWER_CURATED:
        splits[f"curated{count}"] = candidates[:count]
    splits["curated"] = candidates[:NUM_CURATED]
    taken = {record.identifier for record in splits["curated"]}
    splits["pool"] = [
        record for record in pool if record.identifier not in taken
    ]
    dropped = {"copies of a held-out picture": int(sum(is_copy))}
    return splits, foreign, dropped


def apart(pool, seed=SEED):
    """Cuts a pool without noise into a learner's part and a reference's.

    Returns:
        Records of `PART` of the families, and those of the others whose
        pictures are not among these; equal pictures have equal files.
    """
    parts = {True: [], False: []}
    for record in pool:
        name = f"{seed}|apart|{family(record.row.style)}"
        share = hashlib.sha256(name.encode()).digest()[0] / 256
        parts[share < PART].append(record)
    known = {record.png for record in parts[True]}
    others = [record for record in parts[False] if record.png not in known]
    return parts[True], others


def families(records, seed):
    """Icon sets to hold out, `{split: list of styles}`, whole families.

    Sets of a family, such as fa6-solid and fa6-brands, share their drawings.
    """
    sizes = collections.Counter(
        record.row.style for record in records if record.row.kind in _ICONS
    )
    of_family = collections.defaultdict(list)
    for style in sizes:
        of_family[family(style)].append(style)
    fitting = sorted(
        (
            name
            for name, styles in of_family.items()
            if sum(map(sizes.get, styles)) in FAMILY_SIZES
        ),
        key=lambda name: hashlib.sha256(f"{seed}|{name}".encode()).digest(),
    )
    found, start = {}, 0
    for split_name, count in NUM_FAMILIES.items():
        some = fitting[start : start + count]
        found[split_name] = [
            style for name in some for style in of_family[name]
        ]
        start += count
    return found


def copies(records, held_out):
    """Whether each picture copies a held-out picture, bool [records]."""
    # [held-out, 588]
    others = np.stack([_shape(record) for record in held_out])
    found = np.zeros(len(records), bool)
    for start in range(0, len(records), _BLOCK_SIZE):
        block = records[start : start + _BLOCK_SIZE]
        shapes = np.stack([_shape(record) for record in block])
        limits = [selection.COPY_ABOVE[record.row.kind] for record in block]
        closest = (shapes @ others.T).max(axis=1)
        found[start : start + len(block)] = closest > limits
    return found


def family(style):
    """The family of an icon set: what its name begins with."""
    return re.sub(r"\d+$", "", style.split("-")[0])


def _distinct(records, count, seed):
    """Plain pairs with distinct captions, sampled."""
    first = {}
    for record in _sampled(records, seed):
        if _is_plain(record.row):
            first.setdefault(record.row.captions[0].lower(), record)
    return list(first.values())[:count]


def _sampled(records, seed):
    """Records in a pseudo-random order that depends on each alone."""
    return selection.shuffled(records, "web", seed)


def _is_plain(row):
    """Whether it is an icon with a name of a few words."""
    words = re.findall(r"[a-z]+|\d+", row.captions[0].lower())
    return (
        row.kind in _ICONS
        and 1 <= len(words) <= _MAX_WORDS
        and any(len(word) > 2 and word.isalpha() for word in words)
    )


def _shape(record):
    return pictures.shape_vector(pictures.decode(record.png))

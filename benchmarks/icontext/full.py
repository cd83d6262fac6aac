"""The whole data set: everything that the packages hold, in five splits.

`reference` is small and clean, emoji art in two styles; `pool` is everything
else, large and noisy; `val_concept` and `test_concept` have held-out concepts
in every emoji style; `test_style` has known concepts in a style that no
training split has.

The sets of the pool are rendered in parallel. Duplicates between sets are
dropped when the sets are merged.
"""

import collections
import concurrent.futures
import functools
import json
import multiprocessing
import os

import tqdm

from benchmarks.icontext import concepts, manifest, packages, selection, sources

SEED = 0
REFERENCE_STYLES = ("noto", sources.FLUENT_3D_STYLE)
POOL_STYLES = (
    "twemoji",
    "openmoji",
    "fluent-emoji-flat",
    "emojione",
    "noto-v1",
    "fluent-emoji",
)
TEST_STYLE = "fxemoji"
NUM_POOL_SHARDS = 16
VOCABULARY_SIZE = 8192

_BLOCK_SIZE = 512  # rows that the sieve compares at a time


def build(cache, out, jobs=1):
    """Write shards, vocabulary, stats.json and licences.

    Args:
        cache: folder that `packages.fetch` filled.
        out: folder to write to; left alone if it has this data set.
        jobs: processes that render.

    Raises:
        FileExistsError: another data set is there, which may have runs.
        FileNotFoundError: a package is missing.
    """
    packages.path(cache, packages.ICONIFY)  # or what to do without it
    settings = {
        "seed": SEED,
        "split_salt": concepts.SPLIT_SALT,
        "size": selection.SIZE,
    }
    if is_built(out, settings, manifest.versions()):
        return
    sieve = selection.Sieve()
    splits = _curated(cache, sieve)
    styles, left_out = _pool_styles(cache)
    rendered = _render_pool(cache, sieve.held_out, styles, jobs)
    splits["pool"] = merged(rendered, splits, sieve.drops)
    out.mkdir(parents=True, exist_ok=True)
    write_vocabulary(out, (*splits["pool"], *splits["reference"]))
    manifest.write(
        out, splits, settings, sieve.drops, left_out, NUM_POOL_SHARDS
    )


def is_built(out, settings, versions):
    """Returns whether `out` has this data set; Python versions may differ.

    Raises:
        FileExistsError: it has another data set.
    """
    path = out / "stats.json"
    if not path.exists():
        return False
    stats = json.loads(path.read_text(encoding="utf-8"))
    there = {**stats["settings"], **stats["versions"], "python": None}
    if there != {**settings, **versions, "python": None}:
        raise FileExistsError(
            f"{str(out)!r} has a data set of other settings or versions; name "
            "another folder with --work"
        )
    return True


def _curated(cache, sieve):
    """Every split but the pool, `{split: list of selection.Record}`."""
    table = sources.load_concepts(cache)
    every_style = (*REFERENCE_STYLES, *POOL_STYLES, TEST_STYLE)
    splits = {}
    for split, styles, part in (
        ("val_concept", every_style, "val"),
        ("test_concept", every_style, "test"),
        ("test_style", (TEST_STYLE,), "train"),
        ("reference", REFERENCE_STYLES, "train"),
    ):
        rows = [
            row
            for row in sources.emoji_of_part(cache, table, styles, part)
            if row.license not in sources.NONCOMMERCIAL_LICENSES
            # A flag is the same picture in every style.
            and (split, table[row.concept].category) != ("test_style", "Flags")
        ]
        splits[split] = list(sieve.accept(tqdm.tqdm(rows, split), split))
    return splits


def _pool_styles(cache):
    """Styles in the order of the pool, and counts of icons left out."""
    left_out = collections.Counter()
    styles = []
    for style in (*POOL_STYLES, *sources.icon_sets(cache)):
        description = sources.load_collections(cache)[style]
        license_id = description["license"].get("spdx", "")
        if license_id not in sources.NONCOMMERCIAL_LICENSES:
            styles.append(style)
        elif style not in POOL_STYLES:
            left_out[license_id or "none"] += description["total"]
    return [*styles, sources.CLIP_ART_STYLE], left_out


def _render_pool(cache, held_out, styles, jobs):
    """(records, drops) of each style."""
    descriptions = sources.load_collections(cache)
    # Largest first, and before them clip art, which is slow, so that all
    # processes end at about the same time.
    order = sorted(
        styles,
        key=lambda style: (
            -descriptions[style]["total"] if style in descriptions else -1e6
        ),
    )
    render = functools.partial(_render, os.fspath(cache), held_out)
    context = multiprocessing.get_context("spawn")  # TensorFlow can't fork
    with concurrent.futures.ProcessPoolExecutor(jobs, context) as executor:
        made = tqdm.tqdm(executor.map(render, order), "sets", len(order))
        found = dict(zip(order, made, strict=True))
    return [found[style] for style in styles]


def _render(cache, held_out, style):
    """Records of a style, and the counts of dropped rows by reason."""
    if style == sources.CLIP_ART_STYLE:
        rows = sources.clip_art_rows(cache)
    elif style in POOL_STYLES:
        table = sources.load_concepts(cache)
        rows = sources.emoji_of_part(cache, table, (style,), "train")
    else:
        rows = sources.icon_rows(cache, style)
    sieve = selection.Sieve(held_out=held_out)
    return list(sieve.accept(rows, "pool", _BLOCK_SIZE)), sieve.drops


def merged(rendered, splits, drops):
    """Merges the styles of the pool and drops pairs that occur twice.

    Args:
        rendered: (records, drops) of each style.
        splits: records of the other splits.
        drops: counter that is added to.
    """
    # Equal pixels have equal files, since all are encoded the same way.
    pairs = {
        (record.png, record.row.captions[0])
        for records in splits.values()
        for record in records
    }
    pool = []
    for records, dropped in rendered:
        drops.update(dropped)
        for record in records:
            pair = record.png, record.row.captions[0]
            if pair in pairs:
                drops["duplicate pair"] += 1
            else:
                pairs.add(pair)
                pool.append(record)
    return pool


def write_vocabulary(out, records):
    """Writes vocab.txt, from the records of the training splits."""
    # They import TensorFlow.
    from jest_tf.data import tokenizers, vocabularies

    captions = (text for record in records for text in record.row.captions)
    vocabulary = vocabularies.build_wordpiece_vocabulary(
        captions, VOCABULARY_SIZE
    )
    tokenizers.WordPieceTokenizer(vocabulary, 1).save(os.fspath(out))

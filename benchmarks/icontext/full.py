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
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import pathlib

import tqdm

from benchmarks.icontext import concepts, manifest, selection, sources

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

_BLOCK_SIZE = 512  # rows that the sieve compares with held-out ones at a time
# Rows of the pool sets that have no description, for the progress alone.
_NUM_EMOJI, _NUM_CLIP_ART = 1_600, 7_500


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a build; with the versions they determine its bytes.

    Attributes:
        size: side of the pictures in pixels.
        permissive_only: leave out what asks for more than a notice.
    """

    size: int = 32
    permissive_only: bool = False

    def admits(self, license_id):
        """Returns whether pictures under this licence are taken."""
        if self.permissive_only:
            return license_id in sources.PERMISSIVE_LICENSES
        return license_id not in sources.NONCOMMERCIAL_LICENSES


def build(cache, out, settings, *, jobs=1):
    """Write shards, vocabulary, stats.json, tables and licences.

    Args:
        cache: folder that `packages.fetch` filled.
        out: folder to write to; left alone if it has this data set.
        settings: `Settings`.
        jobs: processes that render.

    Raises:
        FileExistsError: another data set is there.
        FileNotFoundError: a package is missing.
    """
    out = pathlib.Path(out)
    about = {
        "settings": {
            "seed": SEED,
            "num_colours": 0,
            "split_salt": concepts.SPLIT_SALT,
            **dataclasses.asdict(settings),
        },
        "versions": manifest.versions(cache),
    }
    if is_built(out, about):
        return
    sieve = selection.Sieve(size=settings.size, num_colours=0)
    splits = _curated(cache, settings, sieve)
    styles, left_out = _pool_styles(cache, settings)
    render = functools.partial(
        _render, os.fspath(cache), settings.size, sieve.held_out
    )
    rendered = _render_pool(render, styles, jobs)
    pool = merged([rendered[style] for style in styles], splits, sieve.drops)
    splits["pool"] = pool
    out.mkdir(parents=True, exist_ok=True)
    _write_vocabulary(out, (*splits["pool"], *splits["reference"]))
    about |= {
        "dropped": dict(sorted(sieve.drops.items())),
        "left_out": dict(sorted(left_out.items())),
    }
    manifest.write(
        cache, out, splits, about, seed=SEED, num_pool_shards=NUM_POOL_SHARDS
    )


def is_built(out, about):
    """Returns whether `out` has this data set; Python versions may differ.

    Raises:
        FileExistsError: it has another data set, which may have runs.
    """
    try:
        stats = json.loads((out / "stats.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    there, wanted = (
        one["settings"]
        | {name: one["versions"][name] for name in ("npm", "debian")}
        for one in (stats, about)
    )
    other = [
        f"{name} is {there.get(name)!r}, wanted is {value!r}"
        for name, value in wanted.items()
        if there.get(name) != value
    ]
    if other:
        raise FileExistsError(
            f"{str(out)!r} has a data set of other settings: "
            f"{'; '.join(other)}. Name another folder with --out, or remove "
            "it with all that was made of it"
        )
    return True


def _curated(cache, settings, sieve):
    """Every split but the pool, `{split: list of selection.Record}`."""
    table = sources.load_concepts(cache)
    styles = (*REFERENCE_STYLES, *POOL_STYLES, TEST_STYLE)
    rows = {
        style: [
            row
            for row in sources.emoji_rows(cache, table, style)
            if settings.admits(row.license)
        ]
        for style in styles
    }

    def part(styles, name):
        return [
            row
            for style in styles
            for row in rows[style]
            if table[row.concept].split == name
        ]

    chosen = {
        "val_concept": part(styles, "val"),
        "test_concept": part(styles, "test"),
        # A flag is the same picture in every style.
        "test_style": [
            row
            for row in part((TEST_STYLE,), "train")
            if table[row.concept].category != "Flags"
        ],
        "reference": part(REFERENCE_STYLES, "train"),
    }
    splits = {}
    for split, candidates in chosen.items():
        # One at a time, as held-out splits require.
        records = (
            sieve.accept(row, split) for row in tqdm.tqdm(candidates, split)
        )
        splits[split] = [record for record in records if record is not None]
    return splits


def _pool_styles(cache, settings):
    """`{style: rows to expect}` in pool order, and counts of those left out."""
    descriptions = sources.load_collections(cache)
    left_out = collections.Counter()
    styles = {}
    for style in (*POOL_STYLES, *sources.icon_sets(cache)):
        description = descriptions[style]
        license_id = description["license"].get("spdx", "")
        if settings.admits(license_id):
            is_emoji = style in POOL_STYLES
            styles[style] = _NUM_EMOJI if is_emoji else description["total"]
        elif style not in POOL_STYLES:
            left_out[license_id or "none"] += description["total"]
    styles[sources.CLIP_ART_STYLE] = _NUM_CLIP_ART
    return styles, left_out


def _render_pool(render, styles, jobs):
    """`{style: (records, drops)}`."""
    # Largest first, so that all processes end at about the same time.
    order = sorted(styles, key=lambda style: (-styles[style], style))
    context = multiprocessing.get_context("spawn")  # TensorFlow can't fork
    found = {}
    with (
        concurrent.futures.ProcessPoolExecutor(jobs, context) as executor,
        tqdm.tqdm(total=sum(styles.values()), desc="pool") as progress,
    ):
        for style, made in zip(order, executor.map(render, order), strict=True):
            found[style] = made
            progress.update(styles[style])
    return found


def _render(cache, size, held_out, style):
    """Records of a style, and the counts of dropped rows by reason."""
    sieve = selection.Sieve(size=size, num_colours=0, held_out=held_out)
    rows = _rows_of_style(cache, style)
    # Blocks, until there is an empty one.
    blocks = iter(lambda: list(itertools.islice(rows, _BLOCK_SIZE)), [])
    records = [
        dataclasses.replace(
            record, row=dataclasses.replace(record.row, drawing=None)
        )
        for block in blocks
        for record in sieve.accept_all(block, "pool")
        if record is not None
    ]
    return records, sieve.drops


def _rows_of_style(cache, style):
    if style == sources.CLIP_ART_STYLE:
        yield from sources.clip_art_rows(cache)
    elif style in POOL_STYLES:
        table = sources.load_concepts(cache)
        for row in sources.emoji_rows(cache, table, style):
            if table[row.concept].split == "train":
                yield row
    else:
        yield from sources.icon_rows(cache, style)


def merged(rendered, splits, drops):
    """Merges the styles of the pool and drops pairs that occur twice.

    Args:
        rendered: (records, drops) of each style.
        splits: records of the other splits.
        drops: counter that is added to.
    """
    others = [record for records in splits.values() for record in records]
    # Equal pixels have equal files, since all are encoded the same way.
    pairs = {(record.png, record.row.captions[0]) for record in others}
    identifiers = {record.identifier for record in others}
    pool = []
    for records, dropped in rendered:
        drops.update(dropped)
        for record in records:
            pair = record.png, record.row.captions[0]
            if pair in pairs:
                drops["duplicate pair"] += 1
                continue
            if record.identifier in identifiers:
                raise ValueError(f"two rows have id {record.identifier}")
            pairs.add(pair)
            identifiers.add(record.identifier)
            pool.append(record)
    return pool


def _write_vocabulary(out, records):
    """Writes the vocabulary of all runs, from the training splits."""
    from jest_tf.data import tokenizers  # imports TensorFlow

    captions = (text for record in records for text in record.row.captions)
    vocabulary = tokenizers.build_wordpiece_vocabulary(
        captions, VOCABULARY_SIZE
    )
    tokenizers.WordPieceTokenizer(vocabulary, 1).save(os.fspath(out))

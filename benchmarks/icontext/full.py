"""The whole data set: everything that the packages hold, in five splits.

`reference` is small and clean, emoji art in two styles; `pool` is everything
else, large and noisy; `val_concept` and `test_concept` have held-out concepts
in every emoji style; `test_style` has known concepts in a style that no
training split has.

Every set of the pool is rendered on its own, in some process, into a part
file. Parts that are there are not made again, so a build that was stopped goes
on. Duplicates between sets are found when the parts are put together.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil

from benchmarks.icontext import (
    concepts,
    manifest,
    pictures,
    selection,
    sources,
)

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
# What the sieve counts less than a pool set's description promises: hidden
# icons, skin tones and held-out concepts. Only the time left needs them.
_NUM_EMOJI = 1_600
_NUM_CLIP_ART = 7_500


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a build depends on, versions apart.

    Attributes:
        size: side of the pictures in pixels.
        permissive_only: leave out what asks for more than a notice.
    """

    size: int = 32
    permissive_only: bool = False

    def admits(self, license_id):
        """Whether pictures under this licence are taken."""
        if self.permissive_only:
            return license_id in sources.PERMISSIVE_LICENSES
        return license_id not in sources.NONCOMMERCIAL_LICENSES


def build(cache, out, settings, *, jobs=1, say=None):
    """Write the data set: shards, stats.json, tables and licences.

    Args:
        cache: folder that `packages.fetch` filled.
        out: folder to write to.
        settings: `Settings`.
        jobs: processes that render.
        say: called with lines of progress, or `None`.

    Raises:
        FileExistsError: another data set is there.
        FileNotFoundError: a package is missing.
        ModuleNotFoundError: what draws is missing.
    """
    say = say or (lambda line: None)
    out = pathlib.Path(out)
    pictures.libraries()
    origin = {
        "settings": {
            "seed": SEED,
            "num_colours": 0,
            "split_salt": concepts.SPLIT_SALT,
            **dataclasses.asdict(settings),
        },
        "versions": manifest.versions(cache),
    }
    if _is_built(out, origin):
        say(f"{str(out)!r} is there")
        return
    sieve = selection.Sieve(size=settings.size, num_colours=0)
    table = sources.load_concepts(cache)
    splits = _curated(cache, table, settings, sieve, say)
    styles, left_out = _pool_styles(cache, settings)
    parts = out / f"parts-{_digest(origin)}"
    parts.mkdir(parents=True, exist_ok=True)
    worker = _Worker(os.fspath(cache), parts, settings.size, sieve.held_out)
    _render_pool(worker, styles, jobs, say)
    splits["pool"] = _merged(parts, styles, splits, sieve.drops)
    say("making the vocabulary")
    _write_vocabulary(out, (*splits["pool"], *splits["reference"]))
    say("writing the shards")
    _write(
        cache,
        out,
        splits,
        origin
        | {
            "dropped": dict(sorted(sieve.drops.items())),
            "left_out": dict(sorted(left_out.items())),
        },
    )
    shutil.rmtree(parts)
    say(f"{sum(map(len, splits.values()))} pairs in {str(out)!r}")


def _is_built(out, origin):
    """Whether this data set is there, drawn by whatever versions in Python.

    Raises:
        FileExistsError: another one is, which runs may have been made of.
    """
    try:
        stats = json.loads((out / "stats.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    is_, wanted = (
        one["settings"]
        | {name: one["versions"][name] for name in ("npm", "debian")}
        for one in (stats, origin)
    )
    other = [
        f"{name} is {is_.get(name)!r}, wanted is {wanted[name]!r}"
        for name in wanted
        if is_.get(name) != wanted[name]
    ]
    if other:
        raise FileExistsError(
            f"{str(out)!r} has a data set of other settings: "
            f"{'; '.join(other)}. Name another folder with --out, or remove "
            "it with all that was made of it"
        )
    return True


def _digest(origin):
    text = json.dumps(origin, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _curated(cache, table, settings, sieve, say):
    """Every split but the pool, `{split: list of selection.Record}`."""
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
        say(f"{split}: {len(candidates)} pictures")
        # One by one, because the held-out splits need that.
        records = (sieve.accept(row, split) for row in candidates)
        splits[split] = [record for record in records if record is not None]
    return splits


def _pool_styles(cache, settings):
    """`{style: rows to expect}` in the order of the pool, and what is not."""
    descriptions = sources.load_collections(cache)
    left_out = collections.Counter()
    styles = {}
    for style in POOL_STYLES:
        if settings.admits(descriptions[style]["license"].get("spdx", "")):
            styles[style] = _NUM_EMOJI
    for style in sources.icon_sets(cache):
        description = descriptions[style]
        license_id = description["license"].get("spdx", "")
        if settings.admits(license_id):
            styles[style] = description["total"]
        else:
            left_out[license_id or "none"] += description["total"]
    styles[sources.CLIP_ART_STYLE] = _NUM_CLIP_ART
    return styles, left_out


def _render_pool(worker, styles, jobs, say):
    progress = selection.Progress(say, sum(styles.values()), "pool pictures")
    # The largest first, so that no process is left with one at the end.
    order = sorted(styles, key=lambda style: (-styles[style], style))
    context = multiprocessing.get_context("spawn")  # TensorFlow can't fork
    with contextlib.ExitStack() as stack:
        run = map
        if jobs > 1:
            executor = stack.enter_context(
                concurrent.futures.ProcessPoolExecutor(jobs, context)
            )
            run = executor.map
        for style, _ in zip(order, run(worker.render, order), strict=True):
            progress.advance(styles[style])


@dataclasses.dataclass(frozen=True)
class _Worker:
    """What a process needs to render a set of the pool."""

    cache: str
    parts: pathlib.Path
    size: int
    held_out: selection.HeldOut

    def render(self, style):
        """Write the part file of a style, unless it is there."""
        from benchmarks.icontext import shards  # imports TensorFlow

        done = _drops_file(self.parts, style)
        if done.exists():
            return
        sieve = selection.Sieve(
            size=self.size, num_colours=0, held_out=self.held_out
        )
        rows = _rows_of_style(self.cache, style)
        # Blocks, until there is an empty one.
        blocks = iter(lambda: list(itertools.islice(rows, _BLOCK_SIZE)), [])
        records = (
            record
            for block in blocks
            for record in sieve.accept_all(block, "pool")
            if record is not None
        )
        shards.write(_part_file(self.parts, style), records)
        # Comes last: a part with its counts is whole.
        part = done.with_suffix(".part")
        part.write_text(json.dumps(sieve.drops))
        part.replace(done)


def _part_file(parts, style):
    return parts / f"{style}.tfrecord"


def _drops_file(parts, style):
    return parts / f"{style}.json"


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


def _merged(parts, styles, splits, drops):
    """Records of all parts without the pairs that occur twice."""
    from benchmarks.icontext import shards  # imports TensorFlow

    # Equal pixels have equal files, since all are encoded the same way.
    pairs = {
        (record.png, record.row.captions[0])
        for records in splits.values()
        for record in records
    }
    identifiers = {
        record.identifier for records in splits.values() for record in records
    }
    pool = []
    for style in styles:
        drops.update(json.loads(_drops_file(parts, style).read_text()))
        for record in shards.read(_part_file(parts, style)):
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
    """vocab.txt, of what may be trained on; one for all runs."""
    from jest_tf.data import tokenizers  # imports TensorFlow

    captions = (text for record in records for text in record.row.captions)
    vocabulary = tokenizers.build_wordpiece_vocabulary(
        captions, VOCABULARY_SIZE
    )
    tokenizers.WordPieceTokenizer(vocabulary, 1).save(os.fspath(out))


def _write(cache, out, splits, origin):
    from benchmarks.icontext import shards  # imports TensorFlow

    num_bytes = {}
    for split, records in splits.items():
        records = selection.shuffled(records, split, SEED)
        count = NUM_POOL_SHARDS if split == "pool" else 1
        num_bytes[split] = shards.write_split(out, split, records, count)
    manifest.write(cache, out, manifest.statistics(splits, num_bytes) | origin)

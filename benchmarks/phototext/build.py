"""Builds PhotoText from public git repositories.

    python -m benchmarks.phototext.build fetch --work photos-work
    python -m benchmarks.phototext.build data --work photos-work

`fetch` clones the repositories (`repositories.py`) into WORK/clones, and
continues where it stopped; `--clones` names a folder that has them already, as
`owner+name`.
`data` needs no network. `--packed` reads a folder of packed photographs in
place of clones, for development.

| split | pairs |
| --- | --- |
| part00, part30, part70 | the learner's pool; the share whose captions moved |
| part_clean30, part_clean70 | of these, the pairs whose captions did not move |
| part_SOURCE | of part00, the pairs of a source |
| part_shop60 | part_fashion, 60 % of whose titles moved |
| apart_general | all pairs but those of fashion, for a general model |
| apart_checked | 2,000 pairs of apart_fashion |
| apart, apart_SOURCE | the reference's clean pairs, all or of a source |
| test_SOURCE, val_SOURCE | 1,000 and 400 pairs of each source |

`judgements.csv` has what people say of test_flickr8k and captions; packed
photographs have none.

Repeated photographs are left out; what is left out is counted and logged.
Official splits are kept; elsewhere a hash of the title decides, so that no
title is on two sides.
"""

import argparse
import collections
import hashlib
import io
import json
import os
import pathlib
import sys
import tempfile

import numpy as np
import pandas as pd
import tqdm
from PIL import Image, ImageOps

from benchmarks import report
from benchmarks.phototext import repositories, sources
from benchmarks.protocol import records as pairs

SIZE = 64  # pixels, the side of every photograph
LEVELS = (0, 30, 70)
PART = 0.6  # of the pairs in neither tests nor validation
NUM_HELD_OUT = {sources.TEST: 1_000, sources.VALIDATION: 400}
NUM_CHECKED = 2_000
NUM_SHARDS = 4
JUDGEMENTS = "judgements.csv"
SEED = 0
_QUALITY = 90  # of JPEG
# Products stand on white, so they are padded; the others are squashed.
_PADDED = ("fashion", "electronics")
_MAX_PIXELS = 50_000_000
_ORIENTATION = 0x0112  # the tag in EXIF


def main(arguments=None):
    """Run a command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("command", choices=("fetch", "data"))
    add("--work", type=pathlib.Path, default="photos-work")
    add("--clones", type=pathlib.Path, help="of repositories (WORK/clones)")
    add("--packed", type=pathlib.Path, help="folder of packed photographs")
    add("--split", type=int, default=SEED, help="seed of the splits (0)")
    options = parser.parse_args(arguments)
    clones = options.clones or options.work / "clones"
    try:
        if options.command == "fetch":
            repositories.fetch(clones)
        else:
            build(
                options.work / "photos", clones, options.packed, options.split
            )
    except (OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{options.command}: done, in {options.work}", file=sys.stderr)


def build(out, clones, packed=None, seed=SEED):
    """Writes all splits, the vocabulary and stats.json, all or nothing.

    Args:
        out: folder to make; left alone if it has the data.
        clones: folder of the clones.
        packed: folder of the packed photographs, in place of clones.
        seed: of the splits.

    Raises:
        RuntimeError: the folder has other data, or a source is damaged.
    """
    made_of = "packed" if packed else "clones"
    if out.exists():
        stats = json.loads((out / "stats.json").read_text(encoding="utf-8"))
        found = stats["seed"], stats["made_of"]
        if found != (seed, made_of):
            raise RuntimeError(
                f"'{out}' must be of split {seed}, made of {made_of}. "
                f"Received: split {found[0]}, made of {found[1]}; name "
                "another folder with `--work`"
            )
        return
    records, dropped = [], {}
    held_out = {}
    for source in sources.SOURCES:
        photos = (
            sources.read_packed(source, packed)
            if packed
            else sources.read(source, clones)
        )
        sieve = Sieve()
        of_source = [
            record
            for photo in tqdm.tqdm(photos, source, unit=" photos", disable=None)
            if (record := sieve.accept(photo))
        ]
        tests, rest = split(of_source, sieve.official, seed)
        dropped[source] = dict(sieve.drops)
        report.log(f"{source}: {len(of_source):,} pairs; left out: {sieve}")
        records += rest
        held_out |= {f"{name}_{source}": some for name, some in tests.items()}
    judged = [] if packed else sources.read_judged(clones)
    records = pairs.shuffled(records, "photos", seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".part-") as folder:
        whole = pathlib.Path(folder) / "data"
        whole.mkdir()
        facts = {"seed": seed, "made_of": made_of, "dropped": dropped}
        tests = held_out[f"{sources.TEST}_flickr8k"]
        if judged:
            facts["judged"] = _write_judged(whole, judged, tests, records)
        _write(whole, records, held_out, seed, facts)
        os.replace(whole, out)


class Sieve:
    """Decodes photographs of a source, and leaves out what cannot be used.

    Attributes:
        drops: counts of what was left out, by reason.
        official: the official split of each record by its id.
    """

    def __init__(self):
        self.drops = collections.Counter()
        self.official = {}
        self._known = set()

    def accept(self, photo):
        """`pairs.Record` of a `sources.Photo`; None if it is left out."""
        if not photo.captions:
            return self._drop("no text")
        try:
            pixels = decode(photo.content, photo.source in _PADDED)
        except (
            *(OSError, SyntaxError, ValueError),
            Image.DecompressionBombError,
        ):
            return self._drop("does not decode")
        if pixels.std() < 1:
            return self._drop("blank")
        digest = hashlib.sha256(pixels.tobytes()).digest()
        if digest in self._known:
            return self._drop("repeated photograph")
        self._known.add(digest)
        record = pairs.Record(
            pairs.Row(
                kind=photo.source,
                # A family of the tests: an article, or the photograph alone.
                style=photo.kind or photo.name,
                source=photo.source,
                license="",
                name=photo.name,
                captions=photo.captions,
            ),
            pairs.identifier_of("photos", photo.source, photo.name),
            _encoded(photo.content, pixels),
        )
        self.official[record.identifier] = photo.split
        return record

    def _drop(self, reason):
        self.drops[reason] += 1

    def __str__(self):
        told = (f"{count} ({why})" for why, count in self.drops.items())
        return ", ".join(told) or "none"


def decode(content, is_padded):
    """The pixels of an image file, uint8 [SIZE, SIZE, 3].

    Args:
        content: its bytes.
        is_padded: keep the proportions on a white ground.

    Raises:
        OSError: it cannot be decoded whole.
        ValueError: it has more than 50 million pixels.
    """
    image = Image.open(io.BytesIO(content))
    if image.width * image.height > _MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("P", "RGBA", "LA"):
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    image = image.convert("RGB")
    if is_padded and image.width != image.height:
        side = max(image.size)
        ground = Image.new("RGB", (side, side), "white")
        corner = (side - image.width) // 2, (side - image.height) // 2
        ground.paste(image, corner)
        image = ground
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _encoded(content, pixels):
    """Bytes of a JPEG; of a file that has the size, its own."""
    image = Image.open(io.BytesIO(content))
    is_upright = image.getexif().get(_ORIENTATION, 1) == 1
    if is_upright and image.format == "JPEG" and image.size == (SIZE, SIZE):
        return content
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def split(records, official, seed):
    """Takes the tests and the validation pairs out of a source.

    Args:
        records: list of `pairs.Record`.
        official: the official split of each by its id, "" if it has none.
        seed: of the splits.

    Returns:
        `{split: list of records}` with distinct titles, and the other records,
        none of which has a title of these.
    """
    records = pairs.shuffled(records, "held out", seed)
    is_official = any(official.values())
    found = {name: {} for name in NUM_HELD_OUT}
    titles = set()
    for record in records:
        title = _title(record)
        for name, count in NUM_HELD_OUT.items():
            is_wanted = official[record.identifier] == name or not is_official
            if is_wanted and len(found[name]) < count and title not in titles:
                found[name][title] = record
                titles.add(title)
                break
    taken = {
        record.identifier for some in found.values() for record in some.values()
    }
    rest = [
        record
        for record in records
        if record.identifier not in taken
        and _title(record) not in titles
        and not official[record.identifier]
    ]
    return {name: list(some.values()) for name, some in found.items()}, rest


def apart(records, seed):
    """Cuts records into a learner's part and a reference's, by title."""
    parts = {True: [], False: []}
    for record in records:
        digest = hashlib.sha256(f"{seed}|{_title(record)}".encode()).digest()
        share = int.from_bytes(digest[:4], "big") / 2**32
        parts[share < PART].append(record)
    return parts[True], parts[False]


def moved(records, level):
    """Records of which a share have each other's captions.

    A higher level moves what a lower one moves.
    """
    order = np.random.default_rng(SEED).permutation(len(records))
    places = order[: round(level * len(records))]
    found = list(records)
    for place, record in zip(places, pairs.moved(records, places), strict=True):
        found[place] = record
    return found


def _write(folder, records, held_out, seed, facts):
    part, others = apart(records, seed)
    pairs.write_vocabulary(folder, others + part)
    splits = dict(held_out)
    splits["apart"] = others
    pools = {f"part{level:02d}": moved(part, level / 100) for level in LEVELS}
    for level in LEVELS[1:]:
        pools[f"part_clean{level:02d}"] = [
            record for record in pools[f"part{level:02d}"] if not record.noise
        ]
    for source in sources.SOURCES:
        splits[f"apart_{source}"] = _of(others, source)
        pools[f"part_{source}00"] = _of(part, source)
    pools["part_shop60"] = moved(_of(part, "fashion"), 0.6)
    splits["apart_checked"] = splits["apart_fashion"][:NUM_CHECKED]
    splits["apart_general"] = [
        record for record in others + part if record.row.source != "fashion"
    ]
    for name, some in splits.items():
        pairs.write(folder, name, some, 1)
    for name, some in pools.items():
        (folder / name).mkdir()
        pairs.write(folder / name, "pool", some, NUM_SHARDS)
    facts["sizes"] = {
        name: len(some) for name, some in (splits | pools).items()
    }
    facts["commits"] = {
        repository.name: repository.commit for repository in repositories.ALL
    }
    text = json.dumps(facts, indent=1) + "\n"
    (folder / "stats.json").write_text(text, encoding="utf-8")


def _write_judged(folder, judged, tests, others):
    """Writes the judged pairs of tests; returns counts for stats.json."""
    tests, others = (
        {record.row.name for record in _of(some, "flickr8k")}
        for some in (tests, others)
    )
    kept = [pair for pair in judged if pair.photograph in tests]
    table = pd.DataFrame(kept, columns=sources.Judged._fields)
    table["ratings"] = [" ".join(map(str, pair.ratings)) for pair in kept]
    table.to_csv(folder / JUDGEMENTS, index=False)
    photographs = {pair.photograph for pair in judged}
    return table["judges"].value_counts().to_dict() | {
        "photographs": len(photographs),
        "left out, not of the tests": len(photographs - tests),
        "of these, in training": len(photographs & others),
    }


def _of(records, source):
    return [record for record in records if record.row.source == source]


def _title(record):
    return record.row.captions[0].lower()


if __name__ == "__main__":
    main()

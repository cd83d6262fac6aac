"""Noise of the kinds that a crawl has, in a seeded share of a pool.

| kind | share of the noise | what takes a pair's place |
| --- | --- | --- |
| moved | 10/14 | the pair with the captions of another picture |
| uninformative | 2/14 | the pair with a file name or a hash as its caption |
| wrong domain | 1/14 | a logo with the name of its brand |
| near-duplicate | 1/14 | one of a few pairs again, its picture shifted |

The pool keeps its size. A record's `noise` names the kind, and is empty where
the pair is what it was: a reader can see it, a run does not look at it.
"""

import hashlib

import numpy as np

from benchmarks.icontext import pictures, selection

MOVED = "moved"
UNINFORMATIVE = "uninformative"
WRONG_DOMAIN = "wrong domain"
NEAR_DUPLICATE = "near-duplicate"
# Kinds with their shares of the noise.
CRAWL = {
    MOVED: 10 / 14,
    UNINFORMATIVE: 2 / 14,
    WRONG_DOMAIN: 1 / 14,
    NEAR_DUPLICATE: 1 / 14,
}
# Pictures that are repeated: each as often as the level asks.
_NUM_REPEATED = 500
_MAX_SHIFT = 2  # pixels, to any side
_SEED = 0


def add(records, level, foreign):
    """Replaces a share of a pool by noise.

    Args:
        records: list of `selection.Record`, the pool.
        level: share that becomes noise, in [0, 1].
        foreign: records of another domain.

    Returns:
        Records in the order of `records`, with `noise` where it is some. A
        higher level keeps the noisy pairs of a lower level noisy.

    Raises:
        ValueError: there are too few foreign records.
    """
    random = np.random.default_rng(_SEED)
    # Which kind a pair would get does not depend on the level.
    order = random.permutation(len(records))
    bounds = np.cumsum(list(CRAWL.values()))
    kind_of = np.searchsorted(bounds, random.random(len(records)), "right")
    kind_of = np.minimum(kind_of, len(CRAWL) - 1)[order]
    chosen = order[: round(level * len(records))]
    places = {
        kind: chosen[kind_of[: len(chosen)] == number]
        for number, kind in enumerate(CRAWL)
    }
    if len(foreign) < len(places[WRONG_DOMAIN]):
        raise ValueError(
            "`foreign` must have a record for each pair that becomes noise of "
            f"another domain, {len(places[WRONG_DOMAIN]):,}. Received: "
            f"{len(foreign):,}"
        )
    found = list(records)
    for kind, made in (
        (MOVED, moved(records, places[MOVED])),
        (UNINFORMATIVE, _uninformative(records, places[UNINFORMATIVE])),
        (WRONG_DOMAIN, foreign),
        (NEAR_DUPLICATE, _near_duplicate(records, places[NEAR_DUPLICATE])),
    ):
        for place, record in zip(places[kind], made, strict=False):
            found[place] = record._replace(noise=kind)
    return found


def moved(records, places):
    """Records at places with each other's captions.

    A cycle goes through all of them: no picture keeps its captions.
    """
    givers = np.roll(places, 1)
    return [
        _with_captions(records[place], records[giver].row.captions)
        for place, giver in zip(places, givers, strict=True)
    ]


def _uninformative(records, places):
    return [
        _with_captions(records[place], (_uninformative_caption(record),))
        for place in places
        for record in [records[place]]
    ]


def _uninformative_caption(record):
    """A caption that says nothing, by a hash of the record."""
    digest = hashlib.sha256(f"caption|{record.identifier}".encode())
    number = int.from_bytes(digest.digest()[:4], "big")
    forms = (
        f"image {number % 10_000:04d}",
        f"img_{number % 10_000}.png",
        f"icon {number % 1_000}",
        "icon",
        "untitled",
        f"download ({number % 20})",
        digest.hexdigest()[:16],
        f"dsc{number % 100_000:05d}",
    )
    return forms[digest.digest()[4] % len(forms)]


def _near_duplicate(records, places):
    sources = np.random.default_rng(_SEED + 1).permutation(len(records))
    sources = sources[:_NUM_REPEATED]
    return [
        _shifted(records[sources[turn % len(sources)]], turn)
        for turn in range(len(places))
    ]


def _shifted(record, turn):
    """A record again, with its picture shifted and a new id."""
    random = np.random.default_rng([record.identifier, turn])
    pixels = pictures.decode(record.png)
    shift = random.integers(-_MAX_SHIFT, _MAX_SHIFT, 2, endpoint=True)
    png = pictures.encode(np.roll(pixels, shift, (0, 1)))
    row = record.row
    name = f"{row.name}#{turn}"
    return selection.Record(
        row._replace(name=name),
        selection.identifier_of(row.source, row.style, name),
        png,
    )


def _with_captions(record, captions):
    return record._replace(row=record.row._replace(captions=captions))

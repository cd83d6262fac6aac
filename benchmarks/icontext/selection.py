"""Rows to records: sampling, duplicates and leaks.

`Sieve` sees every candidate once, held-out splits first, and yields a record or
counts why there is none. Sampling is by hash, so that the draw from a set does
not depend on any other.
"""

import collections
import hashlib
import itertools
from typing import NamedTuple

import numpy as np

from benchmarks.icontext import pictures, sources

SIZE = 32  # pixels, the side of every picture
HELD_OUT_SPLITS = ("test_concept", "val_concept", "test_style")
# Correlation with a held-out picture above which a training picture counts as
# a copy of it. Open Clip Art redraws emoji more freely than icon sets do. Emoji
# art obeys the split by concept, and look-alikes with another name (grinning
# cat, grinning cat with smiling eyes) are fair unless they are all but equal.
COPY_ABOVE = {
    sources.EMOJI: 0.995,
    sources.MONO_ICON: 0.97,
    sources.LOGO: 0.97,
    sources.COLOUR_ICON: 0.97,
    sources.CLIP_ART: 0.93,
}


class Record(NamedTuple):
    """A row with its pixels, as it is written."""

    row: sources.Row
    identifier: int  # 63 bits, the same in every build of the same version
    png: bytes
    noise: str = ""  # its kind, of `noise.add`


class Sieve:
    """Renders candidates and rejects blanks, duplicates and leaks.

    Args:
        held_out: held-out pictures that another sieve accepted.
        size: side of the pictures in pixels.

    Attributes:
        drops: counts of rejected rows by reason.
        held_out: pictures accepted into held-out splits, which no training
            picture may copy: `{digest of the pixels: shape vector}`.
    """

    def __init__(self, held_out=(), size=SIZE):
        self.drops = collections.Counter()
        self.held_out = dict(held_out)
        self._size = size
        self._pairs = set()

    def accept(self, rows, split, block_size=1):
        """Yields the record of each row that passes; others count in `drops`.

        Args:
            rows: iterable of `sources.Row`, read as records are asked for.
            split: name of the split. Held-out splits come first.
            block_size: rows of a training split that are compared with held-out
                pictures at a time: more are faster.
        """
        is_held_out = split in HELD_OUT_SPLITS
        held_out = np.array(list(self.held_out.values()))
        rows = iter(rows)
        while block := list(itertools.islice(rows, block_size)):
            rendered = [self._render(row, is_held_out) for row in block]
            rendered = [result for result in rendered if result is not None]
            closest = np.zeros(len(rendered))
            if held_out.size and rendered and not is_held_out:
                # [rows, 588] x [588, pictures] -> [rows]
                shapes = np.stack([shape for *_, shape in rendered])
                closest = (shapes @ held_out.T).max(axis=1)
            for (row, png, digest, shape), value in zip(
                rendered, closest, strict=True
            ):
                pair = digest, row.captions[0]
                if pair in self._pairs:  # within a block
                    self._drop("duplicate pair")
                    continue
                if value > COPY_ABOVE[row.kind]:
                    self._drop(f"leak: copy of a held-out picture ({row.kind})")
                    continue
                self._pairs.add(pair)
                if is_held_out:
                    self.held_out[digest] = shape
                yield Record(
                    row._replace(drawing=None),
                    identifier_of(row.source, row.style, row.name),
                    png,
                )

    def _render(self, row, is_held_out):
        """(row, PNG, digest, shape), or None for a row to drop."""
        try:
            pixels = pictures.render(row.drawing, self._size)
        except ValueError:
            return self._drop("does not render")
        if pixels is None:
            return self._drop("blank")
        digest = hashlib.sha256(pixels.tobytes()).digest()
        if (digest, row.captions[0]) in self._pairs:
            return self._drop("duplicate pair")
        if digest in self.held_out:
            return self._drop(
                "twin of another held-out picture"
                if is_held_out
                else "leak: pixels of a held-out picture"
            )
        png = pictures.encode(pixels)
        return row, png, digest, pictures.shape_vector(pixels)

    def _drop(self, reason):
        self.drops[reason] += 1


def identifier_of(source, style, name):
    """63-bit id of a picture: the start of a hash of where it is from."""
    digest = _digest(source, style, name)
    return int.from_bytes(digest[:8], "big") & (2**63 - 1)


def shuffled(records, split, seed):
    """Records in an order that mixes sources, kinds and concepts."""
    return sorted(
        records, key=lambda record: _digest(seed, split, record.identifier)
    )


def _digest(*parts):
    return hashlib.sha256("|".join(map(str, parts)).encode()).digest()

"""Rows to records: sampling, duplicates and leaks.

`Sieve` sees every candidate once, held-out splits first, and returns a record
or counts why there is none. Sampling is by hash, so that the draw from one set
does not depend on any other.
"""

import collections
import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

from benchmarks.icontext import pictures, sources

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


@dataclasses.dataclass(frozen=True)
class Record:
    """A row with its pixels, as it is written.

    Attributes:
        row: `sources.Row`.
        identifier: 63-bit id, the same in every build of the same version.
        png: file bytes.
    """

    row: sources.Row
    identifier: int
    png: bytes


@dataclasses.dataclass
class _Rendered:
    """A row on its way through the sieve."""

    row: sources.Row
    png: bytes
    digest: bytes
    shape: np.ndarray
    is_copy: bool = False


class HeldOut(NamedTuple):
    """Held-out pictures, which no training picture may copy.

    Attributes:
        digests: SHA-256 of the pixels of each picture.
        shapes: float32 [pictures, 588], `pictures.shape_vector` of each.
    """

    digests: frozenset[bytes]
    shapes: np.ndarray


class Sieve:
    """Renders candidates and rejects blanks, duplicates and leaks.

    Args:
        size: side of the pictures in pixels.
        num_colours: palette of the pictures, 0 for every colour.
        held_out: held-out pictures that another sieve accepted.
    """

    def __init__(self, *, size, num_colours, held_out=None):
        self.drops = collections.Counter()
        self._size = size
        self._num_colours = num_colours
        self._pairs = set()
        digests, shapes = held_out or ((), ())
        self._held_out_digests = set(digests)
        self._held_out_shapes = list(shapes)
        self._held_out_matrix = None  # the same, stacked when needed
        self._identifiers = {}

    @property
    def held_out(self):
        """`HeldOut` of the pictures accepted into held-out splits so far."""
        return HeldOut(
            frozenset(self._held_out_digests), np.stack(self._held_out_shapes)
        )

    def accept(self, row, split):
        """Returns a row's record, or None and counts the reason in `drops`.

        Raises:
            ValueError: two rows have the same id.
        """
        (record,) = self.accept_all([row], split)
        return record

    def accept_all(self, rows, split):
        """Does `accept` for each row, faster; dropped rows are None.

        Held-out rows must come one at a time, since each is compared with
        those before it.
        """
        rendered = [self._render(row, split) for row in rows]
        found = [one for one in rendered if one is not None]
        if split not in HELD_OUT_SPLITS:
            self._mark_copies(found)
        return [one and self._record(one, split) for one in rendered]

    def _render(self, row, split):
        """Returns `_Rendered`, or None for a row to drop."""
        try:
            pixels = pictures.render(row.drawing, self._size)
        except ValueError:
            return self._drop("does not render")
        if pixels is None:
            return self._drop("blank")
        png, pixels = pictures.encode(pixels, self._num_colours)
        digest = hashlib.sha256(pixels.tobytes()).digest()
        if (digest, row.captions[0]) in self._pairs:
            return self._drop("duplicate pair")
        if digest in self._held_out_digests:
            return self._drop(
                "twin of another held-out picture"
                if split in HELD_OUT_SPLITS
                else "leak: pixels of a held-out picture"
            )
        return _Rendered(row, png, digest, pictures.shape_vector(pixels))

    def _mark_copies(self, rendered):
        if not self._held_out_shapes or not rendered:
            return
        if self._held_out_matrix is None:
            self._held_out_matrix = np.stack(self._held_out_shapes)
        # [rows, 588] x [588, pictures] -> [rows]
        shapes = np.stack([one.shape for one in rendered])
        closest = (shapes @ self._held_out_matrix.T).max(axis=1)
        for one, value in zip(rendered, closest, strict=True):
            one.is_copy = value > COPY_ABOVE[one.row.kind]

    def _record(self, rendered, split):
        row = rendered.row
        pair = rendered.digest, row.captions[0]
        if pair in self._pairs:  # within one call
            return self._drop("duplicate pair")
        if rendered.is_copy:
            return self._drop(f"leak: copy of a held-out picture ({row.kind})")
        if split in HELD_OUT_SPLITS:
            self._held_out_digests.add(rendered.digest)
            self._held_out_shapes.append(rendered.shape)
            self._held_out_matrix = None
        self._pairs.add(pair)
        return Record(row, self._identifier(row), rendered.png)

    def _drop(self, reason):
        self.drops[reason] += 1

    def _identifier(self, row):
        identifier = identifier_of(row.source, row.style, row.name)
        other = self._identifiers.setdefault(identifier, row)
        if other is not row:
            raise ValueError(
                f"two rows have id {identifier}: {other.style}/{other.name} "
                f"and {row.style}/{row.name}"
            )
        return identifier


def identifier_of(source, style, name):
    """63-bit id of a picture: the start of a hash of where it is from."""
    digest = hashlib.sha256(f"{source}|{style}|{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & (2**63 - 1)


def sampled(rows, seed):
    """Rows in a pseudo-random order that depends on each row alone."""

    def place(row):
        text = f"{seed}|{row.source}|{row.style}|{row.name}"
        return hashlib.sha256(text.encode()).digest()

    return sorted(rows, key=place)


def shuffled(records, split, seed):
    """Records in an order that mixes sources, kinds and concepts."""

    def place(record):
        text = f"{seed}|{split}|{record.identifier}"
        return hashlib.sha256(text.encode()).digest()

    return sorted(records, key=place)


def quotas(sizes, total, floor=1):
    """Share `total` out among sets in proportion to their sizes.

    Every set gets at least `floor`, or all that it has if that is less; the
    others shrink in proportion. Fractions go to the largest remainders.

    Args:
        sizes: `{name: number of rows}`.
        total: rows to share out.
        floor: least number for a set.

    Returns:
        `{name: quota}`, which adds up to `total`.

    Raises:
        ValueError: the sets have fewer rows than `total`, or the floors
            alone need more.
    """
    least = {name: min(floor, size) for name, size in sizes.items()}
    if not sum(least.values()) <= total <= sum(sizes.values()):
        raise ValueError(
            f"`total` must lie in [{sum(least.values())}, "
            f"{sum(sizes.values())}]. Received: total={total}"
        )
    # Sets whose proportional share is below the floor are settled first; each
    # settled set lowers the shares of the rest.
    settled = {}
    while True:
        free = {name: n for name, n in sizes.items() if name not in settled}
        left = total - sum(settled.values())
        rate = left / max(sum(free.values()), 1)
        small = {n: least[n] for n in free if free[n] * rate < least[n]}
        if not small:
            break
        settled |= small
    shares = {name: int(size * rate) for name, size in free.items()}
    by_remainder = sorted(
        free, key=lambda name: (shares[name] - free[name] * rate, name)
    )
    for name in by_remainder[: left - sum(shares.values())]:
        shares[name] += 1
    return settled | shares

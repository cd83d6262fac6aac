"""Which rows become records: sampling, duplicates and leaks.

`Sieve` sees every candidate once, held-out splits first, and returns a record
or counts why there is none. Sampling is by hash, so that what is drawn from
one set does not depend on any other.
"""

import collections
import dataclasses
import hashlib
import time

import numpy as np

from benchmarks.icontext import pictures, sources

HELD_OUT_SPLITS = ("test_concept", "val_concept")
# Correlation with a held-out picture above which a training picture counts as
# a copy of it. Open Clip Art redraws emoji more freely than icon sets do.
# Emoji art obeys the split by concept; what is left are look-alikes with a
# name of their own (grinning cat, grinning cat with smiling eyes), which are
# fair questions until the pictures are all but equal.
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


class Sieve:
    """Renders candidates and turns away what must not enter the data.

    Args:
        size: side of the pictures in pixels.
        num_colours: palette of the pictures, 0 for every colour.
        report: called with one line of progress now and then, or `None`.
        total: number of records to expect, for the progress.
    """

    def __init__(self, *, size, num_colours, report=None, total=0):
        self.drops = collections.Counter()
        self._size = size
        self._num_colours = num_colours
        self._progress = _Progress(report, total)
        self._pairs = set()
        self._held_out_pixels = set()
        self._held_out_shapes = None  # float32 [pictures, 588]
        self._identifiers = {}

    def accept(self, row, split):
        """The record of a row, or `None` with the reason counted in `drops`.

        Raises:
            ValueError: two rows have the same id.
        """
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
        if digest in self._held_out_pixels:
            return self._drop(
                "twin of another held-out picture"
                if split in HELD_OUT_SPLITS
                else "leak: pixels of a held-out picture"
            )
        shape = pictures.shape_vector(pixels)
        if split in HELD_OUT_SPLITS:
            self._held_out_pixels.add(digest)
            self._add_held_out(shape)
        elif self._is_copy(shape, row.kind):
            return self._drop(f"leak: copy of a held-out picture ({row.kind})")
        self._pairs.add((digest, row.captions[0]))
        self._progress.advance()
        return Record(row, self._identifier(row), png)

    def _drop(self, reason):
        self.drops[reason] += 1

    def _add_held_out(self, shape):
        shape = shape[np.newaxis]
        if self._held_out_shapes is not None:
            shape = np.concatenate([self._held_out_shapes, shape])
        self._held_out_shapes = shape

    def _is_copy(self, shape, kind):
        if self._held_out_shapes is None:
            return False
        return (self._held_out_shapes @ shape).max() > COPY_ABOVE[kind]

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
    # one settled lowers the shares of the rest.
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


class _Progress:
    """A line every few seconds, with the time left."""

    _EVERY_SECONDS = 5.0

    def __init__(self, report, total):
        self._report = report
        self._total = total
        self._done = 0
        self._start = self._last = time.monotonic()

    def advance(self):
        self._done += 1
        now = time.monotonic()
        if self._report is None or now - self._last < self._EVERY_SECONDS:
            return
        self._last = now
        left = (now - self._start) * (self._total / self._done - 1)
        self._report(
            f"{self._done} of {self._total} records, {max(left, 0):.0f} s left"
        )

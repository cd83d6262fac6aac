"""Records at positions of the stream, and others where they cannot be had.

What stands at a position is a pure function of (seed, position) and of the
data: of the record at the position's row, and if that cannot be had, of those
at its substitutes, one after the other (`stream.py`). A record can be had if
its store can read it, it has a caption that is not blank, its picture can be
decoded, and its sidecar, where there is one, has its embeddings. Everything
here runs in Python and NumPy; the pictures of records that turn out whole are
decoded in `pipeline.py`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf.data import fault_log, pictures, preprocessing, stores, stream

# Substitutes that are tried. At a fault rate of 10 %, 16 in a row fail once in
# 1e16 positions.
MAX_ATTEMPTS = 16

NO_CAPTION = stores.Fault("no caption that is not blank")
# What could not be read when its sidecar was written.
NO_EMBEDDING = stores.Fault("no embedding in the sidecar")

# Keeps the choice of a caption apart from other uses of a position.
_CAPTION_SALT = 0x63617074696F6E


class Chunk(NamedTuple):
    """What was read for neighbouring positions.

    Attributes:
        rows: int64 [k], the records in the end.
        attempts: int64 [k], 0, or the number of the substitute.
        pictures: bytes [k], encoded.
        captions: bytes [k], the chosen ones.
        choices: int64 [k], which of the record's captions they are.
    """

    rows: np.ndarray
    attempts: np.ndarray
    pictures: np.ndarray
    captions: np.ndarray
    choices: np.ndarray


class Reader:
    """Reads positions of a stream; may be used by several threads.

    Args:
        store: the records.
        order: `stream.Order` or `stream.Mixture` over them.
        seed: the run's seed, for the choice of captions.
        step_size: positions of a step, which tells the step of one.
        max_pixels: of a picture.
        log: told of the records that cannot be had.
        embedded: rows int64 [k] -> bool [k], which have embeddings in their
            sidecars; None where none are needed.
    """

    def __init__(
        self,
        store: stores.Store,
        order: stream.Order | stream.Mixture,
        *,
        seed: int,
        step_size: int,
        max_pixels: int,
        log: fault_log.FaultLog,
        embedded: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self._store = store
        self._order = order
        self._seed = seed
        self._step_size = step_size
        self._max_pixels = max_pixels
        self._log = log
        self._embedded = embedded

    def read(self, positions: np.ndarray) -> Chunk:
        """Reads, and replaces what is known to be bad before decoding.

        Args:
            positions: int64 [k].

        Raises:
            ValueError: too many records cannot be had.
        """
        rows = self._order.rows(positions)
        chunk = _empty_chunk(rows)
        numbers = caption_numbers(self._seed, positions).tolist()
        bad = []
        for i, (record, number) in enumerate(
            zip(self._records(rows), numbers, strict=True)
        ):
            found = self._choose(record, number)
            if isinstance(found, stores.Fault):
                bad.append((i, found))
            else:
                chunk.pictures[i], chunk.captions[i], chunk.choices[i] = found
        for i, fault in bad:
            self._replace(chunk, i, int(positions[i]), numbers[i], fault)
        self._log.count(len(positions), len(bad))
        return chunk

    def repair(
        self,
        positions: np.ndarray,
        chunk: Chunk,
        missing: np.ndarray,
        sizes: Sequence[int],
    ) -> list[np.ndarray]:
        """Replaces records whose pictures could not be decoded, in place.

        Args:
            positions: int64 [k].
            chunk: what `read` returned for them.
            missing: int64 [m], those of the k that could not be decoded.
            sizes: sides of the pictures to make.

        Returns:
            The pictures in place of the missing ones, uint8 [m, S, S, 3] for
            each size.

        Raises:
            ValueError: too many records cannot be had.
        """
        numbers = caption_numbers(self._seed, positions).tolist()
        decoded = []
        before = int((chunk.attempts > 0).sum())
        for i in missing.tolist():
            image = pictures.decode(chunk.pictures[i], self._max_pixels)
            while isinstance(image, stores.Fault):
                self._replace(chunk, i, int(positions[i]), numbers[i], image)
                image = pictures.decode(chunk.pictures[i], self._max_pixels)
            decoded.append(image)
        self._log.count(0, int((chunk.attempts > 0).sum()) - before)
        # An accelerator must not be waited for, or round otherwise.
        with tf.device("CPU:0"):
            return [
                np.stack(
                    [preprocessing.resize_image(one, size) for one in decoded]
                )
                for size in sizes
            ]

    def _records(self, rows):
        found = self._store.read(rows)
        if self._embedded is not None:
            for i in np.flatnonzero(~self._embedded(rows)).tolist():
                found[i] = NO_EMBEDDING
        return found

    def _choose(self, record, number):
        """(picture, caption, its index) of a record, or a fault."""
        if isinstance(record, stores.Fault):
            return record
        choices = candidates(record.captions)
        if not choices:
            return NO_CAPTION
        picture = pictures.prepare(record.image, self._max_pixels)
        if isinstance(picture, stores.Fault):
            return picture
        choice = choices[number % len(choices)]
        return picture, record.captions[choice], choice

    def _replace(self, chunk, i, position, number, fault):
        """Puts the next substitute that can be had at place i of a chunk."""
        while isinstance(fault, stores.Fault):
            row = int(chunk.rows[i])
            self._report(position, row, fault)
            chunk.attempts[i] += 1
            attempt = int(chunk.attempts[i])
            if attempt > MAX_ATTEMPTS:
                raise ValueError(
                    f"{MAX_ATTEMPTS} records in a row cannot be read in place "
                    f"of one at position {position}, the last "
                    f"{self._store.describe(row)}: {fault.reason}"
                )
            rows = self._order.substitutes(np.array([position]), attempt)
            chunk.rows[i] = rows[0]
            (record,) = self._records(rows)
            fault = self._choose(record, number)
        chunk.pictures[i], chunk.captions[i], chunk.choices[i] = fault

    def _report(self, position, row, fault):
        self._log.add(
            step=position // self._step_size,
            position=position,
            id=int(self._store.ids(np.array([row]))[0]),
            place=self._store.describe(row),
            reason=fault.reason,
        )


def caption_numbers(seed: int, positions: np.ndarray) -> np.ndarray:
    """What chooses a caption at each position; int64 [k], not negative.

    Of m captions that are not blank it is the one at this number modulo m.
    """
    values = stream.uniform_hash(seed, positions, _CAPTION_SALT)
    return (values >> np.uint64(1)).astype(np.int64)


def candidates(captions: Sequence[bytes]) -> list[int]:
    """Which of a record's captions are not blank."""
    return [
        i
        for i, caption in enumerate(captions)
        # Bytes first: decoding is for white space beyond ASCII.
        if caption.strip() and caption.decode("utf-8", "replace").strip()
    ]


def _empty_chunk(rows):
    # Not arrays of type S, which would drop trailing zero bytes.
    return Chunk(
        rows,
        np.zeros(len(rows), np.int64),
        np.empty(len(rows), object),
        np.empty(len(rows), object),
        np.zeros(len(rows), np.int64),
    )

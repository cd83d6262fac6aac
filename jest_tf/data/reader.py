"""Records at positions of the stream, and their replacements.

The example at a position is a pure function of (seed, position) and the data:
the record at the position's row or, if it is unreadable, the first readable
substitute (`data/stream.py`). A readable record can be read by its store, has a
nonblank caption and a picture that decodes and, with sidecars, has embeddings.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jest_tf.data import fault_log, pictures, stores, stream

# Substitutes to try. At a fault rate of 10 %, all 16 fail once in 1e16
# positions.
MAX_ATTEMPTS = 16

NO_CAPTION = stores.Fault("no caption that is not blank")
# The record was unreadable when its sidecar was written.
NO_EMBEDDING = stores.Fault("no embedding in the sidecar")

# Separates caption choice from other uses of a position.
CAPTION_SALT = 0x63617074696F6E


class Chunk(NamedTuple):
    """The records at consecutive positions.

    Attributes:
        rows: int64 [k], row of each record, after replacements.
        attempts: int64 [k], 0, or the number of the substitute.
        pictures: bytes [k], encoded.
        captions: bytes [k], the chosen captions.
        choices: int64 [k], number of the chosen caption in its record.
    """

    rows: np.ndarray
    attempts: np.ndarray
    pictures: np.ndarray
    captions: np.ndarray
    choices: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads positions of a stream; thread-safe.

    Attributes:
        store: the records.
        order: `stream.Order` or `stream.Mixture` over them.
        seed: the run's seed, for the choice of captions.
        step_size: positions of a step.
        log: counts and logs unreadable records.
        embedded: rows int64 [k] -> bool [k], whether the sidecars have their
            embeddings; None requires none.
    """

    store: stores.Store
    order: stream.AnyOrder
    _: dataclasses.KW_ONLY
    seed: int
    step_size: int
    log: fault_log.FaultLog
    embedded: Callable[[np.ndarray], np.ndarray] | None = None

    def read(self, positions: np.ndarray) -> Chunk:
        """Reads records at positions, int64 [k], replacing unreadable ones.

        Pictures are not decoded; `repair` replaces those that turn out damaged.

        Raises:
            ValueError: too many records are unreadable.
        """
        rows = self.order.rows(positions)
        count = len(rows)
        chunk = Chunk(
            rows,
            np.zeros(count, np.int64),
            # Not arrays of type S, which drop trailing zero bytes.
            np.empty(count, object),
            np.empty(count, object),
            np.zeros(count, np.int64),
        )
        numbers = caption_numbers(self.seed, positions).tolist()
        for i, record in enumerate(self._records(rows)):
            fault = self._take(chunk, i, record, numbers[i])
            if fault:
                self._replace(chunk, i, int(positions[i]), numbers[i], fault)
        self.log.count(count, int((chunk.attempts > 0).sum()))
        return chunk

    def repair(
        self, positions: np.ndarray, chunk: Chunk, missing: np.ndarray
    ) -> list[np.ndarray]:
        """Replaces, in place, records of a chunk that `read` returned.

        Args:
            positions: int64 [k].
            chunk: the records there.
            missing: int64 [m], indices of pictures that failed to decode.

        Returns:
            m pictures in their place, uint8 [H, W, 3] each.

        Raises:
            ValueError: too many records are unreadable.
        """
        numbers = caption_numbers(self.seed, positions).tolist()
        decoded = []
        before = int((chunk.attempts > 0).sum())
        for i in missing.tolist():
            image = self._decode(chunk, i)
            while isinstance(image, stores.Fault):
                self._replace(chunk, i, int(positions[i]), numbers[i], image)
                image = self._decode(chunk, i)
            decoded.append(image)
        self.log.count(0, int((chunk.attempts > 0).sum()) - before)
        return decoded

    def _decode(self, chunk, i):
        return pictures.decode(chunk.pictures[i], self.store.max_image_pixels)

    def _records(self, rows):
        found = self.store.read(rows)
        if self.embedded is not None:
            for i in np.flatnonzero(~self.embedded(rows)).tolist():
                found[i] = NO_EMBEDDING
        return found

    def _take(self, chunk, i, record, number):
        """Puts a record at index i of a chunk, or returns its fault."""
        if isinstance(record, stores.Fault):
            return record
        choices = candidates(record.captions)
        if not choices:
            return NO_CAPTION
        limit = self.store.max_image_pixels
        picture = pictures.prepare(record.image, limit)
        if isinstance(picture, stores.Fault):
            return picture
        choice = choices[number % len(choices)]
        chunk.pictures[i] = picture
        chunk.captions[i] = record.captions[choice]
        chunk.choices[i] = choice
        return None

    def _replace(self, chunk, i, position, number, fault):
        """Puts the next readable substitute at index i of a chunk."""
        while fault:
            row = int(chunk.rows[i])
            self.log.add(
                {
                    "step": position // self.step_size,
                    "position": position,
                    "id": int(self.store.ids(np.array([row]))[0]),
                    "place": self.store.describe(row),
                    "reason": fault.reason,
                }
            )
            chunk.attempts[i] += 1
            attempt = int(chunk.attempts[i])
            if attempt > MAX_ATTEMPTS:
                raise ValueError(
                    f"{MAX_ATTEMPTS} records in a row cannot be read in place "
                    f"of one at position {position}, the last "
                    f"{self.store.describe(row)}: {fault.reason}"
                )
            rows = self.order.substitutes(np.array([position]), attempt)
            chunk.rows[i] = rows[0]
            (record,) = self._records(rows)
            fault = self._take(chunk, i, record, number)


def caption_numbers(seed: int, positions: np.ndarray) -> np.ndarray:
    """Hashes positions to nonnegative numbers, int64 [k], to choose captions.

    The caption chosen is this number modulo the count of nonblank ones.
    """
    values = stream.uniform_hash(seed, positions, CAPTION_SALT)
    return (values >> np.uint64(1)).astype(np.int64)


def candidates(captions: Sequence[bytes]) -> list[int]:
    """Returns the indices of the nonblank captions."""
    return [
        i
        for i, caption in enumerate(captions)
        # Bytes first: decoding is needed only for white space beyond ASCII.
        if caption.strip() and caption.decode("utf-8", "replace").strip()
    ]

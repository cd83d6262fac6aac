"""Reads the records at positions of the stream, or their replacements.

The example at a position is a pure function of (seed, position) and the data:
the record at the position's row or, if it is unreadable, the first readable
substitute (`data/stream.py`). A readable record can be read by its store, has a
nonblank caption and an image that decodes and, with sidecars, has embeddings.

Data on a bucket are read ahead (`Ahead`) and in whole blocks (`Blocks`).
"""

import collections
import concurrent.futures
import dataclasses
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jest_tf import files
from jest_tf.data import images, known_images, stores, stream
from jest_tf.files import cache

# Share of the records that may be lost or replaced before a run stops.
MAX_FAULT_RATE = 0.01
# Until this many positions are drawn, the limit is a share of this number, so
# that a single early fault does not exceed it.
MIN_DRAWN = 1024
# Distinct reasons counted.
_MAX_REASONS = 1000


class FaultLog:
    """Counts faults and logs a line for each; thread-safe.

    A line is {"step", "setting", "position", "id", "place", "reason"}. The
    setting is "data.train" or "data.curated", which number their positions
    separately; id and place are those of the unreadable record. An unreadable
    replacement adds another line for the same position.

    Args:
        path: file of the log, in JSON lines; None writes no log.
        max_rate: share of the drawn positions that may be replaced, in [0, 1];
            until 1,024 positions are drawn, a share of 1,024. None is
            `MAX_FAULT_RATE`.
        lost_share: share of the records that damaged shards have lost; it
            counts like an equal share of replaced positions.

    Attributes:
        num_drawn: positions drawn so far.
        num_replaced: positions replaced so far.
        num_lines: lines of the closed log, with those of replacements.
        first: the first line in this process; None before any.
    """

    def __init__(
        self,
        path: str | None,
        max_rate: float | None = None,
        lost_share: float = 0.0,
    ):
        self._path, self._lost_share = path, lost_share
        self._max_rate = MAX_FAULT_RATE if max_rate is None else max_rate
        self._lock = threading.Lock()
        self._error = ""
        self._reasons = collections.Counter()
        self._step_size = 0
        self.num_drawn = self.num_replaced = self.num_lines = 0
        self.first: Mapping | None = None

    def start(self, step: int, step_size: int) -> None:
        """Drops the faults from `step` on, whose positions are drawn again.

        `step_size` is the number of positions of a step.
        """
        with self._lock:
            self._error = ""
            self._reasons = collections.Counter()
            self._step_size = step_size
            self._cut(step)

    def add(self, line: Mapping) -> None:
        """Logs an unreadable record."""
        with self._lock:
            self._count(line["reason"])
            self.first = self.first or line
            if self._path:
                # Faults are rare, so the file is not kept open.
                log = files.appendable(self._path)
                with open(log, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

    def count(self, num_drawn: int, num_replaced: int) -> None:
        """Adds to the counts of drawn and replaced positions."""
        with self._lock:
            self.num_drawn += num_drawn
            self.num_replaced += num_replaced
            limit = self._max_rate - self._lost_share
            limit *= max(self.num_drawn, MIN_DRAWN)
            if self.num_replaced > limit and not self._error:
                self._error = self._describe()
        self.check()

    def check(self) -> None:
        """Raises again the ValueError of `count`, which `tf.data` wraps."""
        if self._error:
            raise ValueError(self._error)

    def close(self, stop_step: int) -> None:
        """Sorts the lines by step and position.

        Drops the faults from `stop_step` on, whose records were only read
        ahead, from the log and the counts. Without a file, the counts stay.
        """
        with self._lock:
            if self._path:
                self._cut(stop_step)

    def _describe(self):
        counts = []
        if self.num_drawn:
            counts.append(
                f"{self.num_replaced:,} of {self.num_drawn:,} drawn, "
                f"{self.num_replaced / self.num_drawn:.2%}"
            )
        if self._lost_share:
            counts.append(
                f"{self._lost_share:.2%} are lost in damaged shards, which "
                "warnings have named: copy those again"
            )
        reasons = "; ".join(
            f"{count} x {reason}"
            for reason, count in self._reasons.most_common(3)
        )
        if reasons:
            reasons = f". The commonest reasons: {reasons}"
            if self._path:
                reasons += f"; all of them are in {self._path}"
            elif self.first:
                first = self.first
                reasons += f"; the first: {first['place']}, {first['reason']}"
        return (
            f"Too many records cannot be read: {', and '.join(counts)}. "
            f"Expected at most {self._max_rate:.2%}{reasons}"
        )

    def _count(self, reason):
        kind = re.sub(r"\d[\d,]*", "N", reason)
        if kind in self._reasons or len(self._reasons) < _MAX_REASONS:
            self._reasons[kind] += 1

    def _cut(self, step):
        """Drops what belongs to steps from `step` on, and counts the rest."""
        places = self._sort(step)
        self.num_drawn = step * self._step_size
        self.num_replaced, self.num_lines = len(set(places)), len(places)

    def _sort(self, stop_step):
        """Sorts the log's lines; returns their places in the stream.

        Keeps only the first line of a fault that was logged twice.
        """
        if not self._path or not files.is_file(self._path):
            return []
        # The log of a long run may be large, so no lines stay in memory.
        starts: dict = {}
        start = 0
        with (
            # Bytes, as a power cut may leave text that is not UTF-8.
            files.staged(self._path) as local,
            open(local, "rb") as log,
            files.written_whole(self._path) as partial,
            open(partial, "wb") as out,
        ):
            for text in log:
                try:
                    line = json.loads(text)
                except ValueError:
                    break  # cut off when the run was killed
                if line["step"] < stop_step:
                    place = line["step"], line["setting"], line["position"]
                    fault = place, hash(line["place"])
                    starts.setdefault(fault, start)
                    self._count(line["reason"])
                start += len(text)
            # Lines of the same place keep their order.
            order = sorted((fault[0], start) for fault, start in starts.items())
            for _, start in order:
                log.seek(start)
                # The last line may lack only its newline.
                out.write(log.readline().rstrip(b"\n") + b"\n")
        return [place for place, _ in order]


# Substitutes to try. At a fault rate of 10 %, all 16 fail once in 1e16
# positions.
MAX_ATTEMPTS = 16

NO_CAPTION = stores.Fault("no nonblank caption")
# The record was unreadable when its sidecar was written.
NO_EMBEDDING = stores.Fault("no embedding in the sidecar")

# Separates caption choice from other uses of a position.
_CAPTION_SALT = 0x63617074696F6E


def check_images(store: stores.Store) -> None:
    """Refuses a training store whose images do not decode."""
    rows = np.unique(np.linspace(0, len(store) - 1, 16).astype(np.int64))
    for fault in store.read(rows):
        if isinstance(fault, stores.Record):
            fault = images.decode(fault.image)
        if not isinstance(fault, stores.Fault):
            return
    raise ValueError(
        "`data.train` must hold encoded images; `data.image_field` names "
        f"their field. Received: {len(rows)} records whose images do not "
        f"decode, the last {store.describe(int(rows[-1]))}: {fault.reason}"
    )


class Chunk(NamedTuple):
    """The records at k positions.

    Attributes:
        rows: int64 [k], row of each record, after replacements.
        attempts: int64 [k], the number of the substitute; 0 if not replaced.
        encoded: the images, bytes [k].
        orientations: of their EXIF, int64 [k].
        captions: bytes [k], the chosen captions.
        choices: int64 [k], index of the chosen caption in its record.
    """

    rows: np.ndarray
    attempts: np.ndarray
    encoded: np.ndarray
    orientations: np.ndarray
    captions: np.ndarray
    choices: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads positions of a stream; thread-safe.

    Attributes:
        store, order: the records, and their rows at positions.
        seed: the run's seed, for the choice of captions.
        embedded: rows int64 [k] -> bool [k], whether the sidecars have their
            embeddings; None requires no embeddings.
        blocks: reads the records of the order, but not their substitutes;
            None reads every record from the store.
        setting: names the shards of the order in the log.
        known: finds these images among the records; None looks for none.
    """

    store: stores.Store
    order: stream.AnyOrder
    _: dataclasses.KW_ONLY
    seed: int
    step_size: int
    log: FaultLog
    embedded: Callable[[np.ndarray], np.ndarray] | None = None
    blocks: "Blocks | None" = None
    setting: str = "data.train"
    known: known_images.KnownImages | None = None

    def check(self, positions: np.ndarray) -> list[bytes]:
        """Counts unreadable records; returns the captions of the others."""
        chunk, faults = self._read(positions)
        for i, fault in faults:
            self._log(chunk, i, int(positions[i]), fault)
        self.log.count(len(positions), len(faults))
        return [caption for caption in chunk.captions if caption is not None]

    def read(self, positions: np.ndarray) -> Chunk:
        """Reads records at positions, int64 [k], replacing unreadable records.

        Does not decode the images; `repair` replaces damaged images.
        """
        chunk, faults = self._read(positions, self.blocks)
        for i, fault in faults:
            self._replace(chunk, i, int(positions[i]), fault)
        self.log.count(len(positions), len(faults))
        return chunk

    def repair(
        self, positions: np.ndarray, chunk: Chunk, missing: np.ndarray
    ) -> list[np.ndarray]:
        """Replaces, in place, undecodable records of a chunk from `read`.

        `missing`, int64 [m], has the indices of images that failed to decode.
        Returns the m decoded images, uint8 [H, W, 3] each.
        """
        decoded, before = [], int((chunk.attempts > 0).sum())
        for i in missing.tolist():
            image = images.decode(chunk.encoded[i])
            while isinstance(image, stores.Fault):
                self._replace(chunk, i, int(positions[i]), image)
                image = images.decode(chunk.encoded[i])
            decoded.append(image)
        self.log.count(0, int((chunk.attempts > 0).sum()) - before)
        return decoded

    def _read(self, positions, source=None):
        """Reads records; returns their `Chunk`, and the fault at each index."""
        count = len(positions)
        chunk = Chunk(
            self.order.rows(positions),
            np.zeros(count, np.int64),
            # Not arrays of type S, which drop trailing zero bytes.
            np.empty(count, object),
            np.ones(count, np.int64),
            np.empty(count, object),
            np.zeros(count, np.int64),
        )
        records = self._records(chunk.rows, source)
        numbers = caption_numbers(self.seed, positions).tolist()
        taken = map(self._take, [chunk] * count, range(count), records, numbers)
        return chunk, [(i, fault) for i, fault in enumerate(taken) if fault]

    def _records(self, rows, source=None):
        records = (source or self.store).read(rows)
        if self.embedded is not None:
            for i in np.flatnonzero(~self.embedded(rows)).tolist():
                records[i] = NO_EMBEDDING
        return records

    def _take(self, chunk, i, record, number):
        """Puts a record at index i of a chunk, or returns its fault."""
        if isinstance(record, stores.Fault):
            return record
        if self.known is not None:
            self.known.look(record.image, int(chunk.rows[i]))
        choices = candidates(record.captions)
        if not choices:
            return NO_CAPTION
        prepared = images.prepare(record.image)
        if isinstance(prepared, stores.Fault):
            return prepared
        choice = choices[number % len(choices)]
        chunk.encoded[i] = prepared
        chunk.orientations[i] = images.orientation(prepared)
        chunk.captions[i] = record.captions[choice]
        chunk.choices[i] = choice
        return None

    def _replace(self, chunk, i, position, fault):
        """Puts the next readable substitute at index i of a chunk."""
        (number,) = caption_numbers(self.seed, np.array([position])).tolist()
        while fault:
            row = self._log(chunk, i, position, fault)
            chunk.attempts[i] += 1
            attempt = int(chunk.attempts[i])
            if attempt > MAX_ATTEMPTS:
                raise ValueError(
                    f"{MAX_ATTEMPTS} substitutes in a row for the record at "
                    f"position {position} cannot be read, the last "
                    f"{self.store.describe(row)}: {fault.reason}"
                )
            rows = self.order.substitutes(np.array([position]), attempt)
            chunk.rows[i] = rows[0]
            (record,) = self._records(rows)
            fault = self._take(chunk, i, record, number)

    def _log(self, chunk, i, position, fault):
        """Logs the fault of the record at index i; returns its row."""
        row = int(chunk.rows[i])
        self.log.add(
            {
                "step": position // self.step_size,
                "setting": self.setting,
                "position": position,
                "id": int(self.store.ids(np.array([row]))[0]),
                "place": self.store.describe(row),
                "reason": fault.reason,
            }
        )
        return row


class Blocks:
    """Reads a store by blocks of neighbouring records; thread-safe.

    A request to a bucket takes as long as reading a megabyte, and a stream
    shuffled by blocks soon needs a record's neighbours. So the first request in
    a block reads the whole block, and recently used blocks are kept.

    Args:
        size, kept: number of records in a block, and of blocks to keep.
        starts: int64 [p], ascending, the first row of each part of the store.
        once: whether to drop each record when it is returned. If it is
            requested again, as in the next epoch, its whole block is read.
    """

    def __init__(
        self,
        store: stores.Store,
        size: int,
        starts: np.ndarray,
        *,
        kept: int,
        once: bool,
    ):
        self._store, self._size, self._once = store, size, once
        self._starts = np.asarray(starts)
        self._ends = np.append(starts[1:], len(store))
        # By a block's first row, its records by row.
        self._blocks = cache.Cache(kept)

    def read(self, rows: np.ndarray) -> list[stores.Record | stores.Fault]:
        """Reads records at rows, int64 [k], as `Store.read`."""
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        firsts = rows - (rows - self._starts[parts]) % self._size
        lasts = np.minimum(firsts + self._size, self._ends[parts])
        ends = dict(zip(firsts.tolist(), lasts.tolist(), strict=True))
        wanted = collections.defaultdict(set)
        for row, first in zip(rows.tolist(), firsts.tolist(), strict=True):
            wanted[first].add(row)
        blocks = self._blocks.get(
            sorted(ends),
            lambda missing: self._fetch(missing, ends),
            lambda first, block: not wanted[first] <= block.keys(),
        )
        out, again = [], []
        for i, (row, first) in enumerate(
            zip(rows.tolist(), firsts.tolist(), strict=True)
        ):
            block = blocks[first]
            take = block.pop if self._once else block.get
            out.append(stores.parsed(take(row, None)))
            if out[i] is None:  # another call has just taken it
                again.append(i)
            if not block:
                self._blocks.drop(first, block)
        if again:
            alone = self._store.read(rows[again])
            for i, record in zip(again, alone, strict=True):
                out[i] = record
        return out

    def _fetch(self, missing, ends):
        """Reads missing blocks, all at once."""
        wanted = [np.arange(first, ends[first]) for first in missing]
        records = iter(self._store.read_unparsed(np.concatenate(wanted)))
        # `strict=True` would consume the next block's first record.
        return [
            dict(zip(rows.tolist(), records, strict=False)) for rows in wanted
        ]


class Ahead:
    """Reads `depth` chunks before they are requested; thread-safe."""

    def __init__(self, read: Callable[[np.ndarray], Chunk], depth: int):
        self._read, self._depth = read, depth
        self._pool = concurrent.futures.ThreadPoolExecutor(depth)
        self._futures: dict[bytes, concurrent.futures.Future] = {}
        self._lock = threading.Lock()

    def start(self, positions: np.ndarray) -> None:
        """Begins to read the chunk at positions, int64 [k]."""
        future = self._pool.submit(self._read, positions.copy())
        with self._lock:
            self._futures[positions.tobytes()] = future
            # These were not requested: their iterator was abandoned.
            while len(self._futures) > 2 * self._depth:
                self._futures.pop(next(iter(self._futures))).cancel()

    def read(self, positions: np.ndarray) -> Chunk:
        """Returns the chunk at positions, int64 [k], as `Reader.read`."""
        with self._lock:
            future = self._futures.pop(positions.tobytes(), None)
        return future.result() if future else self._read(positions)


def caption_numbers(seed: int, positions: np.ndarray) -> np.ndarray:
    """Hashes positions to nonnegative numbers, int64 [k], to choose captions.

    The chosen caption is this number modulo the count of nonblank captions.
    """
    values = stream.uniform_hash(seed, positions, _CAPTION_SALT)
    return stream.high_bits(values, 63)


def candidates(captions: Sequence[bytes]) -> list[int]:
    """Returns the indices of the nonblank captions."""
    return [
        i
        for i, caption in enumerate(captions)
        # Tests bytes first: only white space beyond ASCII needs decoding.
        if caption.strip() and caption.decode("utf-8", "replace").strip()
    ]

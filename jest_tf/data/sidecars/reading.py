"""Sidecars: a frozen reference's embeddings beside the records they are of.

Joint scores need pairs, so what is kept of a reference are not scores but
embeddings, with the scale and bias that make logits of them: one file a shard,
row for row. Here they are opened, refused where they do not fit, and read.
`data/sidecars/file_format.py` has the layout of a file,
`data/sidecars/embed.py` writes those of a store, `pipeline.py` joins them to
the stream.
"""

import collections
import concurrent.futures
import glob
import hashlib
import math
import os
import threading
from typing import NamedTuple

import numpy as np

from jest_tf.data import stores
from jest_tf.data.sidecars import file_format

SUFFIX = ".sidecar"

# Files that are mapped at a time. Each holds a descriptor, of which a process
# often may have only 1,024.
_MAX_MAPPED = 256
# Heads of files read at a time, for the sake of storage that answers slowly.
_THREADS = 16


class Rows(NamedTuple):
    """Neighbouring rows of sidecars.

    Attributes:
        ids: int64 [k].
        valid: bool [k], false where the record could not be read.
        offsets: int64 [k + 1], from 0 on: row i has the captions `offsets[i]`
            to `offsets[i + 1]` of `text`.
        image: [k, D].
        text: [captions, D].
    """

    ids: np.ndarray
    valid: np.ndarray
    offsets: np.ndarray
    image: np.ndarray
    text: np.ndarray


class Sidecars:
    """The sidecars of all shards of a store, as one array of rows.

    The heads of all files are checked when this is made; a file is mapped into
    memory when rows of it are asked for. May be used by several threads at
    once.

    Args:
        store: the records, from `stores.open_store`.
        directory: folder of the sidecars; "" looks beside each shard.
        expected: what they must be of; None takes any, if all are alike.

    Attributes:
        description: what they are of, a `file_format.Description`.
        fingerprint, dim, scale, bias: of the description.
        dtype: of the embeddings, "float16" or "float32".

    Raises:
        ValueError: a sidecar is missing, unfinished or damaged, or belongs to
            another reference, tokenizer, preprocessing or version of its
            shard.
    """

    def __init__(
        self,
        store: stores.Store,
        directory: str = "",
        expected: file_format.Description | None = None,
    ):
        self._store = store
        self._ends = np.cumsum(store.shards.lengths)
        self._starts = self._ends - store.shards.lengths
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            found = list(
                pool.map(
                    lambda shard: _find(store, shard, directory),
                    range(len(self._ends)),
                )
            )
        self._paths, self._headers = zip(*found, strict=True)
        first = self._headers[0]
        wanted = expected or first.description
        for path, header in found:
            alike = header._replace(description=wanted, dtype=first.dtype)
            check_header(path, header, alike)
        self.description = first.description
        self.fingerprint = first.description.fingerprint
        self.dim = first.description.dim
        self.scale = first.description.scale
        self.bias = first.description.bias
        self.dtype = first.dtype
        self._mapped = collections.OrderedDict()  # the latest used last
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def identity(self) -> str:
        """Equal for sidecars that say the same: description and dtype."""
        shown = self.description._replace(
            # Without the digits that `check_header` lets differ.
            scale=f"{self.scale:.4g}",
            bias=f"{self.bias:.4g}",
        )
        text = repr((shown, self.dtype))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def read(
        self, rows: np.ndarray, captions: np.ndarray, ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The embeddings of records, in any order, repeats allowed.

        Args:
            rows: int64 [k], rows of the store; sorted ones are read fastest.
            captions: int64 [k], which of each record's captions.
            ids: int64 [k], the ids that the records have.

        Returns:
            The embeddings of the pictures and of the captions, each [k, D] in
            the sidecars' dtype.

        Raises:
            IndexError: a row is out of range.
            ValueError: an id is another, a record has no such caption, or the
                record could not be read when the sidecar was written.
        """
        rows, captions, ids = (
            np.asarray(values, np.int64) for values in (rows, captions, ids)
        )
        image = np.empty([len(rows), self.dim], self.dtype)
        text = np.empty_like(image)
        for shard, places in self._by_shard(rows):
            mapped = self._map(shard)
            local = rows[places] - self._starts[shard]
            self._check_ids(mapped, rows[places], local, ids[places])
            self._check_valid(mapped, rows[places], local)
            texts = self._texts(mapped, rows[places], local, captions[places])
            _take(mapped, local, texts, image, text, places)
        return image, text

    def read_rows(self, start: int, stop: int) -> Rows:
        """Neighbouring rows with all their captions; ids are not compared.

        Args:
            start: the first row.
            stop: one beyond the last.

        Returns:
            `Rows`; within one shard its embeddings are views of the file, of
            which nothing is read before it is looked at.

        Raises:
            IndexError: the rows are out of range.
            ValueError: a sidecar is damaged.
        """
        if not 0 <= start < stop <= len(self):
            raise IndexError(
                f"`start` and `stop` must be in [0, {len(self)}], one below "
                f"the other. Received: {start} and {stop}"
            )
        first, last = np.searchsorted(
            self._ends, [start, stop - 1], side="right"
        )
        parts = [
            self._slice(
                shard,
                max(0, start - int(self._starts[shard])),
                min(stop, int(self._ends[shard])) - int(self._starts[shard]),
            )
            for shard in range(first, last + 1)
        ]
        if len(parts) == 1:
            return parts[0]
        counts = np.concatenate([np.diff(part.offsets) for part in parts])
        joined = Rows(
            *(np.concatenate(part) for part in zip(*parts, strict=True))
        )
        return joined._replace(offsets=np.append(0, np.cumsum(counts)))

    def valid(self, rows: np.ndarray) -> np.ndarray:
        """Which rows have embeddings; int64 [k] -> bool [k].

        Raises:
            IndexError: a row is out of range.
        """
        rows = np.asarray(rows, np.int64)
        valid = np.empty(len(rows), bool)
        for shard, places in self._by_shard(rows):
            local = rows[places] - self._starts[shard]
            valid[places] = _bits(self._map(shard).valid, local)
        return valid

    def read_numbered(
        self, rows: np.ndarray, numbers: np.ndarray, ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The embeddings of records with the captions that numbers choose.

        As `reader.Reader` would choose them. What cannot be had is left out
        in place of being refused.

        Args:
            rows: int64 [k], rows of the store; sorted ones are read fastest.
            numbers: int64 [k], `reader.caption_numbers`.
            ids: int64 [k], the ids that the records have.

        Returns:
            Which of each record's captions it is, int64 [k], -1 where the
            record could not be read or has none that is not blank; and the
            embeddings of the pictures and of these captions, each [k, D] in
            the sidecars' dtype, arbitrary where it is -1.

        Raises:
            IndexError: a row is out of range.
            ValueError: an id is another, or a sidecar is damaged.
        """
        rows, numbers, ids = (
            np.asarray(values, np.int64) for values in (rows, numbers, ids)
        )
        captions = np.empty(len(rows), np.int64)
        image = np.empty([len(rows), self.dim], self.dtype)
        text = np.empty_like(image)
        for shard, places in self._by_shard(rows):
            mapped = self._map(shard)
            local = rows[places] - self._starts[shard]
            self._check_ids(mapped, rows[places], local, ids[places])
            starts, ends = self._caption_bounds(mapped, rows[places], local)
            chosen = _choose(mapped.text, starts, ends, numbers[places])
            chosen[~_bits(mapped.valid, local)] = -1
            captions[places] = chosen
            if chosen.min() < 0:
                good = chosen >= 0
                places = np.arange(len(rows))[places][good]
                local, starts, chosen = local[good], starts[good], chosen[good]
            _take(mapped, local, starts + chosen, image, text, places)
        return captions, image, text

    def _by_shard(self, rows):
        """Yields each shard with the places of its rows, slice or indices."""
        if not len(rows):
            return
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= len(self):
            raise IndexError(
                f"`rows` must be in [0, {len(self)}). "
                f"Received: {low if low < 0 else high}"
            )
        first, last = np.searchsorted(self._ends, [low, high], side="right")
        if first == last:
            yield int(first), slice(0, len(rows))
            return
        shards = np.searchsorted(self._ends, rows, side="right")
        steps = np.diff(shards)
        order = None
        if (steps < 0).any():
            order = np.argsort(shards, kind="stable")
            steps = np.diff(shards[order])
        cuts = [0, *(np.flatnonzero(steps) + 1).tolist(), len(rows)]
        for start, end in zip(cuts[:-1], cuts[1:], strict=True):
            places = slice(start, end)
            if order is not None:
                places = order[places]
            yield int(shards[places][0]), places

    def _check_ids(self, mapped, rows, local, ids):
        stored = mapped.ids.take(local)
        if not np.array_equal(stored, ids):
            first = int(np.argmax(stored != ids))
            raise ValueError(
                f"{self._place(mapped, rows[first])} must have the record's "
                f"id, {ids[first]}. Received: {stored[first]}"
            )

    def _check_valid(self, mapped, rows, local):
        valid = _bits(mapped.valid, local)
        if not valid.all():
            raise ValueError(
                f"{self._place(mapped, rows[np.argmin(valid)])} holds no "
                "embedding: the record could not be read when the sidecar was "
                "written"
            )

    def _texts(self, mapped, rows, local, captions):
        """Rows of `text`, in bounds whatever the file says."""
        starts, ends = self._caption_bounds(mapped, rows, local)
        good = (captions >= 0) & (captions < ends - starts)
        if not good.all():
            first = int(np.argmin(good))
            raise ValueError(
                f"{self._place(mapped, rows[first])} must have a caption "
                f"{captions[first]}. Received: captions {starts[first]} to "
                f"{ends[first]} of {len(mapped.text)}"
            )
        return starts + captions

    def _caption_bounds(self, mapped, rows, local):
        """Where the captions of rows start and end, checked."""
        starts = mapped.offsets.take(local)
        ends = mapped.offsets.take(local + 1)
        # In this order nothing that overflows decides.
        good = (starts >= 0) & (starts <= ends) & (ends <= len(mapped.text))
        if not good.all():
            first = int(np.argmin(good))
            raise ValueError(
                f"{self._place(mapped, rows[first])} must have a caption "
                f"within the file. Received: {starts[first]} to {ends[first]} "
                f"of {len(mapped.text)}"
            )
        return starts, ends

    def _slice(self, shard, start, stop):
        mapped = self._map(shard)
        offsets = mapped.offsets[start : stop + 1]
        low, high = int(offsets[0]), int(offsets[-1])
        if (
            not 0 <= low <= high <= len(mapped.text)
            or (np.diff(offsets) < 0).any()
        ):
            raise ValueError(
                f"Sidecar {mapped.path} is damaged: its captions do not run "
                f"from 0 to {len(mapped.text)}"
            )
        return Rows(
            mapped.ids[start:stop],
            _bits(mapped.valid, np.arange(start, stop)),
            offsets - low,
            mapped.image[start:stop],
            mapped.text[low:high],
        )

    def _place(self, mapped, row):
        return f"Sidecar {mapped.path}, of {self._store.describe(int(row))},"

    def _map(self, shard):
        with self._lock:
            if shard in self._mapped:
                self._mapped.move_to_end(shard)
                return self._mapped[shard]
            mapped = file_format.map_file(self._paths[shard])
            if mapped.header != self._headers[shard]:
                raise ValueError(
                    f"Sidecar {mapped.path} was replaced by another since it "
                    "was opened"
                )
            self._mapped[shard] = mapped
            if len(self._mapped) > _MAX_MAPPED:
                self._mapped.popitem(last=False)
            return mapped


def sidecar_path(store: stores.Store, shard: int, directory: str = "") -> str:
    """Where the sidecar of a shard lies.

    Args:
        store: the records.
        shard: number of the shard.
        directory: folder of the sidecars; "" is beside the shard. In a folder
            the name holds a part of the shard's stamp, so that shards of one
            name from several folders have room in it.

    Raises:
        ValueError: the place is not local; sidecars are mapped into memory.
    """
    path = store.shards.paths[shard]
    place = path + SUFFIX
    if directory:
        name = f"{os.path.basename(path)}-{store.stamp(shard)[:8]}{SUFFIX}"
        place = os.path.join(directory, name)
    if "://" in place:
        raise ValueError(
            "The folder of the sidecars must be local: copy them and set "
            f"`reference.sidecar_dir`, or `--output`. Received: {place}"
        )
    return place


def check_header(
    path: str, header: file_format.Header, expected: file_format.Header
) -> None:
    """Refuses a sidecar that is not what it should be.

    Args:
        path: of the sidecar.
        header: what it says of itself.
        expected: what it should say.

    Raises:
        ValueError: with the first difference.
    """
    parts = [
        (f"`{name}` of the reference", value, wanted)
        for name, value, wanted in zip(
            file_format.Description._fields,
            header.description,
            expected.description,
            strict=True,
        )
    ]
    parts += [
        ("number of rows", header.rows, expected.rows),
        ("stamp, as of the present shard,", header.stamp, expected.stamp),
        ("dtype", header.dtype, expected.dtype),
    ]
    for what, value, wanted in parts:
        # Of one and the same weights the last bit of a scale depends on what
        # computed it.
        if isinstance(wanted, float) and math.isclose(
            value, wanted, rel_tol=1e-6
        ):
            continue
        if value != wanted:
            raise ValueError(
                f"Sidecar {path} does not fit: expected the {what} to be "
                f"{wanted!r}. Received: {value!r}; write it anew with "
                "`python -m trainers.embed`"
            )


def _find(store, shard, directory):
    """The path and header of a shard's sidecar, if it is of the shard."""
    path = sidecar_path(store, shard, directory)
    if not os.path.exists(path):
        raise ValueError(_missing_message(store, shard, directory, path))
    header = file_format.read_header(path)
    of_the_shard = header._replace(
        stamp=store.stamp(shard), rows=int(store.shards.lengths[shard])
    )
    check_header(path, header, of_the_shard)
    return path, header


def _missing_message(store, shard, directory, path):
    message = (
        f"No sidecar of {store.shards.paths[shard]}: expected {path}, as "
        "`python -m trainers.embed` writes it"
    )
    if os.path.exists(path + file_format.PARTIAL):
        return f"{message}. It is there unfinished; run that again"
    if directory:
        name = glob.escape(os.path.basename(store.shards.paths[shard]))
        others = glob.glob(f"{glob.escape(directory)}/{name}-*{SUFFIX}")
        if others:
            return (
                f"{message}. Received: {min(others)}, which is of another "
                "version of the shard, or of other fields of it"
            )
    return message


def _bits(packed, places):
    """The bits of uint8 [ceil(n / 8)] at int64 [k], as bool [k]."""
    marks = packed.take(places >> 3) >> (places & 7).astype(np.uint8)
    return (marks & 1).astype(bool)


def _take(mapped, local, texts, image, text, places):
    """Puts rows of a file at places of `image` and `text`."""
    if isinstance(places, slice):
        # All indices were checked; "clip" writes straight to `out`.
        mapped.image.take(local, 0, image[places], "clip")
        mapped.text.take(texts, 0, text[places], "clip")
    else:
        image[places] = mapped.image.take(local, 0)
        text[places] = mapped.text.take(texts, 0)


def _choose(text, starts, ends, numbers):
    """Which caption each number chooses, of those not blank; -1 of none.

    Args:
        text: [captions, D], zero where blank.
        starts: int64 [k], the first caption of each row.
        ends: int64 [k], one beyond its last.
        numbers: int64 [k], not negative.

    Returns:
        int64 [k].
    """
    counts = ends - starts
    firsts = np.cumsum(counts) - counts  # of each row, in a line of all
    line = np.repeat(starts - firsts, counts) + np.arange(counts.sum())
    # One number of a caption is almost always enough to see it is not blank.
    blank = text[line, 0] == 0
    doubtful = np.flatnonzero(blank)
    blank[doubtful] = ~text[line[doubtful]].any(1)
    if not blank.any():
        choices = numbers % np.maximum(counts, 1)
        choices[counts == 0] = -1
        return choices
    whole = np.append(0, np.cumsum(~blank))
    counts = whole[ends - starts + firsts] - whole[firsts]
    # The n-th caption that is not blank is where the count of them reaches n.
    wanted = whole[firsts] + numbers % np.maximum(counts, 1) + 1
    choices = np.searchsorted(whole, wanted) - 1 - firsts
    choices[counts == 0] = -1
    return choices

"""Reads the sidecars of a store, refusing those that do not fit.

Joint scores need pairs, so a reference's embeddings are stored, with the scale
and bias of its logits, and not its scores. `data/sidecars/file_format.py`
describes one file.
"""

import concurrent.futures
import glob
import hashlib
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jest_tf import files
from jest_tf.data import artefacts, stores
from jest_tf.data.sidecars import file_format

SUFFIX = ".sidecar"

_MAX_MAPPED = 256
# File heads read at a time, for slow storage.
_THREADS = 16


class Rows(NamedTuple):
    """Neighbouring rows of sidecars.

    Attributes:
        ids: int64 [k].
        valid: bool [k], false for unreadable records.
        offsets: int64 [k + 1], from 0: row i has the captions `offsets[i]`
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
    """The sidecars of a store, as one array of rows; thread-safe.

    All heads are checked on opening; a file is mapped when it is first read.

    Args:
        store: the records, from `stores.open_store`.
        directory: folder of the sidecars; "" looks beside each shard.
        expected: the reference; None takes any that is the same for all.

    Attributes:
        description: of the reference, a `file_format.Description`.
        fingerprint, dim, scale, bias: of the description.
        dtype: of the embeddings, "float16" or "float32".

    Raises:
        ValueError: a sidecar is missing or damaged, or belongs to another
            reference, tokenizer, preprocessing or version of its shard.
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
            shards = range(len(self._ends))
            found = list(
                pool.map(lambda shard: _find(store, shard, directory), shards)
            )
        self._paths, headers, self._heads = zip(*found, strict=True)
        first = headers[0]
        wanted = expected or first.description
        for path, header in zip(self._paths, headers, strict=True):
            alike = header._replace(description=wanted, dtype=first.dtype)
            check_header(path, header, alike)
        self.description = first.description
        self.fingerprint = first.description.fingerprint
        self.dim = first.description.dim
        self.scale = first.description.scale
        self.bias = first.description.bias
        self.dtype = first.dtype
        self._maps = artefacts.Maps(file_format.KIND, _MAX_MAPPED)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def identity(self) -> str:
        """A string that is equal for equal descriptions and dtypes."""
        shown = self.description._replace(
            # Rounded, as `check_header` lets the last digits differ.
            scale=f"{self.scale:.4g}",
            bias=f"{self.bias:.4g}",
        )
        text = repr((shown, self.dtype))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def read(
        self, rows: np.ndarray, captions: np.ndarray, ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads the embeddings of records, in any order, repeats allowed.

        Args:
            rows: int64 [k], rows of the store; sorted ones are read fastest.
            captions: int64 [k], the index of a caption of each record.
            ids: int64 [k], the records' ids.

        Returns:
            The embeddings of the pictures and of the captions, each [k, D] in
            the sidecars' dtype.

        Raises:
            IndexError: a row is out of range.
            ValueError: an id differs, there is no such caption, or a record was
                unreadable when the sidecar was written.
        """
        rows, captions, ids = _integers(rows, captions, ids)
        image = np.empty([len(rows), self.dim], self.dtype)
        text = np.empty_like(image)
        for shard, places in self._by_shard(rows):
            part = self._part(shard)
            local = rows[places] - self._starts[shard]
            starts, ends = self._captions(part, shard, local, ids[places])
            chosen = captions[places]
            self._require(
                shard,
                local,
                ~file_format.is_zero(part.image, local),
                lambda i: (
                    "have an embedding. Received: zeros, as the record "
                    "could not be read when the sidecar was written"
                ),
            )
            self._require(
                shard,
                local,
                (chosen >= 0) & (chosen < ends - starts),
                lambda i, chosen=chosen, counts=ends - starts: (
                    f"have a caption {chosen[i]}. Received: {counts[i]} in all"
                ),
            )
            _take(part, local, starts + chosen, image, text, places)
        return image, text

    def read_numbered(
        self, rows: np.ndarray, numbers: np.ndarray, ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reads the embeddings of records and of captions chosen by hashes.

        The choice is that of `reader.Reader`. Records without an embedding or a
        nonblank caption are marked, not refused.

        Args:
            rows: int64 [k], rows of the store; sorted ones are read fastest.
            numbers: int64 [k], `reader.caption_numbers`.
            ids: int64 [k], the records' ids.

        Returns:
            The index of each record's caption, int64 [k], -1 if the record was
            unreadable or has no nonblank caption; and the embeddings of the
            pictures and captions, each [k, D] in the sidecars' dtype, arbitrary
            where the index is -1.

        Raises:
            IndexError: a row is out of range.
            ValueError: an id differs, or a sidecar is damaged.
        """
        rows, numbers, ids = _integers(rows, numbers, ids)
        captions = np.empty(len(rows), np.int64)
        image = np.empty([len(rows), self.dim], self.dtype)
        text = np.empty_like(image)
        for shard, places in self._by_shard(rows):
            part = self._part(shard)
            local = rows[places] - self._starts[shard]
            starts, ends = self._captions(part, shard, local, ids[places])
            chosen = _choose(part.text, starts, ends, numbers[places])
            chosen[file_format.is_zero(part.image, local)] = -1
            captions[places] = chosen
            if chosen.min() < 0:
                good = chosen >= 0
                places = np.arange(len(rows))[places][good]
                local, starts, chosen = local[good], starts[good], chosen[good]
            _take(part, local, starts + chosen, image, text, places)
        return captions, image, text

    def read_rows(self, start: int, stop: int) -> Rows:
        """Reads rows `start` to `stop` with all captions; ids are unchecked.

        Within one shard the embeddings are views of the file.

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
        """Returns which rows have embeddings; int64 [k] -> bool [k].

        Raises:
            IndexError: a row is out of range.
        """
        rows = np.asarray(rows, np.int64)
        valid = np.empty(len(rows), bool)
        for shard, places in self._by_shard(rows):
            local = rows[places] - self._starts[shard]
            valid[places] = ~file_format.is_zero(self._part(shard).image, local)
        return valid

    def _by_shard(self, rows) -> Iterator[tuple[int, slice | np.ndarray]]:
        if not len(rows):
            return
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= len(self):
            raise IndexError(
                f"`rows` must be in [0, {len(self)}). "
                f"Received: {low if low < 0 else high}"
            )
        shards = np.searchsorted(self._ends, rows, side="right")
        order = None  # sorted already
        if (np.diff(shards) < 0).any():
            order = np.argsort(shards, kind="stable")
            shards = shards[order]
        cuts = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(rows)]
        for start, end in zip(cuts[:-1], cuts[1:], strict=True):
            places = slice(start, end)
            yield int(shards[start]), places if order is None else order[places]

    def _part(self, shard) -> file_format.Sidecar:
        found = self._maps.get(self._paths[shard], self._heads[shard])
        return file_format.Sidecar(
            *(found.arrays[name] for name in file_format.Sidecar._fields)
        )

    def _captions(self, part, shard, local, ids):
        """Start and end of the records' captions within the file."""
        stored = part.ids[local]
        self._require(
            shard,
            local,
            stored == ids,
            lambda i: f"have the record's id, {ids[i]}. Received: {stored[i]}",
        )
        starts, ends = part.offsets[local], part.offsets[local + 1]
        self._require(
            shard,
            local,
            # Ordered so that no overflow decides.
            (starts >= 0) & (starts <= ends) & (ends <= len(part.text)),
            lambda i: (
                "have captions within the file. Received: "
                f"{starts[i]} to {ends[i]} of {len(part.text)}"
            ),
        )
        return starts, ends

    def _require(self, shard, local, good, message):
        if not good.all():
            first = int(np.argmin(good))
            row = int(local[first] + self._starts[shard])
            raise ValueError(
                f"Sidecar {self._paths[shard]}, of {self._store.describe(row)},"
                f" must {message(first)}"
            )

    def _slice(self, shard, start, stop):
        part = self._part(shard)
        offsets = part.offsets[start : stop + 1]
        low, high = int(offsets[0]), int(offsets[-1])
        if (
            not 0 <= low <= high <= len(part.text)
            or (np.diff(offsets) < 0).any()
        ):
            raise ValueError(
                f"Sidecar {self._paths[shard]} is damaged: its captions do not "
                f"run from 0 to {len(part.text)}"
            )
        return Rows(
            part.ids[start:stop],
            ~file_format.is_zero(part.image, np.arange(start, stop)),
            offsets - low,
            part.image[start:stop],
            part.text[low:high],
        )


def sidecar_path(store: stores.Store, shard: int, directory: str = "") -> str:
    """Returns the path of a shard's sidecar, in a folder or, for "", beside it.

    In a folder the name holds part of the shard's stamp, as shards of several
    folders may share a name.

    Raises:
        ValueError: the path is not local; sidecars are mapped into memory.
    """
    path = store.shards.paths[shard]
    place = path + SUFFIX
    if directory:
        name = f"{os.path.basename(path)}-{store.stamp(shard)[:8]}{SUFFIX}"
        place = os.path.join(directory, name)
    if files.is_remote(place):
        raise ValueError(
            "The folder of the sidecars must be local: copy them and set "
            f"`reference.sidecar_dir`, or `--output`. Received: {place}"
        )
    return place


def check_header(
    path: str, header: file_format.Header, expected: file_format.Header
) -> None:
    """Refuses a sidecar of another origin than expected.

    Raises:
        ValueError: names the first difference.
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
        # The last bit of a scale depends on the hardware that computed it.
        if isinstance(wanted, float) and math.isclose(
            value, wanted, rel_tol=1e-6
        ):
            continue
        if value != wanted:
            raise ValueError(
                f"Sidecar {path} does not fit: expected the {what} to be "
                f"{wanted!r}. Received: {value!r}; write it anew with "
                "`jest-tf embed`"
            )


def _find(store, shard, directory):
    path = sidecar_path(store, shard, directory)
    if not os.path.exists(path):
        raise ValueError(_missing_message(store, shard, directory, path))
    header, found = file_format.read(path)
    of_the_shard = header._replace(
        stamp=store.stamp(shard), rows=int(store.shards.lengths[shard])
    )
    check_header(path, header, of_the_shard)
    return path, header, found.metadata


def _missing_message(store, shard, directory, path):
    message = (
        f"No sidecar of {store.shards.paths[shard]}: expected {path}, as "
        "`jest-tf embed` writes it"
    )
    if directory:
        name = glob.escape(os.path.basename(store.shards.paths[shard]))
        others = glob.glob(f"{glob.escape(directory)}/{name}-*{SUFFIX}")
        if others:
            return (
                f"{message}. Received: {min(others)}, which is of another "
                "version of the shard, or of other fields of it"
            )
    return message


def _integers(*arrays):
    return [np.asarray(values, np.int64) for values in arrays]


def _take(part, local, texts, image, text, places):
    """Copies rows of a file to the indices `places` of `image` and `text`."""
    if isinstance(places, slice):
        # All indices were checked; "clip" writes straight to `out`.
        part.image.take(local, 0, image[places], "clip")
        part.text.take(texts, 0, text[places], "clip")
    else:
        image[places] = part.image[local]
        text[places] = part.text[texts]


def _choose(text, starts, ends, numbers):
    """Indices of captions chosen by hashes, int64 [k]; -1 if all are blank."""
    counts = ends - starts
    firsts = np.cumsum(counts) - counts  # of each row, in a line of all
    line = np.repeat(starts - firsts, counts) + np.arange(counts.sum())
    blank = file_format.is_zero(text, line)
    if not blank.any():
        choices = numbers % np.maximum(counts, 1)
        choices[counts == 0] = -1
        return choices
    whole = np.append(0, np.cumsum(~blank))
    counts = whole[ends - starts + firsts] - whole[firsts]
    # The n-th nonblank caption is where their running count reaches n.
    wanted = whole[firsts] + numbers % np.maximum(counts, 1) + 1
    choices = np.searchsorted(whole, wanted) - 1 - firsts
    choices[counts == 0] = -1
    return choices

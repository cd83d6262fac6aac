"""Index files: where each record of a shard lies, and its id.

An index is built once for a shard, by its format's `scan`, and written beside
the shard as `<shard>.index`, or into a folder of its own. Where records also
depend on a setting of the format, such as the extension of pictures in tars,
the name holds a hash of it, so that each setting has its index. It is a header
and,
for every record, three little-endian int64: two that say where it lies and its
id. It is mapped into memory, not read. An index that does not fit its shard (by
size, time of change, or hash of head and tail), or whose own checksums do not
fit, is built anew. Nothing in it is believed before the checksums are compared.

A record without a stored id gets a hash of the shard's base name, the shard's
size, head and tail, and the record's number: it outlives a move of the folder
and any change of the other shards, and differs between data sets that name
their shards alike. It changes when the shard is renamed or written anew.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import os
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from jest_tf import files
from jest_tf.data.stores import retries, shards

_MAGIC = b"JESTTFIX"
_VERSION = 1
# Magic, version, CRC-32 of the body, records, size and mtime of the shard,
# identity of the shard, hash of the format; then CRC-32 of all these.
_HEADER = struct.Struct("<8sIIqqq16s16s")
_HEADER_SIZE = 96
_ROW_SIZE = 24
# Head and tail of a shard that are hashed.
_EDGE = 2**16
# Indexes mapped at a time: each holds a file descriptor, of which a process
# often may have only 1,024.
_MAPS = 128
# Threads suffice: reading, hashing and mapping release the interpreter.
_WORKERS = 16
# Read at a time to check a body, so that no memory is taken by it.
_CHECK_SIZE = 2**20


class Index:
    """Where the records of one shard lie.

    Attributes:
        num_records: how many there are.
        stamp: identifies this version of the shard and how it is read.
    """

    def __init__(self, header, rows, form):
        self.num_records = header.num_records
        self.stamp = _digest(
            header.identity,
            struct.pack("<Iq", header.body_crc, header.num_records),
            form.name.encode(),
            form.fields.encode(),
        ).hex()
        self._rows = rows

    def rows(self, numbers: np.ndarray | slice) -> np.ndarray:
        """Entries of records: int64 [k] -> [k, 3], a span and an id each."""
        return np.array(self._rows()[numbers])


def open_indexes(
    paths: Sequence[str],
    formats: Sequence,
    index_dir: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> list[Index]:
    """Loads the index of every shard, building those that do not fit.

    Args:
        paths: the shards.
        formats: the format of each, see `data/stores/shards.py`.
        index_dir: folder of the index files; "" is beside each shard.
        progress: called with the bytes indexed so far and the bytes to index,
            from several threads but one at a time; not called where nothing
            has to be built.

    Returns:
        An index for each shard.

    Raises:
        ValueError: a shard cannot be read, is empty, or is not of the format.
    """
    shown = _Progress(progress)
    refused = _Refused()

    def check(path, form):
        with _naming(path):
            header = retries.call(lambda: _describe(path, form))
        place = index_path(path, index_dir, form.index_variant)
        loaded = _load(place, header)
        if loaded is None:
            shown.expect(header.shard_size)
        return header, loaded

    def build(path, form, found):
        header, loaded = found
        if loaded is None:
            header, body = _build(path, form, header, shown.advance)
            place = index_path(path, index_dir, form.index_variant)
            try:
                files.write_whole(place, header.pack(), body)
                loaded = _load(place, header)
            except (OSError, tf.errors.OpError) as error:
                refused.add(place, error)
            # Another version of the shard may already be there.
            loaded = loaded or (header, lambda: body)
        return Index(*loaded, form)

    with concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool:
        try:
            found = list(pool.map(check, paths, formats))
            indexes = list(pool.map(build, paths, formats, found))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    refused.warn()
    return indexes


def index_path(path: str, index_dir: str = "", variant: str = "") -> str:
    """The index file of a shard.

    Args:
        path: the shard.
        index_dir: folder of the index files; "" is beside each shard.
        variant: of the format, see `data/stores/shards.py`.
    """
    ending = ".index"
    if variant:
        ending = f".{_digest(variant.encode())[:4].hex()}.index"
    if not index_dir:
        return path + ending
    # Shards of the same name in several folders share the index folder.
    if not files.is_remote(path):
        path = os.path.abspath(path)
    folder, name = os.path.split(path)
    digest = _digest(folder.encode())[:4].hex()
    return os.path.join(index_dir, f"{name}-{digest}{ending}")


class _Header(NamedTuple):
    """The numbers of an index file's header."""

    body_crc: int
    num_records: int
    shard_size: int
    shard_mtime: int
    identity: bytes
    format_hash: bytes

    def pack(self):
        data = _HEADER.pack(_MAGIC, _VERSION, *self)
        data = data.ljust(_HEADER_SIZE - 4, b"\0")
        return data + struct.pack("<I", zlib.crc32(data))

    @classmethod
    def unpack(cls, data):
        """A header, or None where the bytes are none or are damaged."""
        if len(data) != _HEADER_SIZE:
            return None
        magic, version, *numbers = _HEADER.unpack_from(data)
        header = cls(*numbers)
        sound = magic == _MAGIC and version == _VERSION
        return header if sound and header.pack() == data else None

    def fits(self, other):
        """Whether both are of the same shard and format."""
        return self[2:] == other[2:]


class _Progress:
    """Adds up the bytes that several threads report."""

    def __init__(self, report):
        self._report = report
        self._lock = threading.Lock()
        self._done = self._total = 0

    def expect(self, size):
        with self._lock:
            self._total += size

    def advance(self, size):
        with self._lock:
            self._done = min(self._done + size, self._total)
            if self._report is not None:
                self._report(self._done, self._total)


class _Refused:
    """Counts index files that could not be written, for one line of log."""

    def __init__(self):
        self._count, self._example = 0, ""

    def add(self, place, error):
        self._count += 1
        self._example = self._example or f"{place}: {error}"

    def warn(self):
        if self._count:
            logging.warning(
                "%d index files cannot be written and are kept in memory, so "
                "that the next start builds them again; set `data.index_dir` "
                "to a folder that can be written. First: %s",
                self._count,
                self._example,
            )


@contextlib.contextmanager
def _naming(path):
    """Turns a system's error about a shard into ours, with its name."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise ValueError(f"Shard {path} cannot be read: {error}") from error


def _describe(path, form):
    """The header that a shard's index must have, but for its body."""
    found = shards.stat(path)
    if found.size == 0:
        raise ValueError(f"Shard {path} is empty: it has no record.")
    with files.open_file(path) as file:
        head = file.read(_EDGE)
        file.seek(max(0, found.size - _EDGE))
        tail = file.read(_EDGE)
    return _Header(
        0,
        0,
        found.size,
        found.mtime_ns,
        _digest(struct.pack("<q", found.size), head, tail),
        _digest(form.index_key.encode()),
    )


def _build(path, form, header, advance):
    """The header and rows of a shard, from its records."""
    reported = 0

    def report(size):
        nonlocal reported
        size = min(size, header.shard_size - reported)
        reported += size
        if size:
            advance(size)

    with _naming(path):
        entries = form.scan(path, report)
    report(header.shard_size - reported)
    count = len(entries.ids)
    if count == 0:
        raise ValueError(f"Shard {path} is empty: it has no record.")
    body = np.empty((count, 3), "<i8")
    body[:, :2] = entries.spans
    body[:, 2] = np.where(
        entries.has_id,
        entries.ids,
        _derived_ids(os.path.basename(path), header.identity, count),
    )
    return header._replace(body_crc=zlib.crc32(body), num_records=count), body


def _derived_ids(name, identity, count):
    digest = _digest(name.encode(), identity)
    key = np.uint64(int.from_bytes(digest[:8], "little"))
    mixed = np.arange(count, dtype=np.uint64) + key
    # Odd multipliers and shifted sums: one to one before the sign bit goes.
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed & np.uint64(2**63 - 1)).astype(np.int64)


def _load(place, expected):
    """Header and a function that gives the rows; None if they don't fit."""
    try:
        size = shards.stat(place).size
        with files.open_file(place) as file:
            header = _Header.unpack(file.read(_HEADER_SIZE))
            if (
                header is None
                or not header.fits(expected)
                or header.num_records < 1
                or size != _HEADER_SIZE + _ROW_SIZE * header.num_records
            ):
                return None
            remote = files.is_remote(place)
            crc, parts = 0, []
            while data := file.read(_CHECK_SIZE):
                crc = zlib.crc32(data, crc)
                if remote:
                    parts.append(data)
    except (OSError, tf.errors.OpError):
        return None
    if crc != header.body_crc:
        return None
    if remote:
        body = np.frombuffer(b"".join(parts), "<i8").reshape(-1, 3)
        return header, lambda: body
    # What was just checked need not be the file that is mapped.
    _maps.forget(place, header)
    return header, lambda: _maps.get(place, header)


class _Maps:
    """The index files mapped at the moment, the latest used last."""

    def __init__(self):
        self._lock = threading.Lock()
        self._open = collections.OrderedDict()

    def get(self, place, header):
        key = (place, header)
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
            rows = self._map(place, header)
            self._open[key] = rows
            while len(self._open) > _MAPS:
                self._open.popitem(last=False)
            return rows

    def forget(self, place, header):
        with self._lock:
            self._open.pop((place, header), None)

    def _map(self, place, header):
        try:
            with open(place, "rb") as file:
                found = _Header.unpack(file.read(_HEADER_SIZE))
                # Another process may have renewed it for a new time of change.
                if found and found == header._replace(
                    shard_mtime=found.shard_mtime
                ):
                    return np.memmap(
                        file,
                        "<i8",
                        "r",
                        _HEADER_SIZE,
                        (header.num_records, 3),
                    )
        except OSError as error:
            raise ValueError(
                f"Index {place} cannot be read any more: {error}"
            ) from error
        raise ValueError(
            f"Index {place} was replaced by that of another version of its "
            "shard while in use: start again."
        )


_maps = _Maps()


def _digest(*parts):
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(struct.pack("<q", len(part)))
        digest.update(part)
    return digest.digest()

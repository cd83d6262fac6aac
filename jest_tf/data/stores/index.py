"""Indexes: the location and id of each record of a shard.

A format's `scan` builds the index of a shard once. It is an artefact beside
the shard, `<shard>.index`, or in a folder of indexes; its name holds a hash of
any format setting that records depend on. Its one array, `records`, int64
[n, 3], has two numbers that locate a record, and its id. It is mapped, not
loaded. An index that is damaged or does not fit its shard (size, time of
change, hash of head and tail) is rebuilt.

A record without a stored id gets a hash of the shard's base name, size, head
and tail, and the record's number. It survives a move of the folder and changes
of other shards, but not renaming or rewriting the shard.
"""

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
from jest_tf.data import artefacts
from jest_tf.data.stores import retries, shards

_KIND = "index"
_ARRAY = "records"
# Hashed bytes of a shard's head and tail.
_EDGE = 2**16
# Threads suffice: reading, hashing and mapping release the interpreter lock.
_WORKERS = 16

_maps = artefacts.Maps(_KIND, 128)


class Index:
    """The records of one shard.

    Attributes:
        num_records: number of records.
        stamp: identifies this version of the shard and how it is read.
    """

    def __init__(self, shard, form, num_records, checksum, records):
        self.num_records = num_records
        self.stamp = _digest(
            shard.identity,
            struct.pack("<Iq", checksum, num_records),
            form.name.encode(),
            form.fields.encode(),
        ).hex()
        self._records = records

    def rows(self, numbers: np.ndarray | slice) -> np.ndarray:
        """Returns spans and ids of records: int64 [k] -> [k, 3]."""
        return np.array(self._records()[numbers])


def open_indexes(
    paths: Sequence[str],
    formats: Sequence,
    index_dir: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> list[Index]:
    """Loads the index of every shard, building missing or stale ones.

    Args:
        paths: the shards.
        formats: the format of each, see `data/stores/shards.py`.
        index_dir: folder of the indexes; "" is beside each shard.
        progress: called with the bytes indexed so far and in all, by one thread
            at a time; not called if nothing has to be built.

    Returns:
        An index for each shard.

    Raises:
        ValueError: a shard is unreadable, empty or not of the format.
    """
    shown = _Progress(progress)
    unwritten: list[str] = []

    def find(path, form):
        with _naming(path):
            shard = retries.call(lambda: _describe(path))
        place = index_path(path, index_dir, form.index_variant)
        found = _load(place, shard, form)
        if found is None:
            shown.expect(shard.size)
        return place, shard, found

    def build(path, form, found):
        place, shard, index = found
        if index is not None:
            return index
        records = _scan(path, form, shard, shown.advance)
        try:
            artefacts.write(
                place, _KIND, _metadata(shard, form), {_ARRAY: records}
            )
            index = _load(place, shard, form)
        except (OSError, tf.errors.OpError) as error:
            unwritten.append(f"{place}: {error}")
        # Another process may have indexed another version by now.
        return index or _in_memory(shard, form, records)

    with concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool:
        try:
            found = list(pool.map(find, paths, formats))
            indexes = list(pool.map(build, paths, formats, found))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if unwritten:
        logging.warning(
            "%d indexes cannot be written and are kept in memory, so the next "
            "start builds them again; set `data.index_dir` to a folder that "
            "can be written. First: %s",
            len(unwritten),
            unwritten[0],
        )
    return indexes


def index_path(path: str, index_dir: str = "", variant: str = "") -> str:
    """Returns the path of a shard's index, beside it or in `index_dir`.

    `variant` is that of the format, see `data/stores/shards.py`.
    """
    ending = ".index"
    if variant:
        ending = f".{_digest(variant.encode())[:4].hex()}.index"
    if not index_dir:
        return path + ending
    # Shards of several folders may share a name in the index folder.
    if not files.is_remote(path):
        path = os.path.abspath(path)
    folder, name = os.path.split(path)
    digest = _digest(folder.encode())[:4].hex()
    return os.path.join(index_dir, f"{name}-{digest}{ending}")


class _Shard(NamedTuple):
    size: int
    mtime: int
    identity: bytes


class _Progress:
    """Sums the bytes reported by several threads."""

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


@contextlib.contextmanager
def _naming(path):
    """Turns a system error about a shard into a ValueError that names it."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise ValueError(f"Shard {path} cannot be read: {error}") from error


def _describe(path):
    size, mtime = shards.stat(path)
    if size == 0:
        raise ValueError(f"Shard {path} is empty: it has no record.")
    with files.open_file(path) as file:
        head = file.read(_EDGE)
        file.seek(max(0, size - _EDGE))
        tail = file.read(_EDGE)
    return _Shard(size, mtime, _digest(struct.pack("<q", size), head, tail))


def _metadata(shard, form):
    return {
        "size": str(shard.size),
        "mtime_ns": str(shard.mtime),
        "identity": shard.identity.hex(),
        "format": _digest(form.index_key.encode()).hex(),
    }


def _load(place, shard, form):
    try:
        found = artefacts.read(place, _KIND, verify=True)
    except (OSError, ValueError):
        return None
    expected = _metadata(shard, form)
    records = found.arrays.get(_ARRAY, np.zeros([0, 3]))
    if (
        {name: found.metadata.get(name) for name in expected} != expected
        or len(records) < 1
        or records.shape[1:] != (3,)
    ):
        return None
    if files.is_remote(place):
        return _in_memory(shard, form, np.array(records))
    _maps.forget(place)
    # Not the time of change: another process may have renewed it alone.
    known = {name: found.metadata[name] for name in ("identity", "crc32")}
    return Index(
        shard,
        form,
        len(records),
        found.checksums[_ARRAY],
        lambda: _maps.get(place, known).arrays[_ARRAY],
    )


def _in_memory(shard, form, records):
    checksum = zlib.crc32(records)
    return Index(shard, form, len(records), checksum, lambda: records)


def _scan(path, form, shard, advance):
    """Records of a shard's new index; int64 [n, 3]."""
    reported = 0

    def report(size):
        nonlocal reported
        size = min(size, shard.size - reported)
        reported += size
        if size:
            advance(size)

    with _naming(path):
        entries = form.scan(path, report)
    report(shard.size - reported)
    count = len(entries.ids)
    if count == 0:
        raise ValueError(f"Shard {path} is empty: it has no record.")
    ids = np.where(
        entries.has_id,
        entries.ids,
        _derived_ids(os.path.basename(path), shard.identity, count),
    )
    return np.column_stack([entries.spans, ids]).astype(np.int64, copy=False)


def _derived_ids(name, identity, count):
    digest = _digest(name.encode(), identity)
    key = np.uint64(int.from_bytes(digest[:8], "little"))
    mixed = np.arange(count, dtype=np.uint64) + key
    # Odd multipliers and shifted sums: one to one before the sign bit goes.
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed & np.uint64(2**63 - 1)).astype(np.int64)


def _digest(*parts):
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(struct.pack("<q", len(part)))
        digest.update(part)
    return digest.digest()

"""Shards: the interface of a format, records and faults, reads of byte ranges.

A shard is one file. A format is a stateless object with two methods

    scan(path, advance) -> Entries        # once, to index the shard
    read(path, spans) -> list             # a Record or Fault for each span

and four attributes: `name`; `index_key`, everything that an index depends on;
`index_variant`, the part of it that is a setting; and `fields`, everything else
that a record depends on. `advance` takes the bytes read since the last call. A
span is two integers that locate a record, offset and size in byte sequences.
"""

import dataclasses
import glob
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import files
from jest_tf.data.stores import retries

# A larger record is a fault, so that a wrong length cannot claim all memory.
# The largest photographs take a tenth of it.
MAX_RECORD_BYTES = 2**28
# Endings of files that this package writes beside shards.
NO_SHARDS = (".index", ".sidecar", ".weights", files.PARTIAL, ".tmp")
# Simultaneous requests to remote storage in one call.
REMOTE_REQUESTS = 16

# Bytes of one read in a scan.
_WINDOW = 2**22
# Ranges no farther apart are read together. An object-storage request takes as
# long as about a megabyte; a local read takes next to nothing.
_LOCAL_GAP = 2**12
_REMOTE_GAP = 2**19
# Limit on a joint read, to bound memory.
_MAX_READ = 2**24


class Record(NamedTuple):
    """One example as stored.

    Attributes:
        image: the encoded picture.
        captions: raw captions in stored order; may be blank or none.
        metadata: other fields, a string each, by name.
    """

    image: bytes
    captions: tuple[bytes, ...]
    metadata: Mapping[str, bytes]


class Fault(NamedTuple):
    """An unreadable record; `reason` is one line, without the location."""

    reason: str


class Entries(NamedTuple):
    """The records of one shard, as found by `scan`.

    Attributes:
        spans: int64 [n, 2], location of each; a negative size marks damage.
        ids: int64 [n], stored ids.
        has_id: bool [n], whether the record stores an id.
    """

    spans: np.ndarray
    ids: np.ndarray
    has_id: np.ndarray


class Stat(NamedTuple):
    """Size in bytes, and time of the last change in nanoseconds."""

    size: int
    mtime_ns: int


def stat(path: str) -> Stat:
    """Returns size and time of a file; raises one of `retries.ERRORS`."""
    if files.is_remote(path):
        found = tf.io.gfile.stat(path)
        return Stat(found.length, found.mtime_nsec)
    found = os.stat(path)
    return Stat(found.st_size, found.st_mtime_ns)


def stored_id(value: int | str | bytes | None) -> int | None:
    """Converts a value to a 64-bit id, or None if it has none.

    Integers and decimal strings are that integer; other strings are hashed.
    """
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else None
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    if not isinstance(value, bytes) or not value.strip():
        return None
    digits = value.strip()
    if digits.removeprefix(b"-").isdigit() and len(digits) < 19:
        return int(digits)
    return hashed_id(value)


def hashed_id(value: bytes) -> int:
    """Hashes a string to an id in [0, 2**63)."""
    digest = hashlib.blake2b(value, digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


def expand(pattern: str) -> list[str]:
    """Returns the files that a path or glob matches, sorted.

    Indexes and sidecars are left out unless named by path.

    Raises:
        ValueError: nothing matches.
    """
    if files.is_remote(pattern):
        exists, match = tf.io.gfile.exists, tf.io.gfile.glob
    else:
        exists, match = os.path.isfile, glob.glob
    try:
        # An existing path is itself, even with a `[` or `*`.
        found = [pattern] if exists(pattern) else match(pattern)
    except tf.errors.UnimplementedError as error:
        known = sorted(filter(None, tf.io.gfile.get_registered_schemes()))
        raise ValueError(
            "`patterns` must be local or on a file system of TensorFlow, one "
            f"of {known}. Received: {pattern!r}"
        ) from error
    except tf.errors.OpError:
        found = []
    if found != [pattern]:
        found = [path for path in found if not path.endswith(NO_SHARDS)]
    if not found:
        raise ValueError(
            f"`patterns` must match files. Received: {pattern!r}, which "
            "matches none"
        )
    return sorted(found)


def read_spans(
    path: str, spans: np.ndarray, tail: int = 0
) -> list[bytes | Fault]:
    """Reads byte ranges of one file, neighbouring ones together.

    Args:
        path: the file.
        spans: int64 [k, 2], offsets and sizes, in any order.
        tail: bytes after each range that belong to it.

    Returns:
        k payloads with their tails. A fault replaces a range that is marked as
        damaged, too large, beyond the end of the file, or unreadable after
        `retries`.

    Raises:
        ValueError: the file is missing or may not be read.
    """
    out: list = [_span_fault(size) for size in spans[:, 1].tolist()]
    good = [i for i, fault in enumerate(out) if fault is None]
    spans = spans + [0, tail]

    def read(group):
        try:
            with files.open_file(path) as file:
                file.seek(group.start)
                return file.read(group.end - group.start)
        except tf.errors.OutOfRangeError:  # a seek beyond the end
            return b""

    remote = files.is_remote(path)
    workers = REMOTE_REQUESTS if remote else 1
    groups = _groups(spans, good, _REMOTE_GAP if remote else _LOCAL_GAP)
    found = retries.call_all(read, groups, workers)
    for group, result in zip(groups, found, strict=True):
        for i in group.ranges:
            start, size = spans[i].tolist()
            data = result
            if not isinstance(result, Exception):
                data = result[start - group.start :][:size]
            elif len(group.ranges) > 1:
                # The error may be in another range of the group.
                alone = _Group(start, start + size, [i])
                (data,) = retries.call_all(read, [alone], tries=1)
            out[i] = _checked(path, data, size)
    return out


class Window:
    """A file read forward in large pieces, for scans.

    `advance` is called with the bytes each piece adds; `size` is the file's.
    """

    def __init__(self, path: str, advance: Callable[[int], None]):
        self.size = stat(path).size
        self._advance = advance
        self._file = files.open_file(path)
        self._start, self._data = 0, b""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()

    def get(self, offset: int, size: int) -> bytes:
        """Returns bytes [offset, offset + size), fewer at the file's end."""
        if offset >= self.size:  # remote files refuse to seek there
            return b""
        start = offset - self._start
        if start < 0 or start + size > len(self._data):
            self._load(offset, max(size, _WINDOW))
            start = 0
        return self._data[start : start + size]

    def _load(self, offset, size):
        before = self._start + len(self._data)
        keep = self._data[offset - self._start :]
        if not self._start <= offset < before:
            before, keep = offset, b""
        end = min(offset + size, self.size)

        def read():
            self._file.seek(before)
            return self._file.read(end - before)

        try:
            self._data = keep + retries.call(read)
        except retries.ERRORS as error:
            raise OSError(f"at byte {before}: {one_line(error)}") from error
        if len(self._data) < end - offset:
            raise OSError("it has become shorter while it was read")
        self._start = offset
        self._advance(max(0, offset + len(self._data) - before))


def read_files(paths: Sequence[str]) -> list[bytes | Fault]:
    """Reads whole files, such as pictures named by a table's rows."""
    remote = any(map(files.is_remote, paths))
    found = retries.call_all(
        _read_file, paths, REMOTE_REQUESTS if remote else 1
    )
    for i, result in enumerate(found):
        if isinstance(result, retries.LASTING):
            name = os.path.basename(paths[i])
            found[i] = Fault(f"missing file: {name[:200]!r}")
        elif isinstance(result, Exception):
            found[i] = Fault(f"unreadable: {one_line(result)}")
    return found


def one_line(text) -> str:
    """Cuts foreign text, such as an error, to one short line."""
    return " ".join(str(text).split())[:200]


def _span_fault(size):
    if size < 0:
        return Fault(f"damaged: {-size} bytes that are no record")
    if size > MAX_RECORD_BYTES:
        return Fault(f"oversized: {size} bytes, more than {MAX_RECORD_BYTES}")
    return None


@dataclasses.dataclass
class _Group:
    """Neighbouring ranges for one read, by their indices `ranges`."""

    start: int
    end: int
    ranges: list[int]


def _groups(spans, order, gap):
    groups: list[_Group] = []
    for i in sorted(order, key=lambda i: spans[i, 0]):
        start, size = spans[i].tolist()
        end = start + size
        if groups and start <= groups[-1].end + gap:
            joint = max(end, groups[-1].end)
            if joint - groups[-1].start <= _MAX_READ:
                groups[-1].end = joint
                groups[-1].ranges.append(i)
                continue
        groups.append(_Group(start, end, [i]))
    return groups


def _checked(path, data, size):
    """A range's bytes, or a fault for missing bytes or an error."""
    if isinstance(data, retries.LASTING):
        raise ValueError(
            f"Shard {path} cannot be read: {one_line(data)}"
        ) from data
    if isinstance(data, Exception):
        return Fault(f"unreadable: {one_line(data)}")
    if len(data) != size:
        return Fault(f"truncated: {len(data)} of {size} bytes")
    return data


def _read_file(path):
    # A pipe or device would never end.
    if not files.is_remote(path) and not os.path.isfile(path):
        raise FileNotFoundError(path)
    size = stat(path).size
    fault = _span_fault(size)
    if fault:
        return fault
    with files.open_file(path) as file:
        return file.read(size)

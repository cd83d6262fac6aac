"""What every format shares: the record, the fault, and reading byte ranges.

A shard is one file. A format is an object without state of its own that knows
how records lie in a shard, with two methods:

    scan(path, advance) -> Entries        # once, to index the shard
    read(path, spans) -> list             # a Record or Fault for each span

and the attributes `name`, `index_key`, all that an index depends on,
`index_variant`, the part of it that is set and not told by the file, and
`fields`, all that a record depends on beside the shard. A span is two integers
that say where a record lies; in formats that are sequences of bytes
(`data/stores/tfrecords.py`, `data/stores/tars.py`, CSV in
`data/stores/tables.py`) they are its offset and size. Paths may be local or
anything `tf.io.gfile` opens. Index files are in `data/stores/index.py`, the
array of records over shards in `data/stores/store.py`.
"""

import concurrent.futures
import contextlib
import errno
import glob
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf.data.stores import retries

# A record of more bytes is a fault, so that a wrong length cannot ask for all
# memory. The largest photographs are a tenth of it.
MAX_RECORD_BYTES = 2**28

# Read at once where a shard is gone through from end to end.
_WINDOW = 2**22
# Spans no farther apart are one read. A request to object storage costs as
# much time as about a megabyte; a local read next to nothing.
_LOCAL_GAP = 2**12
_REMOTE_GAP = 2**19
# A joint read grows no larger than this, for the sake of memory.
_MAX_READ = 2**24
# Files that this package writes beside shards.
NO_SHARDS = (".index", ".sidecar", ".weights", ".partial", ".tmp")
# Bytes about a place that are forgotten before it is read as a test.
_PROBE = 2**16
# Requests to remote storage under way at once, for one call.
_REMOTE_REQUESTS = 16


class Record(NamedTuple):
    """One example as stored.

    Attributes:
        image: the encoded picture.
        captions: all captions in the order stored, raw; may hold blank ones
            and may be empty.
        metadata: other fields that hold one string each, by name.
    """

    image: bytes
    captions: tuple[bytes, ...]
    metadata: Mapping[str, bytes]


class Fault(NamedTuple):
    """A record that cannot be had.

    Attributes:
        reason: one line, without the place.
    """

    reason: str


class Entries(NamedTuple):
    """The records of one shard, as `scan` found them.

    `advance` of `scan` is to be called with the bytes gone through since the
    last call.

    Attributes:
        spans: int64 [n, 2], where each lies. A negative size marks bytes that
            are known to be damaged.
        ids: int64 [n], the stored ids.
        has_id: bool [n], whether there is one.
    """

    spans: np.ndarray
    ids: np.ndarray
    has_id: np.ndarray


class Stat(NamedTuple):
    """Size in bytes and time of the last change in nanoseconds."""

    size: int
    mtime_ns: int


def is_remote(path: str) -> bool:
    """Whether only `tf.io.gfile` can open the path."""
    return "://" in path


def stat(path: str) -> Stat:
    """Size and time of a file; OSError where it cannot be had."""
    if not is_remote(path):
        found = os.stat(path)
        return Stat(found.st_size, found.st_mtime_ns)
    try:
        found = tf.io.gfile.stat(path)
    except tf.errors.OpError as error:
        raise _os_error(error) from error
    return Stat(found.length, found.mtime_nsec)


def stored_id(value: int | str | bytes | None) -> int | None:
    """The 64-bit id that a field's value stands for.

    Args:
        value: an integer, or a string: one of decimal digits is that integer,
            any other is hashed.

    Returns:
        The id, None where there is none.
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
    """An id for a string, in [0, 2**63)."""
    digest = hashlib.blake2b(value, digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


def expand(patterns: str | Sequence[str]) -> list[str]:
    """The files that patterns match, sorted, each once.

    Index files and sidecars are left out, unless one is named outright.

    Args:
        patterns: a path or glob, or several.

    Raises:
        ValueError: a pattern matches nothing.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise ValueError(
            "`patterns` must name at least one shard. Received: []"
        )
    paths = set()
    for pattern in patterns:
        found = _glob(pattern)
        if not found:
            raise ValueError(
                f"`patterns` must match files. Received: {pattern!r}, which "
                "matches none"
            )
        paths.update(found)
    return sorted(paths)


def read_spans(
    path: str, spans: np.ndarray, tail: int = 0
) -> list[bytes | Fault]:
    """Reads ranges of bytes of one file; neighbouring ones in one go.

    Errors that may pass are waited out for some seconds. A range that has an
    I/O error of its own even then, as from a bad sector, is a fault.

    Args:
        path: the file.
        spans: int64 [k, 2], offsets and sizes, in any order.
        tail: bytes after each range that belong to it.

    Returns:
        k payloads, each with its tail, or a fault where a range is marked as
        damaged, too large, unreadable or goes beyond the end of the file.

    Raises:
        ValueError: the file cannot be opened, or nothing of it can be read.
    """
    out: list = [None] * len(spans)
    good = []
    for i, (_, size) in enumerate(spans.tolist()):
        if size < 0:
            out[i] = Fault(f"damaged: {-size} bytes that are no record")
        elif size > MAX_RECORD_BYTES:
            out[i] = Fault(
                f"oversized: {size} bytes, more than {MAX_RECORD_BYTES}"
            )
        else:
            good.append(i)
    spans = spans + [0, tail]
    gap = _REMOTE_GAP if is_remote(path) else _LOCAL_GAP
    for i, payload in _read_groups(path, _groups(spans, good, gap)):
        size = int(spans[i, 1])
        if not isinstance(payload, Fault) and len(payload) != size:
            payload = Fault(f"truncated: {len(payload)} of {size} bytes")
        out[i] = payload
    return out


class Window:
    """A file read forward in large pieces, for scanning.

    Args:
        path: the file.
        advance: called with the number of bytes each piece adds.
    """

    def __init__(self, path: str, advance: Callable[[int], None]):
        self.size = stat(path).size
        self._advance = advance
        if is_remote(path):
            self._file = tf.io.gfile.GFile(path, "rb")
        else:
            self._file = open(path, "rb", buffering=0)
        self._start, self._data = 0, b""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()

    def get(self, offset: int, size: int) -> bytes:
        """The bytes [offset, offset + size), fewer at the end of the file."""
        if offset >= self.size:  # where remote files refuse to seek to
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
            return _read_fully(self._file, end - before)

        try:
            self._data = keep + retries.call(read)
        except (OSError, tf.errors.OpError) as error:
            raise OSError(
                f"at byte {before}{retries.tries(error)}: {one_line(error)}"
            ) from error
        if len(self._data) < min(size, self.size - offset):
            raise OSError("it has become shorter while it was read")
        self._start = offset
        self._advance(max(0, offset + len(self._data) - before))


def read_files(paths: Sequence[str], beside: str) -> list[bytes | Fault]:
    """Whole files, such as the pictures that a table's rows name.

    Args:
        paths: the files.
        beside: another file there, such as the table. While it can be read,
            an I/O error is taken for a fault of its file.

    Raises:
        ValueError: the storage cannot be read.
    """
    remote = any(map(is_remote, paths))
    found = retries.try_all(
        lambda some: map_requests(
            lambda path: retries.caught(_read_file, path), some, remote
        ),
        paths,
    )
    return [
        fault_of(result, f"{path} cannot be read", beside)
        if isinstance(result, Exception)
        else result
        for path, result in zip(paths, found, strict=True)
    ]


def fault_of(error: Exception, failure: str, beside: str) -> Fault:
    """A fault for an error that is of the bytes asked for and no others.

    Args:
        error: what was raised, and stayed.
        failure: what it is that failed, for the message.
        beside: a file of which something can be read unless the error is of
            the storage as a whole.

    Raises:
        ValueError: the error is of the storage, or of the moment.
    """
    if retries.is_broken(error) and _is_readable(beside):
        return Fault(f"unreadable: {one_line(error)}")
    raise ValueError(
        f"{failure}{retries.tries(error)}: {one_line(error)}"
    ) from error


def map_requests(function: Callable, items: Sequence, remote: bool) -> list:
    """Calls a function for each item, at once where storage is far away."""
    if not remote or len(items) < 2:
        return [function(item) for item in items]
    workers = min(_REMOTE_REQUESTS, len(items))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))


def one_line(text) -> str:
    """An error or other foreign text, fit for a reason: one short line."""
    return " ".join(str(text).split())[:200]


def open_file(path: str, mode: str = "rb"):
    """Opens a local or remote file."""
    if is_remote(path):
        return tf.io.gfile.GFile(path, mode)
    return open(path, mode)


def _read_file(path):
    name = os.path.basename(path)
    try:
        size = stat(path).size
        # A pipe or device would never end.
        if not is_remote(path) and not os.path.isfile(path):
            return Fault(f"no regular file: {name[:200]!r}")
        if size > MAX_RECORD_BYTES:
            return Fault(
                f"oversized: {size} bytes, more than {MAX_RECORD_BYTES}"
            )
        with open_file(path) as file:
            return file.read(size)
    except (OSError, ValueError, tf.errors.OpError) as error:
        if retries.is_passing(error):
            raise
        return Fault(f"missing file: {name[:200]!r}")


def _glob(pattern):
    if is_remote(pattern):
        if tf.io.gfile.exists(pattern):
            return [pattern]
        try:
            found = tf.io.gfile.glob(pattern)
        except tf.errors.OpError:
            found = []
    else:
        # A path that exists is itself, even if it holds a `[` or `*`.
        if os.path.isfile(pattern):
            return [pattern]
        found = glob.glob(pattern)
    return [path for path in found if not path.endswith(NO_SHARDS)]


class _Group(NamedTuple):
    """Neighbouring ranges of a file that are one read.

    Attributes:
        members: number, offset and size of each.
        start: the first byte of all.
        size: from the first to the last byte.
    """

    members: list[tuple[int, int, int]]
    start: int
    size: int


def _groups(spans, order, gap):
    """The groups of the ranges in `order`."""
    groups, end = [], 0
    for i in sorted(order, key=lambda i: spans[i, 0]):
        offset, size = spans[i].tolist()
        member = (i, offset, size)
        if groups and offset <= end + gap:
            first = groups[-1]
            joint = max(end, offset + size) - first.start
            if joint <= _MAX_READ:
                first.members.append(member)
                groups[-1] = first._replace(size=joint)
                end = first.start + joint
                continue
        groups.append(_Group([member], offset, size))
        end = offset + size
    return groups


def _read_groups(path, groups):
    """Yields the number of every range and its bytes, or a fault."""
    fetch = _fetch_remote if is_remote(path) else _fetch_local
    found = retries.try_all(lambda some: fetch(path, some), groups)
    alone = []
    for group, result in zip(groups, found, strict=True):
        if not isinstance(result, Exception):
            yield from result
        elif len(group.members) == 1:
            yield _fault_of(path, group, result)
        else:
            # The trouble may lie in one of the ranges, or between two.
            alone += [_Group([one], *one[1:]) for one in group.members]
    for group, result in zip(alone, fetch(path, alone), strict=True):
        if isinstance(result, Exception):
            yield _fault_of(path, group, result)
        else:
            yield from result


def _fault_of(path, group, error):
    """The number of a group's only range and its fault, if it is one."""
    failure = f"Shard {path} cannot be read at byte {group.start}"
    return group.members[0][0], fault_of(error, failure, path)


def _fetch_local(path, groups):
    """For each group pairs of number and bytes, or the error."""
    if not groups:
        return []

    def read(group):
        return _cut(group, _pread(file, group.size, group.start))

    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        return [error] * len(groups)
    try:
        return [retries.caught(read, group) for group in groups]
    finally:
        os.close(file)


def _fetch_remote(path, groups):
    def read(group):
        with tf.io.gfile.GFile(path, "rb") as file:
            try:
                file.seek(group.start)
                return _cut(group, file.read(group.size))
            except tf.errors.OutOfRangeError:
                # Some file systems refuse to go beyond the end.
                return _cut(group, b"")

    return map_requests(lambda group: retries.caught(read, group), groups, True)


def _cut(group, data):
    if len(group.members) == 1:  # spares a copy
        return [(group.members[0][0], data)]
    return [
        (i, data[offset - group.start : offset - group.start + size])
        for i, offset, size in group.members
    ]


def _is_readable(path):
    """Whether the start, middle or end of a file can be had just now."""
    with contextlib.suppress(OSError):
        size = stat(path).size
        ends = (0, size // 2, max(0, size - 1))
        return any(_probe(path, offset) for offset in ends)
    return False


def _probe(path, offset):
    try:
        if is_remote(path):
            with tf.io.gfile.GFile(path, "rb") as file:
                file.seek(offset)
                return bool(file.read(1))
        file = os.open(path, os.O_RDONLY)
        try:
            if hasattr(os, "posix_fadvise"):
                # Not from memory, which outlives the storage.
                start = offset // _PROBE * _PROBE
                os.posix_fadvise(file, start, _PROBE, os.POSIX_FADV_DONTNEED)
            return bool(os.pread(file, 1, offset))
        finally:
            os.close(file)
    except (OSError, tf.errors.OpError):
        return False


def _pread(file, size, offset):
    data = os.pread(file, size, offset)
    if len(data) == size:
        return data
    # The system may hand over less than asked for, of very large reads.
    parts = [data]
    while data and sum(map(len, parts)) < size:
        done = sum(map(len, parts))
        data = os.pread(file, size - done, offset + done)
        parts.append(data)
    return b"".join(parts)


def _read_fully(file, size):
    parts, missing = [], size
    while missing > 0:
        data = file.read(missing)
        if not data:
            break
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def _os_error(error):
    text = f"{type(error).__name__}: {error.message}"
    if retries.is_passing(error):
        return OSError(errno.EAGAIN, text)
    return OSError(text)

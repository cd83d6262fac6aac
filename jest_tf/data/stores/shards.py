"""Shards: the interface of a format, records and faults, reads of byte ranges.

A shard is a file. A format is an object with two methods

    scan(path, advance)  # yields (place, size, stored id or None, checksum)
    read(path, spans)    # returns a Record or Fault for each place, size and
                         # checksum, or a function that returns it

and the attributes `name`; `fields`; `index_key`, everything that an index
depends on; and `index_variant`, the part of the key that is a setting.
`advance` takes the number of bytes read since the last call. By the checksum,
32 bits, `read` finds that a record has changed since the scan; 0 is unknown and
not compared. In formats read by byte range, the place is the offset, a negative
size marks bytes that hold no records, and the attribute `damage` describes a
shard with such bytes in words.
"""

import concurrent.futures
import contextlib
import fnmatch
import functools
import glob
import hashlib
import io
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import files
from jest_tf.files import remote as remote_files
from jest_tf.files import retries

# A larger record is a fault, so that a wrong length cannot claim all memory.
# The largest photographs take a tenth of this size.
MAX_RECORD_BYTES = 2**28
# Endings of files that this package writes beside shards.
NO_SHARDS = (".index", ".sidecar", ".weights", files.PARTIAL, ".tmp")

# Integer fields with these names are class numbers, and become metadata `cls`.
CLASS_NUMBERS = ("label", "cls")

# The usual names of shards.
_NAMES = ("*.tfrecord*", "*.tar", "*.csv", "*.tsv", "*.parquet")
# First bytes of files that are not shards.
_COMPRESSIONS = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ\0": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF")

# Bytes per read in a scan.
_WINDOW = 2**22
# Ranges up to this far apart are read together. An object-storage request takes
# as long as reading about a megabyte; a local request takes almost no time.
_LOCAL_GAP = 2**12
_REMOTE_GAP = 2**19
# Limit on a joint read, to bound memory.
_MAX_READ = 2**24
# Seconds to wait for a remote image whose bucket or host has never answered.
# Once a host has answered, the waits of its library apply.
_PATIENCE = 5.0
_answered: set[str] = set()


class Record(NamedTuple):
    """An example as stored.

    Attributes:
        image: the encoded image.
        captions: raw captions in stored order; may be blank, or there are none.
        metadata: other fields, by name: strings, integers and booleans as text.
    """

    image: bytes
    captions: tuple[bytes, ...]
    metadata: Mapping[str, bytes]


class Fault(NamedTuple):
    """An unreadable record; `reason` is a single line, without the location."""

    reason: str


CHANGED = Fault(
    "changed since its shard was indexed: delete the shard's .index file, to "
    "index it again"
)


class Fields(NamedTuple):
    """The fields that hold a record; empty means the format's usual fields.

    Attributes:
        image: feature, extension or column of the image.
        captions: features, extensions, `json` fields or columns of captions.
    """

    image: str = ""
    captions: tuple[str, ...] = ()


USUAL = Fields()


def texts(fields: Mapping[str, object]) -> dict[str, str]:
    """Returns the fields that metadata keeps, as text.

    These are strings, integers and booleans. Integer ids and class numbers are
    left out, as they are kept separately.
    """
    return {
        name: value if isinstance(value, str) else str(value).lower()
        for name, value in fields.items()
        if isinstance(value, str)
        or isinstance(value, int)
        and name not in ("id", *CLASS_NUMBERS)
    }


def stored_id(value: int | str | bytes | None) -> int | None:
    """Converts a value to a 64-bit id, or None if it cannot be an id.

    Integers and decimal strings of up to 18 characters keep their value; other
    strings are hashed to [0, 2**63).
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
    digest = hashlib.blake2b(value, digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


class NoFiles(ValueError):
    """A pattern matches no file."""


def expand(pattern: str, setting: str = "data.train") -> list[str]:
    """Returns the files that a path or glob matches, sorted.

    Indexes and sidecars are left out unless named by path.

    Raises:
        NoFiles: nothing matches the pattern; the message names `setting`.
    """
    reason = ""
    try:
        # An existing path is taken literally, even with a `[` or `*`.
        if files.is_file(pattern):
            return [pattern]
        paths = files.find(pattern)
    except OSError as error:
        paths, reason = [], one_line(error)
    paths = sorted(
        path
        for path in paths
        if not path.endswith(NO_SHARDS) and not os.path.isdir(path)
    )
    if not paths:
        raise NoFiles(
            f"`{setting}` must match files. Received: {pattern!r}, "
            f"{reason or _unmatched(pattern)}"
        )
    return paths


def _unmatched(pattern):
    """Explains why a pattern matches no file."""
    folder, received = pattern, "a folder that"
    if not files.is_folder(pattern):
        folder = os.path.dirname(pattern) or "."
        received = f"which matches none: the folder {folder!r}"
        if glob.has_magic(folder) or files.is_remote(pattern):
            return "which matches none"
        if not os.path.isdir(folder):
            missing = files.absolute(folder)
            return f"which matches none: there is no folder {missing!r}"
    held = [
        name
        for name in files.list_folder(folder)
        if not name.endswith(NO_SHARDS) and not name.startswith(".")
    ]
    usual = [name for name in _NAMES if fnmatch.filter(held, name)]
    if folder == pattern and usual:
        shown = os.path.join(folder, usual[0])
        return f"a folder: name files in it, such as {shown!r}"
    shown = ", ".join(held[:3]) or "nothing"
    if len(held) > 3:
        shown += f" and {len(held) - 3:,} more"
    paths = (os.path.join(folder, name) for name in held)
    first = next(filter(files.is_file, paths), None)
    reason = first and contents(first)
    return f"{received} holds {shown}" + (f"; {first}: {reason}" * bool(reason))


def contents(path: str) -> str:
    """Explains what a file is, by its first bytes, and what to do; or ""."""
    with files.open_file(path) as file:
        head = file.read(512)
    for start, command in _COMPRESSIONS.items():
        if head.startswith(start):
            return f"it is compressed: `{command} < {path} > NEW` unpacks it"
    if head[257:262] == b"ustar":
        return "it is a tar: let its name end in .tar"
    if head.startswith(_IMAGE_MAGIC):
        return (
            "it is an image: name images in a table, .csv or .parquet, "
            "with the columns `image` and `caption`"
        )
    return ""


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Turns a system error about a shard into a ValueError that names it."""
    try:
        yield
    except retries.ERRORS as error:
        raise ValueError(f"Shard {path} cannot be read: {error}") from error


def read_records(
    path: str,
    spans: np.ndarray,
    parse: Callable[[bytes, int], Record | Fault],
    head: int = 0,
    tail: int = 0,
    later: bool = False,
) -> list[Record | Fault | Callable[[], Record | Fault]]:
    """Reads byte ranges of a file, neighbours together.

    Args:
        spans: int64 [k, 3], offsets, sizes and checksums, in any order.
        parse: makes a record of a range's bytes and its checksum.
        head, tail: bytes before and after each range that belong to it.
        later: whether to leave parsing to the caller.

    Returns:
        k records, or functions that parse them. A fault replaces a range that
        is marked as damaged, too large, beyond the end of the file, or
        unreadable after `retries`.
    """
    remote = files.is_remote(path)
    out: list = [_size_fault(size) for size in spans[:, 1].tolist()]
    spans = (spans + [-head, head + tail, 0]).tolist()
    # Remote pieces are read in parallel, with one request each.
    gap, limit = _LOCAL_GAP, _MAX_READ
    if remote:
        gap, limit = _REMOTE_GAP, min(_MAX_READ, remote_files.PIECE)
    groups = _groups(spans, out, gap, limit)

    def read(group):
        start, end, _ = group
        try:
            with files.open_file(path) as file:
                file.seek(start)
                return file.read(end - start)
        except tf.errors.OutOfRangeError:  # a seek beyond the end
            return b""

    parts = retries.call_all(read, groups, remote)
    for (start, _, places), joint in zip(groups, parts, strict=True):
        for i in places:
            offset, size, checksum = spans[i]
            if not isinstance(joint, Exception):
                data = joint[offset - start : offset - start + size]
            elif len(places) > 1:
                # The error may be due to another range.
                alone = offset, offset + size, [i]
                (data,) = retries.call_all(read, [alone], tries=1)
            else:
                data = joint
            if isinstance(data, retries.LASTING):
                raise ValueError(
                    f"Shard {path} cannot be read: {one_line(data)}"
                ) from data
            if isinstance(data, Exception):
                out[i] = Fault(f"unreadable: {one_line(data)}")
            elif len(data) < size:
                out[i] = Fault(f"truncated: {len(data)} of {size} bytes")
            else:
                make = functools.partial(parse, data, checksum)
                out[i] = make if later else make()
    return out


def open_scan(
    path: str, advance: Callable[[int], None] = lambda size: None
) -> io.BufferedReader:
    """Opens a file to be read forward in large pieces."""
    size, _ = files.stat(path)
    file = _RetriedFile(files.open_file(path), size, advance)
    return io.BufferedReader(file, _WINDOW)


def read_files(paths: Sequence[str]) -> list[bytes | Fault]:
    """Reads whole files, such as images named by a table's rows.

    A path of any scheme that cannot be opened becomes a fault within seconds.
    """
    remote = any(map(files.is_remote, paths))
    patience = _PATIENCE if remote else math.inf
    out = retries.call_all(_read_file, paths, remote, patience=patience)
    for i, result in enumerate(out):
        if isinstance(result, FileNotFoundError | tf.errors.NotFoundError):
            out[i] = Fault(
                f"missing file: {os.path.basename(paths[i])[:200]!r}"
            )
        elif isinstance(result, Exception):
            out[i] = Fault(f"unreadable: {one_line(result)}")
    return out


def one_line(text) -> str:
    """Shortens text, such as a library's error message, to a single line."""
    return " ".join(str(text).split())[:200]


class _RetriedFile(io.RawIOBase):
    """A file that repeats failed reads, and reports the sizes to `advance`."""

    def __init__(self, file, size, advance):
        self.size = size
        self._file, self._advance = file, advance
        self._place = 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        start = {os.SEEK_CUR: self._place, os.SEEK_END: self.size}
        self._place = start.get(whence, 0) + offset
        return self._place

    def readinto(self, buffer):
        size = max(0, min(len(buffer), self.size - self._place))

        def read():
            self._file.seek(self._place)
            return self._file.read(size)

        try:
            # Remote files refuse to seek to the end.
            data = retries.call(read) if size else b""
        except retries.ERRORS as error:
            raise OSError(
                f"at byte {self._place}: {one_line(error)}"
            ) from error
        if len(data) < size:
            raise OSError("the file shrank while it was being read")
        buffer[:size] = data
        self._place += size
        self._advance(size)
        return size

    def close(self):
        super().close()
        self._file.close()


def _groups(spans, faults, gap, limit):
    """Groups ranges without a fault into joint reads: start, end, indices."""
    groups: list = []
    for i in sorted(range(len(spans)), key=lambda i: spans[i][0]):
        start, size, _ = spans[i]
        end = start + size
        if faults[i]:
            continue
        if groups and start <= groups[-1][1] + gap:
            first, last, places = groups[-1]
            if max(end, last) - first <= limit:
                places.append(i)
                groups[-1] = first, max(end, last), places
                continue
        groups.append((start, end, [i]))
    return groups


def _size_fault(size):
    if size < 0:
        return Fault(f"damaged: {-size} bytes that are not a record")
    if size > MAX_RECORD_BYTES:
        return Fault(f"oversized: {size} bytes, more than {MAX_RECORD_BYTES}")
    return None


def _read_file(path):
    path = files.local_path(path)
    if files.is_remote(path):
        return _read_remote(path)
    # Reading a pipe or a device would never end.
    if not os.path.isfile(path):
        raise FileNotFoundError(path)
    size, _ = files.stat(path)
    fault = _size_fault(size)
    if fault:
        return fault
    with files.open_file(path) as file:
        return file.read(size)


def _read_remote(path):
    root = "/".join(path.split("/")[:3])
    if root in _answered:
        return _fetch(path, root)
    # A library's call cannot be interrupted, so it runs in a thread for which
    # nothing waits, not even the end of the process.
    future: concurrent.futures.Future = concurrent.futures.Future()

    def run():
        future.set_result(_fetch(path, root))

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(_PATIENCE)
    except TimeoutError:
        return Fault(f"unreadable: no answer from {root} in {_PATIENCE:g} s")


def _fetch(path, root):
    """Returns the bytes of a remote file, or its error or fault."""
    try:
        # Not with `files.read_whole`: the caller repeats failed reads, too.
        with files.open_file(path) as file:
            data = file.read(MAX_RECORD_BYTES + 1)
        result = data
        if len(data) > MAX_RECORD_BYTES:
            result = Fault(f"oversized: more than {MAX_RECORD_BYTES} bytes")
    except retries.ERRORS as error:
        result = error
    except Exception as error:  # An unknown scheme, or a library's own error.
        return Fault(f"unreadable: {path[:100]!r}, {one_line(error)}")
    if not retries.may_pass(result):
        _answered.add(root)
    return result

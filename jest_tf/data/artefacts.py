"""Artefacts: the file format of indexes, sidecars and manifests.

An artefact is a safetensors file: named arrays, and string metadata with its
kind, version, source and checksums. It is written sequentially and then
renamed, which suits object stores, and is read by mapping it.
"""

import contextlib
import functools
import json
import math
import mmap
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jest_tf import files

# How to rebuild each kind.
KINDS = {
    "index": "delete it; it will be rebuilt",
    "sidecar": "rewrite it with `jest-tf embed --overwrite`",
    "manifest": "rewrite it with `jest-tf curate --overwrite`",
}
# 1, of 0.3.0, has no checksums of records, and images that were not turned.
_VERSION = "2"
_DTYPES = {"I64": "int64", "U32": "uint32", "F32": "float32", "F16": "float16"}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH = struct.Struct("<Q")  # size of the head that follows
_ALIGNMENT = 64  # a cache line
_HEAD = 2**14  # bytes, enough for most heads
_LARGEST_HEAD = 10**8  # the format's limit


class RemoteArray:
    """An array at an offset in a remote file, whose rows are read by pages."""

    def __init__(
        self, file, offset: int, dtype: np.dtype, shape: tuple[int, ...]
    ):
        self.dtype, self.shape = dtype, shape
        self._file, self._offset = file, offset
        self._size = dtype.itemsize * math.prod(shape[1:])

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Reads rows, int64 [k], in strictly ascending order."""
        if not len(rows):
            return np.empty([0, *self.shape[1:]], self.dtype)
        # Runs of consecutive rows.
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1
        first = rows[np.append(0, cuts)]
        last = rows[np.append(cuts, len(rows)) - 1]
        ranges = np.stack([first, last + 1], axis=1) * self._size
        data = self._file.read(ranges + self._offset)
        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])

    def __array__(self, dtype=None, copy=None):
        return self[np.arange(len(self))]


class Artefact(NamedTuple):
    """The content of an artefact.

    Attributes:
        metadata: strings; `crc32` is a JSON object of checksums by array.
        arrays: by name, read-only views of the mapped file; `RemoteArray`s if
            the file is remote and was not verified.
    """

    metadata: dict[str, str]
    arrays: dict[str, np.ndarray | RemoteArray]


@contextlib.contextmanager
def written(
    path: str,
    kind: str,
    metadata: Mapping[str, str],
    arrays: Mapping[str, tuple[str, tuple[int | None, ...]]],
) -> Iterator[Callable[[str, np.ndarray], None]]:
    """Yields `append(name, rows)`; the artefact appears as the block ends.

    Args:
        path: of the artefact, see `files.written_whole`.
        metadata: strings that identify the artefact's origin.
        arrays: dtype and shape of each array by name. None as the number of
            rows of the last array accepts any number.
    """
    metadata = {"kind": kind, "version": _VERSION, **metadata}
    rows, checksums = dict.fromkeys(arrays, 0), dict.fromkeys(arrays, 0)

    def layout(unknown):
        known = {name: shape[0] for name, (_, shape) in arrays.items()}
        return _layout(arrays, {k: n or unknown for k, n in known.items()})

    # Room for the longest possible head.
    longest = _head(metadata, layout(2**48), dict.fromkeys(arrays, 2**32 - 1))
    room = _LENGTH.size + len(longest) + len(str(2**32 - 1))
    start = -(-room // _ALIGNMENT) * _ALIGNMENT
    places = {
        name: start + entry["data_offsets"][0]
        for name, entry in layout(0).items()
    }

    def append(name, values):
        dtype = np.dtype(arrays[name][0]).newbyteorder("<")
        values = np.ascontiguousarray(values, dtype)
        file.seek(places[name])
        file.write(values.data.cast("B") if values.size else b"")
        places[name] += values.nbytes
        rows[name] += len(values)
        checksums[name] = zlib.crc32(values, checksums[name])

    with files.written_whole(path) as partial, open(partial, "wb") as file:
        yield append
        for name, (_, (expected, *_)) in arrays.items():
            if expected not in (None, rows[name]):
                raise ValueError(
                    f"Array `{name}` must have {expected} rows. "
                    f"Received: {rows[name]}"
                )
        head = _head(metadata, _layout(arrays, rows), checksums)
        size = start - _LENGTH.size
        file.seek(0)
        file.write(_LENGTH.pack(size) + head.ljust(size))


def write(
    path: str,
    kind: str,
    metadata: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Writes an artefact from whole arrays; see `written`."""
    shapes = {
        name: (str(values.dtype), values.shape)
        for name, values in arrays.items()
    }
    with written(path, kind, metadata, shapes) as append:
        for name, values in arrays.items():
            append(name, values)


def read(path: str, kind: str, *, verify: bool = False) -> Artefact:
    """Maps an artefact.

    With `verify`, compares the checksums, which reads all arrays and copies a
    remote file to a local file first. Otherwise a remote file is read by range.
    """
    with read_as(path, kind):
        if files.is_remote(path) and not verify:
            file = files.open_pages(path)
            artefact = _artefact(
                file.size,
                lambda size: files.read_ranges(path, np.array([[0, size]])),
                functools.partial(RemoteArray, file),
            )
        else:
            with files.staged(path) as local:
                artefact = _map(local)
        _check(artefact, kind, verify)
    return artefact


@contextlib.contextmanager
def read_as(path: str, kind: str) -> Iterator[None]:
    """Turns errors in the block into a ValueError: not a file of the kind."""
    try:
        yield
    except (
        *(LookupError, ValueError, TypeError, AttributeError),
        *(OverflowError, RecursionError, struct.error),
    ) as error:
        raise ValueError(
            f"{path} must be a jest_tf {kind}. Received: {error}; {KINDS[kind]}"
        ) from error


def read_again(
    path: str, kind: str, expected: tuple[tuple[str, str], ...]
) -> Artefact:
    """Maps an artefact that was read before; suits `functools.lru_cache`."""
    try:
        artefact = read(path, kind)
    except OSError as error:
        raise ValueError(f"{path} can no longer be read: {error}") from error
    if not set(expected) <= artefact.metadata.items():
        raise ValueError(
            f"{path} was replaced by another {kind} since it was opened: start "
            "again"
        )
    return artefact


def _layout(arrays, rows):
    """Returns safetensors' entries, by name, of arrays with these rows."""
    layout, end = {}, 0
    for name, (dtype, shape) in arrays.items():
        shape, start = [rows[name], *shape[1:]], end
        end += np.dtype(dtype).itemsize * math.prod(shape)
        layout[name] = {
            "dtype": _NAMES[dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    return layout


def _head(metadata, layout, checksums):
    metadata = metadata | {"crc32": json.dumps(checksums)}
    shapes = {name: entry["shape"] for name, entry in layout.items()}
    metadata["checksum"] = _checksum(metadata, shapes)
    return json.dumps({"__metadata__": metadata, **layout}).encode()


def _map(path):
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def view(place, dtype, shape):
        values = np.frombuffer(data, dtype, math.prod(shape), place)
        return values.reshape(shape)

    return _artefact(len(data), lambda size: data[:size], view)


def _artefact(size, first, make):
    """Reads a file's head with `first(size)`, and makes arrays with `make`."""
    head = first(min(size, _HEAD))
    (length,) = _LENGTH.unpack_from(head)
    start = _LENGTH.size + length
    if length > _LARGEST_HEAD or start > size:
        raise ValueError("a header that is too long, or truncated")
    if start > len(head):
        head = first(start)
    entries = json.loads(head[_LENGTH.size : start])
    metadata = entries.pop("__metadata__", {})
    arrays, end = {}, 0
    for name, entry in sorted(
        entries.items(), key=lambda item: item[1]["data_offsets"]
    ):
        dtype = np.dtype(_DTYPES[entry["dtype"]]).newbyteorder("<")
        shape = tuple(entry["shape"])
        place = end
        end += dtype.itemsize * math.prod(shape)
        if entry["data_offsets"] != [place, end]:
            raise ValueError(f"wrong offsets of `{name}`")
        arrays[name] = make(start + place, dtype, shape)
    if start + end != size:
        raise ValueError(
            f"{size} bytes, but its header describes {start + end}"
        )
    return Artefact(metadata, arrays)


def _check(artefact, kind, verify):
    metadata = dict(artefact.metadata)
    for name, expected in (("kind", kind), ("version", _VERSION)):
        if metadata.get(name) != expected:
            found = metadata.get(name)
            raise ValueError(f"{name} {found!r}, not {expected!r}")
    checksum = metadata.pop("checksum")
    shapes = {name: array.shape for name, array in artefact.arrays.items()}
    if checksum != _checksum(metadata, shapes):
        raise ValueError("a damaged header")
    checksums = json.loads(metadata["crc32"])
    for name, expected in checksums.items() if verify else ():
        if zlib.crc32(artefact.arrays[name]) != expected:
            raise ValueError(f"damaged `{name}`")


def _checksum(metadata, shapes):
    shapes = {name: list(shape) for name, shape in shapes.items()}
    return str(
        zlib.crc32(json.dumps([metadata, shapes], sort_keys=True).encode())
    )

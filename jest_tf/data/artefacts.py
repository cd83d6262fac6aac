"""Artefacts: the file format of indexes, sidecars and manifests.

An artefact is a safetensors file: named arrays, and string metadata with its
kind, version, source and checksums. It is written sequentially and then
renamed, which suits object stores, and is read by mapping it.
"""

import collections
import json
import math
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import safetensors

from jest_tf import files

# How to rebuild each kind.
KINDS = {
    "index": "delete it, and it is built anew",
    "sidecar": "write it anew with `jest-tf embed --overwrite`",
    "manifest": "write it anew with `jest-tf curate --overwrite`",
}
_VERSION = "1"
_DTYPES = {"I64": "int64", "F32": "float32", "F16": "float16"}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH = struct.Struct("<Q")  # of the head, which follows
_ALIGNMENT = 64  # a cache line


class Artefact(NamedTuple):
    """An artefact that was read.

    Attributes:
        metadata: strings; `crc32` is a JSON object of checksums by array.
        arrays: read-only views of the mapped file, by name.
    """

    metadata: dict[str, str]
    arrays: dict[str, np.ndarray]

    @property
    def checksums(self) -> dict[str, int]:
        """CRC-32 of each array."""
        return json.loads(self.metadata["crc32"])


class Writer:
    """Writes an artefact row by row, in little memory.

    Args:
        path: a new local file, as `files.written_whole` yields it.
        kind: one of `KINDS`.
        metadata: strings that identify the artefact's origin.
        arrays: dtype and shape of each array by name. The last array may have
            None rows: as many as are appended.
    """

    def __init__(
        self,
        path: str,
        kind: str,
        metadata: Mapping[str, str],
        arrays: Mapping[str, tuple[str, tuple[int | None, ...]]],
    ):
        self._metadata = {"kind": kind, "version": _VERSION, **metadata}
        self._arrays = dict(arrays)
        self._rows = dict.fromkeys(arrays, 0)
        self._checksums = dict.fromkeys(arrays, 0)
        # Room for the longest possible head.
        head = self._head(
            {name: shape[0] or 2**48 for name, (_, shape) in arrays.items()},
            dict.fromkeys(arrays, 2**32 - 1),
        )
        room = len(head) + len(str(2**32 - 1))
        self._start = -(-room // _ALIGNMENT) * _ALIGNMENT
        self._places, end = {}, self._start
        for name, (dtype, shape) in arrays.items():
            self._places[name] = end
            end += (
                np.dtype(dtype).itemsize
                * math.prod(shape[1:])
                * (shape[0] or 0)
            )
        self._file = open(path, "wb")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()

    def append(self, name: str, values: np.ndarray) -> None:
        """Adds rows to an array."""
        dtype = np.dtype(self._arrays[name][0]).newbyteorder("<")
        values = np.ascontiguousarray(values, dtype)
        self._file.seek(self._places[name])
        self._file.write(values.data.cast("B") if values.size else b"")
        self._places[name] += values.nbytes
        self._rows[name] += len(values)
        self._checksums[name] = zlib.crc32(values, self._checksums[name])

    def finish(self) -> None:
        """Writes the head; every row must have been appended."""
        for name, (_, (expected, *_)) in self._arrays.items():
            if expected not in (None, self._rows[name]):
                raise ValueError(
                    f"Array `{name}` must have {expected} rows. "
                    f"Received: {self._rows[name]}"
                )
        head = self._head(self._rows, self._checksums)
        self._file.seek(0)
        self._file.write(_LENGTH.pack(self._start - _LENGTH.size))
        self._file.write(head[_LENGTH.size :].ljust(self._start - _LENGTH.size))

    def _head(self, rows, checksums):
        tensors, end = {}, 0
        for name, (dtype, shape) in self._arrays.items():
            shape = [rows[name], *shape[1:]]
            start = end
            end += np.dtype(dtype).itemsize * math.prod(shape)
            tensors[name] = {
                "dtype": _NAMES[dtype],
                "shape": shape,
                "data_offsets": [start, end],
            }
        metadata = self._metadata | {"crc32": json.dumps(checksums)}
        shapes = {name: one["shape"] for name, one in tensors.items()}
        metadata["checksum"] = _checksum(metadata, shapes)
        text = json.dumps({"__metadata__": metadata, **tensors})
        return bytes(_LENGTH.size) + text.encode()


def write(
    path: str,
    kind: str,
    metadata: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Writes a whole artefact; see `Writer` and `files.written_whole`."""
    shapes = {
        name: (str(values.dtype), values.shape)
        for name, values in arrays.items()
    }
    with files.written_whole(path) as partial:
        with Writer(partial, kind, metadata, shapes) as writer:
            for name, values in arrays.items():
                writer.append(name, values)
            writer.finish()


def read(path: str, kind: str, *, verify: bool = False) -> Artefact:
    """Maps an artefact; a remote one is first copied to a temporary file.

    To `verify` is to compare the checksums, which reads all arrays.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged or not an artefact of this kind.
    """
    try:
        with files.staged(path) as local:
            found = _map(local)
        _check(found, kind, verify)
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{path} must be a jest_tf {kind}. Received: {error}; {KINDS[kind]}"
        ) from error
    return found


class Maps:
    """A cache of mapped artefacts that drops the least recently used.

    Each holds a file descriptor; processes are often limited to 1,024.
    """

    def __init__(self, kind: str, most: int):
        self._kind = kind
        self._most = most
        self._open: collections.OrderedDict = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def forget(self, path: str) -> None:
        """Drops the map of a file that may have been replaced."""
        with self._lock:
            self._open.pop(path, None)

    def get(self, path: str, expected: Mapping[str, str]) -> Artefact:
        """Returns an artefact that some thread has read before.

        Raises:
            ValueError: the file is gone, or lacks the `expected` metadata.
        """
        with self._lock:
            found = self._open.pop(path, None)
            if found is None or not expected.items() <= found.metadata.items():
                found = self._read(path, expected)
            self._open[path] = found
            if len(self._open) > self._most:
                self._open.popitem(last=False)
        return found

    def _read(self, path, expected):
        try:
            found = read(path, self._kind)
        except OSError as error:
            raise ValueError(
                f"{path} cannot be read any more: {error}"
            ) from error
        if not expected.items() <= found.metadata.items():
            raise ValueError(
                f"{path} was replaced by another {self._kind} since it was "
                "opened: start again"
            )
        return found


def _map(path):
    while True:
        with open(path, "rb") as file:
            # Safetensors checks all sizes against the file's and allows no
            # gaps, so the arrays are the end of the file.
            with safetensors.safe_open(path, "numpy") as tensors:
                metadata = tensors.metadata() or {}
                slices = {
                    name: tensors.get_slice(name)
                    for name in tensors.offset_keys()
                }
            # The file may have been replaced between the two openings.
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                break
    arrays, place = {}, len(data)
    for name, one in reversed(slices.items()):
        dtype = np.dtype(_DTYPES[one.get_dtype()]).newbyteorder("<")
        shape = one.get_shape()
        count = math.prod(shape)
        place -= dtype.itemsize * count
        values = np.frombuffer(data, dtype, count, place)
        arrays[name] = values.reshape(shape)
    return Artefact(metadata, arrays)


def _check(found, kind, verify):
    metadata = dict(found.metadata)
    for name, expected in (("kind", kind), ("version", _VERSION)):
        if metadata.get(name) != expected:
            raise ValueError(f"{name} {metadata.get(name)!r}")
    checksum = metadata.pop("checksum")
    shapes = {name: array.shape for name, array in found.arrays.items()}
    if checksum != _checksum(metadata, shapes):
        raise ValueError("a damaged head")
    for name, expected in found.checksums.items() if verify else ():
        if zlib.crc32(found.arrays[name]) != expected:
            raise ValueError(f"damaged `{name}`")


def _checksum(metadata, shapes):
    shapes = {name: list(shape) for name, shape in shapes.items()}
    return str(
        zlib.crc32(json.dumps([metadata, shapes], sort_keys=True).encode())
    )

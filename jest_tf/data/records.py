"""A store of records: TFRecord shards read as one array of `tf.train.Example`s.

An index of byte offsets is built once by walking the framing of each shard, so
that any row is one positioned read and a pipeline needs no shuffle buffer and
no iterator state. The order of rows is in `stream.py`, parsing for training in
`pipeline.py`. Shards are local, uncompressed files; tars and tables are not
here.

A shard is a sequence of frames, all integers little-endian: length (8 bytes),
masked CRC-32C of those 8 bytes (4), payload, masked CRC-32C of the payload (4).
"""

import array
import collections
import glob
import hashlib
import mmap
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Read and parsed together by `columns`: large enough to hide the cost of a
# call, small enough that the pictures passing by stay within tens of MB.
_PARSE_BATCH = 4096


class Shards(NamedTuple):
    """The files of a store.

    Attributes:
        paths: tuple of file names, in the order of the store's rows.
        lengths: int64 [shards], the number of records in each.
    """

    paths: tuple[str, ...]
    lengths: np.ndarray


class TFRecordStore:
    """An array of records over one or more TFRecord shards.

    Rows run over the shards in sorted order of their paths. Every length field
    is checked against its CRC-32C and the file's size when the store is made.
    Payload checksums are not: a payload is checked when it is parsed and its
    picture decoded. Objects hold no open file and may be used from several
    threads at once.

    Args:
        patterns: a path or glob, or several; each must match a file. A file
            matched twice counts once.

    Raises:
        ValueError: a pattern matches nothing, or a shard is empty, truncated
            or no uncompressed TFRecord file.
    """

    def __init__(self, patterns: str | Sequence[str]):
        paths = _expand(patterns)
        index = [_index_shard(path) for path in paths]
        lengths = np.array([len(offsets) for offsets, _ in index], np.int64)
        self.shards = Shards(tuple(paths), lengths)
        self._ends = np.cumsum(lengths)  # [shards]
        self._offsets = np.concatenate([offsets for offsets, _ in index])
        self._sizes = np.concatenate([sizes for _, sizes in index])
        self._name_keys = _name_keys(paths)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, rows: np.ndarray) -> list[bytes]:
        """Reads the serialized records at rows, in any order, repeats allowed.

        Args:
            rows: int64 [k], each in [0, len(store)).

        Returns:
            k payloads, in the order asked for.

        Raises:
            IndexError: a row is out of range.
            ValueError: a shard is shorter than when it was indexed.
        """
        rows = self._check_rows(rows)
        shards = self._shard_of(rows)
        records: list[bytes] = [b""] * len(rows)
        # Sorted by shard and row, so that each shard is opened once and read
        # forward.
        previous, file = -1, None
        try:
            for i in np.argsort(rows, kind="stable").tolist():
                shard, row = int(shards[i]), int(rows[i])
                if shard != previous:
                    if file is not None:
                        os.close(file)
                        file = None
                    file = os.open(self.shards.paths[shard], os.O_RDONLY)
                    previous = shard
                records[i] = self._read_payload(file, shard, row)
        finally:
            if file is not None:
                os.close(file)
        return records

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray | list]:
        """Reads features of every record into memory, in the store's order.

        Args:
            names: features of the schema: `id`, `caption`, or the name of a
                feature that holds at most one string.

        Returns:
            `id` as int64 [n], derived where a record has none; `caption` as n
            lists of bytes; any other as an object array [n] of bytes, b""
            where a record has none.

        Raises:
            ValueError: a record holds several values of a single feature, or
                ids had to be derived from shards of the same name.
        """
        features = {
            name: tf.io.RaggedFeature(tf.int64 if name == "id" else tf.string)
            for name in names
        }
        parts: dict[str, list] = {name: [] for name in names}
        for start in range(0, len(self), _PARSE_BATCH):
            rows = np.arange(start, min(start + _PARSE_BATCH, len(self)))
            parsed = tf.io.parse_example(self.read(rows), features)
            for name in names:
                parts[name].append(self._column(name, rows, parsed[name]))
        return {
            name: sum(chunks, [])
            if name == "caption"
            else np.concatenate(chunks)
            for name, chunks in parts.items()
        }

    def derived_ids(self, rows: np.ndarray) -> np.ndarray:
        """Ids for records that carry none: a hash of shard name and row.

        The id depends on the base name of the shard and the row within it, so
        it survives a move of the directory and further shards.

        Args:
            rows: int64 [k].

        Returns:
            int64 [k], not negative; -1 where several shards share the base
            name and would share ids.
        """
        rows = self._check_rows(rows)
        shards = self._shard_of(rows)
        keys = self._name_keys[shards]
        local = rows - (self._ends - self.shards.lengths)[shards]
        # Odd multiplier: for one shard the map from row to id is one to one
        # before the sign bit is dropped.
        mixed = (keys + local.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
        ids = (mixed & np.uint64(2**63 - 1)).astype(np.int64)
        return np.where(keys == 0, np.int64(-1), ids)

    def describe(self, row: int) -> str:
        """Where a row lies, for error messages: shard and record within it."""
        shard = int(self._shard_of(np.array([row]))[0])
        first = int(self._ends[shard] - self.shards.lengths[shard])
        return f"record {row - first} of {self.shards.paths[shard]}"

    def _column(self, name, rows, values):
        if name == "caption":
            return values.to_list()
        counts = values.row_lengths().numpy()
        if (counts > 1).any():
            row = int(rows[np.argmax(counts > 1)])
            raise ValueError(
                f"`{name}` must hold at most one value. "
                f"Received: {counts.max()} values in {self.describe(row)}"
            )
        if name != "id":
            filled = np.full(len(rows), b"", object)
            filled[counts == 1] = values.flat_values.numpy()
            return filled
        ids = self.derived_ids(rows)
        ids[counts == 1] = values.flat_values.numpy()
        clash = (counts == 0) & (ids == -1)
        if clash.any():
            raise ValueError(
                name_clash_message(self.describe(rows[np.argmax(clash)]))
            )
        return ids

    def _check_rows(self, rows):
        rows = np.asarray(rows, np.int64)
        outside = (rows < 0) | (rows >= len(self))
        if outside.any():
            raise IndexError(
                f"`rows` must be in [0, {len(self)}). "
                f"Received: {rows[outside][0]}"
            )
        return rows

    def _shard_of(self, rows):
        return np.searchsorted(self._ends, rows, side="right")

    def _read_payload(self, file, shard, row):
        size = int(self._sizes[row])
        payload = os.pread(file, size, int(self._offsets[row]))
        if len(payload) != size:
            raise ValueError(
                f"Shard {self.shards.paths[shard]} changed after it was "
                f"indexed: expected {size} bytes at byte "
                f"{self._offsets[row]}. Received: {len(payload)} bytes"
            )
        return payload


def name_clash_message(place: str) -> str:
    """The error for a record without `id` whose shard name is not unique."""
    return (
        f"`id` is missing in {place}, and another shard has the same base "
        "name, so that ids derived from it would repeat. Rename the shards or "
        "write ids."
    )


def _expand(patterns):
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise ValueError(
            "`patterns` must name at least one shard. Received: []"
        )
    paths = set()
    for pattern in patterns:
        # A path that exists is itself, even if it holds a `[` or `*`.
        found = [pattern] if os.path.isfile(pattern) else glob.glob(pattern)
        if not found:
            raise ValueError(
                f"`patterns` must match files. Received: {pattern!r}, which "
                "matches none"
            )
        paths.update(found)
    return sorted(paths)


def _index_shard(path):
    """Payload offsets and sizes of one shard, int64 [n] each."""
    try:
        with open(path, "rb") as file:
            total = os.fstat(file.fileno()).st_size
            if total == 0:
                raise ValueError(f"Shard {path} is empty: it has no record.")
            with mmap.mmap(
                file.fileno(), total, access=mmap.ACCESS_READ
            ) as data:
                return _walk(path, data, total)
    except OSError as error:
        raise ValueError(f"Shard {path} cannot be read: {error}") from error


def _walk(path, data, total):
    lengths, checksums = array.array("Q"), array.array("I")
    unpack = struct.Struct("<QI").unpack_from
    position = 0
    while position + 12 <= total:
        length, checksum = unpack(data, position)
        lengths.append(length)
        checksums.append(checksum)
        if position + 12 + length + 4 > total:
            break
        position += 12 + length + 4
    # A wrong length is named first: beyond it every position is meaningless,
    # also the one where the walk ended.
    index = _check_lengths(path, lengths, checksums)
    if position < total:
        raise ValueError(
            f"Shard {path} is truncated: the record at byte {position} goes "
            f"beyond the end of the file at byte {total}."
        )
    return index


def _check_lengths(path, lengths, checksums):
    sizes = np.frombuffer(lengths, np.uint64)
    expected = masked_crc32c(sizes)
    # A wrong length may be too large for int64 sums, but everything before the
    # first wrong one is right.
    wrong = expected != np.frombuffer(checksums, np.uint32)
    good = int(np.argmax(wrong)) if wrong.any() else len(sizes)
    sizes = sizes[:good].astype(np.int64)
    ends = np.cumsum(sizes + 16)
    if wrong.any():
        position = int(ends[-1]) if good else 0
        raise ValueError(
            f"Shard {path} is not an uncompressed TFRecord file, or is "
            f"corrupt: the length at byte {position} fails its checksum."
        )
    return ends - sizes - 4, sizes


def masked_crc32c(values: np.ndarray) -> np.ndarray:
    """Masked CRC-32C of 8-byte little-endian integers, as TFRecord frames do.

    Args:
        values: uint64 [n].

    Returns:
        uint32 [n]: `rotate_right(crc, 15) + 0xa282ead8`.
    """
    octets = values.astype("<u8").view(np.uint8).reshape(-1, 8)
    crc = np.full(len(values), 0xFFFFFFFF, np.uint32)
    for i in range(8):
        crc = _CRC_TABLE[(crc ^ octets[:, i]) & 0xFF] ^ (crc >> 8)
    crc = ~crc
    return ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)


def _crc_table():
    """CRC-32C of every byte: polynomial 0x1EDC6F41, bits reflected."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, 0x82F63B78, 0).astype(
            np.uint32
        )
    return table


_CRC_TABLE = _crc_table()


def _name_keys(paths):
    """uint64 [shards]: hash of each base name, 0 if it is not unique."""
    names = [os.path.basename(path) for path in paths]
    counts = collections.Counter(names)
    keys = [
        int.from_bytes(
            hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"
        )
        if counts[name] == 1
        else 0
        for name in names
    ]
    return np.array(keys, np.uint64)

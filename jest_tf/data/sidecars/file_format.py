"""One sidecar file: its layout, how it is written and how it is mapped.

A sidecar holds a frozen reference's embeddings of one shard, row for row:

    magic, version, length and CRC-32 of the header    20 bytes
    two slots: rows and captions done, CRC-32          20 bytes at 32 and 64
    header: JSON, see `Header`                         at 96
    ids        int64 [n]
    valid      a bit a row, the lowest first; 0: the record could not be read
    offsets    int64 [n + 1]; row i has the captions offsets[i] to offsets[i+1]
    image      float16 or float32 [n, D]
    text       the same [captions, D]

All is little-endian, and each array starts at a multiple of 64 bytes, so that a
reader maps the file and copies nothing. An unfinished file has the same layout
and the name `*.partial`. The slots are written in turn, each after the data it
counts has reached the disk, so that one of them always says where to go on.
Files are local; those of a whole store are in `data/sidecars/reading.py`.
"""

import fcntl
import json
import math
import mmap
import os
import struct
import time
import zlib
from typing import NamedTuple

import numpy as np

DTYPES = ("float16", "float32")
PARTIAL = ".partial"

_MAGIC = b"JESTSIDE"
_VERSION = 1
_HEAD = struct.Struct("<8sIII")
_COUNTS, _CHECKSUM = struct.Struct("<QQ"), struct.Struct("<I")
_SLOT_PLACES = (32, 64)
_JSON_PLACE = 96
_MAX_JSON = 2**20
_ALIGNMENT = 64  # a cache line
# Seconds of work that a killed writer may lose.
_COMMIT_SECONDS = 2.0
# How far a length may be off 1: two steps of bfloat16, which has 8 bits.
_LENGTH_TOLERANCE = 2**-6


class Description(NamedTuple):
    """What embeddings are of; those of equal descriptions may be mixed.

    Attributes:
        fingerprint: identifies the reference and its weights; any text. Of a
            finished run, see `reference.describe`.
        tokenizer: how captions were read; any text.
        preprocessing: how pictures were decoded; any text.
        dim: D, the width of an embedding.
        scale: of the logits `scale * image @ text.T + bias`.
        bias: of the logits.
    """

    fingerprint: str
    tokenizer: str
    preprocessing: str
    dim: int
    scale: float
    bias: float


class Header(NamedTuple):
    """What the head of a sidecar says.

    Attributes:
        description: see `Description`.
        dtype: of the embeddings, "float16" or "float32".
        stamp: the version of the shard, `Store.stamp`.
        rows: n, the records of the shard.
    """

    description: Description
    dtype: str
    stamp: str
    rows: int


class Mapped(NamedTuple):
    """The arrays of a finished sidecar, views of the file.

    Attributes:
        path: of the file.
        header: see `Header`.
        ids: int64 [n].
        valid: uint8 [ceil(n / 8)], a bit a row.
        offsets: int64 [n + 1]; not checked, as that would read them all.
        image: [n, D].
        text: [captions, D].
    """

    path: str
    header: Header
    ids: np.ndarray
    valid: np.ndarray
    offsets: np.ndarray
    image: np.ndarray
    text: np.ndarray


def read_header(path: str) -> Header:
    """Reads and checks the head of a finished sidecar.

    Raises:
        ValueError: there is none, or it is unfinished, damaged or not of the
            exact size that its counts demand.
    """
    file = _open(path)
    try:
        return _read_finished(path, file)[0]
    finally:
        os.close(file)


def map_file(path: str) -> Mapped:
    """Maps a finished sidecar into memory, read-only.

    Raises:
        ValueError: as `read_header`.
    """
    file = _open(path)
    try:
        header, layout, captions = _read_finished(path, file)
        data = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(file)
    n, dim = header.rows, header.description.dim

    def view(place, dtype, *shape):
        dtype = np.dtype(dtype).newbyteorder("<")
        flat = np.frombuffer(data, dtype, math.prod(shape), place)
        return flat.reshape(shape)

    return Mapped(
        path,
        header,
        view(layout.ids, "int64", n),
        view(layout.valid, "uint8", -(-n // 8)),
        view(layout.offsets, "int64", n + 1),
        view(layout.image, header.dtype, n, dim),
        view(layout.text, header.dtype, captions, dim),
    )


class Writer:
    """Writes one sidecar, batch by batch.

    Takes up the partial file that a killed writer of the same header left.
    The partial file is locked while this lives; the lock ends with its
    process, however that ends.

    Args:
        path: of the sidecar; see `sidecars.sidecar_path`.
        header: see `Header`.

    Attributes:
        rows_done: rows written, by earlier writers too.

    Raises:
        BlockingIOError: another process is writing this sidecar.
        ValueError: the header cannot be.
    """

    def __init__(self, path: str, header: Header):
        self.path = path
        self.header = header
        text = _to_json(header)
        self._layout = _layout(header, len(text))
        self.rows_done = self._captions = 0
        self._slot = 0  # the one that is written next
        self._bits = np.zeros(-(-header.rows // 8), np.uint8)
        self._committed = time.monotonic()
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self._file = _lock(path + PARTIAL)
        try:
            if not self._continue(text):
                os.ftruncate(self._file, 0)
                self._write(0, _head(text))
                self._write(_JSON_PLACE, text)
                self._write(self._layout.offsets, np.zeros(1, "<i8"))
        except BaseException:
            self._unlock()
            raise

    def append(
        self,
        ids: np.ndarray,
        image: np.ndarray,
        text: np.ndarray,
        *,
        captions: np.ndarray | None = None,
        valid: np.ndarray | None = None,
    ) -> None:
        """Adds the next k rows.

        Args:
            ids: int64 [k], of the records.
            image: float [k, D], of unit length.
            text: float [m, D], the captions of the rows in order, of unit
                length, or zero where a caption is blank.
            captions: int64 [k], how many of the m each row has; None is one
                each.
            valid: bool [k], false where a record could not be read, which has
                no captions and whatever embedding; None is true.

        Raises:
            ValueError: shapes do not fit, or an embedding is not finite or
                not of unit length.
        """
        k, start = len(ids), self.rows_done
        counts = _counts(captions, k, self.header.rows - start)
        valid = np.ones(k, bool) if valid is None else np.asarray(valid, bool)
        dim = self.header.description.dim
        image = _checked("image", image, (k, dim), valid)
        text = _checked("text", text, (int(counts.sum()), dim))
        rows = np.arange(start, start + k)
        marks = valid.astype(np.uint8) << (rows & 7).astype(np.uint8)
        np.bitwise_or.at(self._bits, rows >> 3, marks)
        touched = slice(start >> 3, (start + k + 7) >> 3)
        offsets = self._captions + np.cumsum(counts)
        layout = self._layout
        self._write(layout.ids + 8 * start, np.asarray(ids).astype("<i8"))
        self._write(layout.valid + touched.start, self._bits[touched])
        self._write(layout.offsets + 8 * (start + 1), offsets.astype("<i8"))
        self._write(layout.image_row(start), self._narrow(image))
        self._write(layout.text_row(self._captions), self._narrow(text))
        self.rows_done += k
        self._captions += len(text)
        if time.monotonic() - self._committed > _COMMIT_SECONDS:
            self._commit()

    @property
    def num_invalid(self) -> int:
        """Rows written, by earlier writers too, whose record was not read."""
        return self.rows_done - int(np.unpackbits(self._bits).sum())

    def finish(self) -> None:
        """Gives the file its name, once all rows are written.

        Raises:
            ValueError: rows are missing.
        """
        if self.rows_done != self.header.rows:
            raise ValueError(
                f"Sidecar {self.path} must have {self.header.rows} rows. "
                f"Received: {self.rows_done}"
            )
        os.ftruncate(self._file, self._layout.size(self._captions))
        self._commit()
        os.replace(self.path + PARTIAL, self.path)
        _sync_folder(os.path.dirname(self.path))
        self._unlock()

    def close(self) -> None:
        """Leaves what is written to a later writer, unless it is finished."""
        if self._file is not None:
            if self.rows_done:
                self._commit()
            else:
                os.remove(self.path + PARTIAL)
            self._unlock()

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def _continue(self, text):
        """Takes up what the partial file holds; false if it is of no use."""
        path = self.path + PARTIAL
        try:
            header, layout, slots = _read_head(path, self._file)
        except ValueError:
            return False
        if header != self.header or layout != self._layout:
            return False
        size = os.fstat(self._file).st_size
        for rows, captions, slot in sorted(slots, reverse=True):
            if rows > header.rows or size < layout.text_row(captions):
                continue
            place = layout.offsets + 8 * rows
            end = int.from_bytes(os.pread(self._file, 8, place), "little")
            bits = os.pread(self._file, len(self._bits), layout.valid)
            if end != captions or len(bits) != len(self._bits):
                continue
            self.rows_done, self._captions = rows, captions
            self._slot = 1 - slot
            # Bits that were written after the slot are written again.
            done = np.arange(8 * len(bits)) < rows
            self._bits = np.frombuffer(bits, np.uint8) & np.packbits(
                done, bitorder="little"
            )
            return True
        return False

    def _commit(self):
        """Counts what is written, after it has reached the disk."""
        os.fdatasync(self._file)
        counts = _COUNTS.pack(self.rows_done, self._captions)
        slot = counts + _CHECKSUM.pack(zlib.crc32(counts))
        self._write(_SLOT_PLACES[self._slot], slot)
        os.fdatasync(self._file)
        self._slot = 1 - self._slot
        self._committed = time.monotonic()

    def _narrow(self, embeddings):
        return embeddings.astype(np.dtype(self.header.dtype).newbyteorder("<"))

    def _write(self, place, data):
        data = memoryview(data).cast("B") if len(data) else b""
        while len(data):
            written = os.pwrite(self._file, data, place)
            data, place = data[written:], place + written

    def _unlock(self):
        os.close(self._file)
        self._file = None


class _Layout(NamedTuple):
    """Where the arrays of a file start, in bytes."""

    ids: int
    valid: int
    offsets: int
    image: int
    text: int
    row_bytes: int

    def image_row(self, row):
        return self.image + self.row_bytes * row

    def text_row(self, caption):
        return self.text + self.row_bytes * caption

    def size(self, captions):
        return self.text_row(captions)


def _layout(header, json_size):
    row_bytes = header.description.dim * np.dtype(header.dtype).itemsize
    n = header.rows
    places = [_aligned(_JSON_PLACE + json_size)]
    for size in (8 * n, -(-n // 8), 8 * (n + 1), row_bytes * n):
        places.append(_aligned(places[-1] + size))
    return _Layout(*places, row_bytes)


def _aligned(place):
    return -(-place // _ALIGNMENT) * _ALIGNMENT


def _open(path):
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ValueError(
            f"Sidecar {path} cannot be read: {error.strerror}"
        ) from error


def _lock(path):
    """A locked descriptor of the partial file, made if it is not there."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one who held the lock may have finished and renamed the file.
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            os.close(file)
            raise BlockingIOError(
                error.errno, f"{path} is being written by another process"
            ) from error
        os.close(file)


def _sync_folder(folder):
    file = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _head(text):
    return _HEAD.pack(_MAGIC, _VERSION, len(text), zlib.crc32(text))


def _to_json(header):
    """The header as bytes, checked as if it had been read."""
    values = {
        **header.description._asdict(),
        "dtype": header.dtype,
        "stamp": header.stamp,
        "rows": int(header.rows),
    }
    values["dim"] = int(values["dim"])
    for name in ("scale", "bias"):
        values[name] = float(values[name])
    _from_values(values, "The header of a sidecar")
    text = json.dumps(values, ensure_ascii=False).encode()
    if len(text) > _MAX_JSON:
        raise ValueError(
            f"The header of a sidecar must be at most {_MAX_JSON} bytes. "
            f"Received: {len(text)}"
        )
    return text


def _from_values(values, what):
    """The `Header` of a parsed JSON object."""
    kinds = {
        **dict.fromkeys(("fingerprint", "tokenizer", "preprocessing"), str),
        **dict.fromkeys(("dtype", "stamp"), str),
        **dict.fromkeys(("dim", "rows"), int),
        **dict.fromkeys(("scale", "bias"), float),
    }
    if not isinstance(values, dict) or set(values) != set(kinds):
        raise ValueError(f"{what} must hold {', '.join(kinds)}")
    for name, kind in kinds.items():
        if type(values[name]) is not kind:
            raise ValueError(
                f"{what} must hold a {kind.__name__} `{name}`. "
                f"Received: {values[name]!r}"
            )
    good = {
        "dtype": values["dtype"] in DTYPES,
        "dim": 1 <= values["dim"] < 2**31,
        "rows": 1 <= values["rows"] < 2**48,
        "scale": math.isfinite(values["scale"]),
        "bias": math.isfinite(values["bias"]),
    }
    for name, is_good in good.items():
        if not is_good:
            raise ValueError(
                f"{what} has an impossible `{name}`. Received: {values[name]!r}"
            )
    description = Description(*(values[name] for name in Description._fields))
    return Header(description, values["dtype"], values["stamp"], values["rows"])


def _read_head(path, file):
    """Header, layout and the good slots, (rows, captions, slot) each."""
    what = f"Sidecar {path}"
    head = os.pread(file, _JSON_PLACE, 0)
    if len(head) < _JSON_PLACE or head[:8] != _MAGIC:
        raise ValueError(f"{what} is no sidecar, or is truncated")
    _, version, length, checksum = _HEAD.unpack_from(head)
    if version != _VERSION:
        raise ValueError(
            f"{what} must be of format {_VERSION}. Received: {version}"
        )
    text = os.pread(file, length, _JSON_PLACE) if length <= _MAX_JSON else b""
    if len(text) != length or zlib.crc32(text) != checksum:
        raise ValueError(f"{what} is damaged: its header fails its checksum")
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{what} is damaged: {error}") from error
    header = _from_values(values, what)
    slots = []
    for slot, place in enumerate(_SLOT_PLACES):
        rows, captions = _COUNTS.unpack_from(head, place)
        (checksum,) = _CHECKSUM.unpack_from(head, place + _COUNTS.size)
        if zlib.crc32(head[place : place + _COUNTS.size]) == checksum:
            slots.append((rows, captions, slot))
    return header, _layout(header, length), slots


def _read_finished(path, file):
    """Header, layout and number of captions of a finished file."""
    header, layout, slots = _read_head(path, file)
    rows, captions, _ = max(slots, default=(0, 0, 0))
    if rows != header.rows:
        raise ValueError(
            f"Sidecar {path} must have {header.rows} rows. Received: {rows}; "
            "it is unfinished or damaged"
        )
    size = os.fstat(file).st_size
    if size != layout.size(captions):
        raise ValueError(
            f"Sidecar {path} must be {layout.size(captions)} bytes. "
            f"Received: {size}; it is truncated or damaged"
        )
    return header, layout, captions


def _counts(captions, k, rows_left):
    if k > rows_left:
        raise ValueError(
            f"`ids` must be of at most the {rows_left} rows that are left. "
            f"Received: {k}"
        )
    counts = np.ones(k, np.int64) if captions is None else np.asarray(captions)
    if counts.shape != (k,) or counts.dtype.kind not in "iu":
        raise ValueError(
            f"`captions` must be {k} integers. "
            f"Received: {counts.dtype} {counts.shape}"
        )
    if k and counts.min() < 0:
        raise ValueError(
            f"`captions` must not be negative. Received: {counts.min()}"
        )
    return counts.astype(np.int64)


def _checked(name, embeddings, shape, valid=None):
    """Embeddings as float32, zero where not valid."""
    embeddings = np.asarray(embeddings, np.float32)
    if embeddings.shape != shape or (
        valid is not None and valid.shape != shape[:1]
    ):
        raise ValueError(
            f"`{name}` must be {list(shape)}, with `valid` alike. "
            f"Received: {list(embeddings.shape)}"
        )
    if valid is not None:
        embeddings = np.where(valid[:, None], embeddings, np.float32(0))
    squares = np.einsum("ij,ij->i", embeddings, embeddings)
    good = np.abs(squares - 1) <= _LENGTH_TOLERANCE
    # A blank caption, or a record that was not read.
    good |= (squares == 0) & (True if valid is None else ~valid)
    if not good.all():
        length = math.sqrt(squares[np.argmin(good)])
        raise ValueError(
            f"`{name}` must be of unit length, so that scale and bias make "
            f"logits of it. Received: a row of length {length:.6g}"
        )
    return embeddings

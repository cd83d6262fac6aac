"""WebDataset shards: uncompressed tar files as img2dataset writes them.

A sample is a run of files with equal names up to the first dot of the base
name: `000000012.jpg`, `000000012.txt`, `000000012.json`. The rest is the
extension. The picture is the file with a picture's extension; captions come
from `.txt` or a field of `.json`. Other members are skipped. A sample is read
as one byte range. In a damaged archive, the samples before the damage are read.
"""

import array
import io
import itertools
import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from jest_tf.data.stores import shards

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
CAPTION_EXTENSIONS = ("txt", "caption", "text")
JSON_FIELDS = ("caption", "captions", "text", "txt")

_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
# A longer name or PAX header is damage.
_MAX_HEADER = 2**20
# Bytes searched at a time for the end of padding.
_PADDING = 2**16
# Everything that `tarfile` raises on damaged headers.
_DAMAGE = (
    tarfile.TarError,
    ValueError,
    ArithmeticError,
    EOFError,
    LookupError,
    RecursionError,
)


class Tars:
    """Samples in tar files.

    Args:
        image_field: extension of the picture; "" takes the first picture's.
        caption_fields: extensions, or fields of the `.json` file, strings or
            lists of strings; () takes the first of `.txt`, `.caption`, `.text`
            or else of the fields `caption`, `captions`, `text`, `txt`.
    """

    name = "webdataset"

    def __init__(
        self, image_field: str = "", caption_fields: Sequence[str] = ()
    ):
        self.index_key = f"webdataset {image_field}"
        self.index_variant = image_field
        self.fields = repr((image_field, tuple(caption_fields)))
        self._image_field = image_field.lstrip(".").lower()
        self._captions = tuple(name.lstrip(".") for name in caption_fields)

    def scan(self, path: str, advance) -> shards.Entries:
        """Walks the headers; see `data/stores/shards.py`."""
        spans = array.array("q")
        pictures = 0
        with shards.Window(path, advance) as window:
            archive = _Archive(_WindowFile(window), window.size)
            for _, group in itertools.groupby(
                archive.members(), lambda member: member.key
            ):
                sample = list(group)
                found = [self._is_picture(one.extension) for one in sample]
                if any(found) or any(map(_is_caption, sample)):
                    start = sample[0].start
                    spans.extend((start, sample[-1].data_end - start))
                    pictures += any(found)
        if not pictures:
            raise ValueError(
                f"Shard {path} is not an uncompressed tar file that holds "
                f"pictures: expected members like 'key."
                f"{self._image_field or '{jpg,png,webp}'}' and 'key.txt'"
            )
        count = len(spans) // 2
        if archive.damage:
            if archive.is_torn:
                spans[-1] = -spans[-1]
            logging.warning(
                "Shard %s is damaged or truncated: %s. The %d samples up to "
                "there were found; the rest is not read.",
                *(path, archive.damage, count),
            )
        return shards.Entries(
            np.frombuffer(spans, np.int64).reshape(-1, 2),
            np.zeros(count, np.int64),
            np.zeros(count, bool),
        )

    def read(self, path: str, spans: np.ndarray) -> list:
        """Reads samples at byte ranges; see `data/stores/shards.py`."""
        return [
            payload
            if isinstance(payload, shards.Fault)
            else self._parse(payload)
            for payload in shards.read_spans(path, spans)
        ]

    def _is_picture(self, extension):
        if self._image_field:
            return extension == self._image_field
        return extension.rpartition(".")[2] in IMAGE_EXTENSIONS

    def _parse(self, payload):
        padded = payload + bytes(-len(payload) % tarfile.BLOCKSIZE)
        archive = _Archive(io.BytesIO(padded), len(padded))
        found = {}
        key = ""
        for member in archive.members():
            key = member.key
            data = payload[member.data_start : member.data_end]
            found.setdefault(member.extension, data)
        if archive.damage:
            return shards.Fault("damaged: a tar header is unreadable")
        image = next(filter(self._is_picture, found), None)
        if image is None:
            return shards.Fault(
                "no picture among the files: "
                + shards.one_line(", ".join(sorted(found)))
            )
        fields = {}
        if "json" in found:
            try:
                fields = json.loads(found["json"])
            except (ValueError, RecursionError) as error:
                return shards.Fault(f"bad JSON: {shards.one_line(error)}")
            if not isinstance(fields, dict):
                return shards.Fault(
                    f"bad JSON: expected an object, got {type(fields).__name__}"
                )
        names = self._captions or _usual_captions(found, fields)
        captions = []
        for name in names:
            if name in found:
                captions.append(found[name])
            else:
                captions += _strings(fields.get(name))
        metadata = {
            name: _encode(value)
            for name, value in fields.items()
            if isinstance(value, str) and name not in names
        }
        metadata.setdefault("key", _encode(key))
        return shards.Record(found[image], tuple(captions), metadata)


class _Member(NamedTuple):
    """A file of a sample; `start` is the offset of its first header."""

    key: str
    extension: str
    start: int
    data_start: int
    data_end: int


class _Archive:
    """The sample files of a tar, up to the first damage.

    `damage` says what ended the walk early, or is ""; `is_torn` says whether
    files of the last sample may be lost to it.
    """

    def __init__(self, file, size):
        self._file = file
        self._size = size
        self.damage = ""
        self.is_torn = False

    def members(self) -> Iterator[_Member]:
        """Yields files; archives joined by `cat` are walked in turn."""
        position = self._after_padding(0)
        while position < self._size:
            self.is_torn = False
            try:
                self._file.seek(position)
                tar = tarfile.TarFile(fileobj=self._file, encoding="utf-8")
                while (info := tar.next()) is not None:
                    tar.members.clear()
                    self.is_torn = True
                    if info.size < 0:
                        raise tarfile.ReadError(f"a file of {info.size} bytes")
                    start = info.offset_data
                    end = min(start + info.size, self._size)
                    key, extension = _split(info.name)
                    if key and info.type in _FILES and not info.issparse():
                        yield _Member(key, extension, info.offset, start, end)
                    if info.isreg() and start + info.size > self._size:
                        raise tarfile.ReadError("the end is cut off")
            except _DAMAGE as error:
                self.damage = shards.one_line(error)
                return
            position = self._after_padding(tar.offset)
            if position == tar.offset < self._size:
                self.damage = f"the header at byte {position} is invalid"
                return

    def _after_padding(self, position):
        """Offset of the block with the next nonzero byte, or the size."""
        while position < self._size:
            self._file.seek(position)
            data = self._file.read(_PADDING)
            zeros = len(data) - len(data.lstrip(b"\0"))
            if not data or zeros < len(data):
                return position + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            position += zeros
        return position


class _WindowFile:
    """The methods of a file that `tarfile` needs, in bounded memory."""

    def __init__(self, window):
        self._window = window
        self._position = 0

    def tell(self):
        return self._position

    def seek(self, position):
        self._position = position

    def read(self, size):
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self._window.get(self._position, size)
        self._position += len(data)
        return data


def _split(name):
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or stem.startswith("__"):
        return "", ""
    return folder + slash + stem, extension.lower()


def _is_caption(member):
    # Independent of `caption_fields`, so that rows are too.
    return member.extension in ("json", *CAPTION_EXTENSIONS)


def _usual_captions(found, fields):
    names = [n for n in CAPTION_EXTENSIONS if n in found] or [
        n for n in JSON_FIELDS if n in fields
    ]
    return tuple(names[:1])


def _strings(value):
    values = value if isinstance(value, list) else [value]
    return [_encode(value) for value in values if isinstance(value, str)]


def _encode(text):
    # JSON may hold lone surrogates.
    return text.encode("utf-8", "surrogatepass")

"""WebDataset shards: uncompressed tar files as img2dataset writes them.

A sample is a run of files with equal names up to the first dot of the base
name: `000000012.jpg`, `000000012.txt`, `000000012.json`. The rest is the
extension. The picture is the file with a picture's extension; captions come
from `.txt` or a field of `.json`; `.cls`, the number of a class, is metadata.
Other members are skipped. A sample is read as one byte range. Members with a
damaged header are skipped, too.
"""

import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jest_tf.data.stores import shards

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
CAPTION_EXTENSIONS = ("txt", "caption", "text")
JSON_FIELDS = ("caption", "captions", "text", "txt")

_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
# Everything that `tarfile` raises on damaged headers.
_DAMAGE = (
    tarfile.TarError,
    ValueError,
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
)


class Tars:
    """Samples in tar files.

    `fields` are extensions. Those of captions are also fields of the `.json`
    file, strings or lists of strings; () takes the first of `.txt`, `.caption`,
    `.text` or else of the fields `caption`, `captions`, `text`, `txt`.
    """

    name = "webdataset"

    def __init__(self, fields=shards.USUAL):
        self.fields = fields
        self.index_variant = fields.image
        self.index_key = f"webdataset {fields.image}"
        self._image = fields.image.lstrip(".").lower()
        self._captions = [name.lstrip(".") for name in fields.captions]

    def scan(self, path: str, advance):
        """Walks the headers; see `data/stores/shards.py`."""
        pictures = 0
        with shards.open_scan(path, advance) as file:
            for _, group in itertools.groupby(
                _members(file), lambda member: member.key
            ):
                sample = list(group)
                start, end = sample[0].start, sample[-1].end
                torn = end > file.raw.size
                found = [self._is_picture(one.extension) for one in sample]
                pictures += any(found)
                # Independent of the captions' fields, so that rows are too.
                if torn or any(found) or any(map(_is_caption, sample)):
                    size = start - file.raw.size if torn else end - start
                    yield start, size, None
        if not pictures:
            reason = shards.contents(path)
            if not reason or "is a tar" in reason:
                reason = (
                    "expected members like "
                    f"'key.{self._image or '{jpg,png,webp}'}' and 'key.txt'"
                )
            raise ValueError(
                f"Shard {path} is not an uncompressed tar file that holds "
                f"pictures: {reason}"
            )

    def read(self, path: str, spans: np.ndarray) -> list:
        """Reads samples at byte ranges; see `data/stores/shards.py`."""
        return shards.read_records(path, spans, self._parse, later=True)

    def _is_picture(self, extension):
        if self._image:
            return extension == self._image
        return extension.rpartition(".")[2] in IMAGE_EXTENSIONS

    def _parse(self, payload):
        padding = bytes(-len(payload) % tarfile.BLOCKSIZE)
        found = {}
        for member in _members(io.BytesIO(payload + padding)):
            if not member.key:
                return shards.Fault("damaged: a tar header is unreadable")
            data = payload[member.data_start : member.end]
            found.setdefault(member.extension, data)
        image = next(filter(self._is_picture, found), None)
        if image is None:
            return shards.Fault(
                "no picture among the files: "
                + shards.one_line(", ".join(sorted(found)))
            )
        try:
            fields = json.loads(found.get("json", "{}"))
        except (ValueError, RecursionError) as error:
            return shards.Fault(f"bad JSON: {shards.one_line(error)}")
        if not isinstance(fields, dict):
            return shards.Fault(
                f"bad JSON: expected an object, got {type(fields).__name__}"
            )
        names = (
            self._captions
            or [name for name in CAPTION_EXTENSIONS if name in found][:1]
            or [name for name in JSON_FIELDS if name in fields][:1]
        )
        captions = []
        for name in names:
            if name in found:
                captions.append(found[name])
                continue
            values = fields.get(name)
            for value in values if isinstance(values, list) else [values]:
                if isinstance(value, str):
                    captions.append(_encode(value))
        metadata = {
            name: _encode(value)
            for name, value in shards.texts(fields).items()
            if name not in names
        }
        if "cls" in found:
            metadata["cls"] = found["cls"].strip()
        metadata.setdefault("key", _encode(member.key))
        return shards.Record(found[image], tuple(captions), metadata)


class _Member(NamedTuple):
    """A file of a sample, from its first header at `start` to its `end`."""

    key: str
    extension: str
    start: int
    data_start: int
    end: int


def _members(file) -> Iterator[_Member]:
    """Yields the files of samples; one without a key stands for lost ones."""
    size, end = file.seek(0, io.SEEK_END), 0
    file.seek(0)
    try:
        # Not to lose what `cat` has appended, nor all after a damaged header.
        tar = tarfile.TarFile(fileobj=file, encoding="utf-8", ignore_zeros=True)
        while end <= size and (info := tar.next()) is not None:
            tar.members.clear()
            if info.size < 0:
                raise tarfile.ReadError(f"a file of {info.size} bytes")
            folder, slash, base = info.name.rpartition("/")
            stem, dot, extension = base.partition(".")
            if not stem or not dot or stem.startswith("__"):
                continue
            if info.type in _FILES and not info.issparse():
                key = folder + slash + stem
                start = info.offset_data
                end = start + info.size
                yield _Member(key, extension.lower(), info.offset, start, end)
    except _DAMAGE:
        if end < size:
            yield _Member("", "", end, end, size + 1)


def _is_caption(member):
    return member.extension in ("json", *CAPTION_EXTENSIONS)


def _encode(text):
    # JSON may hold lone surrogates.
    return text.encode("utf-8", "surrogatepass")

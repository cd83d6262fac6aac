"""WebDataset shards: uncompressed tar files as img2dataset writes them.

A sample is a run of files with equal names up to the first dot of the base
name: `000000012.jpg`, `000000012.txt`, `000000012.json`. The rest is the
extension. The image is the file with an image's extension; captions come
from `.txt` or a field of `.json`; `.cls`, a class number, is metadata. Other
members are skipped. A sample is read as a single byte range, and its checksum
is the CRC-32C of this range. A damaged header
loses its sample, and garbage between samples is marked as damage.
"""

import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

import google_crc32c
import numpy as np

from jest_tf.data.stores import shards

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
CAPTION_EXTENSIONS = ("txt", "caption", "text")
JSON_FIELDS = ("caption", "captions", "text", "txt")
_CAPTIONED = {"json", *CAPTION_EXTENSIONS}

_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
# Most zeros between two members where archives were joined: the usual writers
# end an archive with at least two zero blocks, and fill up the last record.
_PADDING = tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE
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

    `fields` are extensions. Those of captions may also be fields of the `.json`
    file, strings or lists of strings; () takes the first of `.txt`, `.caption`,
    `.text`, or else the first field of `caption`, `captions`, `text`, `txt`.
    """

    name = "webdataset"
    damage = "is damaged or cut off"

    def __init__(self, fields=shards.USUAL):
        self.fields = fields
        self.index_variant = fields.image
        self.index_key = f"webdataset 3 {fields.image}"
        self._image = fields.image.lstrip(".").lower()
        self._captions = [name.lstrip(".") for name in fields.captions]

    def scan(self, path: str, advance):
        """Walks the headers; see `data/stores/shards.py`."""
        num_images, is_told, names = 0, False, []
        with shards.open_scan(path, advance) as file:
            for _, group in itertools.groupby(
                _members(file), lambda member: member.key
            ):
                sample, checksum = _sum_up(file, group)
                if sample[0].lost:
                    place = sample[0].start - sample[0].lost
                    yield place, -sample[0].lost, None, 0
                start, end = sample[0].start, sample[-1].end
                torn = end > file.raw.size
                extensions = {part.extension for part in sample}
                names += [f"{part.key}.{part.extension}" for part in sample[:3]]
                del names[3:]
                has_image = any(map(self._is_image, extensions))
                num_images += has_image
                # Does not depend on the caption fields, so rows do not, either.
                if torn or has_image or extensions & _CAPTIONED:
                    size = start - file.raw.size if torn else end - start
                    yield start, size, None, checksum
                is_told = torn or not sample[0].key
            if num_images and not (is_told or _has_end(file)):
                yield file.raw.size - 1, -1, None, 0
        if not num_images:
            reason = shards.contents(path)
            if not reason or "is a tar" in reason:
                reason = (
                    "expected members like "
                    f"'key.{self._image or '{jpg,png,webp}'}' and 'key.txt'. "
                    f"Received: {shards.one_line(', '.join(names)) or 'none'}"
                )
            raise ValueError(
                f"Shard {path} is not an uncompressed tar file that holds "
                f"images: {reason}"
            )

    def read(self, path: str, spans: np.ndarray) -> list:
        """Reads samples at byte ranges; see `data/stores/shards.py`."""
        return shards.read_records(path, spans, self._parse, later=True)

    def _is_image(self, extension):
        if self._image:
            return extension == self._image
        return extension.rpartition(".")[2] in IMAGE_EXTENSIONS

    def _parse(self, payload, checksum):
        if checksum not in (0, google_crc32c.value(payload)):
            return shards.CHANGED
        padding = bytes(-len(payload) % tarfile.BLOCKSIZE)
        contents = {}
        for member in _members(io.BytesIO(payload + padding)):
            if member.lost:
                return shards.Fault("damaged: a tar header is unreadable")
            data = payload[member.data_start : member.end]
            contents.setdefault(member.extension, data)
        image = next(filter(self._is_image, contents), None)
        if image is None:
            return shards.Fault(
                "no image among the files: "
                + shards.one_line(", ".join(sorted(contents)))
            )
        try:
            fields = json.loads(contents.get("json", "{}"))
        except (ValueError, RecursionError) as error:
            return shards.Fault(f"bad JSON: {shards.one_line(error)}")
        if not isinstance(fields, dict):
            return shards.Fault(
                f"bad JSON: expected an object, got {type(fields).__name__}"
            )
        names = (
            self._captions
            or [name for name in CAPTION_EXTENSIONS if name in contents][:1]
            or [name for name in JSON_FIELDS if name in fields][:1]
        )
        captions = []
        for name in names:
            if name in contents:
                captions.append(contents[name])
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
        if "cls" in contents:
            metadata["cls"] = contents["cls"].strip()
        metadata.setdefault("key", _encode(member.key))
        return shards.Record(contents[image], tuple(captions), metadata)


class _Member(NamedTuple):
    """A file of a sample, from its first header at `start` to its `end`.

    The `lost` bytes before it belong to no member.
    """

    key: str
    extension: str
    start: int
    data_start: int
    end: int
    lost: int


def _members(file) -> Iterator[_Member]:
    """Yields the files of samples; a file without a key marks a lost end."""
    size, place, lost = file.seek(0, io.SEEK_END), 0, None
    file.seek(0)
    try:
        # Continues after a joined archive's end, and after a damaged header.
        tar = tarfile.TarFile(fileobj=file, encoding="utf-8", ignore_zeros=True)
        while place < size:
            info = tar.next()
            tar.members.clear()
            start = info.offset if info else size
            if lost is None and not _is_padding(file, place, start):
                lost = place
            if info is None:
                break
            if info.size < 0:
                raise tarfile.ReadError(f"a file of {info.size} bytes")
            place = tar.offset
            folder, slash, base = info.name.rpartition("/")
            stem, dot, extension = base.partition(".")
            if (
                (stem and dot and not stem.startswith("__"))
                and info.type in _FILES
                and not info.issparse()
            ):
                yield _Member(
                    folder + slash + stem,
                    extension.lower(),
                    start,
                    info.offset_data,
                    info.offset_data + info.size,
                    0 if lost is None else start - lost,
                )
                lost = None
            elif lost is None and place >= size + tarfile.BLOCKSIZE:
                lost = start  # cut off in a skipped file
    except _DAMAGE:
        lost = place if lost is None else lost
    if lost is not None and lost < size:
        yield _Member("", "", size, size, size, size - lost)


def _sum_up(file, members):
    """Returns the members of a sample, and the checksum of its bytes.

    Reads each member before the next is found, so a file is read once.
    """
    sample, checksum = [], 0
    for member in members:
        sample.append(member)
        start = sample[-2].end if sample[1:] else member.start
        if member.end - sample[0].start <= shards.MAX_RECORD_BYTES:
            file.seek(start)
            data = file.read(max(0, member.end - start))
            checksum = google_crc32c.extend(checksum, data)
    return sample, checksum


def _is_padding(file, start, end):
    """True if bytes between two members are the zeros that end an archive."""
    if not 0 < end - start <= _PADDING:
        return start == end
    file.seek(start)
    return not any(file.read(end - start))


def _has_end(file):
    """True unless a tar was cut off, even if just between two members."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - tarfile.BLOCKSIZE))
    return size % tarfile.BLOCKSIZE == 0 and not any(file.read())


def _encode(text):
    # JSON may hold lone surrogates.
    return text.encode("utf-8", "surrogatepass")

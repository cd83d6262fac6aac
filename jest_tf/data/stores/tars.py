"""WebDataset shards: uncompressed tar files as img2dataset writes them.

A sample is a run of neighbouring files whose names are equal up to the first
dot of the base name, `000000012.jpg`, `000000012.txt`, `000000012.json`; what
follows the dot is the extension. The picture is the file with a picture's
extension, the captions come from `.txt` or a field of `.json`. The formats
USTAR, GNU and PAX with long names are known; directories, links and files that
belong to no sample are passed over. A sample is read and taken apart as one
range of bytes.
"""

import array
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jest_tf.data.stores import shards

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
CAPTION_EXTENSIONS = ("txt", "caption", "text")
JSON_FIELDS = ("caption", "captions", "text", "txt")

_BLOCK = 512
# Where a header holds "ustar".
_MAGIC = 257
# Types of a header: a file; what has no data; what tells of the next header
# (GNU long name and link, PAX for the next file and for all).
_FILES = (b"0", b"\0", b"7")
_NO_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_EXTENDED = (b"L", b"K", b"x", b"X", b"g")
# A long name or a PAX header of more bytes is damage.
_MAX_NAME = 2**20
# Looked through for the next header after a damaged one, in one go.
_SEARCH = 2**18


class Tars:
    """Samples in tar files.

    Args:
        image_field: extension of the picture; "" takes the first that is a
            picture's.
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
            for sample in self._samples(window):
                spans.extend((sample.start, sample.end - sample.start))
                pictures += sample.has_picture
        if not pictures:
            raise ValueError(
                f"Shard {path} is not an uncompressed tar file that holds "
                f"pictures: expected members like 'key."
                f"{self._image_field or '{jpg,png,webp}'}' and 'key.txt'"
            )
        count = len(spans) // 2
        return shards.Entries(
            np.frombuffer(spans, np.int64).reshape(-1, 2),
            np.zeros(count, np.int64),
            np.zeros(count, bool),
        )

    def read(self, path: str, spans: np.ndarray) -> list:
        """Samples at byte ranges; see `data/stores/shards.py`."""
        return [
            payload
            if isinstance(payload, shards.Fault)
            else self._parse(payload)
            for payload in shards.read_spans(path, spans)
        ]

    def _samples(self, window):
        """Yields the samples of a shard, damaged ones too."""
        sample = None
        for member in _members(window):
            if member.name is None:
                # Damage makes a fault of the sample it follows: what is lost
                # there may have been part of it.
                if sample is None or sample.next != member.start:
                    if sample and sample.relevant:
                        yield sample
                    sample = _Sample("", member.start, 0, 0, False, True)
                sample = sample._replace(
                    end=member.end, next=member.end, relevant=True
                )
                continue
            key, extension = _split(member.name)
            if not key:
                continue
            if sample is None or sample.key != key:
                if sample and sample.relevant:
                    yield sample
                sample = _Sample(key, member.start, 0, 0, False, False)
            picture = self._is_picture(extension)
            sample = _Sample(
                key,
                sample.start,
                member.data_end,
                member.end,
                sample.has_picture or picture,
                sample.relevant or picture or self._is_caption(extension),
            )
        if sample and sample.relevant:
            yield sample

    def _is_picture(self, extension):
        if self._image_field:
            return extension == self._image_field
        return extension.rpartition(".")[2] in IMAGE_EXTENSIONS

    def _is_caption(self, extension):
        # Whatever `caption_fields` says, so that rows do not depend on it.
        return extension in ("json", *CAPTION_EXTENSIONS)

    def _parse(self, payload):
        """Bytes of the sample's members -> record or fault."""
        files = {}
        key = ""
        for member in _members(_Bytes(payload)):
            if member.name is None or member.data_end > len(payload):
                return shards.Fault("damaged: a tar header is unreadable")
            key, extension = _split(member.name)
            if key:
                data = payload[member.data_start : member.data_end]
                files.setdefault(extension, data)
        image = next(filter(self._is_picture, files), None)
        if image is None:
            return shards.Fault(
                "no picture among the files: "
                + shards.one_line(", ".join(sorted(files)))
            )
        fields = {}
        if "json" in files:
            try:
                fields = json.loads(files["json"])
            except (ValueError, RecursionError) as error:
                return shards.Fault(f"bad JSON: {shards.one_line(error)}")
            if not isinstance(fields, dict):
                return shards.Fault(
                    f"bad JSON: expected an object, got {type(fields).__name__}"
                )
        names = self._captions or _usual_captions(files, fields)
        captions = []
        for name in names:
            if name in files:
                captions.append(files[name])
            else:
                captions += _strings(fields.get(name))
        metadata = {
            name: _encode(value)
            for name, value in fields.items()
            if isinstance(value, str) and name not in names
        }
        metadata.setdefault("key", _encode(key))
        return shards.Record(files[image], tuple(captions), metadata)


class _Sample(NamedTuple):
    key: str
    start: int
    end: int
    next: int  # where the next header is
    has_picture: bool
    relevant: bool


class _Member(NamedTuple):
    """A file; without a name, a stretch that is no tar member."""

    name: str | None
    start: int  # of its first header
    data_start: int
    data_end: int
    end: int  # where the next header is


class _Bytes:
    """`shards.Window` over bytes."""

    def __init__(self, data):
        self.size = len(data)
        self._data = data

    def get(self, offset, size):
        return self._data[offset : offset + size]


def _members(window) -> Iterator[_Member]:
    """Walks over the regular files of a tar, and over damage.

    Where no header follows a file, the file's own end may be wrong: bytes of it
    were lost, say, and it covers the next header. So the next sound header is
    sought from within it.
    """
    position = start = 0
    inside = 1  # from where a header is sought after damage
    name = size = None  # told by the headers before
    while position < window.size:
        header = window.get(position, _BLOCK)
        if not header.strip(b"\0"):
            # Padding: also between archives that were joined by `cat`.
            start = position = position + len(header)
            inside, name, size = position + 1, None, None
            continue
        own_size = _checked_size(header)
        if own_size is None:
            end = _next_header(window, inside)
            yield _Member(None, start, position, end, end)
            position = start = end
            inside, name, size = position + 1, None, None
            continue
        kind, data_start = header[156:157], position + _BLOCK
        inside = data_start
        if kind in _EXTENDED:
            position = data_start + _padded(own_size)
            if own_size <= _MAX_NAME:
                data = window.get(data_start, own_size)
                name, size = _extended(kind, data, name, size)
            continue
        size = own_size if size is None else size
        # Links, devices and folders have a size at times, and no data.
        size = 0 if kind in _NO_DATA else size
        end = data_start + _padded(size)
        if kind in _FILES:
            found = _name(header) if name is None else name
            yield _Member(found, start, data_start, data_start + size, end)
        position = start = end
        if end > window.size and kind in _FILES:
            end = _next_header(window, data_start)
            if end < window.size:
                yield _Member(None, start, start, end, end)
                position = start = end
        name = size = None


def _extended(kind, data, name, size):
    """Name and size of the next file, by a header before its own."""
    if kind == b"L":
        name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    elif kind == b"x":
        fields = _pax(data)
        name = fields.get("path", name)
        size = _decimal(fields.get("size", ""))
    return name, size


def _checked_size(header):
    """The size that a header tells, None if it is no header."""
    if len(header) < _BLOCK:
        return None
    stored = _number(header[148:156])
    if stored is None or not 0 <= stored <= 255 * _BLOCK:
        return None
    # The checksum is the sum of all bytes, with blanks in its own place. The
    # lower half of Adler-32 is 1 + the sum, modulo 65,521, at C's speed.
    blanked = header[:148] + b" " * 8 + header[156:]
    if (zlib.adler32(blanked) & 0xFFFF) != (1 + stored) % 65521:
        return None
    size = _number(header[124:136])
    return size if size is not None and 0 <= size < 2**62 else None


def _number(field):
    """An octal number, or one in base 256 as GNU tar writes large ones."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return None


def _name(header):
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0]
    # GNU tar keeps other things where POSIX has the prefix.
    if prefix and header[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _pax(data):
    """The fields of a PAX header: lines of "<length> <key>=<value>\\n"."""
    fields = {}
    while data:
        digits, _, _ = data.partition(b" ")
        length = _decimal(digits.decode("latin-1"))
        if not length or length > len(data):
            break
        line = data[len(digits) + 1 : length - 1]
        key, _, value = line.partition(b"=")
        fields[key.decode("utf-8", "replace")] = value.decode(
            "utf-8", "surrogateescape"
        )
        data = data[length:]
    return fields


def _decimal(digits):
    """The number; None where it is none or absurdly large."""
    sound = digits.isascii() and digits.isdecimal() and len(digits) < 19
    return int(digits) if sound else None


def _next_header(window, position):
    """Where the next sound header is, or the size of the file.

    Not only at multiples of a block, for bytes may have been lost.
    """
    while position < window.size:
        data = window.get(position, _SEARCH)
        place = data.find(b"ustar", _MAGIC)
        while place >= 0:
            header = window.get(position + place - _MAGIC, _BLOCK)
            if _checked_size(header) is not None:
                return position + place - _MAGIC
            place = data.find(b"ustar", place + 1)
        # A header that the end of the piece cuts is found in the next one.
        position += (
            max(len(data) - _BLOCK, 1) if len(data) == _SEARCH else _SEARCH
        )
    return window.size


def _split(name):
    """Key and extension of a member; no key where it is of no sample."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or stem.startswith("__"):
        return "", ""
    return folder + slash + stem, extension.lower()


def _usual_captions(files, fields):
    names = [n for n in CAPTION_EXTENSIONS if n in files] or [
        n for n in JSON_FIELDS if n in fields
    ]
    return tuple(names[:1])


def _strings(value):
    values = value if isinstance(value, list) else [value]
    return [_encode(value) for value in values if isinstance(value, str)]


def _encode(text):
    # JSON may hold lone surrogates.
    return text.encode("utf-8", "surrogatepass")


def _padded(size):
    return size + -size % _BLOCK

"""Tables: the common part of CSV, TSV and Parquet.

A row holds an image and captions. The image's column holds paths, relative
to the table's folder, or, in Parquet, encoded images (plain, or structs of
`bytes` and `path` as in Hugging Face data sets). Captions are in one or more
columns, in Parquet also as lists of strings; a table with a column `label` or
`cls` may have no captions. An `id` column holds the stored id.
"""

import os
import struct
from collections.abc import Mapping, Sequence

import google_crc32c

from jest_tf import files
from jest_tf.data.stores import shards

IMAGE_COLUMNS = (
    *("image", "jpg", "jpeg", "png", "webp", "image_path", "filepath"),
    *("file_path", "filename", "file_name", "image_file", "file", "path"),
)
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "title")


class Columns:
    """The role of each column of a table.

    By default the image's column is the first of `IMAGE_COLUMNS`, and the
    caption's the first of `CAPTION_COLUMNS`, optional for labelled images.
    `classes` has the names of numbered classes, by column.
    """

    def __init__(
        self,
        path: str,
        names: Sequence[str],
        fields: shards.Fields,
        classes: Mapping[str, Sequence[str]] | None = None,
    ):
        self.names = names
        self.classes = classes or {}
        wanted = [
            [fields.image] if fields.image else IMAGE_COLUMNS,
            *([name] for name in fields.captions),
        ]
        # Labelled images need no captions.
        labels = {*shards.CLASS_NUMBERS, *self.classes} - {fields.image}
        is_labelled = {*names} & labels
        if not fields.captions and (
            not is_labelled or {*names} & {*CAPTION_COLUMNS}
        ):
            wanted.append(CAPTION_COLUMNS)
        self.image, *self._captions = (
            self._find(path, usual) for usual in wanted
        )
        self.taken = {self.image, *self._captions}

    def position(self, name: str) -> int | None:
        """Returns the index of a column, or None."""
        return self.names.index(name) if name in self.names else None

    def record(self, values: Mapping) -> shards.Record | shards.Fault:
        """Makes a record of values by column; its `image` may be a path."""
        image = values[self.image]
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if not isinstance(image, str | bytes):
            return shards.Fault(
                f"no image: `{self.image}` holds {type(image).__name__}"
            )
        captions = []
        for name in self._captions:
            value = values[name]
            for caption in value if isinstance(value, list) else [value]:
                if isinstance(caption, str | bytes):
                    captions.append(encode(caption))
        metadata = {
            name: encode(value)
            for name, value in shards.texts(values).items()
            if name not in {*self.taken, *self.classes}
        }
        for name, known in self.classes.items():
            number = values.get(name)
            if isinstance(number, int) and 0 <= number < len(known):
                metadata[name] = encode(known[number])
        for name in {*shards.CLASS_NUMBERS} - {*self.classes}:
            if type(values.get(name)) is int:
                metadata["cls"] = encode(str(values[name]))
        return shards.Record(image, tuple(captions), metadata)

    def _find(self, path, wanted):
        for name in wanted:
            if name in self.names:
                return name
        raise ValueError(
            f"Table {path} must have a column {' or '.join(map(repr, wanted))}"
            "; set `data.image_field` and `data.caption_fields`. Received: "
            f"columns {', '.join(map(repr, self.names))}"
        )


def variant(fields: shards.Fields) -> str:
    """Returns the settings that the checksums of a table's rows depend on."""
    return "" if fields == shards.USUAL else repr(tuple(fields))


def checksum(path: str, row: shards.Record | shards.Fault) -> int:
    """Returns a CRC-32C of a row's image and captions, or 0 if unknown.

    An image that the row names counts by its path, size and time of change in
    seconds, as archives keep it; a remote image, which would cost a request,
    only by its path.
    """
    if isinstance(row, shards.Fault):
        return 0
    image, version = row.image, b""
    if isinstance(image, str):
        place = files.local_path(_image_path(path, row.image))
        if not files.is_remote(place):
            try:
                state = os.stat(place)
            except (OSError, ValueError):
                return 0
            version = struct.pack("<qq", state.st_size, int(state.st_mtime))
        image = encode(image)
    parts = image, version, *row.captions
    sizes = struct.pack(f"<{len(parts)}q", *map(len, parts))
    return google_crc32c.extend(
        google_crc32c.value(image), b"".join([*parts[1:], sizes])
    )


def read_images(path: str, rows: Sequence, checksums: Sequence[int]) -> list:
    """Replaces the image paths of a table's records with the images.

    Rows that have changed, by their checksums, become faults.
    """
    rows = list(rows)
    named = {}
    for i, row in enumerate(rows):
        if checksums[i] and checksum(path, row) not in (0, checksums[i]):
            rows[i] = shards.CHANGED
        elif isinstance(row, shards.Record) and isinstance(row.image, str):
            named[i] = _image_path(path, row.image)
    images = shards.read_files(list(named.values()))
    for i, image in zip(named, images, strict=True):
        fault = isinstance(image, shards.Fault)
        rows[i] = image if fault else rows[i]._replace(image=image)
    return rows


def _image_path(path, image):
    # A remote path is absolute.
    folder = "" if files.is_remote(image) else os.path.dirname(path)
    return os.path.join(folder, image)


def encode(text: str | bytes) -> bytes:
    """Encodes a string that may hold undecodable bytes."""
    if isinstance(text, bytes):
        return text
    return text.encode("utf-8", "surrogateescape")

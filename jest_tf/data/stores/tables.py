"""Tables: the common part of CSV, TSV and Parquet.

A row holds a picture and captions. The picture's column holds paths, relative
to the table's folder, or, in Parquet, encoded pictures (plain, or structs of
`bytes` and `path` as in Hugging Face data sets). Captions are one or several
columns, in Parquet also lists of strings. An `id` column holds the stored id.
"""

import os
from collections.abc import Mapping, Sequence

from jest_tf import files
from jest_tf.data.stores import shards

IMAGE_COLUMNS = (
    "image",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "image_path",
    "filepath",
    "file_path",
    "filename",
    "file_name",
    "image_file",
    "file",
    "path",
)
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "title")


class Columns:
    """The role of each column of a table.

    An `image` of "" is the first of `IMAGE_COLUMNS`, `captions` of () the first
    of `CAPTION_COLUMNS`.

    Raises:
        ValueError: the table lacks such a column.
    """

    def __init__(
        self, path: str, names: Sequence[str], image: str, captions: tuple
    ):
        self.names = names
        self._image = self._find(path, [image] if image else IMAGE_COLUMNS)
        self._captions = [
            self._find(path, wanted)
            for wanted in [[name] for name in captions] or [CAPTION_COLUMNS]
        ]
        self.taken = {self._image, *self._captions}

    def position(self, name: str) -> int | None:
        """Returns the index of a column, or None."""
        return self.names.index(name) if name in self.names else None

    def record(self, values: Mapping) -> shards.Record | shards.Fault:
        """Converts a row's values by column; `image` may still be a path."""
        image = values[self._image]
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if not isinstance(image, str | bytes):
            return shards.Fault(
                f"no picture: `{self._image}` holds {type(image).__name__}"
            )
        captions = []
        for name in self._captions:
            value = values[name]
            several = value if isinstance(value, list) else [value]
            captions += [
                encode(one) for one in several if isinstance(one, str | bytes)
            ]
        metadata = {
            name: encode(value)
            for name, value in values.items()
            if name not in self.taken and isinstance(value, str)
        }
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


def with_pictures(path: str, rows: Sequence) -> list:
    """Replaces the picture paths of a table's records by the pictures."""
    rows = list(rows)
    folder = os.path.dirname(path)
    wanted = [
        i
        for i, row in enumerate(rows)
        if isinstance(row, shards.Record) and isinstance(row.image, str)
    ]
    paths = [
        rows[i].image
        if files.is_remote(rows[i].image)
        else os.path.join(folder, rows[i].image)
        for i in wanted
    ]
    for i, image in zip(wanted, shards.read_files(paths), strict=True):
        fault = isinstance(image, shards.Fault)
        rows[i] = image if fault else rows[i]._replace(image=image)
    return rows


def encode(text: str | bytes) -> bytes:
    """Encodes a string that may hold undecodable bytes."""
    if isinstance(text, bytes):
        return text
    return text.encode("utf-8", "surrogateescape")

"""Tables: the common part of CSV, TSV and Parquet.

A row holds an image and captions. The image's column holds paths, relative
to the table's folder, or, in Parquet, encoded images (plain, or structs of
`bytes` and `path` as in Hugging Face data sets). Captions are in one or more
columns, in Parquet also as lists of strings; a table with a column `label` or
`cls` may have no captions. An `id` column holds the stored id.
"""

import os
from collections.abc import Mapping, Sequence

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


def read_images(path: str, rows: Sequence) -> list:
    """Replaces the image paths of a table's records with the images."""
    rows = list(rows)
    named = {}
    for i, row in enumerate(rows):
        if isinstance(row, shards.Record) and isinstance(row.image, str):
            # A remote path is absolute.
            folder = "" if files.is_remote(row.image) else os.path.dirname(path)
            named[i] = os.path.join(folder, row.image)
    images = shards.read_files(list(named.values()))
    for i, image in zip(named, images, strict=True):
        fault = isinstance(image, shards.Fault)
        rows[i] = image if fault else rows[i]._replace(image=image)
    return rows


def encode(text: str | bytes) -> bytes:
    """Encodes a string that may hold undecodable bytes."""
    if isinstance(text, bytes):
        return text
    return text.encode("utf-8", "surrogateescape")

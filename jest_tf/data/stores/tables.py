"""Tables: CSV, TSV and Parquet files with a picture and captions in each row.

The picture's column holds paths, relative to the table's folder, or, in
Parquet, encoded pictures (plain, or as the structs of `bytes` and `path` that
Hugging Face data sets hold). Captions are one or several columns, in Parquet
also lists of strings. A column `id`, if there is one, is the stored id.

CSV files need a first row of names and the quoting of RFC 4180: a field is
quoted if it begins with a quotation mark, and may then hold the delimiter, line
breaks and doubled quotation marks. Rows are found by byte offset, so that no
table is held in memory. Parquet is read by row group, of which a few are kept
decoded: shuffle in blocks (`data.shuffle_block_size`), or write small groups.
"""

import array
import collections
import csv
import functools
import os
import re
import threading
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from jest_tf.data.stores import retries, shards

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

# A longer row is taken for one whose quotation mark was never closed.
_MAX_ROW = 2**20
# Decoded row groups kept, in bytes, and the most that one may need.
_KEPT_GROUPS = 2**28
_MAX_GROUP = 2**33
# More rows in a group are a damaged footer.
_MAX_GROUP_ROWS = 2**27


class Delimited:
    """Rows of CSV or TSV files.

    Args:
        delimiter: one character.
        image_field: the column of paths; "" takes the first usual name.
        caption_fields: the columns of captions; () likewise.
    """

    name = "table"
    index_variant = ""

    def __init__(
        self,
        delimiter: str,
        image_field: str = "",
        caption_fields: Sequence[str] = (),
    ):
        self.index_key = f"table {delimiter}"
        self.fields = repr((image_field, tuple(caption_fields)))
        self._wanted = image_field, tuple(caption_fields)
        self._delimiter = delimiter
        self._row = _row_pattern(delimiter)
        self._columns: dict[str, _Columns] = {}

    def scan(self, path: str, advance) -> shards.Entries:
        """Finds the rows; see `data/stores/shards.py`."""
        spans, ids = array.array("q"), array.array("q")
        has_id = bytearray()
        columns = self._columns_of(path)
        id_column = columns.position("id")
        with shards.Window(path, advance) as window:
            for offset, size in self._rows(window):
                if offset == columns.header_offset:
                    continue
                stored = None
                if id_column is not None and size > 0:
                    stored = self._id(window.get(offset, size), id_column)
                spans.extend((offset, size))
                ids.append(stored or 0)
                has_id.append(stored is not None)
        return shards.Entries(
            np.frombuffer(spans, np.int64).reshape(-1, 2),
            np.frombuffer(ids, np.int64),
            np.frombuffer(has_id, bool),
        )

    def read(self, path: str, spans: np.ndarray) -> list:
        """Rows at byte ranges, and the pictures they name."""
        columns = self._columns_of(path)
        parsed = [
            row if isinstance(row, shards.Fault) else self._parse(row, columns)
            for row in shards.read_spans(path, spans)
        ]
        return _with_pictures(path, parsed)

    def _rows(self, window):
        """Yields offset and size of every row that is not blank, header too.

        A row with an open quotation mark ends with its line, as damaged.
        """
        position = 3 if window.get(0, 3) == b"\xef\xbb\xbf" else 0
        while position < window.size:
            data = window.get(position, _MAX_ROW)
            last = position + len(data) >= window.size
            start = 0
            while start < len(data):
                match = self._row.match(data, start)
                if match is None or (
                    match.end() == len(data) and not last and data[-1:] != b"\n"
                ):
                    break
                end = match.end()
                if data[start:end].strip(b"\r\n"):
                    yield position + start, end - start
                start = end
            if start == 0:
                # Neither a whole row nor a part of one that may yet close.
                start = data.find(b"\n") + 1 or len(data)
                yield position, -start
            elif last and start < len(data):
                end = data.find(b"\n", start) + 1 or len(data)
                yield position + start, start - end
                start = end
            position += start

    def _columns_of(self, path):
        if path not in self._columns:
            self._columns[path] = self._read_columns(path)
        return self._columns[path]

    def _read_columns(self, path):
        try:
            with shards.Window(path, lambda size: None) as window:
                offset, size = next(self._rows(window), (0, -1))
                header = window.get(offset, max(size, 0))
        except OSError as error:
            raise ValueError(f"Shard {path} cannot be read: {error}") from error
        names = self._split(header)
        if isinstance(names, shards.Fault) or not names:
            raise ValueError(
                f"Shard {path} is not a table: its first row must hold the "
                "names of the columns."
            )
        names = [
            _encode(name.strip()).decode("utf-8", "replace") for name in names
        ]
        return _Columns(path, names, *self._wanted, header_offset=offset)

    def _split(self, row):
        text = row.decode("utf-8", "surrogateescape").rstrip("\r\n")
        try:
            return next(csv.reader([text], delimiter=self._delimiter), [])
        except csv.Error as error:
            return shards.Fault(f"bad row: {shards.one_line(error)}")

    def _id(self, row, column):
        values = self._split(row)
        if isinstance(values, shards.Fault) or column >= len(values):
            return None
        return shards.stored_id(values[column])

    def _parse(self, row, columns):
        """A row -> a record whose picture is still a path."""
        values = self._split(row)
        if isinstance(values, shards.Fault):
            return values
        if len(values) != len(columns.names):
            return shards.Fault(
                f"bad row: {len(values)} fields, the header has "
                f"{len(columns.names)}"
            )
        return _record(columns, dict(zip(columns.names, values, strict=True)))


class Parquet:
    """Rows of Parquet files.

    Args:
        image_field: the column of pictures or paths; "" takes the first usual
            name.
        caption_fields: the columns of captions; () likewise.
    """

    name = "table"
    index_variant = ""

    def __init__(
        self, image_field: str = "", caption_fields: Sequence[str] = ()
    ):
        self.index_key = "table parquet"
        self.fields = repr((image_field, tuple(caption_fields)))
        self._wanted = image_field, tuple(caption_fields)

    def scan(self, path: str, advance) -> shards.Entries:
        """Counts the rows of every group, and reads the ids."""
        return retries.call(lambda: self._scan(path))

    def _scan(self, path):
        errors = _arrow_errors()
        parts = []
        try:
            with _open_parquet(path) as file:
                columns = self._columns_of(path, file)
                stored = columns.position("id") is not None
                for group in range(file.metadata.num_row_groups):
                    count = _group_rows(path, file.metadata, group)
                    found = _group_ids(file, group) if stored else []
                    parts.append(_group_entries(group, count, found))
        except errors as error:
            if retries.is_passing(error):
                raise
            raise ValueError(
                f"Shard {path} is not a Parquet file, or is corrupt: "
                f"{shards.one_line(error)}"
            ) from error
        parts = parts or [_group_entries(0, 0, [])]
        return shards.Entries(
            *(np.concatenate(part) for part in zip(*parts, strict=True))
        )

    def read(self, path: str, spans: np.ndarray) -> list:
        """Rows by group and number in it, and the pictures they name."""
        out: list = [None] * len(spans)
        for group in sorted(set(spans[:, 0].tolist())):
            places = np.flatnonzero(spans[:, 0] == group).tolist()
            numbers = spans[places, 1].tolist()
            for place, row in zip(
                places, self._read_rows(path, group, numbers), strict=True
            ):
                out[place] = row
        return _with_pictures(path, out)

    def _read_rows(self, path, group, numbers):
        errors = (*_arrow_errors(), IndexError, KeyError)
        try:
            columns, table = _groups.get(
                # Not by path alone: another store may see a newer file.
                (self, path, group),
                lambda: retries.call(lambda: self._read_group(path, group)),
            )
        except (*errors, *retries.ERRORS) as error:
            return [_group_fault(path, group, error)] * len(numbers)
        if columns is None:
            return [table] * len(numbers)
        rows = []
        for number in numbers:
            try:
                values = {
                    name: table.column(name)[number].as_py()
                    for name in table.column_names
                }
                rows.append(_record(columns, values))
            except errors as error:
                rows.append(shards.Fault(f"bad row: {shards.one_line(error)}"))
        return rows

    def _read_group(self, path, group):
        """The columns and the decoded group; or None and a fault."""
        with _open_parquet(path) as file:
            columns = self._columns_of(path, file)
            size = file.metadata.row_group(group).total_byte_size
            if not 0 <= size <= _MAX_GROUP:
                return None, shards.Fault(
                    f"oversized: a row group of {size} bytes, more than "
                    f"{_MAX_GROUP}"
                )
            taken = columns.taken | _string_columns(file)
            names = [name for name in columns.names if name in taken]
            # Threads of Arrow's own would compete with the pipeline's.
            return columns, file.read_row_group(
                group, columns=names, use_threads=False
            )

    def _columns_of(self, path, file):
        return _Columns(path, file.schema_arrow.names, *self._wanted)


class _Columns:
    """Which columns of a table are what."""

    def __init__(self, path, names, image, captions, header_offset=0):
        self.names = names
        self.header_offset = header_offset
        self.image = self._find(path, [image] if image else IMAGE_COLUMNS)
        self.captions = (
            [self._find(path, [name]) for name in captions]
            if captions
            else [self._find(path, CAPTION_COLUMNS)]
        )
        self.taken = {self.image, *self.captions}

    def position(self, name):
        return self.names.index(name) if name in self.names else None

    def _find(self, path, wanted):
        for name in wanted:
            if name in self.names:
                return name
        raise ValueError(
            f"Table {path} must have a column {' or '.join(map(repr, wanted))}"
            "; set `data.image_field` and `data.caption_fields`. Received: "
            f"columns {', '.join(map(repr, self.names))}"
        )


class _Groups:
    """The row groups decoded last, by format, path and number."""

    def __init__(self):
        self._lock = threading.Lock()
        self._entries = collections.OrderedDict()

    def get(self, key, load):
        with self._lock:
            entry = self._entries.setdefault(key, [threading.Lock(), None])
            self._entries.move_to_end(key)
        # One thread decodes; others that want the same group wait for it.
        with entry[0]:
            if entry[1] is None:
                entry[1] = load()
            value = entry[1]
        with self._lock:
            self._evict()
        return value

    def _evict(self):
        sizes = {
            key: getattr(entry[1][1], "nbytes", 0) if entry[1] else 0
            for key, entry in self._entries.items()
        }
        total = sum(sizes.values())
        for key in list(self._entries)[:-1]:
            if total <= _KEPT_GROUPS:
                break
            total -= sizes[key]
            del self._entries[key]


_groups = _Groups()


class _ArrowFile:
    """What Arrow needs of a file, for remote ones."""

    closed = False

    def __init__(self, path):
        self._file = shards.open_file(path)

    def read(self, size=-1):
        return self._file.read(size)

    def seek(self, offset, whence=0):
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self):
        return self._file.tell()

    def close(self):
        self.closed = True
        self._file.close()


def _record(columns, values):
    """A row's values -> record, its picture bytes or a path; or fault."""
    image = values[columns.image]
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if not isinstance(image, str | bytes):
        return shards.Fault(
            f"no picture: `{columns.image}` holds {type(image).__name__}"
        )
    captions = []
    for name in columns.captions:
        value = values[name]
        several = value if isinstance(value, list) else [value]
        captions += [_encode(one) for one in several if _is_text(one)]
    metadata = {
        name: _encode(value)
        for name, value in values.items()
        if name not in columns.taken and isinstance(value, str)
    }
    return shards.Record(image, tuple(captions), metadata)


def _with_pictures(path, rows):
    """Replaces paths by the pictures they name."""
    folder = os.path.dirname(path)
    wanted = [
        i
        for i, row in enumerate(rows)
        if isinstance(row, shards.Record) and isinstance(row.image, str)
    ]
    paths = [
        rows[i].image
        if shards.is_remote(rows[i].image)
        else os.path.join(folder, rows[i].image)
        for i in wanted
    ]
    for i, image in zip(wanted, shards.read_files(paths, path), strict=True):
        fault = isinstance(image, shards.Fault)
        rows[i] = image if fault else rows[i]._replace(image=image)
    return rows


@functools.cache
def _row_pattern(delimiter):
    """One row with its line break, or without at the end of the data."""
    mark = re.escape(delimiter.encode())
    field = (
        rb'(?>"(?:[^"]++|"")*+"[^' + mark + rb"\n]*+"
        rb'|[^"' + mark + rb"\n][^" + mark + rb"\n]*+|)"
    )
    return re.compile(field + rb"(?:" + mark + field + rb")*+(?:\n|\Z)")


def _group_rows(path, metadata, group):
    """Rows of a group, if what the footer says of it agrees with itself."""
    found = metadata.row_group(group)
    count = found.num_rows
    flat = {
        found.column(i).num_values
        for i in range(found.num_columns)
        if "." not in found.column(i).path_in_schema
    }
    if not 0 <= count <= _MAX_GROUP_ROWS or not flat <= {count}:
        raise ValueError(
            f"Shard {path} is corrupt: row group {group} claims {count} rows, "
            f"its columns {sorted(flat)}."
        )
    return count


def _group_fault(path, group, error):
    """A fault for a group that is damaged; raises where the shard is gone."""
    gone = isinstance(error, FileNotFoundError | tf.errors.NotFoundError)
    if gone or retries.is_passing(error):
        failure = f"Row group {group} of shard {path} cannot be read"
        return shards.fault_of(error, failure, path)
    return shards.Fault(f"unreadable row group: {shards.one_line(error)}")


def _group_entries(group, count, ids):
    """Entries of a group; `ids` may be fewer than its rows."""
    spans = np.stack([np.full(count, group), np.arange(count)], 1)
    ids = (ids + [None] * count)[:count]
    return shards.Entries(
        spans.astype(np.int64),
        np.array([one or 0 for one in ids], np.int64),
        np.array([one is not None for one in ids], bool),
    )


def _group_ids(file, group):
    try:
        table = file.read_row_group(group, columns=["id"], use_threads=False)
    except _arrow_errors():
        # The rows will be faults when they are read.
        return []
    return [shards.stored_id(value) for value in table.column("id").to_pylist()]


def _string_columns(file):
    import pyarrow

    return {
        field.name
        for field in file.schema_arrow
        if pyarrow.types.is_string(field.type)
        or pyarrow.types.is_large_string(field.type)
    }


def _open_parquet(path):
    parquet = _parquet()
    if shards.is_remote(path):
        return parquet.ParquetFile(_ArrowFile(path))
    return parquet.ParquetFile(path)


def _arrow_errors():
    _parquet()
    import pyarrow

    # Arrow passes strings on unchecked: names and values may be no UTF-8.
    return pyarrow.ArrowException, OSError, UnicodeError


def _parquet():
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Parquet tables need pyarrow: pip install pyarrow"
        ) from error
    return pyarrow.parquet


def _is_text(value):
    return isinstance(value, str | bytes)


def _encode(text):
    if isinstance(text, bytes):
        return text
    return text.encode("utf-8", "surrogateescape")

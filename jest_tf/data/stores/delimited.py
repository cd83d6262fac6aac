"""CSV and TSV tables; the columns are described in `data/stores/tables.py`.

The first row names the columns. Quoting follows RFC 4180: a quoted field may
hold the delimiter, line breaks and doubled quotation marks. Rows are located
by byte offset, so no table is held in memory.
"""

import array
import csv
from collections.abc import Iterator, Sequence

import numpy as np

from jest_tf.data.stores import shards, tables

# A longer row probably has an unclosed quotation mark.
_MAX_ROW = 2**20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# Python's default limit is lower, and process-wide.
csv.field_size_limit(max(csv.field_size_limit(), _MAX_ROW))


class Delimited:
    """Rows of CSV or TSV files; columns not given have the usual names."""

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
        self._columns: dict[str, tables.Columns] = {}

    def scan(self, path: str, advance) -> shards.Entries:
        """Locates the rows; see `data/stores/shards.py`."""
        spans, ids = array.array("q"), array.array("q")
        has_id = bytearray()
        id_column = self._columns_of(path).position("id")
        with shards.Window(path, advance) as window:
            rows = self._rows(window)
            next(rows)  # the header
            for offset, size, values in rows:
                stored = None
                if id_column is not None and id_column < len(values):
                    stored = shards.stored_id(values[id_column])
                spans.extend((offset, size))
                ids.append(stored or 0)
                has_id.append(stored is not None)
        return shards.Entries(
            np.frombuffer(spans, np.int64).reshape(-1, 2),
            np.frombuffer(ids, np.int64),
            np.frombuffer(has_id, bool),
        )

    def read(self, path: str, spans: np.ndarray) -> list:
        """Reads rows at byte ranges, and the pictures they name."""
        columns = self._columns_of(path)
        parsed = [
            row if isinstance(row, shards.Fault) else self._parse(row, columns)
            for row in shards.read_spans(path, spans)
        ]
        return tables.with_pictures(path, parsed)

    def _rows(self, window) -> Iterator[tuple[int, int, list[str]]]:
        """Yields offset, size and fields of every row that is not blank.

        An unclosed quote gives a negative size and no fields; a row that `csv`
        refuses has no fields.
        """
        mark = window.get(0, len(_BYTE_ORDER_MARK))
        start = len(mark) if mark == _BYTE_ORDER_MARK else 0
        lines = _Lines(window, start)
        reader = csv.reader(lines, delimiter=self._delimiter)
        while lines.position < window.size:
            start = lines.start_row()
            try:
                values = next(reader)
            except _OpenRow:
                lines.position = start + lines.first_size
                yield start, -lines.first_size, []
                continue
            except csv.Error:
                values = []
            size = lines.position - start
            if values or window.get(start, size).strip(b"\r\n"):
                yield start, size, values

    def _columns_of(self, path):
        if path not in self._columns:
            try:
                with shards.Window(path, lambda size: None) as window:
                    _, _, names = next(self._rows(window), (0, 0, []))
            except OSError as error:
                raise ValueError(
                    f"Shard {path} cannot be read: {error}"
                ) from error
            if not names:
                raise ValueError(
                    f"Shard {path} is not a table: its first row must hold the "
                    "names of the columns."
                )
            names = [
                tables.encode(name.strip()).decode("utf-8", "replace")
                for name in names
            ]
            self._columns[path] = tables.Columns(path, names, *self._wanted)
        return self._columns[path]

    def _parse(self, row, columns):
        text = _decode(row).rstrip("\r\n")
        try:
            values = next(csv.reader([text], delimiter=self._delimiter), [])
        except csv.Error as error:
            return shards.Fault(f"bad row: {shards.one_line(error)}")
        if len(values) != len(columns.names):
            return shards.Fault(
                f"bad row: {len(values)} fields, the header has "
                f"{len(columns.names)}"
            )
        return columns.record(dict(zip(columns.names, values, strict=True)))


class _OpenRow(Exception):
    """A quotation mark of the row is never closed."""


class _Lines:
    """Lines of a window as text, with their positions, for `csv.reader`."""

    def __init__(self, window, position):
        self._window = window
        self.position = position
        self._row_start = position
        self._data, self._data_start = b"", position
        self.first_size = 0

    def start_row(self) -> int:
        self._row_start = self.position
        return self.position

    def __iter__(self):
        return self

    def __next__(self):
        line = self._read_line()
        taken = self.position - self._row_start
        if taken == 0:
            self.first_size = len(line)
        self.position += len(line)
        whole = line.endswith(b"\n") or self.position == self._window.size
        if not line or not whole or taken + len(line) > _MAX_ROW:
            raise _OpenRow
        return _decode(line)

    def _read_line(self):
        start = self.position - self._data_start
        end = self._data.find(b"\n", start) + 1
        if start < 0 or not end:
            self._data = self._window.get(self.position, _MAX_ROW + 1)
            self._data_start, start = self.position, 0
            end = self._data.find(b"\n") + 1 or len(self._data)
        return self._data[start:end]


def _decode(row):
    return row.decode("utf-8", "surrogateescape")

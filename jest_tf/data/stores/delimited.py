"""CSV and TSV tables; the columns are described in `data/stores/tables.py`.

The first row names the columns. Quoting follows RFC 4180: a quoted field may
hold the delimiter, line breaks and doubled quotation marks. An unclosed mark
swallows the rows up to the next mark; these bytes are marked as damage. Rows
are located by byte offset, so no table is kept in memory.
"""

import csv
import os

import numpy as np

from jest_tf.data.stores import shards, tables

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# A longer line or field probably has an unclosed quotation mark.
_MAX_LINE = 2**20

# The limit is process-wide, and Python's default is lower.
csv.field_size_limit(max(csv.field_size_limit(), _MAX_LINE))


class Delimited:
    """Rows of CSV or TSV files."""

    name = "table"
    damage = "has a quotation mark that is not closed"

    def __init__(self, delimiter, fields=shards.USUAL):
        self.index_variant = tables.variant(fields)
        self.index_key = f"table 3 {delimiter}{self.index_variant}"
        self.fields = fields
        self._delimiter = delimiter
        self._columns: dict[str, tables.Columns] = {}

    def scan(self, path: str, advance):
        """Locates the rows; see `data/stores/shards.py`."""
        columns = self._find_columns(path)
        id_column = columns.position("id")
        with shards.open_scan(path, advance) as file:
            rows = self._rows(file)
            next(rows)  # the header
            for place, row, values in rows:
                if values is None or self._swallows(columns, values):
                    yield place, -len(row), None, 0
                    continue
                stored = None
                if id_column is not None and id_column < len(values):
                    stored = shards.stored_id(values[id_column])
                checksum = tables.checksum(path, self._parse(columns, row))
                yield place, len(row), stored, checksum

    def read(self, path: str, spans: np.ndarray) -> list:
        """Reads rows at byte ranges, and the images they name."""
        columns = self._find_columns(path)
        rows = shards.read_records(
            path, spans, lambda row, _: self._parse(columns, row)
        )
        return tables.read_images(path, rows, spans[:, 2].tolist())

    def _parse(self, columns, row):
        # An unclosed quotation mark swallows this last delimiter.
        text = _decode(row).rstrip("\r\n") + self._delimiter
        try:
            reader = csv.reader([text], delimiter=self._delimiter)
            *values, _ = next(reader)
        except csv.Error as error:
            return shards.Fault(f"bad row: {shards.one_line(error)}")
        if len(values) != len(columns.names):
            return shards.Fault(
                f"bad row: {len(values)} fields, the header has "
                f"{len(columns.names)}"
            )
        return columns.record(dict(zip(columns.names, values, strict=True)))

    def _rows(self, file):
        """Yields offset, bytes and fields of every row that is not blank.

        The fields are None where quotation marks wrongly join lines.
        """
        mark = file.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK
        end = file.seek(len(_BYTE_ORDER_MARK) if mark else 0)
        row: list = []

        def lines():
            while line := file.readline(_MAX_LINE):
                row.append(line)
                yield _decode(line)

        # Strict about what follows a closing quotation mark.
        reader = csv.reader(lines(), delimiter=self._delimiter, strict=True)
        while end < file.raw.size:
            start, before = end, reader.line_num
            row.clear()
            try:
                values = next(reader)
            except csv.Error:
                # A single line is kept; `read` parses it, or makes it a fault.
                values = [""] if reader.line_num - before == 1 else None
            end = file.tell()
            if values != []:
                yield start, b"".join(row), values

    def _swallows(self, columns, values):
        """True if a field has a whole row: a quotation mark was unclosed."""
        image = columns.position(columns.image)
        for line in (line for text in values for line in text.splitlines()[1:]):
            row = next(csv.reader([line], delimiter=self._delimiter), [])
            if len(row) == len(values) == len(columns.names):
                endings = {
                    os.path.splitext(cells[image])[1] for cells in (row, values)
                }
                if len(endings) == 1 and endings != {""}:
                    return True
        return False

    def _find_columns(self, path):
        if path not in self._columns:
            with shards.naming(path), shards.open_scan(path) as file:
                _, _, names = next(self._rows(file), (0, 0, []))
            if not names:
                raise ValueError(
                    f"Shard {path} is not a table: its first row must hold the "
                    "names of the columns."
                )
            names = [
                tables.encode(name.strip()).decode("utf-8", "replace")
                for name in names
            ]
            self._columns[path] = tables.Columns(path, names, self.fields)
        return self._columns[path]


def _decode(row):
    return row.decode("utf-8", "surrogateescape")

"""CSV and TSV tables; the columns are described in `data/stores/tables.py`.

The first row names the columns. If the usual delimiter finds a single column in
it, and exactly one other finds more, that one is used. Quoting follows RFC
4180: a quoted field may hold the delimiter, line breaks and doubled quotation
marks. An unclosed mark swallows the rows up to the next mark; these bytes are
marked as damage. Rows are located by byte offset: no table is kept in memory.

A table is UTF-8. A few lines of other bytes may be damage and are kept. If they
are more than `_MAX_DAMAGED` of all lines, and most of those beyond ASCII, the
table has another encoding.
"""

import csv
import os
import shlex

import numpy as np

from jest_tf.data.stores import shards, tables

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DELIMITERS = (",", ";", "\t")
# A longer line or field probably has an unclosed quotation mark.
_MAX_LINE = 2**20
# Share of lines that may not be UTF-8 in a table that is.
_MAX_DAMAGED = 0.01

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
        # The columns of each table, and its delimiter.
        self._columns: dict[str, tuple[tables.Columns, str]] = {}

    def scan(self, path: str, advance):
        """Locates the rows; see `data/stores/shards.py`."""
        columns, delimiter = self._find_columns(path)
        id_column = columns.position("id")
        with shards.open_scan(path, advance) as file:
            lines = _Lines(file)
            rows = _rows(lines, delimiter)
            next(rows)  # the header
            for place, row, values in rows:
                if values is None or _swallows(columns, values, delimiter):
                    yield place, -len(row), None, 0
                    continue
                stored = None
                if id_column is not None and id_column < len(values):
                    stored = shards.stored_id(values[id_column])
                record = _parse(columns, row, delimiter)
                checksum = tables.checksum(path, record)
                yield place, len(row), stored, checksum
        lines.check(path)

    def read(self, path: str, spans: np.ndarray) -> list:
        """Reads rows at byte ranges, and the images they name."""
        columns, delimiter = self._find_columns(path)
        rows = shards.read_records(
            path, spans, lambda row, _: _parse(columns, row, delimiter)
        )
        return tables.read_images(path, rows, spans[:, 2].tolist())

    def _find_columns(self, path):
        if path not in self._columns:
            with shards.naming(path), shards.open_scan(path) as file:
                lines = _Lines(file)
                found = {
                    delimiter: next(_rows(lines, delimiter), (0, 0, []))[2]
                    for delimiter in (self._delimiter, *_DELIMITERS)
                }
            lines.check(path)
            names, delimiter = found[self._delimiter], self._delimiter
            others = [each for each in found if len(found[each] or ()) > 1]
            if len(others) == 1:
                (delimiter,) = others
                names = found[delimiter]
            if not names:
                raise ValueError(
                    f"Shard {path} is not a table: its first row must hold the "
                    "names of the columns."
                )
            names = [
                tables.encode(name.strip()).decode("utf-8", "replace")
                for name in names
            ]
            columns = tables.Columns(path, names, self.fields)
            self._columns[path] = columns, delimiter
        return self._columns[path]


class _Lines:
    """The lines of a file, decoded; counts those that are not UTF-8.

    `row` collects their bytes, until it is cleared.
    """

    def __init__(self, file):
        self.file = file
        self.row = []
        self._number = self._num_valid = self._num_invalid = 0
        self._first = ""

    def __iter__(self):
        return self

    def __next__(self):
        line = self.file.readline(_MAX_LINE)
        if not line:
            raise StopIteration
        self.row.append(line)
        self._number += 1
        try:
            text = line.decode()
            self._num_valid += not line.isascii()
        except UnicodeDecodeError as error:
            text = _decode(line)
            self._num_invalid += 1
            place = self.file.tell() - len(line) + error.start
            self._first = self._first or (
                f"line {self._number:,}, byte {place:,}, "
                f"0x{line[error.start]:02x}"
            )
        return text

    def check(self, path):
        """Refuses a table of another encoding, by the lines so far.

        Single lines may be damage.
        """
        damaged = _MAX_DAMAGED * self._number
        if self._num_invalid > max(self._num_valid, damaged):
            # Excel's "Unicode text" begins with a UTF-16 byte-order mark.
            is_utf_16 = self._first.endswith((" 0, 0xff", " 0, 0xfe"))
            encoding = "utf-16" if is_utf_16 else "latin1"
            raise ValueError(
                f"Table {path} must be UTF-8. Received: other bytes, the first "
                f"in {self._first}; convert it from its encoding, such as by "
                f"`iconv -f {encoding} -t utf-8 {shlex.quote(path)} > NEW`"
            )


def _rows(lines, delimiter):
    """Yields offset, bytes and fields of every row that is not blank.

    The fields are None where quotation marks wrongly join lines.
    """
    file = lines.file
    file.seek(0)
    mark = file.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK
    end = file.seek(len(_BYTE_ORDER_MARK) if mark else 0)
    # Strict about what follows a closing quotation mark.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while end < file.raw.size:
        start, before = end, reader.line_num
        lines.row.clear()
        try:
            values = next(reader)
        except csv.Error:
            # A single line is kept; `read` parses it, or makes it a fault.
            values = [""] if reader.line_num - before == 1 else None
        end = file.tell()
        if values != []:
            yield start, b"".join(lines.row), values


def _parse(columns, row, delimiter):
    """The record of a row's bytes, or the `Fault` that it has."""
    # An unclosed quotation mark swallows this last delimiter.
    text = _decode(row).rstrip("\r\n") + delimiter
    try:
        *values, _ = next(csv.reader([text], delimiter=delimiter))
    except csv.Error as error:
        return shards.Fault(f"bad row: {shards.one_line(error)}")
    if len(values) != len(columns.names):
        return shards.Fault(
            f"bad row: {len(values)} fields, the header has "
            f"{len(columns.names)}"
        )
    return columns.record(dict(zip(columns.names, values, strict=True)))


def _swallows(columns, values, delimiter):
    """True if a field has a whole row: a quotation mark was unclosed."""
    image = columns.position(columns.image)
    for line in (line for text in values for line in text.splitlines()[1:]):
        row = next(csv.reader([line], delimiter=delimiter), [])
        if len(row) == len(values) == len(columns.names):
            endings = {
                os.path.splitext(cells[image])[1] for cells in (row, values)
            }
            if len(endings) == 1 and endings != {""}:
                return True
    return False


def _decode(row):
    return row.decode("utf-8", "surrogateescape")

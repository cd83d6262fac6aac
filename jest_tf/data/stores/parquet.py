"""Parquet tables; the columns are described in `data/stores/tables.py`.

Files are read by row group, and a few groups are kept decoded. Shuffle in
blocks (`data.shuffle_block_size`), or write small groups.
"""

import collections
import threading
from collections.abc import Sequence

import numpy as np

from jest_tf import files
from jest_tf.data.stores import retries, shards, tables

# Limit on decoded row groups kept, in bytes, and on a single one.
_KEPT_GROUPS = 2**28
_MAX_GROUP = 2**33
# A group with more rows has a damaged footer.
_MAX_GROUP_ROWS = 2**27


class Parquet:
    """Rows of Parquet files; columns not given have the usual names."""

    name = "table"
    index_variant = ""

    def __init__(
        self, image_field: str = "", caption_fields: Sequence[str] = ()
    ):
        self.index_key = "table parquet"
        self.fields = repr((image_field, tuple(caption_fields)))
        self._wanted = image_field, tuple(caption_fields)

    def scan(self, path: str, advance) -> shards.Entries:
        """Counts the rows of every group and reads the ids."""
        del advance
        return retries.call(lambda: self._scan(path))

    def read(self, path: str, spans: np.ndarray) -> list:
        """Reads rows by group and number, and the pictures they name."""
        out: list = [None] * len(spans)
        for group in sorted(set(spans[:, 0].tolist())):
            places = np.flatnonzero(spans[:, 0] == group).tolist()
            rows = self._read_rows(path, group, spans[places, 1].tolist())
            for place, row in zip(places, rows, strict=True):
                out[place] = row
        return tables.with_pictures(path, out)

    def _scan(self, path):
        parts = [_group_entries(0, 0, [])]
        try:
            with _open_parquet(path) as file:
                columns = self._columns_of(path, file)
                stored = columns.position("id") is not None
                for group in range(file.metadata.num_row_groups):
                    count = _group_rows(path, file.metadata, group)
                    found = _group_ids(file, group) if stored else []
                    parts.append(_group_entries(group, count, found))
        except (*_corrupt(), OSError) as error:
            if retries.may_pass(error):
                raise
            raise ValueError(
                f"Shard {path} is not a Parquet file, or is corrupt: "
                f"{shards.one_line(error)}"
            ) from error
        return shards.Entries(
            *(np.concatenate(part) for part in zip(*parts, strict=True))
        )

    def _read_rows(self, path, group, numbers):
        try:
            columns, table = _groups.get(
                # Not by path alone: another store may see a newer file.
                (self, path, group),
                lambda: retries.call(lambda: self._read_group(path, group)),
            )
        except retries.LASTING as error:
            raise ValueError(
                f"Shard {path} cannot be read: {shards.one_line(error)}"
            ) from error
        except (*_corrupt(), *retries.ERRORS, LookupError) as error:
            reason = f"unreadable row group: {shards.one_line(error)}"
            return [shards.Fault(reason)] * len(numbers)
        if columns is None:
            return [table] * len(numbers)
        return [_row(columns, table, number) for number in numbers]

    def _read_group(self, path, group):
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
            # Arrow's threads would compete with the pipeline's.
            return columns, file.read_row_group(
                group, columns=names, use_threads=False
            )

    def _columns_of(self, path, file):
        return tables.Columns(path, file.schema_arrow.names, *self._wanted)


class _Groups:
    """A cache of decoded row groups, by format, path and number."""

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
    closed = False

    def __init__(self, path):
        self._file = files.open_file(path)

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


def _group_rows(path, metadata, group):
    """Number of rows of a group, checked for consistency."""
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


def _row(columns, table, number):
    try:
        return columns.record(
            {
                name: table.column(name)[number].as_py()
                for name in table.column_names
            }
        )
    except (*_corrupt(), LookupError, OSError) as error:
        return shards.Fault(f"bad row: {shards.one_line(error)}")


def _group_entries(group, count, ids):
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
    except (*_corrupt(), OSError):
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
    if files.is_remote(path):
        return parquet.ParquetFile(_ArrowFile(path))
    return parquet.ParquetFile(path)


def _corrupt():
    """Errors of Arrow on damaged files; their text may not be UTF-8."""
    _parquet()
    import pyarrow

    return pyarrow.ArrowException, UnicodeError


def _parquet():
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Parquet tables need pyarrow: pip install pyarrow"
        ) from error
    return pyarrow.parquet

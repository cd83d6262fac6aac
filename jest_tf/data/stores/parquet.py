"""Parquet tables; the columns are described in `data/stores/tables.py`.

Files are read by row group, and a few decoded groups are kept. So shuffle in
blocks (`data.shuffle_block_size`), or write small groups.
"""

import itertools
import json

import numpy as np

from jest_tf import files
from jest_tf.data.stores import shards, tables
from jest_tf.files import cache, retries

# Rows of a group that a scan has in memory as Python values.
_ROWS = 256
# The latest decoded row groups, up to 256 MiB: their columns and tables.
_groups = cache.Cache(2**28, lambda group: group[1].nbytes)


class Parquet:
    """Rows of Parquet files, located by row group and number."""

    name = "table"

    def __init__(self, fields=shards.USUAL):
        self.fields = fields
        self.index_variant = tables.variant(fields)
        self.index_key = f"table 3 parquet{self.index_variant}"

    def scan(self, path: str, advance):
        """Reads the ids and checksums of the rows of every group."""
        del advance
        try:
            with retries.call(lambda: _open(path)) as file:
                columns = self._find_columns(path, file)
                stored = columns.position("id") is not None
                for group, count in enumerate(_lengths(path, file.metadata)):
                    ids = _ids(file, group) if stored else []
                    checksums = self._checksums(path, group, count)
                    for number, key, checksum in itertools.zip_longest(
                        range(count), ids, checksums
                    ):
                        yield group, number, key, checksum
        except (*_corrupt(), OSError) as error:
            raise ValueError(
                f"Shard {path} is not a Parquet file, or cannot be read: "
                f"{shards.one_line(error)}"
            ) from error

    def read(self, path: str, spans: np.ndarray) -> list:
        """Reads rows by group and number, and the images they name."""
        out: dict = {}
        for group in np.unique(spans[:, 0]).tolist():
            places = np.flatnonzero(spans[:, 0] == group)
            rows = self._read_rows(path, group, spans[places, 1].tolist())
            out |= zip(places.tolist(), rows, strict=True)
        rows = [out[i] for i in range(len(spans))]
        return tables.read_images(path, rows, spans[:, 2].tolist())

    def _checksums(self, path, group, count):
        for start in range(0, count, _ROWS):
            numbers = range(start, min(start + _ROWS, count))
            for row in self._read_rows(path, group, numbers):
                yield tables.checksum(path, row)

    def _read_rows(self, path, group, numbers):
        try:
            # Not by path only: another store may have opened a newer file.
            key = self, path, group
            groups = _groups.get(
                [key],
                lambda _: [retries.call(lambda: self._read_group(path, group))],
            )
            columns, table = groups[key]
        except retries.LASTING as error:
            raise ValueError(
                f"Shard {path} cannot be read: {shards.one_line(error)}"
            ) from error
        except (*_corrupt(), *retries.ERRORS, LookupError) as error:
            reason = f"unreadable row group: {shards.one_line(error)}"
            return [shards.Fault(reason)] * len(numbers)
        return [_row(columns, table, number) for number in numbers]

    def _read_group(self, path, group):
        import pyarrow

        with _open(path) as file:
            columns = self._find_columns(path, file)
            names = [
                field.name
                for field in file.schema_arrow
                if field.name in columns.taken
                or pyarrow.types.is_string(field.type)
                or pyarrow.types.is_large_string(field.type)
                or pyarrow.types.is_integer(field.type)
                or pyarrow.types.is_boolean(field.type)
                or field.name in (*shards.CLASS_NUMBERS, *columns.classes)
            ]
            # Arrow's threads would compete with the pipeline's.
            return columns, file.read_row_group(
                group, columns=names, use_threads=False
            )

    def _find_columns(self, path, file):
        schema = file.schema_arrow
        return tables.Columns(
            path, schema.names, self.fields, _class_names(schema.metadata)
        )


def _lengths(path, metadata):
    """Returns the number of rows of each group, checked for consistency."""
    groups = range(metadata.num_row_groups)
    lengths = [metadata.row_group(group).num_rows for group in groups]
    if min(lengths, default=0) < 0 or sum(lengths) != metadata.num_rows:
        raise ValueError(
            f"Shard {path} is corrupt: its row groups claim {lengths} rows, "
            f"the file {metadata.num_rows}."
        )
    return lengths


def _class_names(metadata):
    """Returns class names by column, from Hugging Face's metadata if any."""
    try:
        about = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        features = about.get("info", {}).get("features", {})
        return {
            name: feature["names"]
            for name, feature in features.items()
            if feature.get("_type") == "ClassLabel"
        }
    except (AttributeError, LookupError, ValueError):
        return {}


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


def _ids(file, group):
    try:
        table = retries.call(
            lambda: file.read_row_group(
                group, columns=["id"], use_threads=False
            )
        )
    except (*_corrupt(), OSError) as error:
        if getattr(error, "errno", None):
            raise
        # The rows will be faults when they are read.
        return []
    return [shards.stored_id(value) for value in table.column("id").to_pylist()]


def _open(path):
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Parquet tables need pyarrow: pip install pyarrow"
        ) from error
    if files.is_remote(path):
        path = shards.open_scan(path).detach()
    return pyarrow.parquet.ParquetFile(path)


def _corrupt():
    """Returns Arrow's errors on damaged files; their text may not be UTF-8."""
    import pyarrow

    return pyarrow.ArrowException, UnicodeError

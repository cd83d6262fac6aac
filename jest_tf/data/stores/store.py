"""A store: records in shards of any format, read as a single array.

Every shard is indexed once (`data/stores/index.py`), so any row is a single
positioned read, without a shuffle buffer or iterator state.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.config import checks
from jest_tf.data.stores import (
    delimited,
    index,
    manifest,
    parquet,
    shards,
    tars,
    tfrecords,
)
from jest_tf.files import retries

Record = shards.Record
Fault = shards.Fault
NoFiles = shards.NoFiles

# Records per read in a sequential pass.
_BATCH = 256
# Records checked when a store is opened, evenly spread.
_PROBES = 16
_FORMATS = {
    "tfrecord": tfrecords.TFRecords,
    "webdataset": tars.Tars,
    "csv": functools.partial(delimited.Delimited, ","),
    "tsv": functools.partial(delimited.Delimited, "\t"),
    "parquet": parquet.Parquet,
}
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z")
_ENDINGS = {
    ".tar": "webdataset",
    **{f".{name}": name for name in ("csv", "tsv", "parquet")},
}


class Shards(NamedTuple):
    """The files of a store in row order, and int64 [shards] records in each."""

    paths: tuple[str, ...]
    lengths: np.ndarray


class Store:
    """An array of records over shards, in order; made by `open_store`.

    Thread-safe; keeps no file open and releases the interpreter lock to read.

    Args:
        opened: path, format and index of each shard.
        parts: number of records of each joined store; None is a single part.

    Attributes:
        shards: the files and their numbers of records.
        indexes: the index of each shard.
        parts: as given.
        manifest: weights of the rows in a stream; None draws all alike.
    """

    def __init__(
        self,
        opened: Sequence[tuple[str, object, index.Index]],
        parts: Sequence[int] | None = None,
    ):
        paths, _, self.indexes = zip(*opened, strict=True)
        lengths = np.array(
            [shard.num_records for shard in self.indexes], np.int64
        )
        self.shards = Shards(paths, lengths)
        self.parts = tuple(parts or (int(lengths.sum()),))
        self.manifest: manifest.Manifest | None = None
        self._opened = tuple(opened)
        self._ends = np.cumsum(lengths)  # [shards]

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def num_lost(self) -> int:
        """An estimate of the number of records lost in damaged parts."""
        return sum(shard.num_lost for shard in self.indexes)

    @property
    def lost_share(self) -> float:
        """`num_lost` as a share of all records, including those lost."""
        there = len(self) - sum(len(shard.damage) for shard in self.indexes)
        return self.num_lost / (self.num_lost + there)

    @property
    def is_remote(self) -> bool:
        """True if any shard is on a bucket."""
        return any(map(files.is_remote, self.shards.paths))

    def read(self, rows: np.ndarray) -> list[Record | Fault]:
        """Reads records at rows, int64 [k], in any order, repeats allowed.

        Returns:
            k records or faults, in the order of `rows`.

        Raises:
            IndexError: a row is out of range.
            ValueError: a shard is gone.
        """
        return [parsed(record) for record in self.read_unparsed(rows)]

    def read_unparsed(
        self, rows: np.ndarray
    ) -> list[Record | Fault | Callable[[], Record | Fault]]:
        """Reads records like `read`, but leaves parsing to `parsed`.

        Parsing, with checksums, costs more than reading, and a caller that
        reads whole blocks may not need every record.
        """
        out: list = [None] * len(rows)
        jobs = list(self.by_shard(rows))

        def read(job):
            shard, _, local = job
            path, form, records = self._opened[shard]
            return form.read(path, records.rows(local)[:, :2])

        paths = [self.shards.paths[shard] for shard, _, _ in jobs]
        remote = any(map(files.is_remote, paths))
        found = retries.map_parallel(read, jobs, remote)
        line = np.arange(len(rows))
        for (_, places, _), some in zip(jobs, found, strict=True):
            for place, record in zip(line[places].tolist(), some, strict=True):
                out[place] = record
        return out

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Returns stable ids of rows, int64 [k] -> int64 [k]; see `index.py`.

        Raises:
            IndexError: a row is out of range.
        """
        ids = np.empty(len(rows), np.int64)
        for shard, places, local in self.by_shard(rows):
            ids[places] = self.indexes[shard].rows(local)[:, 2]
        return ids

    def captions(self) -> Iterator[bytes]:
        """Yields all captions of all records in order, skipping faults."""
        for _, found in self._batches():
            for record in found:
                yield from getattr(record, "captions", ())

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray | list]:
        """Reads `id`, `caption` or metadata of all records, in order.

        Returns:
            `id` as int64 [n]; `caption` as n lists of bytes; other fields as an
            object array [n] of bytes, b"" if missing. A fault has only an id.
        """
        return shards.columns(names, self._batches(), self.ids)

    def stamp(self, shard: int) -> str:
        """Identifies a shard's version, format and the fields taken from it.

        It depends on the shard's size and hashes of its head, tail and index,
        but not on its time of change or on pictures that a table names.
        """
        return self.indexes[shard].stamp

    @property
    def fingerprint(self) -> str:
        """Identifies the records of all shards; see `stamp`."""
        return " ".join(self.stamp(i) for i in range(len(self.shards.paths)))

    def of_shard(self, shard: int) -> "Store":
        """Returns the store of a single shard."""
        return Store([self._opened[shard]])

    def describe(self, row: int) -> str:
        """Names a row for error messages, by shard and number within it."""
        ((shard, _, local),) = self.by_shard([row])
        return f"record {local[0]} of {self.shards.paths[shard]}"

    def _batches(self):
        for start in range(0, len(self), _BATCH):
            rows = np.arange(start, min(start + _BATCH, len(self)))
            yield rows, self.read(rows)

    def by_shard(
        self, rows: np.ndarray
    ) -> Iterator[tuple[int, slice | np.ndarray, np.ndarray]]:
        """Yields, by shard, its number, indices in `rows` [k], and its rows.

        Raises:
            IndexError: a row is out of range.
        """
        rows = np.asarray(rows, np.int64)
        if not len(rows):
            return
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= len(self):
            raise IndexError(
                f"`rows` must be in [0, {len(self)}). "
                f"Received: {low if low < 0 else high}"
            )
        owners = np.searchsorted(self._ends, rows, side="right")
        order = None  # already sorted
        if (np.diff(owners) < 0).any():
            order = np.argsort(owners, kind="stable")
            owners = owners[order]
        cuts = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(rows)]
        for start, end in zip(cuts[:-1], cuts[1:], strict=True):
            shard, places = int(owners[start]), slice(start, end)
            if order is not None:
                places = order[places]
            before = self._ends[shard] - self.shards.lengths[shard]
            yield shard, places, rows[places] - before


def parsed(
    unparsed: Record | Fault | Callable[[], Record | Fault],
) -> Record | Fault:
    """Parses an item of `Store.read_unparsed` to an item of `Store.read`."""
    return unparsed() if callable(unparsed) else unparsed


def open_store(
    patterns: str | Sequence[str],
    *,
    image_field: str = "",
    caption_fields: Sequence[str] = (),
    index_dir: str = "",
    progress: Callable[[int, int], None] | None = None,
    setting: str = "patterns",
) -> Store:
    """Opens shards and indexes those that have no index yet.

    Args:
        patterns: a path or glob, or several; each must match a file. Duplicates
            count once. A file's name gives its format; files with unknown names
            are read as TFRecord.
        image_field: feature, extension or column of the picture; "" is the
            format's default.
        caption_fields: features, extensions, `json` fields or columns of the
            captions; () are the format's defaults.
        index_dir: folder of the index files; "" is beside each shard.
        progress: called with the numbers of bytes indexed so far and in all.
        setting: name of the patterns in errors.

    Returns:
        A store whose rows follow the sorted paths of the shards.

    Raises:
        ValueError: a pattern matches nothing, files of a pattern have several
            formats, or a shard cannot be read, is empty or has another format.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    settings = config_lib.DataConfig(
        image_field=image_field,
        caption_fields=tuple(caption_fields),
        index_dir=index_dir,
    )
    return _open([(setting, patterns)], settings, progress)


def open_stores(
    config,
    progress: Callable[[int, int], None] | None = None,
    setting: str = "data.train",
) -> Store:
    """Opens all stores of a `DataConfig` as a single array of rows.

    Errors name `setting` in place of `data.train`.

    Returns:
        A store whose rows follow the order of `data.train` and `data.curated`,
        with `parts` and the settings' manifest.

    Raises:
        ValueError: as `open_store`.
    """
    named = [
        *((setting, [pattern]) for pattern in config.train),
        *(("data.curated", [pattern]) for pattern in config.curated),
    ]
    store = _open(named, config, progress)
    if config.manifest:
        store.manifest = manifest.Manifest(config.manifest, store)
    return store


def join(stores: Sequence[Store]) -> Store:
    """Joins stores into a single store with `parts`."""
    return Store(
        [shard for store in stores for shard in store._opened],
        [len(store) for store in stores],
    )


def check_captions(store: Store) -> None:
    """Refuses a training store whose records have no captions.

    Raises:
        ValueError: a few records, spread over a part, all lack captions.
    """
    end = 0
    for part in store.parts:
        start, end = end, end + part
        rows = _spread(start, end)
        found = store.read(rows)
        if not any(
            any(caption.strip() for caption in getattr(record, "captions", ()))
            for record in found
        ):
            raise ValueError(
                "`data.train` must hold captions; `data.caption_fields` names "
                f"their fields. Received: none in {len(rows)} records, the "
                f"first {store.describe(int(rows[0]))}{_texts(found)}"
            )


def _open(groups, settings, progress):
    """Opens groups of (setting, patterns), and joins them into a store."""
    if not groups or not all(patterns for _, patterns in groups):
        raise ValueError(
            "`data.train` must name at least one store, and `patterns` at "
            "least one shard. Received: none"
        )
    fields = shards.Fields(settings.image_field, tuple(settings.caption_fields))
    located = []
    for setting, patterns in groups:
        found = {}
        for pattern in patterns:
            found |= _find(pattern, fields, setting)
        located.append(sorted(found.items(), key=lambda item: item[0]))
    paths, formats = zip(
        *(item for part in located for item in part), strict=True
    )
    indexes = index.open_indexes(paths, formats, settings.index_dir, progress)
    opened = iter(zip(paths, formats, indexes, strict=True))
    stores = [Store([next(opened) for _ in part]) for part in located]
    for store in stores:
        _check_readable(store, settings.caption_fields)
    return join(stores)


def _find(pattern, fields, setting):
    """Returns the format of each file that a pattern names, by path."""
    pattern = os.path.expanduser(os.fspath(pattern))
    kinds = {path: _kind(path) for path in shards.expand(pattern, setting)}
    examples = {kind: path for path, kind in reversed(kinds.items())}
    if len(examples) > 1:
        raise ValueError(
            "The files of a store must have one format; narrow the pattern, "
            "for example to '*.tar'. Received: "
            f"{pattern!r}, which matches {', '.join(sorted(examples.values()))}"
        )
    (kind,) = examples
    return dict.fromkeys(kinds, _FORMATS[kind](fields))


def _kind(path):
    """Returns the format of a file, by its name."""
    name = os.path.basename(path).lower()
    if name.endswith(_COMPRESSED):
        raise ValueError(
            "Shards must not be compressed, so that records can be read in any "
            f"order: unpack them first, as `gunzip` does. Received: {path}"
        )
    return _ENDINGS.get(os.path.splitext(name)[1], "tfrecord")


def _check_readable(store, caption_fields):
    rows = _spread(0, len(store))
    found = store.read(rows)
    if all(isinstance(record, Fault) for record in found):
        raise ValueError(
            f"A store must hold records. Received: faults in all {len(rows)} "
            f"of its {len(store)} records that were checked, the first in "
            f"{store.describe(int(rows[0]))}: {found[0].reason}"
            + _way_out(found[0].reason)
        )
    if caption_fields and not any(
        getattr(record, "captions", ()) for record in found
    ):
        raise ValueError(
            f"`data.caption_fields` must name captions. Received: "
            f"{tuple(caption_fields)}, none of which is in the {len(rows)} "
            "records that were checked, the first "
            f"{store.describe(int(rows[0]))}{_texts(found, caption_fields)}"
        )


def _way_out(reason):
    if reason.startswith("no picture"):
        return "; `data.image_field` names the field of the picture"
    if reason.startswith("missing file"):
        return "; paths in a table begin at its folder, or with /"
    return ""


def _texts(found, names=()):
    """Lists the records' fields for an error; any may hold the captions."""
    known = sorted(
        {name for record in found for name in getattr(record, "metadata", {})}
    )
    close = names and checks.nearest(names[0], known)
    if close:
        return f". Did you mean {close!r}?"
    return f"; its fields are {', '.join(map(repr, known))}" if known else ""


def _spread(start, end):
    """Returns a few rows, evenly spread over [start, end)."""
    return np.unique(np.linspace(start, end - 1, _PROBES).astype(np.int64))

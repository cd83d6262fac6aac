"""A store: records in shards of any format, read as one array.

Every shard is indexed once (`data/stores/index.py`), so any row is one
positioned read, without a shuffle buffer or iterator state.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.data.stores import (
    delimited,
    index,
    manifest,
    parquet,
    retries,
    shards,
    tars,
    tfds,
    tfrecords,
)

Record = shards.Record
Fault = shards.Fault
MAX_IMAGE_PIXELS = config_lib.DataConfig.max_image_pixels

# Records of one read in a sequential pass.
_BATCH = 256
# Records checked when a store is opened, evenly spread.
_PROBES = 16
_TABLES = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}


class Shards(NamedTuple):
    """The files of a store in row order, and int64 [shards] records in each."""

    paths: tuple[str, ...]
    lengths: np.ndarray


class Store:
    """An array of records over shards, in order; made by `open_store`.

    Thread-safe; keeps no file open and releases the interpreter lock to read.

    Args:
        paths: the shards.
        formats: the format of each.
        indexes: the index of each.
        parts: number of records of each joined store; None is one part.
        max_image_pixels: limit on width times height of a picture.

    Attributes:
        shards: the files and their numbers of records.
        parts: as given.
        max_image_pixels: as given; decoders treat larger pictures as faults.
        manifest: weights of the rows in a stream; None draws all alike.
    """

    def __init__(
        self,
        paths: Sequence[str],
        formats: Sequence,
        indexes: Sequence[index.Index],
        parts: Sequence[int] | None = None,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
    ):
        lengths = np.array([one.num_records for one in indexes], np.int64)
        self.shards = Shards(tuple(paths), lengths)
        self.parts = tuple(parts or (int(lengths.sum()),))
        self.max_image_pixels = max_image_pixels
        self.manifest: manifest.Manifest | None = None
        self._formats = tuple(formats)
        self._indexes = tuple(indexes)
        self._ends = np.cumsum(lengths)  # [shards]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, rows: np.ndarray) -> list[Record | Fault]:
        """Reads records at rows, int64 [k], in any order, repeats allowed.

        Returns:
            k records or faults, in the order of `rows`.

        Raises:
            IndexError: a row is out of range.
            ValueError: a shard is gone.
        """
        out: list = [None] * len(rows)
        jobs = list(self._by_shard(rows))

        def read(job):
            shard, _, local = job
            spans = self._indexes[shard].rows(local)[:, :2]
            return self._formats[shard].read(self.shards.paths[shard], spans)

        remote = any(
            files.is_remote(self.shards.paths[shard]) for shard, _, _ in jobs
        )
        workers = shards.REMOTE_REQUESTS if remote else 1
        found = retries.map_parallel(read, jobs, workers)
        for (_, places, _), some in zip(jobs, found, strict=True):
            for place, record in zip(places.tolist(), some, strict=True):
                out[place] = record
        return out

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Returns stable ids of rows, int64 [k] -> int64 [k]; see `index.py`.

        Raises:
            IndexError: a row is out of range.
        """
        ids = np.empty(len(rows), np.int64)
        for shard, places, local in self._by_shard(rows):
            ids[places] = self._indexes[shard].rows(local)[:, 2]
        return ids

    def captions(self) -> Iterator[bytes]:
        """Yields all captions of all records in order, skipping faults."""
        for _, found in self._batches():
            for record in found:
                if isinstance(record, Record):
                    yield from record.captions

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray | list]:
        """Reads `id`, `caption` or metadata of all records, in order.

        Returns:
            `id` as int64 [n]; `caption` as n lists of bytes; other fields as an
            object array [n] of bytes, b"" if missing. A fault has only an id.
        """
        columns: dict[str, list] = {name: [] for name in names}
        for rows, found in self._batches():
            metadata = [getattr(one, "metadata", {}) for one in found]
            for name, column in columns.items():
                if name == "id":
                    column.append(self.ids(rows))
                elif name == "caption":
                    column += [
                        list(getattr(one, "captions", ())) for one in found
                    ]
                else:
                    column += [one.get(name, b"") for one in metadata]
        return {
            name: np.concatenate(column)
            if name == "id"
            else column
            if name == "caption"
            else _objects(column)
            for name, column in columns.items()
        }

    def stamp(self, shard: int) -> str:
        """Identifies a shard's version, format and the fields taken from it.

        Depends on the shard's size and hashes of its head, tail and index, but
        not on its time of change or on pictures that a table names.
        """
        return self._indexes[shard].stamp

    def of_shard(self, shard: int) -> "Store":
        """Returns the store of a single shard."""
        one = slice(shard, shard + 1)
        return Store(
            self.shards.paths[one],
            self._formats[one],
            self._indexes[one],
            max_image_pixels=self.max_image_pixels,
        )

    def describe(self, row: int) -> str:
        """Names a row in error messages, by shard and number within it."""
        shard = int(self._shard_of(np.array([row]))[0])
        first = int(self._ends[shard] - self.shards.lengths[shard])
        return f"record {row - first} of {self.shards.paths[shard]}"

    def _batches(self):
        for start in range(0, len(self), _BATCH):
            rows = np.arange(start, min(start + _BATCH, len(self)))
            yield rows, self.read(rows)

    def _by_shard(self, rows):
        """Yields (shard, indices into `rows`, rows within the shard)."""
        rows = np.asarray(rows, np.int64)
        outside = (rows < 0) | (rows >= len(self))
        if outside.any():
            raise IndexError(
                f"`rows` must be in [0, {len(self)}). "
                f"Received: {rows[outside][0]}"
            )
        order = np.argsort(rows, kind="stable")
        of_shard = self._shard_of(rows[order])
        for places in np.split(order, np.flatnonzero(np.diff(of_shard)) + 1):
            if len(places):
                shard = int(self._shard_of(rows[places[:1]])[0])
                first = self._ends[shard] - self.shards.lengths[shard]
                yield shard, places, rows[places] - first

    def _shard_of(self, rows):
        return np.searchsorted(self._ends, rows, side="right")


def open_store(
    patterns: str | Sequence[str],
    *,
    format: str = "auto",
    image_field: str = "",
    caption_fields: Sequence[str] = (),
    index_dir: str = "",
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Opens shards and indexes those that have no index yet.

    Args:
        patterns: a path or glob, or several; each must match a file. Duplicates
            count once. A prepared TFDS data set is the folder of its version,
            or "<folder>:<split>".
        format: "tfrecord", "webdataset", "tfds", "table", or "auto", by file
            name.
        image_field: feature, extension or column of the picture; "" is the
            format's usual one.
        caption_fields: features, extensions, `json` fields or columns of the
            captions; () are the format's usual ones.
        index_dir: folder of the index files; "" is beside each shard.
        max_image_pixels: limit on width times height of a picture; larger ones
            are never decoded.
        progress: called with the bytes indexed so far and in all.

    Returns:
        A store whose rows follow the sorted paths of the shards.

    Raises:
        ValueError: a pattern matches nothing, the format is unclear, or a
            shard cannot be read, is empty or has another format.
    """
    paths, formats = _locate(
        patterns, format, image_field, tuple(caption_fields)
    )
    indexes = index.open_indexes(paths, formats, index_dir, progress)
    if max_image_pixels < 1:
        raise ValueError(
            "`max_image_pixels` must be at least 1. "
            f"Received: {max_image_pixels}"
        )
    store = Store(paths, formats, indexes, max_image_pixels=max_image_pixels)
    _check_readable(store, caption_fields)
    return store


def open_stores(
    config, progress: Callable[[int, int], None] | None = None
) -> Store:
    """Opens all stores of a `DataConfig`'s `train` as one array of rows.

    Returns:
        A store whose rows follow the order of `data.train`, with `parts` and
        the settings' manifest.

    Raises:
        ValueError: as `open_store`.
    """
    if not config.train:
        raise ValueError(
            "`data.train` must name at least one store. Received: ()"
        )
    located = [
        _locate(
            pattern,
            config.format,
            config.image_field,
            tuple(config.caption_fields),
        )
        for pattern in config.train
    ]
    indexes = iter(
        index.open_indexes(
            [path for paths, _ in located for path in paths],
            [form for _, formats in located for form in formats],
            config.index_dir,
            progress,
        )
    )
    stores = [
        Store(
            paths,
            formats,
            [next(indexes) for _ in paths],
            max_image_pixels=config.max_image_pixels,
        )
        for paths, formats in located
    ]
    for store in stores:
        _check_readable(store, config.caption_fields)
    store = join(stores)
    if config.manifest:
        store.manifest = manifest.Manifest(config.manifest, store)
    return store


def join(stores: Sequence[Store]) -> Store:
    """Joins stores into one with `parts`."""
    return Store(
        [path for store in stores for path in store.shards.paths],
        [form for store in stores for form in store._formats],
        [one for store in stores for one in store._indexes],
        [len(store) for store in stores],
        min(store.max_image_pixels for store in stores),
    )


def check_captions(store: Store) -> None:
    """Refuses a training store whose records have no captions.

    Raises:
        ValueError: none of a few records, spread over a part, has one.
    """
    start = 0
    for part in store.parts:
        rows = np.linspace(start, start + part - 1, _PROBES).astype(np.int64)
        rows, start = np.unique(rows), start + part
        if not any(
            any(caption.strip() for caption in getattr(record, "captions", ()))
            for record in store.read(rows)
        ):
            raise ValueError(
                "`data.train` must hold captions; `data.caption_fields` names "
                f"their fields. Received: none in {len(rows)} records, the "
                f"first {store.describe(int(rows[0]))}"
            )


def _locate(patterns, form, image_field, caption_fields):
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise ValueError(
            "`patterns` must name at least one shard. Received: []"
        )
    found = {}
    for pattern in patterns:
        found |= _find(pattern, form, image_field, caption_fields)
    paths = sorted(found)
    return paths, [found[path] for path in paths]


def _find(pattern, form, image_field, caption_fields):
    pattern = os.path.expanduser(os.fspath(pattern))
    if form in ("auto", "tfds"):
        split = tfds.find(pattern, image_field, caption_fields)
        if split is not None:
            return dict.fromkeys(split.paths, split.form)
    if form == "tfds":
        raise ValueError(
            "A store of format 'tfds' must be the folder of a prepared "
            "version, with a file dataset_info.json, or '<folder>:<split>'. "
            f"Received: {pattern!r}"
        )
    makers = {
        "tfrecord": lambda: tfrecords.TFRecords(image_field, caption_fields),
        "webdataset": lambda: tars.Tars(image_field, caption_fields),
        "array_record": lambda: tfds.ArrayRecords(image_field, caption_fields),
        "csv": lambda: delimited.Delimited(",", image_field, caption_fields),
        "tsv": lambda: delimited.Delimited("\t", image_field, caption_fields),
        "parquet": lambda: parquet.Parquet(image_field, caption_fields),
    }
    made: dict[str, object] = {}
    found = {}
    for path in shards.expand(pattern):
        kind = _kind(path, form)
        if kind not in made:
            made[kind] = makers[kind]()
        found[path] = made[kind]
    if len(made) > 1:
        examples = ", ".join(
            next(path for path in found if found[path] is made[kind])
            for kind in made
        )
        raise ValueError(
            "The files of a store must have one format; narrow the pattern, "
            "for example to '*.tar'. Received: "
            f"{pattern!r}, which matches {examples}"
        )
    return found


def _kind(path, form):
    """The format of a file: as set, or by its name or head."""
    name = os.path.basename(path).lower()
    table = _TABLES.get(os.path.splitext(name)[1])
    if form == "table" and table is None:
        raise ValueError(
            f"A table must be a .csv, .tsv or .parquet file. Received: {path}"
        )
    if form not in ("auto", "table"):
        return form
    if table is not None:
        return table
    if name.endswith(".tar"):
        return "webdataset"
    if ".array_record" in name:
        return "array_record"
    if ".tfrecord" in name or _is_tfrecord(path):
        return "tfrecord"
    raise ValueError(
        "The format of a shard must follow from its name (.tfrecord, .tar, "
        ".csv, .tsv, .parquet) or from `data.format`. "
        f"Received: {path}"
    )


def _is_tfrecord(path):
    try:
        if shards.stat(path).size == 0:
            return True  # the index refuses it as empty
        with files.open_file(path) as file:
            return tfrecords.frame_size(file.read(12)) is not None
    except IsADirectoryError as error:
        raise ValueError(
            "A folder must hold a prepared TFDS data set; name other stores by "
            f"their files, such as '{path}/*.tar'. Received: {path}"
        ) from error
    except retries.ERRORS as error:
        raise ValueError(f"Shard {path} cannot be read: {error}") from error


def _check_readable(store, caption_fields):
    rows = np.linspace(0, len(store) - 1, _PROBES).astype(np.int64)
    rows = np.unique(rows)
    found = store.read(rows)
    if all(isinstance(one, Fault) for one in found):
        raise ValueError(
            f"A store must hold records. Received: faults in all {len(rows)} "
            f"of its {len(store)} records that were checked, the first in "
            f"{store.describe(int(rows[0]))}: {found[0].reason}"
        )
    if caption_fields and not any(
        getattr(one, "captions", ()) for one in found
    ):
        raise ValueError(
            f"`data.caption_fields` must name captions. Received: "
            f"{tuple(caption_fields)}, of which the {len(rows)} records that "
            f"were checked have none, the first {store.describe(int(rows[0]))}"
        )


def _objects(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array

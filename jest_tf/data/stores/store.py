"""A store: records in shards of any format, read as a single array.

Every shard is indexed once (`data/stores/index.py`), so any row is a single
positioned read, without a shuffle buffer or iterator state.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jest_tf import files
from jest_tf.data import known_images
from jest_tf.data.stores import index
from jest_tf.data.stores.shards import Fault, Record
from jest_tf.files import retries

# Records per read in a sequential pass.
_BATCH = 256


class Shards(NamedTuple):
    """The files of a store in row order, and int64 [shards] records in each."""

    paths: tuple[str, ...]
    lengths: np.ndarray


class Manifest(NamedTuple):
    """The weights of a store's rows, which `data/stores/manifest.py` reads.

    Attributes:
        directory: folder of the manifest.
        identity: hash of the manifest, 32 hexadecimal digits.
        weights: float32 [n], of all rows; rows of weight 0 are never drawn.
        scores: float32 [n], NaN where a record was not scored.
        made_by: settings and models that made it.
    """

    directory: str
    identity: str
    weights: np.ndarray
    scores: np.ndarray
    made_by: Mapping


class Store:
    """An array of records over shards, in order; made by `open_store`.

    Thread-safe; keeps no file open and releases the interpreter lock to read.

    Args:
        opened: path, format and index of each shard.
        joined: the stores whose shards these are; none is a single part.

    Attributes:
        shards: the files and their numbers of records.
        indexes: the index of each shard.
        fields: the fields that hold records, a `shards.Fields`.
        parts: number of records of each joined store.
        manifest: weights of the first rows in a stream, those of the pool; None
            draws all alike.
    """

    def __init__(
        self,
        opened: Sequence[tuple[str, object, index.Index]],
        joined: Sequence["Store"] = (),
    ):
        paths, formats, self.indexes = zip(*opened, strict=True)
        self.fields = formats[0].fields
        lengths = np.array(
            [shard.num_records for shard in self.indexes], np.int64
        )
        self.shards = Shards(paths, lengths)
        self.parts = tuple(map(len, joined)) or (int(lengths.sum()),)
        self.manifest: Manifest | None = None
        self._opened, self._joined = tuple(opened), tuple(joined)
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

    def first(self, num_parts: int) -> "Store":
        """Returns a store of the first parts; its rows have equal numbers."""
        if num_parts == len(self.parts):
            return self
        return join(self._joined[:num_parts])

    def read(self, rows: np.ndarray) -> list[Record | Fault]:
        """Reads records at rows, int64 [k], in any order, repeats allowed.

        Returns:
            k records or faults, in the order of `rows`.
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
            return form.read(path, records.spans(local))

        paths = [self.shards.paths[shard] for shard, _, _ in jobs]
        remote = any(map(files.is_remote, paths))
        parts = retries.map_parallel(read, jobs, remote)
        line = np.arange(len(rows))
        for (_, places, _), some in zip(jobs, parts, strict=True):
            for place, record in zip(line[places].tolist(), some, strict=True):
                out[place] = record
        return out

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Returns stable ids of rows, both int64 [k]; see `index.py`."""
        ids = np.empty(len(rows), np.int64)
        for shard, places, local in self.by_shard(rows):
            ids[places] = self.indexes[shard].ids(local)
        return ids

    def captions(self) -> Iterator[bytes]:
        """Yields all captions of all records in order, skipping faults."""
        for _, records in self._batches():
            for record in records:
                yield from getattr(record, "captions", ())

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray | list]:
        """Reads `id`, `caption` or metadata of all records, in order.

        Returns:
            `id` as int64 [n]; `image_key` likewise (`known_images.image_key`);
            `caption` as n lists of bytes; other fields as an object array [n]
            of bytes, b"" if missing. A fault has only an id.
        """
        columns: dict = {name: [] for name in names}
        for rows, records in self._batches():
            for name, column in columns.items():
                if name == "id":
                    column += self.ids(rows).tolist()
                elif name == "image_key":
                    column += [
                        known_images.image_key(getattr(item, "image", b""))
                        for item in records
                    ]
                elif name == "caption":
                    column += [
                        list(getattr(item, "captions", ())) for item in records
                    ]
                else:
                    column += [
                        getattr(item, "metadata", {}).get(name, b"")
                        for item in records
                    ]
        for name in columns.keys() - {"caption"}:
            dtype = np.int64 if name in ("id", "image_key") else object
            columns[name] = np.array(columns[name], dtype)
        return columns

    def stamp(self, shard: int) -> str:
        """Identifies a shard's version, format and the fields taken from it.

        It depends on the shard's head and tail and on the places and checksums
        of all records, but not on the shard's time of change. The checksum of a
        table's row depends on the size and time of change of the image that it
        names, except of remote images.
        """
        return self.indexes[shard].stamp

    @property
    def fingerprint(self) -> str:
        """Identifies the records of all shards; see `stamp`."""
        return " ".join(self.stamp(i) for i in range(len(self.shards.paths)))

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
        """Yields, by shard, its number, indices in `rows` [k], and its rows."""
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


def join(stores: Sequence[Store]) -> Store:
    """Joins stores into a single store with `parts`."""
    return Store([shard for store in stores for shard in store._opened], stores)

"""Indexes: the location, id and checksum of each record of a shard.

A format's `scan` builds the index of a shard once. It is an artefact beside
the shard, `<shard>.index`, or in a folder of indexes; its name holds a hash of
any format setting that records depend on. It has two arrays: `records`, int64
[n, 3], with two numbers that locate a record, and its id; and `checksums`,
uint32 [n]. Both are mapped, not loaded. An index that is damaged, of another
version, or does not fit its shard (size, time of change, hash of head and tail)
is rebuilt. A record that was exchanged without any of these signs is found when
it is read, by its checksum.

The id of a record without a stored id is a hash of the shard's base name, size,
head and tail, and the record's number. This id survives a move of the folder
and changes of other shards, but not renaming or rewriting the shard.
"""

import array
import concurrent.futures
import contextlib
import functools
import hashlib
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from jest_tf import files
from jest_tf.data import artefacts
from jest_tf.data.stores import shards
from jest_tf.files import retries

_KIND = "index"
_ARRAYS = ("records", "checksums")
# Hashed bytes of a shard's head and tail.
_EDGE = 2**16
# Threads suffice: reading, hashing and mapping release the interpreter lock.
_WORKERS = 16

_SOUND = np.empty([0, 2], np.int64)
# Damaged shards that warnings name.
_NAMED = 10

# Each mapped file uses a file descriptor; processes often may have only 1,024.
_map = functools.lru_cache(128)(artefacts.read_again)
_are_written = True


class Index(NamedTuple):
    """The records of a shard.

    Attributes:
        stamp: identifies this version of the shard, with the checksums of all
            records, and how it is read.
        arrays: returns `records` and `checksums` by name, as in the file.
        damage: int64 [m, 2], place and size of parts that hold no records.
        num_lost: estimated number of records that were in these parts.
        is_cut: whether a damaged part is the shard's end, so that more records
            may have followed.
    """

    num_records: int
    stamp: str
    arrays: Callable[[], Mapping[str, np.ndarray]]
    damage: np.ndarray = _SOUND
    num_lost: int = 0
    is_cut: bool = False

    def spans(self, numbers: np.ndarray | slice) -> np.ndarray:
        """Returns places, sizes and checksums: int64 [k] -> int64 [k, 3]."""
        arrays = self.arrays()
        spans = np.array(arrays["records"][numbers])
        spans[:, 2] = arrays["checksums"][numbers]
        return spans

    def ids(self, numbers: np.ndarray | slice) -> np.ndarray:
        """Returns the ids of records, both int64 [k]."""
        return np.array(self.arrays()["records"][numbers, 2])


def open_indexes(
    paths: Sequence[str],
    formats: Sequence,
    index_dir: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> list[Index]:
    """Loads the index of every shard, building those missing or stale.

    `index_dir` and `progress` are as in `open_store`; one thread at a time
    calls `progress`, and none if nothing has to be built.
    """
    unwritten: list[str] = []
    _map.cache_clear()  # a mapped file may have been damaged in place
    lock = threading.Lock()
    done = total = 0

    def find(path, form):
        with shards.naming(path):
            origin = retries.call(lambda: _origin(path, form))
        place = index_path(path, index_dir, form.index_variant)
        return place, origin, _load(place, origin, form)

    def advance(size):
        nonlocal done
        with lock:
            done += size
            if progress is not None:
                progress(done, total)

    def build(path, form, stored):
        place, origin, index = stored
        if index is not None:
            return index
        arrays = _scan(path, form, origin, advance)
        if not _are_written:
            return _index(origin, form, arrays)
        try:
            artefacts.write(place, _KIND, origin, arrays)
            index = _load(place, origin, form)
        except retries.ERRORS as error:
            unwritten.append(f"{place}: {error}")
        # Another process may have indexed another version by now.
        return index or _index(origin, form, arrays)

    with concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool:
        try:
            stored = list(pool.map(find, paths, formats))
            total = sum(
                int(origin["size"]) for _, origin, old in stored if old is None
            )
            indexes = list(pool.map(build, paths, formats, stored))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if unwritten:
        logging.warning(
            "%d indexes cannot be written and are kept in memory, so the next "
            "start builds them again; set `data.index_dir` to a folder that "
            "can be written. First: %s",
            *(len(unwritten), unwritten[0]),
        )
    _warn_of_damage(paths, formats, indexes)
    return indexes


@contextlib.contextmanager
def in_memory() -> Iterator[None]:
    """Keeps new indexes in memory within the block, so nothing is written.

    This is for data that a run directory names. The directory may come from
    someone else, and its user has not chosen where to write.
    """
    global _are_written
    before, _are_written = _are_written, False
    try:
        yield
    finally:
        _are_written = before


def _warn_of_damage(paths, formats, indexes):
    damaged = [
        (path, form, index)
        for path, form, index in zip(paths, formats, indexes, strict=True)
        if len(index.damage)
    ]
    for path, form, index in damaged[:_NAMED]:
        several = len(index.damage) > 1
        logging.warning(
            "Shard %s %s: %s bytes hold no records, %sfrom byte %s on. Lost: "
            "about %s of %s records%s.",
            *(path, form.damage, f"{index.damage[:, 1].sum():,}"),
            f"in {len(index.damage):,} places, the first " * several,
            f"{index.damage[0, 0]:,}",
            f"{index.num_lost:,}",
            f"{index.num_lost + index.num_records - len(index.damage):,}",
            ", and any beyond its end" * index.is_cut,
        )
    if len(damaged) > _NAMED:
        lost = sum(index.num_lost for _, _, index in damaged)
        logging.warning(
            "%s shards are damaged in all; about %s records are lost.",
            *(f"{len(damaged):,}", f"{lost:,}"),
        )


def index_path(path: str, index_dir: str = "", variant: str = "") -> str:
    """Returns the path of a shard's index, beside it or in `index_dir`."""
    ending = ".index"
    if variant:
        ending = f".{_digest(variant.encode())[:4].hex()}.index"
    if not index_dir:
        return path + ending
    # Shards of several folders may share a name in the index folder.
    if not files.is_remote(path):
        path = os.path.abspath(path)
    folder, name = os.path.split(path)
    digest = _digest(folder.encode())[:4].hex()
    return os.path.join(index_dir, f"{name}-{digest}{ending}")


def _origin(path, form):
    """Returns the state of a shard, from which its index must be built."""
    size, time = files.stat(path)
    if size == 0:
        raise ValueError(f"Shard {path} is empty: it has no record.")
    with files.open_file(path) as file:
        head = file.read(_EDGE)
        file.seek(max(0, size - _EDGE))
        tail = file.read(_EDGE)
    return {
        "size": str(size),
        "mtime_ns": str(time),
        "identity": _digest(struct.pack("<q", size), head, tail).hex(),
        "format": _digest(form.index_key.encode()).hex(),
    }


def _load(place, origin, form):
    try:
        artefact = artefacts.read(place, _KIND, verify=True)
        if not origin.items() <= artefact.metadata.items():
            return None
        arrays = {name: artefact.arrays[name] for name in _ARRAYS}
    except (OSError, ValueError, KeyError):
        return None
    if files.is_remote(place):
        copies = {name: np.array(array) for name, array in arrays.items()}
        return _index(origin, form, copies)
    # Not the time of change: another process may have updated only that.
    known = tuple(
        (key, artefact.metadata[key]) for key in ("identity", "crc32")
    )
    return _index(origin, form, arrays)._replace(
        arrays=lambda: _map(place, _KIND, known).arrays
    )


def _index(origin, form, arrays):
    records = arrays["records"]
    stamp = _digest(
        bytes.fromhex(origin["identity"]),
        struct.pack("<Iq", zlib.crc32(records), len(records)),
        np.asarray(arrays["checksums"]),
        form.name.encode(),
        repr(tuple(form.fields)).encode(),
    )
    index = Index(len(records), stamp.hex(), lambda: arrays)
    sound = records[:, 1] >= 0
    if sound.all():
        return index
    damage = records[~sound, :2] * [1, -1]
    # A record extends to the start of the next.
    sizes = np.append(np.diff(records[:, 0]), records[-1, 1])[sound]
    mean = sizes.mean() if len(sizes) else np.inf
    return index._replace(
        damage=damage,
        num_lost=int(np.rint(damage[:, 1] / mean).clip(min=1).sum()),
        is_cut=not sound[-1],
    )


def _scan(path, form, origin, advance):
    """Scans a shard; returns the arrays of its index."""
    left = int(origin["size"])

    def report(size):
        nonlocal left
        size = min(size, left)
        left -= size
        advance(size)

    spans, ids, has_id = array.array("q"), array.array("q"), bytearray()
    checksums = array.array("I")
    with shards.naming(path):
        for place, size, stored, checksum in form.scan(path, report):
            spans.extend((place, size))
            checksums.append(checksum)
            ids.append(stored or 0)
            has_id.append(stored is not None)
    report(left)
    if not ids:
        raise ValueError(f"Shard {path} is empty: it has no record.")
    identity = bytes.fromhex(origin["identity"])
    derived = _derived_ids(os.path.basename(path), identity, len(ids))
    ids = np.where(np.frombuffer(has_id, bool), np.array(ids), derived)
    records = np.column_stack([np.array(spans).reshape(-1, 2), ids])
    return {"records": records, "checksums": np.array(checksums, np.uint32)}


def _derived_ids(name, identity, count):
    digest = _digest(name.encode(), identity)
    key = np.uint64(int.from_bytes(digest[:8], "little"))
    mixed = np.arange(count, dtype=np.uint64) + key
    # Odd factors and xor-shifts are one to one, until the sign bit is dropped.
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed & np.uint64(2**63 - 1)).astype(np.int64)


def _digest(*parts):
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(struct.pack("<q", len(part)))
        digest.update(part)
    return digest.digest()

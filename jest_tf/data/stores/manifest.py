"""Manifests: which records of a store are drawn, how often, and why.

A manifest is a folder that belongs to one version of one store. It holds a file
for every shard, row for row,

    magic, version, length of the header, CRC-32 of the rest    20 bytes
    header: JSON, see `Header`
    ids        int64 [n]
    weights    float32 [n], 0: the record is not drawn
    scores     float32 [n], NaN: the record was not scored

little-endian, one after the other, and `manifest.json`, written last, which
lists the shards with their versions and says what all was made by. Files are
written whole or not at all, so what a killed process has left is gone on from.
`curation/by_score.py` and `curation/by_similarity.py` make manifests,
`stores.open_stores` gives one to a store, and `stream.py` draws by its weights.
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import files
from jest_tf.data.stores import shards

if TYPE_CHECKING:
    from jest_tf.data.stores import store as store_lib  # imports this module

MANIFEST_FILE = "manifest.json"
SUFFIX = ".weights"

_MAGIC = b"JESTMANI"
_VERSION = 1
_HEAD = struct.Struct("<8sIII")
_MAX_JSON = 2**24
_KIND = "jest_tf manifest"


class Header(NamedTuple):
    """What the file of a shard is of, and what it was made by.

    Attributes:
        shard: name of the shard's file.
        stamp: the version of the shard, `Store.stamp`.
        rows: n, its records.
        made_by: settings and the fingerprints of models; what JSON can hold.
    """

    shard: str
    stamp: str
    rows: int
    made_by: Mapping


class Part(NamedTuple):
    """The rows of one shard.

    Attributes:
        ids: int64 [n], of the records.
        weights: float32 [n], how often each is drawn in relation to others.
        scores: float32 [n], what the choice went by; NaN where there is none.
    """

    ids: np.ndarray
    weights: np.ndarray
    scores: np.ndarray


class Manifest:
    """A finished manifest, read whole and checked against its store.

    Args:
        directory: of the manifest.
        store: the records.

    Attributes:
        directory: as given.
        identity: 32 hexadecimal digits that tell it from every other one.
        weights: float32 [n], of all rows of the store; 0 is never drawn.
        scores: float32 [n], NaN where a record was not scored.
        made_by: what the manifest was made by.
        counts: of what was left out and why, and of what the choice was made
            from, as its maker counted.

    Raises:
        ValueError: there is none, it is unfinished or damaged, or it belongs to
            another store or to another version of it.
    """

    def __init__(self, directory: str, store: "store_lib.Store"):
        self.directory = directory
        path = os.path.join(directory, MANIFEST_FILE)
        text = _read(path)
        values = _parse(text, f"Manifest {path}")
        _check_shards(path, values["shards"], store)
        self.identity = hashlib.blake2b(text, digest_size=16).hexdigest()
        self.made_by = values["made_by"]
        self.counts = values["counts"]
        self.weights = np.empty(len(store), np.float32)
        self.scores = np.empty(len(store), np.float32)
        listed = {(one["shard"], one["stamp"]): one for one in values["shards"]}
        end = 0
        for shard, length in enumerate(store.shards.lengths.tolist()):
            rows = slice(end, end + length)
            end += length
            header = describe(store, shard, self.made_by)
            place = part_path(store, shard, directory)
            part, checksum = _read_part(place)
            if checksum != listed[header.shard, header.stamp]["crc32"]:
                raise ValueError(
                    f"Manifest {path} does not list {place} as it is: it was "
                    "written anew since, or belongs to another manifest"
                )
            ids = store.ids(np.arange(rows.start, rows.stop))
            _check_ids(place, part.ids, ids)
            self.weights[rows] = part.weights
            self.scores[rows] = part.scores
        if not self.weights.any():
            raise ValueError(
                f"Manifest {path} must have a record that is drawn. Received: "
                f"weights of 0 for all {end:,} records"
            )


def part_path(store: "store_lib.Store", shard: int, directory: str) -> str:
    """Where a manifest has its file of a shard.

    The name holds a part of the shard's stamp, so that shards of one name from
    several folders have room beside one another.
    """
    name = os.path.basename(store.shards.paths[shard])
    return os.path.join(directory, f"{name}-{store.stamp(shard)[:8]}{SUFFIX}")


def check_distinct(store: "store_lib.Store") -> None:
    """Refuses a store of which two shards would share a file here.

    Raises:
        ValueError: two shards have one name and one version, with their paths.
    """
    found: dict[str, int] = {}
    for shard, path in enumerate(store.shards.paths):
        first = found.setdefault(part_path(store, shard, ""), shard)
        if first != shard:
            raise ValueError(
                "The shards of a manifest must differ in name or version, or "
                "one would be counted twice. Received: two of version "
                f"{store.stamp(shard)}, {store.shards.paths[first]} and "
                f"{path}; leave one out"
            )


def describe(store: "store_lib.Store", shard: int, made_by: Mapping) -> Header:
    """The header of a shard's file."""
    return Header(
        os.path.basename(store.shards.paths[shard]),
        store.stamp(shard),
        int(store.shards.lengths[shard]),
        made_by,
    )


def write_part(path: str, header: Header, part: Part) -> None:
    """Writes the file of a shard.

    Raises:
        ValueError: the arrays are not of the header's rows, a weight is
            negative or not finite, or a score is infinite.
    """
    text = json.dumps(header._asdict(), sort_keys=True).encode()
    part = Part(
        *(
            np.ascontiguousarray(values, dtype)
            for values, dtype in zip(part, ("<i8", "<f4", "<f4"), strict=True)
        )
    )
    _check_part(f"Manifest {path}", header, part)
    body = b"".join([text, *(values.tobytes() for values in part)])
    head = _HEAD.pack(_MAGIC, _VERSION, len(text), zlib.crc32(body))
    try:
        files.write_whole(path, head, body)
    except (OSError, tf.errors.OpError) as error:
        raise ValueError(
            f"Manifest {path} cannot be written: {error}"
        ) from error


def read_part(path: str) -> tuple[Header, Part]:
    """Reads and checks the file of a shard.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    data = _read(path)
    what = f"Manifest {path}"
    if len(data) < _HEAD.size or data[:8] != _MAGIC:
        raise ValueError(f"{what} is no file of a manifest, or is truncated")
    _, version, length, checksum = _HEAD.unpack_from(data)
    if version != _VERSION:
        raise ValueError(
            f"{what} must be of format {_VERSION}. Received: {version}"
        )
    body = memoryview(data)[_HEAD.size :]
    if zlib.crc32(body) != checksum or length > min(len(body), _MAX_JSON):
        raise ValueError(f"{what} is damaged: it fails its checksum")
    try:
        header = Header(**json.loads(bytes(body[:length])))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} is damaged: {error}") from error
    rows = header.rows
    if type(rows) is not int or len(body) != length + 16 * rows:
        raise ValueError(f"{what} is damaged: it has not {rows} rows")
    ends = length + rows * np.array([0, 8, 12, 16])
    part = Part(
        *(
            np.frombuffer(body[start:stop], dtype)
            for start, stop, dtype in zip(
                ends[:-1], ends[1:], ("<i8", "<f4", "<f4"), strict=True
            )
        )
    )
    _check_part(what, header, part)
    return header, part


def is_there(path: str, header: Header) -> bool:
    """Whether a shard's file has been written, by the same maker.

    Args:
        path: of the file.
        header: what it has to say.

    Raises:
        ValueError: it is of another maker, or damaged.
    """
    if not tf.io.gfile.exists(path):
        return False
    found, _ = read_part(path)
    # As JSON gives it back, where tuples are lists.
    wanted = json.loads(json.dumps(header._asdict()))
    for name, value in _differences(wanted, found._asdict()):
        raise ValueError(
            f"Manifest {path} was made by something else: expected "
            f"{name}={value[0]!r}. Received: {value[1]!r}; take another "
            "folder, or overwrite it"
        )
    return True


def finish(
    store: "store_lib.Store",
    directory: str,
    made_by: Mapping,
    counts: Mapping[str, int],
) -> Manifest:
    """Writes `manifest.json`, once the files of all shards are there.

    Args:
        store: the records.
        directory: of the manifest.
        made_by: as of the shards' headers.
        counts: as of `Manifest`, by name.

    Raises:
        ValueError: the file of a shard is missing, damaged or made by
            something else, two shards are one, or no record has a weight.
    """
    check_distinct(store)
    listed = []
    for shard in range(len(store.shards.paths)):
        path = part_path(store, shard, directory)
        header = describe(store, shard, made_by)
        if not is_there(path, header):
            raise ValueError(f"Manifest {directory} has no file {path} yet")
        part, checksum = _read_part(path)
        listed.append(
            {
                "shard": header.shard,
                "stamp": header.stamp,
                "rows": header.rows,
                "drawn": int((part.weights > 0).sum()),
                "crc32": checksum,
            }
        )
    drawn = sum(one["drawn"] for one in listed)
    if not drawn:
        raise ValueError(
            "A manifest must have a record that is drawn. Received: weights of "
            f"0 for all {len(store):,} records; counted: {dict(counts)}"
        )
    values = {
        "kind": _KIND,
        "version": _VERSION,
        "rows": len(store),
        "drawn": drawn,
        "counts": dict(counts),
        "made_by": dict(made_by),
        "shards": listed,
    }
    text = json.dumps(values, indent=1).encode() + b"\n"
    files.write_whole(os.path.join(directory, MANIFEST_FILE), text)
    return Manifest(directory, store)


def _read(path):
    try:
        with files.open_file(path) as file:
            return file.read()
    except (OSError, tf.errors.OpError) as error:
        raise ValueError(_missing(path, error)) from error


def _missing(path, error):
    folder, name = os.path.split(path)
    message = f"Manifest {path} cannot be read: {shards.one_line(error)}"
    if name == MANIFEST_FILE and tf.io.gfile.glob(f"{folder}/*{SUFFIX}"):
        return (
            f"Manifest {folder} is unfinished: run the command again that was "
            f"writing it. Expected {MANIFEST_FILE} beside the files of shards"
        )
    if name == MANIFEST_FILE:
        return f"{message}; expected a folder that `jest-tf curate` has written"
    return message


def _read_part(path):
    """The arrays of a shard's file, and the checksum that it has."""
    _, part = read_part(path)
    checksum = 0
    for values in part:
        checksum = zlib.crc32(values, checksum)
    return part, checksum


def _check_part(what, header, part):
    if any(values.shape != (header.rows,) for values in part):
        raise ValueError(
            f"{what} must have {header.rows} rows. "
            f"Received: {[values.shape for values in part]}"
        )
    if not np.isfinite(part.weights).all() or (part.weights < 0).any():
        raise ValueError(
            f"{what} must have finite weights, not negative. Received: "
            f"{part.weights.min()} to {part.weights.max()}"
        )
    if np.isinf(part.scores).any():
        raise ValueError(f"{what} must have finite scores. Received: infinity")


def _parse(text, what):
    """The object of `manifest.json`, of the types that are relied on."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is damaged: {error}") from error
    if not isinstance(values, dict) or values.get("kind") != _KIND:
        raise ValueError(f"{what} is no manifest")
    if values.get("version") != _VERSION:
        raise ValueError(
            f"{what} must be of version {_VERSION}. "
            f"Received: {values.get('version')!r}"
        )
    kinds = {"shard": str, "stamp": str, "rows": int, "crc32": int}
    good = isinstance(values.get("made_by"), dict)
    good &= isinstance(values.get("counts"), dict)
    good &= isinstance(values.get("shards"), list)
    if not good or not all(
        isinstance(one, dict)
        and all(isinstance(one.get(key), kind) for key, kind in kinds.items())
        for one in values["shards"]
    ):
        raise ValueError(f"{what} is damaged: it lacks what it must hold")
    return values


def _check_shards(path, listed: Sequence[dict], store):
    """Refuses the manifest of another store, or of another version."""
    here = {
        (os.path.basename(name), store.stamp(shard)): name
        for shard, name in enumerate(store.shards.paths)
    }
    there = {(one["shard"], one["stamp"]) for one in listed}
    stamps = dict(there)
    for (name, stamp), whole in here.items():
        if (name, stamp) in there:
            continue
        if name in stamps:
            raise ValueError(
                f"Manifest {path} is of another version of {whole}: expected "
                f"the stamp {stamp}, of the shard and the fields read from "
                f"it. Received: {stamps[name]}"
            )
        raise ValueError(
            f"Manifest {path} is of another store: expected shard {whole}. "
            f"Received: {len(listed)} shards, {_few(stamps)}"
        )
    left = sorted(name for name, stamp in there - set(here))
    if left:
        raise ValueError(
            f"Manifest {path} is of a larger store: expected the "
            f"{len(here)} shards of `data.train`. Received: {len(left)} more, "
            f"{_few(left)}"
        )


def _few(names):
    names = sorted(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _check_ids(path, found, expected):
    if not np.array_equal(found, expected):
        place = int(np.argmax(found != expected))
        raise ValueError(
            f"Manifest {path} must have the records' ids, {expected[place]} in "
            f"row {place}. Received: {found[place]}"
        )


def _differences(wanted, found, path=""):
    for name in sorted({*wanted, *found}):
        here, there = wanted.get(name), found.get(name)
        if isinstance(here, dict) and isinstance(there, dict):
            yield from _differences(here, there, f"{path}{name}.")
        elif here != there:
            yield path + name, (here, there)

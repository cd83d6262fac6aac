"""Manifests: which records of a store are drawn, and how often.

A manifest is a folder that belongs to one version of one store. It holds an
artefact (`data/artefacts.py`) for every shard, row for row,

    ids        int64 [n]
    weights    float32 [n], 0: the record is not drawn
    scores     float32 [n], NaN: the record was not scored

and `manifest.json`, written last, with the shards' versions and checksums and
the manifest's origin. Curation makes manifests, `stores.open_stores` attaches
one to a store, and `stream.py` draws by its weights.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import files
from jest_tf.data import artefacts
from jest_tf.data.stores import shards

if TYPE_CHECKING:
    from jest_tf.data.stores import store as store_lib  # imports this module

MANIFEST_FILE = "manifest.json"
SUFFIX = ".weights"

_VERSION = 2
_KIND = "manifest"
_DTYPES = {"ids": "int64", "weights": "float32", "scores": "float32"}


class Header(NamedTuple):
    """The origin of a shard's file.

    Attributes:
        shard: name of the shard's file.
        stamp: the version of the shard, `Store.stamp`.
        rows: n, its records.
        made_by: settings and the fingerprints of models, as JSON values.
    """

    shard: str
    stamp: str
    rows: int
    made_by: Mapping


class Part(NamedTuple):
    """The rows of one shard.

    Attributes:
        ids: int64 [n].
        weights: float32 [n], relative frequencies in the stream.
        scores: float32 [n], NaN where a record was not scored.
    """

    ids: np.ndarray
    weights: np.ndarray
    scores: np.ndarray


class Manifest:
    """A finished manifest, loaded and checked against its store.

    Args:
        directory: of the manifest.
        store: the records.

    Attributes:
        directory: as given.
        identity: hash of the manifest, 32 hexadecimal digits.
        weights: float32 [n], of all rows of the store; 0 is never drawn.
        scores: float32 [n], NaN where a record was not scored.
        made_by: settings and models that made it.
        counts: records considered and passed over, by reason.

    Raises:
        ValueError: the manifest is missing, unfinished, damaged, or of another
            store or version.
    """

    def __init__(self, directory: str, store: "store_lib.Store"):
        self.directory = directory
        path = os.path.join(directory, MANIFEST_FILE)
        text = _read_list(path)
        values = _parse(text, f"Manifest {path}")
        _check_shards(path, values["shards"], store)
        self.identity = hashlib.blake2b(text, digest_size=16).hexdigest()
        self.made_by = values["made_by"]
        self.counts = values["counts"]
        self.weights = np.empty(len(store), np.float32)
        self.scores = np.empty(len(store), np.float32)
        listed = {
            (one["shard"], one["stamp"]): one["checksum"]
            for one in values["shards"]
        }
        end = 0
        for shard, length in enumerate(store.shards.lengths.tolist()):
            rows = slice(end, end + length)
            end += length
            header = describe(store, shard, self.made_by)
            place = part_path(store, shard, directory)
            _, part, checksum = _read_part(place)
            if checksum != listed[header.shard, header.stamp]:
                raise ValueError(
                    f"Manifest {path} does not list {place} as it is: it was "
                    "written anew since, or belongs to another manifest"
                )
            _check_ids(
                place, part.ids, store.ids(np.arange(*rows.indices(end)))
            )
            self.weights[rows] = part.weights
            self.scores[rows] = part.scores
        if not self.weights.any():
            raise ValueError(
                f"Manifest {path} must have a record that is drawn. Received: "
                f"weights of 0 for all {end:,} records"
            )


def part_path(store: "store_lib.Store", shard: int, directory: str) -> str:
    """Returns the path of a shard's file, which holds part of its stamp."""
    name = os.path.basename(store.shards.paths[shard])
    return os.path.join(directory, f"{name}-{store.stamp(shard)[:8]}{SUFFIX}")


def check_distinct(store: "store_lib.Store") -> None:
    """Refuses a store with two shards of one name and version.

    Raises:
        ValueError: two shards would share a file.
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
    """Returns the header of a shard's file."""
    return Header(
        os.path.basename(store.shards.paths[shard]),
        store.stamp(shard),
        int(store.shards.lengths[shard]),
        made_by,
    )


def write_part(path: str, header: Header, part: Part) -> None:
    """Writes the file of a shard.

    Raises:
        ValueError: the arrays do not have the header's rows, a weight is
            negative or not finite, a score is infinite, or writing fails.
    """
    arrays = {
        name: np.asarray(values, _DTYPES[name])
        for name, values in part._asdict().items()
    }
    _check_part(f"Manifest {path}", header.rows, Part(**arrays))
    metadata = {
        "shard": header.shard,
        "stamp": header.stamp,
        "made_by": json.dumps(header.made_by, sort_keys=True),
    }
    try:
        artefacts.write(path, _KIND, metadata, arrays)
    except (OSError, tf.errors.OpError) as error:
        raise ValueError(
            f"Manifest {path} cannot be written: {error}"
        ) from error


def read_part(path: str) -> tuple[Header, Part]:
    """Reads and checks the file of a shard.

    Raises:
        ValueError: the file is missing or damaged.
    """
    return _read_part(path)[:2]


def is_there(path: str, header: Header) -> bool:
    """Returns whether a shard's file has been written with this header.

    Raises:
        ValueError: it has another origin, or is damaged.
    """
    if not tf.io.gfile.exists(path):
        return False
    _refuse_other(path, header, read_part(path)[0])
    return True


def finish(
    store: "store_lib.Store",
    directory: str,
    made_by: Mapping,
    counts: Mapping[str, int],
) -> Manifest:
    """Writes `manifest.json`, once the files of all shards are there.

    Raises:
        ValueError: a shard's file is missing, damaged or of another origin,
            two shards are one, or no record has a weight.
    """
    check_distinct(store)
    listed = []
    for shard in range(len(store.shards.paths)):
        path = part_path(store, shard, directory)
        header = describe(store, shard, made_by)
        if not tf.io.gfile.exists(path):
            raise ValueError(f"Manifest {directory} has no file {path} yet")
        found, part, checksum = _read_part(path)
        _refuse_other(path, header, found)
        listed.append(
            {
                "shard": header.shard,
                "stamp": header.stamp,
                "rows": header.rows,
                "drawn": int((part.weights > 0).sum()),
                "checksum": checksum,
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


def _read_list(path):
    try:
        with files.open_file(path) as file:
            return file.read()
    except (OSError, tf.errors.OpError) as error:
        folder = os.path.dirname(path)
        if tf.io.gfile.glob(f"{folder}/*{SUFFIX}"):
            message = (
                f"Manifest {folder} is unfinished: run the command again that "
                f"was writing it. Expected {MANIFEST_FILE} beside the files of "
                "shards"
            )
        else:
            message = (
                f"Manifest {path} cannot be read: {shards.one_line(error)}; "
                "expected a folder that `jest-tf curate` has written"
            )
        raise ValueError(message) from error


def _read_part(path):
    what = f"Manifest {path}"
    try:
        found = artefacts.read(path, _KIND, verify=True)
    except OSError as error:
        raise ValueError(
            f"{what} cannot be read: {shards.one_line(error)}"
        ) from error
    texts, arrays = found.metadata, found.arrays
    try:
        if {
            name: str(array.dtype) for name, array in arrays.items()
        } != _DTYPES:
            raise ValueError(f"its arrays are {sorted(arrays)}")
        made_by = json.loads(texts["made_by"])
        rows = arrays["ids"].size
        header = Header(texts["shard"], texts["stamp"], rows, made_by)
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} is damaged: {error}") from error
    part = Part(**arrays)
    _check_part(what, rows, part)
    return header, part, texts["checksum"]


def _refuse_other(path, header, found):
    # As JSON gives it back: tuples become lists.
    wanted = json.loads(json.dumps(header._asdict()))
    for name, (here, there) in _differences(wanted, found._asdict()):
        raise ValueError(
            f"Manifest {path} was made by something else: expected "
            f"{name}={here!r}. Received: {there!r}; take another folder, or "
            "overwrite it"
        )


def _check_part(what, rows, part):
    if any(values.shape != (rows,) for values in part):
        raise ValueError(
            f"{what} must have {rows} rows. "
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
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is damaged: {error}") from error
    if not isinstance(values, dict) or values.get("kind") not in (
        _KIND,
        "jest_tf manifest",
    ):
        raise ValueError(f"{what} is no manifest")
    if values.get("version") != _VERSION:
        raise ValueError(
            f"{what} must be of version {_VERSION}. Received: "
            f"{values.get('version')!r}; {artefacts.KINDS[_KIND]}"
        )
    kinds = {"shard": str, "stamp": str, "rows": int, "checksum": str}
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

"""Manifests: which records of a store are drawn, and how often.

A manifest is a folder that belongs to a certain version of a store. It has an
artefact (`data/artefacts.py`) for every shard, row for row,

    ids        int64 [n]
    weights    float32 [n], 0: the record is not drawn
    scores     float32 [n], NaN: the record was not scored

and `manifest.json`, written last, with the shards' versions and checksums and
the manifest's origin. Curation makes manifests, `stores.open_stores` attaches
the manifest of a store, and `stream.py` draws by its weights.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jest_tf import files
from jest_tf.data import artefacts
from jest_tf.data.stores import shards
from jest_tf.data.stores.store import Manifest, Store
from jest_tf.files import retries

MANIFEST_FILE = "manifest.json"
SUFFIX = ".weights"

_VERSION = 3  # 2, of 0.3.0, has stamps without the records' checksums
_KIND = "manifest"
_DTYPES = {"ids": "int64", "weights": "float32", "scores": "float32"}


class Part(NamedTuple):
    """The rows of a shard, as they are in its file."""

    ids: np.ndarray
    weights: np.ndarray
    scores: np.ndarray


def read(directory: str, store: Store) -> Manifest:
    """Reads a finished manifest, and checks it against its store."""
    path = os.path.join(directory, MANIFEST_FILE)
    text, values = _read_list(path)
    try:
        made_by = values["made_by"]
        listed = {
            (shard["shard"], shard["stamp"]): shard["checksum"]
            for shard in values["shards"]
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"Manifest {path} is damaged: {error}") from error
    _check_shards(path, listed, store)
    parts = []
    for shard in range(len(store.shards.paths)):
        place = part_path(store, shard, directory)
        header, part, checksum = read_part(place)
        if checksum != listed.get((header["shard"], header["stamp"])):
            raise ValueError(
                f"Manifest {path} does not match {place}, which has been "
                "rewritten since, or belongs to another manifest"
            )
        parts.append(part)
    return Manifest(
        directory,
        hashlib.blake2b(text, digest_size=16).hexdigest(),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.scores for part in parts]),
        made_by,
    )


def part_path(store: Store, shard: int, directory: str) -> str:
    """Returns the path of a shard's file, which holds part of its stamp."""
    name = os.path.basename(store.shards.paths[shard])
    return os.path.join(directory, f"{name}-{store.stamp(shard)[:8]}{SUFFIX}")


def check_distinct(store: Store) -> None:
    """Refuses a store with two shards of the same name and version."""
    first_shards: dict[str, int] = {}
    for shard, path in enumerate(store.shards.paths):
        first = first_shards.setdefault(part_path(store, shard, ""), shard)
        if first != shard:
            raise ValueError(
                "The shards of a manifest must differ in name or version, or "
                "a shard would be counted twice. Received: two of version "
                f"{store.stamp(shard)}, {store.shards.paths[first]} and "
                f"{path}; leave out either"
            )


def describe(store: Store, shard: int, made_by: Mapping) -> dict:
    """Returns the header of a shard's file.

    `made_by` has settings and the fingerprints of models, as JSON values.
    """
    return {
        "shard": os.path.basename(store.shards.paths[shard]),
        "stamp": store.stamp(shard),
        "rows": int(store.shards.lengths[shard]),
        "made_by": made_by,
    }


def write_part(path: str, header: dict, part: Part) -> None:
    """Writes the file of a shard."""
    metadata = {
        "shard": header["shard"],
        "stamp": header["stamp"],
        "made_by": json.dumps(header["made_by"], sort_keys=True),
    }
    arrays = {
        name: np.asarray(values, _DTYPES[name])
        for name, values in part._asdict().items()
    }
    artefacts.write(path, _KIND, metadata, arrays)


def read_part(path: str) -> tuple[dict, Part, str]:
    """Reads the file of a shard; returns its header, rows and checksum."""
    try:
        artefact = artefacts.read(path, _KIND, verify=True)
    except OSError as error:
        raise ValueError(
            f"Manifest {path} cannot be read: {shards.one_line(error)}"
        ) from error
    with artefacts.read_as(path, _KIND):
        texts, part = artefact.metadata, Part(**artefact.arrays)
        header = {
            "shard": texts["shard"],
            "stamp": texts["stamp"],
            "rows": len(part.ids),
            "made_by": json.loads(texts["made_by"]),
        }
        return header, part, texts["checksum"]


def is_there(path: str, header: dict) -> bool:
    """Returns whether a shard's file has been written with this header."""
    if not files.is_file(path):
        return False
    _refuse_other(path, header, read_part(path)[0])
    return True


def finish(store: Store, directory: str, made_by: Mapping) -> Manifest:
    """Writes `manifest.json`, once the files of all shards are there."""
    listed = []
    for shard in range(len(store.shards.paths)):
        path = part_path(store, shard, directory)
        header = describe(store, shard, made_by)
        stored, part, checksum = read_part(path)
        _refuse_other(path, header, stored)
        del header["made_by"]
        drawn = int((part.weights > 0).sum())
        listed.append({**header, "drawn": drawn, "checksum": checksum})
    drawn = sum(shard["drawn"] for shard in listed)
    if not drawn:
        raise ValueError(
            "A manifest must have a record that is drawn. Received: weights of "
            f"0 for all {len(store):,} records"
        )
    values = {
        "kind": _KIND,
        "version": _VERSION,
        "rows": len(store),
        "drawn": drawn,
        "made_by": dict(made_by),
        "shards": listed,
    }
    text = json.dumps(values, indent=1).encode() + b"\n"
    files.write_whole(os.path.join(directory, MANIFEST_FILE), text)
    return read(directory, store)


def _read_list(path):
    """Returns the bytes and the content of `manifest.json`."""
    try:
        text = files.read_whole(path)
        values = json.loads(text)
    except (*retries.ERRORS, ValueError, RecursionError) as error:
        raise ValueError(
            f"Manifest {path} cannot be read: {shards.one_line(error)}; "
            "expected a folder that `jest-tf curate` has written. If the "
            "command was interrupted, run it again"
        ) from error
    version = values.get("version") if isinstance(values, dict) else None
    if version != _VERSION:
        raise ValueError(
            f"Manifest {path} must be of version {_VERSION}. Received: "
            f"{version!r}; {artefacts.KINDS[_KIND]}"
        )
    return text, values


def _refuse_other(path, header, stored):
    # As if read back from JSON: tuples become lists.
    wanted = json.loads(json.dumps(header))
    for name, (here, there) in _differences(wanted, stored):
        raise ValueError(
            f"Manifest {path} was made with other settings: expected "
            f"{name}={here!r}. Received: {there!r}; take another folder, or "
            "overwrite it"
        )


def _check_shards(path, listed, store):
    here = {
        (os.path.basename(name), store.stamp(shard))
        for shard, name in enumerate(store.shards.paths)
    }
    if here != set(listed):
        raise ValueError(
            f"Manifest {path} must be of the shards of `data.train`, and of "
            "the fields that are read from them. Expected: "
            f"{_few(here - set(listed))}. Received: {_few(set(listed) - here)}"
        )


def _few(versions):
    names = [f"{name} of version {stamp}" for name, stamp in sorted(versions)]
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3) or "no others"


def _differences(wanted, stored, path=""):
    for name in sorted({*wanted, *stored}):
        here, there = wanted.get(name), stored.get(name)
        if isinstance(here, dict) and isinstance(there, dict):
            yield from _differences(here, there, f"{path}{name}.")
        elif here != there:
            yield path + name, (here, there)

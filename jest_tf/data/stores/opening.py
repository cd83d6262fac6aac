"""Opens stores: finds the shards of patterns, and indexes and checks them."""

import functools
import os
from collections.abc import Callable, Sequence

import numpy as np

from jest_tf import config as config_lib
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
from jest_tf.data.stores.store import Store, join

# Records checked when a store is opened, evenly spread.
_PROBES = 16
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z")
_TAR_CAPTIONS = (
    ". In a tar, the caption of 'a.jpg' is in 'a.txt' or 'a.json', right "
    "beside it; or unpack the images, and name them in a table with the "
    "columns `image` and `caption`"
)
# The formats of files by the endings of their names; others are TFRecord.
_FORMATS = {
    ".tar": tars.Tars,
    ".csv": functools.partial(delimited.Delimited, ","),
    ".tsv": functools.partial(delimited.Delimited, "\t"),
    ".parquet": parquet.Parquet,
}


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
        image_field: feature, extension or column of the image; "" is the
            format's default.
        caption_fields: features, extensions, `json` fields or columns of the
            captions; () are the format's defaults.
        index_dir: folder of the index files; "" is beside each shard.
        progress: called with the numbers of bytes indexed so far and in all.
        setting: name of the patterns in errors.

    Returns:
        A store whose rows follow the sorted paths of the shards.
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
    """
    named = [
        *((setting, [pattern]) for pattern in config.train),
        *(("data.curated", [pattern]) for pattern in config.curated),
    ]
    store = _open(named if config.train else [], config, progress)
    if config.manifest:
        pool = store.first(len(config.train))
        store.manifest = manifest.read(config.manifest, pool)
    return store


def check_captions(store: Store) -> None:
    """Refuses a training store whose records have no captions."""
    end = 0
    for part in store.parts:
        start, end = end, end + part
        rows = _spread(start, end)
        records = store.read(rows)
        if not any(
            any(caption.strip() for caption in getattr(record, "captions", ()))
            for record in records
        ):
            place = store.describe(int(rows[0]))
            raise ValueError(
                "`data.train` must hold captions; `data.caption_fields` names "
                f"their fields. Received: none in {len(rows)} records, the "
                f"first {place}{_texts(records)}"
                + _TAR_CAPTIONS
                * place.lower().endswith(".tar")
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
        by_path = {}
        for pattern in patterns:
            by_path |= _find(pattern, fields, setting)
        located.append(sorted(by_path.items(), key=lambda item: item[0]))
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
    kinds = {}
    for path in shards.expand(pattern, setting):
        name = path.lower()
        if name.endswith(_COMPRESSED):
            raise ValueError(
                "Shards must not be compressed, so that records can be read in "
                "any order: unpack them first, as `gunzip` does. "
                f"Received: {path}"
            )
        ending = os.path.splitext(name)[1]
        kinds[path] = _FORMATS.get(ending, tfrecords.TFRecords)
    examples = {kind: path for path, kind in reversed(kinds.items())}
    if len(examples) > 1:
        raise ValueError(
            "The files of a store must have one format; narrow the pattern, "
            "for example to '*.tar'. Received: "
            f"{pattern!r}, which matches {', '.join(sorted(examples.values()))}"
        )
    (kind,) = examples
    return dict.fromkeys(kinds, kind(fields))


def _check_readable(store, caption_fields):
    rows = _spread(0, len(store))
    records = store.read(rows)
    if all(isinstance(record, shards.Fault) for record in records):
        raise ValueError(
            f"A store must hold records. Received: faults in all {len(rows)} "
            f"of its {len(store)} records that were checked, the first in "
            f"{store.describe(int(rows[0]))}: {records[0].reason}"
            + _way_out(records[0].reason)
        )
    if caption_fields and not any(
        getattr(record, "captions", ()) for record in records
    ):
        raise ValueError(
            f"`data.caption_fields` must name captions. Received: "
            f"{tuple(caption_fields)}, none of which is in the {len(rows)} "
            "records that were checked, the first "
            f"{store.describe(int(rows[0]))}{_texts(records, caption_fields)}"
        )


def _way_out(reason):
    if reason.startswith("no image"):
        return "; `data.image_field` names the field of the image"
    if reason.startswith("missing file"):
        return "; paths in a table begin at its folder, or with /"
    return ""


def _texts(records, names=()):
    """Lists the records' fields for an error; any may hold the captions."""
    known = sorted(
        {name for record in records for name in getattr(record, "metadata", {})}
    )
    close = names and checks.nearest(names[0], known)
    if close:
        return f". Did you mean {close!r}?"
    return f"; its fields are {', '.join(map(repr, known))}" if known else ""


def _spread(start, end):
    """Returns a few rows, evenly spread over [start, end)."""
    return np.unique(np.linspace(start, end - 1, _PROBES).astype(np.int64))

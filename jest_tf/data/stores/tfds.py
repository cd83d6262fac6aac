"""Data sets that TensorFlow Datasets has prepared on disk.

A prepared version is a folder, `<data_dir>/<name>[/<config>]/<version>`, with
`dataset_info.json`, `features.json` and TFRecord or ArrayRecord shards of
`tf.train.Example`s, whose features are named by paths joined by "/". The
package itself is not needed; ArrayRecord needs `array_record`. Class labels
become their names.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import files
from jest_tf.data.stores import shards, tfrecords

_INFO = "dataset_info.json"
# ArrayRecord records of one read in a scan.
_BATCH = 256
# The ArrayRecord package's advice for random access.
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


class Split(NamedTuple):
    """The shards of a split of a prepared data set, and their format."""

    paths: list[str]
    form: object


def find(
    pattern: str, image_field: str = "", caption_fields: Sequence[str] = ()
) -> Split | None:
    """Finds the split that a pattern names; None if it is no prepared folder.

    Args:
        pattern: the folder of a version, or "<folder>:<split>"; the default
            split is "train", or the only one.
        image_field: feature of the picture; "" takes the usual name, or the
            only feature that is a picture.
        caption_fields: features of the captions; () takes the usual name.

    Raises:
        ValueError: the split or its shards are missing, or the files have
            another format.
    """
    folder, split = pattern, ""
    if not _exists(_join(folder, _INFO)):
        folder, _, split = pattern.rpartition(":")
        if not folder or "/" in split or not _exists(_join(folder, _INFO)):
            return None
    folder = folder.rstrip("/")
    info = _load_json(_join(folder, _INFO))
    features = _features(folder)
    kind = info.get("fileFormat") or "tfrecord"
    image_field = image_field or _image_feature(features)
    labels = _labels(folder, features)
    if kind == "tfrecord":
        form = tfrecords.TFRecords(image_field, caption_fields, labels)
    elif kind == "array_record":
        form = ArrayRecords(image_field, caption_fields, labels)
    else:
        raise ValueError(
            "A prepared data set must have TFRecord or ArrayRecord files. "
            f"Received: {folder}, with the file format {kind!r}"
        )
    return Split(_split_paths(folder, info, split, kind), form)


class ArrayRecords:
    """ArrayRecord files of `tf.train.Example`s; see `tfrecords.TFRecords`."""

    name = "array_record"
    index_key = "array_record"
    index_variant = ""

    def __init__(
        self,
        image_field: str = "",
        caption_fields: Sequence[str] = (),
        labels: dict[str, Sequence[str]] | None = None,
    ):
        _array_record()
        self.fields = repr((image_field, tuple(caption_fields)))
        self._examples = tfrecords.Examples(image_field, caption_fields, labels)

    def scan(self, path: str, advance) -> shards.Entries:
        """Counts the records and reads their ids."""
        del advance  # the reader reports no progress
        _check_local(path)
        try:
            reader = _array_record().ArrayRecordReader(path, _RANDOM_ACCESS)
            count = reader.num_records()
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"Shard {path} is not an ArrayRecord file, or is corrupt: "
                f"{shards.one_line(error)}"
            ) from error
        ids, has_id = [], []
        for start in range(0, count, _BATCH):
            numbers = list(range(start, min(start + _BATCH, count)))
            for payload in _read(reader, numbers):
                stored = None
                if isinstance(payload, bytes):
                    stored = self._examples.stored_id(payload)
                ids.append(stored or 0)
                has_id.append(stored is not None)
        _close(reader)
        spans = np.zeros((count, 2), np.int64)
        spans[:, 0] = np.arange(count)
        return shards.Entries(
            spans, np.array(ids, np.int64), np.array(has_id, bool)
        )

    def read(self, path: str, spans: np.ndarray) -> list:
        """Reads records by number; see `data/stores/shards.py`."""
        try:
            reader = _array_record().ArrayRecordReader(path, _RANDOM_ACCESS)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"Shard {path} cannot be read: {shards.one_line(error)}"
            ) from error
        try:
            payloads = _read(reader, spans[:, 0].tolist())
        finally:
            _close(reader)
        return [
            payload
            if isinstance(payload, shards.Fault)
            else self._examples.parse(payload)
            for payload in payloads
        ]


def _read(reader, numbers):
    try:
        return reader.read(numbers)
    except (RuntimeError, ValueError, IndexError) as error:
        if len(numbers) == 1:
            return [shards.Fault(f"unreadable: {shards.one_line(error)}")]
        return [_read(reader, [number])[0] for number in numbers]


def _close(reader):
    # Closing reports damage that reads have already met.
    with contextlib.suppress(RuntimeError):
        reader.close()


def _split_paths(folder, info, split, kind):
    splits = {one["name"]: one for one in info.get("splits", ())}
    if not split:
        split = "train" if len(splits) != 1 else next(iter(splits))
    if split not in splits:
        raise ValueError(
            f"{folder} must have a split {split!r}; name one as "
            f"'{folder}:<split>'. Received: {', '.join(splits) or 'none'}"
        )
    # The usual template; others differ only before the split.
    part = f"-{split}.{kind}"
    paths = sorted(
        _join(folder, name)
        for name in tf.io.gfile.listdir(folder)
        if part in name and not name.endswith(shards.NO_SHARDS)
    )
    lengths = splits[split].get("shardLengths", ())
    if not paths or len(paths) != len(lengths):
        raise ValueError(
            f"Split {split!r} of {folder} must have {len(lengths)} shards, as "
            f"its {_INFO} says. Received: {len(paths)} files *{part}*"
        )
    # A shard may be empty if there were fewer examples than shards.
    filled = [
        path for path, length in zip(paths, lengths, strict=True) if int(length)
    ]
    if not filled:
        raise ValueError(f"Split {split!r} of {folder} is empty.")
    return filled


def _features(folder):
    path = _join(folder, "features.json")
    if not _exists(path):
        return {}
    found = _load_json(path).get("featuresDict", {})
    return found.get("features", {}) if isinstance(found, dict) else {}


def _image_feature(features):
    pictures = [
        name
        for name, feature in features.items()
        if _class_name(feature) == "Image"
    ]
    if set(pictures) & set(tfrecords.IMAGE_FIELDS) or len(pictures) != 1:
        return ""
    return pictures[0]


def _labels(folder, features):
    labels = {}
    for name, feature in features.items():
        path = _join(folder, f"{name}.labels.txt")
        if _class_name(feature) == "ClassLabel" and _exists(path):
            with tf.io.gfile.GFile(path) as file:
                labels[name] = file.read().splitlines()
    return labels


def _class_name(feature):
    name = feature.get("pythonClassName", "")
    return name.rpartition(".")[2]


def _load_json(path):
    try:
        with tf.io.gfile.GFile(path) as file:
            found = json.loads(file.read())
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{path} must hold a JSON object. Received: {type(found).__name__}"
        )
    return found


def _check_local(path):
    if files.is_remote(path):
        raise ValueError(
            "ArrayRecord shards must be on a local disk: prepare the data set "
            f"as TFRecord, or copy it. Received: {path}"
        )


def _array_record():
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise ImportError(
            "ArrayRecord shards need the package array_record: pip install "
            "array_record"
        ) from error
    return array_record_module


def _exists(path):
    try:
        return tf.io.gfile.exists(path)
    except tf.errors.OpError:
        return False


def _join(folder, name):
    return os.path.join(folder, name)

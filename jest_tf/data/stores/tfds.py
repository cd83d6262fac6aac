"""Data sets that TensorFlow Datasets has prepared on disk.

A prepared version is a folder, `<data_dir>/<name>[/<config>]/<version>`, with
`dataset_info.json`, `features.json` and TFRecord or ArrayRecord shards of
`tf.train.Example`s, whose features are named by paths joined by "/". The
package itself is not needed; ArrayRecord needs `array_record`. Class numbers
become class names.
"""

import contextlib
import functools
import json

import numpy as np

from jest_tf import files
from jest_tf.data.stores import shards, tfrecords

_INFO = "dataset_info.json"
# ArrayRecord records per read in a scan.
_BATCH = 256


def find(
    pattern: str, fields: shards.Fields = shards.USUAL
) -> dict[str, object] | None:
    """Returns the shards, each with its format, of the split of a pattern.

    Returns None if the pattern names no prepared folder.

    Args:
        pattern: the folder of a version, or "<folder>:<split>"; the default
            split is "train", or the only split.
        fields: names of features. A picture feature without a usual name is
            taken if it is the only picture feature.
    """
    for folder, split in (pattern, ""), pattern.rpartition(":")[::2]:
        folder = folder.rstrip("/")
        if folder and "/" not in split and _exists(f"{folder}/{_INFO}"):
            break
    else:
        return None
    info = _load_json(f"{folder}/{_INFO}")
    kind = info.get("fileFormat") or "tfrecord"
    makers = {"tfrecord": tfrecords.TFRecords, "array_record": ArrayRecords}
    if kind not in makers:
        raise ValueError(
            "A prepared data set must have TFRecord or ArrayRecord files. "
            f"Received: {folder}, with the file format {kind!r}"
        )
    pictures, labels = _features(folder)
    usual = set(pictures) & set(tfrecords.IMAGE_FIELDS)
    if not fields.image and not usual and len(pictures) == 1:
        fields = fields._replace(image=pictures[0])
    paths = _split_paths(folder, info, split, kind)
    return dict.fromkeys(paths, makers[kind](fields, labels))


class ArrayRecords:
    """ArrayRecord files of `tf.train.Example`s; see `tfrecords.parse`."""

    name = index_key = "array_record"
    index_variant = ""

    def __init__(self, fields=shards.USUAL, labels=None):
        self.fields = fields
        self._parse = functools.partial(
            tfrecords.parse, fields=fields, labels=labels
        )

    def check(self, path: str) -> None:
        """Raises ValueError for a shard that is not on a local disk."""
        if files.is_remote(path):
            raise ValueError(
                "ArrayRecord shards must be on a local disk: prepare the data "
                f"set as TFRecord, or copy it. Received: {path}"
            )

    def scan(self, path: str, advance):
        """Counts the records and reads their ids."""
        del advance  # the reader reports no progress
        with _open(path) as reader:
            numbers = range(reader.num_records())
            for start in range(0, len(numbers), _BATCH):
                batch = numbers[start : start + _BATCH]
                for number, payload in zip(
                    batch, _read(reader, list(batch)), strict=True
                ):
                    stored = None
                    if isinstance(payload, bytes):
                        stored = tfrecords.stored_id(payload)
                    yield number, 0, stored

    def read(self, path: str, spans: np.ndarray) -> list:
        """Reads records by number; see `data/stores/shards.py`."""
        with _open(path) as reader:
            payloads = _read(reader, spans[:, 0].tolist())
        return [
            data if isinstance(data, shards.Fault) else self._parse(data)
            for data in payloads
        ]


@contextlib.contextmanager
def _open(path):
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise ImportError(
            "ArrayRecord shards need the package array_record: pip install "
            "array_record"
        ) from error
    try:
        # As the package advises for random access.
        reader = array_record_module.ArrayRecordReader(
            path, "readahead_buffer_size:0,max_parallelism:0"
        )
        reader.num_records()
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"Shard {path} is not an ArrayRecord file, or cannot be read: "
            f"{shards.one_line(error)}"
        ) from error
    try:
        yield reader
    finally:
        # Closing raises an error for damage that reads have already found.
        with contextlib.suppress(RuntimeError):
            reader.close()


def _read(reader, numbers):
    try:
        return reader.read(numbers)
    except (RuntimeError, ValueError, IndexError) as error:
        if len(numbers) == 1:
            return [shards.Fault(f"unreadable: {shards.one_line(error)}")]
        return [_read(reader, [number])[0] for number in numbers]


def _split_paths(folder, info, split, kind):
    splits = {entry["name"]: entry for entry in info.get("splits", ())}
    if not split:
        split = "train" if len(splits) != 1 else next(iter(splits))
    if split not in splits:
        raise ValueError(
            f"{folder} must have a split {split!r}; name a split as "
            f"'{folder}:<split>'. Received: {', '.join(splits) or 'none'}"
        )
    # The usual template of file names; others differ only before the split.
    part = f"-{split}.{kind}"
    paths = sorted(
        f"{folder}/{name}"
        for name in files.list_folder(folder)
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
    """Returns the names of picture features, and class names by label."""
    pictures, labels = [], {}
    path = f"{folder}/features.json"
    found = _load_json(path).get("featuresDict", {}) if _exists(path) else {}
    for name, feature in found.get("features", {}).items():
        kind = feature.get("pythonClassName", "").rpartition(".")[2]
        # As TFDS names the file.
        path = files.inside(folder, f"{name.replace('/', '.')}.labels.txt")
        if kind == "Image":
            pictures.append(name)
        elif kind == "ClassLabel" and _exists(path):
            labels[name] = files.read_whole(path).decode().splitlines()
    return pictures, labels


def _load_json(path):
    try:
        return dict(json.loads(files.read_whole(path)))
    except (TypeError, ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _exists(path):
    try:
        return files.is_file(path)
    except OSError:
        return False

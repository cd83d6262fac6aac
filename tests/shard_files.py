"""Shards, tars and manifests on disk, and damage to them, for tests."""

import errno
import io
import json
import os
import pathlib
import tarfile
import tempfile

import numpy as np
import tensorflow as tf

from jest_tf import files
from jest_tf.data.stores import manifest


def serialize(**features):
    """A `tf.train.Example`; ints become int64, str and bytes become bytes."""
    example = tf.train.Example()
    for name, values in features.items():
        values = values if isinstance(values, list) else [values]
        feature = example.features.feature[name]
        for value in values:
            if isinstance(value, int):
                feature.int64_list.value.append(value)
            else:
                feature.bytes_list.value.append(tf.compat.as_bytes(value))
    return example.SerializeToString()


def write_shard(path, payloads):
    """Writes a TFRecord file with TensorFlow's own writer."""
    with tf.io.TFRecordWriter(path) as writer:
        for payload in payloads:
            writer.write(payload)
    return path


def write_shipped(folder, **counts):
    """Writes the first records of splits of the shipped images."""
    shipped = pathlib.Path(__file__).parents[1] / "examples" / "icontext_mini"
    for split, count in counts.items():
        name = f"{split}-00000-of-00001.tfrecord"
        records = tf.data.TFRecordDataset(os.fspath(shipped / name))
        write_shard(
            os.path.join(folder, name), records.take(count).as_numpy_iterator()
        )


def flip(path, position):
    """Flips all bits of a byte of a file."""
    with open(path, "r+b") as file:
        file.seek(position)
        (octet,) = file.read(1)
        file.seek(position)
        file.write(bytes([octet ^ 0xFF]))


class FolderTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.directory = self.enterContext(tempfile.TemporaryDirectory())

    def path(self, name):
        return os.path.join(self.directory, name)

    def patch(self, path, position, data):
        with open(path, "r+b") as file:
            file.seek(position)
            file.write(data)


def write_tar(path, members, format=tarfile.USTAR_FORMAT):
    """Writes pairs of name and bytes; a name alone is a directory."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(data)
            tar.addfile(info, data and io.BytesIO(data))
    return path


def tar_sample(key, *, image=b"image", caption=None, **fields):
    """The members of a sample in a tar, as img2dataset writes them."""
    members = [(f"{key}.jpg", image)]
    if caption is not None:
        members.append((f"{key}.txt", caption.encode()))
    if fields:
        members.append((f"{key}.json", json.dumps(fields).encode()))
    return members


class BadSector:
    """A stand-in for `files.open_file`: reads of some bytes raise an error.

    Args:
        start, stop: the bytes.
        number: of the error.
        times: calls that raise it.

    Attributes:
        calls: offset and size of every read.
    """

    def __init__(self, start, stop, number=errno.EIO, times=10**9):
        self.start, self.stop = start, stop
        self.number, self.times = number, times
        self.calls = []
        self._open_file = files.open_file

    def __call__(self, path, mode="rb"):
        return _BadFile(self, self._open_file(path, mode))


class _BadFile:
    def __init__(self, sector, file):
        self._sector, self._file = sector, file

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()

    def seek(self, offset):
        self._file.seek(offset)

    def read(self, size):
        sector, offset = self._sector, self._file.tell()
        sector.calls.append((offset, size))
        touched = offset < sector.stop and sector.start < offset + size
        if touched and sector.times:
            sector.times -= 1
            raise OSError(sector.number, os.strerror(sector.number))
        return self._file.read(size)

    def close(self):
        self._file.close()


MADE_BY = {"choice": "joint", "share": 0.5, "reference": {"fingerprint": "f"}}


def write_manifest(store, directory, weights, scores=None, made_by=MADE_BY):
    """The manifest of a store with given weights, row for row."""
    if scores is None:
        scores = np.linspace(-1.0, 1.0, len(store))
    ids = store.ids(np.arange(len(store)))
    ends = np.cumsum(store.shards.lengths)[:-1]
    columns = (np.split(column, ends) for column in (ids, weights, scores))
    for shard, part in enumerate(zip(*columns, strict=True)):
        path = manifest.part_path(store, shard, directory)
        header = manifest.describe(store, shard, made_by)
        manifest.write_part(path, header, manifest.Part(*part))
    return manifest.finish(store, directory, made_by)


def mutate(data, rng):
    """A damaged copy, and the first place where it may differ."""
    start = int(rng.integers(len(data)))
    stop = min(len(data), start + int(2 ** rng.uniform(0, 10)))
    old = data[start:stop]
    kind = rng.integers(7)
    if kind == 0:  # one bit
        stop = start + 1
        new = bytes([data[start] ^ 1 << int(rng.integers(8))])
    elif kind == 1:
        new = rng.bytes(len(old))
    elif kind == 2:
        new = b""
    elif kind == 3:
        new = b"\0" * len(old)
    elif kind == 4:
        new = old + rng.bytes(len(old))
    elif kind == 5:
        new = old + old
    else:
        new, stop = b"", len(data)
    return data[:start] + new + data[stop:], start

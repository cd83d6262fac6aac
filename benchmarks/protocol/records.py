"""Records of a benchmark's data: pairs with their origin, as shards."""

import hashlib
import os
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf.data import tokenizers, vocabularies

MOVED = "moved"
VOCABULARY_SIZE = 8192
_TEXTS = ("concept", "label", "kind", "style", "source", "license", "name")


class Row(NamedTuple):
    """The texts of a picture, and its origin."""

    kind: str
    style: str  # icon set, art style or family
    source: str
    license: str  # SPDX identifier
    name: str  # upstream's name, unique in the style
    captions: tuple[str, ...]  # distinct texts, the primary text first
    concept: str = ""  # concept key of emoji art
    label: str = ""  # concept name of emoji art


class Record(NamedTuple):
    """A row with its picture, as it is written."""

    row: Row
    identifier: int  # 63 bits, the same in every build of the same version
    image: bytes  # of a PNG or JPEG file
    noise: str = ""  # its kind; empty where the pair is what it was


def identifier_of(source, style, name):
    """63-bit id of a picture: the start of a hash of where it is from."""
    digest = _digest(source, style, name)
    return int.from_bytes(digest[:8], "big") & (2**63 - 1)


def shuffled(records, split, seed):
    """Records in an order that mixes sources, kinds and concepts."""
    return sorted(
        records, key=lambda record: _digest(seed, split, record.identifier)
    )


def moved(records, places):
    """Records at places with each other's captions.

    A cycle goes through all of them: no picture keeps its captions.
    """
    found = []
    for place, giver in zip(places, np.roll(places, 1), strict=True):
        captions = records[giver].row.captions
        row = records[place].row._replace(captions=captions)
        found.append(records[place]._replace(row=row, noise=MOVED))
    return found


def write(folder, split, records, count=1):
    """Writes records, in order, to `count` shards of equal parts."""
    edges = [len(records) * i // count for i in range(count + 1)]
    for i in range(count):
        name = f"{split}-{i:05d}-of-{count:05d}.tfrecord"
        path = os.fspath(pathlib.Path(folder) / name)
        with tf.io.TFRecordWriter(path) as writer:
            for record in records[edges[i] : edges[i + 1]]:
                # Maps have no order; sorted keys give stable bytes.
                example = _example(record)
                writer.write(example.SerializeToString(deterministic=True))


def read(path):
    """Yields the records of a shard."""
    dataset = tf.data.TFRecordDataset(os.fspath(path))
    for serialized in dataset.as_numpy_iterator():
        feature = tf.train.Example.FromString(serialized).features.feature
        texts = {
            name: feature[name].bytes_list.value[0].decode() for name in _TEXTS
        }
        captions = feature["caption"].bytes_list.value
        yield Record(
            Row(
                captions=tuple(caption.decode() for caption in captions),
                **texts,
            ),
            feature["id"].int64_list.value[0],
            feature["image"].bytes_list.value[0],
            b"".join(feature["noise"].bytes_list.value).decode(),
        )


def write_vocabulary(out, records):
    """Writes vocab.txt, from the records of the training splits."""
    captions = (text for record in records for text in record.row.captions)
    vocabulary = vocabularies.build_wordpiece_vocabulary(
        captions, VOCABULARY_SIZE
    )
    tokenizers.WordPieceTokenizer(vocabulary, 1).save(os.fspath(out))


def _example(record):
    example = tf.train.Example()
    feature = example.features.feature
    for name in _TEXTS:
        text = getattr(record.row, name)
        feature[name].bytes_list.value.append(text.encode())
    if record.noise:
        feature["noise"].bytes_list.value.append(record.noise.encode())
    captions = [caption.encode() for caption in record.row.captions]
    feature["caption"].bytes_list.value.extend(captions)
    feature["image"].bytes_list.value.append(record.image)
    feature["id"].int64_list.value.append(record.identifier)
    return example


def _digest(*parts):
    return hashlib.sha256("|".join(map(str, parts)).encode()).digest()

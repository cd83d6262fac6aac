"""TFRecord shards in the schema that `jest_tf.data` reads."""

import os
import pathlib

import tensorflow as tf

from benchmarks.icontext import selection, sources

_TEXTS = ("concept", "label", "kind", "style", "source", "license", "name")


def write(folder, split, records, count=1):
    """Writes `selection.Record`s, in order, to `count` shards of equal parts.

    Returns:
        Number of bytes written.
    """
    edges = [len(records) * i // count for i in range(count + 1)]
    size = 0
    for i in range(count):
        name = f"{split}-{i:05d}-of-{count:05d}.tfrecord"
        path = os.fspath(pathlib.Path(folder) / name)
        with tf.io.TFRecordWriter(path) as writer:
            for record in records[edges[i] : edges[i + 1]]:
                # Maps have no order; sorted keys give stable bytes.
                example = _example(record)
                writer.write(example.SerializeToString(deterministic=True))
        size += os.path.getsize(path)
    return size


def read(path):
    """Yields the records of a shard."""
    dataset = tf.data.TFRecordDataset(os.fspath(path))
    for serialized in dataset.as_numpy_iterator():
        feature = tf.train.Example.FromString(serialized).features.feature
        texts = {
            name: feature[name].bytes_list.value[0].decode() for name in _TEXTS
        }
        captions = feature["caption"].bytes_list.value
        yield selection.Record(
            sources.Row(
                captions=tuple(caption.decode() for caption in captions),
                drawing=None,
                **texts,
            ),
            feature["id"].int64_list.value[0],
            feature["image"].bytes_list.value[0],
            b"".join(feature["noise"].bytes_list.value).decode(),
        )


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
    feature["image"].bytes_list.value.append(record.png)
    feature["id"].int64_list.value.append(record.identifier)
    return example

"""TFRecord shards in the schema that `jest_tf.data` reads."""

import os

import tensorflow as tf

from benchmarks.icontext import selection, sources

_TEXTS = ("concept", "label", "kind", "style", "source", "license", "name")


def write(path, records):
    """Writes records to a shard.

    Args:
        path: file to write.
        records: `selection.Record`s, in the order to write.

    Returns:
        Number of bytes written.
    """
    path = os.fspath(path)
    part = f"{path}.{os.getpid()}.part"
    with tf.io.TFRecordWriter(part) as writer:
        for record in records:
            # Maps have no order; sorted keys give stable bytes.
            writer.write(example(record).SerializeToString(deterministic=True))
    os.replace(part, path)  # a reader never sees half a shard
    return os.path.getsize(path)


def write_split(folder, split, records, count):
    """Writes records to `count` shards, in equal parts.

    Returns:
        Number of bytes written.
    """
    edges = [len(records) * i // count for i in range(count + 1)]
    return sum(
        write(
            folder / f"{split}-{i:05d}-of-{count:05d}.tfrecord",
            records[edges[i] : edges[i + 1]],
        )
        for i in range(count)
    )


def read(path):
    """Yields the records of a shard; their rows have no drawing."""
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
        )


def example(record):
    """`tf.train.Example` of one record."""
    row = record.row
    texts = {name: (getattr(row, name),) for name in _TEXTS}
    texts["caption"] = row.captions
    feature = {key: _bytes(*values) for key, values in texts.items()}
    feature["image"] = _bytes(record.png)
    feature["id"] = tf.train.Feature(
        int64_list=tf.train.Int64List(value=[record.identifier])
    )
    return tf.train.Example(features=tf.train.Features(feature=feature))


def _bytes(*values):
    return tf.train.Feature(
        bytes_list=tf.train.BytesList(
            value=[v.encode() if isinstance(v, str) else v for v in values]
        )
    )

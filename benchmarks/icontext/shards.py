"""TFRecord shards in the schema that `jest_tf.data` reads."""

import os

import tensorflow as tf


def write(path, records):
    """Write records to one shard.

    Args:
        path: file to write.
        records: `selection.Record`s, in the order to write.

    Returns:
        Number of bytes written.
    """
    path = os.fspath(path)
    part = path + ".part"
    with tf.io.TFRecordWriter(part) as writer:
        for record in records:
            # Maps have no order of their own; sorted keys give stable bytes.
            writer.write(example(record).SerializeToString(deterministic=True))
    os.replace(part, path)  # a reader never sees half a shard
    return os.path.getsize(path)


def example(record):
    """`tf.train.Example` of one record."""
    row = record.row
    texts = {
        "caption": row.captions,
        "concept": (row.concept,),
        "label": (row.label,),
        "kind": (row.kind,),
        "style": (row.style,),
        "source": (row.source,),
        "license": (row.license,),
        "name": (row.name,),
    }
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

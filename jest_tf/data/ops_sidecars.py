"""Embeddings in sidecars, by TensorFlow's ops alone; see `ops_reader.py`."""

import tensorflow as tf

from jest_tf import files
from jest_tf.data import ops_records

_SHARDS_AT_A_TIME = 64


class Sidecars:
    """Reads embeddings of rows; `data/sidecars/file_format.py` has the format.

    Args:
        sidecars: `data.sidecars.Sidecars`.
        layouts: its own, on paths that TensorFlow opens.
        store: of the records.
        ids: of all records, int64 [n].
        ends: rows of the shards up to the end of each, int64 [shards].

    Attributes:
        spec: of an embedding.
    """

    def __init__(self, sidecars, layouts, store, ids, ends):
        self.spec = tf.TensorSpec([sidecars.dim], tf.as_dtype(sidecars.dtype))
        self._width = sidecars.dim * self.spec.dtype.size
        paths, *places = zip(*layouts, strict=True)
        self._paths = tf.constant([files.absolute(path) for path in paths])
        starts, self._images, self._texts, self._sizes = (
            tf.constant(one, tf.int64) for one in places
        )
        self._ends = ends
        lengths = tf.constant(store.shards.lengths)
        self._starts = ends - lengths  # rows before a shard
        theirs, self._first, self._last = _read_spans(
            self._paths, starts, self._sizes, lengths
        )
        if not tf.reduce_all(theirs == ids):
            row = int(tf.argmax(theirs != ids))
            raise ValueError(
                "Sidecars must have the records' ids. Received: another in "
                f"that of {store.describe(row)}"
            )

    def num_captions(self, row):
        """The number of captions of a row that have embeddings."""
        return self._last[row] - self._first[row]

    def read(self, row, choice):
        """The embeddings of a row; an error, a fault, if it has none."""
        shard = tf.searchsorted(self._ends, row[tf.newaxis], "right")[0]
        local = row - self._starts[shard]
        caption = ops_records.required(
            choice < self.num_captions(row), self._first[row] + choice
        )

        def embedding(start, number):
            data = _read_range(
                self._paths[shard],
                start + number * self._width,
                self._width,
                self._sizes[shard],
            )
            values = tf.io.decode_raw(data, self.spec.dtype)
            return tf.ensure_shape(values, self.spec.shape)

        image = embedding(self._images[shard], local)
        image = ops_records.required(tf.reduce_any(image != 0), image)
        text = embedding(self._texts[shard], caption)
        return {"reference_image": image, "reference_text": text}


@tf.function
def _read_spans(paths, starts, sizes, lengths):
    """Ids, first captions and ends of captions, of all shards; int64 [n]."""
    data = tf.map_fn(
        lambda one: _read_range(*one[:2], 16 * one[3] + 8, one[2]),
        (paths, starts, sizes, lengths),
        fn_output_signature=tf.string,
        parallel_iterations=_SHARDS_AT_A_TIME,
    )
    return [
        tf.io.decode_raw(
            tf.strings.reduce_join(tf.strings.substr(data, place, 8 * lengths)),
            tf.int64,
        )
        for place in (tf.zeros_like(lengths), 8 * lengths, 8 * lengths + 8)
    ]


def _read_range(path, place, count, size):
    """Bytes [place, place + count) of a file of a known size."""
    count = tf.cast(count, tf.int64)
    ranges = tf.raw_ops.FixedLengthRecordDatasetV2(
        filenames=path[tf.newaxis],
        header_bytes=place,
        record_bytes=count,
        footer_bytes=size - place - count,
        buffer_size=count,
        compression_type="",
    )
    spec = tf.TensorSpec([], tf.string)
    return tf.data.experimental.from_variant(ranges, spec).get_single_element()

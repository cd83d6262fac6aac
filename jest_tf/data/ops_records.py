"""The contents of a record, by TensorFlow's ops alone; see `ops_reader.py`."""

import tensorflow as tf

from jest_tf.data import pictures
from jest_tf.data.stores import tfrecords

# What `str.strip` takes for white space.
_BLANK = (
    r"[\x{09}-\x{0d}\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}"
    r"\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]*"
)


def required(condition, value):
    """The value; an error, which is a fault, unless the condition holds."""
    with tf.control_dependencies([tf.debugging.Assert(condition, ["fault"])]):
        return tf.identity(value)


def features(payload):
    """Keys and serialized values of a `tf.train.Example`, strings [m]."""
    whole = _join(_field("Example", "features", payload))
    entries = _field("Features", "feature", whole)
    _, (keys, values) = tf.io.decode_proto(
        entries,
        "tensorflow.Features.FeatureEntry",
        ["key", "value"],
        [tf.string, tf.string],
    )
    return _join(keys), _join(values)


def _field(message, name, data, dtype=tf.string):
    """The values of a field of a serialized message, [k]."""
    _, (values,) = tf.io.decode_proto(
        data, f"tensorflow.{message}", [name], [dtype]
    )
    return values


def _join(values):
    """Strings [..., 0 or 1] without their last axis; "" for a missing one."""
    return tf.strings.reduce_join(values, axis=-1)


def _value(features, name):
    """A feature's serialized value, of several the last; "" without one."""
    keys, values = features
    found = tf.where(keys == name)[:, 0]
    return _join(tf.gather(values, found[-1:]))


def strings(features, name):
    """Values of a feature of bytes; none of a missing one."""
    found = _join(_field("Feature", "bytes_list", _value(features, name)))
    return _field("BytesList", "value", found)


def integers(features, name):
    """Values of a feature of integers, int64; none of a missing one."""
    found = _join(_field("Feature", "int64_list", _value(features, name)))
    return _field("Int64List", "value", found, tf.int64)


def first(features, names):
    """The first of names that a record has; "" if it has none."""
    has = tf.reduce_any(features[0] == tf.constant(names)[:, tf.newaxis], 1)
    return _join(tf.boolean_mask(names, has)[:1])


def captions(features, names):
    """Captions in the features of the given names, or in the usual one."""
    if names:
        return tf.concat([strings(features, one) for one in names], 0)
    return strings(features, first(features, tfrecords.CAPTION_FIELDS))


def is_blank(texts):
    """True for each text that `str.strip` leaves nothing of."""
    valid = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8")
    return tf.strings.regex_full_match(valid, _BLANK)


def is_decodable(encoded, max_pixels):
    """True if `pictures.prepare` would pass a picture on as it is."""

    def of_jpeg():
        size = tf.image.extract_jpeg_shape(encoded, tf.int64)[:2]
        scans = tf.size(tf.strings.split(encoded, pictures.SCAN)) - 1
        return size, scans <= pictures.MAX_SCANS

    def of_png():
        data = tf.strings.substr(encoded, 16, 8)
        size = tf.io.decode_raw(data, tf.int32, little_endian=False)
        return tf.cast(size, tf.int64), True

    def of_webp():
        return tf.ones([2], tf.int64), pictures.decodes_alike(encoded)

    size, sound = tf.case(
        [
            (_starts(encoded, pictures.JPEG_MAGIC), of_jpeg),
            (_starts(encoded, pictures.PNG_MAGIC), of_png),
        ],
        of_webp,
    )
    pixels = tf.reduce_prod(size)
    return sound & tf.reduce_all(size > 0) & (pixels <= max_pixels)


def needs_pillow(encoded):
    """True if TensorFlow cannot read a picture, or not as Pillow does."""
    is_kind = [_starts(encoded, one) for one in (b"GIF8", b"BM", b"RIFF")]
    return tf.reduce_any(is_kind) & ~pictures.decodes_alike(encoded)


def _starts(encoded, magic):
    size = tf.minimum(len(magic), tf.strings.length(encoded))
    return tf.strings.substr(encoded, 0, size) == magic

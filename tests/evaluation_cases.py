"""A store and a learner whose measures are known."""

import shard_files
import tensorflow as tf
from keras import ops


class Oracle:
    """A learner that knows the image's gray and the caption's number.

    Images and captions of a number are alike, and embeddings of different
    numbers differ.
    """

    def __init__(self):
        self.traces = 0

    def encode_image(self, images, training):
        self.traces += 1
        assert training is False
        return ops.one_hot(ops.cast(images[:, 0, 0, 0], "int32"), 16)

    def encode_text(self, tokens, training):
        assert training is False
        return ops.one_hot(tokens[:, 0], 16)


def number_of(captions):
    """Tokenizer: "a red 7" -> [7]."""
    words = tf.strings.split(captions, " ")
    return tf.strings.to_number(words[:, -1:].to_tensor(), tf.int32)


def serialize(gray, **features):
    """A record of a gray image."""
    image = tf.io.encode_png(tf.fill([2, 2, 3], tf.cast(gray, tf.uint8)))
    return shard_files.serialize(image=image.numpy(), **features)


def present(**features):
    """The features that are not empty texts."""
    return {name: value for name, value in features.items() if value != ""}


def write_shard(path, rows):
    """Rows of (gray, captions, concept, label)."""
    payloads = [
        serialize(gray, **present(caption=text, concept=concept, label=label))
        for gray, text, concept, label in rows
    ]
    shard_files.write_shard(path, payloads)


# Gray and number agree in the first four rows; the fifth shows a 3 and is
# called 4. Row 1 repeats the caption of row 0, its concept as well. Two rows
# have no concept and are groups of their own, three have no label.
ROWS = [
    (1, ["one 1", "rubbish 9"], "one", "class 1"),
    (1, ["one 1"], "one", ""),
    (2, ["two 2"], "two", "class 2"),
    (3, ["three 3"], "", ""),
    (3, ["four 4"], "", ""),
]

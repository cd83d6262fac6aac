"""What several tests train: a learner of a few layers, batches, a shard."""

import json
import os

import keras
import numpy as np
import shard_files
import tensorflow as tf

from jest_tf import models
from jest_tf.models import towers

IMAGE_SIZE, TEXT_LENGTH, VOCABULARY_SIZE = 4, 3, 12
# For a shard's captions, which are of the words a to j.
VOCABULARY = ["[UNK]", "[EOS]", *"abcdefghij"]


def learner(seed=0, dim=6, extra=(), dtype=None, **settings):
    """A built `TwoTower` of dense layers; `extra` end the image tower."""

    def dense(salt):
        initializer = keras.initializers.GlorotUniform(seed=2 * seed + salt)
        return keras.layers.Dense(
            dim, kernel_initializer=initializer, dtype=dtype
        )

    table = keras.layers.Embedding(
        VOCABULARY_SIZE,
        dim,
        embeddings_initializer=keras.initializers.RandomNormal(1.0, seed=seed),
        dtype=dtype,
    )
    flatten = [keras.layers.Flatten(dtype=dtype) for _ in range(2)]
    model = models.TwoTower(
        keras.Sequential([flatten[0], dense(0), *extra]),
        keras.Sequential([table, flatten[1], dense(1)]),
        **{"temperature": 4.0, "bias": -2.0} | settings,
    )
    model.build(
        {
            "image": (None, IMAGE_SIZE, IMAGE_SIZE, 3),
            "text": (None, TEXT_LENGTH),
        }
    )
    return model


def flexible_learner(seed=0):
    """A learner whose image tower takes patches of 2 and of 4 pixels."""
    text = learner(seed).text_tower
    image = towers.ImageTower(
        image_size=IMAGE_SIZE,
        patch_size=2,
        patch_sizes=(4,),
        width=8,
        depth=1,
        num_heads=2,
        embedding_dim=6,
        seed=seed,
    )
    model = models.TwoTower(image, text, temperature=4.0, bias=-2.0)
    shape = (None, IMAGE_SIZE, IMAGE_SIZE, 3)
    model.build({"image": shape, "text": (None, TEXT_LENGTH)})
    return model


def super_batches(count=1, rows=12, seed=0):
    """`count` super-batches of noise, as NumPy arrays."""
    random = np.random.default_rng(seed)
    image_shape = (rows, IMAGE_SIZE, IMAGE_SIZE, 3)
    text_shape = (rows, TEXT_LENGTH)
    return [
        {
            "image": np.uint8(random.integers(0, 256, image_shape)),
            "text": np.int32(random.integers(0, VOCABULARY_SIZE, text_shape)),
            "id": np.int64(random.permutation(1000)[:rows] + 2**40),
            # Four captions, so that some rows share one.
            "caption_id": np.int64(random.integers(0, 4, rows)),
        }
        for _ in range(count)
    ]


def dataset(batches):
    """A dataset with one element a super-batch."""
    stacked = {
        name: np.stack([batch[name] for batch in batches])
        for name in batches[0]
    }
    return tf.data.Dataset.from_tensor_slices(stacked)


def write_shard(path, rows=20, seed=0, damaged=()):
    """A shard of PNG noise with captions of three words; ids from 100 on.

    The pictures of the rows in `damaged` are cut off, every other one so that
    only decoding finds it out.
    """
    random = np.random.default_rng(seed)
    payloads = []
    for row in range(rows):
        pixels = random.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        image = tf.io.encode_png(pixels).numpy()
        if row in damaged:
            image = image[:10] if row % 2 else image[:-20]
        words = random.choice(list(VOCABULARY[2:]), TEXT_LENGTH - 1)
        payloads.append(
            shard_files.serialize(
                image=image,
                caption=" ".join(words),
                id=100 + row,
            )
        )
    return shard_files.write_shard(path, payloads)


def from_clock(name):
    """Whether a number of the log is measured."""
    return name == "seconds" or name.startswith(("time/", "memory/"))


def read_lines(workdir, name):
    """The objects of a `.jsonl` file in `workdir`."""
    with open(os.path.join(workdir, name), encoding="utf-8") as file:
        return [json.loads(line) for line in file]

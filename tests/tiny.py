"""A learner of a few layers, batches and a shard, for several tests."""

import json
import os
from unittest import mock

import keras
import numpy as np
import shard_files
import sidecar_files
import tensorflow as tf

from jest_tf import config, models, training
from jest_tf.data import stores, tokenizers
from jest_tf.data.sidecars import embed
from jest_tf.models import towers
from jest_tf.runs import directory

IMAGE_SIZE, TEXT_LENGTH, VOCABULARY_SIZE = 4, 3, 12
DIM = 6  # of the learner's embeddings
# For a shard's captions, which are of the words a to j.
VOCABULARY = ["[UNK]", "[EOS]", *"abcdefghij"]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
LETTERS = ["[UNK]", "[EOS]", *_LETTERS, *(f"##{each}" for each in _LETTERS)]


def learner(seed=0, dim=DIM, extra=(), dtype=None, **settings):
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
        keras.Sequential(
            [
                keras.Input([TEXT_LENGTH], dtype="int32"),
                *(table, flatten[1], dense(1)),
            ]
        ),
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


def eagerly():
    """A context in which models run without graphs: sooner, for a few steps."""
    always = property(lambda model: True, lambda model, value: None)
    return mock.patch.object(training.JESTModel, "run_eagerly", always)


def assert_equal_variables(test, ours, others):
    """Fails unless two models, or optimizers, are equal bit for bit."""
    for one, other in zip(ours.variables, others.variables, strict=True):
        test.assertAllEqual(one, other, one.path)


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
            # Four captions, so that some rows share a caption.
            "caption_id": np.int64(random.integers(0, 4, rows)),
        }
        for _ in range(count)
    ]


def dataset(batches):
    """A dataset with an element a super-batch."""
    stacked = tf.nest.map_structure(lambda *parts: np.stack(parts), *batches)
    return tf.data.Dataset.from_tensor_slices(stacked)


def write_shard(path, rows=20, seed=0, damaged=(), noisy=()):
    """A shard of PNG noise with captions of three words; ids from 100 on.

    The images of the rows in `damaged` are cut off, every other so that
    only decoding finds it out. The rows in `noisy`, if any, have a "noise".
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
                **({"noise": "wrong" * (row in noisy)} if noisy else {}),
            )
        )
    return shard_files.write_shard(path, payloads)


def write_sidecars(path, noisy=(), output=embed.Output()):  # noqa: B008
    """Sidecars of a shard; captions of `noisy` rows are unlike their image.

    No model has made them, so a run has them without a reference.
    """
    store = stores.open_store(path)
    image = sidecar_files.unit_rows(len(store), 1, DIM)
    text = np.where(np.isin(range(len(store)), noisy)[:, None], -image, image)
    description = sidecar_files.DESCRIPTION._replace(dim=DIM)
    embed.write_arrays(store, image, text, description, output)


def write_run(workdir, recipe, vocabulary=VOCABULARY):
    """The directory of a finished run that was never trained; its learner."""
    os.makedirs(workdir, exist_ok=True)
    config.save_config(recipe, os.path.join(workdir, directory.CONFIG_FILE))
    tokenizers.WordPieceTokenizer(vocabulary, recipe.data.text_length).save(
        workdir
    )
    learner = models.build_learner(recipe, len(vocabulary))
    directory.save_learner(workdir, learner)
    return learner


def from_clock(name):
    """True if a number of the log is measured."""
    return name == "seconds" or name.startswith(("time/", "memory/"))


def read_lines(workdir, name):
    """The objects of a `.jsonl` file in `workdir`; [] without the file."""
    path = os.path.join(workdir, name)
    if not os.path.isfile(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_stages(workdir):
    """The stages of `telemetry.jsonl`, a dict for each stage of each line."""
    return [
        {"step": line["step"], "super_batch": line["super_batch"]} | stage
        for line in read_lines(workdir, "telemetry.jsonl")
        for stage in line["stages"]
    ]

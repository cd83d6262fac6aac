"""Streams that the input benchmarks measure, and pictures for them."""

import os
import time

import numpy as np
import tensorflow as tf

from benchmarks import report
from jest_tf.data import pictures, pipeline, stores, tokenizers

SEED = 0
JPEG_QUALITY = 90
WARM_UP = 2  # super-batches before a measurement, to fill the buffers

_POOL = str(report.ROOT / "examples/icontext_mini/pool-*.tfrecord")
# A tile of a picture is one of the example pictures, 32 pixels a side.
_TILE = 32


def write_pictures(directory: str, num_pictures: int) -> stores.Store:
    """Writes and opens a shard of JPEGs, patchworks of the example pictures.

    Args:
        directory: folder to write to.
        num_pictures: number of pictures.
    """
    pool = stores.open_store(_POOL, index_dir=directory)
    rng = np.random.default_rng(SEED)
    path = os.path.join(directory, "pictures.tfrecord")
    tiles = [
        pictures.decode_image(record.image, _TILE).numpy()
        for record in pool.read(rng.permutation(len(pool))[:1024])
    ]
    captions = list(pool.columns(["caption"])["caption"])
    with tf.io.TFRecordWriter(path) as writer:
        for i in range(num_pictures):
            columns = 256 // _TILE + i % 4
            chosen = rng.integers(len(tiles), size=(256 // _TILE, columns))
            image = np.concatenate(
                [np.concatenate([tiles[j] for j in line], 1) for line in chosen]
            )
            example = tf.train.Example()
            features = example.features.feature
            features["image"].bytes_list.value.append(
                tf.io.encode_jpeg(image, quality=JPEG_QUALITY).numpy()
            )
            features["caption"].bytes_list.value.extend(captions[i])
            features["id"].int64_list.value.append(i)
            writer.write(example.SerializeToString())
    return stores.open_store(path)


def open_stream(store, super_batch_size, size, start_step=0, **options):
    """Opens a stream with a tokenizer of letters; `options` of the pipeline."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*letters, *(f"##{letter}" for letter in letters)]
    tokenizer = tokenizers.WordPieceTokenizer(
        [*tokenizers.RESERVED_TOKENS, *vocabulary], 64
    )
    return pipeline.super_batches(
        store,
        super_batch_size=super_batch_size,
        seed=SEED,
        tokenizer=tokenizer,
        image_size=size,
        start_step=start_step,
        options=pipeline.Options(**options),
    )


def rate(dataset, super_batch_size, steps, pace=None):
    """Images a second of a stream that has been running for a while.

    `pace` is how many of them a step takes a second, None as many as come.
    """
    iterator = iter(dataset)
    for _ in range(WARM_UP):
        next(iterator)

    def take():
        for _ in range(steps):
            next(iterator)
            time.sleep(super_batch_size / pace if pace else 0.0)

    return super_batch_size * steps / seconds(take)


def seconds(function):
    """Times a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start

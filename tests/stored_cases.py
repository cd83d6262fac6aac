"""A store of three shards with sidecars, and a test case over them."""

import os
import tempfile

import numpy as np
import shard_files
import sidecar_files
import streams
import tensorflow as tf

from jest_tf.data import reader, sidecars, stores, tokenizers
from jest_tf.data.sidecars import embed, file_format

SEED, SIZE = 5, 4
DIM = 6  # the tiny learner's, which is drawn to these
LENGTHS = (33, 7, 40)
DESCRIPTION = file_format.Description("a", "b", "c", DIM, 20.0, -8.0)
TOKENIZER = tokenizers.WordPieceTokenizer(
    ["[UNK]", "[EOS]", "##0", *"abcdefghijklmnopqrstuvwxyz0123456789"], 4
)
# The records that the sidecars have no embedding of.
INVALID = (5, 36, 71)
# A record that has only blank captions.
BLANK = 50
# Records that cannot be had.
BAD = (*INVALID, BLANK)


def captions_of(row):
    if row == BLANK:
        return [b" ", b""]
    return [[b"a b"], [b"c", b" ", b"d e"], [b"", b"f"]][row % 3]


def write_store(folder):
    """Three shards of noise and their sidecars; the arrays of the latter."""
    random = np.random.default_rng(0)
    for shard, rows in enumerate(np.split(np.arange(80), (33, 40))):
        shard_files.write_shard(
            os.path.join(folder, f"{shard}.tfrecord"),
            [
                shard_files.serialize(
                    image=tf.io.encode_png(
                        random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
                    ).numpy(),
                    caption=captions_of(row),
                    id=1000 + int(row),
                )
                for row in rows
            ],
        )
    store = stores.open_store(os.path.join(folder, "*.tfrecord"))
    counts = [len(captions_of(row)) for row in range(80)]
    image = sidecar_files.unit_rows(80, 1, DIM)
    blank = np.array(
        [
            not caption.strip()
            for row in range(80)
            for caption in captions_of(row)
        ]
    )
    # Captions of some like their image, of others not.
    text = np.repeat(image, counts, 0)
    text += random.normal(0.0, 0.4, text.shape)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    text[blank] = 0.0
    valid = ~np.isin(np.arange(80), INVALID)
    embed.write_arrays(
        store, image, text, DESCRIPTION, captions=counts, valid=valid
    )
    return store, image, text, np.cumsum([0, *counts])


class StoredTestCase(streams.StreamTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.store, cls.image, cls.text, cls.starts = write_store(cls.folder)
        cls.sidecars = sidecars.Sidecars(cls.store)

    def batches(self, count, **settings):
        """Batches that the reference has embeddings of, by default."""
        settings = {
            "seed": SEED,
            "tokenizer": TOKENIZER,
            "image_size": SIZE,
            "sidecars": self.sidecars,
            "faults": reader.FaultLog(None, 1.0),
        } | settings
        store = settings.pop("store", self.store)
        dataset = streams.super_batches(store, **settings)
        return list(dataset.take(count).as_numpy_iterator())

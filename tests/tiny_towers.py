"""Tiny towers and batches for them."""

import numpy as np

from jest_tf.models import towers

SIZES = {"width": 8, "depth": 2, "num_heads": 2}
IMAGE_SIZE, PATCH_SIZE, VOCABULARY_SIZE, LENGTH = 4, 2, 11, 5


def image_tower(embedding_dim=6, **settings):
    defaults = {**SIZES, "patch_size": PATCH_SIZE, "seed": 0}
    return towers.ImageTower(
        image_size=IMAGE_SIZE,
        embedding_dim=embedding_dim,
        **{**defaults, **settings},
    )


def text_tower(embedding_dim=6, **settings):
    return towers.TextTower(
        vocabulary_size=VOCABULARY_SIZE,
        length=LENGTH,
        embedding_dim=embedding_dim,
        **{**SIZES, "seed": 1, **settings},
    )


def make_batch(rows=3, seed=0):
    random = np.random.default_rng(seed)
    shape = (rows, IMAGE_SIZE, IMAGE_SIZE, 3)
    return {
        "image": np.uint8(random.integers(0, 256, shape)),
        "text": np.int32(random.integers(0, VOCABULARY_SIZE, (rows, LENGTH))),
    }


def randomise(layer, seed=0, scale=0.5):
    """Fills every weight, so that biases and scales count in a comparison."""
    random = np.random.default_rng(seed)
    layer.set_weights(
        [
            np.float32(random.normal(scale=scale, size=weight.shape))
            for weight in layer.get_weights()
        ]
    )

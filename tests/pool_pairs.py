"""Embeddings of pairs of which a known share match."""

import numpy as np

DIM = 64


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(
        np.float32
    )


def pairs(count, share, seed, common=0.0):
    """Images and captions, of which the first `share` match.

    A matching caption is half its image, beside noise. With `common` all
    images and all captions share a direction, each to its own degree.
    """
    random = np.random.default_rng(seed)
    image = unit(random.standard_normal([count, DIM]))
    text = unit(random.standard_normal([count, DIM]))
    matches = np.arange(count) < share * count
    text[matches] += 0.5 * image[matches]
    if common:
        degrees = common * random.random([2, count, 1])
        image[:, :1] += degrees[0]
        text[:, :1] += degrees[1]
    return unit(image), unit(text), matches

"""Random embeddings of pairs, and of a learner and a reference."""

import numpy as np

from jest_tf.embeddings import Embeddings


def unrelated(size, dim, seed=0, scale=10.0, bias=-10.0):
    random = np.random.default_rng(seed)
    parts = random.normal(size=(2, size, dim))
    parts /= np.linalg.norm(parts, axis=2, keepdims=True)
    return Embeddings(*np.float32(parts), np.float32(scale), np.float32(bias))


def related(size, dim, seed, scale=10.0, bias=-10.0, similarity=0.5):
    """Unit-norm pairs, image and text alike by `similarity`."""
    random = np.random.default_rng(seed)
    image, own = random.normal(size=(2, size, dim))
    text = similarity * image + (1.0 - similarity) * own
    parts = [
        part / np.linalg.norm(part, axis=1, keepdims=True)
        for part in (image, text)
    ]
    return Embeddings(
        *(np.float32(part) for part in parts),
        np.float32(scale),
        np.float32(bias),
    )


def omitted(size, seed=0):
    """Every way to tell false negatives; some rows are another's duplicates."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, size // 2 + 1, size)
    reference = related(size, 5, seed + 7, similarity=0.4)
    same = random.integers(0, size, size)
    image, text = reference.image.copy(), reference.text.copy()
    image[::4], text[::4] = image[same[::4]], text[same[::4]]
    text[1::4] = text[same[1::4]]
    reference = reference._replace(image=image, text=text)
    return {
        "none": {},
        "ids": {"ids": ids},
        "reference": {"reference": reference},
        "both": {"ids": ids, "reference": reference, "margin": 0.2},
    }


def models(size, seed=0):
    """A learner and a reference of other width, scale and bias."""
    return (
        related(size, 24, seed, scale=12.0, bias=-7.0, similarity=0.4),
        related(size, 10, seed + 1, scale=20.0, bias=-9.0, similarity=0.6),
    )

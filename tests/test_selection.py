"""Joint selection against the paper's matrix form, and its properties."""

import itertools

import numpy as np
import oracles
import tensorflow as tf

from jest_tf import losses, selection


def embeddings(size, dim, seed, scale=10.0, bias=-10.0, related=0.5):
    """Unit-norm pairs, image and text alike by `related`."""
    random = np.random.default_rng(seed)
    image, own = random.normal(size=(2, size, dim))
    text = related * image + (1.0 - related) * own
    parts = [
        part / np.linalg.norm(part, axis=1, keepdims=True)
        for part in (image, text)
    ]
    return losses.Embeddings(
        *(np.float32(part) for part in parts),
        np.float32(scale),
        np.float32(bias),
    )


def models(size, seed=0):
    """A learner and a reference of other width, scale and bias."""
    return (
        embeddings(size, 24, seed, scale=12.0, bias=-7.0, related=0.4),
        embeddings(size, 10, seed + 1, scale=20.0, bias=-9.0, related=0.6),
    )


class JointSelectionTest(tf.test.TestCase):
    def test_the_same_noise_gives_the_set_of_the_matrix_form(self):
        sizes = [(200, 40, 5), (321, 101, 8), (64, 64, 3), (50, 1, 1)]
        for (size, batch, chunks), criterion, loss, first in itertools.product(
            sizes,
            selection.CRITERIA,
            selection.LOSSES,
            selection.FIRST_CHUNKS,
        ):
            learner, reference = models(size, seed=size)
            noise = selection.gumbel_noise((3, 7), chunks, size).numpy()
            draw = selection.select_jointly(
                learner,
                reference,
                batch_size=batch,
                num_chunks=chunks,
                seed=(3, 7),
                criterion=criterion,
                loss=loss,
                first_chunk=first,
                gain=0.7,
            )
            expected = oracles.select_jointly(
                learner,
                reference,
                batch_size=batch,
                noise=noise,
                criterion=criterion,
                loss=loss,
                first_chunk=first,
                gain=0.7,
            )
            with self.subTest(
                size=size, criterion=criterion, loss=loss, first_chunk=first
            ):
                self.assertAllEqual(draw.indices, expected)

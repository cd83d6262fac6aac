"""A criterion and a pair loss as users write them, for "module:function"."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import config, losses
from jest_tf.embeddings import Embeddings


def doubt():
    """The learner's loss less twice the reference's."""
    return config.Criterion(
        ("learner", "reference"),
        lambda losses: losses["learner"] - 2.0 * losses["reference"],
    )


def squares():
    """1/b sum_ij (c_ij - [i = j])^2 of the cosines c."""
    return losses.PairLoss(_square_loss, _SquareRows)


def square_pairs(embeddings):
    """[B, B] of pair losses in float64."""
    image, text = (np.float64(part) for part in embeddings[:2])
    return (image @ text.T - np.eye(len(image))) ** 2


def nothing():
    """What is neither."""


def _square_loss(learner, **options):
    cosines = tf.matmul(learner.image, learner.text, transpose_b=True)
    errors = (cosines - tf.eye(cosines.shape[0])) ** 2
    return tf.reduce_mean(tf.reduce_sum(errors, 1))


class _SquareRows(NamedTuple):
    model: Embeddings
    own: tf.Tensor  # cosines of the rows' own pairs
    sums: tf.Tensor  # over the chosen rows, both ways

    @classmethod
    def start(cls, model):
        own = tf.reduce_sum(model.image * model.text, 1)
        return cls(model, own, tf.zeros_like(own))

    def add(self, image, text):
        ways = (self.model.image, text), (self.model.text, image)
        more = [tf.matmul(*way, transpose_b=True) ** 2 for way in ways]
        return self._replace(sums=self.sums + tf.reduce_sum(sum(more), 1))

    def conditional(self):
        return (1.0 - self.own) ** 2 + self.sums

    def row_losses(self, kept):
        # `sums` counts a kept row as its own negative, once per direction.
        itself = tf.where(kept, 2.0 * self.own**2, 0.0)
        return (1.0 - self.own) ** 2 + 0.5 * (self.sums - itself)

    def sample_losses(self, size, batch_size):
        others = 0.5 * self.sums - self.own**2
        scale = (batch_size - 1) / max(size - 1, 1)
        return (1.0 - self.own) ** 2 + scale * others

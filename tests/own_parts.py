"""A criterion and a pair loss as users write them, for "module:function"."""

from typing import NamedTuple

import numpy as np
from keras import ops

from jest_tf import config, losses
from jest_tf.embeddings import Embeddings, Tensor


def doubt():
    """The learner's loss less twice the reference's."""
    return config.Criterion(
        ("learner", "reference"),
        lambda losses: losses["learner"] - 2.0 * losses["reference"],
    )


def squares():
    """1/b sum_ij 0.01 (l_ij - [i = j])^2 of the logits l."""
    return losses.PairLoss(_square_loss, _SquareRows)


def square_pairs(embeddings):
    """[B, B] of pair losses in float64."""
    image, text, scale, bias = (np.float64(part) for part in embeddings)
    return _square(scale * image @ text.T + bias, np.eye(len(image)))


def nothing():
    """A function that is no part of any kind."""


def same():
    """A criterion that returns one number for all rows."""
    return config.Criterion(("learner",), lambda losses: 0.0)


def letters():
    """A criterion whose `needs` is no tuple."""
    return doubt()._replace(needs="reference")


def no_rows():
    """A pair loss that cannot score."""
    return squares()._replace(rows=Embeddings)


def _square(logits, target=0.0):
    return 0.01 * (logits - target) ** 2


def _square_loss(learner, **options):
    cosines = ops.matmul(learner.image, ops.transpose(learner.text))
    logits = learner.scale * cosines + learner.bias
    errors = _square(logits, ops.eye(logits.shape[0]))
    return ops.mean(ops.sum(errors, 1))


class _SquareRows(NamedTuple):
    model: Embeddings
    own: Tensor  # logits of the rows' own pairs
    sums: Tensor  # over the chosen rows, both ways

    @classmethod
    def start(cls, model):
        cosines = ops.sum(model.image * model.text, 1)
        own = model.scale * cosines + model.bias
        return cls(model, own, ops.zeros_like(own))

    def add(self, image, text):
        sums, (_, _, scale, bias) = self.sums, self.model
        for own, chosen in ((self.model.image, text), (self.model.text, image)):
            logits = scale * ops.matmul(own, ops.transpose(chosen)) + bias
            sums += ops.sum(_square(logits), 1)
        return self._replace(sums=sums)

    def conditional(self):
        return _square(self.own, 1.0) + self.sums

    def row_losses(self, kept):
        # `sums` counts a kept row as its own negative, once per direction.
        itself = ops.where(kept, 2.0 * _square(self.own), 0.0)
        return _square(self.own, 1.0) + 0.5 * (self.sums - itself)

    def sample_losses(self, size, batch_size):
        others = 0.5 * self.sums - _square(self.own)
        scale = (batch_size - 1) / max(size - 1, 1)
        return _square(self.own, 1.0) + scale * others

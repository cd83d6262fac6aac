"""Losses of rows given the chosen rows, as running sums.

The paper's algorithm 1 forms the `B x B` matrix of pair losses. Here a chunk
only adds its rows and columns to running sums of every row (`tiles.py`), which
gives the same draw for the same noise. The classes are immutable.
"""

from typing import NamedTuple

import numpy as np
from keras import ops

from jest_tf import embeddings
from jest_tf.embeddings import Embeddings, Tensor
from jest_tf.losses import tiles


class SigmoidRows(NamedTuple):
    """A model's running sums of sigmoid pair losses.

    Attributes:
        model: embeddings of the rows, `[B/R, dim]`.
        own: float32 `[B/R]`, logits of the rows' own pairs.
        sums: float32 `[2, B/R]`, softplus(logit) summed over the chosen rows,
            image to text and text to image.
    """

    model: Embeddings
    own: Tensor
    sums: Tensor

    @classmethod
    def start(cls, model: Embeddings) -> "SigmoidRows":
        """Starts without chosen rows."""
        own = _own_logits(model)
        return cls(model, own, ops.zeros([2, *own.shape], "float32"))

    def add(self, image: Tensor, text: Tensor) -> "SigmoidRows":
        """Adds rows with these embeddings, `[c, dim]`, to the chosen rows."""
        scale, bias = self.model[2:]
        more = tiles.reduce_pairs(
            lambda cosines: tiles.sum_softplus(cosines, scale, bias),
            *(self.model, image, text),
        )
        return self._replace(sums=self.sums + more)

    def conditional(self) -> Tensor:
        """Returns the loss that each row would add, float32 `[B/R]`."""
        return ops.softplus(-self.own) + ops.sum(self.sums, 0)

    def row_losses(self, kept: Tensor) -> Tensor:
        """Returns losses given the chosen rows, `kept`; float32 `[B/R]`."""
        # `sums` counts a kept row as its own negative, once per direction.
        itself = ops.where(kept, ops.softplus(self.own), 0.0)
        others = ops.sum(self.sums - itself, 0)
        return ops.softplus(-self.own) + 0.5 * others

    def sample_losses(self, size: int, batch_size: int) -> Tensor:
        """Returns losses of the `size` chosen rows, scaled to `batch_size`."""
        others = ops.sum(self.sums - ops.softplus(self.own), 0)
        scale = 0.5 * (batch_size - 1) / max(size - 1, 1)
        return ops.softplus(-self.own) + scale * others


class SoftmaxRows(NamedTuple):
    """A model's running log-sum-exps of logits; methods as in `SigmoidRows`.

    Attributes:
        model: embeddings of the rows, `[B/R, dim]`.
        own: float32 `[B/R]`, logits of the rows' own pairs, without bias.
        sums: float32 `[2, B/R]`, log-sum-exp of the logits over the chosen
            rows; -inf before the first.
    """

    model: Embeddings
    own: Tensor
    sums: Tensor

    @classmethod
    def start(cls, model: Embeddings) -> "SoftmaxRows":
        """Starts without chosen rows."""
        own = _own_logits(model._replace(bias=0.0))
        return cls(model, own, ops.full([2, *own.shape], -np.inf, "float32"))

    def add(self, image: Tensor, text: Tensor) -> "SoftmaxRows":
        """Adds rows with these embeddings, `[c, dim]`, to the chosen rows."""
        scale = self.model.scale
        more = tiles.reduce_pairs(
            lambda cosines: tiles.log_sum_exp(cosines, scale),
            *(self.model, image, text),
        )
        return self._replace(sums=embeddings.logaddexp(self.sums, more))

    def conditional(self) -> Tensor:
        """Returns each row's loss among the chosen rows, float32 `[B/R]`."""
        # Without a chosen row there is no normaliser.
        return self._loss(ops.where(self.sums > -np.inf, self.sums, 0.0))

    def row_losses(self, kept: Tensor) -> Tensor:
        """Returns losses given the chosen rows, `kept`; float32 `[B/R]`."""
        # Normalisers include the row itself; for kept rows, `sums` already do.
        joined = embeddings.logaddexp(self.sums, self.own)
        return self._loss(ops.where(kept, self.sums, joined))

    def sample_losses(self, size: int, batch_size: int) -> Tensor:
        """Returns losses of the `size` chosen rows, scaled to `batch_size`."""
        if size == batch_size:
            return self.conditional()
        # The row itself counts once in a batch of any size.
        share = ops.exp(ops.minimum(self.own - self.sums, 0.0))
        others = self.sums + ops.log1p(-share)
        others += np.log((batch_size - 1) / (size - 1))
        return self._loss(embeddings.logaddexp(self.own, others))

    def _loss(self, normalisers):
        return -self.own + 0.5 * ops.sum(normalisers, 0)


def _own_logits(model):
    """Computes scale <image_i, text_i> + bias, without `[B, dim]` products."""
    cosines = ops.einsum("nd,nd->n", model.image, model.text)
    return model.scale * cosines + model.bias

"""Losses of rows given the chosen rows, as running sums.

The paper's algorithm 1 forms the `B x B` matrix of pair losses. Here a chunk
only adds its rows and columns to running sums of every row, which gives the
same draw for the same noise. Each tile of logits is formed from the embeddings,
summed and discarded, in O(B b dim) operations and the memory of a tile. The
classes are immutable.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from keras import ops

from jest_tf import embeddings
from jest_tf.embeddings import Embeddings, Tensor

# A tile of logits is at most 16 MB of float32: large enough for the matrix
# product to run at full speed and for the loop to cost little, but small beside
# the embeddings (benchmarks/bench_selection.py).
_TILE_LOGITS = 4096 * 1024
_TALLEST_TILE = 16384
# Tiles of at least this width justify launching a fused kernel. A threshold on
# a tile's size would make the last bit depend on the number of replicas.
_FUSED_COLUMNS = 32
# Columns whose terms a fused kernel combines before writing them.
_GROUP = 16


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
        more = reduce_pairs(
            lambda cosines: sum_softplus(cosines, scale, bias),
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
    """A model's running log-sum-exps of logits, as in `SigmoidRows`.

    The logits are without bias; `sums` are -inf before the first chosen row.
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
        more = reduce_pairs(
            lambda cosines: log_sum_exp(cosines, scale),
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


def reduce_pairs(
    reduce: Callable, model: Embeddings, image: Tensor, text: Tensor
) -> Tensor:
    """Reduces the cosines of all rows with the chosen rows, in both directions.

    Args:
        reduce: maps the cosines of a tile, `[rows, c]`, to `[rows]`.
        model: embeddings of the rows, `[B/R, dim]`.
        image, text: embeddings of the chosen rows, float32 `[c, dim]`.

    Returns:
        float32 `[2, B/R]`, image to text, then text to image.
    """

    def one_way(rows, columns):
        def tile(state, start, size):
            part = embeddings.rows_from(rows, start, size)
            cosines = embeddings.products(part, columns)
            return state, (reduce(cosines),)

        height = tile_rows(columns.shape[0])
        _, (values,) = embeddings.fold_row_blocks(
            tile, rows.shape[0], height, row_shapes=((),)
        )
        return values

    # Stacked, not added: TensorFlow 2.20 rewrites a chain of additions in a
    # nested loop into temporary variables whose names collide.
    return ops.stack([one_way(model.image, text), one_way(model.text, image)])


def tile_rows(num_columns: int) -> int:
    """Returns the number of rows of a tile with `num_columns` columns."""
    return min(max(1, _TILE_LOGITS // num_columns), _TALLEST_TILE)


def sum_softplus(cosines: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """`sum(softplus(scale * cosines + bias), 1)`, with relative error 2e-6."""
    if cosines.shape[1] < _FUSED_COLUMNS:
        return ops.sum(ops.softplus(scale * cosines + bias), 1)
    return ops.sum(_sum_softplus_by_group(cosines, scale, bias), 1)


def log_sum_exp(cosines: Tensor, scale: Tensor) -> Tensor:
    """Computes `logsumexp(scale * cosines, 1)`."""
    if cosines.shape[1] < _FUSED_COLUMNS:
        return ops.logsumexp(scale * cosines, 1)
    return ops.logsumexp(_log_sum_exp_by_group(cosines, scale), 1)


# XLA makes one pass over the tile, TensorFlow about fifteen.
_fused = functools.partial(embeddings.compiled, jit_compile=True)


@_fused
def _sum_softplus_by_group(cosines, scale, bias):
    """Sums softplus over groups of columns, `[rows, ceil(columns / 16)]`.

    A sum of log(1 + exp(-|x|)) is the logarithm of a product of at most 2^16.
    The product is stored minus 1, to keep the precision of small terms.
    """

    def join(left, right):
        # (1 + l)(1 + r) - 1
        return left[0] + right[0], left[1] + right[1] * (1.0 + left[1])

    positive, product = _join_pairs(
        join,
        [
            (ops.relu(logits), ops.exp(-ops.abs(logits)))
            for logits in _in_groups(cosines, scale, bias)
        ],
    )
    return positive + _log1p(product)


@_fused
def _log_sum_exp_by_group(cosines, scale):
    """Log-sum-exps over groups of columns, `[rows, ceil(columns / 16)]`."""
    parts = _in_groups(cosines, scale, 0.0)
    highest = _join_pairs(ops.maximum, parts)
    sums = _join_pairs(ops.add, [ops.exp(part - highest) for part in parts])
    return highest + ops.log(sums)


def _in_groups(cosines, scale, bias):
    """Returns logits as 16 tensors, each with one column of every group.

    A group's columns lie a fixed stride apart, so that all work is elementwise
    over contiguous memory: XLA does not vectorise reductions on CPUs. Logits
    are formed per part, as a whole tile would be written out before the split.
    """
    num_columns = cosines.shape[1]
    width = -(-num_columns // _GROUP)
    padding = [[0, 0], [0, width * _GROUP - num_columns]]
    parts = []
    for n, part in enumerate(ops.split(ops.pad(cosines, padding), _GROUP, 1)):
        logits = scale * part + bias
        columns = n * width + np.arange(width)
        if columns[-1] >= num_columns:
            logits = ops.where(columns < num_columns, logits, -np.inf)
        parts.append(logits)
    return parts


def _join_pairs(join, parts):
    """Joins neighbouring parts, a power of 2 in number, until one is left."""
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [join(left, right) for left, right in pairs]
    return parts[0]


def _log1p(values):
    """Computes log(1 + values) for values >= 0, with relative error 3e-6.

    XLA's log1p is slow on CPUs: with it, draws take 1.2 to 1.7 times as long.
    """
    # The series to the fifth power; its next term is below 4e-9 of the value.
    series = values * (
        1.0
        - values
        * (1 / 2 - values * (1 / 3 - values * (1 / 4 - values * (1 / 5))))
    )
    return ops.where(values < 0.03, series, ops.log(1.0 + values))

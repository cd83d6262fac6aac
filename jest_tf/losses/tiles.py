"""Sums over the pairs of all rows with the chosen rows, tile by tile.

Each tile of logits is formed from the embeddings, summed and discarded, in
O(B b dim) operations and the memory of a tile.
"""

import functools
from collections.abc import Callable

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
    return ops.sum(_softplus_of_groups(cosines, scale, bias), 1)


def log_sum_exp(cosines: Tensor, scale: Tensor) -> Tensor:
    """Computes `logsumexp(scale * cosines, 1)`."""
    if cosines.shape[1] < _FUSED_COLUMNS:
        return ops.logsumexp(scale * cosines, 1)
    return ops.logsumexp(_log_sum_exp_of_groups(cosines, scale), 1)


# XLA makes one pass over the tile, TensorFlow about fifteen.
_fused = functools.partial(embeddings.compiled, jit_compile=True)


@_fused
def _softplus_of_groups(cosines, scale, bias):
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
def _log_sum_exp_of_groups(cosines, scale):
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

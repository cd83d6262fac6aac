"""`Embeddings`, which models, losses and selection share, and row blocks."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Embeddings(NamedTuple):
    """A two-tower model's embeddings of `n` image-text pairs.

    The logit of image i with text j is `scale * image[i] @ text[j] + bias`.

    Attributes:
        image: float32 `[n, dim]`, unit-norm rows.
        text: float32 `[n, dim]`, unit-norm rows.
        scale: float32 scalar, the inverse temperature (SigLIP's t).
        bias: float32 scalar (SigLIP's b; the softmax loss ignores it).
    """

    image: tf.Tensor
    text: tf.Tensor
    scale: tf.Tensor
    bias: tf.Tensor


def of_model(setting: str, output) -> Embeddings:
    """Returns the output of a model, a `setting`, as `Embeddings`.

    Raises:
        TypeError: it has not the four fields.
    """
    if not isinstance(output, tuple | list) or len(output) != 4:
        shown = type(output).__name__
        if isinstance(output, tuple | list):
            shown += f" of {len(output)}"
        raise TypeError(
            f"`{setting}` must map a batch to Embeddings(image, text, scale, "
            f"bias), as `TwoTower` does. Received: {shown}"
        )
    return Embeddings(*output)


def fold_row_blocks(
    body: Callable,
    num_rows: int,
    block_size: int,
    *,
    state: tuple = (),
    row_shapes: tuple = (),
) -> tuple[tuple, tuple]:
    """Runs `body` over blocks of rows, in order, one at a time.

    Args:
        body: `(state, start, size) -> (state, rows)`: `start` is an int32
            scalar, `size` a Python int, and `rows` a tuple of float32 tensors
            of `size` rows each. The last block may be smaller.
        num_rows, block_size: rows in total and per block.
        state: tensors passed from block to block, of fixed shapes.
        row_shapes: the shape of one row of each of `rows`.

    Returns:
        The last state, and `rows` of all blocks joined, `[num_rows, ...]`.
    """
    if num_rows <= block_size:
        return body(tuple(state), tf.constant(0), num_rows)
    num_blocks, rest = divmod(num_rows, block_size)
    arrays = tuple(
        tf.TensorArray(
            tf.float32, size=num_blocks, element_shape=[block_size, *shape]
        )
        for shape in row_shapes
    )

    def step(index, state, arrays):
        state, rows = body(state, index * block_size, block_size)
        written = zip(arrays, rows, strict=True)
        arrays = tuple(array.write(index, row) for array, row in written)
        return index + 1, state, arrays

    _, state, arrays = tf.while_loop(
        lambda index, *_: index < num_blocks,
        step,
        (tf.constant(0), tuple(state), arrays),
        parallel_iterations=1,
    )
    rows = tuple(
        tf.reshape(array.stack(), [num_blocks * block_size, *shape])
        for array, shape in zip(arrays, row_shapes, strict=True)
    )
    if rest:
        state, tail = body(state, tf.constant(num_blocks * block_size), rest)
        joined = zip(rows, tail, strict=True)
        rows = tuple(tf.concat([head, end], 0) for head, end in joined)
    return state, rows


def rows_from(tensor: tf.Tensor, start: tf.Tensor, size: int) -> tf.Tensor:
    """Slices `tensor[start : start + size]` with a static size, for XLA."""
    begin = [start] + [0] * (tensor.shape.rank - 1)
    return tf.slice(tensor, begin, [size, *tensor.shape[1:]])


def logaddexp(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """Computes `log(exp(left) + exp(right))`; either may be -inf."""
    high, low = tf.maximum(left, right), tf.minimum(left, right)
    total = high + tf.math.log1p(tf.exp(low - high))
    return tf.where(low > -np.inf, total, high)

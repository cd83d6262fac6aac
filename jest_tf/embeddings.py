"""`Embeddings`, which models, losses and selection share, and loops over rows.

Tensors are those of Keras' backend. Code that is faster on TensorFlow than
Keras' ops is here, in `noise.random_bits` and in `models/layers.py`.
"""

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
if ON_TENSORFLOW:
    import tensorflow as tf
elif keras.backend.backend() == "jax":
    import jax
    import tensorflow as tf

    # It only reads data, and would take the memory of the GPUs.
    with contextlib.suppress(RuntimeError):  # it runs already
        tf.config.set_visible_devices([], "GPU")
    # On TPUs, Keras 3.15's is causal, and does not scale.
    keras.config.disable_flash_attention()
else:
    raise ValueError(
        "The environment's `KERAS_BACKEND` must be 'tensorflow' or 'jax'. "
        f"Received: {keras.backend.backend()!r}"
    )

Tensor = Any  # of Keras' backend


class Embeddings(NamedTuple):
    """A two-tower model's embeddings of `n` image-text pairs.

    The logit of image i with text j is `scale * image[i] @ text[j] + bias`.

    Attributes:
        image: float32 `[n, dim]`, unit-norm rows.
        text: float32 `[n, dim]`, unit-norm rows.
        scale: float32 scalar, the inverse temperature (SigLIP's t).
        bias: float32 scalar (SigLIP's b; the softmax loss ignores it).
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor


def convert_output(setting: str, output) -> Embeddings:
    """Converts a model's output to `Embeddings`; errors name the `setting`.

    Of a Keras variable, such as a scale or a bias, it takes the current value.
    """
    if not isinstance(output, tuple | list) or len(output) != 4:
        shown = type(output).__name__
        if isinstance(output, tuple | list):
            shown += f" of {len(output)}"
        raise TypeError(
            f"`{setting}` must map a batch to Embeddings(image, text, scale, "
            f"bias), as `TwoTower` does. Received: {shown}"
        )
    return Embeddings(
        *(
            read(part) if isinstance(part, keras.Variable) else part
            for part in output
        )
    )


def check_backend(needing: str) -> None:
    """Raises ValueError, naming `needing`, unless Keras is on TensorFlow."""
    if not ON_TENSORFLOW:
        raise ValueError(
            f"{needing} needs Keras on TensorFlow, `KERAS_BACKEND=tensorflow`; "
            "docs/jax.md says what runs on JAX. Received: "
            f"{keras.backend.backend()!r}"
        )


def read(variable) -> Tensor:
    """Returns a variable's current value."""
    if ON_TENSORFLOW:  # where Keras returns the variable itself
        return tf.convert_to_tensor(variable)
    return ops.convert_to_tensor(variable)


def compiled(function: Callable, **options) -> Callable:
    """Returns `tf.function(function)`; other backends compile whole steps."""
    if not ON_TENSORFLOW:
        return function
    return tf.function(function, autograph=False, **options)


def standalone(function: Callable, model: Any = None, **options) -> Callable:
    """Compiles a function that is called outside of a step.

    Its arguments are nests of tensors, arrays and Python values. On JAX it may
    read variables of `model` alone. `options` are for `tf.function`.
    """
    if ON_TENSORFLOW:
        return compiled(function, **options)
    variables = getattr(model, "variables", ())

    @functools.partial(jax.jit, static_argnums=(2, 3))
    def run(values, arrays, others, structure):
        leaves = [
            arrays.get(place, other) for place, other in enumerate(others)
        ]
        with keras.StatelessScope(zip(variables, values, strict=True)):
            return function(*jax.tree.unflatten(structure, leaves))

    def call(*args):
        leaves, structure = jax.tree.flatten(args)
        arrays = {
            place: ops.convert_to_tensor(leaf)
            for place, leaf in enumerate(leaves)
            if hasattr(leaf, "dtype")
        }
        others = tuple(
            None if place in arrays else leaf
            for place, leaf in enumerate(leaves)
        )
        is_spread = any(
            len(array.sharding.device_set) > 1 for array in arrays.values()
        )
        values = [
            variable.value if is_spread else _local(variable.value)
            for variable in variables
        ]
        return run(values, arrays, others, structure)

    return call


def on_host() -> AbstractContextManager:
    """Context manager that runs operations on the host's CPU."""
    if ON_TENSORFLOW:
        return tf.device("CPU:0")
    return jax.default_device(jax.local_devices(backend="cpu")[0])


def _local(value):
    """Returns a variable's value on one device; it is equal on all."""
    if len(value.sharding.device_set) == 1:
        return value
    return value.addressable_data(0)


def in_float32(function: Callable) -> Callable:
    """Makes JAX multiply float32 matrices in float32 within `function`.

    By default JAX rounds them to bfloat16 on TPUs. On TensorFlow, which has no
    such option, `function` is unchanged.
    """
    if ON_TENSORFLOW:
        return function

    @functools.wraps(function)
    def exact(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return exact


def scan(
    body: Callable, count: int, state: Any, rows: tuple
) -> tuple[Any, tuple]:
    """Runs `body` `count` times in sequence, in a loop of the graph.

    Args:
        body: `(state, index) -> (state, rows)`; `index` is an int32 scalar.
        count: a Python integer.
        state: a nest of tensors passed from run to run, of fixed shapes.
        rows: a (shape, dtype) for each tensor of the `rows` of `body`.

    Returns:
        The last state, and the `rows` of all runs stacked, `[count, ...]`.
    """
    if not ON_TENSORFLOW:
        return ops.scan(body, state, ops.arange(count, dtype="int32"))
    # Keras 3.15's scan on TensorFlow gives `rows` the shapes of the state, and
    # runs up to ten iterations, each with a tile, at once.
    arrays = tuple(
        tf.TensorArray(dtype, size=count, element_shape=shape)
        for shape, dtype in rows
    )

    def step(index, state, arrays):
        state, rows = body(state, index)
        written = zip(arrays, rows, strict=True)
        arrays = tuple(array.write(index, row) for array, row in written)
        return index + 1, state, arrays

    _, state, arrays = tf.while_loop(
        lambda index, *_: index < count,
        step,
        (tf.constant(0), state, arrays),
        parallel_iterations=1,
    )
    return state, tuple(array.stack() for array in arrays)


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
    first = ops.convert_to_tensor(0, "int32")
    if num_rows <= block_size:
        return body(tuple(state), first, num_rows)
    num_blocks, rest = divmod(num_rows, block_size)
    state, rows = scan(
        lambda state, index: body(state, index * block_size, block_size),
        num_blocks,
        tuple(state),
        tuple(((block_size, *shape), "float32") for shape in row_shapes),
    )
    rows = tuple(
        ops.reshape(row, [num_blocks * block_size, *shape])
        for row, shape in zip(rows, row_shapes, strict=True)
    )
    if rest:
        state, tail = body(state, first + num_blocks * block_size, rest)
        joined = zip(rows, tail, strict=True)
        rows = tuple(ops.concatenate([head, end], 0) for head, end in joined)
    return state, rows


def rows_from(tensor: Tensor, start: Tensor, size: int) -> Tensor:
    """Slices `tensor[start : start + size]` with a static size, for XLA."""
    begin = [start] + [0] * (len(tensor.shape) - 1)
    return ops.slice(tensor, begin, [size, *tensor.shape[1:]])


def products(left: Tensor, right: Tensor) -> Tensor:
    """Multiplies rows, `[..., m, dim], [..., n, dim] -> [..., m, n]`."""
    if ON_TENSORFLOW:  # whose transpose would copy the matrix
        return tf.matmul(left, right, transpose_b=True)
    return ops.matmul(left, ops.swapaxes(right, -1, -2))


def take(values: Tensor, places: Tensor, axis: int = 0) -> Tensor:
    """Gathers slices of `values` along an axis, at non-negative `places`."""
    if ON_TENSORFLOW:  # Keras adds ops for negative places, on a GPU's host
        return tf.gather(values, places, axis=axis)
    return ops.take(values, places, axis=axis)


def logaddexp(left: Tensor, right: Tensor) -> Tensor:
    """Computes `log(exp(left) + exp(right))`; either may be -inf."""
    high, low = ops.maximum(left, right), ops.minimum(left, right)
    total = high + ops.log1p(ops.exp(low - high))
    return ops.where(low > -np.inf, total, high)


def cleaned(embeddings: Embeddings | None) -> tuple[Embeddings | None, Tensor]:
    """Replaces NaN and infinity by 0; also returns whether all were finite.

    The step goes on, with NaN in `stages/...`: XLA and TPUs raise no errors.
    """
    if embeddings is None:
        return None, ops.convert_to_tensor(True)
    flags = [ops.isfinite(part) for part in embeddings]
    zeros = map(ops.zeros_like, embeddings)
    parts = map(ops.where, flags, embeddings, zeros)
    is_finite = ops.all(ops.stack([ops.all(flag) for flag in flags]))
    return Embeddings(*parts), is_finite

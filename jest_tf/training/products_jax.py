"""Counts multiplications in the products of a traced JAX function."""

import math
from collections.abc import Callable, Sequence

import jax
import keras
import tensorflow as tf


def count(function: Callable, specs: Sequence) -> tuple[int, int]:
    """Counts multiplications of a call, as `products.count` does."""

    def call(*args):
        with keras.StatelessScope():
            return function(*args)

    shapes = tf.nest.map_structure(
        lambda spec: jax.ShapeDtypeStruct(
            tuple(spec.shape), spec.dtype.as_numpy_dtype
        ),
        tuple(specs),
    )
    jaxpr, outputs = jax.make_jaxpr(call, return_shape=True)(*shapes)
    return _multiplications(jaxpr.jaxpr), jax.tree.leaves(outputs)[0].shape[-1]


def _multiplications(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            ((axes, _), _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in axes)
            total += inner * math.prod(equation.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            # Each output value uses all of its filter.
            shape = equation.invars[1].aval.shape
            outputs = equation.params["dimension_numbers"].rhs_spec[0]
            filters = math.prod(shape) // shape[outputs]
            total += filters * math.prod(equation.outvars[0].aval.shape)
        elif name in _REFUSED or "attention" in name:
            raise ValueError(
                "FLOPs are counted in functions without branches, of matrix "
                f"products and convolutions. Received: {name}"
            )
        else:
            within = sum(map(_multiplications, _inner(equation.params)))
            if name == "while" and within:
                raise ValueError(
                    "FLOPs are counted in loops with a constant number of "
                    f"iterations. Received: {name}"
                )
            total += within * equation.params.get("length", 1)
    return total


def _inner(params):
    """Yields the programs that an equation calls."""
    for value in jax.tree.leaves(
        list(params.values()), is_leaf=lambda leaf: hasattr(leaf, "jaxpr")
    ):
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value


_REFUSED = {
    *("cond", "fft", "cholesky", "qr", "svd", "eigh", "lu"),
    *("triangular_solve", "ragged_dot", "pallas_call"),
}

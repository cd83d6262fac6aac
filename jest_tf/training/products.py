"""Counts multiplications in the products of a traced TensorFlow function."""

import math
import re
from collections.abc import Callable, Sequence

import tensorflow as tf


def count(function: Callable, specs: Sequence) -> tuple[int, int]:
    """Counts multiplications of a call; returns the result's last dimension.

    `specs` are the arguments, nests of `tf.TensorSpec` of static shape.
    """
    traced = tf.function(function, autograph=False)
    traced = traced.get_concrete_function(*specs)
    first = tf.nest.flatten(traced.structured_outputs)[0]
    return _multiplications(traced.graph), first.shape[-1]


def _multiplications(graph):
    total = 0
    for op in graph.get_operations():
        if op.type in ("PartitionedCall", "StatefulPartitionedCall"):
            # TensorFlow has no public access to the graph of a call.
            callee = graph._get_function(op.get_attr("f").name).graph
            total += _multiplications(callee)
        elif op.type in ("While", "StatelessWhile"):
            body = graph._get_function(op.get_attr("body").name).graph
            total += _iterations(op) * _multiplications(body)
        elif op.type in _PRODUCTS:
            number = _PRODUCTS[op.type](op)
            if number is None:
                raise ValueError(
                    "FLOPs are counted from shapes that are known when the "
                    f"function is traced. Received: {op.type} {op.name!r} of "
                    f"{', '.join(str(operand.shape) for operand in op.inputs)}"
                )
            total += number
        elif _REFUSED.fullmatch(op.type):
            raise ValueError(
                "FLOPs are counted in graphs without branches, of these "
                f"products: {', '.join(sorted(_PRODUCTS))}. "
                f"Received: {op.type} {op.name!r}"
            )
    return total


def _iterations(op):
    """Returns the constant `maximum_iterations` of a `tf.while_loop`.

    The loop's second input has it, or else is -1. A loop may end earlier, but
    the loops of models do not.
    """
    number = tf.get_static_value(op.inputs[1])
    if number is None or number.shape or number < 0:
        raise ValueError(
            "FLOPs are counted in loops with a constant `maximum_iterations`. "
            f"Received: {op.type} {op.name!r}"
        )
    return int(number)


def _product(*shapes):
    if any(shape.rank is None for shape in shapes):
        return None
    sizes = [size for shape in shapes for size in shape]
    return None if None in sizes else math.prod(sizes)


def _matmul(op):
    """Counts a product: each output value is a sum over the inner axis."""
    shape = op.inputs[0].shape
    if shape.rank is None:
        return None
    is_transposed = op.get_attr(
        "transpose_a" if op.type == "MatMul" else "adj_x"
    )
    axis = shape.rank - (2 if is_transposed else 1)
    return _product(op.outputs[0].shape, shape[axis : axis + 1])


def _einsum(op):
    """Counts one loop over all axes; a single input has no multiplication."""
    if len(op.inputs) == 1:
        return 0
    terms = op.get_attr("equation").decode().split("->")[0].split(",")
    sizes = {}
    for term, tensor in zip(terms, op.inputs, strict=True):
        shape = tensor.shape
        if not shape.is_fully_defined():
            return None
        before, dots, after = term.partition("...")
        between = shape.rank - len(before) - len(after) if dots else 0
        # Broadcast axes are right-aligned.
        labels = [*before, *range(-between, 0), *after]
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _convolution(op):
    """Counts a convolution: each output value uses all of its filter.

    Filters are `[..., inputs of a group, outputs]`; depthwise filters have a
    single input channel.
    """
    shape = op.inputs[1].shape
    if shape.rank is None:
        return None
    is_depthwise = op.type.startswith("Depthwise")
    return _product(op.outputs[0].shape, shape[: -2 if is_depthwise else -1])


# Multiplications by type of operation; None if a shape is unknown.
_PRODUCTS = {
    "MatMul": _matmul,
    "BatchMatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "BatchMatMulV3": _matmul,
    "Einsum": _einsum,
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "DepthwiseConv2dNative": _convolution,
}
_REFUSED = re.compile(
    r"(Stateless)?(If|Case)|\w*MatMul\w*|Conv\w*|Quantized\w*|Xla\w*|"
    r"Cudnn\w*|\w*FFT\w*|Cholesky\w*|Svd|Qr|SelfAdjointEig\w*|"
    r"Matrix(Inverse|Solve\w*|TriangularSolve|Determinant)|BlockLSTM\w*"
)

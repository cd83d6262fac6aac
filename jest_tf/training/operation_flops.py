"""What single TensorFlow operations cost, in FLOPs.

A multiplication and an addition are two. What runs other functions, such as a
loop, is the business of `training/flops.py`.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


class Flops(NamedTuple):
    """FLOPs of one kind each.

    Attributes:
        products: of matrix products and convolutions, 2 a multiplication.
        elementwise: of elementwise arithmetic and reductions on floating
            point numbers, 1 a value; without values whose number is not known.
    """

    products: int = 0
    elementwise: int = 0

    def plus(self, other: "Flops", times: int = 1) -> "Flops":
        """The sum of this and `times` the other."""
        return Flops(*(a + times * b for a, b in zip(self, other, strict=True)))


def cost(op: tf.Operation) -> Flops:
    """What an operation does that runs no other function.

    Raises:
        ValueError: on a product of unknown shape, or an operation that is known
            to be costly and not to be counted here.
    """
    if op.type in _PRODUCTS:
        multiplications = _PRODUCTS[op.type](op)
        if multiplications is None:
            raise ValueError(
                "FLOPs are counted from shapes that are known when the "
                f"function is traced. Received: {op.type} {op.name!r} of "
                f"{', '.join(str(one.shape) for one in op.inputs)}"
            )
        return Flops(products=2 * multiplications)
    if _UNCOUNTED.fullmatch(op.type):
        raise ValueError(
            "Expected products that can be counted: "
            f"{', '.join(sorted(_PRODUCTS))}. Received: {op.type} {op.name!r}"
        )
    if op.type in _ELEMENTWISE:
        values = op.outputs[0]
    elif op.type in _REDUCTIONS:
        values = op.inputs[0]
    else:
        return Flops()
    if not values.dtype.is_floating:
        return Flops()
    number = values.shape.num_elements() or 0
    # The sum of n tensors is n - 1 additions.
    return Flops(
        elementwise=number * (len(op.inputs) - 1 if op.type == "AddN" else 1)
    )


def _product(*sizes):
    """The product of sizes; None where one is not known."""
    return None if None in sizes else math.prod(sizes)


def _size(tensor):
    return tensor.shape.num_elements()


def _dimension(tensor, axis):
    return None if tensor.shape.rank is None else tensor.shape[axis]


def _matmul(op):
    axis = 0 if op.get_attr("transpose_a") else 1
    return _product(_size(op.outputs[0]), _dimension(op.inputs[0], axis))


def _batch_matmul(op):
    axis = -2 if op.get_attr("adj_x") else -1
    return _product(_size(op.outputs[0]), _dimension(op.inputs[0], axis))


def _einsum(op):
    """One loop over all axes, of which those of one input are summed first."""
    equation = op.get_attr("equation").decode()
    if len(op.inputs) == 1:
        return 0  # transposes and sums
    terms, output = equation.split("->")
    terms = terms.split(",")
    sizes, counts = {}, {}
    for term, tensor in zip(terms, op.inputs, strict=True):
        if tensor.shape.rank is None:
            return None
        for label, size in _labels(term, tensor.shape):
            # A batch axis may be 1 in one of them and then broadcasts.
            old = sizes.get(label, 1)
            sizes[label] = None if None in (old, size) else max(old, size)
            counts[label] = counts.get(label, 0) + 1
    return _product(
        *(
            size
            for label, size in sizes.items()
            if counts[label] > 1 or label in output or len(label) > 1
        )
    )


def _labels(term, shape):
    """Pairs of a label and a size; "..." gives labels "...-1" and so on."""
    before, found, after = term.partition("...")
    sizes = shape.as_list()
    yield from zip(before, sizes, strict=False)
    if found:
        middle = sizes[len(before) : len(sizes) - len(after)]
        for place, size in enumerate(reversed(middle), 1):
            yield f"...{-place}", size
        if after:
            yield from zip(after, sizes[-len(after) :], strict=True)


def _convolution(filters: Callable, positions: Callable):
    """Of a convolution or a gradient of one, in any layout.

    Every value at the output meets every weight of its filter.

    Args:
        filters: gives the tensor of the filters, [..., inputs, outputs]; of
            groups the inputs of one.
        positions: gives the tensor at the convolution's output.
    """

    def multiplications(op):
        shape = filters(op).shape
        if shape.rank is None:
            return None
        return _product(_size(positions(op)), *shape[:-1])

    return multiplications


def _depthwise(filters: Callable, positions: Callable):
    """As `_convolution`, but each filter sees one channel."""

    def multiplications(op):
        shape = filters(op).shape
        if shape.rank is None:
            return None
        return _product(_size(positions(op)), *shape[:-2])

    return multiplications


def _input(number):
    return lambda op: op.inputs[number]


def _output(op):
    return op.outputs[0]


# The multiplications of an operation, None where a shape is not known.
_PRODUCTS = {
    "MatMul": _matmul,
    "BatchMatMul": _batch_matmul,
    "BatchMatMulV2": _batch_matmul,
    "BatchMatMulV3": _batch_matmul,
    "Einsum": _einsum,
}
for _name in ("Conv2D", "Conv3D"):
    _version = "V2" if _name == "Conv3D" else ""
    _PRODUCTS |= {
        _name: _convolution(_input(1), _output),
        f"{_name}BackpropInput{_version}": _convolution(_input(1), _input(2)),
        f"{_name}BackpropFilter{_version}": _convolution(_output, _input(2)),
    }
_PRODUCTS |= {
    "DepthwiseConv2dNative": _depthwise(_input(1), _output),
    "DepthwiseConv2dNativeBackpropInput": _depthwise(_input(1), _input(2)),
    "DepthwiseConv2dNativeBackpropFilter": _depthwise(_output, _input(2)),
}

# What would be left out unseen.
_UNCOUNTED = re.compile(
    r"Sparse\w*MatMul|Quantized\w*|Xla(Dot|Conv)\w*|Cudnn\w*|\w*FFT\w*|"
    r"Cholesky\w*|Svd|Qr|SelfAdjointEig\w*|Matrix(Inverse|Solve\w*|Triangular"
    r"Solve|Determinant|Logarithm|SquareRoot)|LuDecomposition|Conv|"
    r"Conv\dD\w+|BlockLSTM\w*|GRUBlock\w*|TPUPartitionedCall|XlaLaunch\w*|"
    r"RemoteCall|SymbolicGradient|MapDefun|ParallelFor|For|Switch|Enter"
)

# One FLOP a value of the output, and of the input.
_ELEMENTWISE = frozenset(
    """
    Abs Add AddN AddV2 BiasAdd Cos Div DivNoNan Elu EluGrad Erf Erfc Exp Expm1
    GeluGrad Log Log1p LogSoftmax Maximum Minimum Mul MulNoNan Neg Pow RealDiv
    Reciprocal Relu Relu6 ReluGrad Rsqrt RsqrtGrad Selu Sigmoid SigmoidGrad Sin
    Softmax Softplus SoftplusGrad Sqrt SqrtGrad Square SquaredDifference Sub
    Tanh TanhGrad Xdivy Xlogy
    """.split()
)
_REDUCTIONS = frozenset(
    """
    BiasAddGrad Cumsum L2Loss Max Mean Min Prod Sum UnsortedSegmentSum
    """.split()
)

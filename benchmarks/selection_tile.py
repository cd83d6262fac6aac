"""The cost of a tile of logits: its matrix product, and its sums.

The parts run in one process and in turn, so that they can be compared: the
products, a pass that only reads the tile, the kernels of `selection/tiles.py`,
and TensorFlow's softplus beside ours.
"""

import time

import numpy as np
import tensorflow as tf

from benchmarks import report
from jest_tf.selection import tiles

_DIMS = (128, 768)
_INNER = 3  # calls in a row that are timed together


def run(small: bool, command: str) -> str:
    """Times the parts; the Markdown of the block."""
    rows, columns = (64, 48) if small else (4096, 1024)
    repeats = 2 if small else 40
    parts = _parts(rows, columns)
    seconds = {name: [] for name in parts}
    for call in parts.values():
        call(), call()
    for _ in range(repeats):
        for name, call in parts.items():
            start = time.perf_counter()
            for _ in range(_INNER):
                result = call()
            result.numpy()
            seconds[name].append((time.perf_counter() - start) / _INNER)
    first = np.array(seconds[next(iter(parts))])
    lines = [
        [
            name,
            report.spread(list(np.array(found) * 1e9 / (rows * columns))),
            f"{np.median(np.array(found) / first):.2f}",
        ]
        for name, found in seconds.items()
    ]
    header = ["", "ns a logit", f"of the product, D = {_DIMS[0]}"]
    return f"""## What a tile costs

    {command} tile{" --small" * small}

A tile of {rows:,} x {columns:,} logits of unit noise, float32, on all cores:
the product that forms it, and what may be done to it after. In turn in one
process, {repeats} times; lowest / median / highest, and the median of the
ratios to the product of the same turn.

{report.table(header, lines)}

{report.environment()}"""


def _parts(rows, columns):
    """By name, functions without arguments that compute on one tile."""
    random = np.random.default_rng(0)

    def unit(count, dim):
        noise = random.standard_normal((count, dim), np.float32)
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        return tf.constant(noise)

    @tf.function(autograph=False)
    def product(left, right):
        return tf.matmul(left, right, transpose_b=True)[:, 0]

    scale, bias = tf.constant(10.0), tf.constant(-10.0)
    parts = {}
    for dim in _DIMS:
        pair = unit(rows, dim), unit(columns, dim)
        parts[f"product, D = {dim}"] = lambda pair=pair: product(*pair)
    tile = tf.matmul(*pair, transpose_b=True)

    kernels = {
        "the sum of logits": lambda x: tf.reduce_sum(scale * x + bias, 1),
        "sum of softplus": lambda x: tiles.sum_softplus(x, scale, bias),
        "sum of TensorFlow's softplus": lambda x: tf.reduce_sum(
            tf.math.softplus(scale * x + bias), 1
        ),
        "log-sum-exp": lambda x: tiles.log_sum_exp(x, scale),
        "TensorFlow's log-sum-exp": lambda x: tf.reduce_logsumexp(scale * x, 1),
    }
    for name, kernel in kernels.items():
        graph = tf.function(kernel, autograph=False).get_concrete_function(tile)
        parts[name] = lambda graph=graph: graph(tile)
    return parts

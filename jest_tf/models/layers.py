"""Layers of the two towers: tokens, transformer block, pooling.

The architecture is SigLIP's (Zhai et al., 2023, section 4), after the ViT of
Dosovitskiy et al. (2021): learned positions, pre-norm blocks, and attention
pooling over image tokens with a learned probe. Every layer takes a `dtype`
policy and a `seed` of its initial weights, an integer or None.
"""

import functools
import inspect
import zlib

import keras
from keras import ops

from jest_tf import embeddings
from jest_tf.config import checks

if embeddings.ON_TENSORFLOW:
    import tensorflow as tf

_NORM_EPSILON = 1e-6  # Flax's default, used by SigLIP.

_POSITIVE = (
    "a positive integer",
    lambda value: type(value) is int and value > 0,
)


def child_seed(seed: int | None, role: str) -> int | None:
    """Derives the seed of a part, by its unique role, from the layer's seed.

    The result is in [0, 2**31), or None for None.
    """
    if seed is None:
        return None
    return zlib.crc32(f"{seed}/{role}".encode()) & 0x7FFFFFFF


class Configured(keras.layers.Layer):
    """A layer whose config has its constructor arguments, such as `seed`."""

    def part(self, role: str) -> dict:
        """Returns seed, dtype and name of the sublayer with this role."""
        seed = child_seed(self.seed, role)
        return {"seed": seed, "dtype": self.dtype_policy, "name": role}

    def token_initializer(self, role: str) -> keras.initializers.Initializer:
        """Returns a normal initializer; tokens have about unit length."""
        return keras.initializers.RandomNormal(
            stddev=self.width**-0.5, seed=child_seed(self.seed, role)
        )

    def get_config(self):
        config = super().get_config()
        for kind in type(self).__mro__:
            if issubclass(kind, Configured) and "__init__" in vars(kind):
                names = inspect.signature(kind).parameters.keys() - {"kwargs"}
                config.update({name: getattr(self, name) for name in names})
        return config


class _Transformer(Configured):
    """Base class of attention followed by an MLP.

    `parameters` has the weights by name: those of one block, or of all blocks,
    stacked over the `depth` of an encoder.
    """

    depth = None

    def __init__(
        self,
        num_heads: int,
        *,
        mlp_ratio: int = 4,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(num_heads=num_heads, mlp_ratio=mlp_ratio)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.seed = seed
        self.parameters = {}

    def build(self, input_shape):
        width = input_shape[-1]
        if width % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the width of the tokens. "
                f"Received: num_heads={self.num_heads}, width={width}"
            )
        hidden = self.mlp_ratio * width
        self._add_norm("mlp_norm", width)
        self._add_dense("mlp/expand", width, hidden, mode="fan_avg")
        self._add_dense("mlp/contract", hidden, width, mode="fan_avg")
        self.built = True

    def _add(self, name, shape, initializer, **options):
        stack = () if self.depth is None else (self.depth,)
        self.parameters[name] = self.add_weight(
            name=name, shape=stack + shape, initializer=initializer, **options
        )

    def _add_norm(self, name, width):
        self._add(f"{name}_gamma", (width,), "ones", autocast=False)
        self._add(f"{name}_beta", (width,), "zeros", autocast=False)

    def _add_dense(self, role, inputs, units, mode="fan_in"):
        """Adds a Glorot-uniform kernel, with a seed for each block, and a bias.

        The kernel may join several square projections; "fan_in" gives each its
        Glorot variance.
        """
        seeds = [self.seed]
        if self.depth is not None:
            seeds = [
                child_seed(self.seed, f"block_{index}")
                for index in range(self.depth)
            ]

        def initial(shape, dtype):
            kernels = [
                keras.initializers.VarianceScaling(
                    mode=mode,
                    distribution="uniform",
                    seed=functools.reduce(child_seed, role.split("/"), seed),
                )(shape[-2:], dtype)
                for seed in seeds
            ]
            return ops.reshape(ops.stack(kernels), shape)

        name = role.replace("/", "_")
        self._add(f"{name}_kernel", (inputs, units), initial)
        self._add(f"{name}_bias", (units,), "zeros")

    def _split_heads(self, projected, parts):
        """Splits [B, T, parts * width] into `parts` x [B, heads, T, D]."""
        length, units = projected.shape[1:]
        depth = units // (parts * self.num_heads)
        split = ops.reshape(
            projected, [-1, length, parts, self.num_heads, depth]
        )
        return ops.unstack(ops.transpose(split, [2, 0, 3, 1, 4]))


@keras.saving.register_keras_serializable(package="jest_tf")
class TokenEmbedding(Configured):
    """Looks up tokens in a table and adds their positions.

    Weights: `table` [vocabulary_size, width], `positions` [L, width]. Maps
    integers [B, L] in [0, vocabulary_size) to tokens [B, L, width].
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int,
        *,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(vocabulary_size=vocabulary_size, width=width)
        self.vocabulary_size = vocabulary_size
        self.width = width
        self.seed = seed

    def build(self, input_shape):
        self.table = self.add_weight(
            name="table",
            shape=(self.vocabulary_size, self.width),
            initializer=self.token_initializer("table"),
        )
        self.positions = self.add_weight(
            name="positions",
            shape=(input_shape[1], self.width),
            initializer=self.token_initializer("positions"),
        )
        self.built = True

    def call(self, tokens):
        table = embeddings.read(self.table)
        return embeddings.take(table, tokens) + self.positions


@keras.saving.register_keras_serializable(package="jest_tf")
class Encoder(_Transformer):
    """`depth` pre-norm transformer blocks and a final layer normalisation.

    A block maps tokens [B, T, width] to the same shape: x <- x +
    attention(norm(x)), then x <- x + mlp(norm(x)). Each attention head computes
    softmax(q k^T / sqrt(width / num_heads)) v, unmasked, with the softmax in
    float32 under any policy.

    One block is traced. A loop runs it with weights stacked over depth, such as
    `attention_qkv_kernel` [depth, width, 3 width], so tracing and compiling
    take the time of one block at any depth. A factor per block, such as one of
    the learning rate, multiplies a weight's update as [depth, 1, ...].
    """

    def __init__(self, depth: int, num_heads: int, **kwargs):
        super().__init__(num_heads, **kwargs)
        check_positive(depth=depth)
        self.depth = depth

    def build(self, input_shape):
        super().build(input_shape)
        width = input_shape[-1]
        self._add_norm("attention_norm", width)
        self._add_dense("attention/qkv", width, 3 * width)
        self._add_dense("attention/out", width, width)
        self.norm = keras.layers.LayerNormalization(
            epsilon=_NORM_EPSILON, dtype=self.dtype_policy, name="norm"
        )
        self.norm.build(input_shape)

    def call(self, tokens):
        def block(weights, tokens):
            hidden = _normalise(tokens, weights, "attention_norm")
            qkv = _dense(hidden, weights, "attention_qkv")
            mixed = attend(*self._split_heads(qkv, 3))
            tokens += _dense(mixed, weights, "attention_out")
            return tokens + _mlp(tokens, weights)

        return self.norm(_over_blocks(block, _tensors(self.parameters), tokens))


@keras.saving.register_keras_serializable(package="jest_tf")
class AttentionPooling(_Transformer):
    """Pools tokens by attention from one learned probe (SigLIP's MAP head).

    x = attention(probe, tokens), then x + mlp(norm(x)). Maps tokens
    [B, T, width] to [B, width]. Arguments are those of `Encoder` but `depth`.

    Reference: Zhai et al., Scaling Vision Transformers, 2022, section 3.1.
    """

    def build(self, input_shape):
        super().build(input_shape)
        width = input_shape[-1]
        seed = child_seed(self.seed, "probe")
        self._add("probe", (1, width), keras.initializers.GlorotUniform(seed))
        self._add_dense("query", width, width)
        self._add_dense("key_value", width, 2 * width)
        self._add_dense("out", width, width)

    def call(self, tokens):
        weights = _tensors(self.parameters)
        # The probe is the same for every image: [1, heads, 1, D] broadcasts.
        query = _dense(weights["probe"], weights, "query")
        (query,) = self._split_heads(query[None], 1)
        key_value = _dense(tokens, weights, "key_value")
        key, value = self._split_heads(key_value, 2)
        pooled = _dense(attend(query, key, value)[:, 0], weights, "out")
        return pooled + _mlp(pooled, weights)


def check_positive(**values: int) -> None:
    """Raises ValueError unless all arguments are positive integers."""
    for name, value in values.items():
        checks.check(name, value, _POSITIVE)


def _tensors(variables):
    return {
        name: embeddings.read(variable) for name, variable in variables.items()
    }


def _over_blocks(block, stacks, tokens):
    """Applies `(weights, tokens) -> tokens` for each stacked block."""
    depth = next(iter(stacks.values())).shape[0]
    if not embeddings.ON_TENSORFLOW:

        def step(tokens, weights):
            return block(weights, tokens), None

        return ops.scan(step, tokens, stacks)[0]
    # TensorArrays: the gradient of a read writes one element. The gradient of a
    # slice would also add zeros for all other blocks.
    arrays = {
        name: tf.TensorArray(
            value.dtype,
            depth,
            element_shape=value.shape[1:],
            clear_after_read=False,
        ).unstack(value)
        for name, value in stacks.items()
    }

    def step(index, tokens):
        weights = {name: array.read(index) for name, array in arrays.items()}
        return index + 1, block(weights, tokens)

    # XLA and the count of FLOPs need the number of iterations.
    return tf.while_loop(
        lambda *_: True,
        step,
        (tf.constant(0), tokens),
        maximum_iterations=depth,
    )[1]


def _dense(values, weights, name):
    """Computes values @ kernel + bias, as a single matrix product."""
    kernel = weights[f"{name}_kernel"]
    rows = ops.matmul(ops.reshape(values, [-1, values.shape[-1]]), kernel)
    bias = weights[f"{name}_bias"]
    rows = (
        tf.nn.bias_add(rows, bias) if embeddings.ON_TENSORFLOW else rows + bias
    )
    return ops.reshape(rows, [-1, *values.shape[1:-1], kernel.shape[-1]])


def _normalise(values, weights, name):
    """Applies layer normalisation, in float32 under any policy."""
    exact = ops.cast(values, "float32")
    exact -= ops.mean(exact, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(exact), axis=-1, keepdims=True)
    exact *= ops.rsqrt(variance + _NORM_EPSILON)
    exact = exact * weights[f"{name}_gamma"] + weights[f"{name}_beta"]
    return ops.cast(exact, values.dtype)


def _mlp(tokens, weights):
    hidden = _normalise(tokens, weights, "mlp_norm")
    # The tanh form is Flax's default, hence SigLIP's.
    hidden = ops.gelu(_dense(hidden, weights, "mlp_expand"), approximate=True)
    return _dense(hidden, weights, "mlp_contract")


def attend(query, key, value):
    """Attends, [b, heads, S, D] over [B, heads, T, D] -> [B, S, width].

    b is B or 1. The softmax is in float32 under any policy.
    """
    heads, num_queries, depth = query.shape[1:]
    query *= ops.cast(depth**-0.5, query.dtype)
    # [B, heads, S, D] x [B, heads, T, D] -> [B, heads, S, T]
    logits = ops.cast(embeddings.products(query, key), "float32")
    # Keras warns about a softmax over a single token, as in a coarse view.
    weights = ops.softmax(logits) if logits.shape[-1] > 1 else 0 * logits + 1
    weights = ops.cast(weights, value.dtype)
    # [B, heads, S, D] -> [B, S, heads * D]
    mixed = ops.transpose(ops.matmul(weights, value), [0, 2, 1, 3])
    return ops.reshape(mixed, [-1, num_queries, heads * depth])

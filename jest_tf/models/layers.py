"""Layers of the two towers: tokens, transformer block, pooling.

The architecture is SigLIP's (Zhai et al., 2023, section 4), after the ViT of
Dosovitskiy et al. (2021): learned positions, pre-norm blocks, and attention
pooling over image tokens with a learned probe. Every layer takes a `dtype`
policy and a `seed` of its initial weights and dropout, an integer or None.
"""

# Classes document build, call and get_config.
# ruff: noqa: D102

import inspect
import zlib

import keras
import tensorflow as tf

from jest_tf import distribution
from jest_tf.selection import noise

# Odd, so that no two replicas get the same seed.
_REPLICA_SALT = 0x3C6EF373

_NORM_EPSILON = 1e-6  # Flax's default, used by SigLIP.


def child_seed(seed: int | None, role: str) -> int | None:
    """Derives the seed of a part, by its unique role, from the layer's seed.

    The result is in [0, 2**31), or None for None.
    """
    if seed is None:
        return None
    return zlib.crc32(f"{seed}/{role}".encode()) & 0x7FFFFFFF


class Configured(keras.layers.Layer):
    """A layer that stores its constructor arguments, among them `seed`."""

    def part(self, role: str) -> dict:
        """Returns seed, dtype and name of the sublayer with this role."""
        seed = child_seed(self.seed, role)
        return {"seed": seed, "dtype": self.dtype_policy, "name": role}

    def get_config(self):
        config = super().get_config()
        for kind in type(self).__mro__:
            if issubclass(kind, Configured) and "__init__" in vars(kind):
                names = inspect.signature(kind).parameters.keys() - {"kwargs"}
                config.update({name: getattr(self, name) for name in names})
        return config


class _Transformer(Configured):
    def __init__(
        self,
        num_heads: int,
        *,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive("num_heads", num_heads)
        check_dropout(dropout)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.dropout = dropout
        self.seed = seed

    def _mlp(self):
        return MLP(
            ratio=self.mlp_ratio, dropout=self.dropout, **self.part("mlp")
        )


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
        check_positive("vocabulary_size", vocabulary_size)
        check_positive("width", width)
        self.vocabulary_size = vocabulary_size
        self.width = width
        self.seed = seed

    def build(self, input_shape):
        self.table = self.add_weight(
            name="table",
            shape=(self.vocabulary_size, self.width),
            initializer=token_initializer(
                self.width, child_seed(self.seed, "table")
            ),
        )
        self.positions = self.add_weight(
            name="positions",
            shape=(input_shape[1], self.width),
            initializer=token_initializer(
                self.width, child_seed(self.seed, "positions")
            ),
        )
        self.built = True

    def call(self, tokens):
        table = tf.convert_to_tensor(self.table)
        return tf.gather(table, tokens) + self.positions


# Measured with TensorFlow 2.20 and Keras 3.15 on two CPU cores in graph mode,
# forward / forward and backward: for [256, 16, 96] with three heads this layer
# takes 3.9 / 7.2 ms and keras.layers.MultiHeadAttention 3.7 / 10.2 ms; for
# [1280, 16, 96] 12.4 / 28.0 ms against 12.6 / 61.5 ms.
@keras.saving.register_keras_serializable(package="jest_tf")
class SelfAttention(Configured):
    """Multi-head self-attention with a joint projection of q, k and v.

    Each head computes softmax(q k^T / sqrt(width / num_heads)) v, unmasked,
    with the softmax in float32 under any policy. Maps tokens [B, T, width] to
    the same shape; `num_heads` must divide the width.
    """

    def __init__(self, num_heads: int, *, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        check_positive("num_heads", num_heads)
        self.num_heads = num_heads
        self.seed = seed

    def build(self, input_shape):
        width = input_shape[-1]
        _check_heads(self.num_heads, width)
        self.qkv = _projection(3 * width, self, "qkv")
        self.out = _projection(width, self, "out")
        self.qkv.build(input_shape)
        self.out.build(input_shape)
        self.built = True

    def call(self, tokens):
        length, width = tokens.shape[1:]
        qkv = tf.reshape(
            self.qkv(tokens),
            [-1, length, 3, self.num_heads, width // self.num_heads],
        )
        # [B, T, 3, heads, D] -> 3 x [B, heads, T, D]
        query, key, value = tf.unstack(tf.transpose(qkv, [2, 0, 3, 1, 4]))
        return self.out(_attend(query, key, value))


@keras.saving.register_keras_serializable(package="jest_tf")
class MLP(Configured):
    """Two dense layers with a GELU between them, on tokens [..., width].

    Args:
        ratio: hidden width over the width of the tokens.
        dropout: share of hidden units dropped in training, in [0, 1).
        seed: see the module.
    """

    def __init__(
        self,
        *,
        ratio: int = 4,
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive("ratio", ratio)
        check_dropout(dropout)
        self.ratio = ratio
        self.dropout = dropout
        self.seed = seed

    def build(self, input_shape):
        width = input_shape[-1]
        hidden_shape = (*input_shape[:-1], self.ratio * width)
        self.expand = dense(hidden_shape[-1], self, "expand")
        self.contract = dense(width, self, "contract")
        self.drop = Dropout(self.dropout, **self.part("drop"))
        self.expand.build(input_shape)
        self.contract.build(hidden_shape)
        self.built = True

    def call(self, tokens, training=None):
        # The tanh form is Flax's default, hence SigLIP's.
        hidden = tf.nn.gelu(self.expand(tokens), approximate=True)
        return self.contract(self.drop(hidden, training=training))


@keras.saving.register_keras_serializable(package="jest_tf")
class TransformerBlock(_Transformer):
    """A pre-norm transformer block on tokens [B, T, width].

    x <- x + attention(norm(x)), then x <- x + mlp(norm(x)).

    Args:
        num_heads: number of attention heads; must divide the width.
        mlp_ratio: hidden width of the MLP over the width of the tokens.
        dropout: share of units dropped in training after attention, inside
            the MLP and after it, in [0, 1).
        seed: see the module.
    """

    def build(self, input_shape):
        self.attention_norm = _layer_norm(self, "attention_norm")
        self.attention = SelfAttention(self.num_heads, **self.part("attention"))
        self.attention_drop = Dropout(
            self.dropout, **self.part("attention_drop")
        )
        self.mlp_norm = _layer_norm(self, "mlp_norm")
        self.mlp = self._mlp()
        self.mlp_drop = Dropout(self.dropout, **self.part("mlp_drop"))
        self.attention_norm.build(input_shape)
        self.attention.build(input_shape)
        self.mlp_norm.build(input_shape)
        self.mlp.build(input_shape)
        self.built = True

    def call(self, tokens, training=None):
        update = self.attention(self.attention_norm(tokens))
        tokens += self.attention_drop(update, training=training)
        update = self.mlp(self.mlp_norm(tokens), training=training)
        return tokens + self.mlp_drop(update, training=training)


@keras.saving.register_keras_serializable(package="jest_tf")
class Encoder(_Transformer):
    """`depth` transformer blocks and a final layer normalisation.

    Other arguments are as for `TransformerBlock`.
    """

    def __init__(self, depth: int, num_heads: int, **kwargs):
        super().__init__(num_heads, **kwargs)
        check_positive("depth", depth)
        self.depth = depth

    def build(self, input_shape):
        self.blocks = [
            TransformerBlock(
                self.num_heads,
                mlp_ratio=self.mlp_ratio,
                dropout=self.dropout,
                **self.part(f"block_{index}"),
            )
            for index in range(self.depth)
        ]
        self.norm = _layer_norm(self, "norm")
        for layer in (*self.blocks, self.norm):
            layer.build(input_shape)
        self.built = True

    def call(self, tokens, training=None):
        for block in self.blocks:
            tokens = block(tokens, training=training)
        return self.norm(tokens)


@keras.saving.register_keras_serializable(package="jest_tf")
class AttentionPooling(_Transformer):
    """Pools tokens by attention from one learned probe (SigLIP's MAP head).

    x = attention(probe, tokens), then x + mlp(norm(x)). Maps tokens
    [B, T, width] to [B, width]. Arguments are as for `TransformerBlock`, but
    dropout only acts on the hidden units of the MLP.

    Reference: Zhai et al., Scaling Vision Transformers, 2022, section 3.1.
    """

    def build(self, input_shape):
        width = input_shape[-1]
        _check_heads(self.num_heads, width)
        self.probe = self.add_weight(
            name="probe",
            shape=(1, width),
            initializer=keras.initializers.GlorotUniform(
                child_seed(self.seed, "probe")
            ),
        )
        self.query = _projection(width, self, "query")
        self.key_value = _projection(2 * width, self, "key_value")
        self.out = _projection(width, self, "out")
        self.mlp_norm = _layer_norm(self, "mlp_norm")
        self.mlp = self._mlp()
        self.key_value.build(input_shape)
        for layer in (self.query, self.out, self.mlp_norm, self.mlp):
            layer.build((None, width))
        self.built = True

    def call(self, tokens, training=None):
        length, width = tokens.shape[1:]
        heads, depth = self.num_heads, width // self.num_heads
        # The probe is the same for every image: [1, heads, 1, D] broadcasts.
        query = self.query(tf.convert_to_tensor(self.probe))
        query = tf.reshape(query, [1, heads, 1, depth])
        key_value = tf.reshape(
            self.key_value(tokens), [-1, length, 2, heads, depth]
        )
        # [B, T, 2, heads, D] -> 2 x [B, heads, T, D]
        key, value = tf.unstack(tf.transpose(key_value, [2, 0, 3, 1, 4]))
        pooled = self.out(_attend(query, key, value)[:, 0])
        return pooled + self.mlp(self.mlp_norm(pooled), training=training)


def token_initializer(
    width: int, seed: int | None
) -> keras.initializers.Initializer:
    """Returns a normal initializer of token tables, of about unit length."""
    return keras.initializers.RandomNormal(stddev=width**-0.5, seed=seed)


def check_positive(name: str, value: int) -> None:
    """Raises ValueError unless the argument `name` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )


@keras.saving.register_keras_serializable(package="jest_tf")
class Dropout(keras.layers.Dropout):
    """Keras' dropout with a mask per replica and a saved seed.

    Keras 3.15 draws the same mask on every replica and does not save the next
    seed. Masks are the same eagerly, in a graph and under XLA. Takes the
    arguments of `keras.layers.Dropout` except `noise_shape`.
    """

    def call(self, inputs, training=False):
        if not training or not self.rate:
            return inputs
        seed = tf.cast(self.seed_generator.next(), tf.int32)
        replica = tf.stack([distribution.replica_id(), 0])
        seed += _REPLICA_SALT * replica
        uniform = noise.uniform(tf.shape(inputs), seed)
        kept = inputs * tf.cast(1 / (1 - self.rate), inputs.dtype)
        return tf.where(uniform < self.rate, tf.zeros_like(inputs), kept)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self.rate:
            store["seed"] = self.seed_generator.state.numpy()

    def load_own_variables(self, store):
        if self.rate:
            self.seed_generator.state.assign(store["seed"])


def check_dropout(rate: float) -> None:
    """Raises ValueError unless `rate` is in [0, 1)."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(
            f"`dropout` must be in [0, 1). Received: dropout={rate!r}"
        )


def dense(
    units: int, layer: keras.layers.Layer, name: str
) -> keras.layers.Dense:
    """Creates a Glorot-uniform dense sublayer of a seeded `layer`."""
    return keras.layers.Dense(
        units,
        kernel_initializer=keras.initializers.GlorotUniform(
            child_seed(layer.seed, name)
        ),
        dtype=layer.dtype_policy,
        name=name,
    )


def _attend(query, key, value):
    """[b, heads, S, D] over [B, heads, T, D] -> [B, S, width]; b is B or 1."""
    heads, num_queries, depth = query.shape[1:]
    query *= tf.cast(depth**-0.5, query.dtype)
    # [B, heads, S, D] x [B, heads, T, D] -> [B, heads, S, T]
    logits = tf.cast(tf.matmul(query, key, transpose_b=True), tf.float32)
    weights = tf.cast(tf.nn.softmax(logits), value.dtype)
    # [B, heads, S, D] -> [B, S, heads * D]
    mixed = tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3])
    return tf.reshape(mixed, [-1, num_queries, heads * depth])


def _check_heads(num_heads, width):
    if width % num_heads:
        raise ValueError(
            f"`num_heads` must divide the width of the tokens. "
            f"Received: num_heads={num_heads}, width={width}"
        )


def _layer_norm(layer, name):
    return keras.layers.LayerNormalization(
        epsilon=_NORM_EPSILON, dtype=layer.dtype_policy, name=name
    )


def _projection(units, layer, name):
    # The kernel may join several square projections. Scaling by the fan-in
    # gives each its Glorot variance.
    return keras.layers.Dense(
        units,
        kernel_initializer=keras.initializers.VarianceScaling(
            scale=1.0,
            mode="fan_in",
            distribution="uniform",
            seed=child_seed(layer.seed, name),
        ),
        dtype=layer.dtype_policy,
        name=name,
    )

"""Random floats that are bitwise equal eagerly, in a graph and under XLA.

Their bits are those of TensorFlow's Philox4x32-10 on every backend.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from keras import ops

from jest_tf import embeddings
from jest_tf.embeddings import Tensor


class Placed(NamedTuple):
    """A seed for rows that have changed places: each keeps a place's noise."""

    seed: Sequence[int] | Tensor
    places: Tensor  # int32 [B]


Seed = Sequence[int] | Tensor | Placed

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_SCRAMBLE = 0x3EC8F720, 0x02461E29


def uniform(shape, seed: Tensor, *, bits: int = 24) -> Tensor:
    """Draws uniform multiples of 2**-bits in [0, 1), float32 of `shape`.

    Philox gives the same integers with and without XLA; TensorFlow's kernels
    and XLA convert them to different floats. `seed` is int `[2]`; float32 holds
    up to 24 `bits` exactly.
    """
    integers = ops.right_shift(random_bits(shape, seed), _uint32(32 - bits))
    return ops.cast(integers, "float32") * 2.0**-bits


def random_bits(shape, seed: Tensor) -> Tensor:
    """Draws random uint32 of `shape` by Philox, from a seed, int `[2]`."""
    if not embeddings.ON_TENSORFLOW:
        return philox_bits(shape, seed)
    import tensorflow as tf

    # One kernel, instead of some two hundred ops of `philox_bits`.
    return tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
    )


def philox_bits(shape, seed: Tensor) -> Tensor:
    """Draws `random_bits` by ops of every backend; `shape` is static.

    Reference: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
    3"; the seed is scrambled as in TensorFlow's `StatelessRandomGetKeyCounter`.
    """
    seed = ops.cast(seed, "int32")
    words = []
    for part in ops.unstack(seed):  # sign-extended to 64 bits
        words += [part, ops.where(part < 0, -1, 0)]
    words = [ops.cast(word, "uint32") for word in words]
    *key, third, fourth = _philox(words, map(_uint32, _SCRAMBLE))
    size = math.prod(shape)
    index = ops.cast(ops.arange(-(-size // 4), dtype="int32"), "uint32")
    zeros = ops.zeros_like(index)
    counter = [index, zeros, zeros + third, zeros + fourth]
    bits = ops.stack(_philox(counter, key), 1)
    return ops.reshape(ops.reshape(bits, [-1])[:size], shape)


def _philox(counter, key):
    """Runs ten rounds on four words of 32 bits, with a key of two words."""
    # In a loop: XLA recomputes the words of unrolled rounds for each use, which
    # took 70 times as long on CPUs.
    return ops.fori_loop(0, 10, _philox_round, (*counter, *key))[:4]


# At module level, so that eager JAX compiles the loop once for each size.
def _philox_round(_, words):
    first, second, third, fourth, left, right = words
    high, low = _multiply(_MULTIPLIERS[0], first)
    other_high, other_low = _multiply(_MULTIPLIERS[1], third)
    return (
        *(other_high ^ second ^ left, other_low),
        *(high ^ fourth ^ right, low),
        *(left + _uint32(_WEYL[0]), right + _uint32(_WEYL[1])),
    )


def _multiply(constant, words):
    """Returns a product's high and low 32 bits, from halves of 16 bits."""
    half, mask = _uint32(16), _uint32(0xFFFF)
    low, high = _uint32(constant & 0xFFFF), _uint32(constant >> 16)
    below, above = words & mask, ops.right_shift(words, half)
    outer = low * above
    middle = ops.right_shift(low * below, half) + high * below + (outer & mask)
    carry = ops.right_shift(outer, half) + ops.right_shift(middle, half)
    return high * above + carry, _uint32(constant) * words


def _uint32(value):
    return ops.convert_to_tensor(np.uint32(value))


def gumbel_noise(seed: Seed, num_chunks: int, super_batch_size: int) -> Tensor:
    """Draws standard Gumbel noise for every chunk and row of a draw.

    The top k rows of `logits + noise` are k rows drawn without replacement
    with p proportional to exp(logits) (Kool et al. 2019, arXiv 1903.06059).

    Args:
        seed: two integers, (run seed, step), or `Placed`.
        num_chunks: N.
        super_batch_size: B.

    Returns:
        float32 `[N, B]`, a deterministic function of the arguments.
    """
    if isinstance(seed, Placed):
        noise = gumbel_noise(seed.seed, num_chunks, super_batch_size)
        return embeddings.take(noise, seed.places, axis=1)
    # The midpoints of 2^23 cells of (0, 1): never 0 or 1, exact in float32.
    cells = uniform([num_chunks, super_batch_size], seed_tensor(seed), bits=23)
    return -ops.log(-ops.log(cells + 2.0**-24))


def salted(seed: Seed, salt: int) -> Seed:
    """Returns a seed for the same rows, with independent noise."""
    if isinstance(seed, Placed):
        return seed._replace(seed=salted(seed.seed, salt))
    return ops.bitwise_xor(seed_tensor(seed), [salt, 0])


def seed_tensor(seed: Seed) -> Tensor:
    """Converts a seed of two integers to int32 `[2]`, or raises ValueError."""
    if isinstance(seed, (tuple, list)):
        seed = ops.stack([ops.cast(part, "int32") for part in seed])
    seed = ops.cast(ops.convert_to_tensor(seed), "int32")
    if seed.shape != (2,):
        raise ValueError(
            "`seed` must be two integers, (run seed, step). "
            f"Received: shape {seed.shape}"
        )
    return seed

"""Random floats that are bitwise equal eagerly, in a graph and under XLA."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf


class Placed(NamedTuple):
    """A seed for rows that have changed places: each keeps its noise.

    Attributes:
        seed: two integers, (run seed, step).
        places: int32 `[B]`, the place of each row when it had the noise.
    """

    seed: Sequence[int] | tf.Tensor
    places: tf.Tensor


Seed = Sequence[int] | tf.Tensor | Placed


def uniform(shape, seed: tf.Tensor, *, bits: int = 24) -> tf.Tensor:
    """Draws uniform multiples of 2**-bits in [0, 1), float32 of `shape`.

    Philox gives the same integers with and without XLA; TensorFlow's kernels
    and XLA convert them to different floats. `seed` is int `[2]`; float32 holds
    up to 24 `bits` exactly.
    """
    integers = tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
    )
    integers = tf.bitwise.right_shift(integers, 32 - bits)
    return tf.cast(integers, tf.float32) * 2.0**-bits


def gumbel_noise(
    seed: Seed, num_chunks: int, super_batch_size: int
) -> tf.Tensor:
    """Draws standard Gumbel noise for every chunk and row of a draw.

    The top k rows of `logits + noise` are k rows drawn without replacement
    with p proportional to exp(logits) (Kool et al. 2019, arXiv 1903.06059).

    Args:
        seed: two integers, (run seed, step), or `Placed`.
        num_chunks: N.
        super_batch_size: B.

    Returns:
        float32 `[N, B]`, a deterministic function of the arguments.

    Raises:
        ValueError: unless `seed` is two integers.
    """
    if isinstance(seed, Placed):
        found = gumbel_noise(seed.seed, num_chunks, super_batch_size)
        return tf.gather(found, seed.places, axis=1)
    # The middles of 2^23 cells of (0, 1): never 0 or 1, and exact in float32.
    cells = uniform([num_chunks, super_batch_size], seed_tensor(seed), bits=23)
    return -tf.math.log(-tf.math.log(cells + 2.0**-24))


def salted(seed: Seed, salt: int) -> Seed:
    """Returns a seed of the same rows whose noise is independent."""
    if isinstance(seed, Placed):
        return seed._replace(seed=salted(seed.seed, salt))
    return tf.bitwise.bitwise_xor(seed_tensor(seed), [salt, 0])


def seed_tensor(seed: Seed) -> tf.Tensor:
    """Converts a seed to int32 `[2]`; raises ValueError unless two integers."""
    if isinstance(seed, (tuple, list)):
        seed = tf.stack([tf.cast(part, tf.int32) for part in seed])
    seed = tf.cast(tf.convert_to_tensor(seed), tf.int32)
    if seed.shape != (2,):
        raise ValueError(
            "`seed` must be two integers, (run seed, step). "
            f"Received: shape {seed.shape}"
        )
    return seed

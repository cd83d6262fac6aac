"""First weights of a run, equal on both backends."""

import contextlib
import functools
from collections.abc import Iterator

import keras
import tensorflow as tf
from keras.src import backend  # has the functions that initializers call

from jest_tf.embeddings import ON_TENSORFLOW

_DRAWS = {
    "normal": tf.random.stateless_normal,
    "truncated_normal": tf.random.stateless_truncated_normal,
    "uniform": tf.random.stateless_uniform,
}


@contextlib.contextmanager
def by_tensorflow() -> Iterator[None]:
    """Context manager in which Keras' initializers draw TensorFlow's numbers.

    On JAX, Keras would draw others from the same seed, and a run would begin
    elsewhere. Initializers with a `SeedGenerator` are unchanged.
    """
    if ON_TENSORFLOW:
        yield
        return
    theirs = {name: getattr(backend.random, name) for name in _DRAWS}
    try:
        for name, draw in _DRAWS.items():
            ours = functools.partial(_draw, theirs[name], draw)
            setattr(backend.random, name, ours)
        yield
    finally:
        for name, draw in theirs.items():
            setattr(backend.random, name, draw)


def _draw(theirs, draw, shape, *args, seed=None, dtype=None, **kwargs):
    if not isinstance(seed, int):
        return theirs(shape, *args, seed=seed, dtype=dtype, **kwargs)
    dtype = dtype or keras.config.floatx()
    # Seeds as Keras makes them on TensorFlow.
    seed = [seed % (tf.int32.max - 1), 0]
    with tf.device("CPU:0"):
        drawn = draw(shape, seed, *args, dtype=dtype, **kwargs)
    return keras.ops.convert_to_tensor(drawn.numpy())

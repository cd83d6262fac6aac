"""64-bit integers as halves, for devices that have none."""

import tensorflow as tf


def in_halves(data):
    """Replaces int64 `[n]` by int32 `[n, 2]`, in a batch or a dataset."""
    if isinstance(data, tf.data.Dataset):
        return data.map(in_halves)
    return tf.nest.map_structure(
        lambda value: (
            tf.bitcast(value, tf.int32)
            if getattr(value, "dtype", None) == tf.int64
            else value
        ),
        data,
    )


def join_halves(numbers: tf.Tensor) -> tf.Tensor:
    """Joins int32 `[n, 2]`, used on TPUs, to int64 `[n]`; keeps other types."""
    if numbers.dtype == tf.int32 and numbers.shape.rank == 2:
        return tf.bitcast(numbers, tf.int64)
    return numbers

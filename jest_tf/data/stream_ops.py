"""The order of examples in TensorFlow's ops, bit for bit that of `stream.py`.

For datasets that run where Python does not: see `data/ops_reader.py`. NumPy's
order is the definition; this is the part of it without mixtures and weights.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from jest_tf.data import reader, stream


@dataclasses.dataclass(frozen=True)
class Order:
    """`stream.Order` without row weights, of tensors.

    Attributes:
        num_records: n.
        seed: the run's seed.
        block_size: as in `stream.Order`.
    """

    num_records: int
    seed: int
    block_size: int | None = None

    def rows(self, positions: tf.Tensor) -> tf.Tensor:
        """Returns rows, int64 [k] in [0, n), at int64 positions [k]."""
        epochs = _unsigned(positions // self.num_records)
        offsets = positions % self.num_records
        if self.block_size is not None:
            return self._rows_in_blocks(epochs, offsets)
        keys = uniform_hash(self.seed, epochs, stream.ORDER_SALT)
        return _permute(offsets, self.num_records, keys)

    def substitutes(self, positions: tf.Tensor, attempt: tf.Tensor):
        """Returns random rows, int64 [k]; see `stream.Order.substitutes`.

        `attempt` is int64 [].
        """
        salt = stream.SUBSTITUTE_SALT + attempt
        values = uniform_hash(self.seed, _unsigned(positions), salt)
        return _signed(values % _unsigned(self.num_records))

    def _rows_in_blocks(self, epochs, offsets):
        """As `_Blocks.rows` of `stream.py`, line by line."""
        n, size = self.num_records, min(self.block_size, self.num_records)
        num_full, tail = divmod(n, size)
        num_slots = num_full + bool(tail)
        num_windows = max(1, num_slots // stream.WINDOW_BLOCKS)
        last = num_slots - (num_windows - 1) * stream.WINDOW_BLOCKS
        largest = min(n, last * size)

        def slots_of(offsets):
            starts = tails * size
            behind = (offsets - tail) // size + 1
            slots = tf.where(offsets < starts, offsets // size, behind)
            inside = (offsets >= starts) & (offsets < starts + tail)
            return tf.where(inside, tails, slots)

        def starts_of(slots):
            shortened = tf.cast(slots > tails, tf.int64)
            return slots * size - (size - tail) * shortened

        tails = tf.fill(tf.shape(offsets), tf.constant(num_full, tf.int64))
        if tail:
            places = uniform_hash(self.seed, epochs, stream.TAIL_SALT)
            tails = _signed(places % _unsigned(num_full + 1))
        windows = tf.minimum(
            slots_of(offsets) // stream.WINDOW_BLOCKS, num_windows - 1
        )
        starts = starts_of(windows * stream.WINDOW_BLOCKS)
        ends = tf.where(
            windows == num_windows - 1,
            tf.constant(n, tf.int64),
            starts_of((windows + 1) * stream.WINDOW_BLOCKS),
        )
        keys = uniform_hash(self.seed, epochs, stream.WINDOW_SALT)
        keys = _mix(keys + _unsigned(windows) * _GOLDEN)
        mixed = starts + _permute(
            offsets - starts, ends - starts, keys, largest
        )
        slots = slots_of(mixed)
        blocks = tf.fill(tf.shape(slots), tf.constant(num_full, tf.int64))
        if num_full:
            keys = uniform_hash(self.seed, epochs, stream.ORDER_SALT)
            full = slots != tails
            # The short block's own number is replaced again.
            numbers = tf.where(full, slots - _signed(slots > tails), 0)
            blocks = tf.where(full, _permute(numbers, num_full, keys), blocks)
        return blocks * size + mixed - starts_of(slots)


def caption_numbers(seed: int, positions: tf.Tensor) -> tf.Tensor:
    """Returns `reader.caption_numbers` of int64 [k]: int64 [k]."""
    values = uniform_hash(seed, _unsigned(positions), reader.CAPTION_SALT)
    return _signed(tf.bitwise.right_shift(values, _ONE))


def uniform_hash(
    seed: int, values: tf.Tensor, salt: int | tf.Tensor
) -> tf.Tensor:
    """Returns `stream.uniform_hash` of uint64 [k]: uint64 [k]."""
    seed_key = _mix(_unsigned(seed) + _GOLDEN)
    key = _mix(seed_key + _THREE * _mix(_unsigned(salt) + _GOLDEN))
    return _mix(tf.bitwise.bitwise_xor(_mix(values + _GOLDEN), key))


def _permute(values, sizes, keys, largest=None):
    """As in `stream.py`; int64 [k], int64 [k] or an integer, uint64 [k]."""
    bits = ((largest or sizes) - 1).bit_length()
    half_bits = max(1, (bits + 1) // 2)
    values, sizes = _unsigned(values), _unsigned(sizes)

    def walk(values, pending):
        walked = _encrypt(values, keys, half_bits)
        values = tf.where(pending, walked, values)
        return values, pending & (values >= sizes)

    values, _ = tf.while_loop(
        lambda values, pending: tf.reduce_any(pending),
        walk,
        [values, tf.ones_like(values, tf.bool)],
    )
    swaps = (
        (values < _TWO)
        & (sizes > _ONE)
        & (tf.bitwise.bitwise_and(keys, _ONE) == _ONE)
    )
    return _signed(tf.bitwise.bitwise_xor(values, tf.cast(swaps, tf.uint64)))


def _encrypt(values, keys, half_bits):
    shift = np.uint64(half_bits)
    left = tf.bitwise.right_shift(values, shift)
    right = tf.bitwise.bitwise_and(values, np.uint64((1 << half_bits) - 1))
    for round_key in stream.ROUND_KEYS:
        mixed = _mix(tf.bitwise.bitwise_xor(keys + round_key, right))
        mixed = tf.bitwise.right_shift(mixed, np.uint64(64 - half_bits))
        left, right = right, tf.bitwise.bitwise_xor(left, mixed)
    return tf.bitwise.bitwise_or(tf.bitwise.left_shift(left, shift), right)


def _mix(values):
    for shift, factor in stream.MIXING:
        shifted = tf.bitwise.right_shift(values, np.uint64(shift))
        values = tf.bitwise.bitwise_xor(values, shifted) * np.uint64(factor)
    return tf.bitwise.bitwise_xor(
        values, tf.bitwise.right_shift(values, np.uint64(31))
    )


def _unsigned(values):
    if isinstance(values, int):
        return tf.constant(values, tf.uint64)
    return tf.cast(values, tf.uint64)


def _signed(values):
    return tf.cast(values, tf.int64)


_GOLDEN = stream.GOLDEN
_ONE, _TWO, _THREE = np.arange(1, 4, dtype=np.uint64)

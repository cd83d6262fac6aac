"""The order of examples in TensorFlow's ops, bit for bit that of `stream.py`.

For datasets that run where Python does not: see `data/ops_reader.py`. NumPy's
order is the definition; `of` makes its twin, which has the same methods and
takes and gives int64 tensors [k].
"""

import numpy as np
import tensorflow as tf

from jest_tf.data import reader, stream


def of(order: stream.AnyOrder) -> "Order | Mixture | Part":
    """Returns the twin of an order; holds its row weights as tensors."""
    kinds = {
        stream.Order: Order,
        stream.Mixture: Mixture,
        stream.Part: Part,
    }
    return kinds[type(order)](order)


class Order:
    """The twin of a `stream.Order`."""

    def __init__(self, order: stream.Order):
        self._num_drawn, self._seed = order.num_drawn, order.seed
        self._block_size = order.block_size
        self._weighted = None
        if order.weighted is not None:
            self._weighted = [
                tf.constant(numbers, tf.int64)
                for numbers in (order.weighted.drawn, order.weighted.ends)
            ]

    def rows(self, positions: tf.Tensor) -> tf.Tensor:
        """Returns the rows at positions."""
        epochs = _unsigned(positions // self._num_drawn)
        offsets = positions % self._num_drawn
        if self._block_size is not None:
            rows = self._rows_in_blocks(epochs, offsets)
        else:
            keys = uniform_hash(self._seed, epochs, stream.ORDER_SALT)
            rows = _permute(offsets, self._num_drawn, keys)
        return self._rows_of_slots(epochs, rows)

    def substitutes(self, positions: tf.Tensor, attempt: tf.Tensor):
        """Returns random rows; `attempt` is int64 []."""
        salt = stream.SUBSTITUTE_SALT + attempt
        values = uniform_hash(self._seed, _unsigned(positions), salt)
        rows = _signed(values % _unsigned(self._num_drawn))
        return self._rows_of_slots(values, rows)

    def _rows_of_slots(self, epochs, slots):
        """As `_Weighted.rows` of `stream.py`."""
        if self._weighted is None:
            return slots
        drawn, ends = self._weighted
        shifts = uniform_hash(self._seed, epochs, stream.SHIFT_SALT)
        shifts = tf.bitwise.right_shift(
            shifts, np.uint64(64 - stream.SLOT_BITS)
        )
        places = slots * 2**stream.SLOT_BITS + _signed(shifts)
        return tf.gather(drawn, tf.searchsorted(ends, places, "right"))

    def _rows_in_blocks(self, epochs, offsets):
        """As `_Blocks.rows` of `stream.py`, line by line."""
        n, size = self._num_drawn, min(self._block_size, self._num_drawn)
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
            places = uniform_hash(self._seed, epochs, stream.TAIL_SALT)
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
        keys = uniform_hash(self._seed, epochs, stream.WINDOW_SALT)
        keys = _mix(keys + _unsigned(windows) * _GOLDEN)
        mixed = starts + _permute(
            offsets - starts, ends - starts, keys, largest
        )
        slots = slots_of(mixed)
        blocks = tf.fill(tf.shape(slots), tf.constant(num_full, tf.int64))
        if num_full:
            keys = uniform_hash(self._seed, epochs, stream.ORDER_SALT)
            full = slots != tails
            # The short block's own number is replaced again.
            numbers = tf.where(full, slots - _signed(slots > tails), 0)
            blocks = tf.where(full, _permute(numbers, num_full, keys), blocks)
        return blocks * size + mixed - starts_of(slots)


class Mixture:
    """The twin of a `stream.Mixture`."""

    def __init__(self, order: stream.Mixture):
        self._orders = [Order(part) for part in order.orders]
        self._starts, self._counts, self._parts, self._turns = (
            tf.constant(table, tf.int64)
            for table in (order.starts, order.counts, order.parts, order.turns)
        )

    def rows(self, positions: tf.Tensor) -> tf.Tensor:
        """Returns the rows at positions."""
        periods, places = positions // stream.PERIOD, positions % stream.PERIOD
        parts = tf.gather(self._parts, places)
        counts = tf.gather(self._counts, parts)
        turns = periods * counts + tf.gather(self._turns, places)
        return self._by_part(
            parts, [order.rows(turns) for order in self._orders]
        )

    def substitutes(self, positions: tf.Tensor, attempt: tf.Tensor):
        """Returns random rows of the same part."""
        return self._by_part(
            tf.gather(self._parts, positions % stream.PERIOD),
            [order.substitutes(positions, attempt) for order in self._orders],
        )

    def _by_part(self, parts, rows):
        """Selects each position's row from its part."""
        places = tf.stack([parts, tf.range(tf.size(parts, tf.int64))], 1)
        chosen = tf.gather_nd(tf.stack(rows), places)
        return tf.gather(self._starts, parts) + chosen


class Part:
    """The twin of a `stream.Part`."""

    def __init__(self, order: stream.Part):
        self._order, self._start = Order(order.order), order.start

    def rows(self, positions: tf.Tensor) -> tf.Tensor:
        """Returns the rows at positions."""
        return self._start + self._order.rows(positions)

    def substitutes(self, positions: tf.Tensor, attempt: tf.Tensor):
        """Returns random rows of the same part."""
        return self._start + self._order.substitutes(positions, attempt)


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

"""The order of examples: a pure function of (seed, position).

Position p is offset p mod n of epoch p // n, and every epoch is a different
permutation: a balanced Feistel network on the next power of four with cycle
walking (Black and Rogaway, 2002, "Ciphers with arbitrary finite domains"). Any
position costs the same, nothing is held in memory and no records are read.

With blocks, an epoch permutes blocks of neighbouring records, cuts the sequence
of blocks into windows of 64, and permutes the records within each window, so
that records read together lie in few places. `Mixture` interleaves several
stores in fixed shares.

With row weights, an epoch has as many slots as weighted rows and permutes the
slots. Systematic sampling assigns rows to slots: a row of k times the mean
weight is drawn k times an epoch, give or take one, and exactly k on average.
"""

from collections.abc import Sequence

import numpy as np

# `stream_ops.py` has the order in TensorFlow's ops, with these constants.

# In theory four rounds of a good function suffice for large domains; the halves
# of small ones have so few values that we take three times as many.
_ROUNDS = 12

# Separate the uses of one run seed.
ORDER_SALT = 0x6F72646572
WINDOW_SALT = 0x77696E646F77
TAIL_SALT = 0x7461696C
_PART_SALT = 0x70617274
SUBSTITUTE_SALT = 0x696E7374656164
SHIFT_SALT = 0x7368696674
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Shifts and factors of SplitMix64's finaliser.
MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
ROUND_KEYS = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * GOLDEN

# Blocks of a window. More blocks mix better but touch more places at a time;
# see docs/data.md.
WINDOW_BLOCKS = 64

# Positions after which the shares of a mixture are exact.
PERIOD = 2**16
# The mean weight of a row is two to this power in integers.
SLOT_BITS = 20


class Order:
    """An endless stream of row numbers, addressed by position.

    Args:
        num_records: n, the number of rows, at least 1.
        seed: the run's seed, in [0, 2**63).
        block_size: neighbouring rows that stay together, at least 1; None
            shuffles freely. Windows of 64 blocks are mixed: B positions touch
            about 64 blocks, and a block's rows spread over 64 times the block
            size in positions. The last block may be shorter.
        row_weights: float [num_records], not negative, relative frequencies of
            the rows; rows of weight 0 are never drawn and not in blocks. A
            weight below 2**-20 of the others' mean may count as 0. None weighs
            all rows alike.

    Attributes:
        num_records, seed, block_size: as given.
        weighted: the rows of slots; None without row weights.
        num_drawn: rows with a weight; the positions of an epoch.

    Raises:
        ValueError: an argument is out of range, or there is no row to draw.
    """

    def __init__(
        self,
        num_records: int,
        seed: int,
        *,
        block_size: int | None = None,
        row_weights: np.ndarray | None = None,
    ):
        if not 1 <= num_records < 2**62:
            raise ValueError(
                f"`num_records` must be in [1, 2**62). Received: {num_records}"
            )
        self.num_records = int(num_records)
        self.seed = _check_seed(seed)
        self.num_drawn = self.num_records
        self.weighted = None
        if row_weights is not None:
            self.weighted = _Weighted(row_weights, num_records, self.seed)
            self.num_drawn = len(self.weighted.drawn)
        self.block_size = block_size
        self._blocks = None
        if block_size is not None:
            self._blocks = _Blocks(self.num_drawn, self.seed, block_size)

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Returns rows, int64 [k] in [0, num_records), at int64 positions [k].

        Raises:
            ValueError: a position is negative.
        """
        positions = _check_positions(positions)
        epochs, offsets = np.divmod(positions, np.uint64(self.num_drawn))
        if self._blocks is not None:
            rows = self._blocks.rows(epochs, offsets.astype(np.int64))
        else:
            # One key a position and round; epochs differ within a batch.
            keys = uniform_hash(self.seed, epochs, ORDER_SALT)
            rows = _permute(offsets, self.num_drawn, keys)
        if self.weighted is not None:
            rows = self.weighted.rows(epochs, rows)
        return rows

    def num_distinct(self, num_positions: int) -> int:
        """Counts distinct rows of the first positions; the mean if weighted."""
        if self.weighted is not None:
            return self.weighted.num_distinct(num_positions)
        return min(num_positions, self.num_records)

    def substitutes(self, positions: np.ndarray, attempt: int) -> np.ndarray:
        """Returns random rows, int64 [k], to replace unreadable ones.

        Args:
            positions: int64 [k], not negative.
            attempt: 1, 2, ...; each attempt gives other rows.
        """
        salt = SUBSTITUTE_SALT + attempt
        values = uniform_hash(self.seed, positions, salt)
        rows = (values % np.uint64(self.num_drawn)).astype(np.int64)
        if self.weighted is not None:
            rows = self.weighted.rows(values, rows)
        return rows


class Mixture:
    """A stream over several stores with fixed shares of the positions.

    Shares are exact in every 65,536 positions, rounded by largest remainder,
    and spread evenly: any k consecutive positions have a part's share of k to
    within the number of parts. Each part has a separate `Order` and epochs.

    Args:
        lengths: rows of each part, in order.
        weights: positive, one for each part; only their ratios matter.
        seed, block_size: as in `Order`, of every part.
        row_weights: of the rows of all parts, as in `Order`; they act within a
            part and do not change its share.

    Attributes:
        num_records, num_drawn: as in `Order`, of all parts.
        orders, starts: of each part, and the rows before it.
        counts: int64 [parts], positions of each part in every 65,536.
        parts, turns: int64 [65536], the part of each of these positions, and
            its number among the part's.

    Raises:
        ValueError: an argument is out of range, a weight is too small for one
            position, or a part has no row to draw.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float],
        seed: int,
        *,
        block_size: int | None = None,
        row_weights: np.ndarray | None = None,
    ):
        weights = _check_weights("weights", weights, len(lengths))
        counts = _largest_remainder(weights, PERIOD)
        if not counts.all():
            raise ValueError(
                f"`weights` must each be at least 1 / {PERIOD:,} of their "
                f"sum. Received: {weights.tolist()}"
            )
        numbers = np.arange(len(lengths))
        part_seeds = uniform_hash(seed, numbers, _PART_SALT) >> np.uint64(1)
        ends = np.cumsum(lengths)
        of_parts = [None] * len(lengths)
        if row_weights is not None:
            of_parts = np.split(np.asarray(row_weights), ends[:-1])
        self.orders = [
            Order(
                length, int(part_seed), block_size=block_size, row_weights=rows
            )
            for length, part_seed, rows in zip(
                lengths, part_seeds, of_parts, strict=True
            )
        ]
        self.num_records = int(sum(lengths))
        self.num_drawn = sum(order.num_drawn for order in self.orders)
        self.starts = ends - lengths
        self.counts = counts
        parts = np.repeat(numbers, counts)  # [period]
        turns = np.concatenate([np.arange(count) for count in counts])
        # The j-th of c turns is in the middle of the j-th c-th.
        line = np.argsort((turns + 0.5) / counts[parts], kind="stable")
        self.parts, self.turns = parts[line], turns[line]

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Returns the rows at positions, as `Order.rows`."""
        periods, places = np.divmod(
            _check_positions(positions).astype(np.int64), PERIOD
        )
        parts = self.parts[places]
        turns = periods * self.counts[parts] + self.turns[places]
        return self._by_part(parts, lambda order, here: order.rows(turns[here]))

    def num_distinct(self, num_positions: int) -> int:
        """Counts distinct rows of the first positions, as in `Order`."""
        periods, rest = divmod(num_positions, PERIOD)
        begun = np.bincount(self.parts[:rest], minlength=len(self.counts))
        turns = periods * self.counts + begun
        return sum(
            order.num_distinct(int(turn))
            for order, turn in zip(self.orders, turns, strict=True)
        )

    def substitutes(self, positions: np.ndarray, attempt: int) -> np.ndarray:
        """Returns replacements from the same part, as in `Order`."""
        positions = _check_positions(positions)
        parts = self.parts[positions % np.uint64(PERIOD)]
        return self._by_part(
            parts,
            lambda order, here: order.substitutes(positions[here], attempt),
        )

    def _by_part(self, parts, find):
        rows = np.empty(len(parts), np.int64)
        for part in np.unique(parts):
            here = parts == part
            rows[here] = self.starts[part] + find(self.orders[part], here)
        return rows


class Part:
    """A stream over the last rows of a store, such as a curated set.

    Args:
        order: the order of these rows, from 0.
        start: the row of the store that is the first of them.

    Attributes:
        order, start: as given.
        num_records, num_drawn: as in `Order`.
    """

    def __init__(self, order: Order, start: int):
        self.order, self.start = order, start
        self.num_records, self.num_drawn = order.num_records, order.num_drawn

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Returns the rows at positions, as `Order.rows`."""
        return self.start + self.order.rows(positions)

    def num_distinct(self, num_positions: int) -> int:
        """Counts distinct rows of the first positions, as in `Order`."""
        return self.order.num_distinct(num_positions)

    def substitutes(self, positions: np.ndarray, attempt: int) -> np.ndarray:
        """Returns replacements of the same part, as in `Order`."""
        return self.start + self.order.substitutes(positions, attempt)


AnyOrder = Order | Mixture | Part


class _Blocks:
    """An order that permutes blocks, and records within windows of blocks.

    The short block, if any, is at a random place between the full ones. The
    last window takes the remainder, so that none is small.
    """

    def __init__(self, num_records, seed, block_size):
        if block_size < 1:
            raise ValueError(
                f"`block_size` must be at least 1. Received: {block_size}"
            )
        self._size = min(int(block_size), num_records)
        self._num_full, self._tail = divmod(num_records, self._size)
        self._num_records, self._seed = num_records, seed
        slots = self._num_full + bool(self._tail)
        self._num_windows = max(1, slots // WINDOW_BLOCKS)
        last = slots - (self._num_windows - 1) * WINDOW_BLOCKS
        self._largest_window = min(num_records, last * self._size)

    def rows(self, epochs, offsets):
        """Rows at int64 offsets of uint64 epochs; int64 [k]."""
        tails = np.full(len(epochs), self._num_full)  # slots of the short block
        if self._tail:
            places = uniform_hash(self._seed, epochs, TAIL_SALT)
            places %= np.uint64(self._num_full + 1)
            tails = places.astype(np.int64)
        windows = np.minimum(
            self._slots(offsets, tails) // WINDOW_BLOCKS, self._num_windows - 1
        )
        starts = self._slot_starts(windows * WINDOW_BLOCKS, tails)
        ends = np.where(
            windows == self._num_windows - 1,
            self._num_records,
            self._slot_starts((windows + 1) * WINDOW_BLOCKS, tails),
        )
        keys = uniform_hash(self._seed, epochs, WINDOW_SALT)
        mixed = starts + _permute(
            offsets - starts,
            ends - starts,
            _mix(keys + windows.astype(np.uint64) * GOLDEN),
            self._largest_window,
        )
        slots = self._slots(mixed, tails)
        blocks = np.full(len(slots), self._num_full)
        full = slots != tails
        blocks[full] = _permute(
            slots[full] - (slots[full] > tails[full]),
            self._num_full,
            uniform_hash(self._seed, epochs[full], ORDER_SALT),
        )
        return blocks * self._size + mixed - self._slot_starts(slots, tails)

    def _slots(self, offsets, tails):
        """Slots of offsets, given that the short block is in slot `tails`."""
        starts = tails * self._size
        behind = (offsets - self._tail) // self._size + 1
        slots = np.where(offsets < starts, offsets // self._size, behind)
        inside = (offsets >= starts) & (offsets < starts + self._tail)
        return np.where(inside, tails, slots)

    def _slot_starts(self, slots, tails):
        return slots * self._size - (self._size - self._tail) * (slots > tails)


class _Weighted:
    """The row of each slot of an epoch, by systematic sampling.

    On a line of integers every row has a stretch proportional to its weight,
    2**20 on average; slot s of an epoch is the row at s * 2**20 plus the
    epoch's random shift in [0, 2**20). `drawn` has the weighted rows, [m], and
    `ends` the ends of their stretches.
    """

    def __init__(self, weights, num_records, seed):
        weights = _check_weights("row_weights", weights, num_records)
        self.drawn = np.flatnonzero(weights)
        self._seed = seed
        weights = weights[self.drawn]
        lengths = _largest_remainder(weights, len(weights) << SLOT_BITS)
        self.ends = np.cumsum(lengths)  # [m]
        self._lengths, self._numbers = np.unique(lengths, return_counts=True)

    def rows(self, epochs, slots):
        """Rows of int64 slots [k] of uint64 epochs [k]; int64 [k]."""
        shifts = uniform_hash(self._seed, epochs, SHIFT_SALT)
        shifts = (shifts >> np.uint64(64 - SLOT_BITS)).astype(np.int64)
        places = (slots << SLOT_BITS) + shifts
        return self.drawn[np.searchsorted(self.ends, places, side="right")]

    def num_distinct(self, num_positions):
        epochs, rest = divmod(num_positions, len(self.drawn))
        whole, part = np.divmod(self._lengths, 1 << SLOT_BITS)
        part = part / (1 << SLOT_BITS)
        # A row has `whole` slots of an epoch, and one more with this chance;
        # the positions of a partial epoch are a uniform draw of slots.
        share = rest / len(self.drawn)
        missed = np.where(whole > 0, 0.0, 1.0 - part) ** epochs
        missed *= (1.0 - share) ** whole * (1.0 - part * share)
        return round(float(((1.0 - missed) * self._numbers).sum()))


def uniform_hash(seed: int, positions: np.ndarray, salt: int) -> np.ndarray:
    """Hashes (seed, position, salt) to uniform uint64 [k].

    Args:
        seed: the run's seed, in [0, 2**63).
        positions: int64 or uint64 [k], not negative.
        salt: separates different uses of a position, in [0, 2**63).

    Raises:
        ValueError: an argument is negative or too large.
    """
    values = _check_positions(positions)
    start = np.array([_check_seed(seed), _check_seed(salt, "salt")], np.uint64)
    keys = _mix(start + GOLDEN)
    key = _mix(keys[:1] + np.uint64(3) * keys[1:])
    return _mix(_mix(values + GOLDEN) ^ key)


def _permute(values, sizes, keys, largest=None):
    """Keyed bijections of [0, size); integers [k] x 3 -> int64 [k].

    `sizes` may be a single number; otherwise `largest` bounds them, and time
    grows with its ratio to them.
    """
    values = values.astype(np.uint64)
    if not len(values):
        return values.astype(np.int64)
    bits = ((largest or sizes) - 1).bit_length()
    # Half of the bits of the smallest 4**k >= n, at least one.
    half_bits = max(1, (bits + 1) // 2)
    sizes = np.broadcast_to(np.asarray(sizes, np.uint64), values.shape)
    pending = np.arange(len(values))
    while len(pending):
        walked = _encrypt(values[pending], keys[pending], half_bits)
        values[pending] = walked
        pending = pending[walked >= sizes[pending]]
    # A Feistel network makes only even permutations, and small n keep that
    # sign under cycle walking. So a key bit swaps 0 and 1 for half the keys.
    swaps = (values < 2) & (sizes > 1) & (keys & np.uint64(1)).astype(bool)
    return (values ^ swaps).astype(np.int64)


def _encrypt(values, keys, half_bits):
    """A bijection of [0, 4**half_bits) for each key; uint64 [k] x 2."""
    shift = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for i in range(_ROUNDS):
        mixed = _mix((keys + ROUND_KEYS[i]) ^ right)
        # The high bits, which a multiplication mixes best.
        mixed >>= np.uint64(64 - half_bits)
        left, right = right, left ^ mixed
    return (left << shift) | right


def _check_weights(name, weights, count):
    weights = np.asarray(weights, np.float64)
    if (
        weights.shape != (count,)
        or not np.isfinite(weights).all()
        or (weights < 0).any()
        or not weights.any()
    ):
        raise ValueError(
            f"`{name}` must hold {count} finite numbers, not negative and not "
            f"only zeros. Received: {weights.size}, such as "
            f"{weights.ravel()[:4].tolist()}"
        )
    return weights


def _largest_remainder(weights, total):
    """Integers in the proportion of positive weights; int64 [k], sum total."""
    # Divided twice, so that a large sum stays finite.
    shares = weights / weights.max()
    shares *= total / shares.sum()
    counts = np.floor(shares).astype(np.int64)
    missing = total - counts.sum()
    counts[np.argsort(counts - shares, kind="stable")[:missing]] += 1
    return counts


def _mix(values):
    """The finaliser of SplitMix64: a bijection of uint64 that avalanches."""
    for shift, factor in MIXING:
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


def _check_positions(positions):
    positions = np.asarray(positions)
    if positions.ndim != 1 or positions.dtype.kind not in "iu":
        raise ValueError(
            "`positions` must be a vector of integers. "
            f"Received: {positions.dtype} {positions.shape}"
        )
    if positions.dtype.kind == "i" and (positions < 0).any():
        raise ValueError(
            f"`positions` must not be negative. Received: {positions.min()}"
        )
    return positions.astype(np.uint64)


def _check_seed(seed, name="seed"):
    if not 0 <= seed < 2**63:
        raise ValueError(f"`{name}` must be in [0, 2**63). Received: {seed}")
    return int(seed)

"""The order of examples: a pure function of (seed, position).

Position p is offset p mod n of epoch p // n, and every epoch is a different
permutation: a balanced Feistel network on the next power of four with cycle
walking (Black and Rogaway, 2002, "Ciphers with arbitrary finite domains"). Any
position costs the same, nothing is kept in memory and no records are read.

With blocks, an epoch permutes blocks of neighbouring records, cuts the sequence
of blocks into windows of 64, and permutes the records within each window, so
that records read together lie in few places. `Mixture` interleaves several
stores in fixed shares.

With row weights, an epoch has as many slots as weighted rows and permutes the
slots. Systematic sampling assigns rows to slots: a row of k times the mean
weight is drawn k times an epoch, to within 1, and exactly k on average.
"""

from collections.abc import Sequence

import numpy as np

# These separate the uses of a run's seed.
_ORDER_SALT = 0x6F72646572
_WINDOW_SALT = 0x77696E646F77
_TAIL_SALT = 0x7461696C
_PART_SALT = 0x70617274
_SUBSTITUTE_SALT = 0x696E7374656164
_SHIFT_SALT = 0x7368696674

# Blocks of a window. More blocks mix better but touch more places at a time;
# see docs/data.md.
WINDOW_BLOCKS = 64

# The shares of a mixture are exact in each period of this many positions.
PERIOD = 2**16
# Weights become integers whose mean is two to this power.
_SLOT_BITS = 20

# In theory four rounds of a good function suffice for large domains. The halves
# of small domains have very few values, so three times as many are used.
_ROUNDS = 12

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Shifts and factors of SplitMix64's finaliser.
_MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_ROUND_KEYS = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GOLDEN


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
        start: the first row, not 0 if other rows come before it, such as those
            of other parts of a store.

    Attributes:
        num_drawn: number of rows with a weight, and of positions in an epoch.
    """

    def __init__(
        self,
        num_records: int,
        seed: int,
        *,
        block_size: int | None = None,
        row_weights: np.ndarray | None = None,
        start: int = 0,
    ):
        if not 1 <= num_records < 2**62:
            raise ValueError(
                f"`num_records` must be in [1, 2**62). Received: {num_records}"
            )
        self.num_records, self.start = int(num_records), int(start)
        self.seed = _check_seed(seed)
        self.num_drawn = self.num_records
        self._weighted = None
        if row_weights is not None:
            self._weighted = _Weighted(row_weights, num_records, self.seed)
            self.num_drawn = len(self._weighted.drawn)
        self._blocks = None
        if block_size is not None:
            self._blocks = _Blocks(self.num_drawn, self.seed, block_size)

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Returns rows, int64 [k], at int64 positions [k]."""
        positions = _unsigned(positions)
        size = np.uint64(self.num_drawn)
        epochs, offsets = positions // size, positions % size
        if self._blocks is not None:
            rows = self._blocks.rows(epochs, offsets.astype(np.int64))
        else:
            # A key for each position, as epochs may differ within a batch.
            keys = uniform_hash(self.seed, epochs, _ORDER_SALT)
            rows = permute(offsets, self.num_drawn, keys)
        if self._weighted is not None:
            rows = self._weighted.rows(epochs, rows)
        return self.start + rows

    def substitutes(self, positions: np.ndarray, attempt: int) -> np.ndarray:
        """Returns random rows, int64 [k], to replace unreadable rows.

        Args:
            positions: int64 [k], not negative.
            attempt: 1, 2, ...; each attempt gives other rows.
        """
        salt = _SUBSTITUTE_SALT + attempt
        values = uniform_hash(self.seed, positions, salt)
        rows = (values % np.uint64(self.num_drawn)).astype(np.int64)
        if self._weighted is not None:
            rows = self._weighted.rows(values, rows)
        return self.start + rows


class Mixture:
    """A stream over several stores with fixed shares of the positions.

    Shares are exact in every 65,536 positions, rounded by largest remainder,
    and spread evenly: any k consecutive positions have a part's share of k to
    within the number of parts. Each part has a separate `Order` and epochs.

    Args:
        lengths: rows of each part, in order.
        weights: positive, a weight for each part; only their ratios matter.
        seed, block_size: as in `Order`, of every part.
        row_weights: of the rows of all parts, as in `Order`; they act within a
            part and do not change its share.

    Attributes:
        num_records, num_drawn: as in `Order`, of all parts.
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
        self._orders = [
            Order(
                length,
                int(part_seed),
                block_size=block_size,
                row_weights=rows,
                start=end - length,
            )
            for length, part_seed, rows, end in zip(
                lengths, part_seeds, of_parts, ends, strict=True
            )
        ]
        self.num_records = int(sum(lengths))
        self.num_drawn = sum(order.num_drawn for order in self._orders)
        self._counts = counts
        parts = np.repeat(numbers, counts)  # [period]
        turns = np.concatenate([np.arange(count) for count in counts])
        # The j-th of c turns is in the middle of the j-th of c equal intervals.
        line = np.argsort((turns + 0.5) / counts[parts], kind="stable")
        # The part of each position, and the position's number within it.
        self._parts, self._turns = parts[line], turns[line]

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Returns the rows at positions, as `Order.rows`."""
        periods, places = positions // PERIOD, positions % PERIOD
        parts = self._parts[places]
        turns = periods * self._counts[parts] + self._turns[places]
        return self._by_part(parts, lambda order, here: order.rows(turns[here]))

    def substitutes(self, positions: np.ndarray, attempt: int) -> np.ndarray:
        """Returns replacements from the same part, as in `Order`."""
        return self._by_part(
            self._parts[positions % PERIOD],
            lambda order, here: order.substitutes(positions[here], attempt),
        )

    def _by_part(self, parts, find):
        rows = np.empty(len(parts), np.int64)
        for part in np.unique(parts):
            here = parts == part
            rows[here] = find(self._orders[part], here)
        return rows


AnyOrder = Order | Mixture


class _Blocks:
    """An order that permutes blocks, and records within windows of blocks.

    The short block, if any, is at a random place between the full blocks. The
    last window takes the remainder, so that no window is small.
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
        tails = 0 * offsets + self._num_full  # slots of the short block
        if self._tail:
            places = uniform_hash(self._seed, epochs, _TAIL_SALT)
            tails = (places % np.uint64(self._num_full + 1)).astype(np.int64)
        windows = self._slots(offsets, tails) // WINDOW_BLOCKS
        is_last = windows >= self._num_windows - 1
        windows = np.where(is_last, self._num_windows - 1, windows)
        starts = self._slot_starts(windows * WINDOW_BLOCKS, tails)
        ends = self._slot_starts((windows + 1) * WINDOW_BLOCKS, tails)
        ends = np.where(is_last, self._num_records, ends)
        keys = uniform_hash(self._seed, epochs, _WINDOW_SALT)
        mixed = starts + permute(
            offsets - starts,
            ends - starts,
            _mix(keys + _unsigned(windows) * _GOLDEN),
            self._largest_window,
        )
        slots = self._slots(mixed, tails)
        is_short = slots == tails
        # The short block's number, here arbitrary, is replaced below.
        numbers = np.where(is_short, 0, slots - (slots > tails))
        keys = uniform_hash(self._seed, epochs, _ORDER_SALT)
        blocks = permute(numbers, self._num_full, keys)
        blocks = np.where(is_short, self._num_full, blocks)
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
    """Assigns a row to each slot of an epoch, by systematic sampling.

    On a line of integers every row has an interval proportional to its weight,
    2**20 long on average. Slot s of an epoch is the row at s * 2**20 plus the
    epoch's random shift in [0, 2**20). `drawn` has the weighted rows, [m], and
    `ends` the ends of their intervals.
    """

    def __init__(self, weights, num_records, seed):
        weights = _check_weights("row_weights", weights, num_records)
        self.drawn = np.flatnonzero(weights)
        self._seed = seed
        weights = weights[self.drawn]
        lengths = _largest_remainder(weights, len(weights) << _SLOT_BITS)
        self.ends = np.cumsum(lengths)  # [m]

    def rows(self, epochs, slots):
        """Rows of int64 slots [k] of uint64 epochs [k]; int64 [k]."""
        shifts = uniform_hash(self._seed, epochs, _SHIFT_SALT)
        places = slots * 2**_SLOT_BITS + high_bits(shifts, _SLOT_BITS)
        return self.drawn[np.searchsorted(self.ends, places, side="right")]


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
    """Returns integers proportional to positive weights, of sum `total`."""
    # Divided twice, so that the sum of large weights stays finite.
    shares = weights / weights.max()
    shares *= total / shares.sum()
    counts = np.floor(shares).astype(np.int64)
    missing = total - counts.sum()
    counts[np.argsort(counts - shares, kind="stable")[:missing]] += 1
    return counts


def uniform_hash(seed: int, positions: np.ndarray, salt: int) -> np.ndarray:
    """Hashes (seed, position, salt) to uniform uint64 [k].

    Positions are int64 or uint64 [k], not negative. The salt, in [0, 2**63),
    separates different uses of a position.
    """
    first, second = (
        _mix(_unsigned(value) + _GOLDEN) for value in (_check_seed(seed), salt)
    )
    key = _mix(first + np.uint64(3) * second)
    return _mix(_mix(_unsigned(positions) + _GOLDEN) ^ key)


def high_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Returns the highest bits of uint64 [k] as numbers, int64 [k]."""
    return (values >> np.uint64(64 - bits)).astype(np.int64)


def permute(values, sizes, keys, largest=None):
    """Applies keyed bijections of [0, size); integers [k] x 3 -> int64 [k].

    `sizes` may be a single number. If it is a vector, `largest` must be an
    upper bound; the time grows with `largest / sizes`.
    """
    bits = ((largest or sizes) - 1).bit_length()
    # Half of the bits of the smallest power of four >= size, at least one.
    half_bits = max(1, (bits + 1) // 2)
    values, sizes = _unsigned(values), _unsigned(sizes)
    sizes = np.broadcast_to(sizes, values.shape)
    values = _encrypt(values, keys, half_bits)
    # Encrypts values again until all are below their sizes.
    pending = np.flatnonzero(values >= sizes)
    while len(pending):
        walked = _encrypt(values[pending], keys[pending], half_bits)
        values[pending] = walked
        pending = pending[walked >= sizes[pending]]
    # A Feistel network makes only even permutations, and for small sizes cycle
    # walking keeps the parity. So half of the keys also swap 0 and 1.
    swaps = (values < 2) & (sizes > 1) & (keys & np.uint64(1) == 1)
    return (values ^ swaps).astype(np.int64)


def _encrypt(values, keys, half_bits):
    """Applies a bijection of [0, 4**half_bits) per key; uint64 [k] x 2."""
    half = np.uint64(1 << half_bits)
    shift = np.uint64(64 - half_bits)
    left, right = values // half, values & (half - np.uint64(1))
    for round_key in _ROUND_KEYS:
        # A multiplication mixes the high bits best.
        mixed = _mix((keys + round_key) ^ right) >> shift
        left, right = right, left ^ mixed
    return left * half + right


def _mix(values):
    """Applies SplitMix64's finaliser: a bijection of uint64 that avalanches."""
    for shift, factor in _MIXING:
        values = (values ^ values >> np.uint64(shift)) * np.uint64(factor)
    return values ^ values >> np.uint64(31)


def _unsigned(values):
    """Returns integers as uint64; a Python integer becomes a vector."""
    return np.atleast_1d(values).astype(np.uint64)


def _check_seed(seed):
    """Returns a seed; raises ValueError if it is not in [0, 2**63)."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"`seed` must be in [0, 2**63). Received: {seed}")
    return int(seed)

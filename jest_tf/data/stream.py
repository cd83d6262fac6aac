"""The order of examples: a pure function of (seed, position).

Position p stands for offset p mod n of epoch p // n, and every epoch is a
permutation of its own. The permutation is a keyed bijection, a balanced Feistel
network on the next power of four with cycle walking (Black and Rogaway, 2002,
"Ciphers with arbitrary finite domains"), so that any position costs the same
and nothing is held in memory. No records are read here.
"""

import numpy as np

# Four rounds of a good function suffice in theory for large domains; the
# halves of small ones have so few values that we take three times as many.
_ROUNDS = 12

# Separates the uses of one run seed.
_ORDER_SALT = 0x6F72646572
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUND_KEYS = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GOLDEN


class Order:
    """An endless stream of row numbers, addressed by position.

    Args:
        num_records: n, the number of rows, at least 1.
        seed: the run's seed, in [0, 2**63).

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, num_records: int, seed: int):
        if not 1 <= num_records < 2**62:
            raise ValueError(
                f"`num_records` must be in [1, 2**62). Received: {num_records}"
            )
        self.num_records = int(num_records)
        self.seed = _check_seed(seed)
        bits = (self.num_records - 1).bit_length()
        # Half of the bits of the smallest 4**k >= n, at least one.
        self._half_bits = max(1, (bits + 1) // 2)

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """The rows at positions of the stream.

        Args:
            positions: int64 [k], not negative, in any order.

        Returns:
            int64 [k], each in [0, num_records).

        Raises:
            ValueError: a position is negative.
        """
        positions = _check_positions(positions)
        epochs, rows = np.divmod(positions, np.uint64(self.num_records))
        # One key a position and round; epochs differ within a batch.
        epoch_keys = uniform_hash(self.seed, epochs, _ORDER_SALT)
        pending = np.arange(len(positions))
        while len(pending):
            walked = self._encrypt(rows[pending], epoch_keys[pending])
            rows[pending] = walked
            pending = pending[walked >= self.num_records]
        if self.num_records > 1:
            # A Feistel network makes even permutations only, and cycle walking
            # lets the sign through for small n: swap rows 0 and 1 in half of
            # the epochs, by a key bit.
            rows ^= (rows < 2) & (epoch_keys & np.uint64(1)).astype(bool)
        return rows.astype(np.int64)

    def _encrypt(self, values, keys):
        """A bijection of [0, 4**half_bits) for each key; uint64 [k] x 2."""
        shift = np.uint64(self._half_bits)
        mask = np.uint64((1 << self._half_bits) - 1)
        left, right = values >> shift, values & mask
        for i in range(_ROUNDS):
            mixed = _mix((keys + _ROUND_KEYS[i]) ^ right)
            # The high bits: those that a multiplication mixes best.
            mixed >>= np.uint64(64 - self._half_bits)
            left, right = right, left ^ mixed
        return (left << shift) | right


def uniform_hash(seed: int, positions: np.ndarray, salt: int) -> np.ndarray:
    """Uniform 64-bit integers, a pure function of (seed, position, salt).

    Args:
        seed: the run's seed, in [0, 2**63).
        positions: int64 or uint64 [k], not negative.
        salt: separates different uses of a position, in [0, 2**63).

    Returns:
        uint64 [k].

    Raises:
        ValueError: an argument is negative or too large.
    """
    values = _check_positions(positions)
    start = np.array([_check_seed(seed), _check_seed(salt, "salt")], np.uint64)
    keys = _mix(start + _GOLDEN)
    key = _mix(keys[:1] + np.uint64(3) * keys[1:])
    return _mix(_mix(values + _GOLDEN) ^ key)


def _mix(values):
    """The finaliser of SplitMix64: a bijection of uint64 that avalanches."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(
        0xBF58476D1CE4E5B9
    )
    values = (values ^ (values >> np.uint64(27))) * np.uint64(
        0x94D049BB133111EB
    )
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

"""Hashes and keyed permutations of integers."""

import numpy as np

# In theory four rounds of a good function suffice for large domains. The halves
# of small domains have very few values, so three times as many are used.
_ROUNDS = 12

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Shifts and factors of SplitMix64's finaliser.
_MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_ROUND_KEYS = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * GOLDEN


def uniform_hash(seed: int, positions: np.ndarray, salt: int) -> np.ndarray:
    """Hashes (seed, position, salt) to uniform uint64 [k].

    Args:
        seed: the run's seed, in [0, 2**63).
        positions: int64 or uint64 [k], not negative.
        salt: separates different uses of a position, in [0, 2**63).

    Raises:
        ValueError: an argument is negative or too large.
    """
    values = check_positions(positions)
    first, second = (
        mix(unsigned(value) + GOLDEN)
        for value in (check_seed(seed), check_seed(salt, "salt"))
    )
    key = mix(first + np.uint64(3) * second)
    return mix(mix(values + GOLDEN) ^ key)


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
    values, sizes = unsigned(values), unsigned(sizes)
    values = _walk(values, sizes, keys, half_bits)
    # A Feistel network makes only even permutations, and for small sizes cycle
    # walking keeps the parity. So half of the keys also swap 0 and 1.
    swaps = (values < 2) & (sizes > 1) & (keys & np.uint64(1) == 1)
    return (values ^ swaps).astype(np.int64)


def _walk(values, sizes, keys, half_bits):
    """Encrypts values until all are below their sizes."""
    sizes = np.broadcast_to(sizes, values.shape)
    values = _encrypt(values, keys, half_bits)
    pending = np.flatnonzero(values >= sizes)
    while len(pending):
        walked = _encrypt(values[pending], keys[pending], half_bits)
        values[pending] = walked
        pending = pending[walked >= sizes[pending]]
    return values


def _encrypt(values, keys, half_bits):
    """Applies a bijection of [0, 4**half_bits) per key; uint64 [k] x 2."""
    half = np.uint64(1 << half_bits)
    shift = np.uint64(64 - half_bits)
    left, right = values // half, values & (half - np.uint64(1))
    for round_key in _ROUND_KEYS:
        # A multiplication mixes the high bits best.
        mixed = mix((keys + round_key) ^ right) >> shift
        left, right = right, left ^ mixed
    return left * half + right


def mix(values):
    """Applies SplitMix64's finaliser: a bijection of uint64 that avalanches."""
    for shift, factor in _MIXING:
        values = (values ^ values >> np.uint64(shift)) * np.uint64(factor)
    return values ^ values >> np.uint64(31)


def unsigned(values):
    """Returns integers as uint64; a Python integer becomes a vector."""
    return np.atleast_1d(values).astype(np.uint64)


def check_positions(positions):
    """Returns positions as uint64; raises ValueError if they are invalid."""
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


def check_seed(seed, name="seed"):
    """Returns a seed; raises ValueError if it is not in [0, 2**63)."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"`{name}` must be in [0, 2**63). Received: {seed}")
    return int(seed)

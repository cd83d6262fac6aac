"""Tests of the order of examples."""

import itertools
import math
import time

import numpy as np
import tensorflow as tf

from jest_tf.data import stream

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def slow_mix(value):
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def slow_hash(seed, position, salt):
    key = slow_mix(
        slow_mix(seed + GOLDEN & MASK) + 3 * slow_mix(salt + GOLDEN & MASK)
        & MASK
    )
    return slow_mix(slow_mix(position + GOLDEN & MASK) ^ key)


def slow_row(num_records, seed, position):
    """The row at one position in Python integers, a value at a time."""
    epoch, value = divmod(position, num_records)
    key = slow_hash(seed, epoch, int.from_bytes(b"order", "big"))
    half = 1
    while 4**half < num_records:
        half += 1
    while True:
        left, right = divmod(value, 2**half)
        for i in range(1, 13):
            mixed = slow_mix((key + i * GOLDEN & MASK) ^ right)
            left, right = right, left ^ mixed >> 64 - half
        value = left * 2**half + right
        if value < num_records:
            break
    if num_records > 1 and value < 2 and key & 1:
        value = 1 - value
    return value


def chi_square_bound(degrees):
    """Above which a true null falls once in a million (Wilson-Hilferty)."""
    z, spread = 4.753, 2 / (9 * degrees)
    return degrees * (1 - spread + z * math.sqrt(spread)) ** 3


class OrderTest(tf.test.TestCase):
    def assert_uniform(self, counts):
        """Pearson's test against equal expectations."""
        counts = np.asarray(counts, float)
        expected = counts.sum() / counts.size
        self.assertGreater(expected, 5)  # Pearson's rule of thumb
        statistic = ((counts - expected) ** 2 / expected).sum()
        self.assertLess(statistic, chi_square_bound(counts.size - 1))

    def test_every_epoch_is_a_permutation(self):
        for n in (1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 1000, 65537):
            order = stream.Order(n, seed=3)
            for epoch in (0, 1, 10**9):
                rows = order.rows(np.arange(epoch * n, (epoch + 1) * n))
                self.assertEqual(rows.dtype, np.int64)
                self.assertAllEqual(np.sort(rows), np.arange(n))

    def test_rows_equal_a_slow_implementation(self):
        rng = np.random.default_rng(0)
        for n in (1, 2, 3, 4, 5, 16, 17, 1000, 65537, 2**40 + 1):
            for seed in (0, 1, 2**63 - 1):
                positions = np.concatenate(
                    [
                        np.arange(8),
                        [n - 1, n, 10**15, 2**63 - 1],
                        rng.integers(0, 2**62, 8),
                    ]
                )
                self.assertAllEqual(
                    stream.Order(n, seed).rows(positions),
                    [slow_row(n, seed, p) for p in positions.tolist()],
                )

    def test_hash_equals_a_slow_implementation(self):
        positions = [0, 1, 2, 10**15, 2**63 - 1]
        for seed, salt in itertools.product((0, 5, 2**63 - 1), repeat=2):
            self.assertAllEqual(
                stream.uniform_hash(seed, np.array(positions), salt),
                [slow_hash(seed, p, salt) for p in positions],
            )

    def test_a_row_does_not_depend_on_its_neighbours(self):
        order = stream.Order(1000, seed=1)
        rng = np.random.default_rng(0)
        positions = rng.integers(0, 10**6, 500)
        rows = order.rows(positions)
        shuffle = rng.permutation(500)
        self.assertAllEqual(order.rows(positions[shuffle]), rows[shuffle])
        self.assertAllEqual(order.rows(positions[7:8]), rows[7:8])
        self.assertEmpty(order.rows(positions[:0]))

    def test_epochs_and_seeds_differ(self):
        n = 1000
        orders = [
            stream.Order(n, seed).rows(np.arange(epoch * n, (epoch + 1) * n))
            for seed in range(5)
            for epoch in range(5)
        ]
        # Two random permutations agree in Poisson(1) places: in over 15 of
        # them once in 1e13.
        for one, other in itertools.combinations(orders, 2):
            self.assertLess((one == other).sum(), 16)

    def test_first_row_is_uniform_over_seeds(self):
        for n in (3, 10, 100):
            rows = [
                stream.Order(n, seed).rows(np.array([0]))[0]
                for seed in range(40 * n)
            ]
            self.assert_uniform(np.bincount(rows, minlength=n))

    def test_small_permutations_are_all_equally_likely(self):
        # Over epochs of one seed; for n = 5 and 6 a Feistel network without
        # the extra swap prefers even permutations.
        for n in (2, 3, 4, 5, 6):
            epochs = 60 * math.factorial(n)
            rows = stream.Order(n, 0).rows(np.arange(n * epochs))
            codes = rows.reshape(epochs, n) @ n ** np.arange(n)
            _, counts = np.unique(codes, return_counts=True)
            self.assertLen(counts, math.factorial(n))
            self.assert_uniform(counts)

    def test_steps_between_neighbours_are_uniform(self):
        # In a random permutation the difference of two neighbours modulo n
        # is uniform on 1 .. n-1. One pair an epoch, so that pairs are
        # independent.
        for n in (13, 16, 100, 257):
            starts = np.arange(60 * n) * n + n // 2
            order = stream.Order(n, seed=2)
            steps = (order.rows(starts + 1) - order.rows(starts)) % n
            counts = np.bincount(steps, minlength=n)
            self.assertEqual(counts[0], 0)
            self.assert_uniform(counts[1:])

    def test_a_place_in_consecutive_epochs_is_independent(self):
        n = 9
        rows = stream.Order(n, 4).rows(np.arange(n * 20000) * n)
        counts = np.bincount(rows[:-1] * n + rows[1:], minlength=n * n)
        self.assert_uniform(counts)

    def test_hash_is_uniform_modulo_small_counts(self):
        for modulus in (2, 3, 5, 64):
            values = stream.uniform_hash(0, np.arange(100 * modulus), 1)
            self.assert_uniform(
                np.bincount(
                    (values % np.uint64(modulus)).astype(int),
                    minlength=modulus,
                )
            )

    def test_hashes_of_seeds_and_salts_differ(self):
        positions = np.arange(100)
        values = [
            stream.uniform_hash(seed, positions, salt)
            for seed in range(8)
            for salt in range(8)
        ]
        self.assertLen(np.unique(values), 6400)

    def test_a_late_position_costs_what_the_first_does(self):
        order = stream.Order(352026, seed=0)

        def seconds(start):
            times = []
            for _ in range(9):
                begin = time.perf_counter()
                order.rows(np.arange(start, start + 1280))
                times.append(time.perf_counter() - begin)
            return min(times)

        # Anything linear would be slower by orders of magnitude.
        self.assertLess(seconds(10**15), 10 * seconds(0))

    def test_bad_arguments_are_refused(self):
        for n in (0, -1, 2**62):
            with self.assertRaisesRegex(ValueError, f"`num_records`.*{n}"):
                stream.Order(n, 0)
        for seed in (-1, 2**63):
            with self.assertRaisesRegex(ValueError, f"`seed`.*{seed}"):
                stream.Order(3, seed)
        order = stream.Order(3, 0)
        with self.assertRaisesRegex(ValueError, "`positions`.*negative.*-2"):
            order.rows(np.array([1, -2]))
        for positions in (np.array([1.0]), np.array([[1]])):
            with self.assertRaisesRegex(ValueError, "vector of integers"):
                order.rows(positions)
        with self.assertRaisesRegex(ValueError, "`salt`"):
            stream.uniform_hash(0, np.array([0]), -1)


if __name__ == "__main__":
    tf.test.main()

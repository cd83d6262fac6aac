"""Tests of the order of examples."""

import itertools
import math

import numpy as np
import oracles
import tensorflow as tf

from jest_tf.data import stream


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
                    [oracles.row_at(n, seed, p) for p in positions.tolist()],
                )

    def test_hash_equals_a_slow_implementation(self):
        positions = [0, 1, 2, 10**15, 2**63 - 1]
        for seed, salt in itertools.product((0, 5, 2**63 - 1), repeat=2):
            self.assertAllEqual(
                stream.uniform_hash(seed, np.array(positions), salt),
                [oracles.position_hash(seed, p, salt) for p in positions],
            )

    def test_small_permutations_are_all_equally_likely(self):
        # Over epochs of a seed; for n = 5 and 6 a Feistel network without
        # the extra swap prefers even permutations.
        for n in (2, 3, 4, 5, 6):
            epochs = 60 * math.factorial(n)
            rows = stream.Order(n, 0).rows(np.arange(n * epochs))
            codes = rows.reshape(epochs, n) @ n ** np.arange(n)
            _, counts = np.unique(codes, return_counts=True)
            self.assertLen(counts, math.factorial(n))
            self.assert_uniform(counts)

    def test_substitutes_are_uniform_and_differ_by_attempt(self):
        for order in (
            stream.Order(20, seed=2),
            stream.Order(20, seed=2, block_size=3),
        ):
            positions = np.arange(2000)
            rows = [order.substitutes(positions, a) for a in (1, 2)]
            for found in rows:
                self.assert_uniform(np.bincount(found, minlength=20))
            pairs = np.bincount(rows[0] * 20 + rows[1], minlength=400)
            self.assertEqual(pairs.shape, (400,))
            self.assertLess((rows[0] == rows[1]).mean(), 0.1)
            self.assertAllEqual(
                order.substitutes(positions[7:9], 1), rows[0][7:9]
            )

    def test_bad_arguments_are_refused(self):
        for n in (0, -1, 2**62):
            with self.assertRaisesRegex(ValueError, f"`num_records`.*{n}"):
                stream.Order(n, 0)
        with self.assertRaisesRegex(ValueError, f"`seed`.*{2**63}"):
            stream.Order(3, 2**63)


class BlockOrderTest(tf.test.TestCase):
    def epoch(self, n, size, epoch=0, seed=3):
        order = stream.Order(n, seed, block_size=size)
        return order.rows(np.arange(epoch * n, (epoch + 1) * n))

    def test_every_epoch_is_a_permutation(self):
        for n in (1, 2, 3, 4, 5, 16, 65, 129, 257, 1000, 4097):
            for size in (None, 1, 3, 7, 64, 1000):
                for epoch in (0, 1, 10**9):
                    rows = self.epoch(n, size, epoch)
                    self.assertEqual(rows.dtype, np.int64)
                    self.assertAllEqual(np.sort(rows), np.arange(n))

    def test_a_row_does_not_depend_on_its_neighbours(self):
        order = stream.Order(1003, seed=1, block_size=4)
        rng = np.random.default_rng(0)
        positions = rng.integers(0, 10**6, 500)
        rows = order.rows(positions)
        for i in range(0, 500, 50):
            self.assertAllEqual(
                order.rows(positions[i : i + 1]), rows[i : i + 1]
            )
        self.assertEmpty(order.rows(positions[:0]))

    def test_windows_hold_whole_blocks(self):
        # 64 blocks of 8 are a window of 512; the last window takes the rest,
        # and with it up to 127 blocks.
        rows = self.epoch(8 * 64 * 3, 8)
        for window in rows.reshape(3, 512):
            self.assertAllEqual(
                np.bincount(window // 8, minlength=192) % 8, np.zeros(192)
            )
        rows = self.epoch(8 * (64 * 3 + 63), 8)
        _, counts = np.unique(rows[2 * 512 :] // 8, return_counts=True)
        self.assertAllEqual(counts, np.full(127, 8))


class MixtureTest(tf.test.TestCase):
    PERIOD = 2**16

    def parts_of(self, rows, lengths):
        return np.searchsorted(np.cumsum(lengths), rows, side="right")

    def test_shares_are_those_of_the_weights_by_largest_remainder(self):
        lengths = (100, 5000, 37)
        for weights in ((1, 2, 0.5), (1e-4, 1, 1), (3e300, 1e300, 2e300)):
            mixture = stream.Mixture(lengths, weights, 3)
            quotas = np.array(weights) / max(weights)
            quotas *= self.PERIOD / quotas.sum()
            for start in (0, 5 * self.PERIOD):
                rows = mixture.rows(np.arange(start, start + self.PERIOD))
                counts = np.bincount(self.parts_of(rows, lengths), minlength=3)
                self.assertEqual(counts.sum(), self.PERIOD)
                self.assertTrue((np.abs(counts - quotas) < 1).all())
                # No part that was rounded down had more left than a part that
                # was rounded up.
                up, left = counts > quotas, quotas % 1
                if up.any():
                    self.assertGreaterEqual(
                        left[up].min(), left[~up].max(initial=0)
                    )

    def test_each_part_walks_its_own_order(self):
        lengths, starts = (100, 50, 37), (0, 100, 150)
        mixture = stream.Mixture(lengths, (5, 2, 1), 3, block_size=4)
        rows = mixture.rows(np.arange(3 * self.PERIOD))
        parts = self.parts_of(rows, lengths)
        walks = []
        for part, (length, start) in enumerate(
            zip(lengths, starts, strict=True)
        ):
            mine = rows[parts == part] - start
            epochs = len(mine) // length
            walks.append(mine)
            self.assertAllEqual(
                np.sort(mine[: epochs * length].reshape(epochs, length), 1),
                np.tile(np.arange(length), (epochs, 1)),
            )
        equal = walks[1][:3000] % 37 == walks[2][:3000]
        self.assertLess(equal.mean(), 0.1)

    def test_parts_are_spread_evenly(self):
        lengths = (10, 10, 10, 10)
        weights = np.array([0.62, 0.25, 0.12, 0.01])
        rows = stream.Mixture(lengths, weights, 1).rows(
            np.arange(2 * self.PERIOD)
        )
        hits = rows[:, None] // 10 == np.arange(4)
        for size in (16, 100, 1280):
            counts = np.add.reduceat(
                hits.astype(int), np.arange(0, len(rows), size)
            )[:-1]
            self.assertLess(np.abs(counts - size * weights).max(), 4)

    def test_substitutes_are_of_the_same_part(self):
        mixture = stream.Mixture((10, 20), (1, 2), 3)
        positions = np.arange(10**6, 10**6 + 3000)
        parts = mixture.rows(positions) >= 10
        for attempt in (1, 2, 16):
            rows = mixture.substitutes(positions, attempt)
            self.assertAllEqual(rows >= 10, parts)
            self.assertLen(np.unique(rows), 30)

    def test_bad_weights_are_refused(self):
        for weights in (
            (1,), (1, 2, 3), (0, 0), (1, -1), (1, np.nan), (1, np.inf), (),
        ):  # fmt: skip
            with self.assertRaisesRegex(ValueError, "`weights` must hold 2 fi"):
                stream.Mixture((3, 4), weights, 0)
        for weights in ((1, 0), (1, 1e-6)):
            with self.assertRaisesRegex(ValueError, "`weights`.*1 / 65,536"):
                stream.Mixture((3, 4), weights, 0)


class PartTest(tf.test.TestCase):
    def test_the_last_rows_of_a_store_are_an_order_of_their_own(self):
        for block_size in (None, 3):
            order = stream.Order(7, 4, block_size=block_size)
            part = stream.Order(7, 4, block_size=block_size, start=50)
            positions = np.arange(70)
            rows = part.rows(positions)
            self.assertAllEqual(rows, 50 + order.rows(positions))
            for attempt in (1, 2):
                self.assertAllEqual(
                    part.substitutes(positions, attempt),
                    50 + order.substitutes(positions, attempt),
                )

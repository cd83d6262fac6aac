"""Estimates of a pool, on embeddings whose shares are known."""

import numpy as np
import tensorflow as tf

from jest_tf.curation import estimates

DIM = 64


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(
        np.float32
    )


def pairs(count, share, seed, weight=0.5, common=0.0):
    """Pictures and captions, of which the first `share` match.

    A matching caption is `weight` of its picture beside noise. With `common`
    all pictures and all captions share a direction, each to its own degree.
    """
    random = np.random.default_rng(seed)
    image = unit(random.standard_normal([count, DIM]))
    text = unit(random.standard_normal([count, DIM]))
    matches = np.arange(count) < share * count
    text[matches] += weight * image[matches]
    if common:
        degrees = common * random.random([2, count, 1])
        image[:, :1] += degrees[0]
        text[:, :1] += degrees[1]
    return unit(image), unit(text), matches


def reference(common=0.0):
    """Similarities of curated pairs, all of which match, in a pool."""
    image, text, _ = pairs(600, 1.0, 99, common=common)
    pool = pairs(4_000, 0.0, 98, common=common)[:2]
    return estimates.similarities_to(image, text, *pool)


class SimilaritiesTest(tf.test.TestCase):
    def test_they_are_standardised_among_mismatched_pairs(self):
        image, text, _ = pairs(7, 0.5, 0)
        found = estimates.similarities(image, text)
        cosines = (image @ text.T).astype(np.float64)
        for place in range(7):
            row, column = (
                np.delete(values, place)
                for values in (cosines[place], cosines[:, place])
            )
            expected = (
                (cosines[place, place] - row.mean()) / row.std()
                + (cosines[place, place] - column.mean()) / column.std()
            ) / 2
            self.assertAllClose(found.matched[place], expected, 1e-5, 1e-5)
        # A picture with the caption half of the set before it.
        row, column = np.delete(cosines[3], 3), np.delete(cosines[:, 0], 0)
        self.assertAllClose(
            found.mismatched[3],
            (
                (cosines[3, 0] - row.mean()) / row.std()
                + (cosines[3, 0] - column.mean()) / column.std()
            )
            / 2,
            1e-5,
            1e-5,
        )

    def test_a_set_is_standardised_among_pairs_of_a_pool(self):
        pool_image, pool_text, _ = pairs(40, 0.5, 2)
        image, text, _ = pairs(5, 1.0, 3)
        found = estimates.similarities_to(image, text, pool_image, pool_text)
        for place in range(5):
            row, column = pool_text @ image[place], pool_image @ text[place]
            cosine = image[place] @ text[place]
            expected = (cosine - row.mean()) / row.std() / 2
            expected += (cosine - column.mean()) / column.std() / 2
            self.assertAllClose(found[place], expected, 1e-5, 1e-5)

    def test_two_pairs_are_too_few(self):
        image, text, _ = pairs(2, 1.0, 0)
        for measure in (
            lambda: estimates.similarities(image, text),
            lambda: estimates.similarities_to(image, text, *pairs(9, 1, 0)[:2]),
            lambda: estimates.similarities_to(*pairs(9, 1, 0)[:2], image, text),
        ):
            with self.assertRaisesRegex(ValueError, "three pairs.*Received: 2"):
                measure()


class MatchedShareTest(tf.test.TestCase):
    def test_the_interval_covers_the_share(self):
        curated = reference()
        for share in (0.0, 0.1, 0.5, 1.0):
            image, text, matches = pairs(4_000, share, 3)
            pool = estimates.similarities(image, text)
            found = estimates.matched_share(pool.matched, curated)
            self.assertAllClose(found.mean, matches.mean(), 0, 0.04)
            self.assertBetween(matches.mean(), found.low, found.high)
            # Half its width is 1.96 standard errors of a ratio of means.
            error = np.hypot(
                pool.matched.std() / 4_000**0.5 / curated.mean(),
                found.mean * curated.std() / 600**0.5 / curated.mean(),
            )
            if 0.05 < share < 0.95:
                width = found.high - found.low
                self.assertAllClose(width, 3.92 * error, 0.1, 0)

    def test_pictures_and_captions_that_are_similar_to_all_do_not_matter(self):
        image, text, matches = pairs(4_000, 0.3, 4, common=1.0)
        pool = estimates.similarities(image, text).matched
        found = estimates.matched_share(pool, reference(common=1.0))
        self.assertAllClose(found.mean, matches.mean(), 0, 0.04)

    def test_a_reference_that_knows_nothing_is_refused(self):
        image, text, _ = pairs(600, 0.0, 5)
        nothing = estimates.similarities(image, text).matched
        with self.assertRaisesRegex(ValueError, "public model"):
            estimates.matched_share(nothing, nothing - nothing.mean())


class PosteriorTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        image, text, self.matches = pairs(6_000, 0.4, 6)
        self.pool = estimates.similarities(image, text)
        self.found = estimates.posterior(self.pool, reference(), 0.4)

    def test_it_is_calibrated(self):
        self.assertAllClose(self.found.mean(), 0.4, 0, 0.03)
        for low, high in ((0.0, 0.2), (0.3, 0.7), (0.8, 1.0)):
            some = (self.found >= low) & (self.found <= high)
            self.assertAllClose(
                self.matches[some].mean(), self.found[some].mean(), 0, 0.08
            )

    def test_it_rises_with_the_similarity(self):
        order = np.argsort(self.pool.matched)
        self.assertAllGreaterEqual(np.diff(self.found[order]), 0.0)

    def test_the_expected_precision_is_that_of_the_choice(self):
        for factor in (2, 5, 10):
            best = np.argsort(-self.pool.matched)[: 6_000 // factor]
            self.assertAllClose(
                estimates.precision(self.pool.matched, self.found, factor),
                self.matches[best].mean(),
                0,
                0.04,
            )


class DuplicatesTest(tf.test.TestCase):
    def test_copies_are_found_and_extrapolated(self):
        random = np.random.default_rng(0)
        image = unit(random.standard_normal([100, DIM]))
        image[60:80] = image[:20]
        image[80:90] = image[:10]
        found = estimates.duplicates(image, 1_000, 0.999)
        # Ten pictures three times, ten twice: 30 and 20 of the 100.
        self.assertAllClose(found.share, 0.5)
        # Each of 30 has two others, each of 20 one, among 99; of 999 in all.
        self.assertAllClose(found.copies, (30 * 2 + 20) / 100 * 999 / 99)
        self.assertAllClose(found.cosines, np.ones(12), 1e-5, 1e-5)
        self.assertAllEqual(image[found.pairs[:, 0]], image[found.pairs[:, 1]])
        self.assertLen(np.unique(found.pairs, axis=0), 12)

    def test_without_any_there_are_none(self):
        image = unit(np.random.default_rng(0).standard_normal([50, DIM]))
        found = estimates.duplicates(image, 50, 0.999)
        self.assertEqual((found.share, found.copies), (0.0, 0.0))
        self.assertEmpty(found.pairs)


class BreadthTest(tf.test.TestCase):
    def test_a_group_counts_the_clusters_that_it_is_spread_over(self):
        random = np.random.default_rng(0)
        centres = unit(random.standard_normal([8, DIM]))

        def group(kinds, count):
            near = centres[np.arange(count) % kinds]
            return unit(near + 0.01 * random.standard_normal([count, DIM]))

        # 64 of the pool's 128 pictures give eight clusters.
        found = estimates.breadth([group(8, 128), group(2, 64), group(1, 64)])
        self.assertAllClose(found, [8.0, 2.0, 1.0], 0.1, 0)


class NearerTest(tf.test.TestCase):
    def test_it_is_a_half_for_sets_of_one_kind_and_one_for_ones_own(self):
        random = np.random.default_rng(0)
        all_of_them = unit(random.standard_normal([3_000, DIM]))
        queries, first, second = np.split(all_of_them, [1_000, 1_200])
        self.assertAllClose(
            estimates.nearer(queries, first, second), 0.5, 0, 0.05
        )
        self.assertEqual(estimates.nearer(queries, queries, second), 1.0)
        self.assertEqual(estimates.nearer(queries, second, queries), 0.0)

"""Estimates of a pool, on embeddings whose shares are known."""

import numpy as np
import pool_pairs
import tensorflow as tf

from jest_tf.curation import estimates

ALIKE = np.ones(600, np.int64)  # counts of curated pairs


def pool_and_curated(count, share, seed, common=0.0):
    """Similarities of a pool, its matches, and those of curated pairs."""
    image, text, matches = pool_pairs.pairs(count, share, seed, common)
    curated = pool_pairs.pairs(600, 1.0, 99, common)[:2]
    return (
        estimates.similarities(image, text, image, text),
        matches,
        estimates.similarities(*curated, image, text),
    )


class SimilaritiesTest(tf.test.TestCase):
    def test_they_are_standardised_among_pairs_of_a_pool(self):
        pool_image, pool_text, _ = pool_pairs.pairs(40, 0.5, 2)
        image, text, _ = pool_pairs.pairs(5, 1.0, 3)
        found = estimates.similarities(image, text, pool_image, pool_text)
        for place in range(5):
            row, column = pool_text @ image[place], pool_image @ text[place]
            cosine = image[place] @ text[place]
            expected = (cosine - row.mean()) / row.std() / 2
            expected += (cosine - column.mean()) / column.std() / 2
            self.assertAllClose(found[place], expected, 1e-5, 1e-5)


class MatchedShareTest(tf.test.TestCase):
    def test_the_interval_covers_the_share(self):
        for share in (0.0, 0.1, 0.5, 1.0):
            pool, matches, curated = pool_and_curated(4_000, share, 3)
            found = estimates.matched_share(pool, curated, ALIKE)
            self.assertAllClose(found.mean, matches.mean(), 0, 0.04)
            self.assertBetween(matches.mean(), found.low, found.high)

    def test_the_interval_is_that_of_resamples(self):
        pool, _, curated = pool_and_curated(1_000, 0.3, 4)
        random = np.random.default_rng(0)
        counts = random.integers(0, 5, len(curated))
        found = estimates.matched_share(pool, curated, counts)
        ratios = [
            random.choice(pool, len(pool)).mean()
            / np.average(curated[rows], weights=counts[rows])
            for rows in random.integers(0, len(curated), [2_000, len(curated)])
        ]
        expected = np.percentile(ratios, [2.5, 97.5])
        self.assertAllClose([found.low, found.high], expected, 0, 0.005)

    def test_images_and_captions_that_are_similar_to_all_do_not_matter(self):
        pool, matches, curated = pool_and_curated(4_000, 0.3, 4, common=1.0)
        found = estimates.matched_share(pool, curated, ALIKE)
        self.assertAllClose(found.mean, matches.mean(), 0, 0.04)

    def test_curated_pairs_count_like_the_kinds_of_the_pool(self):
        """Of two kinds, the pool has mostly easy pairs, the other set hard."""
        random = np.random.default_rng(8)

        def pairs(*numbers, share):
            image, text = random.standard_normal(
                [2, sum(numbers), pool_pairs.DIM]
            )
            image, text = map(pool_pairs.unit, (image, text))
            is_easy = np.arange(len(image)) < numbers[0]
            matches = random.random(len(image)) < share
            strength = matches * np.where(is_easy, 1.0, 0.3)
            text += strength[:, None] * image
            image[:, 0] += np.where(is_easy, 2.0, -2.0)
            return pool_pairs.unit(image), pool_pairs.unit(text), matches

        image, text, matches = pairs(3_200, 800, share=0.4)
        curated = pairs(400, 1_600, share=1.0)[:2]
        pool, alike = (
            estimates.similarities(*some, image, text)
            for some in ((image, text), curated)
        )
        counts = estimates.count_nearest(image, curated[0])
        self.assertEqual(counts[:400].sum(), 5 * 3_200)
        self.assertEqual(counts[400:].sum(), 5 * 800)
        found = estimates.matched_share(pool, alike, counts)
        self.assertAllClose(found.mean, matches.mean(), 0, 0.05)
        mismatched = estimates.similarities(
            image, np.roll(text, 1, axis=0), image, text
        )
        chosen = estimates.chosen_share(
            pool, alike, counts, mismatched, found.mean, 2
        )
        best = np.argsort(-pool)[:2_000]
        self.assertAllClose(chosen, matches[best].mean(), 0, 0.05)

    def test_a_reference_that_knows_nothing_is_refused(self):
        nothing = pool_and_curated(600, 0.0, 5)[0]
        with self.assertRaisesRegex(ValueError, "public model"):
            estimates.matched_share(nothing, nothing - nothing.mean(), ALIKE)


class ChoiceTest(tf.test.TestCase):
    def test_the_candidates_are_as_many_as_hold_one_matched_pair(self):
        for share, candidates in (
            *((0.9, 2), (0.5, 2), (0.34, 3), (0.2, 5), (0.01, 10)),
            (0.0, 10),
        ):
            self.assertEqual(estimates.count_candidates(share), candidates)

    def test_the_chosen_share_is_that_of_the_most_similar(self):
        pool, matches, curated = pool_and_curated(6_000, 0.4, 6)
        mismatched = pool_and_curated(6_000, 0.0, 7)[0]
        for candidates in (2, 5, 10):
            best = np.argsort(-pool)[: 6_000 // candidates]
            found = estimates.chosen_share(
                pool, curated, ALIKE, mismatched, 0.4, candidates
            )
            self.assertAllClose(found, matches[best].mean(), 0, 0.03)

    def test_a_choice_beyond_all_known_pairs_is_by_chance(self):
        low, high = np.zeros(100), np.arange(1.0, 101.0)
        found = estimates.chosen_share(high, low, low + 1, low, 0.3, 5)
        self.assertAllClose(found, 0.3)

"""Retrieval by hand, and against a sorting twin."""

import itertools
from unittest import mock

import numpy as np
import tensorflow as tf
from sidecar_files import unit_rows

from jest_tf import evaluation
from jest_tf.evaluation import ranking, retrieval

KS = (1, 5, 10)


def first_match_by_sorting(scores, matches, value):
    """The mean over queries of the mean of value(rank) over orders of ties.

    Every order of a query's tied candidates is tried, so rows must be short.
    """
    means = []
    for row, match in zip(scores, matches, strict=True):
        values = []
        for order in itertools.permutations(range(len(row))):
            order = np.array(order)
            order = order[np.argsort(-row[order], kind="stable")]
            values.append(value(1 + int(np.argmax(match[order]))))
        means.append(np.mean(values))
    return np.mean(means)


def retrieval_by_sorting(images, texts, image_groups, text_groups):
    """The twin, for scores without ties: a full sort of every row."""
    scores = np.asarray(images, np.float64) @ np.asarray(texts, np.float64).T
    matches = np.equal.outer(image_groups, text_groups)
    results = {}
    for name, table, match in (
        ("image_to_text", scores, matches),
        ("text_to_image", scores.T, matches.T),
    ):
        order = np.argsort(-table, axis=1)
        ranks = 1 + np.take_along_axis(match, order, axis=1).argmax(axis=1)
        for k in KS:
            results[f"{name}/recall@{k}"] = np.mean(ranks <= k)
        results[f"{name}/mrr"] = np.mean(1.0 / ranks)
    return results


class RetrievalTest(tf.test.TestCase):
    def test_chance_is_what_one_point_for_everything_scores(self):
        groups = ["abcddd", "aabcccd"]
        found = retrieval.chance(*groups)
        blind = evaluation.retrieval_measures(
            *(np.ones([len(side), 1]) for side in groups), *groups
        )
        self.assertEqual({*found}, {*blind})
        for name, value in blind.items():
            self.assertAllClose(found[name], value, msg=name)

    def test_any_shape_equals_a_full_sort(self):
        random = np.random.default_rng(0)
        for num_images, num_texts, num_groups in (
            (1, 1, 1),
            (7, 30, 5),
            (40, 12, 12),
            (50, 50, 3),
        ):
            images = unit_rows(num_images, 1, 6)
            texts = unit_rows(num_texts, 2, 6)
            num_groups = min(num_groups, num_images, num_texts)
            # Each group is on both sides.
            groups = [
                random.permutation(np.arange(rows) % num_groups)
                for rows in (num_images, num_texts)
            ]
            self.assertAllClose(
                evaluation.retrieval_measures(images, texts, *groups),
                retrieval_by_sorting(images, texts, *groups),
            )

    def test_the_rank_of_a_tie_is_the_mean_over_its_orders(self):
        # The score 1 is above the match; of the four that tie two match, so
        # the two others come before both, between or after in 6 orders: 2
        # misses first once, 1 miss first twice, none thrice: mean 2 / 3.
        texts = [[1.0], [0.5], [0.5], [0.5], [0.5], [0.1]]
        images = [[1.0], [0.0], [0.0], [0.0]]
        found = evaluation.ranks(images, texts, "abcd", "bacadb")
        self.assertAllClose(found["image_to_text"][0], 1 + 1 + 2 / 3)

    def test_ties_are_worth_the_mean_over_their_orders(self):
        # Scores of few values, so that every row has ties, also among matches.
        random = np.random.default_rng(0)
        for seed in range(5):
            images = random.integers(0, 3, (4, 6))
            groups = [0, 0, 1, 2], [0, 0, 1, 1, 2, 2]
            groups = [random.permutation(some) for some in groups]
            found = evaluation.retrieval_measures(images, np.eye(6), *groups)
            matches = np.equal.outer(*groups)
            for measure, value in (
                ("mrr", lambda rank: 1 / rank),
                ("recall@1", lambda rank: rank <= 1),
                ("recall@5", lambda rank: rank <= 5),
            ):
                for side, scores, match in (
                    ("image_to_text", images, matches),
                    ("text_to_image", images.T, matches.T),
                ):
                    with self.subTest(measure, side=side, seed=seed):
                        self.assertAllClose(
                            found[f"{side}/{measure}"],
                            first_match_by_sorting(scores, match, value),
                        )

    def test_blocks_equal_the_whole(self):
        images, texts = unit_rows(23, 0, 5), unit_rows(23, 1, 5)
        images[4:9] = images[4]
        everything = images, texts, range(23), range(23)
        whole = evaluation.retrieval_measures(*everything)
        for block_size in (1, 7, 23, 100):
            with mock.patch.object(ranking, "BLOCK_SIZE", block_size):
                blocks = evaluation.retrieval_measures(*everything)
            self.assertEqual(blocks, whole)

    def test_what_does_not_fit_is_refused(self):
        images, texts = unit_rows(2, 0, 3), unit_rows(2, 1, 3)
        not_finite = images * [[1], [np.nan]]
        for message, arguments in (
            ("`image_to_text`: every .*1 of 2", (images, texts, "ab", "aa")),
            ("`text_to_image`: every query", (images, texts, "aa", "ab")),
            ("`text_groups` must have.*2 emb.*: 1", (images, texts, "ab", "a")),
            ("`image_groups` must have", (images, texts, "abc", "ab")),
            (r"`text_embed.*` must be \[rows", (images, texts[0], "ab", "ab")),
            (r"`image_embeddings` must be \[", (images[:0], texts, "", "ab")),
            ("`image_emb.*1 of 2", (not_finite, texts, "ab", "ab")),
        ):
            with self.assertRaisesRegex(ValueError, message):
                evaluation.retrieval_measures(*arguments)

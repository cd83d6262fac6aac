"""Retrieval and zero-shot by hand, against a sorting twin, and in training."""

import dataclasses
import itertools
import json
import os
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from jest_tf import config, evaluation, models
from jest_tf.data import preprocessing
from jest_tf.data import stores as stores_lib
from jest_tf.runs import checkpoints

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


def unit_vectors(rows, dim, seed):
    vectors = np.random.default_rng(seed).normal(size=(rows, dim))
    return np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


class RetrievalTest(tf.test.TestCase):
    def test_three_images_and_four_texts_by_hand(self):
        # Texts are unit axes, so an image's embedding is its row of scores:
        #
        #            text 0 (a)  1 (b)  2 (a)  3 (c)    rank of first match
        # image 0 (a)    0.1      0.4    0.3    0.2     text 2: 2
        # image 1 (b)    0.5      0.9    0.0    0.1     text 1: 1
        # image 2 (c)    0.7      0.8    0.6    0.5     text 3: 4
        #
        # A column at a time: text 0 (0.1, 0.5, 0.7) matches image 0: rank 3;
        # text 1 (0.4, 0.9, 0.8), image 1: 1; text 2 (0.3, 0.0, 0.6), image
        # 0: 2; text 3 (0.2, 0.1, 0.5), image 2: 1.
        images = [
            [0.1, 0.4, 0.3, 0.2],
            [0.5, 0.9, 0.0, 0.1],
            [0.7, 0.8, 0.6, 0.5],
        ]
        found = evaluation.retrieval(images, np.eye(4), "abc", "abac")
        self.assertAllClose(
            found,
            {
                "image_to_text/recall@1": 1 / 3,
                "image_to_text/recall@5": 1.0,
                "image_to_text/recall@10": 1.0,
                "image_to_text/mrr": (1 / 2 + 1 + 1 / 4) / 3,
                "text_to_image/recall@1": 2 / 4,
                "text_to_image/recall@5": 1.0,
                "text_to_image/recall@10": 1.0,
                "text_to_image/mrr": (1 / 3 + 1 + 1 / 2 + 1) / 4,
            },
        )

    def test_any_shape_equals_a_full_sort(self):
        random = np.random.default_rng(0)
        for num_images, num_texts, num_groups in (
            (1, 1, 1),
            (7, 30, 5),
            (40, 12, 12),
            (50, 50, 3),
        ):
            images = unit_vectors(num_images, 6, 1)
            texts = unit_vectors(num_texts, 6, 2)
            num_groups = min(num_groups, num_images, num_texts)
            # Each group is on both sides.
            groups = [
                random.permutation(np.arange(rows) % num_groups)
                for rows in (num_images, num_texts)
            ]
            self.assertAllClose(
                evaluation.retrieval(images, texts, *groups),
                retrieval_by_sorting(images, texts, *groups),
            )

    def test_ranks_are_those_that_the_measures_are_made_of(self):
        images, texts = unit_vectors(30, 4, 1), unit_vectors(12, 4, 2)
        groups = np.arange(30) % 9, np.arange(12) % 9
        found = evaluation.ranks(images, texts, *groups)
        measures = evaluation.retrieval(images, texts, *groups)
        for name, ranks in found.items():
            self.assertLen(ranks, 30 if name == "image_to_text" else 12)
            self.assertAllClose(np.mean(1 / ranks), measures[f"{name}/mrr"])
            for k in KS:
                self.assertAllClose(
                    np.mean(ranks <= k), measures[f"{name}/recall@{k}"]
                )

    def test_the_rank_of_a_tie_is_the_mean_over_its_orders(self):
        # The score 1 is above the match; of the four tied ones two match, so
        # the two others come before both, between or after in 6 orders: 2
        # misses first once, 1 miss first twice, none thrice: mean 2 / 3.
        texts = [[1.0], [0.5], [0.5], [0.5], [0.5], [0.1]]
        images = [[1.0], [0.0], [0.0], [0.0]]
        found = evaluation.ranks(images, texts, "abcd", "bacadb")
        self.assertAllClose(found["image_to_text"][0], 1 + 1 + 2 / 3)

    def test_ties_are_worth_the_mean_over_their_orders(self):
        # Scores of few values, so that every row has ties, also among matches.
        random = np.random.default_rng(0)
        for seed in range(20):
            images = random.integers(0, 3, (4, 6))
            image_groups = random.permutation([0, 0, 1, 2])
            text_groups = random.permutation([0, 0, 1, 1, 2, 2])
            found = evaluation.retrieval(
                images, np.eye(6), image_groups, text_groups
            )
            matches = np.equal.outer(image_groups, text_groups)
            for measure, value in (
                ("mrr", lambda rank: 1 / rank),
                ("recall@1", lambda rank: rank <= 1),
                ("recall@5", lambda rank: rank <= 5),
            ):
                with self.subTest(measure, seed=seed):
                    self.assertAllClose(
                        found[f"image_to_text/{measure}"],
                        first_match_by_sorting(images, matches, value),
                    )
                    self.assertAllClose(
                        found[f"text_to_image/{measure}"],
                        first_match_by_sorting(images.T, matches.T, value),
                    )

    def test_a_collapsed_model_scores_chance(self):
        # One of 30 matches: P(rank <= k) = k / 30. The vector's products are
        # not exact, which must not split ties.
        same = np.tile(unit_vectors(1, 96, 0), (30, 1))
        found = evaluation.retrieval(same, same, range(30), range(30))
        for side in ("image_to_text", "text_to_image"):
            for k in KS:
                self.assertAllClose(found[f"{side}/recall@{k}"], k / 30)
            self.assertAllClose(
                found[f"{side}/mrr"], np.mean(1 / np.arange(1, 31))
            )

    def test_several_matches_of_a_collapsed_model(self):
        # 5 texts of each of 4 groups: P(rank > k) = C(15, k) / C(20, k), for
        # k = 1: 15 / 20, for k = 5: 15 14 13 12 11 / (20 19 18 17 16).
        found = evaluation.retrieval(
            np.ones([4, 3]), np.ones([20, 3]), range(4), np.arange(20) % 4
        )
        missed = np.prod(np.arange(15, 10, -1) / np.arange(20, 15, -1))
        self.assertAllClose(found["image_to_text/recall@1"], 5 / 20)
        self.assertAllClose(found["image_to_text/recall@5"], 1 - missed)

    def test_blocks_equal_the_whole(self):
        images, texts = unit_vectors(23, 5, 0), unit_vectors(23, 5, 1)
        images[4:9] = images[4]
        whole = evaluation.retrieval(images, texts, range(23), range(23))
        for block_size in (1, 7, 23, 100):
            blocks = evaluation.retrieval(
                images, texts, range(23), range(23), block_size=block_size
            )
            self.assertEqual(blocks, whole)

    def test_the_order_of_rows_does_not_count(self):
        images, texts = unit_vectors(9, 5, 0), unit_vectors(9, 5, 1)
        order = np.random.default_rng(0).permutation(9)
        self.assertAllClose(
            evaluation.retrieval(images[order], texts, order, range(9)),
            evaluation.retrieval(images, texts, range(9), range(9)),
        )

    def test_what_does_not_fit_is_refused(self):
        one, two = unit_vectors(2, 3, 0), unit_vectors(2, 3, 1)
        for message, arguments in (
            (
                "`image_to_text`: every query.*1 of 2 .*row 1",
                (one, two, "ab", "aa"),
            ),
            ("`text_to_image`: every query", (one, two, "aa", "ab")),
            ("`text_groups` must have.*2 emb.*: 1", (one, two, "ab", "a")),
            ("`image_groups` must have", (one, two, "abc", "ab")),
            (r"`text_embeddings` must be \[rows", (one, two[0], "ab", "ab")),
            (r"`image_embeddings` must be \[", (one[:0], two, "", "ab")),
            (
                "`image_embeddings` must be finite.*1 of 2",
                (one * [[1], [np.nan]], two, "ab", "ab"),
            ),
        ):
            with self.assertRaisesRegex(ValueError, message):
                evaluation.retrieval(*arguments)


class ZeroShotTest(tf.test.TestCase):
    def test_by_hand(self):
        # Classes are unit axes. Image 0 (class 0) ranks it first, image 1
        # (class 5) last of six, image 2 (class 1) second.
        images = [
            [0.9, 0.1, 0.2, 0.3, 0.4, 0.5],
            [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
            [0.9, 0.8, 0.0, 0.0, 0.0, 0.0],
        ]
        self.assertAllClose(
            evaluation.zero_shot(images, [0, 5, 1], np.eye(6)),
            {"zero_shot/accuracy@1": 1 / 3, "zero_shot/accuracy@5": 2 / 3},
        )

    def test_a_collapsed_model_scores_chance(self):
        found = evaluation.zero_shot(
            np.ones([4, 3]), [0, 1, 2, 3], np.ones([20, 3])
        )
        self.assertAllClose(
            found, {"zero_shot/accuracy@1": 0.05, "zero_shot/accuracy@5": 0.25}
        )

    def test_a_class_out_of_range_is_refused(self):
        with self.assertRaisesRegex(
            ValueError, r"`image_classes` must be in \[0, 3\).* 0 to 3"
        ):
            evaluation.zero_shot(np.eye(3)[:2], [0, 3], np.eye(3))


class ClassEmbeddingsTest(tf.test.TestCase):
    def test_prompts_are_averaged_and_brought_to_unit_length(self):
        # "cat" -> (1, 0) and "a cat" -> (0, 1): the mean points half way.
        # "{dog}" keeps its braces.
        table = {
            "cat": [1.0, 0.0],
            "a cat": [0.0, 1.0],
            "{dog}": [0.6, 0.8],
            "a {dog}": [0.6, 0.8],
        }
        found = evaluation.class_embeddings(
            lambda texts: np.array([table[text] for text in texts]),
            ["cat", "{dog}"],
            ["{}", "a {}"],
        )
        self.assertAllClose(found, [[0.5**0.5, 0.5**0.5], [0.6, 0.8]])

    def test_prompts_need_one_place_for_the_name(self):
        for prompt in ("a cat", "{} and {}"):
            with self.assertRaisesRegex(
                ValueError, r"`prompts` must each hold one \"{}\".*" + prompt
            ):
                evaluation.class_embeddings(len, ["cat"], [prompt])

    def test_names_and_prompts_must_not_be_empty(self):
        with self.assertRaisesRegex(ValueError, "`class_names` must not be"):
            evaluation.class_embeddings(len, [])
        with self.assertRaisesRegex(ValueError, "`prompts` must not be"):
            evaluation.class_embeddings(len, ["cat"], [])


class Oracle:
    """A learner that knows the picture's gray and the caption's number.

    Pictures and captions of one number are alike, and embeddings of different
    numbers differ.
    """

    def __init__(self):
        self.traces = 0

    def encode_image(self, images, training):
        self.traces += 1
        assert training is False
        return tf.one_hot(tf.cast(images[:, 0, 0, 0], tf.int32), 16)

    def encode_text(self, tokens, training):
        assert training is False
        return tf.one_hot(tokens[:, 0], 16)


def number_of(captions):
    """Tokenizer: "a red 7" -> [7]."""
    words = tf.strings.split(captions, " ")
    return tf.strings.to_number(words[:, -1:].to_tensor(), tf.int32)


def write_shard(path, rows):
    """Rows of (gray, captions, concept, label)."""
    with tf.io.TFRecordWriter(path) as writer:
        for number, (gray, captions, concept, label) in enumerate(rows):
            image = tf.fill([2, 2, 3], tf.cast(gray, tf.uint8))
            features = {
                "image": [tf.io.encode_png(image).numpy()],
                "caption": [caption.encode() for caption in captions],
                "concept": [concept.encode()] if concept else [],
                "label": [label.encode()] if label else [],
            }
            example = {
                name: tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=values)
                )
                for name, values in features.items()
            }
            example["id"] = tf.train.Feature(
                int64_list=tf.train.Int64List(value=[100 + number])
            )
            writer.write(
                tf.train.Example(
                    features=tf.train.Features(feature=example)
                ).SerializeToString()
            )


# Gray and number agree in the first four rows; the fifth shows a 3 and is
# called 4. Row 1 repeats the caption of row 0, its concept as well. Two rows
# have no concept and are groups of their own, three have no label.
ROWS = [
    (1, ["one 1", "rubbish 9"], "one", "class 1"),
    (1, ["one 1"], "one", ""),
    (2, ["two 2"], "two", "class 2"),
    (3, ["three 3"], "", ""),
    (3, ["four 4"], "", ""),
]


class EvaluateStoreTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.path = f"{self.get_temp_dir()}/some-00000-of-00001.tfrecord"
        write_shard(self.path, ROWS)
        self.store = stores_lib.open_store(self.path)

    def evaluate(self, learner, batch_size=2):
        return evaluation.evaluate_store(
            learner,
            self.store,
            tokenizer=number_of,
            image_size=2,
            batch_size=batch_size,
            prompts=("{}", "a {}"),
        )

    def test_by_hand(self):
        # Four distinct captions: one, two, three, four. Images 0 to 3 score 1
        # with theirs and 0 with others: rank 1. Image 4 scores 1 with three,
        # and its own is one of three at 0: rank 2, 3 or 4.
        # Captions: one finds images 0 and 1: rank 1; two: 1; three scores 1
        # with images 3 and 4: rank 1 or 2; four scores 0 with all five: rank
        # 1 to 5. Classes 1 and 2 are told apart.
        for batch_size in (1, 2, 5, 64):
            found = self.evaluate(Oracle(), batch_size)
            self.assertAllClose(
                found,
                {
                    "image_to_text/recall@1": 4 / 5,
                    "image_to_text/recall@5": 1.0,
                    "image_to_text/recall@10": 1.0,
                    "image_to_text/mrr": (4 + (1 / 2 + 1 / 3 + 1 / 4) / 3) / 5,
                    "text_to_image/recall@1": (1 + 1 + 1 / 2 + 1 / 5) / 4,
                    "text_to_image/recall@5": 1.0,
                    "text_to_image/recall@10": 1.0,
                    "text_to_image/mrr": (
                        1
                        + 1
                        + (1 + 1 / 2) / 2
                        + (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5
                    )
                    / 4,
                    "zero_shot/accuracy@1": 1.0,
                    "zero_shot/accuracy@5": 1.0,
                },
            )

    def test_without_labels_there_is_no_zero_shot(self):
        write_shard(self.path, [(*row[:3], "") for row in ROWS])
        self.store = stores_lib.open_store(self.path)
        found = self.evaluate(Oracle())
        self.assertLen(found, 8)
        self.assertAllClose(found["image_to_text/recall@1"], 4 / 5)

    def test_a_short_last_batch_is_not_traced_again(self):
        learner = Oracle()
        self.evaluate(learner)
        self.assertEqual(learner.traces, 1)

    def test_a_picture_above_the_limit_is_refused(self):
        def evaluate(limit):
            return evaluation.evaluate_store(
                Oracle(),
                self.store,
                tokenizer=number_of,
                image_size=2,
                max_image_pixels=limit,
            )

        self.assertEqual(evaluate(4), evaluate(2**26))  # theirs are 2 x 2
        with self.assertRaisesRegex(
            tf.errors.InvalidArgumentError, r"record 0 of .*2 x 2.*3"
        ):
            evaluate(3)

    def test_a_real_learner_and_tokenizer(self):
        tokenizer = preprocessing.WordPieceTokenizer(
            ["[UNK]", "[EOS]", "one", "two", "1", "2"], 4
        )
        learner = models.build_two_tower(
            "tiny", image_size=8, vocabulary_size=6, text_length=4, seed=0
        )
        found = evaluation.evaluate_store(
            learner, self.store, tokenizer=tokenizer, image_size=8
        )
        images = tf.stack([tf.fill([8, 8, 3], row[0]) for row in ROWS])
        texts = tokenizer(tf.constant(["one 1", "two 2", "three 3", "four 4"]))
        expected = evaluation.retrieval(
            learner.encode_image(tf.cast(images, tf.uint8)),
            learner.encode_text(texts),
            [1, 1, 2, 3, 4],
            [1, 2, 3, 4],
        )
        for name, value in expected.items():
            self.assertAllClose(found[name], value)


class OpenStoresTest(tf.test.TestCase):
    def test_stores_are_named_after_their_files(self):
        folder = self.get_temp_dir()
        for name in (
            "val-00000-of-00002.tfrecord",
            "val-00001-of-00002.tfrecord",
            "test.tfrecord",
        ):
            write_shard(f"{folder}/{name}", ROWS[:2])
        stores = evaluation.open_stores([f"{folder}/val-*", f"{folder}/test*"])
        self.assertEqual(
            {name: len(store) for name, store in stores.items()},
            {"val": 4, "test": 2},
        )
        self.assertEqual(evaluation.open_stores(()), {})
        with self.assertRaisesRegex(ValueError, "different names.*'val' twice"):
            evaluation.open_stores([f"{folder}/val-*0-of*", f"{folder}/val-*"])

    def test_format_fields_and_index_folder_are_as_set(self):
        folder = self.get_temp_dir()
        tf.io.write_file(f"{folder}/1.png", b"picture")
        with open(f"{folder}/val.csv", "w", encoding="utf-8") as file:
            file.write("photo,words,more\n1.png,a,b\n")
        settings = config.TrainConfig(
            data=config.DataConfig(
                train=("train.csv", "other.csv"),
                weights=(1.0, 2.0),
                image_field="photo",
                caption_fields=("words", "more"),
                index_dir=f"{folder}/indexes",
            ),
            evaluation=config.EvaluationConfig(data=(f"{folder}/val.csv",)),
        )
        for own, captions in (
            ({}, (b"a", b"b")),
            ({"caption_fields": ("more",)}, (b"b",)),
        ):
            one = dataclasses.replace(
                settings,
                evaluation=dataclasses.replace(settings.evaluation, **own),
            )
            stores = evaluation.open_stores(
                one.evaluation.data, one.evaluation_data
            )
            self.assertEqual(
                stores["val"].read([0]),
                [stores_lib.Record(b"picture", captions, {})]
                if not own
                else [stores_lib.Record(b"picture", captions, {"words": b"a"})],
            )
        self.assertCountEqual(
            os.listdir(folder), ["1.png", "val.csv", "indexes"]
        )
        for own, message in (
            ({"image_field": ""}, r"image_field ''.* of `evaluation` or,"),
            ({"format": "tfrecord"}, "format 'tfrecord'.*not an uncompressed"),
        ):
            one = dataclasses.replace(
                settings,
                evaluation=dataclasses.replace(settings.evaluation, **own),
            )
            with self.assertRaisesRegex(ValueError, message):
                evaluation.open_stores(one.evaluation.data, one.evaluation_data)


class EvaluationTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.get_temp_dir()
        path = f"{self.folder}/some.tfrecord"
        write_shard(path, ROWS)
        self.stores = {"some": stores_lib.open_store(path)}
        self.logged = {}

    def make(self, every_steps=None, **settings):
        return evaluation.Evaluation(
            Oracle(),
            self.stores,
            config.EvaluationConfig(every_steps=every_steps),
            tokenizer=number_of,
            image_size=2,
            log=self.logged.__setitem__,
            **settings,
        )

    def fit(self, callback, steps, **settings):
        """Any model will do: the callback evaluates the learner it has."""
        model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
        model.compile(optimizer="sgd", loss="mse")
        data = tf.data.Dataset.from_tensors((tf.ones([1, 1]), tf.ones([1])))
        model.fit(
            data.repeat(),
            steps_per_epoch=steps,
            shuffle=False,
            verbose=0,
            callbacks=[callback],
            **settings,
        )

    def steps_written(self):
        path = os.path.join(self.folder, checkpoints.EVALUATION_FILE)
        with open(path, encoding="utf-8") as file:
            return [json.loads(line)["step"] for line in file]

    def test_it_evaluates_every_so_many_steps_and_at_the_end(self):
        self.fit(self.make(every_steps=2), 5)
        self.assertEqual(list(self.logged), [2, 4, 5])
        # Image 4 alone is wrong, see EvaluateStoreTest.
        self.assertAllClose(
            self.logged[5]["eval/some/image_to_text/recall@1"], 4 / 5
        )

    def test_it_counts_over_epochs(self):
        self.fit(self.make(every_steps=2), 3, epochs=2)
        self.assertEqual(list(self.logged), [2, 4, 6])

    def test_without_an_interval_only_the_end_is_evaluated(self):
        self.fit(self.make(), 5)
        self.assertEqual(list(self.logged), [5])

    def test_a_continued_run_counts_on(self):
        self.fit(self.make(every_steps=4, start_step=5), 5)
        self.assertEqual(list(self.logged), [8, 10])

    def test_a_continued_run_makes_up_for_the_step_it_starts_at(self):
        self.fit(self.make(every_steps=4, start_step=4), 2)
        self.assertEqual(list(self.logged), [4, 6])

    def test_what_is_written_is_not_evaluated_again(self):
        callback = self.make(every_steps=2, workdir=self.folder)
        self.fit(callback, 4)
        first = callback.run(4)
        self.assertEqual(self.steps_written(), [2, 4])
        self.logged.clear()
        again = self.make(every_steps=2, workdir=self.folder, start_step=4)
        self.fit(again, 2)
        self.assertEqual(self.steps_written(), [2, 4, 6])
        self.assertEqual(list(self.logged), [6])
        self.assertEqual(again.run(4), first)

    def test_a_line_tells_what_the_steps_have_cost(self):
        costs = mock.Mock(side_effect=lambda step: {"flops/step": 10 * step})
        callback = self.make(every_steps=2, workdir=self.folder, costs=costs)
        self.fit(callback, 3)
        path = os.path.join(self.folder, checkpoints.EVALUATION_FILE)
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        self.assertEqual([row["flops/step"] for row in rows], [20, 30])
        self.assertGreater(callback.seconds, 0.0)
        # Costs are no measures, neither now nor when they are read back.
        again = self.make(workdir=self.folder, costs=costs)
        for one in (callback.run(3), again.run(3), self.logged[3]):
            self.assertNotIn("flops/step", one)
            self.assertLen(one, 10)

    def test_no_stores_measure_nothing(self):
        self.stores = {}
        callback = self.make(every_steps=1, workdir=self.folder)
        self.assertEqual(callback.run(3), {})
        self.assertEqual(self.logged, {})
        self.assertNotIn(checkpoints.EVALUATION_FILE, os.listdir(self.folder))


if __name__ == "__main__":
    tf.test.main()

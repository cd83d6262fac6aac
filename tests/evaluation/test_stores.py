"""Evaluation of stores: what is embedded, and how stores are opened."""

import dataclasses
import os

import tensorflow as tf
from evaluation_cases import ROWS, Oracle, number_of, write_shard

from jest_tf import config, evaluation
from jest_tf.data import stores as stores_lib


class EvaluateStoreTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.path = f"{self.get_temp_dir()}/some-00000-of-00001.tfrecord"
        write_shard(self.path, ROWS)
        self.store = stores_lib.open_store(self.path)

    def evaluate(self, learner, batch_size=2):
        return evaluation.StoreEvaluation(
            evaluation.Encoder(learner, number_of, 2, batch_size),
            self.store,
        ).measure()

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
                    "zero_shot/mean_per_class": 1.0,
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

    def test_format_fields_and_index_folder_are_those_of_training(self):
        folder = self.get_temp_dir()
        tf.io.write_file(f"{folder}/1.png", b"picture")
        with open(f"{folder}/val.csv", "w", encoding="utf-8") as file:
            file.write("photo,words,more\n1.png,a,b\n")
        settings = config.DataConfig(
            train=("train.csv", "other.csv"),
            weights=(1.0, 2.0),
            manifest="of these alone",
            image_field="photo",
            caption_fields=("words", "more"),
            index_dir=f"{folder}/indexes",
        )
        stores = evaluation.open_stores([f"{folder}/val.csv"], settings)
        record = stores_lib.Record(b"picture", (b"a", b"b"), {})
        self.assertEqual(stores["val"].read([0]), [record])
        self.assertCountEqual(
            os.listdir(folder), ["1.png", "val.csv", "indexes"]
        )
        for own, message in (({"image_field": ""}, "image_field ''"),):
            with self.assertRaisesRegex(ValueError, message):
                evaluation.open_stores(
                    [f"{folder}/val.csv"], dataclasses.replace(settings, **own)
                )

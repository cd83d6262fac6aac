"""Evaluation of stores: texts, classes, templates, and how they are opened."""

import dataclasses
import json
import os
import tempfile

import shard_files
import tensorflow as tf
from evaluation_cases import ROWS, Oracle, number_of, serialize, write_shard

from jest_tf import config, evaluation
from jest_tf.data import stores as stores_lib


class EvaluateStoreTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.path = f"{self.get_temp_dir()}/some-00000-of-00001.tfrecord"
        write_shard(self.path, ROWS)
        self.store = stores_lib.open_store(self.path)

    def evaluate(self, learner, batch_size=2):
        encoder = evaluation.Encoder(learner, number_of, 2, batch_size)
        return evaluation.StoreEvaluation(self.store).measure(encoder)

    def test_by_hand(self):
        # Four distinct captions: one, two, three, four. Images 0 to 3 score 1
        # with theirs and 0 with others: rank 1. Image 4 scores 1 with three,
        # and its own is one of three at 0: rank 2, 3 or 4.
        # Captions: one finds images 0 and 1: rank 1; two: 1; three scores 1
        # with images 3 and 4: rank 1 or 2; four scores 0 with all five: rank
        # 1 to 5. Classes 1 and 2 are told apart.
        def reciprocal(*ranks):
            return sum(1 / rank for rank in ranks) / len(ranks)

        mrr = 1 + 1 + reciprocal(1, 2) + reciprocal(1, 2, 3, 4, 5)
        for batch_size in (1, 2, 5, 64):
            found = self.evaluate(Oracle(), batch_size)
            self.assertAllClose(
                found,
                {
                    "image_to_text/recall@1": 4 / 5,
                    "image_to_text/recall@5": 1.0,
                    "image_to_text/recall@10": 1.0,
                    "image_to_text/mrr": (4 + reciprocal(2, 3, 4)) / 5,
                    "text_to_image/recall@1": (1 + 1 + 1 / 2 + 1 / 5) / 4,
                    "text_to_image/recall@5": 1.0,
                    "text_to_image/recall@10": 1.0,
                    "text_to_image/mrr": mrr / 4,
                    "zero_shot/accuracy@1": 1.0,
                    "zero_shot/accuracy@5": 1.0,
                    "zero_shot/mean_per_class": 1.0,
                },
            )

    def test_a_short_last_batch_is_not_traced_again(self):
        learner = Oracle()
        self.evaluate(learner)
        self.assertEqual(learner.traces, 1)


class SettingsTest(tf.test.TestCase):
    """Stores with captions, classes and templates of their own."""

    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.path = f"{self.folder}/some.tfrecord"

    def write(self, name, text):
        tf.io.write_file(f"{self.folder}/{name}", text)
        return f"{self.folder}/{name}"

    def opened(self, *records, **settings):
        shard_files.write_shard(self.path, [serialize(**x) for x in records])
        own = config.EvaluationStore("own", (self.path,), **settings)
        stores = config.EvaluationConfig(stores=(own,))
        return evaluation.open_stores(stores.named)["own"]

    def labelled(self, *labels, **settings):
        """The class names, and the classes of the records with a label."""
        records = [{"gray": 1, "label": label} for label in labels]
        found = self.opened(*records, **settings)
        return found.class_names, found.targets.tolist()

    def test_every_caption_of_an_image_is_a_query_and_an_answer(self):
        # Image 1: "9" is not found before "1"; image 2 has two "2". That
        # they share a concept and a caption makes no difference.
        found = self.opened(
            {"gray": 1, "caption": ["the 9", "a 1"], "concept": "x"},
            {"gray": 2, "caption": ["a 2\n \nthe 2"], "concept": "x"},
            captions="all",
        )
        self.assertEqual(found.captions, [b"the 9", b"a 1", b"a 2", b"the 2"])
        measures = found.measure(evaluation.Encoder(Oracle(), number_of, 2, 4))
        self.assertAllClose(
            {name: measures[name] for name in measures if "@1" in name},
            {
                "image_to_text/recall@1": 1.0,
                "image_to_text/recall@10": 1.0,
                # "9" is like neither image, a tie of both.
                "text_to_image/recall@1": 3.5 / 4,
                "text_to_image/recall@10": 1.0,
            },
        )
        self.assertAllClose(found.chance["text_to_image/recall@1"], 1 / 2)

    def test_zero_shot_by_hand(self):
        # Oracle sees the gray and reads the last number. Of class 1 two of
        # three images are right, of class 2 one of one; a 3 is tied between
        # both, which is half right. The last record has no label.
        kinds = (1, "c 1"), (1, "c 1"), (3, "c 1"), (2, "c 2"), (7, "")
        records = [{"gray": gray, "kind": kind} for gray, kind in kinds]
        found = self.opened(*records, label_field="kind")
        measures = found.measure(evaluation.Encoder(Oracle(), number_of, 2, 4))
        self.assertAllClose(
            measures,
            {
                "zero_shot/accuracy@1": 3.5 / 4,
                "zero_shot/accuracy@5": 1.0,
                "zero_shot/mean_per_class": (2.5 / 3 + 1) / 2,
            },
        )
        self.assertEqual(found.chance, {"zero_shot/accuracy@1": 1 / 2})

    def test_labels_are_names_or_numbers_or_keys_of_the_classes(self):
        self.assertEqual(self.labelled("b", "a"), (("a", "b"), [1, 0]))
        lines = self.write("names.txt", "a\nb\nc\n")
        for labels in (("c", "a"), (2, 0), ("2", "0")):
            self.assertEqual(
                self.labelled(*labels, classes=lines), (("a", "b", "c"), [2, 0])
            )
        # A number is a place in the list, also if names are digits.
        digits = self.write("digits.txt", "1\n0\n")
        self.assertEqual(self.labelled(1, 0, classes=digits)[1], [1, 0])
        self.assertEqual(self.labelled("1", "0", classes=digits)[1], [0, 1])
        keys = self.write("names.json", json.dumps({"n2": "bee", "n1": "ant"}))
        found = self.labelled("n1", "bee", classes=keys)
        self.assertEqual(found, (("bee", "ant"), [1, 0]))

    def test_clip_benchmarks_tars_are_read_as_they_are(self):
        image = tf.io.encode_png(tf.zeros([2, 2, 3], tf.uint8)).numpy()
        members = [
            *(("a.png", image), ("a.cls", b"1"), ("a.txt", b"one\nuno\n")),
            *(("b.png", image), ("b.cls", b"0\n"), ("b.txt", b"two")),
        ]
        shard_files.write_tar(f"{self.folder}/0.tar", members)
        store = config.EvaluationStore(
            data=(f"{self.folder}/0.tar",),
            captions="all",
            classes=self.write("classnames.txt", "ape\nbee\n"),
        )
        named = config.EvaluationConfig(stores=(store,)).named
        (found,) = evaluation.open_stores(named).values()
        self.assertEqual(found.targets.tolist(), [1, 0])
        self.assertEqual(found.captions, [b"one", b"uno", b"two"])
        self.assertEqual(found.rows.tolist(), [0, 0, 1])

    def test_templates_are_those_of_the_file_or_the_name_alone(self):
        path = self.write("templates.txt", "a {c}.\nthe {}\n")
        for settings, expected in (
            ({"templates": path}, ("a {}.", "the {}")),
            ({}, ("{}",)),
        ):
            found = self.opened(
                {"gray": 1, "label": "1"}, {"gray": 2, "label": "2"}, **settings
            )
            self.assertEqual(found._templates, expected)

    def test_mistakes_name_the_store_and_the_setting(self):
        names = self.write("names.txt", "a\nb\n")
        blank = self.write("blank.txt", "a\n\nb\n")
        slot = self.write("slot.txt", "a {}\n{} or {}\n")
        unknown = "own: `classes` .* 2 classes, .* 3 records .*: 'x', '7'"
        no_use = "captions, .* or labels .*1 records .*value of 'label'"
        empty = "`label_field` must .*'kind', which is empty in all 1"
        for labels, settings, message in (
            (["x", "x", "7", "a"], {"classes": names}, unknown),
            ([""], {}, no_use),
            ([""], {"label_field": "kind"}, empty),
            (["a"], {"classes": blank}, "`classes` must .*with a blank line"),
            (["a"], {"classes": self.write("a.json", "[1]")}, "a JSON object"),
            (["a"], {"classes": self.write("b.json", "a")}, "is not JSON"),
            (["a"], {"classes": f"{names}.no"}, "`classes` .* a text file"),
            (["a"], {"templates": slot}, "`templates` .*number 2 of"),
        ):
            with (
                self.subTest(message),
                self.assertRaisesRegex(ValueError, message),
            ):
                self.labelled(*labels, **settings)
        with self.assertRaisesRegex(ValueError, "must have a caption that"):
            self.opened(
                {"gray": 1, "caption": "a"},
                {"gray": 1, "caption": " "},
                captions="all",
            )
        message = "`evaluation.stores.0.data` must be one or more paths"
        with self.assertRaisesRegex(ValueError, message):
            config.EvaluationConfig(stores=(config.EvaluationStore("own"),))


def open_stores(*patterns, data=None):
    settings = config.EvaluationConfig(data=patterns)
    return evaluation.open_stores(settings.named, data)


class OpenStoresTest(tf.test.TestCase):
    def test_stores_are_named_after_their_files(self):
        folder = self.get_temp_dir()
        for name in (
            "val-00000-of-00002.tfrecord",
            "val-00001-of-00002.tfrecord",
            "test.tfrecord",
        ):
            write_shard(f"{folder}/{name}", ROWS[:2])
        stores = open_stores(f"{folder}/val-*", f"{folder}/test*")
        self.assertEqual(
            {name: len(found.store) for name, found in stores.items()},
            {"val": 4, "test": 2},
        )
        self.assertEqual(open_stores(), {})
        with self.assertRaisesRegex(ValueError, "different names.*'val' twice"):
            open_stores(f"{folder}/val-*0-of*", f"{folder}/val-*")

    def test_format_fields_and_index_folder_are_those_of_training(self):
        folder = self.get_temp_dir()
        tf.io.write_file(f"{folder}/1.png", b"image")
        tf.io.write_file(f"{folder}/val.csv", "photo,words,more\n1.png,a,b\n")
        settings = config.DataConfig(
            train=("train.csv", "other.csv"),
            weights=(1.0, 2.0),
            manifest="of these alone",
            image_field="photo",
            caption_fields=("words", "more"),
            index_dir=f"{folder}/indexes",
        )
        stores = open_stores(f"{folder}/val.csv", data=settings)
        record = stores_lib.Record(b"image", (b"a", b"b"), {})
        self.assertEqual(stores["val"].store.read([0]), [record])
        names = ["1.png", "val.csv", "indexes"]
        self.assertCountEqual(os.listdir(folder), names)
        settings = dataclasses.replace(settings, image_field="")
        with self.assertRaisesRegex(ValueError, "image_field ''"):
            open_stores(f"{folder}/val.csv", data=settings)

"""Entries of a suite, from files to measures in CLIP_benchmark's names."""

import pathlib
import sys
from unittest import mock

import suite_files
import tensorflow as tf
from evaluation_cases import Oracle, number_of

from jest_tf import evaluation


class SuiteTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.get_temp_dir()) / self.id()
        self.folder.mkdir()

    def write(self, text):
        path = self.folder / "suite.toml"
        path.write_text(text)
        return str(path)

    def outcomes(self, text):
        opened = evaluation.open_suite(self.write(text))
        encoder = evaluation.Encoder(Oracle(), number_of, 4)
        for entry in opened.values():
            entry.attach(encoder)
        return {name: entry.outcomes() for name, entry in opened.items()}

    def test_zero_shot_by_hand(self):
        # Oracle sees the gray and reads the last number. Of class 1 two of
        # three pictures are right, of class 2 one of one; a 3 is tied between
        # both, which is half right.
        suite_files.write_classes(
            self.folder / "data", {"class 1": [1, 1, 3], "class 2": [2]}
        )
        found = self.outcomes('[numbers]\ndata = "data"\n')
        self.assertAllClose(
            found["numbers"]["zero_shot"],
            {
                "zero_shot/accuracy@1": 3.5 / 4,
                "zero_shot/mean_per_class": (2.5 / 3 + 1) / 2,
            },
        )
        (result,) = evaluation.results(found, "tiny", "runs/one")
        self.assertAllClose(
            result.pop("metrics"),
            {"acc1": 3.5 / 4, "mean_per_class_recall": (2.5 / 3 + 1) / 2},
        )
        self.assertEqual(
            result,
            {
                "dataset": "numbers",
                "model": "tiny",
                "pretrained": "runs/one",
                "task": "zeroshot_classification",
                "language": "en",
            },
        )

    def test_every_caption_of_a_picture_is_a_query_and_an_answer(self):
        # Picture 1: "9" is not found before "1"; picture 2 has two "2".
        suite_files.write_tars(
            self.folder / "data",
            [(1, {"txt": "the 9\na 1"}), (2, {"txt": "a 2\nthe 2"})],
            {"dataset_type.txt": "retrieval"},
        )
        found = self.outcomes('[pairs]\ntask = "retrieval"\ndata = "data"\n')
        measures = found["pairs"]["retrieval"]
        self.assertAllClose(
            {name: measures[name] for name in measures if "@1" in name},
            {
                "image_to_text/recall@1": 1.0,
                "image_to_text/recall@10": 1.0,
                # "9" is like neither picture, a tie of both.
                "text_to_image/recall@1": 3.5 / 4,
                "text_to_image/recall@10": 1.0,
            },
        )
        (result,) = evaluation.results(found, "tiny", "")
        self.assertEqual(result["task"], "zeroshot_retrieval")
        self.assertAllClose(
            result["metrics"]["image_retrieval_recall@1"], 3.5 / 4
        )
        self.assertAllClose(result["metrics"]["text_retrieval_mrr"], 1.0)

    def test_the_imagenets_are_found_as_they_are_unpacked(self):
        # Pictures of synsets 0 and 1; v2's folders are numbers.
        synsets = {"n01440764": [1], "n01443537": [2]}
        for folder in ("imagenet/val", "imagenet-a", "imagenet-r", "sketch"):
            suite_files.write_classes(self.folder / folder, synsets)
        suite_files.write_classes(
            self.folder / "imagenetv2-matched-frequency-format-val",
            {"0": [1], "1": [2]},
        )
        names = [f"class {number}" for number in range(1, 1001)]
        suite_files.write_open_clip(self.folder, names)
        entries = ["imagenet"]
        entries += [f"imagenet_{name}" for name in ("v2", "a", "r", "sketch")]
        with mock.patch.object(sys, "path", [str(self.folder), *sys.path]):
            opened = evaluation.open_suite(
                self.write("".join(f"[{name}]\n" for name in entries))
            )
        self.assertEqual([*opened], entries)
        encoder = evaluation.Encoder(Oracle(), number_of, 4)
        for name, entry in opened.items():
            entry.attach(encoder)
            # Oracle tells sixteen numbers apart, and no others.
            self.assertEqual(entry.labelled().targets.tolist(), [0, 1], name)
            count = 2 if name in ("imagenet_a", "imagenet_r") else 1000
            self.assertLen(entry.labelled().names, count)
            self.assertAllClose(
                entry.measure()["zero_shot/accuracy@1"], 1.0, msg=name
            )

    def test_errors_name_the_entry(self):
        with self.assertRaisesRegex(
            ValueError,
            r"suite.toml, \[imagenet_a\]: the data is not there.*"
            r"imagenet-a'.*docs/evaluation.md",
        ):
            self.outcomes("[imagenet_a]\n")

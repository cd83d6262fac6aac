"""Zero-shot classification by hand."""

import numpy as np
import tensorflow as tf

from jest_tf import evaluation
from jest_tf.evaluation import zero_shot


class ZeroShotTest(tf.test.TestCase):
    def test_by_hand(self):
        # Classes are unit axes, and four have no images. Class 0: an
        # image ranks it first, one ties it with another class, half right, and
        # one ranks it last of six: 1 / 2. Class 2: its one image is right.
        images = [
            [0.9, 0.0, 0.1, 0.2, 0.3, 0.4],
            [0.5, 0.0, 0.5, 0.1, 0.2, 0.3],
            [0.1, 0.9, 0.2, 0.3, 0.4, 0.5],
            [0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
        ]
        self.assertAllClose(
            evaluation.zero_shot_measures(images, [0, 0, 0, 2], np.eye(6)),
            {
                "zero_shot/accuracy@1": 2.5 / 4,
                "zero_shot/accuracy@5": 3 / 4,
                "zero_shot/mean_per_class": (0.5 + 1.0) / 2,
            },
        )
        self.assertAllEqual(zero_shot.nearest(images, np.eye(6)), [0, 0, 1, 2])

    def test_a_class_out_of_range_is_refused(self):
        with self.assertRaisesRegex(ValueError, "`image_classes` .* 0 to 3"):
            evaluation.zero_shot_measures(np.eye(3)[:2], [0, 3], np.eye(3))


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

    def test_names_and_prompts_that_make_no_texts_are_refused(self):
        for names, prompts, message in (
            (["cat"], ["a cat"], "`prompts` must be .*a cat"),
            (["cat"], ["{} and {}"], "`prompts` must be .*{} and {}"),
            (["cat"], [], "`prompts` must be one or more"),
            ([], ["{}"], "`class_names` must be at least"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                evaluation.class_embeddings(len, names, prompts)

"""Our measures beside CLIP_benchmark's and open_clip's, on equal embeddings.

`make test-peers` builds the environment that they run in and starts this. The
data is real: scikit-learn's digits and the shipped icons, as plain pixels.
Texts are made up from the images, so that they are neither right nor wrong
throughout.
"""

import json
import pathlib
import subprocess
import tempfile

import numpy as np
import pytest
import tensorflow as tf
from sklearn import datasets
from sklearn.feature_extraction import text as text_features

from jest_tf import evaluation
from jest_tf.data import images as images_lib
from jest_tf.data import stores

ROOT = pathlib.Path(__file__).parent.parent.parent
PEERS = ROOT / ".venv-peers"
TEMPLATES = ["a {}", "the {}", "{}!"]
CLASSES = [f"digit {number}" for number in range(10)]
PROMPTS = [
    template.replace("{}", name) for name in CLASSES for template in TEMPLATES
]


def unit(vectors):
    return np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def digits():
    """Pixels, labels, and embeddings of the prompts of each class."""
    images, labels = datasets.load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    means = [images[:500][labels[:500] == digit].mean(0) for digit in range(10)]
    prompts = np.repeat(means, len(TEMPLATES), axis=0)
    prompts += random.normal(0, 3, prompts.shape)
    return {
        "digits_images": unit(images),
        "digits_labels": labels,
        "digits_prompts": unit(prompts),
    }


def icons():
    """Pixels of the icons, and of each caption words mixed with pixels.

    Of equal icons the first alone is taken, as the peers break ties otherwise.
    """
    store = stores.open_store(
        str(ROOT / "examples/icontext_mini/test-*.tfrecord"),
        index_dir=str(ROOT / ".pytest_cache"),
    )
    found = {}
    for record in store.read(range(len(store))):
        image = images_lib.decode(record.image)
        small = images_lib.resize_image(image, 8).numpy()
        found.setdefault(small.tobytes(), (small, record))
    small, records = zip(*found.values(), strict=True)
    images = np.float64(small).reshape(len(small), -1)
    images = unit(images - images.mean(axis=0))
    captions = [text for record in records for text in record.captions]
    rows = np.repeat(
        np.arange(len(records)), [len(record.captions) for record in records]
    )
    words = text_features.HashingVectorizer(
        analyzer="char", ngram_range=(2, 4), n_features=images.shape[1]
    ).transform(captions)
    texts = unit(words.toarray() + 0.35 * images[rows])
    return {"icons_images": images, "icons_texts": texts, "icons_rows": rows}


@pytest.mark.slow
class PeersTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if not list(PEERS.glob("lib/*/site-packages/clip_benchmark")):
            raise cls.skipTest(cls(), "make test-peers installs the peers")
        cls.given = {
            "classes": CLASSES,
            "templates": TEMPLATES,
            "prompts": PROMPTS,
            **digits(),
            **icons(),
        }
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.folder = pathlib.Path(folder)
        np.savez(cls.folder / "given.npz", **cls.given)
        subprocess.run(
            [PEERS / "bin/python", ROOT / "tests/peer_metrics.py", cls.folder],
            check=True,
            cwd=cls.folder,
        )
        cls.found = json.loads((cls.folder / "found.json").read_text())

    def classify(self, name):
        table = dict(zip(PROMPTS, self.given[f"{name}_prompts"], strict=True))
        classes = evaluation.class_embeddings(
            lambda texts: np.array([table[text] for text in texts]),
            CLASSES,
            TEMPLATES,
        )
        measures = evaluation.zero_shot_measures(
            self.given[f"{name}_images"], self.given[f"{name}_labels"], classes
        )
        return classes, measures

    def check_digits_printed(self, ours, theirs):
        # Theirs are float32 means, of six digits and a part of the seventh.
        self.assertBetween(theirs, 0.05, 0.999)
        self.assertEqual(f"{ours:.6f}", f"{theirs:.6f}")

    def test_zero_shot_classification(self):
        classes, measures = self.classify("digits")
        found = self.found["digits"]
        self.assertAllClose(classes, found["weights"], atol=1e-6)
        theirs = {
            "zero_shot/accuracy@1": ("acc1", "open_clip_acc1"),
            "zero_shot/accuracy@5": ("acc5", "open_clip_acc5"),
            "zero_shot/mean_per_class": ("mean_per_class_recall",),
        }
        self.assertCountEqual(measures, theirs)
        for name, others in theirs.items():
            for other in others:
                with self.subTest(other):
                    self.check_digits_printed(measures[name], found[other])

    def test_retrieval_with_all_captions(self):
        images, texts = self.given["icons_images"], self.given["icons_texts"]
        measures = evaluation.retrieval_measures(
            images, texts, range(len(images)), self.given["icons_rows"]
        )
        # Their image retrieval goes from a text to the images.
        for ours, theirs in (
            ("image_to_text", "text"),
            ("text_to_image", "image"),
        ):
            for k in (1, 5, 10):
                with self.subTest(ours, k=k):
                    self.check_digits_printed(
                        measures[f"{ours}/recall@{k}"],
                        self.found["icons"][f"{theirs}_retrieval_recall@{k}"],
                    )

    def test_retrieval_with_the_first_captions(self):
        images = self.given["icons_images"]
        _, first = np.unique(self.given["icons_rows"], return_index=True)
        arguments = images, self.given["icons_texts"][first]
        numbers = range(len(images)), range(len(images))
        measures = evaluation.retrieval_measures(*arguments, *numbers)
        ranks = evaluation.ranks(*arguments, *numbers)
        for side in ("image_to_text", "text_to_image"):
            found = {
                name.removeprefix(f"{side}_"): value
                for name, value in self.found["icons"].items()
                if name.startswith(side)
            }
            for k in (1, 5, 10):
                self.check_digits_printed(
                    measures[f"{side}/recall@{k}"], found[f"R@{k}"]
                )
            self.assertAllClose(np.mean(ranks[side]), found["mean_rank"])
            median = np.floor(np.median(ranks[side]))
            self.assertEqual(median, found["median_rank"])

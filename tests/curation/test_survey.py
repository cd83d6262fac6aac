"""Surveys and the command `jest-tf advise`, on pools whose shares are known.

Pictures and words have one of 64 codes; the reference gives a picture and the
word of its code the same embedding. A pair matches if its codes are equal.
"""

import contextlib
import html
import io
import itertools
import json
import os
import pathlib
import tempfile

import html_elements
import keras
import numpy as np
import shard_files
import tensorflow as tf

from jest_tf import cli, config, models
from jest_tf.curation import survey
from jest_tf.data import stores, tokenizers
from jest_tf.models import reference as reference_lib
from jest_tf.runs import directory, loading

CODES, DIM, SIZE, LENGTH = 64, 32, 4, 2
WORDS = [a + b for a, b in itertools.product("abcdefgh", "ijklmnop")]
PICTURES = np.random.default_rng(0).integers(
    0, 256, [CODES, SIZE, SIZE, 3], np.uint8
)


def write_reference(folder):
    """A `.keras` file that knows all codes; returns its path."""
    text = keras.Sequential(
        [
            keras.Input([LENGTH], dtype="int32"),
            keras.layers.Embedding(CODES + 2, DIM),
            keras.layers.Flatten(),
            keras.layers.Dense(DIM, use_bias=False),
        ]
    )
    image = keras.Sequential(
        [
            keras.layers.Flatten(),
            keras.layers.Dense(
                DIM,
                use_bias=False,
                kernel_initializer=keras.initializers.RandomNormal(seed=0),
            ),
        ]
    )
    learner = models.TwoTower(image, text)
    learner.build({"image": (None, SIZE, SIZE, 3), "text": (None, LENGTH)})
    known = learner.encode_image(PICTURES, training=False)
    # The first token's embedding is that of the picture.
    first = np.concatenate([np.eye(DIM), np.zeros([DIM, DIM])])
    text.set_weights([np.concatenate([np.zeros([2, DIM]), known]), first])
    path = os.path.join(folder, "reference.keras")
    learner.save(path)
    vocabulary = ["[UNK]", "[EOS]", *WORDS]
    tokenizers.WordPieceTokenizer(vocabulary, LENGTH).save(folder)
    return path


def write_pairs(path, count, share, seed=0, codes=CODES):
    """A shard, of whose records the first `share` match."""
    random = np.random.default_rng(seed)
    images = random.integers(0, codes, count)
    moved = (images + random.integers(1, codes, count)) % codes
    texts = np.where(np.arange(count) < share * count, images, moved)
    png = [tf.io.encode_png(picture).numpy() for picture in PICTURES]
    shard_files.write_shard(
        path,
        [
            shard_files.serialize(
                id=number, image=png[image], caption=["", WORDS[text]]
            )
            for number, (image, text) in enumerate(
                zip(images.tolist(), texts.tolist(), strict=True)
            )
        ],
    )
    return path


class KnownTestCase(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.reference = write_reference(cls.folder)
        cls.curated = cls.path("curated")
        write_pairs(cls.curated, 200, 1.0, seed=1)
        cls.noisy, cls.clean = map(cls.path, ("noisy", "clean"))
        write_pairs(cls.noisy, 600, 0.32, seed=2)
        write_pairs(cls.clean, 600, 1.0, seed=3)

    @classmethod
    def path(cls, name):
        return os.path.join(cls.folder, f"{name}.tfrecord")

    def advise(self, *words, code=0, curated=None, reference=True):
        """The command's output, the content of advice.json, and the page."""
        output = self.enterContext(tempfile.TemporaryDirectory())
        words = [*words, "--curated", curated or self.curated]
        if reference:
            words += ["--reference", self.reference]
        with (
            contextlib.redirect_stdout(io.StringIO()) as printed,
            contextlib.redirect_stderr(io.StringIO()) as errors,
        ):
            found = cli.main(["advise", *words, "--output", output])
        self.assertEqual(found, code, errors.getvalue())
        if code:
            return errors.getvalue()
        content = json.loads(pathlib.Path(output, "advice.json").read_text())
        page = pathlib.Path(output, "advice.html").read_text("utf-8")
        self.assertIn(f"{output}/advice.html\n", printed.getvalue())
        return printed.getvalue(), content, page


class SurveyTest(KnownTestCase):
    def survey(self, pool, tests=None, unseen=None, **settings):
        data = [stores.open_store(path) for path in (pool, self.curated)]
        if tests:
            data.append(stores.open_store(tests))
        return survey.survey(
            survey.Data(*data),
            loading.load(self.reference),
            survey.Settings(**settings),
            unseen=unseen,
        )

    def test_it_estimates_what_the_pool_was_made_of(self):
        found = self.survey(self.noisy)
        share = found.facts.matched
        self.assertBetween(0.32, share.low, share.high)
        self.assertAllClose(share.mean, 0.32, 0, 0.03)
        # The first 192 of 600 match, and nothing else is as similar.
        self.assertAllClose(found.rows, np.arange(600))
        self.assertAllGreater(found.posterior[:192], 0.8)
        self.assertAllLess(found.posterior[192:], 0.1)
        for factor, expected in ((2, 0.64), (3, 0.96), (5, 1.0)):
            self.assertAllClose(
                found.facts.precision[factor], expected, 0, 0.07
            )
        # Codes are all alike: a picture has 599/64 copies.
        self.assertAllClose(found.duplicates.copies, 599 / 64, 0.05, 0)
        self.assertAllClose(found.facts.apart, 0.5, 0, 0.1)
        self.assertIsNone(found.facts.covered)

    def test_samples_are_bounded_and_a_function_of_the_seed(self):
        some = [
            self.survey(self.noisy, sample=50, curated_sample=40, seed=seed)
            for seed in (0, 0, 1)
        ]
        self.assertLen(some[0].rows, 50)
        self.assertLen(some[0].curated, 40)
        self.assertAllEqual(some[0].rows, some[1].rows)
        self.assertNotAllEqual(some[0].rows, some[2].rows)
        self.assertEqual(some[0].facts, some[1].facts)
        self.assertEqual(
            some[0].sizes,
            {
                "pool": 600,
                "sampled": 50,
                "curated": 200,
                "curated pairs compared": 40,
            },
        )

    def test_seen_pairs_are_not_compared(self):
        unseen = np.arange(200) < 30
        found = self.survey(self.noisy, unseen=unseen)
        self.assertLen(found.curated, 30)

    def test_tests_of_the_curated_sets_kind_are_noticed(self):
        narrow = write_pairs(self.path("narrow"), 100, 1.0, codes=8)
        wide = write_pairs(self.path("wide"), 600, 0.3, seed=5)
        found = self.survey(wide, tests=narrow)
        self.assertAllClose(found.facts.covered, 0.5, 0, 0.1)
        self.assertLess(found.breadth["tests"], found.breadth["pool"])

    def test_a_narrow_curated_set_does_not_change_the_share(self):
        narrow = write_pairs(self.path("narrow"), 200, 1.0, codes=4)
        found = survey.survey(
            survey.Data(*map(stores.open_store, (self.noisy, narrow))),
            loading.load(self.reference),
            survey.Settings(),
        )
        self.assertAllClose(found.facts.matched.mean, 0.32, 0, 0.06)

    def test_embeddings_that_are_not_finite_are_left_out(self):
        model = loading.load(self.reference)
        encode = reference_lib.encoder(model, 16)

        def broken(images, texts):
            image, text = map(np.array, encode(images, texts))
            image[3], text[5] = np.nan, np.inf
            return image, text

        store, rows = stores.open_store(self.noisy), np.arange(16)
        found = survey._embed(store, rows, broken, model.picture)
        kept = np.delete(rows, [3, 5])
        self.assertAllEqual(found.rows, kept)
        whole = survey._embed(store, rows, encode, model.picture)
        self.assertAllEqual(found.image, whole.image[kept])
        self.assertAllEqual(found.text, whole.text[kept])

    def test_a_quarter_is_held_out_in_blocks(self):
        held_out = survey.held_out(stores.open_store(self.noisy))
        blocks = held_out[: 600 // 32 * 32].reshape(-1, 4, 8)
        self.assertAllEqual(blocks[:, 0], np.ones_like(blocks[:, 0]))
        self.assertFalse(blocks[:, 1:].any())


class CommandTest(KnownTestCase):
    def test_a_noisy_pool_with_a_reference_is_chosen_from(self):
        printed, content, page = self.advise("--pool", self.noisy)
        self.assertEqual(content["candidates"], 3)
        self.assertEqual(content["reference"], self.reference)
        self.assertContainsSubset(["stage", "distillation"], content["advice"])
        # 600 / 64 pictures of a code: nearly all have a copy.
        self.assertGreater(content["near_duplicates"]["share"], 0.99)
        shown = (content["matched"]["mean"], content["precision"]["3"])
        self.assertIn(
            "from {:.0%} to {:.0%}".format(*shown), content["advice"]["stage"]
        )
        elements = html_elements.parse(page)
        for sentence in content["advice"].values():
            self.assertIn(f"\n- {sentence}\n", printed)
            self.assertIn(sentence, html.unescape(page))
        # 24 of noise, 24 chosen, twelve pairs of duplicates.
        self.assertLen(elements.images, 72)
        self.assertIn("What the reference calls noise", page)

    def test_a_clean_pool_is_not(self):
        _, content, _ = self.advise("--pool", self.clean)
        self.assertIn("clean", content["advice"])
        self.assertNotIn("stage", content["advice"])
        self.assertGreater(content["matched"]["low"], 0.9)

    def test_what_cannot_work_is_refused(self):
        few = write_pairs(self.path("few"), 40, 1.0)
        pool = ("--pool", self.noisy)
        for words, options, message in (
            ((), {}, "`--pool` must name the shards"),
            (("--pool", "nothing-*.tfrecord"), {}, "nothing-"),
            (pool, {"curated": "nothing.tfrecord"}, "nothing.tfrecord"),
            (
                pool,
                {"curated": few, "reference": False},
                "at least 64 records.*Received: 40; name a public model",
            ),
            ((*pool, "--set", "samples=3"), {}, "Did you mean `sample`"),
        ):
            found = self.advise(*words, code=1, **options)
            self.assertRegex(found, f"(?s)error: .*{message}", words)

    def test_a_reference_that_has_seen_the_pairs_is_refused(self):
        run = os.path.join(self.folder, "run")
        os.makedirs(run)
        config.save_config(
            config.TrainConfig(
                steps=2,
                data=config.DataConfig(
                    # Other shards may be gone.
                    train=(self.clean, "gone-*.tfrecord"),
                    curated=(self.curated,),
                    curated_rows=4,
                ),
                selection=config.SelectionConfig(8),
            ),
            directory.path(run, directory.CONFIG_FILE),
        )
        pathlib.Path(run, directory.WEIGHTS_FILE).touch()
        words = ("--pool", self.noisy, "--reference", run)
        found = self.advise(*words, code=1, reference=False)
        self.assertIn("must not have been trained on the curated", found)
        self.assertIn(self.curated, found)

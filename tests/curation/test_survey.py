"""Surveys and the command `jest-tf advise`, on pools whose shares are known."""

import contextlib
import html
import io
import os
import pathlib
import tempfile
from unittest import mock

import html_elements
import numpy as np
import pool_pairs
import pytest
import shard_files
import tensorflow as tf
import tiny

from jest_tf import cli, config
from jest_tf.cli import flags
from jest_tf.curation import survey
from jest_tf.data import sidecars, stores
from jest_tf.data.sidecars import embed, file_format
from jest_tf.runs import loading

DESCRIPTION = file_format.Description(
    *("a", "b", "c"), pool_pairs.DIM, 20.0, -8.0, "runs/r"
)
SHIPPED = pathlib.Path(__file__).parents[2] / "examples" / "icontext_mini"
IMAGE = tf.io.encode_png(np.zeros([2, 2, 3], np.uint8)).numpy()


class KnownTestCase(tf.test.TestCase):
    """A pool of which 32 % match, 200 curated pairs, and 100 tests.

    Ten images of the pool are copies of its first, ten are the first tests'.
    """

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        tests = pool_pairs.pairs(100, 1.0, 3)[:2]
        image, text, cls.matches = pool_pairs.pairs(2_000, 0.32, 1)
        image[-20:-10], image[-10:] = image[:10], tests[0][:10]
        cls.images, cls.both = (image, tests[0]), (image, text)
        cls.pool = cls.write("pool", image, text)
        cls.curated = cls.write("curated", *pool_pairs.pairs(200, 1.0, 2)[:2])
        cls.tests = cls.write("tests", *tests)

    @classmethod
    def path(cls, name):
        return os.path.join(cls.folder, f"{name}.tfrecord")

    @classmethod
    def write(cls, name, image, text, *, invalid=-2, **changes):
        """Writes a shard and its sidecar; returns the sidecars.

        The record before the last has no embeddings, and is left out.
        """
        valid = np.ones(len(image), bool)
        valid[invalid] = False
        payloads = [
            shard_files.serialize(id=row, image=IMAGE, caption=f"{name} {row}")
            for row in range(len(image))
        ]
        shard_files.write_shard(cls.path(name), payloads)
        store = stores.open_store(cls.path(name))
        embed.write_arrays(
            store, image, text, DESCRIPTION._replace(**changes), valid=valid
        )
        return sidecars.Sidecars(store)


class SurveyTest(KnownTestCase):
    def test_it_estimates_what_the_pool_was_made_of(self):
        found = survey.survey(self.pool, self.curated)
        self.assertEqual((found.reference, found.leaks), ("runs/r", None))
        self.assertAllEqual(found.rows, np.delete(np.arange(2_000), 1_998))
        self.assertLen(found.curated, 199)
        self.assertAllClose(found.mismatched.mean(), 0.0, 0, 0.1)
        self.assertEqual(found.candidates, 3)
        best = np.argsort(-found.pool)[: 1_999 // 3]
        chosen = self.matches[found.rows[best]].mean()
        self.assertAllClose(found.chosen, chosen, 0, 0.06)
        image, text = (
            side[found.rows].astype(np.float16).astype(np.float64)
            for side in self.both
        )
        cosines = np.sort((image * text).sum(1))
        self.assertAllClose(found.cut, cosines[-1_999 // 3], 0, 1e-3)

        for share in (1.0, 0.7, 0.4, 0.32):
            pairs = pool_pairs.pairs(2_000, share, 4)[:2]
            pool = self.write(f"pool {share}", *pairs)
            mean, low, high = survey.survey(pool, self.curated).matched
            self.assertBetween(share, low, high)
            # By the sizes of the samples.
            self.assertLess(high - low, 1_999**-0.5 + 199**-0.5)

    def test_copies_are_found_in_the_whole_pool(self):
        shown = mock.Mock()
        with (
            mock.patch.object(survey, "_POOL", 300),
            mock.patch.object(survey, "_COMPARED", 200),
            mock.patch.object(survey, "_BLOCK", 700),
        ):
            sets = self.pool, self.curated, self.tests
            found = survey.survey(*sets, progress=shown)
        self.assertEqual(
            shown.call_args_list,
            [mock.call(stop, 2_000) for stop in (700, 1_400, 2_000)],
        )
        self.assertLen(found.rows, 300)
        both = (found.repeats, found.leaks)
        for nearest, image in zip(both, self.images, strict=True):
            cosines = image[nearest.rows] @ self.images[0].T
            if nearest is found.repeats:
                cosines[np.arange(len(cosines)), nearest.rows] = -1.0
            cosines[:, 1_998] = -1.0
            self.assertAllEqual(nearest.others, cosines.argmax(1))
            self.assertAllClose(nearest.cosines, cosines.max(1), 1e-3, 1e-3)
        # The ninth copy has no embedding, and is not one of 99.
        self.assertAllClose(found.leaks.share(found.near), 9 / 99)
        self.assertLen(found.repeats.rows, 200)

    def test_samples_are_the_same_each_time(self):
        with mock.patch.object(survey, "_POOL", 300):
            found = [survey.survey(self.pool, self.curated) for _ in range(2)]
        self.assertAllEqual(found[0].rows, found[1].rows)
        self.assertEqual(found[0].matched, found[1].matched)

    def test_a_few_pairs_are_too_few(self):
        few = self.write("few", *pool_pairs.pairs(64, 1.0, 2)[:2])
        pairs = pool_pairs.pairs(2, 1.0, 2)[:2]
        none = self.write("none", *pairs, invalid=[0, 1])
        for sets, message in (
            ((few, self.curated), "64 records of the pool .*Received: 63"),
            ((self.pool, few), "64 records of the curated set .*Received: 63"),
            ((self.pool, self.curated, none), "1 record of the tests .*: 0$"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                survey.survey(*sets)


class CommandTest(KnownTestCase):
    def advise(self, *words, code=0):
        """The command's output, or its error, and the page."""
        output = self.enterContext(tempfile.TemporaryDirectory())
        with (
            contextlib.redirect_stdout(io.StringIO()) as printed,
            contextlib.redirect_stderr(io.StringIO()) as errors,
        ):
            found = cli.main(["advise", *words, "--output", output])
        self.assertEqual(found, code, errors.getvalue())
        if code:
            return errors.getvalue()
        page = pathlib.Path(output, "advice.html").read_text("utf-8")
        self.assertEndsWith(printed.getvalue(), f"{output}/advice.html\n")
        return printed.getvalue(), page

    def test_sentences_and_pairs_are_shown(self):
        printed, page = self.advise(
            *("--pool", self.path("pool"), "--curated", self.path("curated")),
            *("--tests", self.path("tests")),
        )
        sentences = printed.splitlines()[:-1]
        self.assertIn("- Add `Stage(candidates=3, ", printed)
        self.assertIn("- 9.1% of the 99 test images compared", printed)
        for sentence in sentences:
            self.assertIn(sentence.removeprefix("- "), html.unescape(page))
        elements = html_elements.parse(page)
        # 24 at the cut, chosen and dropped, and twelve pairs of both kinds.
        self.assertLen(elements.images, 5 * 24)
        chosen = 12 + 24
        self.assertEqual(page.count('class="card kept"'), chosen)
        # A leak lies beside its copy.
        places = [image["alt"] for image in elements.images[-24:]]
        pairs = {*zip(places[::2], places[1::2], strict=True)}
        expected = {(f"tests {row}", f"pool {1_990 + row}") for row in range(8)}
        self.assertContainsSubset(expected, pairs)

    def test_embeddings_of_several_references_are_refused(self):
        other = self.path("other")
        self.write("other", *pool_pairs.pairs(80, 1.0, 2)[:2], fingerprint="z")
        words = ("--pool", self.path("pool"), "--curated", other)
        found = self.advise(*words, code=1)
        self.assertRegex(found, "error: .*fingerprint.*Received: 'z'")

    def test_a_reference_that_has_seen_the_pairs_is_refused(self):
        run = os.path.join(self.folder, "run")
        recipe = config.TrainConfig(
            data=config.DataConfig(
                # Other shards may be gone.
                train=("gone-*.tfrecord",),
                curated=(self.path("curated"),),
                curated_rows=4,
                image_size=32,
                text_length=16,
            ),
            model=config.ModelConfig(preset="tiny"),
        )
        tiny.write_run(run, recipe, tiny.LETTERS)
        found = self.advise(
            *("--pool", self.path("pool"), "--curated", self.path("curated")),
            *("--reference", run),
            code=1,
        )
        self.assertIn("must not have been trained on the curated", found)
        self.assertIn(self.path("curated"), found)


@pytest.mark.slow
class ShippedTest(tf.test.TestCase):
    """The table of docs/advise.md: parts of the shipped pool, by its labels."""

    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.model = loading.load(os.fspath(SHIPPED / "reference"), trust=True)

    def embed(self, **shards):
        """Writes shards by name, and returns their sidecars."""
        opened = []
        for name, payloads in shards.items():
            path = os.path.join(self.folder, f"{name}-{len(payloads)}")
            shard_files.write_shard(path, payloads)
            opened.append(stores.open_store(path))
        store = stores.join(opened)
        return flags.open_sidecars(store, self.model, self.folder)

    def read(self, split):
        path = SHIPPED / f"{split}-00000-of-00001.tfrecord"
        records = tf.data.TFRecordDataset(os.fspath(path))
        return list(records.as_numpy_iterator())

    def test_real_pools_are_estimated(self):
        matching, others = [], []
        for payload in self.read("pool"):
            features = tf.train.Example.FromString(payload).features.feature
            noise = b"".join(features["noise"].bytes_list.value)
            is_match = noise in (b"", b"near-duplicate")
            (matching if is_match else others).append(payload)
        curated = self.embed(curated=self.read("curated"))
        for matched, mismatched in (
            *((6200, 1000), (6200, 2600), (6200, 6200), (6200, 11700)),
            (1300, 11700),
        ):
            pool = self.embed(
                matching=matching[:matched], others=others[:mismatched]
            )
            found = survey.survey(pool, curated)
            share = matched / (matched + mismatched)
            self.assertAllClose(found.matched.mean, share, 0, 0.08)
            best = np.argsort(-found.pool)
            best = found.rows[best[: len(best) // found.candidates]]
            chosen = (best < matched).mean()
            # Captions of the wrong domain are more similar than others.
            self.assertAllClose(found.chosen, chosen, 0, 0.13)
            print(
                f"| {share:.2f} | {found.matched.mean:.2f} "
                f"[{found.matched.low:.2f}, {found.matched.high:.2f}] "
                f"| {found.candidates} | {found.chosen:.2f} | {chosen:.2f} |"
            )

"""Curation: what is chosen, resuming, sets inferred from tasks, the command."""

import importlib.util
import os
import pathlib
import tempfile

import numpy as np
import oracles
import pytest
import tensorflow as tf
import test_cascade
import test_sidecar_files

from jest_tf import (
    config,
    curation,
    losses,
    selection,
)
from jest_tf.data import (
    cascade,
    embed,
    manifest,
    reading,
    sidecar_files,
    stream,
)

ROOT = pathlib.Path(__file__).resolve().parent.parent
MINI = f"{ROOT}/examples/icontext_mini"
DIM = test_cascade.DIM
BAD = (*test_cascade.INVALID, test_cascade.BLANK)


class ScoresTestCase(tf.test.TestCase):
    """The store of the cascade's tests, and sidecars of a learner."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        cls.store, cls.image, cls.text, cls.starts = test_cascade.write_store(
            folder.name
        )
        counts = np.diff(cls.starts)
        cls.learner = (
            test_sidecar_files.unit_rows(80, 8, DIM),
            test_sidecar_files.unit_rows(int(counts.sum()), 9, DIM),
        )
        cls.learner_dir = os.path.join(folder.name, "learner")
        embed.write_arrays(
            cls.store,
            *cls.learner,
            sidecar_files.Description("l", "t", "p", DIM, 5.0, -3.0),
            cls.learner_dir,
            captions=counts,
        )
        cls.models = (curation.Model(), curation.Model("", cls.learner_dir))

    def output(self):
        return self.enterContext(tempfile.TemporaryDirectory())

    def curate(self, directory, count=1, **settings):
        settings = {"share": 0.25, "window": 15, "num_chunks": 3} | settings
        if count == 2:
            settings["criterion"] = "learnability"
        return curation.curate(
            self.store,
            directory,
            curation.Settings(**settings),
            self.models[:count],
        )


class ChoiceTest(ScoresTestCase):
    def windows(self, shard, settings):
        """Rows, captions and seed of every window of a shard, from the text."""
        start = int(self.store.shards.lengths[:shard].sum())
        length = int(self.store.shards.lengths[shard])
        good = [row for row in range(start, start + length) if row not in BAD]
        alone = self.store.of_shard(shard)
        key = curation._key(alone, settings.seed)
        order = stream.Order(len(good), key)
        count = max(1, round(len(good) / settings.window))
        for turn in range(settings.passes):
            positions = np.arange(len(good)) + turn * len(good)
            rows = np.array(good)[order.rows(positions)]
            numbers = reading.caption_numbers(key, positions)
            captions = []
            for row, number in zip(rows, numbers, strict=True):
                choices = reading.candidates(test_cascade.captions_of(row))
                choice = choices[number % len(choices)]
                captions.append(self.starts[row] + choice)
            for number, places in enumerate(
                np.array_split(np.arange(len(rows)), count)
            ):
                yield (
                    rows[places],
                    np.array(captions)[places],
                    (key, turn * count + number),
                )

    def embedded(self, arrays, rows, captions, scale, bias):
        image, text = (np.float32(np.float16(values)) for values in arrays)
        return losses.Embeddings(image[rows], text[captions], scale, bias)

    def check(self, **settings):
        """Against the slow joint draw, over whole matrices."""
        chosen_by = curation.Settings(num_chunks=3, window=15, **settings)
        with_learner = chosen_by.criterion == "learnability"
        found = curation.curate(
            self.store,
            self.output(),
            chosen_by,
            self.models[: 1 + with_learner],
        )
        weights, scores = np.zeros(80), np.zeros(80)
        for shard in range(3):
            for rows, captions, seed in self.windows(shard, chosen_by):
                teacher = self.embedded(
                    (self.image, self.text), rows, captions, 20.0, -8.0
                )
                learner = None
                if with_learner:
                    learner = self.embedded(
                        self.learner, rows, captions, 5.0, -3.0
                    )
                count = round(chosen_by.share * len(rows))
                chunks = min(3, count)
                joint = cascade.joint_seed(tf.constant(seed))
                drawn = oracles.select_jointly(
                    learner,
                    teacher,
                    batch_size=count,
                    noise=selection.gumbel_noise(
                        joint, chunks, len(rows)
                    ).numpy(),
                    criterion=chosen_by.criterion,
                    loss=chosen_by.loss,
                )
                weights[rows[drawn]] += 1
                own = -oracles.row_losses(teacher, drawn, chosen_by.loss)
                if with_learner:
                    own += oracles.row_losses(learner, drawn, chosen_by.loss)
                scores[rows] += own
        scores[list(BAD)] = np.nan
        self.assertAllEqual(found.weights, weights)
        self.assertAllClose(
            found.scores, scores / chosen_by.passes, rtol=1e-4, atol=1e-4
        )
        return found

    def test_easy_reference_is_the_joint_draw_of_each_window(self):
        found = self.check(share=0.25)
        self.assertEqual(set(found.weights.tolist()), {0.0, 1.0})

    def test_learnability_takes_learner_and_reference(self):
        self.check(share=0.4, criterion="learnability", seed=3)

    def test_softmax_and_several_passes_add_up(self):
        found = self.check(share=0.3, loss="softmax", passes=3)
        self.assertGreater(found.weights.max(), 1.0)

    def test_a_uniform_share_is_that_of_the_cascade(self):
        settings = {"share": 0.5, "window": 40, "uniform_share": 0.5}
        found = self.curate(self.output(), **settings, gain=0.5)
        chosen_by = curation.Settings(**settings)
        weights = np.zeros(80)
        for shard in range(3):
            for rows, captions, seed in self.windows(shard, chosen_by):
                count = round(len(rows) / 2)
                drawn = cascade.draw(
                    self.embedded(
                        (self.image, self.text), rows, captions, 20.0, -8.0
                    ),
                    config.CascadeConfig(
                        len(rows), num_chunks=min(3, count), gain=0.5
                    ),
                    batch_size=count,
                    num_uniform=round(count / 2),
                    seed=seed,
                    loss="sigmoid",
                )
                weights[rows[drawn]] += 1
        self.assertAllEqual(found.weights, weights)

    def test_all_may_be_chosen(self):
        found = self.curate(self.output(), share=1.0)
        self.assertAllEqual(found.weights, ~np.isin(np.arange(80), BAD))

    def test_a_shard_that_cannot_be_read_at_all_is_left_out(self):
        folder = self.output()
        embed.write_arrays(
            self.store,
            self.image,
            self.text[:0],
            test_cascade.DESCRIPTION,
            folder,
            captions=np.zeros(80, int),
            valid=np.zeros(80, bool),
        )
        with self.assertRaisesRegex(ValueError, "must have a record that is d"):
            curation.curate(
                self.store,
                self.output(),
                curation.Settings(),
                [curation.Model("", folder)],
            )


class ResumeTest(ScoresTestCase):
    def read(self, folder):
        return {
            path.name: path.read_bytes()
            for path in pathlib.Path(folder).iterdir()
            if path.is_file()
        }

    def test_what_is_there_is_kept_and_what_is_missing_is_made(self):
        whole, broken = self.output(), self.output()
        self.curate(whole)
        self.curate(broken)
        names = sorted(os.listdir(broken))
        self.assertLen(names, 5)  # three shards, the list and the lock
        os.remove(os.path.join(broken, manifest.MANIFEST_FILE))
        os.remove(manifest.part_path(self.store, 1, broken))
        kept = manifest.part_path(self.store, 0, broken)
        before = os.stat(kept).st_mtime_ns
        self.curate(broken)
        self.assertEqual(self.read(broken), self.read(whole))
        self.assertEqual(os.stat(kept).st_mtime_ns, before)

    def test_another_choice_is_refused_unless_it_is_to_replace(self):
        folder = self.output()
        self.curate(folder)
        with self.assertRaisesRegex(
            ValueError, "expected made_by.share=0.5. Received: 0.25"
        ):
            self.curate(folder, share=0.5)
        with self.assertRaisesRegex(ValueError, "expected made_by.criterion="):
            self.curate(folder, count=2)
        found = curation.curate(
            self.store,
            folder,
            curation.Settings(share=0.5),
            self.models[:1],
            overwrite=True,
        )
        self.assertEqual(found.made_by["share"], 0.5)

    def test_two_processes_do_not_write_one_manifest(self):
        folder = self.output()
        with curation.claimed(folder):
            with self.assertRaisesRegex(ValueError, "Another process is writ"):
                self.curate(folder)

    def test_models_that_do_not_fit_are_refused(self):
        for criterion, found, pattern in (
            (
                "learnability",
                self.models[:1],
                "needs a reference and a learner",
            ),
            ("easy_reference", self.models, "needs a reference. Received: 2"),
            ("learnability", self.models[:1] * 2, "need folders of their own"),
        ):
            with self.assertRaisesRegex(ValueError, pattern):
                curation.curate(
                    self.store,
                    self.output(),
                    curation.Settings(criterion=criterion),
                    found,
                )

    def test_settings_out_of_range_are_refused(self):
        for name, value in (
            ("share", 0.0),
            ("share", 1.5),
            ("window", 0),
            ("passes", 0),
            ("criterion", "hard_learner"),
            ("loss", "l2"),
            ("seed", -1),
            ("uniform_share", 1.0),
        ):
            with self.assertRaisesRegex(ValueError, f"`{name}` must be"):
                curation.Settings(**{name: value})

    @pytest.mark.skipif(
        importlib.util.find_spec("apache_beam") is None,
        reason="Apache Beam is not installed",
    )
    def test_beam_writes_the_same_files(self):
        alone, spread = self.output(), self.output()
        expected = self.curate(alone)
        found = curation.curate_with_beam(
            config.DataConfig(train=(f"{self.folder}/*.tfrecord",)),
            spread,
            curation.Settings(share=0.25, window=15, num_chunks=3),
            self.models[:1],
            options=["--runner=DirectRunner"],
        )
        self.assertEqual(found.identity, expected.identity)
        files = self.read(alone)
        del files[".lock"]
        self.assertEqual(self.read(spread), files)

    @pytest.mark.skipif(
        importlib.util.find_spec("apache_beam") is not None,
        reason="Apache Beam is installed",
    )
    def test_without_beam_the_way_out_is_named(self):
        with self.assertRaisesRegex(ValueError, r"pip install 'jest-tf\[beam"):
            curation.curate_with_beam(
                config.DataConfig(train=(f"{self.folder}/*.tfrecord",)),
                self.output(),
                curation.Settings(),
                self.models[:1],
            )


if __name__ == "__main__":
    tf.test.main()

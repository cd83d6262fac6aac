"""A chain of runs, each the reference of the next."""

import contextlib
import io
import os
import tempfile
from unittest import mock

import numpy as np
import pytest
import run_server
import subprocesses
import tensorflow as tf
import tiny

from jest_tf import models, runs
from jest_tf.data import stores
from jest_tf.runs import bootstrap, directory, interruptions, rounds

BY_SIDECARS = (
    "selection.batch_size=none",
    "selection.method=uniform",
    "selection.phases=",
    "selection.uniform_every=none",
    "selection.criterion=learnability",
    "cascade.hyper_batch_size=24",
    "cascade.num_chunks=2",
    "steps=6",
)


def build_learner(config, vocabulary_size=None, patch_sizes=()):
    return tiny.learner(config.seed)


@pytest.mark.slow
class RoundsTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        tiny.write_shard(f"{cls.folder}/a.tfrecord", rows=60)
        tiny.write_shard(f"{cls.folder}/damaged.tfrecord", rows=8, damaged=(2,))
        build = mock.patch.object(models, "build_learner", build_learner)
        build.start()
        cls.addClassCleanup(build.stop)
        cls.teacher = os.path.join(cls.folder, "teacher")
        teacher = run_server.recipe(cls.folder, ("seed=9", "steps=6"))
        cls.sidecars = os.path.join(cls.folder, "sidecars")
        with contextlib.redirect_stderr(io.StringIO()):
            runs.train(teacher, cls.teacher)
            cls.embed(cls.teacher, cls.sidecars, teacher)
        cls.recipe = cls.with_reference(cls.teacher, cls.sidecars)

    @classmethod
    def embed(cls, workdir, folder, recipe):
        store = stores.open_stores(recipe.data)
        return bootstrap.embed_records(runs.load_run(workdir), store, folder)

    @classmethod
    def with_reference(cls, workdir, folder, *others):
        return run_server.recipe(
            cls.folder,
            (
                *BY_SIDECARS,
                *others,
                f"reference.workdir={workdir}",
                "reference.sidecars=true",
                f"reference.sidecar_dir={folder}",
            ),
        )

    def chain(self, name, count, shares=(0.1, 0.2, 0.3), recipe=None):
        """Rounds whose references recognise so many pairs."""
        workdir = os.path.join(self.folder, name)
        with (
            mock.patch.object(
                rounds.bootstrap, "recognised_share", side_effect=shares
            ),
            contextlib.redirect_stderr(io.StringIO()) as said,
        ):
            found = runs.train_rounds(recipe or self.recipe, workdir, count)
        return found, said.getvalue()

    def assert_same_learner(self, one, other):
        ours, theirs = (
            subprocesses.weight_arrays(f"{workdir}/{directory.WEIGHTS_FILE}")
            for workdir in (one, other)
        )
        self.assertEqual(set(ours), set(theirs))
        for name, value in ours.items():
            np.testing.assert_array_equal(value, theirs[name], name)

    def test_a_round_is_a_run_by_the_learner_of_the_one_before(self):
        found, said = self.chain("chain", 2)
        first, second, sidecars = (
            os.path.join(self.folder, name)
            for name in ("first", "second", "sidecars of first")
        )
        with contextlib.redirect_stderr(io.StringIO()):
            runs.train(self.recipe, first)
            cost = self.embed(first, sidecars, self.recipe)
            runs.train(self.with_reference(first, sidecars), second)
        self.assert_same_learner(found[0].workdir, first)
        self.assert_same_learner(found[1].workdir, second)
        self.assertEqual(
            [(one.recognised, one.cost and one.cost["flops"]) for one in found],
            [(0.1, None), (0.2, cost.flops)],
        )
        written = directory.read(
            os.path.join(self.folder, "chain"), directory.ROUNDS_FILE
        )
        self.assertEqual(written, [one._asdict() for one in found])
        self.assertIn(
            "round 2 of 2, by a reference that recognises 20.0%", said
        )
        self.assertIn(f"the last learner is in {found[1].workdir}", said)

        # The same command does nothing again; a longer chain goes on.
        again, said = self.chain("chain", 2)
        self.assertEqual(again, found)
        self.assertNotIn("embeds", said)
        longer, said = self.chain("chain", 3)
        self.assertEqual(longer[:2], found)
        self.assertIn("embeds 68 records", said)

    def test_they_end_where_a_learner_recognises_no_more(self):
        for last in (0.2, 0.1):
            found, said = self.chain(f"ended at {last}", 5, (0.1, 0.2, last))
            self.assertLen(found, 3)
            self.assertIsNone(found[-1].measures)
            self.assertIn("of the pairs, no more than its reference", said)
            self.assertFalse(os.path.exists(found[-1].workdir))

    def test_a_first_reference_without_sidecars_ends_nothing(self):
        live = run_server.recipe(
            self.folder,
            (
                *("steps=4", "selection.criterion=learnability"),
                f"reference.workdir={self.teacher}",
            ),
        )
        found, _ = self.chain("live", 2, (0.0,), live)
        self.assertEqual([one.recognised for one in found], [None, 0.0])
        self.assertIsNotNone(found[-1].measures)

    def test_a_chain_goes_on_where_it_was_stopped(self):
        train = rounds.run.train

        def stop(config, workdir):
            train(config, workdir)
            raise interruptions.Preempted

        with (
            mock.patch.object(rounds.run, "train", stop),
            self.assertRaises(interruptions.Preempted),
        ):
            self.chain("stopped", 2)
        found, _ = self.chain("stopped", 2)
        unbroken, _ = self.chain("unbroken", 2)
        for one, other in zip(found, unbroken, strict=True):
            self.assert_same_learner(one.workdir, other.workdir)

    def test_a_first_reference_that_chooses_is_needed(self):
        for settings in (
            (),
            (f"reference.workdir={self.teacher}",),
        ):
            recipe = run_server.recipe(self.folder, settings)
            with self.assertRaisesRegex(
                ValueError, "`--rounds` needs a first reference that chooses"
            ):
                self.chain("none", 2, recipe=recipe)

    def test_a_learner_as_reference_needs_no_projection(self):
        recipe = self.with_reference(
            self.teacher,
            self.sidecars,
            "reference.distillation_weight=1",
            "reference.projection=8",
        )
        with self.assertRaisesRegex(
            ValueError, "`reference.projection` must be empty with `--rounds`"
        ):
            self.chain("none", 2, recipe=recipe)


if __name__ == "__main__":
    tf.test.main()

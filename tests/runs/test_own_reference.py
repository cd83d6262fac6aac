"""A recipe that trains the reference that it names, without its stages."""

import contextlib
import io
import os
from unittest import mock

import tensorflow as tf
import tiny

from jest_tf import cli, config, models, runs
from jest_tf.runs import directory


class OwnReferenceTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.get_temp_dir()
        self.workdir = os.path.join(self.folder, "reference")
        self.enterContext(
            mock.patch.object(
                models, "build_learner", lambda config, size: tiny.learner()
            )
        )
        config.save_config(
            config.TrainConfig(
                steps=2,
                data=config.DataConfig(
                    train=(tiny.write_shard(f"{self.folder}/a.tfrecord"),),
                    image_size=tiny.IMAGE_SIZE,
                    text_length=tiny.TEXT_LENGTH,
                    vocabulary_size=tiny.VOCABULARY_SIZE,
                ),
                model=config.ModelConfig(patch_size=tiny.IMAGE_SIZE),
                reference=config.ReferenceConfig(model=self.workdir),
                selection=config.SelectionConfig(
                    4, stages=(config.Stage(candidates=2, num_chunks=2),)
                ),
                optimizer=config.OptimizerConfig(warmup_steps=1),
            ),
            f"{self.folder}/recipe.json",
        )

    def load(self, *overrides):
        return config.load_config(f"{self.folder}/recipe.json", overrides)

    def test_without_stages_a_missing_reference_is_not_looked_for(self):
        recipe = self.load("selection.stages=none", "reference.model=/nowhere")
        with contextlib.redirect_stderr(io.StringIO()):
            runs.train(recipe, os.path.join(self.folder, "uniform"))

    def test_a_recipe_trains_its_reference_without_stages_and_then_by_it(self):
        with contextlib.redirect_stderr(io.StringIO()):
            runs.train(self.load("selection.stages=none"), self.workdir)
            runs.train(self.load(), os.path.join(self.folder, "learner"))
        row = directory.read_rows(f"{self.folder}/learner", "metrics.jsonl")[-1]
        self.assertIn("stages/0/score", row)

    def test_a_run_that_is_its_own_reference_is_refused_with_the_way_out(self):
        for name in (self.workdir, os.path.relpath(self.workdir)):
            with self.assertRaisesRegex(
                ValueError,
                "`reference.model` must be another run .*"
                "`--set selection.stages=none`.*Received: .*reference' for",
            ):
                runs.train(self.load(f"reference.model={name}"), self.workdir)
        self.assertFalse(os.path.exists(self.workdir))
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = cli.main(
                [
                    *("train", "--config", f"{self.folder}/recipe.json"),
                    *("--workdir", self.workdir, "--dry-run"),
                ]
            )
        self.assertEqual(code, 1)
        self.assertIn("`--set selection.stages=none`", said.getvalue())

    def test_a_run_without_a_reference_is_not_its_own(self):
        recipe = self.load(
            "reference.model=none", "selection.stages.0.criterion=hard_learner"
        )
        os.makedirs(self.workdir)
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.workdir)
        with contextlib.redirect_stderr(io.StringIO()):
            runs.train(recipe, ".")
        self.assertTrue(directory.has(self.workdir, directory.WEIGHTS_FILE))


if __name__ == "__main__":
    tf.test.main()

"""The cascade's benchmark: its recipes, what it measures, its block."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import tempfile
from unittest import mock

import tensorflow as tf

from benchmarks import bench_cascade
from jest_tf import config as config_lib


class BenchCascadeTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def test_every_recipe_trains_on_as_many(self):
        for case in bench_cascade._CASES:
            recipe = bench_cascade.recipe(case, self.folder, 8)
            self.assertEqual(recipe.batch_size, 128)
            self.assertEqual(
                recipe.cascade.hyper_batch_size, case.hyper_batch_size
            )
            self.assertEqual(
                recipe.selection.needs_learner, case.selects, case.name
            )

    def test_the_block_is_written_with_the_runs_second_half(self):
        runs = []

        def train(command, **options):
            del options
            # Steps of 0.5 s that wait for 1 %, and before the half for all.
            file, workdir = command[-3], command[-1]
            recipe = config_lib.load_config(file)
            runs.append(recipe)
            os.makedirs(workdir)
            with open(os.path.join(workdir, "metrics.jsonl"), "w") as log:
                for step in range(1, recipe.steps + 1):
                    row = {
                        "step": step,
                        "time/step_seconds": 0.5,
                        "time/input_wait_share": 0.01,
                    }
                    if step <= recipe.steps // 2:
                        row["time/input_wait_share"] = 1.0
                    log.write(json.dumps(row) + "\n")
            return subprocess.CompletedProcess(command, 0, "")

        out = pathlib.Path(self.folder)
        with (
            mock.patch.object(subprocess, "run", train),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            bench_cascade.main(["all", "--small", "--out", f"{out}/README.md"])
        text = (out / "README.md").read_text()
        for part in ("rows", "choice", "steps"):
            mark = f"<!-- cascade {part}: written by python -m"
            self.assertEqual(text.count(mark), 1)
        self.assertIn(
            "| stage 0 alone, K = 25 | 3,200 | 128 | "
            "500.00 / 500.00 / 500.00 | 1.00 / 1.00 / 1.00 |",
            text,
        )
        self.assertRegex(text, r"\| free \| 1,000 \| [\d.]+ / ")
        self.assertRegex(text, r"\| sigmoid \| 512 \| 64 \| 16 \| [\d.]+ / ")
        self.assertEqual(
            [recipe.cascade.hyper_batch_size for recipe in runs], [None, 3200]
        )


if __name__ == "__main__":
    tf.test.main()

"""A reference, its sidecars, a run and its page live wholly on a bucket."""

import json
import os
import subprocess
import sys
import tempfile

import fake_gcs
import numpy as np
import pytest
import remote_files
import subprocesses
import tensorflow as tf
import tiny

from jest_tf import cli, files
from jest_tf.data.sidecars import file_format
from jest_tf.runs import directory

# Commands of another machine.
MACHINE = """
import json, sys
from jest_tf import cli
for command in json.loads(sys.argv[1]):
    if code := cli.main(command):
        sys.exit(code)
"""
RECIPE = """
from jest_tf import config as c

def config():
    return c.TrainConfig(
        steps=3,
        data=c.DataConfig(
            train=("{folder}/a.tfrecord",),
            image_size=16,
            text_length=4,
            vocabulary_size=12,
        ),
        model=c.ModelConfig(preset="tiny"),
        selection=c.SelectionConfig(12),
        evaluation=c.EvaluationConfig(
            data=("{folder}/a.tfrecord",), log_every_steps=1
        ),
        checkpoint=c.CheckpointConfig(every_steps=1),
    )
"""
# By sidecars, of the named reference.
JEST = [
    f"selection.stages.{setting}"
    for setting in (
        *("0.candidates=3", "0.num_chunks=2", "0.embeddings=stored"),
        *("0.criterion=easy_reference", "1.candidates=2", "1.num_chunks=2"),
    )
]


@pytest.mark.slow
class BucketTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        remote_files.hurry(self)
        remote_files.server()
        self.local = self.enterContext(tempfile.TemporaryDirectory())
        self.bucket = f"gs://{fake_gcs.BUCKET}/{self.id()}"
        tiny.write_shard(f"{self.local}/a.tfrecord", rows=40)
        with open(f"{self.local}/a.tfrecord", "rb") as shard:
            files.write_whole(f"{self.bucket}/a.tfrecord", shard.read())
        for folder in (self.local, self.bucket):
            recipe = RECIPE.replace("{folder}", folder)
            files.write_whole(f"{folder}/recipe.py", recipe.encode())

    def run_commands(self, *commands):
        """Runs commands in a folder of their own; returns what they say."""
        place = self.enterContext(tempfile.TemporaryDirectory())
        folders = {name: f"{place}/{name}" for name in ("tmp", "home", "cwd")}
        for folder in folders.values():
            os.mkdir(folder)
        done = subprocess.run(
            [sys.executable, "-c", MACHINE, json.dumps(commands)],
            cwd=folders["cwd"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=subprocesses.environment(
                TMPDIR=folders["tmp"], HOME=folders["home"]
            ),
        )
        self.assertEqual(done.returncode, 0, done.stdout)
        # They have written where they were told to, and cleared up; libraries
        # keep their settings and caches.
        written = [
            name
            for name in files.tree(place)
            if not name.startswith(("home/.keras/", "home/.cache/matplotlib/"))
        ]
        self.assertEqual(written, [])
        return done.stdout

    def commands(self, folder):
        train = ("train", "--config", f"{folder}/recipe.py", "--workdir")
        reference = f"{folder}/reference"
        return (
            (*train, reference),
            ("embed", "--model", reference, "--data", f"{folder}/a.tfrecord"),
            (
                *(*train, f"{folder}/jest", "--set", *JEST),
                *("selection.batch_size=2", f"reference.model={reference}"),
            ),
        )

    def test_a_reference_its_sidecars_and_a_run(self):
        """That a run on a bucket equals a local one is in test_resume.py."""
        for command in self.commands(self.local)[:2]:
            self.assertEqual(cli.main(command), 0)
        workdir = f"{self.bucket}/jest"
        said = self.run_commands(
            *self.commands(self.bucket),
            ("page", "--workdir", workdir),
            ("evaluate", "--workdir", workdir),
        )
        # In a process of its own, as TensorFlow makes it for JAX, too.
        self.run_commands(
            (
                *("export", "--model", workdir, "--format", "saved_model"),
                *("--output", f"{self.bucket}/model"),
            )
        )
        self.assertIn("recall@1", said)
        self.assertIn("saved_model.pb", files.tree(f"{self.bucket}/model"))
        page = files.read_whole(f"{workdir}/{directory.PAGE_FILE}").decode()
        self.assertIn("<dd>3 of 3</dd>", page)
        local, remote = (
            file_format.read(f"{folder}/a.tfrecord.sidecar")[1].arrays
            for folder in (self.local, self.bucket)
        )
        for name, values in local.items():
            np.testing.assert_array_equal(np.asarray(remote[name]), values)

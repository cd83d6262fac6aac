"""A reference, its sidecars, a run and its page live wholly on a bucket."""

import json
import os
import subprocess
import sys
import tempfile
import time

import fake_gcs
import numpy as np
import pytest
import remote_files
import subprocesses
import tensorflow as tf
import tiny

from jest_tf import cli, files
from jest_tf.data.sidecars import file_format
from jest_tf.runs import checkpoints, directory

# Commands on a machine of a name, where a dead run's lease expires soon.
MACHINE = """
import json, socket, sys
socket.gethostname = lambda: sys.argv[1]
from jest_tf.files import leases
leases.BEAT, leases.EXPIRY, leases.SETTLE = 0.5, 3.0, 0.1
from jest_tf import cli
for command in json.loads(sys.argv[2]):
    if code := cli.main(command):
        sys.exit(code)
"""
RECIPE = """
from jest_tf import config as c

def config():
    return c.TrainConfig(
        steps=6,
        data=c.DataConfig(
            train=("{folder}/a.tfrecord",),
            image_size=16,
            text_length=4,
            vocabulary_size=12,
        ),
        model=c.ModelConfig(preset="tiny"),
        selection=c.SelectionConfig(12),
        evaluation=c.EvaluationConfig(
            data=("{folder}/a.tfrecord",), log_every_steps=1, batch_size=20
        ),
        checkpoint=c.CheckpointConfig(every_steps=1, keep=2),
    )
"""
# By sidecars, of the named reference.
JEST = (
    *("selection.batch_size=2", "selection.stages.0.candidates=3"),
    *(
        "selection.stages.0.num_chunks=2",
        "selection.stages.0.criterion=easy_reference",
    ),
    *(
        "selection.stages.0.embeddings=stored",
        "selection.stages.1.candidates=2",
    ),
    "selection.stages.1.num_chunks=2",
)


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

    def start(self, machine, *commands):
        """Starts commands in a folder of their own; and names that folder."""
        place = self.enterContext(tempfile.TemporaryDirectory())
        folders = {name: f"{place}/{name}" for name in ("tmp", "home", "cwd")}
        for folder in folders.values():
            os.mkdir(folder)
        process = subprocess.Popen(
            [sys.executable, "-c", MACHINE, machine, json.dumps(commands)],
            cwd=folders["cwd"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=subprocesses.environment(
                TMPDIR=folders["tmp"], HOME=folders["home"]
            ),
        )
        self.addCleanup(process.kill)
        return process, place

    def run_commands(self, machine, *commands):
        process, place = self.start(machine, *commands)
        said, _ = process.communicate()
        self.assertEqual(process.returncode, 0, said)
        # It has written where it was told to, and cleared up; libraries keep
        # their settings and caches.
        written = [
            name
            for name in files.tree(place)
            if not name.startswith(("home/.keras/", "home/.cache/matplotlib/"))
        ]
        self.assertEqual(written, [])
        return said

    def train(self, folder):
        workdir = f"{folder}/jest"
        return (
            *("train", "--config", f"{folder}/recipe.py", "--set", *JEST),
            *(f"reference.model={folder}/reference", "--workdir", workdir),
        )

    def test_a_run_killed_on_one_machine_is_continued_on_another(self):
        references = {
            folder: (
                (
                    *("train", "--config", f"{folder}/recipe.py"),
                    *("--workdir", f"{folder}/reference"),
                ),
                (
                    *("embed", "--model", f"{folder}/reference"),
                    *("--data", f"{folder}/a.tfrecord"),
                ),
            )
            for folder in (self.local, self.bucket)
        }
        for command in (*references[self.local], self.train(self.local)):
            self.assertEqual(cli.main(command), 0)
        self.run_commands("one", *references[self.bucket])
        local, remote = (
            file_format.read(f"{folder}/a.tfrecord.sidecar")[1].arrays
            for folder in (self.local, self.bucket)
        )
        for name, values in local.items():
            np.testing.assert_array_equal(np.asarray(remote[name]), values)
        workdir = f"{self.bucket}/jest"
        process, _ = self.start("one", self.train(self.bucket))
        while not checkpoints.saved_steps(workdir):
            self.assertIsNone(process.poll())
            time.sleep(0.05)
        process.kill()
        process.communicate()
        watched = f"{self.bucket}/watched.html"
        watching, _ = self.start(
            "third",
            ("page", "--workdir", workdir, "--watch", "1", "--output", watched),
        )
        said = self.run_commands("another", self.train(self.bucket))
        self.assertNotIn("steps 0 to", said)
        said, _ = watching.communicate(timeout=300)
        self.assertEqual(watching.returncode, 0, said)
        self.assertIn(f"open {watched}, renewed", said)
        page = files.read_whole(watched).decode()
        self.assertIn("<dd>6 of 6</dd>", page)
        self.assertNotIn("cannot be shown", page)
        self.assertNotIn("refresh", page)
        for name in (directory.METRICS_FILE, directory.EVALUATION_FILE):
            self.assertEqual(
                *(
                    [
                        {k: v for k, v in row.items() if not tiny.from_clock(k)}
                        for row in directory.read_rows(f"{folder}/jest", name)
                    ]
                    for folder in (self.local, self.bucket)
                )
            )
        with files.staged(f"{workdir}/{directory.WEIGHTS_FILE}") as weights:
            found = subprocesses.weight_arrays(weights)
        expected = subprocesses.weight_arrays(
            f"{self.local}/jest/{directory.WEIGHTS_FILE}"
        )
        self.assertEqual(set(found), set(expected))
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, name)
        said = self.run_commands(
            "third",
            ("page", "--workdir", workdir),
            ("evaluate", "--workdir", workdir),
            (
                *("export", "--model", workdir, "--format", "saved_model"),
                *("--output", f"{self.bucket}/model"),
            ),
        )
        self.assertIn("recall@1", said)
        self.assertIn(
            b"<html", files.read_whole(f"{workdir}/{directory.PAGE_FILE}")
        )
        self.assertIn("saved_model.pb", files.tree(f"{self.bucket}/model"))
        events = files.tree(f"{workdir}/{directory.TENSORBOARD_FOLDER}")
        self.assertLen(events, 2)  # of both machines


if __name__ == "__main__":
    tf.test.main()

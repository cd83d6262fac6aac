"""Every command on Keras' JAX backend, beside the same on TensorFlow."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import commands
import numpy as np
import onnxruntime
import subprocesses
import tensorflow as tf
import tiny

from jest_tf import inference
from jest_tf.data import sidecars, stores
from jest_tf.data.stores import manifest
from jest_tf.runs import directory

BACKENDS = "jax", "tensorflow"


class CommandsTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        processes = []
        for backend in BACKENDS:
            folder = os.path.join(cls.folder, backend)
            os.mkdir(folder)
            processes.append(
                subprocess.Popen(
                    [sys.executable, commands.__file__, folder],
                    cwd=subprocesses.ROOT,
                    env=subprocesses.environment(KERAS_BACKEND=backend),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        for process in processes:
            said, _ = process.communicate()
            assert process.returncode == 0, said[-4000:]

    def module(self, command, *words, backend="jax"):
        """What a command of `trainers` prints, in a process of a backend."""
        return subprocess.run(
            [sys.executable, "-m", f"trainers.{command}", *words, "--trust"],
            cwd=subprocesses.ROOT,
            env=subprocesses.environment(KERAS_BACKEND=backend),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout

    def both(self, *path):
        return [os.path.join(self.folder, name, *path) for name in BACKENDS]

    def assert_rows_alike(self, ours, theirs, rtol):
        """Rows of a log; names, texts and whole numbers are equal."""
        self.assertLen(ours, len(theirs))
        for one, other in zip(ours, theirs, strict=True):
            self.assertEqual(set(one), set(other))
            for name in other:
                if tiny.from_clock(name):
                    continue
                if isinstance(other[name], float):
                    self.assertAllClose(one[name], other[name], rtol, rtol)
                else:
                    self.assertEqual(one[name], other[name], name)

    def test_runs_are_equal_up_to_rounding(self):
        for run in ("distilled", "bootstrap"):
            for name in (directory.METRICS_FILE, directory.EVALUATION_FILE):
                ours, theirs = (
                    directory.read_rows(folder, name)
                    for folder in self.both(run)
                )
                self.assertNotEmpty(theirs)
                self.assert_rows_alike(ours, theirs, 2e-3)
            ours, theirs = (
                subprocesses.weight_arrays(f"{folder}/final.weights.h5")
                for folder in self.both(run)
            )
            for name, value in theirs.items():
                self.assertAllClose(ours[name], value, 1e-3, 1e-3)
            flops = [
                directory.read(folder, directory.FLOPS_FILE)
                for folder in self.both(run)
            ]
            self.assertEqual(*flops)

    def test_measures_and_advice_are_equal(self):
        measures = [
            json.loads(pathlib.Path(path).read_text())
            for path in self.both("evaluated", "evaluation.json")
        ]
        self.assert_rows_alike(*([row] for row in measures), 2e-3)
        said = [
            # All but the name of the page.
            pathlib.Path(path).read_text().splitlines()[:-1]
            for path in self.both("advice.txt")
        ]
        self.assertEqual(*said)

    def test_sidecars_and_choices_are_equal(self):
        store = stores.open_store(commands.POOL)
        ours, theirs = (
            sidecars.Sidecars(store, folder).read_shard(0)
            for folder in self.both("sidecars")
        )
        for part in ("image", "text"):
            self.assertAllClose(ours[part], theirs[part], atol=1e-3)
        ours, theirs = (
            manifest.read(folder, store).weights
            for folder in self.both("manifest")
        )
        self.assertLess(np.mean(ours != theirs), 1e-3)

    def test_either_goes_on_with_a_run_of_the_other(self):
        begun, ended = self.both("begun"), self.both("distilled")
        for workdir, own, other in zip(
            begun, ended, reversed(BACKENDS), strict=True
        ):
            self.module(
                *("train", "--workdir", workdir, "--extend", "2"), backend=other
            )
            rows = (
                directory.read_rows(path, directory.METRICS_FILE)
                for path in (workdir, own)
            )
            self.assert_rows_alike(*rows, 2e-3)

    def test_exports_are_made_by_tensorflow(self):
        workdir, _ = self.both("distilled")
        model = inference.load(workdir, trust=True)
        size = model.config.data.image_size
        pixels = np.arange(2 * size * size * 3).reshape(2, size, size, 3)
        pixels = np.uint8(pixels % 251)
        for kind in ("saved_model", "onnx"):
            output = f"{self.folder}/{kind}"
            said = self.module(
                *("export", "--model", workdir, "--output", output),
                *("--format", kind),
            )
            self.assertIn("TensorFlow makes the export", said)
        session = onnxruntime.InferenceSession(f"{output}/image_tower.onnx")
        saved = tf.saved_model.load(f"{self.folder}/saved_model")
        for found in (
            session.run(None, {"pixels": pixels})[0],
            saved.embed_pixels(pixels)["embeddings"],
        ):
            expected = model.learner.encode_image(pixels)
            self.assertAllClose(found, expected, 1e-4, 1e-5)

"""Workers and replicas of whole runs, each in processes of its own."""

import contextlib
import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import pytest
import run_server
import subprocesses
import tensorflow as tf
import tiny

from jest_tf import config
from jest_tf.data.sidecars import embed
from jest_tf.runs import checkpoints, directory, interruptions

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Steps that nobody waits for.
ENDLESS = 10**7


class Worker:
    """A process of `run_worker.py`."""

    def __init__(self, config_file, workdir, *flags, **environment):
        command = [
            *(sys.executable, os.path.join(TESTS, "run_worker.py")),
            *(config_file, workdir, *flags),
        ]
        self._process = subprocess.Popen(
            command,
            # Without the virtual devices of tests on JAX.
            env=subprocesses.environment(XLA_FLAGS="", **environment),
            stderr=subprocess.PIPE,
            text=True,
        )

    def send(self, number):
        self._process.send_signal(number)

    def is_running(self):
        return self._process.poll() is None

    def wait(self):
        """The exit code, and what it said."""
        try:
            _, said = self._process.communicate(timeout=300)
        finally:
            self._process.kill()
        return self._process.returncode, said


def last_logged(workdir):
    """The last step in the log; 0 without any."""
    rows = directory.read_rows(workdir, directory.METRICS_FILE)
    return rows[-1]["step"] if rows else 0


@pytest.mark.slow
class RunsTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        for seed, name in enumerate(("a", "b", "c", "curated-a", "curated-b")):
            path = os.path.join(self.folder, f"{name}.tfrecord")
            tiny.write_shard(path, seed=seed)

    def recipe(self, name, *overrides):
        """The path of a recipe's file."""
        path = os.path.join(self.folder, f"{name}.json")
        shard = os.path.join(self.folder, "a.tfrecord")
        overrides = f"data.train={shard}", *overrides
        config.save_config(run_server.recipe(self.folder, overrides), path)
        return path

    def workdir(self, name):
        return os.path.join(self.folder, name)

    @contextlib.contextmanager
    def workers(self, config_file, workdir, flags=((), ())):
        """Two, or as many as have flags, that run together; killed at last."""
        ports = subprocesses.free_ports(len(flags))
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        workers = []
        for index in range(len(flags)):
            task = {"type": "worker", "index": index}
            told = json.dumps({"cluster": cluster, "task": task})
            workers.append(
                Worker(config_file, workdir, *flags[index], TF_CONFIG=told)
            )
        try:
            yield workers
        finally:
            for worker in workers:
                worker.send(signal.SIGKILL)

    def endless_recipe(self, *overrides):
        return self.recipe(
            "endless",
            "distribution.strategy=multi_worker_mirrored",
            f"steps={ENDLESS}",
            "evaluation.every_steps=none",
            "evaluation.log_every_steps=1",
            f"checkpoint.every_steps={ENDLESS}",
            *overrides,
        )

    def wait_for_a_step(self, workers, workdir, step):
        """Waits for a step after `step`, or for a worker's end."""
        deadline = time.monotonic() + 300
        while last_logged(workdir) <= step:
            if not all(worker.is_running() for worker in workers):
                break
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)

    def assert_lost_another(self, code, said, place=""):
        """JAX itself ends the others if its first process has died."""
        if keras.backend.backend() == "jax" and "another task died" in said:
            self.assertNotEqual(code, 0, said)
            return
        self.assertEqual(code, 1, said)
        self.assertRegex(
            said,
            "error: All workers must run together, but another has .*"
            rf"Received: \w+Error in {place}",
        )

    def test_a_signal_to_one_worker_stops_both_with_the_state_saved(self):
        recipe, workdir = self.endless_recipe(), self.workdir("two")
        saved = [0]
        for stopped in (1, 0):
            with self.workers(recipe, workdir) as workers:
                # Not before a step that they make together.
                self.wait_for_a_step(workers, workdir, saved[-1])
                workers[stopped].send(signal.SIGTERM)
                for index, worker in enumerate(workers):
                    code, said = worker.wait()
                    self.assertEqual(
                        code, interruptions.EXIT_CODE, said[-4000:]
                    )
                    received = (
                        "SIGTERM"
                        if index == stopped
                        else "a signal to another worker"
                    )
                    self.assertIn(f"{workdir}: stopped by {received}", said)
            steps = checkpoints.saved_steps(workdir)
            self.assertGreater(steps[-1], saved[-1])
            saved = steps
            # What the steps before the checkpoint logged, without a gap.
            logged = directory.read_rows(workdir, directory.METRICS_FILE)
            self.assertEqual(
                [row["step"] for row in logged], list(range(1, steps[-1] + 1))
            )

    def test_a_killed_worker_ends_the_other_and_the_same_commands_go_on(self):
        recipe = self.endless_recipe("checkpoint.every_steps=4")
        workdir, step = self.workdir("killed"), 0
        for killed in (1, 0, 1):
            with self.workers(recipe, workdir) as workers:
                self.wait_for_a_step(workers, workdir, step + 4)
                workers[killed].send(signal.SIGKILL)
                started = time.monotonic()
                code, said = workers[1 - killed].wait()
                self.assertLess(time.monotonic() - started, 60.0)
                workers[killed].wait()
            self.assert_lost_another(code, said)
            self.assertIn(f"steps {step:,} to {ENDLESS:,}", said)
            step = checkpoints.saved_steps(workdir)[-1]

    def test_too_many_damaged_records_of_one_worker_end_both(self):
        recipe = self.endless_recipe()
        with self.workers(
            recipe, self.workdir("damaged"), ((), ("--damaged",))
        ) as workers:
            (healthy, its), (damaged, said) = (
                worker.wait() for worker in workers
            )
        self.assert_lost_another(healthy, its, r"the step after \d+")
        self.assertEqual(damaged, 1, said)
        self.assertRegex(said, "error: Too many records cannot be read: ")
        # That of a worker that writes nothing is in no file.
        self.assertNotIn(directory.FAULTS_FILE, said)

    def test_replicas_renew_the_reference_as_one_does(self):
        """With stored and live stages and distillation; each process embeds."""
        stored = f"{self.folder}/stored"
        for path in glob.glob(f"{self.folder}/*.tfrecord"):
            # Of a reference that is worse than any learner.
            tiny.write_sidecars(path, range(20), embed.Output(stored))
        settings = (
            f"data.train={self.folder}/?.tfrecord",
            f"data.curated={self.folder}/curated-?.tfrecord",
            *("data.curated_rows=4", "bootstrap.renew_at=6", "steps=12"),
            *("bootstrap.clean_start=true", "evaluation.every_steps=none"),
            *("selection.batch_size=8", "bootstrap.shares=1"),
            f"reference.sidecar_dir={stored}",
            *(
                "reference.distillation_weight=0.5",
                "reference.similarity_weight=0.5",
            ),
            "selection.stages.0.embeddings=stored",
            "selection.stages.0.criterion=easy_reference",
            "selection.stages.0.candidates=2",
            *(
                "selection.stages.1.candidates=2",
                "selection.stages.1.num_chunks=2",
            ),
            "selection.stages.1.criterion=learnability",
        )
        strategy = "distribution.strategy="
        for name, count, *more in (
            ("one", 1),
            ("two", 2, f"{strategy}multi_worker_mirrored"),
            ("four", 4, f"{strategy}multi_worker_mirrored"),
            (
                "split",
                1,
                f"{strategy}mirrored",
                "distribution.virtual_devices=4",
            ),
        ):
            recipe = self.recipe(name, *settings, *more)
            workdir = self.workdir(f"{name}-run")
            flags = [("--embedding", str(count))] * count
            with self.workers(recipe, workdir, flags) as workers:
                for worker in workers:
                    code, said = worker.wait()
                    self.assertEqual(code, 0, said)
                    self.assertIn("it is the reference now", said)
            rows = directory.read_rows(workdir, directory.METRICS_FILE)
            losses = [row["train/loss"] for row in rows]
            found = [
                [row.get(part) for row in rows]
                for part in (
                    *("step", "select/digest", "examples/trained"),
                    "bootstrap/recognised",
                )
            ]
            if name == "one":
                expected = found, losses
            self.assertEqual(found, expected[0])
            self.assertAllClose(losses, expected[1], rtol=1e-4)

    def test_a_run_goes_on_with_another_number_of_replicas(self):
        def run(name, replicas, *flags):
            settings = {1: ["distribution.strategy=default"]}
            settings[4] = [
                "distribution.strategy=mirrored",
                "distribution.virtual_devices=4",
            ]
            return Worker(
                self.recipe(
                    f"{name}_on_{replicas}",
                    *settings[replicas],
                    # Four replicas share them.
                    "selection.batch_size=8",
                    "selection.stages.0.candidates=2",
                ),
                self.workdir(name),
                *flags,
            ).wait()

        code, said = run("unbroken", 1)
        self.assertEqual(code, 0, said)
        stopped_at = 0
        for replicas in (1, 4):
            code, said = run("broken", replicas, "--stop-after", "2")
            self.assertEqual(code, interruptions.EXIT_CODE, said)
            self.assertIn(f"steps {stopped_at} to 24", said)
            stopped_at = checkpoints.saved_steps(self.workdir("broken"))[-1]
        code, said = run("broken", 1)
        self.assertEqual(code, 0, said)
        self.assertIn(f"steps {stopped_at} to 24", said)
        ours, theirs = (
            directory.read_rows(self.workdir(name), directory.METRICS_FILE)
            for name in ("broken", "unbroken")
        )
        for part in ("step", "select/digest", "examples/trained"):
            self.assertEqual(
                [row[part] for row in ours], [row[part] for row in theirs]
            )
        self.assertAllClose(
            *([row["train/loss"] for row in rows] for rows in (ours, theirs)),
            rtol=1e-4,
        )
        ours, theirs = (
            subprocesses.weight_arrays(f"{self.workdir(name)}/final.weights.h5")
            for name in ("broken", "unbroken")
        )
        self.assertEqual(set(ours), set(theirs))
        for part, value in theirs.items():
            if np.issubdtype(value.dtype, np.floating):
                self.assertAllClose(ours[part], value, 1e-4, 1e-5)

"""Runs killed at any instant end as the unbroken run does, bit for bit."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time

import fake_gcs
import numpy as np
import pytest
import remote_files
import subprocesses
import tensorflow as tf
import tiny

from jest_tf import files
from jest_tf.data import sidecars
from jest_tf.data.sidecars import embed, file_format
from jest_tf.files import remote
from jest_tf.runs import bootstrap, checkpoints, directory, interruptions

SEED = 1


@pytest.mark.slow
class ResumeTestCase(tf.test.TestCase):
    settings = ()
    options = {}  # of `run_server.run`

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        tiny.write_shard(os.path.join(cls.folder, "a.tfrecord"))
        tiny.write_shard(
            os.path.join(cls.folder, "damaged.tfrecord"),
            rows=8,
            seed=1,
            damaged=(2, 5),
        )
        cls.server = subprocesses.Server()
        cls.addClassCleanup(cls.server.close)
        cls.unbroken = os.path.join(cls.folder, "unbroken")
        if cls.settings is None:
            return
        cls.server.start(cls.unbroken, *cls.settings, **cls.options)
        started = time.monotonic()  # the server has imported TensorFlow
        code = cls.server.wait()
        cls.seconds = time.monotonic() - started
        if code:
            raise AssertionError(cls.said_in(cls.unbroken))

    @staticmethod
    def said_in(workdir):
        return files.read_whole(f"{workdir}.log").decode()

    def workdir(self, name):
        return os.path.join(self.folder, name)

    def kill(self, process, random_):
        """Kills a run at a random moment; returns its exit code."""
        time.sleep(random_.uniform(0.0, self.seconds))
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(process, signal.SIGKILL)
        return self.server.wait()

    def wait_for(self, done):
        deadline = time.monotonic() + 300.0
        while not done():
            self.assertLess(time.monotonic(), deadline, "waited in vain")
            # Asking the storage takes time from the run.
            time.sleep(0.02)

    def assert_ends_alike(self, workdir, *overrides, unbroken=None):
        """Lets the run end; it then equals the unbroken run."""
        self.assertEqual(
            self.server.run(workdir, *overrides), 0, self.said_in(workdir)
        )
        self.assert_alike(workdir, unbroken)

    def assert_alike(self, workdir, unbroken=None, has_config=True):
        unbroken = unbroken or self.unbroken
        for name in ("config.json", "vocab.txt")[not has_config :]:
            ours, other = (
                files.read_whole(directory.path(folder, name))
                for folder in (workdir, unbroken)
            )
            self.assertEqual(ours, other)
        for name in (
            directory.METRICS_FILE,
            directory.DRAWS_FILE,
            directory.EVALUATION_FILE,
            directory.FAULTS_FILE,
            directory.TELEMETRY_FILE,
        ):
            self.assertEqual(
                self.lines(workdir, name), self.lines(unbroken, name)
            )
        steps = checkpoints.saved_steps(unbroken)
        self.assertEqual(checkpoints.saved_steps(workdir), steps)
        with files.staged(f"{workdir}/{directory.WEIGHTS_FILE}") as weights:
            self.assert_equal_arrays(
                subprocesses.weight_arrays(path)
                for path in (weights, f"{unbroken}/{directory.WEIGHTS_FILE}")
            )
        for step in steps:
            self.assert_equal_arrays(
                checkpoints.read(folder, step) for folder in (workdir, unbroken)
            )
        found = files.tree(workdir)
        self.assertEmpty([name for name in found if "partial" in name])

    def assert_equal_arrays(self, both):
        ours, other = both
        self.assertEqual(set(ours), set(other))
        for key, value in ours.items():
            np.testing.assert_array_equal(value, other[key], key)

    def lines(self, workdir, name):
        return [
            {
                # Folders differ.
                key: os.path.basename(value) if key == "place" else value
                for key, value in row.items()
                if not tiny.from_clock(key)
            }
            for row in directory.read_rows(workdir, name)
        ]


@pytest.mark.slow
class ResumeTest(ResumeTestCase):
    def test_the_unbroken_run_is_one(self):
        rows = self.lines(self.unbroken, directory.METRICS_FILE)
        self.assertEqual([row["step"] for row in rows], [5, 10, 15, 20, 24])
        followed = self.lines(self.unbroken, directory.TELEMETRY_FILE)
        self.assertEqual(
            [line["step"] for line in followed], [5, 10, 15, 20, 24]
        )
        rows = self.lines(self.unbroken, directory.EVALUATION_FILE)
        self.assertEqual([row["step"] for row in rows], [6, 12, 18, 24])
        self.assertEqual(checkpoints.saved_steps(self.unbroken), [20, 24])
        # Damaged records of both kinds were met, from the first steps to the
        # last, so that equal logs of them say something.
        faults = self.lines(self.unbroken, directory.FAULTS_FILE)
        self.assertEqual({row["id"] for row in faults}, {102, 105})
        self.assertLen({row["reason"] for row in faults}, 2)
        self.assertLess(faults[0]["step"], 4)
        self.assertGreater(faults[-1]["step"], 20)
        last = checkpoints.read(self.unbroken, 24)
        # Every kind of state is there, so that equality says something.
        for name in (
            "optimizer/",
            "kernel_average",
            "moving_mean",
            "seed_generator_state",
            "log/loss/",
            "telemetry/is_due",
        ):
            with self.subTest(name):
                self.assertTrue(any(name in key for key in last), list(last))

    def test_killed_at_random_moments(self):
        workdir = self.workdir("random")
        moments = random.Random(SEED)
        for _ in range(4):
            code = self.kill(self.server.start(workdir), moments)
            self.assertIn(code, (-signal.SIGKILL, 0))
        self.assert_ends_alike(workdir)

    def test_killed_while_it_writes(self):
        workdir = self.workdir("writing")
        places = random.Random(SEED)
        # Counted in its writes, a run is killed here and there: as it makes
        # the directory, at checkpoints, and, once it has some, at its end.
        for place in (2, *(places.randrange(5, 40) for _ in range(4))):
            self.assertIn(
                self.server.run(workdir, at=place), (-signal.SIGKILL, 0)
            )
        self.assert_ends_alike(workdir)

    def test_sigterm_saves_and_exits_with_its_own_code(self):
        workdir = self.workdir("SIGTERM")
        # In the middle of the first checkpoint, of step 4, and right after it.
        code = self.server.run(workdir, at=15, number=signal.SIGTERM)
        self.assertEqual(code, interruptions.EXIT_CODE, self.said_in(workdir))
        (step,) = checkpoints.saved_steps(workdir)[-1:]
        self.assertIn(
            f"stopped by SIGTERM; the same command goes on from step {step}",
            self.said_in(workdir),
        )
        self.assert_ends_alike(workdir)
        self.assertIn(f"steps {step} to 24", self.said_in(workdir))

    def test_a_signal_before_the_first_step_saves_nothing(self):
        workdir = self.workdir("early")
        code = self.server.run(workdir, at=3, number=signal.SIGTERM)
        self.assertEqual(code, interruptions.EXIT_CODE)
        self.assertEqual(checkpoints.saved_steps(workdir), [])
        self.assertIn("goes on from step 0", self.said_in(workdir))

    def test_one_process_at_a_time(self):
        workdir = self.workdir("busy")
        process = self.server.start(workdir)
        self.wait_for(lambda: os.path.isfile(f"{workdir}/vocab.txt"))
        os.kill(process, signal.SIGSTOP)
        other = subprocesses.Server()
        self.assertEqual(other.run(workdir), 1)
        other.close()
        self.assertIn("Another process is training", self.said_in(workdir))
        os.kill(process, signal.SIGKILL)
        self.assertEqual(self.server.wait(), -signal.SIGKILL)


@pytest.mark.slow
class FullDiskTest(ResumeTestCase):
    """A disk that is full is told; with room the same command goes on."""

    settings = ("steps=8",)

    @classmethod
    def setUpClass(cls):
        remote_files.server()
        super().setUpClass()

    def setUp(self):
        super().setUp()
        self.disk = self.enterContext(tempfile.TemporaryDirectory())
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", self.disk]
        if os.geteuid() or subprocess.run(mount, check=False).returncode:
            self.skipTest("only root may mount a small disk")
        self.addCleanup(subprocess.run, ["umount", self.disk], check=True)
        for name in ("a.tfrecord", "damaged.tfrecord"):
            shutil.copy(f"{self.folder}/{name}", self.disk)

    def fill(self, left):
        """Leaves so many bytes of room."""
        free = shutil.disk_usage(self.disk).free
        with open(f"{self.disk}/filling", "wb") as file:
            file.write(bytes(max(0, free - left)))

    def check(self, code, pattern, workdir, **place):
        """Checks how a run ended; with room it then goes on to its end."""
        local = place.get("local", workdir)
        said = self.said_in(local)
        self.assertEqual(code, 1, said)
        found = f"error: .*No space left on device: expected room for {pattern}"
        self.assertRegex(said, found)
        self.assertNotIn("scoring_batch_size", said)
        os.remove(f"{self.disk}/filling")
        code = self.server.run(workdir, *self.settings, **place)
        self.assertEqual(code, 0, self.said_in(local))
        self.assert_alike(workdir, has_config=False)
        return said

    def test_a_run_directory_without_room_is_told_before_a_step(self):
        workdir = f"{self.disk}/run"
        self.fill(2**20)
        code = self.server.run(workdir, *self.settings)
        pattern = r"[\d,]+ bytes. Received: [\d,]+ free .*continues: '\S+/run'"
        said = self.check(code, pattern, workdir)
        self.assertNotIn("training:", said)

    def test_a_disk_that_fills_up_stops_the_run(self):
        workdir = f"{self.disk}/run"
        process = self.server.start(workdir, *self.settings)
        self.wait_for(lambda: os.path.isdir(f"{workdir}/checkpoints"))
        os.kill(process, signal.SIGSTOP)
        self.fill(0)
        os.kill(process, signal.SIGCONT)
        self.check(self.server.wait(), "", workdir)

    def test_temporary_files_without_room_are_told_before_a_step(self):
        workdir, local = f"gs://{fake_gcs.BUCKET}/full", f"{self.disk}/run"
        self.fill(2**20)
        code = self.server.run(workdir, *self.settings, local=local)
        pattern = r"[\d,]+ bytes.*or set TMPDIR.*'\S+/run.tmp"
        said = self.check(code, pattern, workdir, local=local)
        self.assertNotIn("training:", said)


# A run of eight steps, on 40 records of which every third is noise.
FUNNEL = (
    *("steps=8", "selection.stages=none", "optimizer.ema=none"),
    *("data.noise_field=noise", "evaluation.every_steps=none"),
    *("evaluation.log_every_steps=2", "checkpoint.every_steps=2"),
)


def stage(number, **values):
    """Overrides of a stage."""
    values = {"num_chunks": 2, "criterion": "easy_reference"} | values
    return tuple(
        f"selection.stages.{number}.{name}={value}"
        for name, value in values.items()
    )


@pytest.mark.slow
class FunnelResumeTest(ResumeTestCase):
    """Funnels of every kind: killed and continued."""

    settings = None  # each test has its own

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        noisy = range(0, 40, 3)
        cls.pool = tiny.write_shard(f"{cls.folder}/pool", 40, noisy=noisy)
        tiny.write_sidecars(cls.pool, noisy)
        cls.curated = tiny.write_shard(f"{cls.folder}/c", 6, seed=4, noisy=[1])

    def check(self, name, *settings, kills, at_random=0):
        """Kills a run at writes, and at random moments.

        Returns the unbroken run's directory.
        """
        settings = (*FUNNEL, f"data.train={self.pool}", *settings)
        workdir, unbroken = self.workdir(f"{name} killed"), self.workdir(name)
        started = time.monotonic()
        self.assertEqual(
            self.server.run(unbroken, *settings), 0, self.said_in(unbroken)
        )
        self.seconds, moments = time.monotonic() - started, random.Random(SEED)
        for place in kills:
            code = self.server.run(workdir, *settings, at=place)
            self.assertEqual(code, -signal.SIGKILL, self.said_in(workdir))
        for _ in range(at_random):
            code = self.kill(self.server.start(workdir, *settings), moments)
            self.assertIn(code, (-signal.SIGKILL, 0), self.said_in(workdir))
        self.assert_ends_alike(workdir, *settings, unbroken=unbroken)
        return unbroken

    def test_a_live_stage_alone_that_ends(self):
        live = stage(0, candidates=3, criterion="learnability", last_step=4)
        unbroken = self.check("live", *live, kills=[10])
        # The row of step 6 has the mean of step 5.
        rows = self.lines(unbroken, directory.METRICS_FILE)
        self.assertEqual(
            ["stages/0/score" in row for row in rows], [True, True, True, False]
        )
        self.assertEqual(
            [row["examples/scored"] for row in rows],
            [12 * step for step in (2, 4, 5, 5)],
        )

    def test_a_clean_start_renewals_and_distillation(self):
        stored = f"{self.folder}/stored"
        for path in (self.pool, self.curated):
            # Of a reference that is worse than any learner.
            tiny.write_sidecars(path, range(40), embed.Output(stored))
        settings = (
            *stage(0, candidates=2, embeddings="stored"),
            *stage(1, candidates=2, criterion="learnability", num_chunks=1),
            *(f"data.curated={self.curated}", "data.curated_rows=1"),
            *("bootstrap.renew_at=3,5", "bootstrap.shares=0.9"),
            "bootstrap.clean_start=true",
            f"reference.sidecar_dir={stored}",
            *(
                "reference.distillation_weight=0.3",
                "reference.similarity_weight=0.5",
            ),
        )
        unbroken = self.check("renewed", *settings, kills=[8, 15], at_random=2)
        # Three steps of four curated rows; then 12 offered, 6 drawn.
        last = self.lines(unbroken, directory.METRICS_FILE)[-1]
        for name, count in (
            ("drawn", 3 * 4 + 5 * (6 + 1)),
            ("scored", 5 * 6),
            ("trained", 8 * 4),
            ("offered", 5 * 12),
        ):
            self.assertEqual(last[f"examples/{name}"], count)
        drawn = self.lines(unbroken, directory.DRAWS_FILE)
        self.assertContainsSubset(drawn[0]["ids"], range(100, 106))
        said = self.said_in(unbroken)
        self.assertEqual(said.count("it is the reference now"), 2)
        for name in (
            "flops/stored",
            "train/distillation",
            "train/similarities",
        ):
            self.assertGreater(last[name], 0)
        # With a reference from the start, one model serves all parts.
        self.assertEqual(said.count("compiling the step"), 1)


@pytest.mark.slow
class BucketResumeTest(ResumeTestCase):
    """A run that renews its reference, on a bucket with all of its data.

    Killed, it ends as the unbroken local run. Every process is on another
    machine: it has nothing of the last machine but the bucket.
    """

    settings = (
        *("steps=6", "selection.stages=none", "selection.batch_size=6"),
        *stage(0, candidates=3, embeddings="stored"),
        *("bootstrap.renew_at=2,4", "bootstrap.shares=0.8"),
        "checkpoint.every_steps=3",
        *("evaluation.every_steps=4", "evaluation.log_every_steps=3"),
    )
    options = {"kept": 1}

    @classmethod
    def setUpClass(cls):
        storage = remote_files.server()
        # Machines whose requests the storage may fail.
        cls.machines = [
            subprocesses.Server(
                **storage.environment_of(name),
                # TensorFlow's own: it asks again for minutes.
                GCS_RETRY_CONFIG_INIT_DELAY_TIME_US="1000000",
            )
            for name in "ab"
        ]
        for machine in cls.machines:
            cls.addClassCleanup(machine.close)
        super().setUpClass()
        cls.bucket = f"gs://{fake_gcs.BUCKET}/resume"
        names = "a.tfrecord", "damaged.tfrecord"
        for name in names:
            with open(f"{cls.folder}/{name}", "rb") as shard:
                files.write_whole(f"{cls.bucket}/{name}", shard.read())
        cls.remote = (
            *cls.settings,
            "data.train=" + ",".join(f"{cls.bucket}/{name}" for name in names),
            f"evaluation.data={cls.bucket}/{names[0]}",
        )

    def place(self, name):
        """A run directory, and what the names of its local files begin with."""
        return f"{self.bucket}/{name}", self.workdir(name)

    def start_at(self, server, place, **options):
        workdir, local = place
        options |= self.options
        return server.start(workdir, *self.remote, local=local, **options)

    def run_at(self, place, **options):
        self.start_at(self.server, place, **options)
        return self.server.wait()

    def test_killed_at_random_moments_and_while_it_writes(self):
        random_, kills, runs, code = random.Random(SEED), 0, 0, -1
        while kills < 8 or code:
            # A run that has ended is followed by another.
            workdir, local = place = self.place(f"killed-{runs}")
            if kills == 8:
                code = self.run_at(place)
            elif kills % 2:
                code = self.run_at(place, at=random_.randrange(24))
            else:
                code = self.kill(self.start_at(self.server, place), random_)
            self.assertIn(code, (-signal.SIGKILL, 0), self.said_in(local))
            if code:
                kills += 1
            else:
                self.assert_alike(workdir, has_config=False)
                runs += 1

    def test_machines_that_come_back_end_and_change_nothing(self):
        storage = remote_files.server()
        self.addCleanup(storage.heal)
        workdir, _ = place = self.place("late")
        said_in = []
        # Each in the middle of its first save: the first is stopped, the second
        # cut off.
        for name, machine in zip("ab", self.machines, strict=True):
            said_in.append(self.workdir(f"late on {name}"))
            storage.fail(f"^{name}: POST .*metrics.jsonl", hold=True)
            process = self.start_at(machine, (workdir, said_in[-1]))
            self.wait_for(lambda: storage.held() == len(said_in))
            if name == "a":
                stopped = process
                os.kill(stopped, signal.SIGSTOP)
        storage.fail("^b: ", hold=True, times=10**9)
        self.assertEqual(self.run_at(place), 0, self.said_in(place[1]))
        storage.heal()
        os.kill(stopped, signal.SIGCONT)
        for machine, local in zip(self.machines, said_in, strict=True):
            self.assertEqual(machine.wait(), 1, self.said_in(local))
            self.assertRegex(
                self.said_in(local), "error: The lease .* was lost"
            )
        self.assert_alike(workdir, has_config=False)
        self.assertEqual(self.run_at(place), 0)
        self.assertIn("already finished", self.said_in(place[1]))

    def test_a_signal_in_an_outage_is_answered_and_after_it_saves(self):
        storage, machine = remote_files.server(), self.machines[0]
        self.addCleanup(storage.heal)
        workdir, local = place = self.place("signals")
        # In the first save.
        storage.fail("^a: POST .*checkpoints", hold=True)
        process = self.start_at(machine, place, grace=3.0)
        self.wait_for(storage.held)
        storage.heal()
        storage.fail("^a: ", times=10**9)
        started = time.monotonic()
        self.wait_for(lambda: "Still trying to" in self.said_in(local))
        self.assertLess(time.monotonic() - started, 10.0)
        os.kill(process, signal.SIGTERM)
        started = time.monotonic()
        self.assertEqual(machine.wait(), interruptions.EXIT_CODE)
        self.assertLess(time.monotonic() - started, 20.0)
        said = self.said_in(local)
        self.assertEqual(said.count("stopped by SIGTERM"), 1, said)
        self.assertNotIn("Traceback", said)
        storage.heal()
        # The held request may have been the last of the save.
        known = [], checkpoints.saved_steps(workdir)
        workdir, local = place = workdir, f"{local} of another"
        process = self.start_at(self.server, place)
        self.wait_for(lambda: checkpoints.saved_steps(workdir) not in known)
        os.kill(process, signal.SIGTERM)
        code = self.server.wait()
        said = self.said_in(local)
        self.assertEqual(code, interruptions.EXIT_CODE, said)
        (step,) = checkpoints.saved_steps(workdir)[-1:]
        self.assertIn(f"the same command goes on from step {step}", said)
        # The lease was given back, so nobody waits for it.
        self.assertEndsWith(max(remote.names(f"{workdir}/.lock")), ".end")
        self.assertEqual(self.run_at(place), 0)
        self.assert_alike(workdir, has_config=False)

    def sidecars(self, workdir, step):
        """The arrays of a renewal's sidecars, by name."""
        folder = f"{workdir}/references/step-{step:09d}"
        return {
            name: {
                key: np.asarray(values)
                for key, values in file_format.read(f"{folder}/{name}")[
                    1
                ].arrays.items()
            }
            for name in files.list_folder(folder)
            if name.endswith(sidecars.SUFFIX)
        }

    def test_killed_while_it_renews(self):
        workdir, local = self.place("renewed")
        first, second = "step-000000002", "step-000000004"
        # The unbroken run has deleted the sidecars of a renewal.
        (doomed,) = (
            step for step in (2, 4) if not self.sidecars(self.unbroken, step)
        )
        for number, touching in enumerate(
            (
                # A sidecar is there.
                f"{first}/damaged.tfrecord",
                # In the steps that choose by it: half a checkpoint.
                f"checkpoints/{second}/state.index",
                # Both are, in the next renewal; then a sidecar was deleted.
                f"{second}/{directory.RENEWAL_FILE}",
                f"step-{doomed:09d}/damaged.tfrecord",
            )
        ):
            machine = f"{local} on {number}"
            place = workdir, machine
            code = self.run_at(place, touching=touching, at=0)
            self.assertEqual(code, -signal.SIGKILL, self.said_in(machine))
        self.assertEqual(self.run_at((workdir, local)), 0, self.said_in(local))
        self.assert_alike(workdir, has_config=False)
        for step in (2, 4):
            found, expected = (
                self.sidecars(place, step) for place in (workdir, self.unbroken)
            )
            self.assertEqual(list(found), list(expected))
            for name, arrays in expected.items():
                self.assert_equal_arrays((found[name], arrays))
        recipe = directory.load_config(workdir, trust=True)
        found, expected = (
            [
                renewal._replace(seconds=0.0)
                for renewal in bootstrap.renewals(recipe, folder)
            ]
            for folder in (workdir, self.unbroken)
        )
        self.assertEqual(found, expected)

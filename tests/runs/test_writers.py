"""Two writers of a run: whatever is late, the last writer's work stands."""

import json
import os

import late_world
import pytest
import tensorflow as tf

from jest_tf import files
from jest_tf.files import leases
from jest_tf.runs import checkpoints, directory

HISTORIES = 200
WORKDIR = late_world.FOLDER
STEPS = 6


class Run(late_world.Process):
    """A run as `runs/run.py` makes it, of a sum in place of weights.

    Attributes:
        code: as `jest-tf train` exits; None of a process that was killed.
        rows: of the log, as this process wrote them.
    """

    def __init__(self, world, name, chances):
        super().__init__(name, chances)
        self._world = world
        self.code, self.error, self.rows = None, "", []

    def main(self):
        try:
            with directory.locked(WORKDIR):
                self.train()
            self.code = 0
        except (ValueError, OSError) as error:
            self.code, self.error = 1, error

    def train(self):
        if not directory.has(WORKDIR, directory.CONFIG_FILE):
            directory.write(WORKDIR, directory.CONFIG_FILE, {"steps": STEPS})
        start = max(checkpoints.saved_steps(WORKDIR), default=0)
        total = 0
        if start:
            with files.staged_folder(self.folder(start)) as local:
                with open(os.path.join(local, "state.data")) as file:
                    total = json.load(file)
        directory.cut_back(WORKDIR, start)
        for step in range(start + 1, STEPS + 1):
            self._world.sleep(5.0)
            total += step
            self.rows.append({"step": step, "sum": total, "by": self.name})
            directory.append(WORKDIR, directory.METRICS_FILE, self.rows[-1])
            if step % 2 == 0:
                directory.sync_logs(WORKDIR)
                self.save(step, total)
        directory.write(WORKDIR, directory.WEIGHTS_FILE, [total, self.name])
        if not directory.read_rows(WORKDIR, directory.EVALUATION_FILE):
            row = {"step": STEPS, "sum": total}
            directory.append(WORKDIR, directory.EVALUATION_FILE, row)

    def save(self, step, total):
        with files.written_folder(self.folder(step)) as local:
            for name in ("state.data", "state.index"):
                with open(os.path.join(local, name), "w") as file:
                    json.dump(total, file)
        for old in checkpoints.saved_steps(WORKDIR)[:-1]:
            files.remove_folder(self.folder(old))

    def folder(self, step):
        folder = directory.path(WORKDIR, directory.CHECKPOINTS_FOLDER)
        return os.path.join(folder, f"step-{step:09d}")


@pytest.mark.slow
class HistoriesTest(tf.test.TestCase):
    def test_every_row_of_the_winner_is_there_and_losers_change_nothing(self):
        lost = finished = 0
        for seed in range(HISTORIES):
            world = late_world.World(seed)
            with self.subTest(seed), world.entered():
                runs = [Run(world, name, late_world.CHANCES) for name in "abc"]
                for run in runs:
                    delay = world.random.uniform(0.0, 200.0)
                    world.start(run, run.main, delay)
                world.run()
                lost += sum(isinstance(r.error, leases.Lost) for r in runs)
                finished += any(run.code == 0 for run in runs)
                runs.append(Run(world, "last", {}))
                world.start(runs[-1], runs[-1].main)
                world.run()
                self.check(world, runs)
        # Histories of every kind.
        self.assertGreater(lost, HISTORIES / 10)
        self.assertGreater(finished, HISTORIES / 2)
        self.assertLess(finished, HISTORIES)

    def check(self, world, runs):
        self.assertEqual(world.disturbed, [])
        self.assertEqual(runs[-1].code, 0, runs[-1].error)
        for run in runs:
            if run.code == 1:
                self.assertRegex(
                    str(run.error), "was lost|Another process is|is gone|lost"
                )
        seen = {name: text for name, (text, _) in world.seen().items()}
        rows = [
            json.loads(line)
            for line in seen[directory.METRICS_FILE].splitlines()
        ]
        self.assertEqual([row["step"] for row in rows], [*range(1, STEPS + 1)])
        self.assertEqual(
            [row["sum"] for row in rows],
            [sum(range(step + 1)) for step in range(1, STEPS + 1)],
        )
        for run in runs:
            if run.code == 0 and run.rows:
                self.assertEqual(rows[-len(run.rows) :], run.rows)
        total = rows[-1]["sum"]
        self.assertEqual(
            json.loads(seen[directory.WEIGHTS_FILE]), [total, "last"]
        )
        self.assertEqual(
            json.loads(seen[directory.EVALUATION_FILE]),
            {"step": STEPS, "sum": total},
        )
        for name in ("data", "index"):
            text = seen[f"checkpoints/step-{STEPS:09d}/state.{name}"]
            self.assertEqual(json.loads(text), total)

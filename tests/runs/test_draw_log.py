"""The log of each stage: values by group, clean shares."""

import contextlib
import io
import os
import tempfile
import types

import keras
import numpy as np
import tensorflow as tf
import tiny

import jest_tf
from jest_tf import config, training
from jest_tf.runs import directory, draw_log
from jest_tf.runs import log as log_lib
from jest_tf.selection import summary

SEED, STEPS = 3, 4
Stage = config.Stage
# 24 rows, 8 of which pass the first stage and 4 of these the second.
FUNNEL = (
    Stage(3, num_chunks=2),
    Stage(2, num_chunks=2, criterion="hard_learner"),
)


def settings(*stages, steps=STEPS, batch_size=4, **more):
    return config.TrainConfig(
        seed=SEED,
        steps=steps,
        selection=config.SelectionConfig(batch_size, stages),
        evaluation=config.EvaluationConfig(log_every_steps=2),
        **{"reference": config.ReferenceConfig("somewhere")} | more,
    )


def is_even(ids):
    return ids % 2 == 0


class Spy(keras.callbacks.Callback):
    """Keeps the report of every step."""

    def __init__(self):
        super().__init__()
        self.reports = []

    def on_train_batch_end(self, batch, logs=None):
        self.reports.append(self.model.rows)


class FunnelTest(tf.test.TestCase):
    def test_every_logged_step_has_a_line_that_sums_up_each_stage(self):
        """In a run of two live stages, against what its model reports."""
        workdir, run = self.get_temp_dir(), settings(*FUNNEL)
        batches = tiny.super_batches(STEPS, rows=24)
        model = training.JESTModel(
            tiny.learner(0),
            tiny.learner(5),
            run.selection,
            options=jest_tf.StepOptions(seed=SEED),
        )
        model.compile(keras.optimizers.SGD(0.5), jit_compile=False)
        telemetry = draw_log.Telemetry(workdir, clean=is_even)
        log, spy = log_lib.Ledger(run, workdir, telemetry=telemetry), Spy()
        with contextlib.redirect_stderr(io.StringIO()):
            model.fit(tiny.dataset(batches), verbose=0, callbacks=[log, spy])
        rows = tiny.read_lines(workdir, directory.METRICS_FILE)
        lines = tiny.read_lines(workdir, directory.TELEMETRY_FILE)
        self.assertEqual(
            [(line["step"], line["super_batch"]) for line in lines],
            [(2, 1), (4, 3)],
        )
        for line, row in zip(lines, rows, strict=True):
            step = line["step"]
            report = spy.reports[step - 1]
            for number, stage in enumerate(FUNNEL):
                found = report.scored(number)
                self.assertAllEqual(
                    found["id"], batches[step - 1]["id"][found["row"]]
                )
                expected = summary.summarize_rows(
                    stage,
                    found | {"clean": is_even(found["id"])},
                    report.uniform(number),
                )
                self.assertEqual(
                    (expected["rows_in"], expected["rows_out"]),
                    ((24, 8), (8, 4))[number],
                )
                told = line["stages"][number]
                self.assertEqual(told, {"stage": number} | expected)
                for name in ("clean_in", "clean_out"):
                    self.assertEqual(row[f"stages/{number}/{name}"], told[name])
            # What the first stage kept comes into the second.
            first, second = report.scored(0), report.scored(1)
            self.assertCountEqual(second["row"], first["row"][first["kept"]])
            self.assertCountEqual(report.drawn, second["row"][second["kept"]])


class Rows:
    """A report of a known draw; `scored` are the rows of stages."""

    def __init__(self, drawn=None, scored=None):
        self.drawn, self._scored = drawn, scored or {}

    def scored(self, stage):
        return dict(self._scored.get(stage, {}))

    def uniform(self, stage):
        return {"learner_loss": np.float32([1.0, 2.0])}


def scored_rows(count=12, kept=4, **more):
    """Rows of a stage by the learner alone, of which the first pass."""
    losses = np.linspace(3.0, 1.0, count, dtype=np.float32)
    rows = {"row": np.arange(count), "kept": np.arange(count) < kept}
    return rows | {"learner_loss": losses} | more


class LinesTest(tf.test.TestCase):
    hard = Stage(3, num_chunks=2, criterion="hard_learner")

    def setUp(self):
        super().setUp()
        self.workdir = self.enterContext(tempfile.TemporaryDirectory())

    def follow(self, run, reports, first=0, **options):
        """The numbers of each logged step; `self.telemetry` made them."""
        self.telemetry = draw_log.Telemetry(self.workdir, **options)
        found, every = {}, run.evaluation.log_every_steps
        for report in reports:
            first += 1
            is_logged = first % every == 0 or first == run.steps
            model = types.SimpleNamespace(selection=run.selection, rows=report)
            numbers = self.telemetry.follow(model, first, is_logged)
            if is_logged:
                found[first] = numbers
        return found

    def lines(self):
        return tiny.read_stages(self.workdir)

    def test_a_step_that_scored_nothing_leaves_its_line_to_the_next(self):
        run = settings(self.hard, steps=5)
        # Steps 2 and 4, which are logged, score nothing.
        reports = [
            Rows(scored={0: scored_rows()} if step % 2 else {})
            for step in range(1, 6)
        ]
        found = self.follow(run, reports)
        self.assertEqual([line["step"] for line in self.lines()], [3, 5])
        self.assertEqual(found[2], {})
        self.assertEqual(found[5], {})
        # A run that starts again between the two knows what it owes.
        os.remove(os.path.join(self.workdir, directory.TELEMETRY_FILE))
        self.follow(run, reports[:2])
        state = self.telemetry.state()
        self.follow(run, reports[2:], first=2, state=state)
        self.assertEqual([line["step"] for line in self.lines()], [3, 5])

    def test_a_stored_stage_is_told_by_its_summary(self):
        """Beside a live stage, and by the number of its super-batch."""
        stored = Stage(2, "stored", num_chunks=2, criterion="easy_reference")
        run = settings(stored, self.hard, steps=2)
        summaries = summary.Summaries()
        told = {
            "rows_in": 24,
            "rows_out": 12,
            "criterion": "easy_reference",
            "score": -1.5,
            "uniform_score": -4.0,
            "reference_loss": {
                "kept": {"count": 12, "mean": 1.5},
                "dropped": {"count": 12, "mean": 6.5},
            },
            "clean_in": 0.25,
            "clean_out": 0.75,
        }
        for number in range(5):
            summaries.put(number, 0, {0: told | {"rows_in": 24 + number}})
        found = self.follow(
            run, [Rows(scored={1: scored_rows()})] * 2, summaries=summaries
        )
        self.assertEqual(
            [(line["stage"], line["rows_in"]) for line in self.lines()],
            [(0, 25), (1, 12)],
        )
        for name, value in (
            *(("score", -1.5), ("uniform_score", -4.0)),
            *(("reference_loss_kept", 1.5), ("reference_loss_dropped", 6.5)),
            *(("clean_in", 0.25), ("clean_out", 0.75)),
        ):
            self.assertEqual(found[2][f"stages/0/{name}"], value)
        # What a live stage scores is among the metrics of the step.
        self.assertNotIn("stages/1/score", found[2])
        # The summaries of the steps that are not logged are forgotten.
        self.assertEqual(summaries.take(0), {})
        self.assertNotEmpty(summaries.take(2))

"""The log of a run: rows, means, digests, counts, seconds and progress."""

import contextlib
import glob
import hashlib
import io
import itertools
import os
import struct
import time
import types
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
import tiny
from tensorflow.core.util import event_pb2

from jest_tf import config, training
from jest_tf.runs import costs, directory, progress, step_timing
from jest_tf.runs import log as log_lib

JOINT = config.SelectionConfig("joint", batch_size=4, num_chunks=2)
SECONDS = 100.0  # that a step takes by the clock of these tests


def settings(selection=JOINT, steps=5, **evaluation):
    return config.TrainConfig(
        steps=steps,
        data=config.DataConfig(super_batch_size=12),
        reference=config.ReferenceConfig("somewhere"),
        selection=selection,
        evaluation=config.EvaluationConfig(
            **{"log_every_steps": 2} | evaluation
        ),
    )


class Clock(keras.callbacks.Callback):
    """Goes on with every step, and then only."""

    def __init__(self, seconds=SECONDS):
        super().__init__()
        self.now, self.seconds = 1000.0, seconds

    def monotonic(self):
        return self.now

    def on_train_batch_end(self, batch, logs=None):
        self.now += self.seconds


class LedgerTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = self.get_temp_dir()

    def model(self, run):
        model = training.JESTModel(
            tiny.learner(0), tiny.learner(5), run.selection, seed=run.seed
        )
        model.compile(keras.optimizers.SGD(0.5), run_eagerly=True)
        return model

    def fit(self, run, batches, clock=None, before=(), **options):
        """The rows; `self.said` are the lines on standard error."""
        clock = clock or Clock()
        source = types.SimpleNamespace(monotonic=clock.monotonic)
        with contextlib.ExitStack() as stack:
            for module in (log_lib, step_timing, progress):
                patch = mock.patch.object(module, "time", source)
                stack.enter_context(patch)
            said = io.StringIO()
            stack.enter_context(contextlib.redirect_stderr(said))
            log = log_lib.Ledger(run, self.workdir, **options)
            self.model(run).fit(
                tiny.dataset(batches),
                verbose=0,
                callbacks=[*before, clock, log],
            )
        self.said = said.getvalue().splitlines()
        return tiny.read_lines(self.workdir, directory.METRICS_FILE)

    def values_of_each_step(self, run, batches):
        """What a twin shows where every step is a `fit` of its own."""
        model = self.model(run)
        steps = []
        for batch in batches:
            history = model.fit(tiny.dataset([batch]), verbose=0).history
            steps.append({name: value[0] for name, value in history.items()})
            if run.selection.batch_size:
                steps[-1]["ids"] = model.drawn_ids.numpy()
        return steps


class RowsTest(LedgerTestCase):
    def test_rows_are_the_means_since_the_row_before(self):
        batches = tiny.super_batches(5)
        run = settings()
        rows = self.fit(run, batches)
        steps = self.values_of_each_step(run, batches)
        self.assertEqual([row["step"] for row in rows], [2, 4, 5])
        spans = (steps[0:2], steps[2:4], steps[4:5])
        for row, span in zip(rows, spans, strict=True):
            names = set(span[0]) - {"ids"}
            for name in names:
                mean = np.mean([step[name] for step in span])
                key = name if "/" in name else f"train/{name}"
                self.assertAllClose(row[key], mean, msg=key)
            self.assertEqual(
                row["select/digest"], log_lib.digest(span[-1]["ids"])
            )
            self.assertLen(row, len(names) + 8)

    def test_three_counts_and_the_seconds(self):
        rows = self.fit(settings(), tiny.super_batches(5))
        for row, step in zip(rows, (2, 4, 5), strict=True):
            self.assertEqual(row["examples/drawn"], 12 * step)
            self.assertEqual(row["examples/scored"], 12 * step)
            self.assertEqual(row["examples/trained"], 4 * step)
            self.assertEqual(row["seconds"], SECONDS * step)

    def test_steps_are_counted_over_epochs_and_several_at_a_time(self):
        run = settings(steps=8, log_every_steps=3)
        model = self.model(run)
        model.compile(keras.optimizers.SGD(0.5), steps_per_execution=2)
        log = log_lib.Ledger(run, self.workdir)
        model.fit(
            tiny.dataset(tiny.super_batches(8)).repeat(),
            epochs=2,
            steps_per_epoch=4,
            verbose=0,
            callbacks=[log],
        )
        rows = tiny.read_lines(self.workdir, directory.METRICS_FILE)
        # The executions end after steps 2, 4, 6 and 8.
        self.assertEqual([row["step"] for row in rows], [4, 6, 8])
        self.assertEqual([row["examples/drawn"] for row in rows], [48, 72, 96])

    def test_the_seconds_of_a_step_are_without_the_first_one(self):
        rows = self.fit(settings(log_every_steps=1), tiny.super_batches(3))
        self.assertNotIn("time/step_seconds", rows[0])
        for row in rows[1:]:
            self.assertEqual(row["time/step_seconds"], SECONDS)
            self.assertNotIn("time/input_wait_share", row)

    def test_the_share_of_waiting_is_of_the_seconds_of_the_steps(self):
        wait = step_timing.InputWait()

        class Wait(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                wait.seconds += SECONDS * batch / 4

        rows = self.fit(
            settings(log_every_steps=1),
            tiny.super_batches(5),
            before=[Wait()],
            input_wait=wait,
        )
        self.assertEqual(
            [row.get("time/input_wait_share") for row in rows],
            [None, 0.25, 0.5, 0.75, 1.0],
        )
        self.assertEqual(
            self.said[-1],
            "waited for input in 62.5% of the steps' time",
        )

    def test_what_is_not_scored_is_not_counted_as_scored(self):
        uniform = config.SelectionConfig("uniform", batch_size=4)
        for selection, trained in (
            (JOINT, 4),
            (uniform, 4),
            (config.SelectionConfig(), 12),
        ):
            self.assertEqual(
                costs.examples_at(settings(selection), 3),
                {
                    "examples/drawn": 36,
                    "examples/scored": 36 if selection is JOINT else 0,
                    "examples/trained": 3 * trained,
                },
            )

    def test_ids_are_written_down_on_request(self):
        batches = tiny.super_batches(5)
        path = os.path.join(self.workdir, directory.DRAWS_FILE)
        self.fit(settings(), batches)
        self.assertFalse(os.path.exists(path))
        run = settings(log_ids=True)
        self.fit(run, batches)
        steps = self.values_of_each_step(run, batches)
        self.assertEqual(
            tiny.read_lines(self.workdir, directory.DRAWS_FILE),
            [
                {"step": step, "ids": steps[step - 1]["ids"].tolist()}
                for step in (2, 4, 5)
            ],
        )

    def test_batches_without_ids_have_no_digest(self):
        batches = tiny.super_batches(2)
        for batch in batches:
            del batch["id"]
        rows = self.fit(settings(steps=2, log_ids=True), batches)
        self.assertEqual([row["step"] for row in rows], [2])
        self.assertNotIn("select/digest", rows[0])
        self.assertEqual(
            os.path.exists(os.path.join(self.workdir, directory.DRAWS_FILE)),
            False,
        )

    def test_a_resumed_run_counts_on(self):
        batches = tiny.super_batches(5)
        self.fit(settings(), batches[:2])
        rows = self.fit(settings(), batches[2:], start_step=2)
        self.assertEqual([row["step"] for row in rows], [2, 4, 5])
        self.assertEqual(
            [row["seconds"] for row in rows], [200.0, 400.0, 500.0]
        )
        self.assertEqual([row["examples/trained"] for row in rows], [8, 16, 20])

    def test_tensorboard_gets_the_same_numbers(self):
        rows = self.fit(settings(), tiny.super_batches(5))
        (path,) = glob.glob(os.path.join(self.workdir, "tensorboard", "*"))
        found = []
        for payload in tf.data.TFRecordDataset(path).as_numpy_iterator():
            event = event_pb2.Event.FromString(payload)
            for value in event.summary.value:
                number = tf.make_ndarray(value.tensor).item()
                found.append((event.step, value.tag, number))
        expected = [
            (row["step"], name, np.float32(value).item())
            for row in rows
            for name, value in row.items()
            if name not in ("step", "select/digest")
        ]
        self.assertCountEqual(found, expected)


class CostsTest(LedgerTestCase):
    """Of a model in graph mode, whose steps are traced."""

    def log(self, run, batches, probe=None, spent=(), **options):
        model = training.JESTModel(
            tiny.learner(0), tiny.learner(5), run.selection, seed=run.seed
        )
        model.compile(keras.optimizers.SGD(0.5), jit_compile=False)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            log = log_lib.Ledger(run, self.workdir, **options)
            log.probe, log.spent = probe, dict(spent)
            log.set_model(model)
            model.fit(tiny.dataset(batches), verbose=0, callbacks=[log])
        rows = tiny.read_lines(self.workdir, directory.METRICS_FILE)
        return model, log, rows, said.getvalue()

    def passes(self):
        """FLOPs of the two dense layers, of an example."""
        pixels = tiny.IMAGE_SIZE**2 * 3
        # Three words of six numbers each.
        return 2 * (pixels * 6 + tiny.TEXT_LENGTH * 6 * 6)

    def test_flops_of_every_step_add_up(self):
        model, log, rows, _ = self.log(settings(), tiny.super_batches(5))
        (columns,) = model.step_flops().values()
        for row, step in zip(rows, (2, 4, 5), strict=True):
            for name, value in columns.items():
                self.assertEqual(row[f"flops/{name}"], step * value)
        # B = 12 by two towers, b = 4; a gradient is two passes, less that by
        # the pixels.
        self.assertEqual(columns["score"], 12 * self.passes())
        self.assertEqual(columns["reference"], 12 * self.passes())
        self.assertEqual(columns["forward"], 4 * self.passes())
        self.assertEqual(columns["no_reuse"], (3 * 4 + 2 * 12) * self.passes())
        self.assertEqual(columns["reuse"], (3 * 4 + 2 * 12 - 4) * self.passes())
        self.assertEqual(
            log.costs_at(3).keys(),
            {
                *(f"examples/{one}" for one in ("drawn", "scored", "trained")),
                *(f"flops/{one}" for one in columns),
                "seconds",
            },
        )
        self.assertEqual(log.costs_at(3)["flops/step"], 3 * columns["step"])

    def test_a_schedule_counts_every_kind_of_step(self):
        selection = config.SelectionConfig(
            "joint", batch_size=4, num_chunks=2, uniform_every=2
        )
        model, _, rows, _ = self.log(settings(selection), tiny.super_batches(5))
        self.assertLen(model.step_flops(), 2)
        # Steps 2 and 4 are uniform.
        for row, scoring in zip(rows, (1, 2, 3), strict=True):
            self.assertEqual(row["flops/score"], scoring * 12 * self.passes())
            self.assertEqual(
                row["flops/forward"], row["step"] * 4 * self.passes()
            )

    def test_a_kind_of_step_that_is_traced_is_not_timed(self):
        selection = config.SelectionConfig(
            "joint", batch_size=4, num_chunks=2, uniform_every=2
        )
        run = settings(selection, log_every_steps=1)
        *_, rows, _ = self.log(run, tiny.super_batches(5))
        timed = ["time/step_seconds" in row for row in rows]
        self.assertEqual(timed, [False, False, True, True, True])
        self.assertIn("flops/step", rows[-1])

    def test_nor_is_it_where_flops_are_not_counted(self):
        selection = config.SelectionConfig(
            "joint", batch_size=4, num_chunks=2, uniform_every=2
        )
        run = settings(selection, log_every_steps=1)
        with mock.patch.object(
            training.JESTModel, "step_flops", side_effect=ValueError
        ):
            *_, rows, _ = self.log(run, tiny.super_batches(5))
        timed = ["time/step_seconds" in row for row in rows]
        self.assertEqual(timed, [False, False, True, True, True])
        self.assertNotIn("flops/step", rows[-1])

    def test_a_continued_run_knows_its_flops_before_its_first_step(self):
        *_, rows, _ = self.log(settings(steps=2), tiny.super_batches(2))
        run = settings()
        log = log_lib.Ledger(run, self.workdir, start_step=2)
        log.set_model(self.model(run))
        costs = log.costs_at(2)
        for name, value in rows[-1].items():
            if name.startswith(("flops/", "examples/")):
                self.assertEqual(costs[name], value, name)
        self.assertIn("flops/step", costs)

    def test_a_step_that_cannot_be_counted_is_said_once(self):
        error = ValueError("Expected shapes. Received: none")
        with mock.patch.object(
            training.JESTModel, "step_flops", side_effect=error
        ) as asked:
            *_, rows, said = self.log(settings(), tiny.super_batches(5))
        asked.assert_called_once()
        self.assertIn("FLOPs are not counted: Expected shapes.", said)
        self.assertNotIn("flops/step", rows[-1])

    def test_what_is_measured_goes_on_where_the_process_before_stopped(self):
        def measured():
            seconds = itertools.count(10.0, 10.0)
            return {
                "spent": {
                    "time/evaluation_seconds": lambda: next(seconds),
                    "time/save_seconds": lambda: 2.0,
                },
            }

        batches = tiny.super_batches(5)
        self.log(settings(), batches[:2], **measured())
        *_, rows, _ = self.log(
            settings(), batches[2:], **measured(), start_step=2
        )
        self.assertEqual(
            [row["time/evaluation_seconds"] for row in rows], [10.0, 20.0, 30.0]
        )
        self.assertEqual(
            [row["time/save_seconds"] for row in rows], [2.0, 4.0, 4.0]
        )
        for row in rows:
            self.assertGreater(row["memory/host_peak_rss_bytes"], 0)

    def test_a_ledger_takes_over_the_clock_of_the_one_before(self):
        """As at a renewal, before which the run evaluates and saves."""
        run, batches = settings(), tiny.super_batches(5)
        clock = Clock()
        source = types.SimpleNamespace(monotonic=clock.monotonic)
        before = None
        with contextlib.ExitStack() as stack:
            for module in (log_lib, step_timing, progress):
                patch = mock.patch.object(module, "time", source)
                stack.enter_context(patch)
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            # The first writes no row, and the second one of two steps.
            for start, stop in ((0, 1), (1, 3), (3, 5)):
                opened = clock.now
                log = log_lib.Ledger(
                    run, self.workdir, start_step=start, before=before
                )
                log.spent = {
                    "time/save_seconds": lambda since=opened, until=clock: (
                        min(until.now, since + 207.0) - since
                    )
                }
                self.model(run).fit(
                    tiny.dataset(batches[start:stop]),
                    verbose=0,
                    callbacks=[clock, log],
                )
                clock.now += 7.0
                before = log
        rows = tiny.read_lines(self.workdir, directory.METRICS_FILE)
        self.assertEqual([row["step"] for row in rows], [2, 4, 5])
        # Hundred seconds a step, and seven after each part.
        self.assertEqual(
            [row["seconds"] for row in rows], [207.0, 414.0, 514.0]
        )
        self.assertEqual(
            [row["time/save_seconds"] for row in rows], [207.0, 414.0, 514.0]
        )


class StepFlopsTest(tf.test.TestCase):
    def test_steps_after_a_renewal_have_their_own(self):
        workdir = self.get_temp_dir()
        first = costs.StepFlops(JOINT, workdir)
        self.assertEqual(first.at(1), {})
        first.take({JOINT: {"step": 10}})
        self.assertEqual(first.at(4), {"flops/step": 40})
        renewed = costs.StepFlops(JOINT, workdir, start=4)
        self.assertEqual(renewed.at(4), {"flops/step": 40})
        self.assertEqual(renewed.at(5), {})
        renewed.take({JOINT: {"step": 3}})
        for found in (renewed, costs.StepFlops(JOINT, workdir, start=4)):
            self.assertEqual(found.at(3), {"flops/step": 30})
            self.assertEqual(found.at(6), {"flops/step": 46})

    def test_curated_rows_of_the_first_steps_are_not_scored(self):
        run = config.TrainConfig(
            steps=10,
            data=config.DataConfig(
                super_batch_size=12, curated=("c",), curated_rows=2
            ),
            reference=config.ReferenceConfig(sidecars=True),
            selection=config.SelectionConfig(
                "joint", batch_size=6, num_chunks=2
            ),
            bootstrap=config.BootstrapConfig(renew_at=(4, 8), curated_rows=3),
        )
        for step, expected in ((3, 3 * 9), (4, 4 * 9), (9, 4 * 9 + 5 * 10)):
            found = costs.examples_at(run, step)["examples/scored"]
            self.assertEqual(found, expected)


class DoubtTest(LedgerTestCase):
    ROW = {
        "select/score": 2.0,
        "select/uniform_score": -1.0,
        "select/learner_loss_kept": 5.0,
        "select/learner_loss_dropped": 5.5,
        "select/reference_loss_kept": 3.0,
        "select/reference_loss_dropped": 6.0,
    }

    def test_a_choice_that_is_nearly_uniform(self):
        self.assertEqual(log_lib.doubt(self.ROW), "")
        # 0.05 of 6.0 are 0.3.
        for uniform, is_doubted in ((1.69, False), (1.71, True), (2.5, True)):
            row = self.ROW | {"select/uniform_score": uniform}
            said = log_lib.doubt(row)
            self.assertEqual("nearly uniform" in said, is_doubted, uniform)

    def test_a_learner_that_has_passed_its_reference(self):
        for loss, is_doubted in ((3.01, False), (3.0, True), (1.0, True)):
            row = self.ROW | {"select/learner_loss_kept": loss}
            said = log_lib.doubt(row)
            self.assertEqual("passed its reference" in said, is_doubted, loss)

    def test_a_row_without_a_reference_is_not_doubted(self):
        alone = {name: 0.0 for name in self.ROW if "reference" not in name}
        self.assertEqual(log_lib.doubt(alone), "")
        self.assertEqual(log_lib.doubt({"train/loss": 1.0}), "")

    def test_a_doubt_is_said_once_after_three_rows(self):
        run = settings(steps=12)
        with mock.patch.object(log_lib, "_LEAST_LIFT", 1e9):
            self.fit(run, tiny.super_batches(12))
        said = [line for line in self.said if "warning: " in line]
        self.assertLen(said, 1)
        self.assertRegex(said[0], "^warning: step 6: the chosen rows score ")
        with mock.patch.object(log_lib, "_LEAST_LIFT", -1e9):
            self.fit(run, tiny.super_batches(12))
        self.assertNotIn("nearly uniform", "".join(self.said))


class InputWaitTest(tf.test.TestCase):
    def slow(self, seconds):
        """The numbers 0 to 9, one every `seconds`."""

        def wait(number):
            time.sleep(seconds)
            return number

        return tf.data.Dataset.range(10).map(
            lambda number: tf.ensure_shape(
                tf.numpy_function(wait, [number], tf.int64), []
            )
        )

    def test_the_elements_are_the_same(self):
        dataset = tf.data.Dataset.range(5).map(lambda one: {"a": one})
        watched = step_timing.InputWait().watch(dataset)
        self.assertEqual(watched.element_spec, dataset.element_spec)
        found = [one["a"] for one in watched.as_numpy_iterator()]
        self.assertEqual(found, [0, 1, 2, 3, 4])

    def test_a_slow_stream_is_waited_for(self):
        wait = step_timing.InputWait()
        started = time.monotonic()
        for _ in wait.watch(self.slow(0.02)):
            pass
        spent = time.monotonic() - started
        self.assertBetween(wait.seconds, 10 * 0.02, spent)

    def test_a_stream_that_is_ahead_is_not(self):
        wait = step_timing.InputWait()
        watched = iter(wait.watch(self.slow(0.01).prefetch(10)))
        next(watched)
        time.sleep(0.5)  # all is there
        first = wait.seconds
        self.assertLen(list(watched), 9)
        self.assertLess(wait.seconds - first, 9 * 0.01)

    def test_in_a_graph_too(self):
        wait = step_timing.InputWait()

        @tf.function
        def total(dataset):
            return dataset.reduce(tf.constant(0, tf.int64), tf.add)

        self.assertEqual(total(wait.watch(self.slow(0.02))), 45)
        self.assertGreaterEqual(wait.seconds, 10 * 0.02)


class DigestTest(tf.test.TestCase):
    def test_a_digest_is_the_hash_of_the_sorted_ids(self):
        data = struct.pack("<3q", -5, 2, 2**62)
        expected = hashlib.blake2b(data, digest_size=8).hexdigest()
        self.assertLen(expected, 16)
        for ids in ([2**62, -5, 2], [[2], [-5], [2**62]]):
            self.assertEqual(log_lib.digest(np.array(ids)), expected)
        for ids in (np.array([7, 3], np.int32), np.array([3, 7], ">i8")):
            self.assertEqual(
                log_lib.digest(ids), log_lib.digest(np.array([3, 7]))
            )

    def test_other_sets_have_other_digests(self):
        sets = ([], [0], [1], [0, 0], [0, 1], [0, 1, 1])
        self.assertLen(
            {log_lib.digest(np.array(ids, np.int64)) for ids in sets}, 6
        )


class ProgressTest(LedgerTestCase):
    def lines(self, **options):
        self.fit(settings(), tiny.super_batches(5), **options)
        first, *lines = self.said
        self.assertEqual(first, "compiling the step, once")
        return lines

    def test_a_line_shows_step_time_left_speed_and_loss(self):
        batches = tiny.super_batches(5)
        steps = self.values_of_each_step(settings(), batches)
        values = [step["loss"] for step in steps]
        # Means since the row before: rows are after steps 2, 4 and 5.
        means = [
            values[0],
            np.mean(values[:2]),
            values[2],
            np.mean(values[2:4]),
            values[4],
        ]
        # The first step, which is compiled, is not in the speed.
        expected = [
            "training: 1 of 5 steps [00:00<?, ? steps/s",
            "training: 2 of 5 steps [01:40<05:00, 100.00s/ steps",
            "training: 3 of 5 steps [03:20<03:20, 100.00s/ steps",
            "training: 4 of 5 steps [05:00<01:40, 100.00s/ steps",
            "training: 5 of 5 steps [06:40<00:00, 100.00s/ steps",
        ]
        lines = self.lines()
        self.assertEqual([line.split(", loss")[0] for line in lines], expected)
        for line, mean in zip(lines, means, strict=True):
            loss = line.split(", loss ")[1].removesuffix("]")
            self.assertAllClose(float(loss), mean, atol=1e-4)

    def test_a_file_gets_a_line_every_fifteen_seconds_and_the_last(self):
        lines = self.lines(clock=Clock(6.0))
        # At seconds 6, 12, 18, 24 and 30.
        heads = [line.split(" [")[0] for line in lines]
        self.assertEqual(
            heads,
            [f"training: {step} of 5 steps" for step in (1, 4, 5)],
        )


if __name__ == "__main__":
    tf.test.main()

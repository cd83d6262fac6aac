"""The log of a run: rows, means, digests, counts, seconds, progress, memory."""

import contextlib
import dataclasses
import glob
import hashlib
import io
import os
import struct
import tempfile
import time
import types
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tiny
from tensorflow.core.util import event_pb2

from jest_tf import config, losses
from jest_tf.runs import bootstrap, costs, directory, progress, step_timing
from jest_tf.runs import log as log_lib
from jest_tf.training import step_outputs

Stage = config.Stage
SECONDS = 100.0  # that a step takes by the clock of these tests
COLUMNS = {"step": 9, "score": 5}  # FLOPs of a step


def funnel(*stages, **values):
    return config.SelectionConfig(
        **{"batch_size": 4, "stages": stages} | values
    )


JOINT = funnel(Stage(3, num_chunks=2))
# Of steps 1 to 5, the second and the third score.
FOR_A_WHILE = funnel(Stage(3, num_chunks=2, first_step=1, last_step=2))


def settings(selection=JOINT, steps=5, **evaluation):
    return config.TrainConfig(
        steps=steps,
        reference=config.ReferenceConfig("somewhere"),
        selection=selection,
        evaluation=config.EvaluationConfig(
            **{"log_every_steps": 2} | evaluation
        ),
    )


def values_of(step, selection):
    """The metrics of a step; a uniform draw has the least score."""
    names = ["loss", "scale", "bias"]
    segment = config.segment_at(config.plan(selection), step - 1)
    for number, _ in segment.live:
        if number in segment.scoring:
            for name in (
                *("reference_loss_kept", "reference_loss_dropped"),
                *("learner_loss_kept", "learner_loss_dropped"),
                *("score", "uniform_score"),
            ):
                names.append(f"stages/{number}/{name}")
    signs = [-1.0 if "uniform" in name else 1.0 for name in names]
    return {
        name: sign * (place + step**2)
        for place, (name, sign) in enumerate(zip(names, signs, strict=True))
    }


def ids_of(step):
    return np.arange(4) * step


class Model:
    """The part of a model that a ledger reads, with known values."""

    def __init__(self, selection, has_ids=True, flops=COLUMNS):
        self.selection, self.has_ids, self.flops = selection, has_ids, flops
        self.drawn_ids, self._kinds = None, {}
        self._metrics = step_outputs.StepMetrics(selection)

    metrics = property(lambda self: self._metrics.shown)
    step_metrics = property(lambda self: self._metrics.every)

    def train(self, step):
        self._metrics.update(values_of(step, self.selection))
        segment = config.segment_at(config.plan(self.selection), step - 1)
        self._kinds[segment.step_kind] = self.flops
        if self.has_ids:
            self.drawn_ids = tf.constant(ids_of(step))

    def step_flops(self):
        if self.flops is None:
            raise ValueError("Expected shapes. Received: none")
        return dict(self._kinds)

    def get_metrics_result(self):
        return {metric.name: metric.result() for metric in self.metrics}

    def reset_metrics(self):
        for metric in self.metrics:
            metric.reset_state()


class LedgerTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = self.folder()
        self.now = 1000.0
        source = types.SimpleNamespace(monotonic=lambda: self.now)
        for module in (log_lib, step_timing, progress):
            self.enterContext(mock.patch.object(module, "time", source))

    def folder(self):
        return self.enterContext(tempfile.TemporaryDirectory())

    def train(
        self,
        run,
        steps=None,
        *,
        model=None,
        seconds=SECONDS,
        wait=None,
        spent=None,
        **options,
    ):
        """The rows after `steps`; `self.said` are lines on standard error."""
        steps = steps or range(1, run.steps + 1)
        model = model or Model(run.selection)
        options = {
            "start_step": steps[0] - 1,
            "input_wait": wait,
            "spent": spent or {},
        } | options
        with contextlib.redirect_stderr(io.StringIO()) as said:
            self.log = log = log_lib.Ledger(run, self.workdir, **options)
            log.set_model(model)
            log.on_train_begin()
            log.on_epoch_begin(0)
            for step in steps:
                log.on_train_batch_begin(step - steps[0])
                model.train(step)
                self.now += seconds
                if wait is not None:
                    wait.seconds += seconds * (step - 1) / 4
                logs = model.get_metrics_result()
                log.on_train_batch_end(step - steps[0], logs)
            log.on_train_end()
        self.said = said.getvalue().splitlines()
        return tiny.read_lines(self.workdir, directory.METRICS_FILE)


class RowsTest(LedgerTestCase):
    def test_rows_are_the_means_since_the_row_before(self):
        rows = self.train(settings())
        for row, span in zip(rows, ([1, 2], [3, 4], [5]), strict=True):
            self.assertEqual(row["step"], span[-1])
            every = [values_of(step, JOINT) for step in span]
            for name in every[0]:
                key = name if "/" in name else f"train/{name}"
                mean = np.mean([values[name] for values in every])
                self.assertAllClose(row[key], mean, msg=key)
            digest = log_lib.digest(ids_of(span[-1]))
            self.assertEqual(row["select/digest"], digest)
            # 12 rows are offered to the choice, and 4 are chosen.
            for name, count in (("drawn", 12), ("scored", 12), ("trained", 4)):
                self.assertEqual(row[f"examples/{name}"], count * row["step"])
            for name, count in COLUMNS.items():
                self.assertEqual(row[f"flops/{name}"], count * row["step"])
            self.assertEqual(row["seconds"], SECONDS * row["step"])
            self.assertContainsSubset(
                [name for name in row if not tiny.from_clock(name)],
                [
                    *("step", "select/digest"),
                    *(f"flops/{name}" for name in COLUMNS),
                    *(
                        f"examples/{kind}"
                        for kind in ("drawn", "scored", "trained")
                    ),
                    *(n if "/" in n else f"train/{n}" for n in every[0]),
                ],
            )

    def test_a_step_that_is_traced_is_not_timed(self):
        every = {"log_every_steps": 1}
        for run, flops, timed in (
            (settings(**every), COLUMNS, [0, 1, 1, 1, 1]),
            # Steps 1 and 2 are the first of their kinds.
            (settings(FOR_A_WHILE, **every), COLUMNS, [0, 0, 1, 1, 1]),
            (settings(FOR_A_WHILE, **every), None, [0, 0, 1, 1, 1]),
        ):
            self.workdir = self.folder()
            rows = self.train(run, model=Model(run.selection, flops=flops))
            self.assertEqual(
                [row.get("time/step_seconds") for row in rows],
                [SECONDS if is_timed else None for is_timed in timed],
            )
            self.assertNotIn("time/input_wait_share", rows[-1])
            scores = run.selection.stages[0].is_active
            for row in rows:  # a stage has columns in the rows of its steps
                self.assertEqual(
                    "stages/0/score" in row, scores(row["step"] - 1)
                )
            self.assertEqual("flops/step" in rows[-1], flops is not None)

    def test_the_share_of_waiting_is_of_the_seconds_of_the_steps(self):
        rows = self.train(
            settings(log_every_steps=1), wait=types.SimpleNamespace(seconds=0.0)
        )
        self.assertEqual(
            [row.get("time/input_wait_share") for row in rows],
            [None, 0.25, 0.5, 0.75, 1.0],
        )
        self.assertEqual(
            self.said[-1], "waited for input in 62.5% of the steps' time"
        )

    def test_ids_are_written_down_on_request(self):
        for asked, has_ids in ((False, True), (True, False), (True, True)):
            run = settings(log_ids=asked)
            rows = self.train(run, model=Model(JOINT, has_ids))
            self.assertEqual("select/digest" in rows[-1], has_ids)
            expected = [
                {"step": step, "ids": ids_of(step).tolist()}
                for step in (2, 4, 5)
            ]
            self.assertEqual(
                tiny.read_lines(self.workdir, directory.DRAWS_FILE),
                expected if asked and has_ids else [],
            )

    def test_a_resumed_run_counts_on(self):
        run = settings()
        self.train(run, range(1, 4))
        model = Model(JOINT)
        rows = self.train(run, range(4, 6), model=model, state=self.log.state())
        self.assertEqual([row["step"] for row in rows], [2, 4, 5])
        self.assertEqual(
            [row["seconds"] for row in rows], [200.0, 300.0, 400.0]
        )
        self.assertEqual([row["examples/trained"] for row in rows], [8, 16, 20])
        # The mean of step 3, of the checkpoint, and of step 4.
        losses = [values_of(step, JOINT)["loss"] for step in (3, 4)]
        self.assertAllClose(rows[1]["train/loss"], np.mean(losses))

    def test_a_step_that_cannot_be_counted_is_said_once(self):
        self.train(settings(), model=Model(JOINT, flops=None))
        (text,) = [line for line in self.said if "FLOPs" in line]
        self.assertStartsWith(text, "FLOPs are not counted: Expected shapes.")

    def test_stored_stages_and_renewals_have_columns_of_their_own(self):
        run = config.TrainConfig(
            steps=5,
            selection=funnel(
                Stage(2, "stored", num_chunks=2, criterion="easy_reference")
            ),
            bootstrap=config.BootstrapConfig(renew_at=(2,)),
            evaluation=config.EvaluationConfig(log_every_steps=1),
        )
        renewal = bootstrap.Renewal(2, 7, 7, 70, 3.0, 0.5, True)
        for steps in (range(1, 3), range(3, 6)):
            rows = self.train(
                run,
                steps,
                renewals=[renewal],
                stored_flops=lambda step: 1000 * step,
            )
        for row in rows:
            step = row["step"]
            self.assertEqual(row["flops/stored"], 1000 * step)
            self.assertEqual(row["examples/offered"], 8 * max(0, step - 2))
            past = step > 2
            self.assertEqual(row["examples/embedded"], 7 * past)
            self.assertEqual(row["flops/renewals"], 70 * past)
            self.assertEqual("bootstrap/recognised" in row, past)
            self.assertEqual(row["time/renewal_seconds"], 3.0)

    def test_tensorboard_gets_the_same_numbers(self):
        rows = self.train(settings())
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

    def test_a_ledger_takes_over_the_clock_of_the_one_before(self):
        """As at a renewal, before which the run evaluates and saves."""
        before = None
        # The first writes no row, and the second a row of two steps.
        for steps in (range(1, 2), range(2, 4), range(4, 6)):
            opened = self.now
            self.train(
                settings(),
                steps,
                before=before,
                spent={
                    "time/save_seconds": lambda since=opened: (
                        min(self.now, since + 207.0) - since
                    )
                },
            )
            self.now += 7.0
            before = self.log
        rows = tiny.read_lines(self.workdir, directory.METRICS_FILE)
        self.assertEqual([row["step"] for row in rows], [2, 4, 5])
        # Hundred seconds a step, and seven after each part.
        for name in ("seconds", "time/save_seconds"):
            self.assertEqual([row[name] for row in rows], [207.0, 414.0, 514.0])


class StepFlopsTest(tf.test.TestCase):
    """Costs by hand, of segments that select in different ways."""

    def test_steps_after_a_renewal_and_of_other_stages_have_their_own(self):
        run = config.TrainConfig(
            steps=10,
            reference=config.ReferenceConfig("somewhere"),
            selection=funnel(Stage(3, num_chunks=2, last_step=5)),
            bootstrap=config.BootstrapConfig(renew_at=(4,)),
        )
        joint, uniform = (run.plan[place].step_kind for place in (0, -1))
        workdir = self.get_temp_dir()
        first = costs.StepFlops(run, workdir)
        self.assertEqual(first.at(1), {})
        first.take({joint: {"step": 10}})
        self.assertEqual(first.at(4), {"flops/step": 40})
        self.assertEqual(first.at(5), {})
        renewed = costs.StepFlops(run, workdir, start=4)
        self.assertEqual(renewed.at(4), {"flops/step": 40})
        renewed.take({joint: {"step": 3}})
        self.assertEqual(renewed.at(7), {})
        renewed.take({joint: {"step": 3}, uniform: {"step": 1}})
        for found in (renewed, costs.StepFlops(run, workdir, start=4)):
            self.assertEqual(found.at(3), {"flops/step": 30})
            # Four steps, two after the renewal, and four without scores.
            self.assertEqual(found.at(10), {"flops/step": 40 + 6 + 4})

    def test_examples_of_every_stage_are_counted_while_it_scores(self):
        stored = {"embeddings": "stored", "criterion": "easy_reference"}
        chunks = {"num_chunks": 2}
        curated = {"curated": ("c",), "curated_rows": 2}
        for data, selection, renewals, steps, expected in (
            # A stage of 3 x 4 rows.
            ({}, JOINT, {}, 5, (60, 60, 20)),
            ({}, funnel(Stage(3, method="uniform")), {}, 5, (60, 0, 20)),
            # The second live stage scores the four rows that pass the first.
            (
                {},
                funnel(
                    Stage(3, **chunks, first_step=2),
                    Stage(2, **chunks, last_step=3),
                    batch_size=2,
                ),
                {},
                5,
                (60, 3 * 12 + 4 * 4, 10),
            ),
            # 2 curated rows and 2 of 12, which are 12 of 24, in two of steps.
            (
                curated,
                funnel(
                    Stage(2, **stored, last_step=1, **chunks),
                    Stage(6, **chunks),
                ),
                {},
                5,
                (5 * (12 + 2), 60, 20, 2 * 24),
            ),
            # Four steps of curated rows alone; then the same.
            (
                curated,
                funnel(Stage(2, **stored, **chunks), Stage(6, **chunks)),
                {"renew_at": (4,), "clean_start": True},
                6,
                (4 * 4 + 2 * 14, 2 * 12, 24, 2 * 24),
            ),
        ):
            run = config.TrainConfig(
                steps=10,
                data=config.DataConfig(**data),
                selection=selection,
                bootstrap=config.BootstrapConfig(**renewals),
            )
            names = ("drawn", "scored", "trained", "offered")
            self.assertEqual(
                costs.examples_at(run, steps),
                {
                    f"examples/{name}": count
                    for name, count in zip(names, expected, strict=False)
                },
                selection,
            )


class DoubtTest(LedgerTestCase):
    ROW = {
        "stages/1/score": 2.0,
        "stages/1/uniform_score": -1.0,
        "stages/1/learner_loss_kept": 5.0,
        "stages/1/learner_loss_dropped": 5.5,
        "stages/1/reference_loss_kept": 3.0,
        "stages/1/reference_loss_dropped": 6.0,
    }

    def test_a_stage_that_no_longer_pays(self):
        self.assertEqual(log_lib.doubt(self.ROW, 1), "")
        # 0.05 of 6.0 are 0.3; the reference's loss on the kept rows is 3.
        for name, value, said in (
            ("uniform_score", 1.69, ""),
            ("uniform_score", 1.71, "stage 1 .* nearly uniform"),
            ("uniform_score", 2.5, "nearly uniform"),
            ("learner_loss_kept", 3.01, ""),
            ("learner_loss_kept", 3.0, "`selection.stages.1.last_step`"),
            ("learner_loss_kept", 1.0, "has passed its reference"),
        ):
            row = self.ROW | {f"stages/1/{name}": value}
            found = log_lib.doubt(row, 1)
            self.assertRegex(found, said or "^$", value)
            # Every stage by its own columns.
            self.assertEqual(log_lib.doubt(row, 0), "")

    def test_losses_of_chance_that_do_not_fall_are_those_of_a_lost_run(self):
        recipe = settings(funnel(batch_size=256), 2000, log_every_steps=10)
        recipe = dataclasses.replace(
            recipe,
            reference=config.ReferenceConfig(),
            optimizer=config.OptimizerConfig(warmup_steps=50),
        )
        level = losses.chance("sigmoid", 256)

        def lost(value, last=200, recipe=recipe):
            rows = [(step, value(step)) for step in range(10, last + 1, 10)]
            return log_lib.is_at_chance(recipe, rows)

        random = np.random.default_rng(0)
        for is_lost, value in (
            (True, lambda step: level),
            (True, lambda step: 3.0 * level),
            (True, lambda step: level * (1.0 + 1e-5 * random.normal())),
            # Rises in the warm-up, then stays.
            (True, lambda step: level + 9.0 * (step < 50)),
            (False, lambda step: 0.99 * level),
            (False, lambda step: 2.0 * level - 0.001 * step),
            (False, lambda step: level * (1.0 - 6e-4 * step / 50)),
        ):
            self.assertIs(lost(value), is_lost)
        # Ten rows of steps after the warm-up.
        self.assertIsNone(lost(lambda step: level, 140))
        self.assertTrue(lost(lambda step: level, 150))
        for changes in (
            {"model": config.ModelConfig(loss="own_parts:squares")},
            {"model": config.ModelConfig(false_negatives="reference")},
            {"reference": config.ReferenceConfig("a", distillation_weight=1.0)},
        ):
            other = dataclasses.replace(recipe, **changes)
            self.assertIsNone(lost(lambda step: level, recipe=other))

    def test_a_doubt_is_said_once_a_stage_after_three_rows(self):
        chunks = {"num_chunks": 2}
        run = settings(
            funnel(
                Stage(3, **chunks),
                Stage(2, **chunks, first_step=4),
                batch_size=2,
            ),
            steps=14,
        )
        for lift, expected in ((1e9, [(6, 0), (10, 1)]), (-1e9, [])):
            with mock.patch.object(log_lib, "_LEAST_LIFT", lift):
                self.train(run)
            said = [line for line in self.said if "nearly uniform" in line]
            self.assertLen(said, len(expected))
            for line, (step, stage) in zip(said, expected, strict=True):
                self.assertStartsWith(
                    line, f"warning: step {step}: the rows that stage {stage} "
                )


class InputWaitTest(tf.test.TestCase):
    def slow(self, seconds):
        """The numbers 0 to 9, a number every `seconds`."""

        def wait(number):
            time.sleep(seconds)
            return number

        return tf.data.Dataset.range(10).map(
            lambda number: tf.ensure_shape(
                tf.numpy_function(wait, [number], tf.int64), []
            )
        )

    def test_in_a_graph_too(self):
        wait = step_timing.InputWait()

        @tf.function
        def total(dataset):
            return dataset.reduce(tf.constant(0, tf.int64), tf.add)

        began = time.monotonic()
        self.assertEqual(total(wait.watch(self.slow(0.02))), 45)
        self.assertBetween(wait.seconds, 10 * 0.02, time.monotonic() - began)


class DigestTest(tf.test.TestCase):
    def test_a_digest_is_the_hash_of_the_sorted_ids(self):
        data = struct.pack("<3q", -5, 2, 2**62)
        expected = hashlib.blake2b(data, digest_size=8).hexdigest()
        for ids in ([2**62, -5, 2], [[2], [-5], [2**62]]):
            self.assertEqual(log_lib.digest(np.array(ids)), expected)
        for ids in (np.array([7, 3], np.int32), np.array([3, 7], ">i8")):
            self.assertEqual(
                log_lib.digest(ids), log_lib.digest(np.array([3, 7]))
            )


class MemoryTest(tf.test.TestCase):
    def test_the_peak_of_the_host_rises_by_what_is_held(self):
        name = "memory/host_peak_rss_bytes"
        before = log_lib.peak_memory()[name]
        # More than was ever free again.
        held = np.ones(before // 8 + 2**22)
        after = log_lib.peak_memory()[name]
        self.assertGreater(after, held.nbytes)
        del held
        self.assertGreaterEqual(log_lib.peak_memory()[name], after)

    @pytest.mark.tensorflow
    def test_of_devices_that_tell_the_fullest_is_told(self):
        peaks = {"GPU:0": 5, "GPU:1": 7}
        real = tf.config.experimental.get_memory_info

        def info(device):
            return {"peak": peaks[device]} if device in peaks else real(device)

        for names, expected in (
            ([*peaks], 7),
            (["CPU:0"], None),
            (["TPU:0"], None),
        ):
            devices = [
                types.SimpleNamespace(name=f"/device:{n}") for n in names
            ]
            with (
                mock.patch.object(
                    tf.config, "list_logical_devices", lambda of=devices: of
                ),
                mock.patch.object(
                    tf.config.experimental, "get_memory_info", info
                ),
            ):
                found = log_lib.peak_memory()
            self.assertEqual(found.get("memory/device_peak_bytes"), expected)

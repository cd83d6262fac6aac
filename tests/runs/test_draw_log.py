"""What is followed of the stages: values by group, repeats, clean shares."""

import contextlib
import glob
import io
import os
import tempfile
import types

import keras
import numpy as np
import random_embeddings
import tensorflow as tf
import tiny
from tensorflow.core.util import event_pb2

import jest_tf
from jest_tf import config, selection, training
from jest_tf.data import stored_stages, stream
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
# 12 rows, 4 of which pass.
ONE = (Stage(3, num_chunks=2),)


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
    """A run of two live stages, against what its model reports."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.workdir, run = folder.name, settings(*FUNNEL)
        cls.batches = tiny.super_batches(STEPS, rows=24)
        model = training.JESTModel(
            tiny.learner(0),
            tiny.learner(5),
            run.selection,
            options=jest_tf.StepOptions(seed=SEED),
        )
        model.compile(keras.optimizers.SGD(0.5), jit_compile=False)
        telemetry = draw_log.Telemetry(run, cls.workdir, clean=is_even)
        log, spy = log_lib.Ledger(run, cls.workdir, telemetry=telemetry), Spy()
        with contextlib.redirect_stderr(io.StringIO()):
            model.fit(
                tiny.dataset(cls.batches), verbose=0, callbacks=[log, spy]
            )
        cls.reports = spy.reports
        cls.rows = tiny.read_lines(cls.workdir, directory.METRICS_FILE)
        cls.lines = tiny.read_stages(cls.workdir)

    def test_every_logged_step_has_a_line_with_each_stage(self):
        found = tiny.read_lines(self.workdir, directory.TELEMETRY_FILE)
        self.assertEqual([line["step"] for line in found], [2, 4])
        self.assertEqual(
            [
                (line["step"], line["super_batch"], line["stage"])
                for line in self.lines
            ],
            [(2, 1, 0), (2, 1, 1), (4, 3, 0), (4, 3, 1)],
        )
        for line in self.lines:
            stage = line["stage"]
            self.assertEqual(line["rows_in"], (24, 8)[stage])
            self.assertEqual(line["rows_out"], (8, 4)[stage])
            self.assertEqual(line["criterion"], FUNNEL[stage].criterion)
            self.assertEqual(
                {*summary.QUANTITIES} & {*line},
                ({*summary.QUANTITIES}, {"learner_loss"})[stage],
            )

    def test_a_line_sums_up_the_rows_of_its_stage(self):
        for line in self.lines:
            step, stage = line["step"], line["stage"]
            report, batch = self.reports[step - 1], self.batches[step - 1]
            found, uniform = report.scored(stage), report.uniform(stage)
            if stage == 0:
                self.assertAllEqual(found["row"], np.arange(24))
            else:
                # Those that the first stage kept come into the second.
                before = report.scored(0)
                self.assertCountEqual(
                    found["row"], before["row"][before["kept"]]
                )
                self.assertCountEqual(
                    report.drawn(step - 1), found["row"][found["kept"]]
                )
            ids = batch["id"][found["row"]]
            self.assertAllEqual(found["id"], ids)
            kept = found["kept"]
            values = {"learner_loss": found["learner_loss"]}
            of_uniform = {"learner_loss": uniform["learner_loss"]}
            score = values["learner_loss"]
            if stage == 0:
                for rows, losses in ((values, found), (of_uniform, uniform)):
                    rows["reference_loss"] = losses["reference_loss"]
                    rows["learnability"] = (
                        losses["learner_loss"] - losses["reference_loss"]
                    )
                score = values["learnability"]
            for name, some in values.items():
                groups = some[kept], some[~kept], of_uniform[name]
                for group, one in zip(summary.GROUPS, groups, strict=True):
                    self.assert_distribution(line[name][group], one)
            order = np.argsort(-score)
            for name, places in (("highest", order), ("lowest", order[::-1])):
                self.assertAllClose(
                    [one["score"] for one in line[name]],
                    score[places[:8]],
                    rtol=1e-4,
                    atol=1e-5,
                )
                for one, place in zip(line[name], places, strict=False):
                    self.assertEqual(one["row"], found["row"][place])
                    self.assertEqual(one["id"], ids[place])
                    self.assertEqual(one["kept"], kept[place])
            self.assertAllClose(line["clean_in"], np.mean(ids % 2 == 0))
            self.assertAllClose(line["clean_out"], np.mean(ids[kept] % 2 == 0))

    def assert_distribution(self, found, values):
        self.assertEqual(found["count"], len(values))
        self.assertAllClose(found["mean"], np.mean(values), 1e-4)
        self.assertAllClose(
            found["quantiles"],
            np.quantile(values, summary.LEVELS),
            rtol=1e-4,
            atol=1e-5,
        )

    def test_the_log_has_a_stages_score_and_what_its_line_says_of_it(self):
        for row in self.rows:
            for line in self.lines:
                if line["step"] != row["step"]:
                    continue
                for name in (
                    *("overlap_independent", "overlap_uniform"),
                    *("clean_in", "clean_out"),
                ):
                    column = f"stages/{line['stage']}/{name}"
                    self.assertEqual(row[column], line[name])
            # Means of the steps since the row before.
            for stage in (0, 1):
                scores, uniform = [], []
                for report in self.reports[row["step"] - 2 : row["step"]]:
                    rows, others = report.scored(stage), report.uniform(stage)
                    for found, some, kept in (
                        (scores, rows, rows["kept"]),
                        (uniform, others, slice(None)),
                    ):
                        score = some["learner_loss"][kept].mean()
                        if stage == 0:
                            score -= some["reference_loss"][kept].mean()
                        found.append(score)
                for name, some in (("", scores), ("uniform_", uniform)):
                    self.assertAllClose(
                        row[f"stages/{stage}/{name}score"],
                        np.mean(some),
                        rtol=1e-4,
                        atol=1e-5,
                    )

    def test_tensorboard_gets_histograms_of_all_values(self):
        (path,) = glob.glob(os.path.join(self.workdir, "tensorboard", "*"))
        found = {}
        for payload in tf.data.TFRecordDataset(path).as_numpy_iterator():
            event = event_pb2.Event.FromString(payload)
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "histograms":
                    place = event.step, value.tag
                    found[place] = tf.make_ndarray(value.tensor)
        self.assertEqual(
            set(found),
            {
                (step, f"stages/{stage}/{quantity}/{group}")
                for step in (2, 4)
                for stage, quantities in enumerate(
                    (summary.QUANTITIES, ["learner_loss"])
                )
                for quantity in quantities
                for group in summary.GROUPS
            },
        )
        rows = self.reports[1].scored(0)
        kept = rows["learner_loss"][rows["kept"]]
        buckets = found[2, "stages/0/learner_loss/kept"]
        for left, right, count in buckets[:-1]:
            inside = (kept >= np.float32(left)) & (kept < np.float32(right))
            self.assertEqual(count, inside.sum())
        self.assertEqual(buckets[:, 2].sum(), 8)
        self.assertAllClose(
            (buckets[0, 0], buckets[-1, 1]), (kept.min(), kept.max())
        )

    def test_the_funnel_of_late_is_told_in_words(self):
        run = settings(*FUNNEL)
        first, second = draw_log.funnel(run, self.rows)
        last = self.rows[-1]
        self.assertEqual(
            str(first),
            "stage 0, joint by learnability: 24 rows -> 8; in step 4 the "
            f"chosen rows score {last['stages/0/score']:.3g}, uniform ones "
            f"{last['stages/0/uniform_score']:.3g}; clean "
            f"{last['stages/0/clean_in']:.0%} -> "
            f"{last['stages/0/clean_out']:.0%}",
        )
        self.assertEqual((second.rows_in, second.rows_out), (8, 4))
        self.assertEqual(second.clean_out, last["stages/1/clean_out"])
        # The last row that has them; without one nothing was scored.
        gone = {"step": 6, "train/loss": 1.0}
        self.assertEqual(draw_log.funnel(run, [last, gone])[0], first)
        (unscored, _) = draw_log.funnel(run, [gone])
        self.assertEndsWith(str(unscored), "24 rows -> 8, unscored")
        unknown = {n: last[n] for n in last if "clean" not in n}
        (short, _) = draw_log.funnel(run, [unknown])
        self.assertEqual(str(short), str(first).rpartition("; ")[0])


class Rows:
    """A report of known draws of steps; `scored` are the rows of stages."""

    def __init__(self, draws=None, scored=None):
        self._draws, self._scored = draws, scored or {}

    def drawn(self, step):
        return None if self._draws is None else self._draws[step]

    def scored(self, stage):
        return dict(self._scored.get(stage, {}))

    def uniform(self, stage):
        return {"learner_loss": np.float32([1.0, 2.0])}


def scored_rows(count=12, kept=4, **more):
    """Rows of a stage by the learner alone, of which the first pass."""
    losses = np.linspace(3.0, 1.0, count, dtype=np.float32)
    rows = {"row": np.arange(count), "kept": np.arange(count) < kept}
    return rows | {"own_score": losses, "learner_loss": losses} | more


class FollowTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = self.enterContext(tempfile.TemporaryDirectory())
        self.writer = tf.summary.create_noop_writer()

    def follow(self, run, reports, first=0, per_execution=1, **options):
        """The numbers of each logged step; `self.telemetry` made them."""
        self.telemetry = draw_log.Telemetry(
            run, self.workdir, start_step=first, **options
        )
        found, every = {}, run.evaluation.log_every_steps
        for report in reports:
            previous, first = first, first + per_execution
            is_logged = first // every > previous // every or first == run.steps
            model = types.SimpleNamespace(
                selection=run.selection,
                rows=report,
                distribute_strategy=tf.distribute.get_strategy(),
            )
            numbers = self.telemetry.follow(
                model, previous, first, is_logged, self.writer
            )
            if is_logged:
                found[first] = numbers
        return found

    def lines(self):
        return tiny.read_stages(self.workdir)


class LinesTest(FollowTestCase):
    hard = Stage(3, num_chunks=2, criterion="hard_learner")

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
        self.assertIn("stages/0/overlap_uniform", found[5])
        # A run that starts again between the two knows what it owes.
        os.remove(os.path.join(self.workdir, directory.TELEMETRY_FILE))
        self.follow(run, reports[:2])
        state = self.telemetry.state()
        self.follow(run, reports[2:], first=2, state=state)
        self.assertEqual([line["step"] for line in self.lines()], [3, 5])

    def test_rows_without_ids_are_told_by_their_numbers(self):
        rows = scored_rows()
        self.follow(settings(self.hard, steps=1), [Rows(scored={0: rows})])
        (line,) = self.lines()
        self.assertEqual(
            line["highest"][0], {"row": 0, "score": 3.0, "kept": True}
        )
        self.assertNotIn("clean_in", line)

    def test_nothing_dropped_leaves_an_empty_group(self):
        stage = Stage(1, num_chunks=2, criterion="hard_learner")
        rows = scored_rows(kept=12)
        self.follow(settings(stage, steps=1), [Rows(scored={0: rows})])
        (line,) = self.lines()
        self.assertEqual(line["learner_loss"]["dropped"], {"count": 0})
        self.assertEqual(line["rows_out"], 12)
        self.assertEqual(line["overlap_uniform"], 1.0)

    def test_a_stored_stage_is_told_by_its_summary(self):
        """Beside a live one, and by the number of its super-batch."""
        stored = Stage(2, "stored", num_chunks=2, criterion="easy_reference")
        run = settings(stored, self.hard, steps=2)
        summaries = stored_stages.Summaries()
        told = {
            "rows_in": 24,
            "rows_out": 12,
            "criterion": "easy_reference",
            "score": -1.5,
            "uniform_score": -4.0,
            "overlap_independent": 0.5,
            "overlap_uniform": 0.25,
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
            run,
            [Rows(scored={1: scored_rows()})] * 2,
            summaries=summaries,
            super_batch_at=lambda step: step + 3,
        )
        self.assertEqual(
            [(line["stage"], line["rows_in"]) for line in self.lines()],
            [(0, 28), (1, 12)],
        )
        for name, value in (
            *(("score", -1.5), ("uniform_score", -4.0)),
            *(("reference_loss_kept", 1.5), ("reference_loss_dropped", 6.5)),
            *(("overlap_uniform", 0.25), ("clean_in", 0.25)),
            ("clean_out", 0.75),
        ):
            self.assertEqual(found[2][f"stages/0/{name}"], value)
        # What a live stage scores is among the metrics of the step.
        self.assertNotIn("stages/1/score", found[2])
        self.assertIn("stages/1/overlap_uniform", found[2])
        # The summaries of the steps that are not logged are forgotten.
        self.assertEqual(summaries.take(3), {})
        self.assertNotEmpty(summaries.take(2))


class OverlapTest(tf.test.TestCase):
    def test_overlaps_are_with_draws_of_the_same_noise(self):
        self.assertEqual(
            summary.overlap(np.array([5, 1, 7, 3]), np.array([3, 5, 2, 0])), 0.5
        )
        learner, reference = random_embeddings.models(24, seed=2)
        joint, independent, uniform = (
            selection.draw(
                learner,
                reference,
                Stage(3, method=method, num_chunks=4),
                batch_size=8,
                seed=(SEED, 2),
            )
            for method in ("joint", "independent", "uniform")
        )
        found = summary.of_rows(
            Stage(3, num_chunks=4),
            {
                "row": np.arange(24),
                "kept": joint.kept.numpy(),
                "own_score": joint.own_score.numpy(),
                "learner_loss": joint.learner_loss.numpy(),
                "reference_loss": joint.reference_loss.numpy(),
            },
            {"learner_loss": np.ones(8), "reference_loss": np.ones(8)},
            drawn=joint.indices.numpy(),
            seed=np.array([SEED, 2]),
        )
        drawn = set(joint.indices.numpy().tolist())
        for name, other in (("independent", independent), ("uniform", uniform)):
            common = drawn & set(other.indices.numpy().tolist())
            self.assertEqual(found[f"overlap_{name}"], len(common) / 8)


class RepeatsTest(FollowTestCase):
    NUM_RECORDS = 30
    NAMES = ("train/repeat_rate", "select/effective_filter_ratio")

    def setUp(self):
        super().setUp()
        random = np.random.default_rng(0)
        self.draws = [random.permutation(12)[:4] for _ in range(6)]
        self.reports = [Rows(self.draws)] * 6

    def order(self):
        return stream.Order(self.NUM_RECORDS, SEED)

    def by_hand(self, draws, numbers=None, size=12):
        """Of each step, how many of its records an earlier step trained on."""
        numbers = range(len(draws)) if numbers is None else numbers
        seen, repeats = set(), []
        for number, rows in zip(numbers, draws, strict=True):
            positions = number * size + np.asarray(rows)
            here = self.order().rows(positions).tolist()
            repeats.append(sum(record in seen for record in here))
            seen |= set(here)
        return repeats, seen

    def test_repeats_are_counted_since_the_row_before(self):
        run = settings(*ONE, steps=6)
        found = self.follow(run, self.reports, order=self.order())
        repeats, _ = self.by_hand(self.draws)
        self.assertGreater(sum(repeats), 0)  # 72 positions of 30 records
        for step, numbers in found.items():
            _, seen = self.by_hand(self.draws[:step])
            drawn = min(12 * step, self.NUM_RECORDS)
            self.assertAllClose(
                [numbers[name] for name in self.NAMES],
                [sum(repeats[step - 2 : step]) / 8, 1 - len(seen) / drawn],
            )
        # They go on from a checkpoint, also between two rows.
        seen = self.telemetry.state()["seen"]
        self.follow(run, self.reports[:3], order=self.order())
        state = {n: one.copy() for n, one in self.telemetry.state().items()}
        again = self.follow(
            run, self.reports[3:], first=3, order=self.order(), state=state
        )
        self.assertEqual(again, {step: found[step] for step in (4, 6)})
        self.assertAllEqual(self.telemetry.state()["seen"], seen)

    def test_renewals_of_a_share_leave_out_what_was_drawn(self):
        for shares, is_there in (((1.0,), True), ((1.0, 0.5), False)):
            bootstrap = config.BootstrapConfig(renew_at=(4, 5), shares=shares)
            run = settings(*ONE, steps=6, bootstrap=bootstrap)
            found = self.follow(run, self.reports[:2], order=self.order())
            self.assertEqual(
                [name in found[2] for name in self.NAMES], [True, is_there]
            )

    def test_executions_of_several_steps_count_every_step(self):
        run = settings(
            *ONE,
            steps=6,
            checkpoint=config.CheckpointConfig(every_steps=6),
            distribution=config.DistributionConfig(steps_per_execution=3),
        )
        found = self.follow(
            run, self.reports[:2], per_execution=3, order=self.order()
        )
        repeats, seen = self.by_hand(self.draws)
        self.assertEqual(
            {step: one["train/repeat_rate"] for step, one in found.items()},
            {3: sum(repeats[:3]) / 12, 6: sum(repeats[3:]) / 12},
        )
        self.assertAllClose(
            found[6]["select/effective_filter_ratio"], 1 - len(seen) / 30
        )

    def test_a_run_without_stages_repeats_its_records_by_epochs(self):
        run = settings(steps=5, batch_size=12)
        found = self.follow(run, [Rows()] * 5, order=self.order())
        repeats, _ = self.by_hand([np.arange(12)] * 5)
        self.assertEqual(repeats[:2], [0, 0])  # the first 24 of 30 records
        self.assertEqual(repeats[3:], [12, 12])  # all have been there
        self.assertEqual(
            found,
            {
                step: {"train/repeat_rate": rate}
                for step, rate in (
                    (2, 0.0),
                    (4, (repeats[2] + 12) / 24),
                    (5, 1),
                )
            },
        )

    def test_left_out_super_batches_are_passed_over(self):
        run = settings(*ONE, steps=2)
        found = self.follow(
            run,
            self.reports[:2],
            order=self.order(),
            super_batch_at=lambda step: 2 * step,
        )
        repeats, _ = self.by_hand(self.draws[:2], numbers=(0, 2))
        self.assertEqual(found[2]["train/repeat_rate"], sum(repeats) / 8)

    def test_a_run_that_began_without_does_not_guess(self):
        found = self.follow(
            settings(*ONE), self.reports[2:4], first=2, order=self.order()
        )
        self.assertEqual(found, {4: {}})

    def test_a_bit_a_record_is_all_that_is_kept(self):
        state = draw_log.Repeats(stream.Order(1_000_001, 0), 8).state()
        self.assertEqual(
            sum(value.nbytes for value in state.values()), 125_001 + 24
        )


if __name__ == "__main__":
    tf.test.main()

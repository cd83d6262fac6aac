"""What is followed of the selection: values by group, overlaps, repeats."""

import contextlib
import glob
import io
import os
import tempfile

import keras
import numpy as np
import oracles
import random_embeddings
import tensorflow as tf
import tiny
from tensorflow.core.util import event_pb2

from jest_tf import config, selection, training
from jest_tf.data import stream
from jest_tf.runs import directory, draw_log
from jest_tf.runs import log as log_lib

SEED = 3
JOINT = config.SelectionConfig("joint", batch_size=4, num_chunks=2)


def settings(selection=JOINT, steps=4, **more):
    return config.TrainConfig(
        seed=SEED,
        steps=steps,
        data=config.DataConfig(super_batch_size=12),
        selection=selection,
        evaluation=config.EvaluationConfig(log_every_steps=2),
        **{"reference": config.ReferenceConfig("somewhere")} | more,
    )


class Spy(keras.callbacks.Callback):
    """Keeps what each execution told, and what it drew from."""

    def __init__(self):
        super().__init__()
        self.reports = []

    def on_train_batch_end(self, batch, logs=None):
        self.reports.append(self.model.rows)


class FollowTestCase(tf.test.TestCase):
    def folder(self):
        return self.enterContext(tempfile.TemporaryDirectory())

    def follow(
        self,
        run,
        batches,
        workdir=None,
        *,
        model=None,
        start_step=0,
        steps_per_execution=1,
        **options,
    ):
        """Fits; returns the model, the log, the telemetry and the reports."""
        workdir = workdir or self.folder()
        if model is None:
            reference = tiny.learner(5) if run.selection.scores else None
            model = training.JESTModel(
                tiny.learner(0), reference, run.selection, seed=SEED
            )
        model.compile(
            keras.optimizers.SGD(0.5), steps_per_execution=steps_per_execution
        )
        model.optimizer.build(model.trainable_variables)
        model.optimizer.iterations.assign(start_step)
        followed = self.followed = draw_log.Telemetry(
            run, workdir, start_step=start_step, **options
        )
        log = log_lib.Ledger(
            run, workdir, start_step=start_step, telemetry=followed
        )
        spy = Spy()
        with contextlib.redirect_stderr(io.StringIO()):
            model.fit(tiny.dataset(batches), verbose=0, callbacks=[log, spy])
        lines = [
            tiny.read_lines(workdir, name)
            if os.path.isfile(os.path.join(workdir, name))
            else []
            for name in (directory.METRICS_FILE, directory.TELEMETRY_FILE)
        ]
        return model, *lines, spy.reports


class GroupsTest(FollowTestCase):
    def test_curated_rows_are_trained_on_and_not_compared(self):
        """Rows 5 and 11 of 12 are curated; 2 of the other 10 are chosen."""
        model = training.JESTModel(
            tiny.learner(0), tiny.learner(5), JOINT, curated_rows=2, seed=SEED
        )
        _, _, lines, reports = self.follow(
            settings(), tiny.super_batches(2), model=model
        )
        drawn, scored = reports[1].drawn(1), reports[1].scored()
        self.assertAllEqual(drawn[2:], [5, 11])
        self.assertAllEqual(scored["row"], np.delete(np.arange(12), [5, 11]))
        (line,) = lines
        self.assertAllClose(line["filter_ratio"], 1 - 2 / 10)
        for group, count in (("kept", 2), ("dropped", 8)):
            self.assertEqual(line["learner_loss"][group]["count"], count)
        expected = draw_log.overlaps_of(
            np.searchsorted(scored["row"], drawn[:2]),
            scored["own_score"],
            JOINT,
            seed=(SEED, 1),
        )
        for name, value in expected.items():
            self.assertEqual(line[f"overlap_{name}"], value)

    def test_a_line_sums_up_the_rows_of_its_step(self):
        run = settings()
        batches = tiny.super_batches(4)
        _, _, lines, reports = self.follow(run, batches)
        self.assertEqual([line["step"] for line in lines], [2, 4])
        for line, report, batch in zip(
            lines, reports[1::2], batches[1::2], strict=True
        ):
            self.assertEqual(line["super_batch"], line["step"] - 1)
            self.assertAllClose(line["filter_ratio"], 1 - 4 / 12)
            scored = report.scored()
            uniform = report.uniform()
            self.assertAllEqual(scored["row"], np.arange(12))
            self.assertAllEqual(scored["id"], batch["id"])
            drawn = set(report.drawn(line["step"] - 1).tolist())
            learnability = scored["learner_loss"] - scored["reference_loss"]
            kept = [row for row in range(12) if row in drawn]
            dropped = [row for row in range(12) if row not in drawn]
            expected = {
                "learner_loss": {
                    "kept": scored["learner_loss"][kept],
                    "dropped": scored["learner_loss"][dropped],
                    "uniform": uniform["uniform_learner_loss"],
                },
                "reference_loss": {
                    "kept": scored["reference_loss"][kept],
                    "dropped": scored["reference_loss"][dropped],
                    "uniform": uniform["uniform_reference_loss"],
                },
                "learnability": {
                    "kept": learnability[kept],
                    "dropped": learnability[dropped],
                    "uniform": uniform["uniform_learner_loss"]
                    - uniform["uniform_reference_loss"],
                },
            }
            for quantity, groups in expected.items():
                self.assertEqual(set(line[quantity]), set(draw_log.GROUPS))
                for group, values in groups.items():
                    found = line[quantity][group]
                    self.assertEqual(found["count"], len(values))
                    self.assertAllClose(found["mean"], np.mean(values), 1e-4)
                    self.assertAllClose(
                        found["quantiles"],
                        np.quantile(values, draw_log.LEVELS),
                        rtol=1e-4,
                        atol=1e-5,
                    )
            order = np.argsort(-learnability)
            self.assertEqual(
                [one["row"] for one in line["highest"]], order[:8].tolist()
            )
            self.assertEqual(
                [one["row"] for one in line["lowest"]],
                order[::-1][:8].tolist(),
            )
            for one in (*line["highest"], *line["lowest"]):
                self.assertEqual(one["kept"], one["row"] in drawn)
                self.assertEqual(one["id"], batch["id"][one["row"]])
                self.assertAllClose(
                    one["score"], learnability[one["row"]], 1e-4
                )

    def test_means_of_kept_and_uniform_rows_are_the_scores_of_the_log(self):
        run = settings(steps=1)
        _, (row,), (line,), _ = self.follow(run, tiny.super_batches(1))
        for group, name in (("kept", "score"), ("uniform", "uniform_score")):
            self.assertAllClose(
                line["learnability"][group]["mean"],
                row[f"select/{name}"],
                rtol=1e-4,
                atol=1e-5,
            )

    def test_a_criterion_without_one_model_speaks_of_the_other(self):
        for criterion, quantity, sign in (
            ("easy_reference", "reference_loss", -1),
            ("hard_learner", "learner_loss", 1),
        ):
            run = settings(
                config.SelectionConfig(
                    "joint", batch_size=4, num_chunks=2, criterion=criterion
                ),
                steps=1,
            )
            _, _, (line,), reports = self.follow(run, tiny.super_batches(1))
            found = set(draw_log.QUANTITIES) & set(line)
            self.assertEqual(found, {quantity})
            values = sign * reports[0].scored()[quantity]
            best = int(np.argmax(values))
            self.assertEqual(line["highest"][0]["row"], best)
            self.assertAllClose(line["highest"][0]["score"], values[best], 1e-4)

    def test_rows_without_ids_are_numbered(self):
        batches = tiny.super_batches(2)
        for batch in batches:
            del batch["id"]
        _, rows, lines, _ = self.follow(settings(steps=2), batches)
        self.assertNotIn("select/digest", rows[0])
        self.assertEqual(set(lines[0]["highest"][0]), {"row", "score", "kept"})

    def test_nothing_dropped_leaves_an_empty_group(self):
        run = settings(
            config.SelectionConfig("joint", batch_size=12, num_chunks=2),
            steps=1,
        )
        _, _, (line,), _ = self.follow(run, tiny.super_batches(1))
        self.assertEqual(line["learnability"]["dropped"], {"count": 0})
        self.assertEqual(line["filter_ratio"], 0.0)
        self.assertEqual(line["overlap_uniform"], 1.0)

    def test_candidates_are_told_by_their_rows_of_the_super_batch(self):
        run = settings(
            config.SelectionConfig(
                "joint", batch_size=3, num_chunks=1, candidates=6
            ),
            steps=2,
        )
        batches = tiny.super_batches(2)
        _, _, (line,), reports = self.follow(run, batches)
        report = reports[1]
        self.assertAllEqual(report.scored()["row"], np.arange(0, 12, 2))
        drawn = report.drawn(1)
        self.assertAllEqual(drawn % 2, [0, 0, 0])
        self.assertAllEqual(report.trained_ids(), batches[1]["id"][drawn])
        self.assertEqual(line["filter_ratio"], 0.5)
        # With one chunk the draw is the independent one.
        self.assertEqual(line["overlap_independent"], 1.0)
        for one in line["lowest"]:
            self.assertEqual(one["id"], batches[1]["id"][one["row"]])

    def test_tensorboard_gets_histograms_of_all_values(self):
        workdir = self.folder()
        run = settings(steps=2)
        _, _, (line,), reports = self.follow(
            run, tiny.super_batches(2), workdir
        )
        (path,) = glob.glob(os.path.join(workdir, "tensorboard", "*"))
        found = {}
        for payload in tf.data.TFRecordDataset(path).as_numpy_iterator():
            event = event_pb2.Event.FromString(payload)
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "histograms":
                    found[value.tag] = tf.make_ndarray(value.tensor)
                    self.assertEqual(event.step, 2)
        self.assertEqual(
            set(found),
            {
                f"select/{quantity}/{group}"
                for quantity in draw_log.QUANTITIES
                for group in draw_log.GROUPS
            },
        )
        values = reports[1].scored()["learner_loss"]
        kept = values[reports[1].drawn(1)]
        buckets = found["select/learner_loss/kept"]
        for left, right, count in buckets[:-1]:
            inside = (kept >= np.float32(left)) & (kept < np.float32(right))
            self.assertEqual(count, inside.sum())
        self.assertEqual(buckets[:, 2].sum(), 4)
        self.assertAllClose(
            (buckets[0, 0], buckets[-1, 1]), (kept.min(), kept.max())
        )

    def test_a_step_that_scored_nothing_leaves_its_line_to_the_next(self):
        run = settings(
            config.SelectionConfig(
                "joint", batch_size=4, num_chunks=2, uniform_every=2
            ),
            steps=5,
        )
        batches = tiny.super_batches(5)
        workdir = self.folder()
        _, rows, lines, _ = self.follow(run, batches, workdir)
        # Steps 2 and 4, which are logged, are uniform.
        self.assertEqual([row["step"] for row in rows], [2, 4, 5])
        self.assertEqual([line["step"] for line in lines], [3, 5])
        self.assertNotIn("select/overlap_uniform", rows[0])
        self.assertIn("select/overlap_uniform", rows[2])

        # A run that starts again between the two knows what it owes.
        again = self.folder()
        first, *_ = self.follow(run, batches[:2], again)
        state = self.followed.state()
        _, _, lines_again, _ = self.follow(
            run, batches[2:], again, model=first, start_step=2, state=state
        )
        self.assertEqual([line["step"] for line in lines_again], [3, 5])


class OverlapTest(tf.test.TestCase):
    def test_the_share_of_common_rows_by_hand(self):
        self.assertEqual(
            draw_log.overlap(np.array([5, 1, 7, 3]), np.array([3, 5, 2, 0])),
            0.5,
        )

    def test_independent_rows_are_those_of_independent_selection(self):
        learner, reference = random_embeddings.models(24, seed=1)
        for quotas, gain in ((1, 1.0), (1, 0.0), (4, 2.5)):
            draw = selection.select_independently(
                learner,
                reference,
                batch_size=8,
                seed=(SEED, 9),
                gain=gain,
            )
            rows = selection.independent_rows(
                draw.own_score,
                (SEED, 9),
                8,
                gain=gain,
                num_quotas=quotas,
            )
            noise = selection.gumbel_noise((SEED, 9), 1, 24)[0].numpy()
            scores = np.diag(
                oracles.pair_losses(learner) - oracles.pair_losses(reference)
            )
            self.assertAllClose(draw.own_score, scores, atol=1e-4)
            expected = []
            for quota in range(quotas):
                others = [
                    row for row in range(24) if row * quotas // 24 != quota
                ]
                expected += oracles.pick(
                    gain * scores, noise, others, 8 // quotas
                )
            self.assertAllEqual(rows, expected)
            if quotas == 1:
                self.assertAllEqual(rows, draw.indices)

    def test_the_noise_of_one_chunk_is_that_of_the_first_of_many(self):
        # The bits are; a logarithm's last one may depend on its place.
        self.assertAllClose(
            selection.gumbel_noise((SEED, 4), 1, 37)[0],
            selection.gumbel_noise((SEED, 4), 16, 37)[0],
            rtol=1e-6,
            atol=1e-6,
        )

    def test_overlaps_are_with_draws_of_the_same_noise(self):
        learner, reference = random_embeddings.models(24, seed=2)
        options = {"batch_size": 8, "num_chunks": 4, "seed": (SEED, 2)}
        joint, independent, uniform = (
            sampler(learner, reference, **options)
            for sampler in (
                selection.select_jointly,
                selection.select_independently,
                selection.select_uniformly,
            )
        )
        found = draw_log.overlaps_of(
            joint.indices.numpy(),
            joint.own_score.numpy(),
            config.SelectionConfig("joint", batch_size=8, num_chunks=4),
            seed=(SEED, 2),
        )
        drawn = set(joint.indices.numpy().tolist())
        for name, other in (("independent", independent), ("uniform", uniform)):
            common = drawn & set(other.indices.numpy().tolist())
            self.assertEqual(found[name], len(common) / 8)


class RepeatsTest(FollowTestCase):
    NUM_RECORDS = 30

    def order(self):
        return stream.Order(self.NUM_RECORDS, SEED)

    def by_hand(self, draws, size=12):
        """Of each step, how many of its records an earlier step trained on."""
        records = self.order().rows(np.arange(size * len(draws)))
        seen, repeats = set(), []
        for step, rows in enumerate(draws):
            here = [int(records[step * size + row]) for row in rows]
            repeats.append(sum(record in seen for record in here))
            seen |= set(here)
        return repeats, seen

    def test_repeats_are_counted_since_the_line_before(self):
        run = settings(steps=6)
        _, rows, _, reports = self.follow(
            run, tiny.super_batches(6), order=self.order()
        )
        draws = [report.drawn(step) for step, report in enumerate(reports)]
        repeats, _ = self.by_hand(draws)
        self.assertGreater(sum(repeats), 0)  # 72 positions of 30 records
        for place, row in enumerate(rows):
            span = repeats[2 * place : 2 * place + 2]
            self.assertEqual(row["train/repeat_rate"], sum(span) / 8)
            _, seen = self.by_hand(draws[: row["step"]])
            drawn = min(12 * row["step"], self.NUM_RECORDS)
            self.assertAllClose(
                row["select/effective_filter_ratio"], 1 - len(seen) / drawn
            )

    def test_renewals_of_a_share_leave_out_what_was_drawn(self):
        for shares, is_there in (((1.0,), True), ((1.0, 0.5), False)):
            bootstrap = config.BootstrapConfig(renew_at=(4, 5), shares=shares)
            run = settings(
                steps=6,
                bootstrap=bootstrap,
                reference=config.ReferenceConfig(sidecars=True),
            )
            _, rows, *_ = self.follow(
                run, tiny.super_batches(2), order=self.order()
            )
            self.assertIn("train/repeat_rate", rows[0])
            self.assertEqual(
                "select/effective_filter_ratio" in rows[0], is_there
            )

    def test_executions_of_several_steps_count_every_step(self):
        run = settings(
            steps=6,
            checkpoint=config.CheckpointConfig(every_steps=6),
            distribution=config.DistributionConfig(steps_per_execution=3),
        )
        batches = tiny.super_batches(6)
        _, one, *_ = self.follow(settings(steps=6), batches, order=self.order())
        _, three, _, reports = self.follow(
            run, batches, order=self.order(), steps_per_execution=3
        )
        # Lines after steps 3 and 6, with those of steps 1-3 and 4-6.
        self.assertEqual([row["step"] for row in three], [3, 6])
        draws = [reports[step // 3].drawn(step) for step in range(6)]
        repeats, _ = self.by_hand(draws)
        for place, row in enumerate(three):
            span = repeats[3 * place : 3 * place + 3]
            self.assertEqual(row["train/repeat_rate"], sum(span) / 12)
        self.assertEqual(
            three[-1]["select/effective_filter_ratio"],
            one[-1]["select/effective_filter_ratio"],
        )

    def test_a_run_without_selection_repeats_its_records_by_epochs(self):
        run = settings(config.SelectionConfig(), steps=5)
        _, rows, lines, _ = self.follow(
            run, tiny.super_batches(5), order=self.order()
        )
        repeats, _ = self.by_hand([np.arange(12)] * 5)
        self.assertEqual(repeats[:2], [0, 0])  # the first 24 of 30 records
        self.assertEqual(repeats[3:], [12, 12])  # all have been there
        self.assertEqual(
            [row["train/repeat_rate"] for row in rows],
            [0.0, (repeats[2] + 12) / 24, 1.0],
        )
        self.assertNotIn("select/effective_filter_ratio", rows[0])
        self.assertEmpty(lines)

    def test_uniform_draws_repeat_too(self):
        run = settings(config.SelectionConfig("uniform", batch_size=6), steps=4)
        _, rows, lines, _ = self.follow(
            run, tiny.super_batches(4), order=self.order()
        )
        draws = [
            selection.uniform_rows((SEED, step), 6, 12).numpy()
            for step in range(4)
        ]
        repeats, _ = self.by_hand(draws)
        self.assertEqual(
            [row["train/repeat_rate"] for row in rows],
            [sum(repeats[:2]) / 12, sum(repeats[2:]) / 12],
        )
        self.assertEmpty(lines)

    def test_left_out_super_batches_are_passed_over(self):
        repeats = draw_log.Repeats(self.order(), 12)
        repeats.add(0, np.arange(12))
        repeats.add(2, np.arange(12))  # positions 24 to 35
        self.assertEqual(repeats.rate(), self.by_position([0, 2])[-1] / 24)
        self.assertTrue(np.isnan(repeats.rate()))

    def by_position(self, numbers):
        records = self.order().rows(np.arange(60))
        seen, totals = set(), [0]
        for number in numbers:
            here = records[12 * number : 12 * number + 12].tolist()
            totals.append(totals[-1] + sum(one in seen for one in here))
            seen |= set(here)
        return totals

    def test_repeats_go_on_from_the_state_of_a_checkpoint(self):
        run = settings(steps=6)
        batches = tiny.super_batches(6)
        _, expected, *_ = self.follow(run, batches, order=self.order())
        seen = self.followed.state()["seen"]
        workdir = self.folder()
        first, *_ = self.follow(run, batches[:3], workdir, order=self.order())
        state = {
            name: value.copy() for name, value in self.followed.state().items()
        }
        # Step 3 lies between two rows: its count is in the state, too.
        _, rows, *_ = self.follow(
            run,
            batches[3:],
            workdir,
            model=first,
            start_step=3,
            order=self.order(),
            state=state,
        )
        for row, other in zip(rows, expected, strict=True):
            for name in ("train/repeat_rate", "select/effective_filter_ratio"):
                self.assertEqual(row[name], other[name])
        self.assertAllEqual(self.followed.state()["seen"], seen)

    def test_a_run_that_began_without_does_not_guess(self):
        run = settings(steps=6)
        model, *_ = self.follow(run, tiny.super_batches(2))
        _, rows, *_ = self.follow(
            run,
            tiny.super_batches(2),
            model=model,
            start_step=2,
            order=self.order(),
        )
        self.assertNotIn("train/repeat_rate", rows[-1])

    def test_a_bit_a_record_is_all_that_is_kept(self):
        state = draw_log.Repeats(stream.Order(1_000_001, 0), 8).state()
        self.assertEqual(
            sum(value.nbytes for value in state.values()), 125_001 + 24
        )


if __name__ == "__main__":
    tf.test.main()

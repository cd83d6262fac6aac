"""A run that renews its reference from its own learner."""

import dataclasses
import os
import pathlib
import tempfile
from unittest import mock

import cascade_cases
import numpy as np
import pytest
import run_server
import subprocesses
import tensorflow as tf
import tiny

from jest_tf import config, models
from jest_tf.cli import dry_run
from jest_tf.data import cascade, pipeline, sidecars, stores
from jest_tf.data.sidecars import embed, recognition
from jest_tf.runs import bootstrap, checkpoints, directory, inputs, loading

STEPS, RENEW_AT, HYPER, SUPER = 24, (8, 16), 32, 12
SETTINGS = (
    "selection.batch_size=none",
    "selection.method=uniform",
    "selection.phases=",
    "selection.uniform_every=none",
    "bootstrap.renew_at=8,16",
    "bootstrap.shares=0.7,0.5",
    "optimizer.ema=none",
    "bootstrap.curated_rows=6",
    f"cascade.hyper_batch_size={HYPER}",
    "cascade.num_chunks=2",
    "data.curated_rows=4",
    "evaluation.log_every_steps=1",
    "checkpoint.keep=9",
)


@pytest.mark.slow
class RunTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        tiny.write_shard(f"{cls.folder}/a.tfrecord", rows=60)
        tiny.write_shard(
            f"{cls.folder}/damaged.tfrecord", rows=8, seed=1, damaged=(2, 5)
        )
        tiny.write_shard(f"{cls.folder}/curated.tfrecord", rows=10, seed=2)
        cls.settings = (
            *SETTINGS,
            f"data.curated={cls.folder}/curated.tfrecord",
        )
        cls.server = subprocesses.Server()
        cls.addClassCleanup(cls.server.close)
        cls.unbroken = os.path.join(cls.folder, "unbroken")
        cls.run_in(cls.unbroken)
        cls.config = directory.load_config(cls.unbroken)
        cls.store = stores.open_stores(cls.config.data)

    @classmethod
    def run_in(cls, workdir, *overrides, ended=0, **options):
        code = cls.server.run(workdir, *cls.settings, *overrides, **options)
        with open(f"{workdir}.log", encoding="utf-8") as file:
            said = file.read()
        if code != ended:
            raise AssertionError(f"ended with {code}: {said}")
        return said

    def lines(self, workdir, name):
        return [
            {
                key: value
                for key, value in row.items()
                if not tiny.from_clock(key)
            }
            for row in tiny.read_lines(workdir, name)
        ]

    def drawn(self):
        rows = self.lines(self.unbroken, directory.DRAWS_FILE)
        return {row["step"]: row["ids"] for row in rows}

    def test_the_rows_of_every_segment_are_the_streams(self):
        """Half are curated at first; then the cascade chooses 8 of 12 rows."""
        drawn = self.drawn()
        starts = (0, *RENEW_AT)
        for start, stop, curated_rows in zip(
            starts, (*RENEW_AT, STEPS), (6, 4, 4), strict=True
        ):
            found = chooser = None
            rows = None
            if start:
                found, rows = bootstrap.sidecars_at(
                    self.config, self.store, self.unbroken, start
                )
                chooser = cascade.Cascade(self.config.cascade, found, "sigmoid")
            for step in range(start + 1, stop + 1):
                ids = self.ids_at(
                    self.config, step, chooser, rows, curated_rows
                )
                self.assertEqual(drawn[step], ids)
        self.assertLen(drawn, STEPS)

    def test_a_dry_run_counts_what_the_run_does(self):
        with mock.patch.object(
            models, "build_learner", run_server.build_learner
        ):
            said = dry_run.report(self.config, self.unbroken)
        for step in RENEW_AT:
            rows = bootstrap.embedded_rows(self.config, self.store, step)
            self.assertIn(f"{rows.sum()} records after step {step}", said)
        last = self.lines(self.unbroken, directory.METRICS_FILE)[-1]
        drawn, scored, trained = (
            f"{last[f'examples/{name}']:,} {name}"
            for name in ("drawn", "scored", "trained")
        )
        drawn = drawn.replace(" ", " examples ")
        self.assertIn(f"{STEPS}: {drawn}, {scored}, {trained}", said)

    def test_a_reference_is_the_learner_of_its_step(self):
        for step in RENEW_AT:
            found = self.sidecars_of(self.unbroken, step)
            state = checkpoints.read(self.unbroken, step)
            (temperature,) = (
                value
                for name, value in state.items()
                if name.startswith("model/") and "temperature" in name
            )
            self.assertAllClose(found.scale, np.exp(temperature), rtol=1e-6)
            rows = bootstrap.embedded_rows(self.config, self.store, step)
            damaged = {62, 65}
            self.assertEqual(
                set(np.flatnonzero(found.valid(np.arange(78)))),
                set(np.flatnonzero(rows)) - damaged,
            )

    def test_each_renewal_embeds_other_rows_and_all_curated_ones(self):
        first, second = (
            bootstrap.embedded_rows(self.config, self.store, step)
            for step in RENEW_AT
        )
        self.assertNotAllEqual(first[:68], second[:68])
        for rows in (first, second):
            self.assertTrue(rows[68:].all())
            # Six standard deviations of 68 rows at 0.7.
            self.assertAllClose(rows[:68].mean(), 0.7, atol=6 * 0.056)

    def test_a_learner_that_recognises_less_does_not_become_the_reference(self):
        done = bootstrap.renewals(self.config, self.unbroken)
        for one in done:
            rows = bootstrap.embedded_rows(self.config, self.store, one.step)
            rows[68:] = False  # the curated ones
            share = recognition.recognised_share(
                self.sidecars_of(self.unbroken, one.step),
                self.store,
                rows,
                self.config.seed,
            )
            self.assertAllClose(one.recognised, share, atol=1e-5)
        first, second = done
        self.assertIsNone(first.agreement)
        rows = bootstrap.embedded_rows(self.config, self.store, second.step)
        rows[68:] = False
        agreement = recognition.agreement(
            *(self.sidecars_of(self.unbroken, one.step) for one in done),
            self.store,
            rows,
            self.config.seed,
        )
        self.assertAllClose(second.agreement, agreement, atol=1e-4)
        self.assertTrue(first.kept)
        self.assertEqual(second.kept, second.recognised >= first.recognised)
        used = second.step if second.kept else first.step
        self.assertIsNone(
            bootstrap.sidecars_at(self.config, self.store, self.unbroken, 7)
        )
        for step, expected in ((8, 8), (15, 8), (16, used), (24, used)):
            _, rows = bootstrap.sidecars_at(
                self.config, self.store, self.unbroken, step
            )
            self.assertAllEqual(
                rows,
                bootstrap.embedded_rows(self.config, self.store, expected),
            )

    def ids_at(self, recipe, step, chooser, rows, curated_rows):
        """Ids of a step's super-batch, by the stream alone."""
        dataset = pipeline.super_batches(
            self.store,
            super_batch_size=SUPER,
            seed=recipe.seed,
            tokenizer=cascade_cases.TOKENIZER,
            image_size=tiny.IMAGE_SIZE,
            start_step=step - 1,
            options=pipeline.Options(
                cascade=chooser,
                rows=rows,
                num_curated=1,
                curated_rows=curated_rows,
                faults=pipeline.FaultLog(None, 1.0),
            ),
        )
        (batch,) = dataset.take(1)
        return batch["id"].numpy().tolist()

    def sidecars_of(self, workdir, step):
        """Those of a renewal, kept or not."""
        folder = os.path.join(workdir, "references", f"step-{step:09d}")
        return sidecars.Sidecars(self.store, folder)

    def test_every_pass_is_in_the_log(self):
        rows = self.lines(self.unbroken, directory.METRICS_FILE)
        by_step = {row["step"]: row for row in rows}
        done = bootstrap.renewals(self.config, self.unbroken)
        self.assertEqual([one.step for one in done], list(RENEW_AT))
        self.assertEqual(
            [by_step[step]["examples/embedded"] for step in (8, 9, 16, 17)],
            [
                0,
                done[0].images,
                done[0].images,
                done[0].images + done[1].images,
            ],
        )
        self.assertEqual(
            by_step[24]["flops/renewals"], done[0].flops + done[1].flops
        )
        self.assertEqual(by_step[24]["examples/cascaded"], 16 * HYPER)
        # The tiny learner's embeddings have six numbers.
        a_step = cascade.flops(self.config.cascade, SUPER, (6,), 4)
        self.assertEqual(by_step[24]["flops/cascade"], 16 * a_step)
        seconds = {
            row["step"]: row["seconds"]
            for row in tiny.read_lines(self.unbroken, directory.METRICS_FILE)
        }
        for renewal in done:
            gap = seconds[renewal.step + 1] - seconds[renewal.step]
            self.assertGreater(gap, renewal.seconds)
        # Pictures and captions, one each, of the tiny learner: one product.
        dim, tokens = 6, tiny.TEXT_LENGTH
        pixels = 3 * tiny.IMAGE_SIZE**2
        self.assertIn(
            done[0].flops / done[0].images,
            [2 * dim * (pixels + tokens * dim)],
        )

    def test_a_killed_run_ends_as_the_unbroken_one(self):
        killed = os.path.join(self.folder, "killed")
        for place in (14, 22, 26, 31, 18):
            self.run_in(killed, at=place, ended=-9)
        self.run_in(killed)
        for name in (directory.METRICS_FILE, directory.DRAWS_FILE):
            self.assertEqual(
                self.lines(killed, name), self.lines(self.unbroken, name)
            )
        ours, theirs = (
            subprocesses.weight_arrays(f"{one}/{directory.WEIGHTS_FILE}")
            for one in (killed, self.unbroken)
        )
        self.assertEqual(set(ours), set(theirs))
        for name, value in ours.items():
            np.testing.assert_array_equal(value, theirs[name], name)
        for step in RENEW_AT:
            ours, theirs = (
                self.sidecars_of(one, step) for one in (killed, self.unbroken)
            )
            self.assertEqual(ours.identity, theirs.identity)
            for shard in range(3):
                for one, other in zip(
                    ours.read_shard(shard),
                    theirs.read_shard(shard),
                    strict=True,
                ):
                    np.testing.assert_array_equal(one, other)

    def test_the_learners_embeddings_score_beside_a_reference(self):
        """Killed as well; steps before the first renewal have none."""
        reference = os.path.join(self.folder, "of a reference")
        self.run_in(os.path.join(self.folder, "teacher"), "seed=7")
        with mock.patch.object(
            models, "build_learner", run_server.build_learner
        ):
            teacher = loading.load(os.path.join(self.folder, "teacher"))
        bootstrap.embed_records(teacher, self.store, reference)
        settings = (
            "bootstrap.renews=learner",
            "cascade.criterion=learnability",
            "reference.sidecars=true",
            f"reference.sidecar_dir={reference}",
            "bootstrap.curated_rows=4",
        )
        workdir = os.path.join(self.folder, "by learnability")
        self.run_in(workdir, *settings, at=22, ended=-9)
        self.run_in(workdir, *settings)
        recipe = directory.load_config(workdir)
        drawn = {
            row["step"]: row["ids"]
            for row in self.lines(workdir, directory.DRAWS_FILE)
        }
        fixed = sidecars.Sidecars(self.store, reference)
        for start in (0, *RENEW_AT):
            chooser, rows = cascade.of_run(recipe, fixed), None
            self.assertEqual(chooser.settings.criterion, "easy_reference")
            if start:
                learner = self.sidecars_of(workdir, start)
                rows = bootstrap.embedded_rows(recipe, self.store, start)
                chooser = cascade.Cascade(
                    recipe.cascade, fixed, "sigmoid", learner
                )
            for step in range(start + 1, start + 9):
                ids = self.ids_at(recipe, step, chooser, rows, 4)
                self.assertEqual(drawn[step], ids)

    def test_a_renewal_of_too_few_records_is_refused_at_once(self):
        workdir = os.path.join(self.folder, "too few")
        for share in ("0.15", "0.001"):
            said = self.run_in(
                workdir, f"bootstrap.shares=0.7,{share}", ended=1
            )
            self.assertIn("the renewal after 16 steps embeds, ", said)
            self.assertNotIn("steps 0 to", said)

    def test_references_that_no_checkpoint_needs_are_deleted(self):
        workdir = os.path.join(self.folder, "gone")
        settings = ("steps=20", "checkpoint.keep=1", "checkpoint.keep_best=")
        self.run_in(workdir, *settings)
        kept = [
            [name for name in os.listdir(folder) if "sidecar" in name]
            for folder in (
                os.path.join(workdir, "references", f"step-{step:09d}")
                for step in RENEW_AT
            )
        ]
        first, second = bootstrap.renewals(self.config, workdir)
        self.assertEqual(
            [len(names) for names in kept], [0, 3] if second.kept else [3, 0]
        )

        # One that is needed and gone is named.
        os.remove(
            os.path.join(
                workdir, "references/step-000000016", directory.RENEWAL_FILE
            )
        )
        os.remove(os.path.join(workdir, directory.WEIGHTS_FILE))
        said = self.run_in(workdir, *settings, ended=1)
        self.assertIn("must have the reference of the steps after 16", said)


class SettingsTest(tf.test.TestCase):
    def test_stage_0_scores_by_other_widths_after_renewals(self):
        def renewal(step, kept):
            return bootstrap.Renewal(step, 0, 0, 0, 0.0, 0.5, kept)

        def dims(criterion, renews, *kept):
            recipe = config.TrainConfig(
                cascade=config.CascadeConfig(1280, criterion=criterion),
                reference=config.ReferenceConfig(sidecars=True),
                bootstrap=config.BootstrapConfig((10, 20), renews),
            )
            done = [renewal(10 * (n + 1), one) for n, one in enumerate(kept)]
            return bootstrap.cascade_dims(recipe, done, 768, 64)

        first = (0, (768,))
        easy = "easy_reference", "reference"
        self.assertEqual(dims(*easy), [first])
        self.assertEqual(
            dims(*easy, False, True), [first, (10, (768,)), (20, (64,))]
        )
        by_both = "learnability", "learner"
        self.assertEqual(dims(*by_both, True), [first, (10, (768, 64))])
        by_one = "hard_learner", "learner"
        self.assertEqual(dims(*by_one, True), [first, (10, (64,))])

    def test_after_two_rejections_in_succession_nothing_is_embedded(self):
        recipe = config.TrainConfig(
            steps=10,
            data=config.DataConfig(super_batch_size=64),
            cascade=config.CascadeConfig(hyper_batch_size=256),
            bootstrap=config.BootstrapConfig(renew_at=(2, 4, 6, 8)),
        )
        store = mock.MagicMock(manifest=None)
        run = mock.Mock(config=recipe)
        # There are no checkpoints that would need sidecars.
        self.enterContext(mock.patch.object(bootstrap, "_delete_old"))
        for kept, embeds in (
            ((True, False, False), False),
            ((False, True, False), True),
            ((False, False, True), True),
        ):
            workdir = tempfile.mkdtemp(dir=self.get_temp_dir())
            for step, one in zip((2, 4, 6), kept, strict=True):
                renewal = bootstrap.Renewal(step, 9, 9, 9, 1.0, 0.25, one)
                directory.write(
                    f"{workdir}/references/step-{step:09d}",
                    directory.RENEWAL_FILE,
                    renewal._asdict(),
                )
            with mock.patch.object(
                bootstrap, "embed_records", side_effect=InterruptedError
            ):
                if embeds:
                    with self.assertRaises(InterruptedError):
                        bootstrap.renew(run, workdir, store, 8)
                    continue
                bootstrap.renew(run, workdir, store, 8)
            self.assertEqual(
                bootstrap.renewals(recipe, workdir)[-1],
                bootstrap.Renewal(8, 0, 0, 0, 0.0, 0.25, False),
            )
            # Those after a renewal whose record was lost do not count.
            os.remove(f"{workdir}/references/step-000000004/renewal.json")
            with (
                mock.patch.object(
                    bootstrap, "embed_records", side_effect=InterruptedError
                ),
                self.assertRaises(InterruptedError),
            ):
                bootstrap.renew(run, workdir, store, 4)

    def test_embeddings_of_a_disk_that_was_away_are_not_kept(self):
        recipe = config.TrainConfig(
            data=config.DataConfig(super_batch_size=64, max_fault_rate=0.01)
        )
        run = mock.Mock(config=recipe)
        store = mock.MagicMock(manifest=None)
        store.__len__.return_value = 4000
        wanted = np.arange(4000) < 2000
        for images, refused in ((1980, False), (1979, True)):
            folder = tempfile.mkdtemp(dir=self.get_temp_dir())
            path = pathlib.Path(folder, f"a{sidecars.SUFFIX}")
            path.touch()
            reasons = {"no device": 2000 - images}
            summary = embed.Summary(1, 0, (), 4000, 2000 - images, reasons)
            cost = bootstrap.Cost(images, images, 1, 0.0)
            with (
                mock.patch.object(embed, "write", return_value=summary),
                mock.patch.multiple(
                    bootstrap,
                    reference=mock.DEFAULT,
                    embedding_cost=mock.Mock(return_value=cost),
                ),
            ):
                if refused:
                    with self.assertRaisesRegex(
                        ValueError, "21 of 2,000 .*'no device': 21"
                    ):
                        bootstrap.embed_records(run, store, folder, wanted)
                else:
                    found = bootstrap.embed_records(run, store, folder, wanted)
                    self.assertEqual(found.images, images)
            self.assertEqual(path.exists(), not refused)

    def test_each_checkpoint_keeps_its_reference(self):
        recipe = config.TrainConfig(
            steps=12,
            data=config.DataConfig(super_batch_size=64),
            cascade=config.CascadeConfig(hyper_batch_size=256),
            bootstrap=config.BootstrapConfig(renew_at=(2, 4, 6, 8, 10)),
        )
        workdir = self.get_temp_dir()
        names = {}
        for step in recipe.bootstrap.renew_at:
            folder = f"{workdir}/references/step-{step:09d}"
            renewal = bootstrap.Renewal(step, 9, 9, 9, 1.0, 0.25, step != 6)
            directory.write(folder, directory.RENEWAL_FILE, renewal._asdict())
            names[step] = pathlib.Path(folder, f"a{sidecars.SUFFIX}")
            names[step].touch()
        # The one at 6 was rejected, so the checkpoint after 7 needs that of 4.
        # A run that falls back to 9 uses that of 10 again.
        with mock.patch.object(
            checkpoints, "saved_steps", return_value=[5, 7, 9]
        ):
            bootstrap._delete_old(recipe, workdir)
        left = [step for step, path in names.items() if path.exists()]
        self.assertEqual(left, [4, 8, 10])

    def test_a_weighted_part_needs_a_record_of_every_renewal(self):
        recipe = config.TrainConfig(
            steps=12,
            data=config.DataConfig(
                train=("large", "small"), weights=(1.0, 1.0), super_batch_size=8
            ),
            cascade=config.CascadeConfig(hyper_batch_size=16, num_chunks=2),
            bootstrap=config.BootstrapConfig(renew_at=(4, 8), shares=(0.5,)),
        )
        store = mock.MagicMock(manifest=None, parts=(1000, 4))
        store.__len__.return_value = 1004
        sources = mock.Mock(store=store)
        rows = np.ones(1004, bool)
        with mock.patch.object(bootstrap, "embedded_rows") as embedded:
            embedded.return_value = rows
            inputs._check_renewals(recipe, sources)
            rows[1000:] = False
            with self.assertRaisesRegex(
                ValueError, r"none of the 4 of `data.train\[1\]`.* 4 steps"
            ):
                inputs._check_renewals(recipe, sources)
            uniformly = dataclasses.replace(
                recipe, data=dataclasses.replace(recipe.data, weights=())
            )
            inputs._check_renewals(uniformly, sources)

    def test_the_first_reference_is_judged_on_the_learners_rows(self):
        recipe = config.TrainConfig(
            steps=10,
            data=config.DataConfig(super_batch_size=64),
            cascade=config.CascadeConfig(hyper_batch_size=256),
            bootstrap=config.BootstrapConfig(renew_at=(2,)),
        )
        rows = np.array([True, False, True])
        shares = {"learner": 0.3, "first": 0.4}
        judged = []

        def recognised(recipe, store, sidecars, some):
            judged.append((sidecars, some))
            return shares[sidecars]

        workdir = tempfile.mkdtemp(dir=self.get_temp_dir())
        with (
            mock.patch.multiple(
                bootstrap,
                embedded_rows=mock.Mock(return_value=rows),
                embed_records=mock.Mock(return_value=(2, 2, 9, 1.0)),
                recognised_share=recognised,
                _delete_old=mock.DEFAULT,
            ),
            mock.patch.object(
                bootstrap.sidecars_lib, "Sidecars", return_value="learner"
            ),
        ):
            run = mock.Mock(config=recipe)
            bootstrap.renew(run, workdir, mock.MagicMock(), 2, "first")
        self.assertEqual(judged, [("learner", rows), ("first", rows)])
        (renewal,) = bootstrap.renewals(recipe, workdir)
        self.assertFalse(renewal.kept)

    def test_what_does_not_fit_is_refused(self):
        base = {"steps": 10}
        cascade = config.CascadeConfig(hyper_batch_size=256)
        data = config.DataConfig(super_batch_size=64)
        for message, settings in (
            ("ascending steps from 1 on.*[(]3, 2[)]", {"renew_at": (3, 2)}),
            ("ascending steps from 1 on", {"renew_at": (0, 2)}),
            ("before the last of `steps`", {"renew_at": (10,)}),
            (
                "shares` must be one or more shares in [(]0, 1].*[(]0.0,[)]",
                {"renew_at": (1,), "shares": (0.0,)},
            ),
            (
                "a single share, or one for each of the 3 steps.*0.3, 1.0",
                {"renew_at": (1, 2, 3), "shares": (0.3, 1.0)},
            ),
            (
                "`bootstrap.curated_rows` needs `data.curated`",
                {"renew_at": (1,), "curated_rows": 8},
            ),
            (
                "`bootstrap.curated_rows` [(]c[)] must divide the super-batch.*"
                "curated_rows=7",
                {"renew_at": (1,), "curated_rows": 7},
            ),
        ):
            with (
                self.subTest(message),
                self.assertRaisesRegex(ValueError, message),
            ):
                config.TrainConfig(
                    **base,
                    data=data,
                    cascade=cascade,
                    bootstrap=config.BootstrapConfig(**settings),
                )

    def test_scores_of_an_earlier_learner_need_its_embeddings(self):
        learnability = config.CascadeConfig(1280, criterion="learnability")
        by_learner = config.BootstrapConfig(renew_at=(4,), renews="learner")
        by_sidecars = config.ReferenceConfig(sidecars=True)
        config.TrainConfig(
            cascade=learnability, bootstrap=by_learner, reference=by_sidecars
        )
        for message, settings in (
            (
                "set `bootstrap.renew_at`, and `bootstrap.renews=learner`",
                {"cascade": learnability, "reference": by_sidecars},
            ),
            (
                "set `bootstrap.renew_at`, and `bootstrap.renews=learner`",
                {
                    "cascade": learnability,
                    "reference": by_sidecars,
                    "bootstrap": config.BootstrapConfig(renew_at=(4,)),
                },
            ),
            (
                "'learner' needs `reference.sidecars`",
                {"cascade": learnability, "bootstrap": by_learner},
            ),
            (
                "a `cascade.criterion` that scores by the learner",
                {
                    "cascade": config.CascadeConfig(1280),
                    "bootstrap": by_learner,
                    "reference": by_sidecars,
                },
            ),
        ):
            with (
                self.subTest(message),
                self.assertRaisesRegex(ValueError, message),
            ):
                config.TrainConfig(**settings)

    def test_a_renewal_needs_a_use_and_no_reference_before_it(self):
        once = config.BootstrapConfig(renew_at=(4,))
        joint = config.SelectionConfig(method="joint", batch_size=16)
        for message, settings in (
            ("needs a use for the reference", {}),
            ("must be 'uniform' before the first", {"selection": joint}),
            *(
                ("must be 'uniform' before the first", {"selection": scheduled})
                for scheduled in (
                    # Joint in between, or but for every fourth step.
                    dataclasses.replace(
                        joint,
                        phases=tuple(
                            config.Phase(start, method)
                            for start, method in (
                                (0, "uniform"),
                                (1, "joint"),
                                (2, "uniform"),
                                (4, "joint"),
                            )
                        ),
                    ),
                    dataclasses.replace(
                        joint,
                        uniform_every=4,
                        phases=(
                            config.Phase(0, "uniform"),
                            config.Phase(2, "joint"),
                        ),
                    ),
                )
            ),
            (
                "`selection.stop_when_passed` compares",
                {
                    "selection": dataclasses.replace(joint, stop_when_passed=2),
                    "reference": config.ReferenceConfig(sidecars=True),
                },
            ),
            (
                "needs `distribution.strategy` 'default' or",
                {
                    "cascade": config.CascadeConfig(hyper_batch_size=1280),
                    "distribution": config.DistributionConfig(strategy="tpu"),
                },
            ),
            (
                "`reference.projection` must be empty",
                {
                    "cascade": config.CascadeConfig(hyper_batch_size=1280),
                    "reference": config.ReferenceConfig(
                        sidecars=True, distillation_weight=1.0, projection=8
                    ),
                },
            ),
            (
                "so must the first reference",
                {
                    "selection": joint,
                    "reference": config.ReferenceConfig(model="teacher"),
                },
            ),
        ):
            with (
                self.subTest(message),
                self.assertRaisesRegex(ValueError, message),
            ):
                config.TrainConfig(bootstrap=once, **settings)
        phases = (config.Phase(method="uniform"), config.Phase(start=4))
        config.TrainConfig(
            bootstrap=once,
            selection=config.SelectionConfig(
                method="joint", batch_size=16, phases=phases
            ),
        )

    def test_curated_rows_beside_a_selection(self):
        for message, settings in (
            ("must be less than the super-batch", {"curated_rows": 64}),
            ("must divide the super-batch", {"curated_rows": 24}),
            ("less the curated rows.*c=16", {"curated_rows": 16}),
        ):
            with (
                self.subTest(message),
                self.assertRaisesRegex(ValueError, message),
            ):
                config.TrainConfig(
                    data=config.DataConfig(
                        super_batch_size=64, curated=("c",), **settings
                    ),
                    selection=config.SelectionConfig(
                        method="joint",
                        batch_size=16,
                        num_chunks=4,
                        criterion="hard_learner",
                    ),
                )
        with self.assertRaisesRegex(ValueError, "can't be combined.*manifest"):
            config.DataConfig(curated=("c",), manifest="m")

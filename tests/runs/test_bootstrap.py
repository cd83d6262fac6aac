"""A run that renews its reference from its own learner."""

import contextlib
import dataclasses
import io
import os
import pathlib
import tempfile
from unittest import mock

import numpy as np
import oracles
import pytest
import run_server
import subprocesses
import tensorflow as tf
import tiny

from jest_tf import config, models
from jest_tf.cli import dry_run
from jest_tf.data import pipeline, sidecars, stored_stages, stores, tokenizers
from jest_tf.data.sidecars import embed, recognition
from jest_tf.runs import bootstrap, checkpoints, directory, inputs

STEPS, RENEW_AT, HYPER, BATCH, CURATED = 24, (8, 16), 24, 12, 4
SETTINGS = (
    *("selection.stages=none", f"selection.batch_size={BATCH}"),
    *("selection.stages.0.candidates=3", "selection.stages.0.num_chunks=2"),
    "selection.stages.0.embeddings=stored",
    "selection.stages.0.criterion=easy_reference",
    *("bootstrap.renew_at=8,16", "bootstrap.shares=0.7,0.5"),
    *("bootstrap.clean_start=true", f"data.curated_rows={CURATED}"),
    *("optimizer.ema=0.8", "evaluation.log_every_steps=1"),
)


@pytest.mark.slow
class RunTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
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
        cls.run_in(cls.unbroken, kept=9)
        cls.config = directory.load_config(cls.unbroken, trust=True)
        cls.store = stores.open_stores(cls.config.data)

    @classmethod
    def run_in(cls, workdir, *overrides, ended=0, **options):
        code = cls.server.run(workdir, *cls.settings, *overrides, **options)
        said = pathlib.Path(f"{workdir}.log").read_text("utf-8")
        if code != ended:
            raise AssertionError(f"ended with {code}: {said}")
        return said

    def test_the_rows_of_every_segment_are_the_streams(self):
        """All are curated at first; then 8 of 24 records are chosen."""
        drawn = tiny.read_lines(self.unbroken, directory.DRAWS_FILE)
        drawn = {row["step"]: row["ids"] for row in drawn}
        self.assertLen(drawn, STEPS)
        for start, stop in zip((0, *RENEW_AT), (*RENEW_AT, STEPS), strict=True):
            found = rows = None
            if start:
                found, rows = bootstrap.sidecars_at(
                    self.config, self.store, self.unbroken, start
                )
            stream = pipeline.super_batches(
                self.store,
                plan=config.plan(
                    self.config.selection,
                    curated_rows=CURATED if start else BATCH,
                ),
                loss="sigmoid",
                seed=self.config.seed,
                tokenizer=tokenizers.WordPieceTokenizer(tiny.VOCABULARY, 3),
                image_size=tiny.IMAGE_SIZE,
                start_step=start,
                reference=pipeline.ReferenceInputs(found),
                options=pipeline.Options(
                    num_curated=1,
                    rows=rows,
                    faults=pipeline.FaultLog(None, 1.0),
                ),
            )
            for step, batch in enumerate(stream.take(stop - start), start + 1):
                ids = [*batch["id"].numpy()]
                ids += [*batch.get("curated", {"id": ids[:0]})["id"]]
                self.assertEqual(drawn[step], [int(id_) for id_ in ids])

    def test_a_dry_run_counts_what_the_run_does(self):
        with mock.patch.object(
            models, "build_learner", run_server.build_learner
        ):
            said = dry_run.report(self.config, self.unbroken)
        for step in RENEW_AT:
            rows = bootstrap.embedded_rows(self.config, self.store, step)
            self.assertIn(f"{rows.sum()} records after step {step}", said)
        last = tiny.read_lines(self.unbroken, directory.METRICS_FILE)[-1]
        counts = [
            f"{last[f'examples/{name}']:,} examples {name}"
            for name in ("drawn", "scored", "trained", "offered")
        ]
        for line in (
            f"plan +steps 0 to {RENEW_AT[0] - 1}, no reference yet",
            f"trained +{BATCH} curated rows",
            "stage 0, stored +24 rows, the hyper-batch, -> 8, joint by easy_",
            "trained +8 chosen rows and 4 curated",
            f"steps +{STEPS}: {', '.join(counts)}\n",
        ):
            self.assertRegex(said, f"(?m)^{line}")

    def test_a_reference_is_the_learner_of_its_step(self):
        for step in RENEW_AT:
            found = self.sidecars_of(self.unbroken, step)
            state = checkpoints.read(self.unbroken, step)
            (temperature,) = (  # the moving average
                value
                for name, value in state.items()
                if name.endswith("log_temperature_average")
            )
            self.assertAllClose(found.scale, np.exp(temperature), rtol=1e-6)
            rows = bootstrap.embedded_rows(self.config, self.store, step)
            damaged = {62, 65}
            self.assertEqual(
                set(np.flatnonzero(found.valid(np.arange(78)))),
                set(np.flatnonzero(rows)) - damaged,
            )

    def test_a_renewal_records_the_share_of_the_pool_that_is_recognised(self):
        for renewal in bootstrap.renewals(self.config, self.unbroken):
            rows = bootstrap.embedded_rows(
                self.config, self.store, renewal.step
            )
            rows[68:] = False  # the curated rows
            share = recognition.recognised_share(
                self.sidecars_of(self.unbroken, renewal.step),
                self.store,
                rows,
                self.config.seed,
            )
            self.assertAllClose(renewal.recognised, share, atol=1e-5)

    def test_every_renewal_embeds_rows_of_its_own(self):
        first, second = (
            bootstrap.embedded_rows(self.config, self.store, step)[:68]
            for step in RENEW_AT
        )
        for number, (rows, share) in enumerate(
            zip((first, second), (0.7, 0.5), strict=True)
        ):
            salt = int.from_bytes(b"renew", "big") + number
            seed = self.config.seed
            hashes = [oracles.position_hash(seed, i, salt) for i in range(68)]
            self.assertAllEqual(
                rows, [value < share * 2**64 for value in hashes]
            )
        self.assertTrue((second & ~first).any())  # they are not nested

    def sidecars_of(self, workdir, step):
        """Those of a renewal, kept or not."""
        folder = os.path.join(workdir, "references", f"step-{step:09d}")
        return sidecars.Sidecars(self.store, folder)

    def test_a_reference_that_a_checkpoint_needs_is_not_deleted(self):
        workdir = os.path.join(self.folder, "gone")
        self.run_in(workdir, "steps=20", kept=1)
        folder = pathlib.Path(workdir, "references")
        found = [
            len([*folder.glob(f"step-{step:09d}/*sidecar*")])
            for step in RENEW_AT
        ]
        *_, last = bootstrap.renewals(self.config, workdir)
        self.assertEqual(found, [0, 3] if last.kept else [3, 0])
        # A record that is needed and gone is named.
        os.remove(folder / "step-000000016" / directory.RENEWAL_FILE)
        os.remove(os.path.join(workdir, directory.WEIGHTS_FILE))
        said = self.run_in(workdir, "steps=20", ended=1)
        self.assertIn("must have the reference of the steps after 16", said)


class SettingsTest(tf.test.TestCase):
    def test_a_learner_that_recognises_less_does_not_become_the_reference(self):
        """After two such renewals in succession nothing more is embedded."""
        stage = config.Stage(2, "stored", criterion="easy_reference")
        recipe = config.TrainConfig(
            steps=9,
            selection=config.SelectionConfig(32, stages=(stage,)),
            reference=config.ReferenceConfig("somewhere"),
            bootstrap=config.BootstrapConfig((1, 2, 3, 4)),
        )
        run, store = mock.Mock(config=recipe), mock.MagicMock()
        for first, shares, kept in (
            (None, [0.3, 0.2, 0.1], [True, False, False, False]),
            (None, [0.3, 0.2, 0.3, 0.4], [True, False, True, True]),
            (
                "given",
                [0.3, 0.4, 0.4, 0.4, 0.5, 0.6],
                [False, True, True, True],
            ),
        ):
            workdir = tempfile.mkdtemp(dir=self.get_temp_dir())
            cost = bootstrap.Cost(5, 5, 1, 0.0)
            with (
                mock.patch.multiple(
                    bootstrap,
                    embed_records=mock.Mock(return_value=cost),
                    embedded_rows=mock.Mock(return_value=np.ones(5, bool)),
                    sidecars_lib=mock.DEFAULT,
                    _delete_old=mock.DEFAULT,
                ),
                mock.patch.object(
                    *(recognition, "recognised_share"), side_effect=shares
                ),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                for step in recipe.bootstrap.renew_at:
                    bootstrap.renew(run, workdir, store, step, first)
            done = bootstrap.renewals(recipe, workdir)
            self.assertEqual([renewal.kept for renewal in done], kept)
            # Steps choose by the last that was kept.
            for step in (3, 4):
                kept_at = [n + 1 for n, is_kept in enumerate(kept) if is_kept]
                found = bootstrap._last_kept(recipe, workdir, step)
                self.assertEqual(
                    found.step, max(n for n in kept_at if n <= step)
                )
            gives_up = kept[1:3] == [False, False]
            self.assertEqual(done[3].images, 0 if gives_up else 5)

    def test_flops_of_stored_stages_follow_stages_and_renewals(self):
        def renewal(step, kept):
            return bootstrap.Renewal(step, 0, 0, 0, 0.0, 0.5, kept)

        stages = (
            config.Stage(2, "stored", criterion="easy_reference", last_step=14),
            config.Stage(3, "stored", criterion="easy_reference"),
        )
        recipe = config.TrainConfig(
            steps=40,
            selection=config.SelectionConfig(32, stages=stages),
            reference=config.ReferenceConfig("somewhere"),
            bootstrap=config.BootstrapConfig((10, 20)),
        )

        def both(width):
            return stored_stages.flops(recipe.plan[0], width)

        def second(width):
            here = config.segment_at(recipe.plan, 15)
            return stored_stages.flops(here, width)

        first, learner = 768, 64
        for kept, step, expected in (
            ((), 9, 9 * both(first)),
            # The renewal at 10 is kept: its steps draw by the learner.
            ((True,), 12, 10 * both(first) + 2 * both(learner)),
            ((False,), 12, 12 * both(first)),
            (
                (False, True),
                25,
                15 * both(first) + 5 * second(first) + 5 * second(learner),
            ),
        ):
            done = [
                renewal(10 * (n + 1), is_kept) for n, is_kept in enumerate(kept)
            ]
            found = bootstrap.stored_flops(recipe, done, first, learner, step)
            self.assertEqual(found, expected)
        # Without a first reference nothing is scored before the renewal.
        alone = dataclasses.replace(recipe, reference=config.ReferenceConfig())
        done = [renewal(10, True)]
        found = bootstrap.stored_flops(alone, done, 0, learner, 12)
        self.assertEqual(found, 2 * both(learner))

    def test_a_renewal_of_too_few_records_is_refused_at_once(self):
        folder = self.get_temp_dir()
        recipe = run_server.recipe(
            folder,
            (
                *SETTINGS,
                f"data.train={tiny.write_shard(f'{folder}/pool', 60)}",
                f"data.curated={tiny.write_shard(f'{folder}/curated', 9)}",
            ),
        )
        for share, refused in ((0.9, False), (0.15, True), (0.001, True)):
            renewals = dataclasses.replace(
                recipe.bootstrap, shares=(0.9, share)
            )
            run = dataclasses.replace(recipe, bootstrap=renewals)
            context = contextlib.nullcontext()
            if refused:
                context = self.assertRaisesRegex(
                    ValueError, "A hyper-batch, .*the renewal after 16 steps"
                )
            with context, contextlib.redirect_stderr(io.StringIO()):
                inputs.open_sources(run, tf.distribute.get_strategy())

    def test_embeddings_of_a_disk_that_was_away_are_not_kept(self):
        run = mock.Mock()
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

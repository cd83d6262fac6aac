"""A run in its directory: divergence, what may change, mistakes, cleaning."""

import contextlib
import gc
import io
import os
import pathlib
import re
import shutil
import sys
import tempfile
import types
from unittest import mock

import keras
import numpy as np
import pytest
import run_server
import shard_files
import tensorflow as tf
import tiny
from keras import ops

from jest_tf import config, losses, models, runs
from jest_tf.config import overrides
from jest_tf.data import pipeline, reader, stores, tokenizers
from jest_tf.data.sidecars import embed
from jest_tf.models import reference
from jest_tf.runs import (
    bootstrap,
    checkpoints,
    directory,
    inputs,
    loading,
    provenance,
)

ROOT = pathlib.Path(__file__).parents[2]
MRR = "eval/a/image_to_text/mrr"
# The super-batch that some of these tests poison.
BAD = 7


def twice_the_loss():
    def train(embeddings, **options):
        return 2.0 * losses.sigmoid_loss(embeddings, **options)

    return losses.sigmoid()._replace(train=train)


class Trap(keras.layers.Layer):
    """Breaks at embeddings that are all alike, as those of white images."""

    def call(self, values, training=False):
        same = ops.all(values == values[:1])
        return ops.where(same, np.nan, values) if training else values


def poisoned(super_batches):
    """The stream with white images in super-batch `BAD`."""

    def stream(*arguments, start_step=0, **options):
        def whiten(number, batch):
            image = batch["image"]
            white = tf.fill(tf.shape(image), tf.constant(255, tf.uint8))
            bad = tf.equal(number, BAD)
            return {**batch, "image": tf.where(bad, white, image)}

        dataset = super_batches(*arguments, start_step=start_step, **options)
        return dataset.enumerate(start_step).map(whiten)

    return stream


class RunsTestCase(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.shard = tiny.write_shard(cls.workdir("a.tfrecord"))

    @classmethod
    def recipe(cls, *overrides):
        quick = (
            *("steps=4", "evaluation.every_steps=none"),
            f"data.train={cls.shard}",
        )
        return run_server.recipe(cls.folder, (*quick, *overrides))

    @classmethod
    def train(cls, name, *overrides, build=run_server.build_learner, **options):
        """Runs in the directory `name`; returns what was said."""
        with (
            mock.patch.object(models, "build_learner", build),
            contextlib.redirect_stderr(io.StringIO()) as said,
        ):
            runs.train(cls.recipe(*overrides), cls.workdir(name), **options)
        return said.getvalue()

    @classmethod
    def workdir(cls, name):
        return os.path.join(cls.folder, name)

    def read(self, name, file):
        return directory.read(self.workdir(name), file)


@pytest.mark.slow
class DivergenceTest(RunsTestCase):
    def test_a_loss_that_is_not_finite_stops_with_what_it_saw(self):
        def build(config, vocabulary_size):
            return tiny.learner(config.seed, extra=[Trap()])

        stream = poisoned(pipeline.super_batches)
        with (
            mock.patch.object(pipeline, "super_batches", stream),
            self.assertRaises(ValueError) as error,
        ):
            self.train("stop", "steps=12", build=build)
        message = str(error.exception)
        self.assertRegex(
            message,
            r"^Step 8 \(super-batch 7\): expected finite numbers. Received: "
            r"loss, .* and \d+ more not finite; loss nan, scale \S+, bias \S+, "
            r"learning rate \S+\. Its ids are in .*not_finite.json; .*",
        )
        self.assertIn("a lower `optimizer.learning_rate`", message)
        case = self.read("stop", directory.NOT_FINITE_FILE)
        self.assertEqual(case["super_batch"], BAD)
        self.assertEqual(case["step"], BAD + 1)
        self.assertEqual(case["loss"], "nan")
        self.assertLen(case["ids"], 12)
        # Nothing is left of the step.
        self.assertEqual(checkpoints.saved_steps(self.workdir("stop")), [4])
        rows = tiny.read_lines(self.workdir("stop"), directory.METRICS_FILE)
        self.assertEqual([row["step"] for row in rows], [5])


class DirectoryTest(RunsTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.train("done")

    @classmethod
    def train(cls, *arguments, **options):
        with tiny.eagerly():
            return super().train(*arguments, **options)

    def copy(self, name):
        """The directory of a finished run, under another name."""
        shutil.copytree(self.workdir("done"), self.workdir(name))

    def test_git_never_locks_the_index_of_its_user(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        with open(f"{folder}/git", "w") as file:
            file.write(f'#!/bin/sh\necho "$@" >> {folder}/log')
        os.chmod(file.name, 0o755)
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        with mock.patch.dict(os.environ, PATH=path):
            provenance._versions()
        calls = pathlib.Path(folder, "log").read_text().splitlines()
        self.assertIn("status", calls[-1])
        for call in calls:
            self.assertStartsWith(call, "--no-optional-locks ")

    def test_when_it_saves_may_change_what_it_computes_may_not(self):
        self.copy("other")
        versions = self.read("other", "versions.json")
        versions["versions"]["keras"] = "1.2.3"
        directory.write(self.workdir("other"), "versions.json", versions)
        folder = self.workdir("other")
        left = [
            f"{folder}/.config.json.partial",
            f"{folder}/.vocab.txt.partial",
            f"{folder}/checkpoints/step-000000008.partial/state.index",
        ]
        for path in left:
            tf.io.write_file(path, "half")
        said = self.train("other", "checkpoint.every_steps=3")
        self.assertIn("already finished, 4 steps", said)
        self.assertNotIn("stage 0", said)
        self.assertIn(
            f"this run began with keras 1.2.3, now {keras.__version__}", said
        )
        found = self.read("other", "config.json")["checkpoint"]
        self.assertEqual(found, {"every_steps": 3})
        # Leftovers of a killed process are deleted.
        self.assertEmpty([path for path in left if os.path.exists(path)])
        with self.assertRaisesRegex(ValueError, "Expected seed=5.*seed=6"):
            self.train("other", "seed=6")

    @pytest.mark.slow
    def test_records_lost_in_damaged_shards_count_as_unreadable(self):
        shard = tiny.write_shard(self.workdir("cut.tfrecord"))
        os.truncate(shard, os.path.getsize(shard) - 30)
        cut = f"data.train={shard}"
        with self.assertRaisesRegex(
            ValueError, "5.00% are lost in damaged shards, .*at most 1.00%"
        ):
            self.train("lost", cut)
        self.enterContext(mock.patch.object(reader, "MAX_FAULT_RATE", 0.2))
        for _ in range(2):
            said = self.train("lost", cut)
            self.assertRegex(
                said.splitlines()[-1],
                "finished, 4 steps.*; lost in damaged shards: about 1 records;",
            )

    def test_no_file_of_a_run_stays_open(self):
        self.copy("closed")
        gc.disable()  # it would close some files late
        self.addCleanup(gc.enable)
        self.train("closed")
        opened = (
            os.path.realpath(f"/proc/self/fd/{number}")
            for number in os.listdir("/proc/self/fd")
        )
        folder = f"{os.path.realpath(self.workdir('closed'))}/"
        self.assertEmpty([path for path in opened if path.startswith(folder)])

    def test_only_the_six_settings_of_the_page_may_change(self):
        (page,) = re.findall(
            r"Only these may change: (.*?)\. ",
            (ROOT / "docs/storage.md").read_text(encoding="utf-8"),
            re.DOTALL,
        )
        may_change = tuple(re.findall("`(.*?)`", page))
        self.assertLen(may_change, 6)
        self.copy("same")
        for setting in overrides.settings(config.TrainConfig):
            changed = [(setting.path, 2, 1)]
            with (
                self.subTest(setting.path),
                mock.patch.object(provenance, "_differences") as differences,
            ):
                differences.return_value = changed
                context = contextlib.nullcontext()
                if not setting.path.startswith(may_change):
                    context = self.assertRaisesRegex(
                        ValueError, f"Expected {setting.path}=1, .*=2"
                    )
                with context:
                    provenance.check_settings(
                        self.workdir("same"), self.recipe()
                    )

    def test_a_run_refused_before_its_first_step_leaves_no_settings(self):
        bad = "selection.batch_size=5"
        refuse = mock.Mock(side_effect=ValueError("too large"))
        with self.assertRaisesRegex(ValueError, "too large"):
            self.train("refused", bad, build=refuse)
        folder = self.workdir("refused")
        self.assertEmpty(
            [name for name in os.listdir(folder) if not name.startswith(".")]
        )
        shutil.rmtree(folder)
        self.copy("refused")
        # A run that has begun keeps its settings, whatever it is refused for.
        with self.assertRaisesRegex(ValueError, "other settings"):
            self.train("refused", bad)
        only = r"Expected selection\.stages\.0\.gain=1\.0, .*\.0\.gain=2\.0;"
        with self.assertRaisesRegex(ValueError, only):
            self.train("refused", "selection.stages.0.gain=2")
        with self.assertRaisesRegex(
            ValueError, "steps=7; .* --trust --extend 3`$"
        ):
            self.train("refused", "steps=7")
        with self.assertRaisesRegex(ValueError, "gone"):
            with provenance.claimed(folder, self.recipe()):
                raise ValueError("gone")
        self.assertEqual(self.read("refused", "config.json")["steps"], 4)

    def test_the_average_of_the_weights_is_evaluated_and_kept(self):
        self.copy("average")
        workdir = self.workdir("average")

        def load(step=None):
            with mock.patch.object(
                models, "build_learner", run_server.build_learner
            ):
                return loading.load(workdir, step, trust=True).learner

        last = checkpoints.read(workdir, 4)
        average, raw = (
            next(last[name] for name in last if name.endswith(end))
            for end in ("log_temperature_average", "/log_temperature")
        )
        final = load()
        self.assertNotEqual(average, raw)
        self.assertEqual(final.log_temperature.numpy(), average)
        # Also after a process that ended before it wrote the weights.
        os.remove(os.path.join(workdir, directory.WEIGHTS_FILE))
        self.train("average")
        for again in (load(), load(4)):
            self.assertAllClose(again.get_weights(), final.get_weights(), 0, 0)

    def test_weights_that_towers_draw_by_tensorflow_follow_the_seed(self):
        drawn = []

        def build(config, vocabulary_size):
            drawn.append(tf.random.normal([3]))
            raise ValueError("enough")

        for seed in (3, 3, 4):
            with self.assertRaisesRegex(ValueError, "enough"):
                self.train("drawn", f"seed={seed}", build=build)
        first, same, other = drawn
        self.assertAllEqual(first, same)
        self.assertNotAllClose(first, other)

    @pytest.mark.slow
    def test_an_extended_run_equals_a_longer_one(self):
        """With a schedule that begins anew; a constant rate continues."""
        for name, anew in (
            ("constant", "goes on at 0.05"),
            ("cosine", "begins anew: 2 steps of warm-up to 0.05, then cosine"),
        ):
            schedule = f"optimizer.schedule={name}"
            short, whole = f"extended_{name}", f"whole_{name}"
            restarts = [4] * (name == "cosine")
            told = mock.Mock(return_value=restarts)
            with mock.patch.object(directory, "restarts", told):
                self.train(whole, "steps=8", schedule)
            self.train(short, "steps=4", schedule)
            with self.assertRaisesRegex(ValueError, "towers=.*`trust=True`"):
                runs.extend(self.workdir(short), 4)
            with (
                mock.patch.object(
                    models, "build_learner", run_server.build_learner
                ),
                contextlib.redirect_stderr(io.StringIO()) as said,
                tiny.eagerly(),
            ):
                runs.extend(self.workdir(short), 4, trust=True)
            self.assertIn(
                f"extended from 4 to 8 steps; the learning rate {anew}\n",
                said.getvalue(),
            )
            self.assertEqual(
                *(self.read(one, "config.json") for one in (short, whole))
            )
            extended, unbroken = (
                checkpoints.read(self.workdir(one), 8) for one in (short, whole)
            )
            self.assertEqual(set(extended), set(unbroken))
            for name, value in unbroken.items():
                if name.startswith(("model/", "optimizer/")):
                    self.assertAllEqual(extended[name], value, name)
        with self.assertRaisesRegex(ValueError, "warmup_steps=2`.*: 2"):
            runs.extend(self.workdir("extended_cosine"), 2, trust=True)
        # Other shards are found before the weights are removed.
        workdir = self.workdir("extended_constant")
        data = directory.read(workdir, directory.DATA_FILE)
        data["shards"][0][1] = "another stamp"
        directory.write(workdir, directory.DATA_FILE, data)
        with self.assertRaisesRegex(ValueError, "of version another stamp"):
            runs.extend(workdir, 4, trust=True)
        self.assertTrue(directory.has(workdir, directory.WEIGHTS_FILE))

    @pytest.mark.slow
    def test_hooks_of_a_recipe(self):
        logged = []
        service = types.ModuleType("wandb")

        def init(dir, config):
            self.assertEqual(dir, self.workdir("hooks"))
            self.assertEqual(config["steps"], 4)
            return types.SimpleNamespace(log=logged.append)

        service.init = init
        with mock.patch.dict(sys.modules, wandb=service):
            self.train(
                "hooks",
                "model.loss=test_run:twice_the_loss",
                "callbacks=examples.callbacks:weights_and_biases",
            )
        steps = [row for row in logged if "loss" in row]
        self.assertLen(steps, 4)
        self.assertAllGreater([row["loss"] for row in steps], 0.0)
        (row,) = tiny.read_lines(self.workdir("hooks"), "evaluation.jsonl")
        found = [row[MRR] for row in logged if MRR in row]
        self.assertEqual(found, [row[MRR]])
        hooked, plain = (
            tiny.read_lines(self.workdir(name), "metrics.jsonl")[0]
            for name in ("hooks", "done")
        )
        # Other gradients from the second step on.
        self.assertAllClose(
            hooked["train/loss"], 2 * plain["train/loss"], rtol=0.2
        )


class InputsTest(RunsTestCase):
    """Checks and messages before the first step."""

    BY_REFERENCE = "selection.stages.0.criterion=learnability"
    UNIFORM = "selection.stages=none"

    def open(self, *overrides, teacher=None):
        """Opens the inputs of a run; returns them and what was said."""
        recipe, load = self.recipe(*overrides), mock.Mock(return_value=teacher)
        with (
            contextlib.redirect_stderr(io.StringIO()) as said,
            mock.patch.multiple(
                loading, load=load, check_model=mock.DEFAULT
            ) as patched,
        ):
            sources = inputs.open_sources(recipe, tf.distribute.get_strategy())
        self.assertEqual(load.called, patched["check_model"].called)
        self.opened = load.called
        return sources, said.getvalue()

    def teacher(self, *overrides):
        """A reference of a run with these settings."""
        return reference.Run(
            self.recipe(*overrides), None, tiny.learner(), "teacher", None
        )

    def test_a_reference_is_opened_only_where_it_is_used(self):
        named = "reference.model=teacher"
        for settings, expected in (
            ([self.BY_REFERENCE], True),
            ([self.UNIFORM, "reference.distillation_weight=1"], True),
            ([self.UNIFORM, "model.false_negatives=reference"], True),
            ([self.UNIFORM], False),
            ([], False),  # chosen by the learner alone
        ):
            self.open(named, *settings, teacher=self.teacher())
            self.assertEqual(self.opened, expected, settings)

    def test_a_run_is_not_its_own_reference(self):
        workdir = self.workdir("teacher")
        distils = "reference.distillation_weight=1"
        for name in (workdir, os.path.relpath(workdir)):
            named = f"reference.model={name}"
            for settings, way_out in (
                ([self.BY_REFERENCE], "selection.stages=none`"),
                (
                    [self.UNIFORM, distils],
                    "selection.stages=none reference.distillation_weight=0`",
                ),
                (
                    [self.UNIFORM, "model.false_negatives=reference"],
                    "selection.stages=none model.false_negatives=equal_cap",
                ),
            ):
                with self.assertRaisesRegex(
                    ValueError,
                    "`reference.model` must be another run .*`--set "
                    f"{way_out}.*Received: .*teacher' for",
                ):
                    loading.open_start(self.recipe(named, *settings), workdir)
            for settings in ([self.UNIFORM], []):
                loading.open_start(self.recipe(named, *settings), workdir)
        loading.open_start(self.recipe(self.BY_REFERENCE), ".")

    def test_what_does_not_suit_a_run_is_warned_of(self):
        by_name = "reference.model=teacher"
        seen = "was trained on every record of `data.train`, and"
        some = "was trained on every record of 1 of 2 shards of `data.train`"
        by_loss = "was trained with the softmax loss"
        repeats = "a super-batch of 21 rows is larger than the 20"
        chosen = [self.BY_REFERENCE]
        softmax = [self.UNIFORM, "model.loss=softmax"]
        other = tiny.write_shard(self.workdir("b.tfrecord"))
        for settings, of_teacher, said, expected in (
            (chosen, [self.UNIFORM], seen, True),
            ([*chosen, f"data.train={self.shard},{other}"], [self.UNIFORM])
            + (some, True),
            # Trained on what it chose, or on other records.
            (chosen, [], seen, False),
            (chosen, [self.UNIFORM, f"data.train={other}"], seen, False),
            (chosen, softmax, by_loss, True),
            ([*chosen, "selection.loss=softmax"], softmax, by_loss, False),
            # Of 20 records.
            (["selection.batch_size=7"], [], repeats, True),
            (["selection.batch_size=6"], [], repeats, False),
        ):
            teacher = self.teacher(*of_teacher)
            _, shown = self.open(by_name, *settings, teacher=teacher)
            self.assertEqual(f"{said}" in shown, expected, (settings, shown))
        for rows, expected in (("8", True), ("5", False)):
            _, shown = self.open(
                *(self.UNIFORM, "selection.batch_size=9"),
                f"data.curated={tiny.write_shard(self.workdir('c'), 6)}",
                f"data.curated_rows={rows}",
            )
            more = "8 curated rows in a batch are more than the 6 records"
            self.assertEqual(more in shown, expected)

    def test_a_run_goes_on_with_the_data_that_it_began_with(self):
        store = stores.open_store(self.shard)
        first, second = self.workdir("one"), self.workdir("two")
        for folder, weights in ((first, 2), (second, 3)):
            shard_files.write_manifest(store, folder, np.arange(20) % weights)
        for folder, dtype in (("a", "float32"), ("b", "float16")):
            for twin in (folder, folder * 2):
                tiny.write_sidecars(
                    self.shard, output=embed.Output(self.workdir(twin), dtype)
                )
        other = tiny.write_shard(self.workdir("d.tfrecord"), seed=1)
        by_sidecars = (self.BY_REFERENCE,)
        place = f"reference.sidecar_dir={self.folder}"
        for began, goes_on, message in (
            ([], [], None),
            ([], [f"data.train={other}"], "`data.train` must be .* shard a.tf"),
            (
                [f"data.manifest={first}"],
                [f"data.manifest={second}"],
                "`data.manifest` must be .* began with",
            ),
            (
                [*by_sidecars, f"{place}/a"],
                [*by_sidecars, f"{place}/b"],
                "dtype of the sidecars .* must be what the run ",
            ),
            # Sidecars that say the same, in another folder.
            ([*by_sidecars, f"{place}/a"], [*by_sidecars, f"{place}/aa"], None),
        ):
            workdir = self.enterContext(tempfile.TemporaryDirectory())
            provenance.record_data(workdir, self.open(*began)[0])
            sources, _ = self.open(*goes_on)
            if message is None:
                provenance.check_data(workdir, sources)
                continue
            with self.assertRaisesRegex(ValueError, message):
                provenance.check_data(workdir, sources)

    def test_curated_rows_need_neither_weights_nor_embeddings(self):
        """A manifest and a stored stage draw from the pool alone."""
        curated = tiny.write_shard(self.workdir("checked.tfrecord"), 6, seed=1)
        store, manifest = stores.open_store(self.shard), self.workdir("odd")
        shard_files.write_manifest(store, manifest, np.arange(20) % 2)
        output = embed.Output(self.workdir("of_pool"), "float32")
        tiny.write_sidecars(self.shard, output=output)
        settings = (
            *("selection.stages=none", "selection.stages.0.candidates=2"),
            "selection.stages.0.embeddings=stored",
            "selection.stages.0.criterion=easy_reference",
            "selection.stages.0.num_chunks=1",
            f"data.manifest={manifest}",
            f"reference.sidecar_dir={output.directory}",
        )
        tokenizer = tokenizers.WordPieceTokenizer(tiny.VOCABULARY, 4)
        found = []
        for more in (
            ["selection.batch_size=4"],
            [
                *("selection.batch_size=6", "data.curated_rows=2"),
                f"data.curated={curated}",
            ],
        ):
            sources, _ = self.open(*settings, *more)
            recipe = self.recipe(*settings, *more)
            funnel = inputs.funnel_at(recipe, sources, "", 0)
            batches = funnel.super_batches(tokenizer, tiny.IMAGE_SIZE)
            found.append([*batches.take(5).as_numpy_iterator()])
        alone, beside = found
        rows = np.concatenate([batch["id"] for batch in alone])
        self.assertAllEqual(rows % 2, np.ones(20))
        own = stores.open_store(curated).columns(["id"])["id"]
        for batch, other in zip(alone, beside, strict=True):
            self.assertAllEqual(batch["id"], other["id"])
            self.assertContainsSubset(other["curated"]["id"], own)
        live = *settings, *more, "selection.stages.0.embeddings=live"
        funnel = inputs.funnel_at(
            self.recipe(*live), self.open(*live)[0], "", 0
        )
        self.assertTrue(funnel.steps_need_reference)
        batch = funnel.super_batches(tokenizer, tiny.IMAGE_SIZE).element_spec
        names = set(batch) - {"curated", "reference_image", "reference_text"}
        self.assertLen(names, len(batch) - 3)
        self.assertEqual(names, set(batch["curated"]))
        # The loss uses the embeddings of all rows trained on.
        with self.assertRaisesRegex(ValueError, "No sidecar of .*checked.tf"):
            self.open(*settings, *more, "reference.similarity_weight=1")
        renewed = "bootstrap.renew_at=2", "bootstrap.shares=0.5"
        for loss, count in ([], 0), (["reference.similarity_weight=1"], 6):
            embedded = bootstrap.embedded_rows(
                self.recipe(*settings, *more, *renewed, *loss), sources.store, 2
            )
            self.assertAllEqual(embedded[:20:2], np.zeros(10))
            self.assertBetween(embedded[:20].sum(), 1, 9)
            self.assertEqual(embedded[20:].sum(), count)

    def test_shards_of_a_run_of_0_3_0_are_compared_by_name(self):
        workdir = self.workdir("old")
        sources, _ = self.open()
        provenance.record_data(workdir, sources)
        now = self.read("old", directory.DATA_FILE)
        before = {name: now[name] for name in now if name != "format"}
        for name, message in (("a.tfrecord", None), ("b.tfrecord", "shard b")):
            before["shards"] = [[name, "a stamp without checksums"]]
            directory.write(workdir, directory.DATA_FILE, before)
            with contextlib.redirect_stderr(io.StringIO()) as said:
                if message:
                    with self.assertRaisesRegex(ValueError, message):
                        provenance.check_data(workdir, sources)
                    continue
                provenance.check_data(workdir, sources)
            self.assertIn("is of version 0.3.0", said.getvalue())
            provenance.record_data(workdir, sources)
            self.assertEqual(self.read("old", directory.DATA_FILE), now)

    def test_which_records_are_clean_is_read_from_a_field(self):
        rows = [0, 3, 5]
        shard = tiny.write_shard(self.workdir("n"), noisy=rows)
        sources, _ = self.open(f"data.train={shard}", "data.noise_field=noise")
        ids = np.array([105, 100, 119, 101, 103])
        self.assertAllEqual(
            sources.clean(ids), [False, False, True, True, False]
        )
        self.assertIsNone(self.open(f"data.train={shard}")[0].clean)
        # Ids that repeat find no record.
        again = tiny.write_shard(self.workdir("again"), noisy=[1])
        words = f"data.train={shard},{again}", "data.noise_field=noise"
        sources, said = self.open(*words)
        self.assertIsNone(sources.clean)
        self.assertIn("share an `id`, but not their value", said)
        image = tf.io.encode_png(tf.zeros([2, 2, 3], tf.uint8)).numpy()
        values = ["", " ", 0, "0.0", "false", "False", 1, "true", "moved"]
        path = shard_files.write_shard(
            self.workdir("values"),
            [
                shard_files.serialize(
                    image=image, caption="a", id=row, noise=value
                )
                for row, value in enumerate(values)
            ],
        )
        sources, _ = self.open(f"data.train={path}", "data.noise_field=noise")
        self.assertAllEqual(
            sources.clean(np.arange(9)), [True] * 6 + [False] * 3
        )

    def test_a_reference_that_changes_nothing_is_said(self):
        _, said = self.open("selection.stages=none", "reference.model=nowhere")
        self.assertIn("the reference, 'nowhere', changes nothing", said)

    def test_a_projection_is_offered_where_widths_differ(self):
        learner = tiny.learner(dim=6)
        sources = mock.Mock(sidecars=mock.Mock(dim=3))
        distils = (
            "reference.model=somewhere",
            "reference.distillation_weight=1",
        )
        for projection in ("none", "6"):
            recipe = self.recipe(*distils, f"reference.projection={projection}")
            with self.assertRaisesRegex(ValueError, "`reference.projection=3`"):
                inputs.check_widths(recipe, sources, learner)
        recipe = self.recipe(*distils, "reference.projection=3")
        inputs.check_widths(recipe, sources, learner)
        inputs.check_widths(self.recipe(), sources, learner)

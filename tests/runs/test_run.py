"""A run in its directory: divergence, what may change, mistakes, cleaning."""

import contextlib
import functools
import glob
import io
import json
import os
import sys
import types
from unittest import mock

import keras
import numpy as np
import pytest
import run_server
import shard_files
import tensorflow as tf
import tiny

from examples import callbacks
from jest_tf import losses, models, runs
from jest_tf.data import pipeline, stores
from jest_tf.data.sidecars import embed
from jest_tf.models import reference
from jest_tf.runs import (
    checkpoints,
    directory,
    inputs,
    interruptions,
    loading,
    provenance,
)

MRR = "eval/a/image_to_text/mrr"
# The super-batch that some of these tests poison.
BAD = 7


@tf.custom_gradient
def break_gradient(values):
    return values, lambda gradient: gradient * np.nan


def twice_the_loss(embeddings, **options):
    return 2.0 * losses.sigmoid_loss(embeddings, **options)


class Trap(keras.layers.Layer):
    """Breaks at embeddings that are all the same, as those of white pictures.

    Args:
        where: what it breaks, "loss", "gradient" or "scores".
    """

    def __init__(self, where):
        super().__init__()
        self.where = where

    def call(self, values, training=False):
        same = tf.reduce_all(values == values[:1])
        if bool(training) == (self.where == "scores"):
            return values
        if self.where == "gradient":
            return tf.cond(
                same, lambda: break_gradient(values), lambda: 1.0 * values
            )
        return tf.where(same, np.nan, values)


def poisoned(super_batches):
    """The stream with white pictures in super-batch `BAD`."""

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
    def setUp(self):
        super().setUp()
        self.folder = self.get_temp_dir()
        tiny.write_shard(os.path.join(self.folder, "a.tfrecord"))

    def recipe(self, *overrides):
        shard = os.path.join(self.folder, "a.tfrecord")
        quick = (
            "steps=12",
            "evaluation.every_steps=none",
            f"data.train={shard}",
        )
        return run_server.recipe(self.folder, (*quick, *overrides))

    def train(self, name, *overrides, build=run_server.build_learner):
        """Runs in the directory `name`; returns what was said."""
        said = io.StringIO()
        with (
            mock.patch.object(models, "build_learner", build),
            contextlib.redirect_stderr(said),
        ):
            runs.train(self.recipe(*overrides), self.workdir(name))
        return said.getvalue()

    def workdir(self, name):
        return os.path.join(self.folder, name)

    def read(self, name, file):
        with open(os.path.join(self.workdir(name), file)) as opened:
            return json.load(opened)


@pytest.mark.slow
class DivergenceTest(RunsTestCase):
    def poison(self, where):
        """Trains with a trap; `where` it snaps."""

        def build(config, vocabulary_size):
            return tiny.learner(config.seed, extra=[Trap(where)])

        return build

    @contextlib.contextmanager
    def poisoned_stream(self):
        stream = poisoned(pipeline.super_batches)
        with mock.patch.object(pipeline, "super_batches", stream):
            yield

    def stopped(self, name, where, *overrides):
        with self.poisoned_stream(), self.assertRaises(ValueError) as error:
            self.train(name, *overrides, build=self.poison(where))
        return str(error.exception)

    def test_a_loss_that_is_not_finite_stops_with_what_it_saw(self):
        message = self.stopped("stop", "loss")
        self.assertRegex(
            message,
            r"^Step 8 \(super-batch 7\): expected finite numbers. Received: "
            r"loss, .* and \d+ more not finite; loss nan, scale \S+, bias \S+, "
            r"learning rate \S+\. Its ids are in .*not_finite.json; .*",
        )
        self.assertIn("goes on from step 4 without it", message)
        case = self.read("stop", directory.NOT_FINITE_FILE)
        self.assertEqual(case["super_batches"], [BAD])
        self.assertEqual(case["step"], BAD + 1)
        self.assertEqual(case["loss"], "nan")
        self.assertLen(case["ids"][0], 12)
        # Nothing is left of the step.
        self.assertEqual(checkpoints.saved_steps(self.workdir("stop")), [4])
        rows = tiny.read_lines(self.workdir("stop"), directory.METRICS_FILE)
        self.assertEqual([row["step"] for row in rows], [5])

    def test_a_rollback_equals_a_run_that_never_met_the_super_batch(self):
        rollback = "checkpoint.on_non_finite=rollback"
        with self.poisoned_stream():
            # A trace ends with the step that fails, and begins anew.
            traced = "evaluation.profile=6,9"
            said = self.train(
                "rolled", rollback, traced, build=self.poison("loss")
            )
        self.assertIn("Leaving it out and going on from step 4", said)
        (case,) = self.read("rolled", directory.SKIPPED_FILE)
        self.assertEqual(case["super_batches"], [BAD])
        os.makedirs(self.workdir("never"))
        interruptions.Skipped(self.workdir("never")).add(
            {"super_batches": [BAD]}
        )
        self.train("never", build=self.poison("loss"))
        for name in (directory.METRICS_FILE, directory.DRAWS_FILE):
            rolled, never = (
                [
                    {k: v for k, v in row.items() if "train" in k or k == "ids"}
                    for row in tiny.read_lines(self.workdir(one), name)
                ]
                for one in ("rolled", "never")
            )
            self.assertEqual(rolled, never)
            self.assertLen(rolled, 3)

    def test_stopped_at_first_it_may_be_rolled_back_later(self):
        self.stopped("later", "loss")
        with self.poisoned_stream():
            said = self.train(
                "later",
                "checkpoint.on_non_finite=rollback",
                build=self.poison("loss"),
            )
        self.assertIn("steps 4 to 12", said)
        self.assertEqual(
            checkpoints.saved_steps(self.workdir("later"))[-1:], [12]
        )

    def test_the_gradient_and_the_scores_are_looked_at_too(self):
        for where, names in (
            ("gradient", "dense.*"),
            ("scores", "select/score, select/learner_loss_kept"),
        ):
            with self.subTest(where):
                message = self.stopped(where, where)
                self.assertRegex(
                    message, rf"^Step 8 \(super-batch 7\): .*{names} not finite"
                )
                self.assertEqual(
                    checkpoints.saved_steps(self.workdir(where)), [4]
                )

    def test_of_several_steps_at_a_time_all_are_left_out(self):
        with self.poisoned_stream():
            self.train(
                "several",
                "checkpoint.on_non_finite=rollback",
                "distribution.steps_per_execution=2",
                build=self.poison("loss"),
            )
        (case,) = self.read("several", directory.SKIPPED_FILE)
        self.assertEqual(case["super_batches"], [6, 7])
        rows = tiny.read_lines(self.workdir("several"), directory.METRICS_FILE)
        # What is due after 5 steps comes with the sixth.
        self.assertEqual([row["step"] for row in rows], [6, 10, 12])
        self.assertEqual(
            checkpoints.saved_steps(self.workdir("several")), [8, 12]
        )

    def test_a_learner_that_has_diverged_stops_after_three_of_them(self):
        def build(config, vocabulary_size):
            learner = tiny.learner(config.seed)
            learner.bias.assign(np.inf)
            return learner

        with self.assertRaisesRegex(
            ValueError, r"super-batch 3\).*leaving out the ones before"
        ):
            self.train(
                "diverged", "checkpoint.on_non_finite=rollback", build=build
            )
        cases = self.read("diverged", directory.SKIPPED_FILE)
        self.assertEqual(
            [one["super_batches"] for one in cases], [[0], [1], [2]]
        )


class DirectoryTest(RunsTestCase):
    @pytest.mark.slow
    def test_weights_that_towers_draw_by_tensorflow_follow_the_seed(self):
        drawn = []

        def build(config, vocabulary_size):
            drawn.append(tf.random.normal([3]))
            return run_server.build_learner(config, vocabulary_size)

        for name, seed in (("one", 3), ("same", 3), ("other", 4)):
            uniform = "steps=3", "selection.batch_size=none", f"seed={seed}"
            self.train(name, *uniform, build=build)
        one, same, other = drawn
        self.assertAllEqual(one, same)
        self.assertNotAllClose(one, other)

    def test_when_it_saves_may_change_what_it_computes_may_not(self):
        said = self.train("run", "steps=4")
        # `checkpoint.keep_best`, which is not the first measure.
        lines = [one for one in said.splitlines() if "indexing" not in one]
        self.assertRegex(lines[0], "run: strategy default on CPU:0")
        self.assertRegex(said, rf"run: finished, 4 steps, .*; {MRR} 0\.\d+; ne")
        self.train("run", "steps=4", "checkpoint.keep=1")
        self.assertEqual(
            self.read("run", "config.json")["checkpoint"]["keep"], 1
        )
        with self.assertRaisesRegex(ValueError, "Expected seed=5.*seed=6"):
            self.train("run", "steps=4", "seed=6")

    def test_other_data_than_at_the_beginning_is_refused(self):
        shard = os.path.join(self.folder, "a.tfrecord")
        self.train("run", "steps=4")
        tiny.write_shard(shard, seed=1)
        with self.assertRaisesRegex(
            ValueError, "`data.train` must be .* shard a.tfrecord of version"
        ):
            self.train("run", "steps=4")
        tiny.write_shard(shard)
        self.train("run", "steps=4")

    def test_another_manifest_than_at_the_beginning_is_refused(self):
        store = stores.open_store(os.path.join(self.folder, "a.tfrecord"))
        folder = os.path.join(self.folder, "manifest")
        setting = f"data.manifest={folder}"
        shard_files.write_manifest(store, folder, np.arange(20) % 2)
        quick = ("steps=4", "data.super_batch_size=8", "selection.batch_size=4")
        self.train("run", *quick, setting, "evaluation.log_ids=true")
        drawn = tiny.read_lines(self.workdir("run"), "draws.jsonl")
        ids = {key for line in drawn for key in line["ids"]}
        self.assertAllEqual([key % 2 for key in ids], [1] * len(ids))
        before = self.read("run", "data.json")["manifest"]
        shard_files.write_manifest(store, folder, np.arange(20) % 3)
        with self.assertRaisesRegex(
            ValueError, f"`data.manifest` must be .* began with, {before}."
        ):
            self.train("run", *quick, setting, "evaluation.log_ids=true")

    def test_a_run_may_go_on_under_another_strategy(self):
        before = self.recipe("steps=4")
        after = self.recipe("steps=4", "distribution.strategy=mirrored")
        folder = self.workdir("moved")
        with provenance.claimed(folder, before):
            pass
        with provenance.claimed(folder, after):
            pass
        self.assertEqual(
            self.read("moved", "config.json")["distribution"]["strategy"],
            "mirrored",
        )

    def test_a_run_refused_before_its_first_step_leaves_no_settings(self):
        folder = self.workdir("refused")
        bad = "selection.batch_size=5", "selection.num_chunks=5"
        refuse = mock.Mock(side_effect=ValueError("too large"))
        with self.assertRaisesRegex(ValueError, "too large"):
            self.train("refused", *bad, build=refuse)
        self.assertEmpty(
            [name for name in os.listdir(folder) if not name.startswith(".")]
        )
        self.train("refused", "steps=4")
        # One that has begun keeps its settings, whatever it is refused for.
        with self.assertRaisesRegex(ValueError, "other settings"):
            self.train("refused", *bad, "steps=4")
        with self.assertRaisesRegex(
            ValueError, f"Received: steps=7; .*--workdir {folder} --extend 3`$"
        ):
            self.train("refused", "steps=7")
        with self.assertRaisesRegex(ValueError, "gone"):
            with provenance.claimed(folder, self.recipe("steps=4")):
                raise ValueError("gone")
        self.assertEqual(self.read("refused", "config.json")["steps"], 4)

    def test_leftovers_of_a_killed_process_are_deleted(self):
        self.train("run", "steps=4")
        left = [
            ".config.json.partial",
            ".vocab.txt.partial",
            "checkpoints/step-000000008.partial/state.index",
        ]
        for name in left:
            tf.io.write_file(os.path.join(self.workdir("run"), name), "half")
        self.train("run", "steps=4")
        for name in left:
            self.assertFalse(
                os.path.exists(os.path.join(self.workdir("run"), name))
            )

    def test_other_versions_than_at_the_beginning_are_told(self):
        self.train("run", "steps=4")
        versions = self.read("run", "versions.json")
        versions["versions"]["keras"] = "1.2.3"
        directory.write(self.workdir("run"), "versions.json", versions)
        said = self.train("run", "steps=4")
        self.assertIn(
            f"this run began with keras 1.2.3, now {keras.__version__}", said
        )

    @pytest.mark.slow
    def test_a_super_batch_of_more_than_there_is_is_warned_of(self):
        said = self.train("run", "steps=4", "data.super_batch_size=21")
        self.assertIn("`data.super_batch_size`=21 is more than the 20", said)
        said = self.train("other", "steps=4", "data.super_batch_size=20")
        self.assertNotIn("`data.super_batch_size`", said)

    @pytest.mark.slow
    def test_the_average_of_the_weights_is_evaluated_and_kept(self):
        def load(step=None):
            with mock.patch.object(
                models, "build_learner", run_server.build_learner
            ):
                return loading.load(self.workdir("run"), step).learner

        self.train("run", "steps=4")
        last = checkpoints.read(self.workdir("run"), 4)
        average, raw = (
            next(last[name] for name in last if name.endswith(end))
            for end in ("log_temperature_average", "/log_temperature")
        )
        final = load()
        self.assertNotEqual(average, raw)
        self.assertEqual(final.log_temperature.numpy(), average)
        # Also after a process that ended before it wrote the weights.
        os.remove(os.path.join(self.workdir("run"), directory.WEIGHTS_FILE))
        self.train("run", "steps=4")
        for again in (load(), load(4)):
            for one, other in zip(
                again.get_weights(), final.get_weights(), strict=True
            ):
                self.assertAllEqual(one, other)

    @pytest.mark.slow
    def test_an_extended_run_equals_one_with_a_restart(self):
        self.check_extended(
            ("optimizer.restarts=4",),
            (),
            "begins anew: 2 steps of warm-up to 0.05, then cosine",
        )

    @pytest.mark.slow
    def test_a_constant_rate_goes_on_in_an_extended_run(self):
        constant = ("optimizer.schedule=constant",)
        self.check_extended(constant, constant, "goes on at 0.05")

    def check_extended(self, whole, run, rate):
        """Checks a run of 4 steps and 4 more against a whole one."""
        self.train("whole", "steps=8", *whole)
        self.train("run", "steps=4", *run)
        said = io.StringIO()
        with (
            mock.patch.object(
                models, "build_learner", run_server.build_learner
            ),
            contextlib.redirect_stderr(said),
        ):
            runs.extend(self.workdir("run"), 4)
        self.assertIn(
            f"extended from 4 to 8 steps; the learning rate {rate}\n",
            said.getvalue(),
        )
        self.assertEqual(
            *(
                directory.load_config(self.workdir(name))
                for name in ("run", "whole")
            )
        )
        extended, whole = (
            checkpoints.read(self.workdir(name), 8) for name in ("run", "whole")
        )
        self.assertEqual(set(extended), set(whole))
        for name, value in whole.items():
            if name.startswith(("model/", "optimizer/")):
                self.assertAllEqual(extended[name], value, name)

    @pytest.mark.slow
    def test_hooks_of_a_recipe(self):
        logged = []
        service = types.ModuleType("wandb")

        def init(dir, config):
            self.assertEqual(dir, self.workdir("run"))
            self.assertEqual(config["steps"], 4)
            return types.SimpleNamespace(log=logged.append)

        service.init = init
        with (
            mock.patch.dict(sys.modules, wandb=service),
            mock.patch.object(
                callbacks,
                "profile",
                functools.partial(callbacks.profile, first=1, last=2),
            ),
        ):
            self.train(
                "run",
                "steps=4",
                "model.loss_function=test_run:twice_the_loss",
                "callbacks=examples.callbacks:weights_and_biases,"
                "examples.callbacks:profile",
            )
        steps = [one for one in logged if "loss" in one]
        self.assertLen(steps, 4)
        self.assertAllGreater([one["loss"] for one in steps], 0.0)
        self.assertEqual(
            [one[MRR] for one in logged if MRR in one],
            [tiny.read_lines(self.workdir("run"), "evaluation.jsonl")[0][MRR]],
        )
        traces = glob.glob(
            self.workdir("run") + "/tensorboard/**/*.xplane.pb", recursive=True
        )
        self.assertLen(traces, 1)
        self.train("plain", "steps=4")
        self.assertAllClose(
            *(
                factor
                * tiny.read_lines(self.workdir(name), "metrics.jsonl")[0][
                    "train/loss"
                ]
                for factor, name in ((1, "run"), (2, "plain"))
            ),
            rtol=0.2,  # other gradients from the second step on
        )

    def test_a_projection_is_offered_where_widths_differ(self):
        learner = tiny.learner(dim=6)
        sources = inputs.Sources(
            None, types.SimpleNamespace(learner=tiny.learner(dim=3)), None, None
        )
        distils = (
            "reference.model=somewhere",
            "reference.distillation_weight=1",
        )
        for projection in ("none", "6"):
            recipe = self.recipe(*distils, f"reference.projection={projection}")
            with self.assertRaisesRegex(
                ValueError, "`reference.projection=3`.*a learner of width 6"
            ):
                inputs.check_widths(recipe, sources, learner)
        recipe = self.recipe(*distils, "reference.projection=3")
        inputs.check_widths(recipe, sources, learner)
        inputs.check_widths(self.recipe(), sources, learner)

    def test_hooks_are_imported_before_data_is_read(self):
        for setting in (
            "callbacks=examples.callbacks:profil",
            "model.loss_function=test_run:none",
            "optimizer.name=test_run:none",
            "optimizer.schedule=nowhere:none",
        ):
            name, _, value = setting.partition("=")
            with self.assertRaisesRegex(
                ValueError, f"`{name}` must name a function .*{value}"
            ):
                self.train("run", setting, "data.train=missing.tfrecord")
        with self.assertRaisesRegex(ValueError, "`callbacks.0` must be"):
            self.recipe("callbacks=profile")

    @pytest.mark.slow
    def test_a_run_goes_on_with_sidecars_that_say_the_same_alone(self):
        self.train("reference", "steps=4", "selection.batch_size=none")
        with mock.patch.object(
            models, "build_learner", run_server.build_learner
        ):
            run = loading.load(self.workdir("reference"))
        store = stores.open_store(os.path.join(self.folder, "a.tfrecord"))
        for folder, dtype in (("a", "float32"), ("b", "float16")):
            for twin in (folder, folder * 2):
                embed.write(
                    store,
                    reference.encoder(run),
                    reference.describe(run),
                    embed.Output(self.workdir(twin), dtype),
                    image_size=tiny.IMAGE_SIZE,
                )
        settings = (
            *("steps=8", "selection.criterion=learnability"),
            *("reference.sidecars=true", "evaluation.log_every_steps=1"),
        )

        def train(folder):
            place = f"reference.sidecar_dir={self.workdir(folder)}"
            self.train("run", *settings, place)

        train("a")
        with self.assertRaisesRegex(
            ValueError, "dtype of the sidecars .* must be what the run .*/run"
        ):
            train("b")
        train("aa")

    @pytest.mark.slow
    def test_scores_of_a_loss_that_the_reference_lacks_are_warned_of(self):
        uniform = "steps=4", "selection.batch_size=none"
        self.train("reference", *uniform, "model.loss=softmax")
        learnability = (
            *("steps=4", "selection.criterion=learnability"),
            f"reference.model={self.workdir('reference')}",
        )
        said = self.train("run", *learnability)
        self.assertIn("has learned by the softmax loss", said)
        self.assertIn("`selection.loss=softmax` scores by that", said)
        said = self.train("other", *learnability, "selection.loss=softmax")
        self.assertNotIn("warning: scores", said)

    @pytest.mark.slow
    def test_a_reference_that_has_learned_the_pool_is_warned_of(self):
        chosen = "steps=4", "selection.criterion=hard_learner"
        uniform = "steps=4", "selection.batch_size=none"
        for name, settings, expected in (
            ("uniform", uniform, True),
            ("chose its own", chosen, False),
            (
                "of other records",
                (*uniform, f"data.train={self.folder}/b.tfrecord"),
                False,
            ),
        ):
            with self.subTest(name):
                tiny.write_shard(f"{self.folder}/b.tfrecord", rows=20)
                self.train(name, *settings)
                said = self.train(
                    f"by {name}",
                    *("steps=4", "selection.criterion=learnability"),
                    f"reference.model={self.workdir(name)}",
                    f"data.train={self.folder}/a.tfrecord",
                )
                self.assertEqual(
                    "was trained on 1 of the 1 shards of `data.train`" in said,
                    expected,
                )

    def test_a_measure_that_no_evaluation_has_is_refused_before_all(self):
        for name in ("mrr", "eval/b/image_to_text/mrr", "eval/a/loss"):
            with self.assertRaisesRegex(
                ValueError, f"keep_best` must be a measure.*{MRR}.*{name}"
            ):
                self.train("run", f"checkpoint.keep_best={name}")
        with self.assertRaisesRegex(ValueError, "none without data"):
            self.train("run", "evaluation.data=")
        self.assertFalse(os.path.exists(self.workdir("run")))

    def test_data_that_does_not_do_is_refused_before_all(self):
        for name, text in (
            *(("t.csv", "image,caption\n1.png,a\n"), ("x", "x")),
            ("x.tar.gz", "x"),
        ):
            tf.io.write_file(os.path.join(self.folder, name), text)
        table, unknown, none, compressed = (
            f"data.train={self.folder}/{name}"
            for name in ("t.csv", "x", "none-*.tfrecord", "x.tar.gz")
        )
        for overrides, message in (
            ([none], "`data.train` must match files.*none-"),
            ([unknown], "/x is not an uncompressed TFRecord .*`data.format`"),
            ([compressed], "must not be compressed.*`gunzip`.*x.tar.gz"),
            ([table, "data.image_field=photo"], "t.csv must .*column 'photo'"),
            ([table, "data.caption_fields=a,b"], "t.csv must .*column 'a'"),
            ([table], "faults in all 1 .*missing file: '1.png'"),
            (
                ["evaluation.data=" + none.partition("=")[2]],
                "`evaluation.data` must match files.*none-",
            ),
            (
                ["reference.sidecars=true", "selection.criterion=learnability"],
                "No sidecar of .*a.tfrecord: expected",
            ),
        ):
            with (
                self.subTest(message),
                self.assertRaisesRegex(ValueError, message),
            ):
                self.train("run", "checkpoint.keep_best=", *overrides)
            self.assertFalse(os.path.exists(self.workdir("run")))

    def test_evaluation_data_is_read_as_the_training_data_is(self):
        shard = stores.open_store(os.path.join(self.folder, "a.tfrecord"))
        path = os.path.join(self.folder, "t.csv")
        with open(path, "w", encoding="utf-8") as table:
            table.write("id,photo,words\n")
            for row, record in enumerate(shard.read(range(20))):
                tf.io.write_file(f"{self.folder}/{row}.png", record.image)
                table.write(f"{row},{row}.png,{record.captions[0].decode()}\n")
        fields = ("data.image_field=photo", "data.caption_fields=words")
        self.train(
            "run",
            *("steps=4", "checkpoint.keep_best="),
            *(f"data.train={path}", f"evaluation.data={path}", *fields),
        )
        (row,) = tiny.read_lines(self.workdir("run"), "evaluation.jsonl")
        self.assertIn("eval/t/image_to_text/mrr", row)

    def test_a_measure_that_needs_labels_is_refused_when_there_are_none(self):
        with self.assertRaisesRegex(ValueError, "keep_best` must be a measure"):
            self.train(
                "run",
                "steps=4",
                "checkpoint.keep_best=eval/a/zero_shot/accuracy@1",
            )


if __name__ == "__main__":
    tf.test.main()

"""Public models by name in runs and commands."""

import contextlib
import dataclasses
import io
import os
import shutil
import tempfile

import numpy as np
import presets
import pytest
import tensorflow as tf
import tiny

from jest_tf import cli, config
from jest_tf.data import images as images_lib
from jest_tf.data import stores, tokenizers
from jest_tf.models import pretrained, reference
from jest_tf.runs import directory, loading

RECIPE = """
from jest_tf import config as c


def config():
    return c.TrainConfig(
        steps=2,
        data=c.DataConfig(
            train=({data!r},),
            image_size=8,
            text_length=4,
            vocabulary_size=40,
        ),
        model=c.ModelConfig(preset="tiny"),
        reference=c.ReferenceConfig(model="keras_hub:clip_vit_base_patch16"),
        selection=c.SelectionConfig(
            4, stages=(c.Stage(candidates=3, num_chunks=2),)
        ),
        evaluation=c.EvaluationConfig(log_ids=True, log_every_steps=1),
    )
"""


class ReferenceByNameTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.names = {
            family: "keras_hub:" + presets.save(cls.path(family), family)
            for family in ("siglip", "clip")
        }
        cls.data = tiny.write_shard(cls.path("pool.tfrecord"), 20)
        cls.recipe = cls.path("recipe.py")
        tf.io.write_file(cls.recipe, RECIPE.format(data=cls.data))

    @classmethod
    def path(cls, name):
        return os.path.join(cls.folder, name)

    def command(self, *words):
        with (
            contextlib.redirect_stdout(io.StringIO()) as printed,
            contextlib.redirect_stderr(printed),
        ):
            code = cli.main(words)
        return code, printed.getvalue()

    @tiny.eagerly()
    def train(self, name, *settings):
        return self.command(
            *("train", "--config", self.recipe, "--workdir", self.path(name)),
            *("--set", *settings),
        )

    @pytest.mark.slow
    def test_a_run_draws_the_same_by_the_model_and_by_its_sidecars(self):
        code, printed = self.command(
            *("embed", "--model", self.names["siglip"]),
            *("--dtype", "float32", "--data", self.data),
            *("--output", self.path("sidecars")),
        )
        self.assertEqual(code, 0, printed)
        name = f"reference.model={self.names['siglip']}"
        folder = f"reference.sidecar_dir={self.path('sidecars')}"
        for run, settings in (
            ("live", [name]),
            ("cached", [name, folder]),
            ("sidecars", ["reference.model=none", folder]),
        ):
            code, printed = self.train(run, *settings)
            self.assertEqual(code, 0, printed)
        drawn = [
            [
                row["ids"]
                for row in directory.read_rows(self.path(run), "draws.jsonl")
            ]
            for run in ("live", "cached", "sidecars")
        ]
        self.assertLen(drawn[0], 2)
        self.assertEqual(drawn[0], drawn[1])
        self.assertEqual(drawn[0], drawn[2])

    def test_bad_names_are_refused_before_data_is_read(self):
        for settings, message in (
            (
                ["reference.model=keras_hub:siglip2_base"],
                "`reference.model` must name a preset.*you mean 'keras_hub:",
            ),
            (
                [f"model.init_from={self.names['siglip']}"],
                "`data.text_length` must be that of .*, 16 tokens.*: 4",
            ),
            (
                [
                    f"model.init_from={self.names['siglip']}",
                    "data.text_length=16",
                    "data.image_size=33",
                ],
                "`data.image_size` must be a multiple of the patch size .*: 33",
            ),
            (["model.init_from=keras_hub:clip_vit"], "`model.init_from` must"),
            (
                ["model.init_from=runs/a", "data.vocabulary=a.model"],
                "comes with its tokenizer.*vocabulary='a.model'",
            ),
        ):
            code, printed = self.train("bad", *settings, "data.train=missing")
            self.assertEqual(code, 1)
            self.assertRegex(printed, message)

    def test_one_tower_is_taken_and_the_other_is_new(self):
        initial = pretrained.load(self.names["clip"]).learner
        width = initial.embedding_dim
        tokens = tf.zeros([2, presets.LENGTH], tf.int32)
        images = tf.zeros([2, presets.SIZE, presets.SIZE, 3], tf.uint8)
        for taken, length in (
            ("image_tower", 5),
            ("text_tower", presets.LENGTH),
        ):
            settings = config.TrainConfig(
                data=config.DataConfig(
                    image_size=presets.SIZE, text_length=length
                ),
                model=config.ModelConfig(
                    preset="tiny",
                    init_from=self.names["clip"],
                    init_tower=taken,
                    frozen=(taken,),
                ),
            )
            start = loading.open_start(settings, self.path("new"))
            learner = start.build(40)
            self.assertEqual(learner.embedding_dim, width)
            self.assertAllClose(learner.log_temperature, np.log(10.0))
            found, expected = (
                model.encode_image(images)
                if taken == "image_tower"
                else model.encode_text(tokens)
                for model in (learner, initial)
            )
            self.assertAllClose(found, expected)
            self.assertEmpty(getattr(learner, taken).trainable_variables)
            new = {"image_tower", "text_tower"} - {taken}
            self.assertNotEmpty(getattr(learner, new.pop()).trainable_variables)
            if taken == "image_tower":
                self.assertIsNone(start.tokenizer)
                self.assertIsNotNone(learner.pixels)
            else:
                self.assertEqual(start.tokenizer.length, 16)
                self.assertIsNone(learner.pixels)
                self.assertEqual(
                    start.image_form, images_lib.Resizing(presets.SIZE)
                )

    @pytest.mark.slow
    def test_a_learner_starts_as_a_model_and_goes_on(self):
        name = self.names["clip"]
        initial = pretrained.load(name)
        settings = (
            *(f"model.init_from={name}", "selection.stages=none"),
            *("data.image_size=48", f"data.text_length={presets.LENGTH}"),
            *("model.loss=softmax", "optimizer.learning_rate=1e-9"),
        )
        code, printed = self.train("tuned", *settings, "steps=1")
        self.assertEqual(code, 0, printed)
        self.assertIn("resized, from 32 x 32 to 48 x 48", printed)
        run = loading.load(self.path("tuned"))
        self.assertEqual(run.tokenizer, initial.tokenizer)
        self.assertEqual(
            run.image_form, dataclasses.replace(initial.image_form, size=48)
        )
        about = directory.read(self.path("tuned"), directory.LEARNER_FILE)
        about["picture"] = about.pop("image_form")  # as 0.3.0 wrote it
        directory.write(self.path("tuned"), directory.LEARNER_FILE, about)
        self.assertEqual(
            loading.load(self.path("tuned")).image_form, run.image_form
        )
        texts = initial.tokenizer(tf.constant(["a dog", "12 cats"]))
        self.assertAllClose(
            run.learner.encode_text(texts), initial.learner.encode_text(texts)
        )
        self.assertAllClose(
            run.learner.log_temperature, initial.learner.log_temperature
        )
        for old, new in zip(
            initial.learner.variables, run.learner.variables, strict=True
        ):
            if old.shape == new.shape and "position" not in new.path:
                self.assertAllClose(old, new)

    @pytest.mark.slow
    @pytest.mark.tensorflow
    def test_adapters_of_a_public_model_go_on_and_are_exported_merged(self):
        settings = (
            *(f"model.init_from={self.names['siglip']}", "model.lora_rank=2"),
            *("selection.stages=none", f"data.image_size={presets.SIZE}"),
            *(f"data.text_length={presets.LENGTH}", "checkpoint.every_steps=1"),
        )
        run, output = self.path("adapted"), self.path("exported")
        self.assertEqual(self.train("adapted", *settings)[0], 0)
        trained = loading.load(run, step=2)  # adapters beside the weights
        shutil.rmtree(f"{run}/checkpoints/step-000000002")
        os.remove(f"{run}/final.weights.h5")
        self.assertEqual(self.train("adapted", *settings)[0], 0)
        words = ["export", "--model", run, "--format", "saved_model"]
        self.assertEqual(self.command(*words, "--output", output)[0], 0)
        tokens = trained.tokenizer(tf.constant(presets.TEXTS))
        exported = tf.saved_model.load(output)
        embedded = exported.embed_tokens(tokens)["embeddings"]
        start, trained = (
            model.learner.encode_text(tokens)
            for model in (pretrained.load(self.names["siglip"]), trained)
        )
        self.assertAllClose(embedded, trained)
        self.assertNotAllClose(start, trained)


class MixTest(tf.test.TestCase):
    """Weights between those of a run and those that it started from."""

    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.workdir = f"{self.folder}/run"
        os.mkdir(self.workdir)
        self.start, self.end = tiny.learner(seed=0), tiny.learner(seed=1)
        self.end.log_temperature.assign(3.0)
        words = tokenizers.WordPieceTokenizer(tiny.VOCABULARY, tiny.TEXT_LENGTH)
        for folder in (self.folder, self.workdir):
            words.save(folder)
        self.start.save(f"{self.folder}/start.keras")
        directory.save_learner(self.workdir, self.end)
        form = images_lib.Resizing(tiny.IMAGE_SIZE)
        self.digest = reference.fingerprint(self.start)
        start = loading.Start(None, form, None, self.digest)
        loading.write_learner(self.workdir, self.end, start)

    def write(self, **model):
        settings = config.TrainConfig(
            data=config.DataConfig(
                image_size=tiny.IMAGE_SIZE, text_length=tiny.TEXT_LENGTH
            ),
            model=config.ModelConfig(**model),
        )
        config.save_config(settings, f"{self.workdir}/config.json")

    def test_every_weight_lies_between_both(self):
        self.write(init_from=f"{self.folder}/start.keras")
        for share in (0.0, 0.25, 1.0):
            found = loading.load(self.workdir, mix=share).learner.variables
            for one, first, last in zip(
                found, self.start.variables, self.end.variables, strict=True
            ):
                expected = share * last.numpy() + (1 - share) * first.numpy()
                self.assertAllClose(one, expected, msg=one.path)

    def test_another_start_is_refused_if_its_weights_are_recorded(self):
        self.write(init_from=f"{self.folder}/start.keras")
        tiny.learner(seed=2).save(f"{self.folder}/start.keras")
        with self.assertRaisesRegex(ValueError, "`mix` .*: other weights"):
            loading.load(self.workdir, mix=0.5)
        about = directory.read(self.workdir, directory.LEARNER_FILE)
        self.assertEqual(about.pop("start"), self.digest)
        directory.write(self.workdir, directory.LEARNER_FILE, about)
        loading.load(self.workdir, mix=0.5)

    def test_only_a_taken_tower_has_a_start(self):
        self.write(
            init_from=f"{self.folder}/start.keras", init_tower="image_tower"
        )
        found = loading.load(self.workdir, mix=0.0).learner
        for ours, expected in (
            (found.image_tower, self.start.image_tower),
            (found.text_tower, self.end.text_tower),
        ):
            tiny.assert_equal_variables(self, ours, expected)
        self.assertAllEqual(found.log_temperature, self.end.log_temperature)

    def test_a_share_without_a_start_is_refused(self):
        self.write(towers="run_worker:build_learner")
        for name in (self.workdir, f"{self.folder}/start.keras"):
            with self.assertRaisesRegex(ValueError, "`mix` needs a run that"):
                loading.load(name, mix=0.5, trust=True)
        self.write(init_from=f"{self.folder}/start.keras")
        with self.assertRaisesRegex(ValueError, "expected no `step`"):
            loading.load(self.workdir, 3, mix=0.5)
        with self.assertRaisesRegex(ValueError, r"`mix` must be in \[0, 1\]"):
            loading.load(self.workdir, mix=1.5)


class AdaptersTest(tf.test.TestCase):
    """LoRA: trained, resumed to the bit, and merged into what is saved."""

    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.start = tiny.learner()
        self.start.save(f"{self.folder}/start.keras")
        words = tokenizers.WordPieceTokenizer(tiny.VOCABULARY, tiny.TEXT_LENGTH)
        words.save(self.folder)
        self.pool = tiny.write_shard(f"{self.folder}/pool.tfrecord", 40)

    @tiny.eagerly()
    def train(self, name, steps, **options):
        settings = config.TrainConfig(
            steps=steps,
            data=config.DataConfig(
                train=(self.pool,),
                image_size=tiny.IMAGE_SIZE,
                text_length=tiny.TEXT_LENGTH,
            ),
            model=config.ModelConfig(
                **{"init_from": f"{self.folder}/start.keras"} | options
            ),
            optimizer=config.OptimizerConfig(schedule="constant"),
            selection=config.SelectionConfig(8),
            checkpoint=config.CheckpointConfig(every_steps=1),
        )
        recipe = f"{self.folder}/{name}.json"
        config.save_config(settings, recipe)
        workdir = f"{self.folder}/{name}"
        words = ["train", "--config", recipe, "--workdir", workdir]
        with contextlib.redirect_stderr(io.StringIO()) as said:
            self.assertEqual(cli.main(words), 0, said.getvalue())
        return workdir

    def test_adapters_alone_are_trained_and_merged(self):
        run = self.train("run", 3, lora_rank=2)
        images = np.random.default_rng(0).integers(0, 256, [5, 4, 4, 3])
        images = tf.constant(images, tf.uint8)
        # The last checkpoint has adapters beside the weights of the start;
        # the final weights have them merged.
        with_adapters = loading.load(run, step=3).learner
        merged = loading.load(run).learner
        names = [
            variable.name for variable in with_adapters.image_tower.weights
        ]
        self.assertIn("lora_kernel_a", names)
        self.assertLen(merged.variables, len(self.start.variables))
        for model in (with_adapters, merged):
            self.assertAllClose(
                model.encode_image(images), merged.encode_image(images)
            )
        trained = {
            variable.name for variable in with_adapters.trainable_variables
        }
        expected = {"lora_kernel_a", "lora_kernel_b", "log_temperature", "bias"}
        self.assertEqual(trained, expected)
        # Kernels differ from the start's by a matrix of the adapters' rank.
        for before, after in zip(
            self.start.variables, merged.variables, strict=True
        ):
            change = np.atleast_2d(after.numpy() - before.numpy())
            rank = np.linalg.matrix_rank(change, tol=1e-7)
            if before.name == "kernel":
                self.assertEqual(rank, 2)
            elif before.path.startswith("sequential"):
                self.assertEqual(rank, 0, before.path)
        # It can be tuned again, by all its weights.
        again = self.train("again", 1, init_from=run)
        for before, after in zip(
            merged.variables, loading.load(again).learner.variables, strict=True
        ):
            self.assertNotAllEqual(before, after, before.path)

    def test_a_stopped_run_goes_on_to_the_same_bits_without_the_start(self):
        options = {"lora_rank": 2, "dtype_policy": "mixed_bfloat16"}
        whole, stopped = (
            self.train(name, 3, **options) for name in ("whole", "stopped")
        )
        shutil.rmtree(f"{stopped}/checkpoints/step-000000003")
        os.remove(f"{stopped}/final.weights.h5")
        os.remove(f"{stopped}/final.json")
        os.remove(f"{self.folder}/start.keras")
        self.train("stopped", 3, **options)
        one, other = (loading.load(name) for name in (whole, stopped))
        tiny.assert_equal_variables(self, one.learner, other.learner)
        about = directory.read(stopped, directory.LEARNER_FILE)
        self.assertEqual(about["start"], reference.fingerprint(self.start))
        self.assertEqual(
            reference.describe(one)._replace(name=""),
            reference.describe(other)._replace(name=""),
        )


class CaptionsTest(tf.test.TestCase):
    def test_captions_that_are_cut_take_a_line(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        # Of two words each.
        store = stores.open_store(tiny.write_shard(f"{folder}/a", 20))
        for length, count in ((2, 20), (3, 0)):
            tokenizer = tokenizers.WordPieceTokenizer(tiny.VOCABULARY, length)
            with contextlib.redirect_stderr(io.StringIO()) as said:
                loading.warn_of_cut_captions(store, tokenizer)
            warning = (
                "warning: 20 of 20 sampled captions are longer "
                "than `data.text_length`=2 tokens, and are cut\n"
            )
            self.assertEqual(said.getvalue(), warning * bool(count))

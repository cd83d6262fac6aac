"""A stranger's run directory is data: it runs nothing and writes nowhere."""

import contextlib
import dataclasses
import functools
import io
import os
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

import h5py
import keras
import pytest
import remote_files
import subprocesses
import tensorflow as tf
import tiny

import jest_tf
from jest_tf import cli, config, embeddings, files, runs
from jest_tf.config import imports
from jest_tf.data import images, tokenizers
from jest_tf.files import remote
from jest_tf.runs import checkpoints, directory, loading

# Leaves a file when it is imported.
CODE = """
import pathlib
pathlib.Path({mark!r}).touch()
import tiny
def build(*_):
    learner = tiny.learner()
    return learner.image_tower, learner.text_tower
class letters:
    vocabulary_size = tiny.VOCABULARY_SIZE
    def __init__(self, length): pass
    def __call__(self, captions): return captions
"""
SETTINGS = config.TrainConfig(
    steps=4,
    data=config.DataConfig(
        train=("pool.tfrecord",),
        image_size=tiny.IMAGE_SIZE,
        text_length=tiny.TEXT_LENGTH,
    ),
    model=config.ModelConfig(init_from="gone"),
    selection=config.SelectionConfig(4),
)


def write_run(workdir, **model):
    """The directory of a finished run, but for its logs."""
    os.makedirs(workdir, exist_ok=True)
    settings = SETTINGS
    if model:
        settings = dataclasses.replace(
            settings, model=dataclasses.replace(settings.model, **model)
        )
    config.save_config(settings, f"{workdir}/config.json")
    tokenizers.WordPieceTokenizer(tiny.VOCABULARY, 3).save(workdir)
    learner = tiny.learner()
    start = loading.Start(None, images.Resizing(tiny.IMAGE_SIZE), None)
    loading.write_learner(workdir, learner, start)
    directory.save_learner(workdir, learner)


class StrangersTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.workdir = os.path.join(self.folder, "run")
        self.mark = os.path.join(self.folder, "mark")
        self.addCleanup(sys.path.__setitem__, slice(None), [*sys.path])
        self.addCleanup(sys.modules.pop, "evil", None)

    def write(self, name, text):
        files.write_whole(f"{self.folder}/{name}", text.encode())


class FunctionsTest(StrangersTestCase):
    """Functions that a run names are called on trust alone."""

    def setUp(self):
        super().setUp()
        self.write("evil.py", CODE.format(mark=self.mark))
        self.enterContext(contextlib.chdir(self.folder))
        self.enterContext(mock.patch.object(sys, "path", ["", *sys.path]))
        tiny.write_shard("pool.tfrecord")
        recipe = "from jest_tf.config import *\nconfig = "
        self.write("recipe.py", recipe + repr(SETTINGS))

    def test_every_command_and_function_refuses_them(self):
        write_run(self.workdir, towers="evil:build", init_from="")
        checkpoint = f"{self.workdir}/checkpoints/step-000000002"
        os.makedirs(checkpoint)
        outputs = "--output out"
        for line in (
            *("evaluate --workdir run", "evaluate --workdir run --step 2"),
            f"embed --model run --data pool.tfrecord {outputs}",
            f"export --model run --format onnx {outputs}",
            f"curate --workdir run --data pool.tfrecord {outputs}",
            "advise --reference run --pool pool.tfrecord --curated "
            f"pool.tfrecord {outputs}",
            *("page --workdir run", "train --workdir run"),
            "train --workdir run --dry-run",
            "train --workdir run --extend 9",
            "train --config run/config.json --workdir new",
            "train --config recipe.py --workdir new --set model.init_from=run",
            "train --config recipe.py --workdir new --set model.init_from= "
            "data.image_size=16 reference.model=run "
            "reference.distillation_weight=1",
        ):
            with contextlib.redirect_stderr(io.StringIO()) as said:
                self.assertEqual(cli.main(line.split()), 1)
            with self.subTest(line):
                self.assertRegex(
                    said.getvalue(),
                    "error: run/config.json names functions.*Received: "
                    "model.towers=evil:build; .*`--trust`.*`trust=True`",
                )
        for call in (
            jest_tf.load,
            functools.partial(jest_tf.load, step=2),
            lambda run: jest_tf.load_config(f"{run}/config.json"),
            functools.partial(runs.extend, steps=1),
        ):
            with self.assertRaisesRegex(ValueError, "=evil:build; .*`trust=T"):
                call("run")
        self.assertFalse(os.path.exists(self.mark))
        self.assertNotIn("out", os.listdir())
        jest_tf.load("run", trust=True)
        self.assertTrue(os.path.exists(self.mark))

    def test_a_tokenizer_is_called_if_the_user_names_or_trusts_it(self):
        write_run(self.workdir)
        os.remove("run/vocab.txt")
        self.write("run/tokenizer.function", "evil:letters\n")
        with self.assertRaisesRegex(
            ValueError, "tokenizer.function names .*data.vocabulary=evil:lett"
        ):
            jest_tf.load("run")
        for name, is_called in (("evil:other", False), ("evil:letters", True)):
            recipe = config.TrainConfig(data=config.DataConfig(vocabulary=name))
            refused = self.assertRaisesRegex(ValueError, "=evil:letters; ")
            with contextlib.nullcontext() if is_called else refused:
                loading.load_tokenizer("run", recipe)
            self.assertEqual(os.path.exists(self.mark), is_called)
        self.assertIn("--trust", directory.command("page", "run"))
        jest_tf.load("run", trust=True)

    @tiny.eagerly()
    def test_a_run_begun_from_own_towers_is_used_on_trust_alone(self):
        self.write(
            "own_layers.py",
            "import keras, pathlib, tiny\n"
            f"pathlib.Path({self.mark!r}).touch()\n"
            "@keras.saving.register_keras_serializable('mine')\n"
            "class Doubled(keras.layers.Layer):\n"
            "    def call(self, values):\n        return 2 * values\n"
            "def build(*_):\n    learner = tiny.learner(extra=[Doubled()])\n"
            "    return learner.image_tower, learner.text_tower\n",
        )
        tokenizers.WordPieceTokenizer(tiny.VOCABULARY, 3).save(".")
        train = "train --config recipe.py --workdir {} --set steps=1 {}"
        own = "model.init_from= data.vocabulary=vocab.txt model.towers="
        for line in (
            train.format("start", own + "own_layers:build"),
            train.format("run", "model.init_from=start"),
            "evaluate --workdir run --data pool.tfrecord --mix 0.5",
            "embed --model run --data pool.tfrecord --output sidecars",
            *["export --model run --format onnx --output exported"]
            * embeddings.ON_TENSORFLOW,
            train.format("again", "model.init_from=run"),
        ):
            with (
                contextlib.redirect_stdout(io.StringIO()) as said,
                contextlib.redirect_stderr(said),
            ):
                code = cli.main([*line.split(), "--trust"])
            self.assertEqual(code, 0, said.getvalue())
        learner = jest_tf.load("run", trust=True).learner
        learner.save("model.keras")
        self.assertIn("--trust", directory.command("page", "run"))
        for name in ("run", "model.keras"):
            sys.modules.pop("own_layers")
            keras.saving.get_custom_objects().pop("mine>Doubled")
            os.remove(self.mark)
            with self.assertRaisesRegex(
                ValueError, f"{name}.* names .*class=own_layers:Doubled; .*--tr"
            ):
                jest_tf.load(name)
            self.assertFalse(os.path.exists(self.mark))
            loaded = jest_tf.load(name, trust=True).learner
            self.assertAllEqual(
                loaded.get_weights()[0], learner.get_weights()[0]
            )

    def test_a_saved_model_is_no_better(self):
        model = jest_tf.JESTModel(tiny.learner(), loss="own_parts:squares")
        model.compile(optimizer="sgd")
        model.save("model.keras")
        with self.assertRaisesRegex(ValueError, "loss=own_parts:squares;"):
            jest_tf.load("model.keras")
        jest_tf.load("model.keras", trust=True)

    def test_commands_search_a_run_directory_on_trust_alone(self):
        """A run directory may have a namesake of any module."""
        write_run(self.workdir)
        os.makedirs("run/inner")
        os.symlink("run/inner", "link")
        path = [*sys.path][1:]
        for folder, trust, is_searched in (
            *(("run", False, False), ("run/inner", False, False)),
            *(("link", False, False), ("run", True, True)),
            (".", False, True),
        ):
            for before in ([], [""], [os.path.realpath(folder)]):
                with contextlib.chdir(folder):
                    sys.path[:] = [*before, *path]
                    imports.search_here(trust)
                    found = bool({"", os.getcwd()} & {*sys.path})
                self.assertEqual(found, is_searched, (folder, before))
                self.assertLessEqual({*path}, {*sys.path})
        # A folder that a command names, without weights, and that of a file.
        for name, content in (("config.json", "{}"), ("model.keras", "")):
            self.write(f"given/{name}", content)
            named = "." if name == "config.json" else name
            with contextlib.chdir("given"):
                for names, is_searched in (([], True), ([named], False)):
                    sys.path[:] = path
                    imports.search_here(False, names)
                    found = bool({"", os.getcwd()} & {*sys.path})
                    self.assertEqual(found, is_searched, (name, names))
            os.remove(f"given/{name}")

    def test_functions_of_python_itself_are_no_settings(self):
        for name in ("os:abort", "cProfile:main", "posix:_exit"):
            with self.assertRaisesRegex(ValueError, "not one of Python's own"):
                imports.load_function("loss", name)
        for name in ("", ":", "os", "../a:b", "a:b:c"):
            with self.assertRaisesRegex(ValueError, "'module:function'"):
                imports.load_function("loss", name)

    @pytest.mark.slow
    def test_a_command_in_a_strangers_folder_runs_none_of_its_code(self):
        write_run(self.workdir)
        for name in ("tensorflow", "numpy", "difflib", "keras_hub", "h5py"):
            self.write(f"run/{name}.py", CODE.format(mark=self.mark))
        # As the command that pip installs.
        self.write("bin/jest-tf", "from jest_tf import cli; cli.execute()")
        done = subprocess.run(
            [sys.executable, f"{self.folder}/bin/jest-tf", "export"]
            + ["--model=.", "--format=saved_model"]
            + [f"--output={self.folder}/out"],
            cwd=self.workdir,
            env=subprocesses.environment(),
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertFalse(os.path.exists(self.mark))


class PlacesTest(StrangersTestCase):
    """Files that a run directory names must lie in it."""

    def test_links_out_of_it_are_not_followed_nor_pipes_waited_for(self):
        for name in ("final.weights.h5", "vocab.txt", "config.json"):
            write_run(self.workdir)
            path = f"{self.workdir}/{name}"
            shutil.move(path, self.folder)
            os.symlink(f"../{name}", path)
            for scheme in ("", "file://"):
                with self.assertRaisesRegex(ValueError, f"lead out.*{name}"):
                    jest_tf.load(scheme + self.workdir)
            os.remove(path)
            os.mkfifo(path)
            with self.assertRaisesRegex(ValueError, f"{name}, a device, pipe"):
                jest_tf.load(self.workdir)
            os.remove(path)

    def test_nothing_is_appended_through_a_link(self):
        write_run(self.workdir)
        for name in ("metrics.jsonl", ".lock", "checkpoints", "tensorboard"):
            os.symlink("../new", f"{self.workdir}/{name}")
            with self.assertRaisesRegex(ValueError, "lead out"):
                with directory.locked(self.workdir):
                    directory.append(self.workdir, name, {"step": 1})
            os.remove(f"{self.workdir}/{name}")
        self.assertFalse(os.path.lexists(f"{self.folder}/new"))

    @pytest.mark.slow
    def test_no_index_is_written_where_a_run_says(self):
        pool = tiny.write_shard(f"{self.folder}/pool.tfrecord")
        settings = dataclasses.replace(
            SETTINGS,
            data=dataclasses.replace(
                SETTINGS.data, index_dir=f"{self.folder}/new"
            ),
            evaluation=config.EvaluationConfig(data=(pool,)),
        )
        write_run(self.workdir)
        config.save_config(settings, f"{self.workdir}/config.json")
        before = sorted(os.listdir(self.folder))
        for flags, new in (
            ([], []),
            (["--data", pool], []),
            (["--trust"], ["new"]),
            (["--set", f"data.index_dir={self.folder}"], ["new", "index"]),
        ):
            words = ["evaluate", "--workdir", self.workdir, *flags]
            with contextlib.redirect_stdout(io.StringIO()):
                self.assertEqual(cli.main(words), 0)
            found = {*os.listdir(self.folder)} - {*before}
            found = {name.rpartition(".")[2] for name in found}
            self.assertEqual(found, {*new}, flags)

    def test_weights_that_claim_more_than_they_have_are_refused(self):
        write_run(self.workdir)
        path = f"{self.workdir}/final.weights.h5"
        name = "layers/sequential_1/layers/dense/vars/0"
        with h5py.File(path, "r+") as weights:
            shape = weights[name].shape
            del weights[name]
            weights.create_dataset(
                name, [10**5, *shape], "f4", chunks=True, compression="gzip"
            )
        with self.assertRaisesRegex(ValueError, "h5 must be .*bytes in a fil"):
            jest_tf.load(self.workdir)

    def test_a_learner_larger_than_its_weights_is_not_built(self):
        for text_length, image_size in ((2**16, 16), (16, 2**14)):
            write_run(self.workdir)
            settings = dataclasses.replace(
                SETTINGS,
                data=config.DataConfig(
                    image_size=image_size, text_length=text_length
                ),
                model=config.ModelConfig(),
            )
            config.save_config(settings, f"{self.workdir}/config.json")
            with self.assertRaisesRegex(ValueError, "those of the run's wei"):
                jest_tf.load(self.workdir)

    def test_a_checkpoint_that_claims_more_than_it_has_is_damaged(self):
        """Before memory is taken for it."""
        folder = f"{self.workdir}/checkpoints/step-000000001"
        os.makedirs(folder)
        tf.raw_ops.SaveV2(
            prefix=f"{folder}/state",
            tensor_names=["a"],
            shape_and_slices=[""],
            tensors=[tf.zeros([1000])],
        )
        self.assertLen(checkpoints.read(self.workdir, 1)["a"], 1000)
        os.truncate(f"{folder}/state.data-00000-of-00001", 3000)
        with self.assertRaisesRegex(checkpoints.Damaged, "4,000 bytes"):
            checkpoints.read(self.workdir, 1)


class BucketTest(remote_files.Gcs, tf.test.TestCase):
    def test_an_object_with_a_path_is_not_staged(self):
        step = f"{self.folder}/checkpoints/step-000000001"
        for name in ("state.index", "../../x.py"):
            remote.upload(os.devnull, f"{step}/{name}")
        above = self.enterContext(tempfile.TemporaryDirectory())
        own = os.path.join(above, "one", "two")
        os.makedirs(own)
        self.enterContext(mock.patch.object(tempfile, "tempdir", own))
        with self.assertRaisesRegex(ValueError, "Received: '..'"):
            checkpoints.read(self.folder, 1)
        self.assertEqual(files.tree(above), [])

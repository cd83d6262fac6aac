"""What a user sees after a mistake: one line, the same for every command.

A line says which setting is wrong, what was expected, what came, and the way
out. Mistakes that need longer runs are in the tests of what finds them.
"""

import contextlib
import gc
import gzip
import io
import os
import pathlib
import shutil
import tempfile
from unittest import mock

import keras
import numpy as np
import shard_files
import tensorflow as tf
import tiny

import jest_tf
from jest_tf import cli, config, runs

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPE = f"{ROOT}/configs/quickstart_uniform.py"
JEST = f"{ROOT}/configs/quickstart_jest.py"

# The command line, and the line that it ends with. `$` is the folder of the
# files below; TRAIN is `jest-tf train` with settings of a small run.
USAGE = (
    ("", r"are required: COMMAND. See `jest-tf --help`"),
    ("trian --config a", r"one of \('train', .*'trian'. Did you mean 'train'?"),
    (
        "train recipe.py --workdir a",
        r"unexpected recipe.py. Did you mean `--config recipe.py`?",
    ),
    (
        "train --config a",
        r"are required: --workdir. See `jest-tf train --help`",
    ),
    (
        "train --config a --work-dir b",
        r"unknown flag --work-dir. Did you mean --workdir?",
    ),
    ("train -workdir a", r"unknown flag -workdir. Did you mean --workdir?"),
    (
        "train --workdir a --batch_size 64",
        r"flag --batch_size. Did you mean `--set selection.batch_size=64`?",
    ),
    (
        "train --workdir a --lr=0.1",
        r"--lr. Did you mean `--set optimizer.learning_rate=0.1`?",
    ),
    ("train --workdir a --config.steps=5", r"Did you mean `--set steps=5`?"),
    (
        "train --set steps=5 --workdir a seed=3",
        r"unexpected seed=3. Did you mean `--set seed=3`?",
    ),
    ("train --workdir a --set", r"--set: expected at least one argument"),
    ("train --workdir a --extend 1.5", r"--extend: invalid int value: '1.5'"),
    (
        "embed --batch_size 4",
        r"unknown flag --batch_size. Did you mean --batch-size?",
    ),
    ("embed --model a", r"one of the arguments --data --folder is required"),
    (
        "embed --model a --data b --folder c",
        r"--folder: not allowed with argument --data",
    ),
    (
        "embed --model a --data b --dtype fp16",
        r"`--dtype` must be one of \('float16', 'float32'\). Received: 'fp16'",
    ),
    (
        "curate --data a --output b --share 0.1",
        r"unknown flag --share. Did you mean `--set share=0.1`?",
    ),
    ("evaluate runs/a", r"one of the arguments --workdir --model is required"),
    (
        "export --model a --output b --format tflite",
        r"`--format` must be one of .*'tflite'",
    ),
)
SETTINGS = (
    (
        "TRAIN steps",
        r'must read "a.b=c", without spaces around "=". Received: \'steps\'',
    ),
    ("TRAIN steps=1e3", r"`steps` must be of type int. Received: '1e3'"),
    (
        "TRAIN evaluation.log_ids=yes",
        r"of type bool, true or false. Received: 'yes'",
    ),
    (
        "TRAIN selection=joint",
        r"`selection` is a group of settings; set one of",
    ),
    (
        "TRAIN selectoin.batch_size=4",
        r"No setting `selectoin.batch_.*mean `selection.batch_size`?",
    ),
    ("TRAIN evaluation.batchsize=4", r"Did you mean `evaluation.batch_size`?"),
    ("TRAIN optimizer.lr=4", r"Did you mean `optimizer.learning_rate`?"),
    (
        "TRAIN epochs=4",
        r"No setting `epochs`. Fields of TrainConfig: seed, steps",
    ),
    (
        "JEST selection.stages.0.criterion=learnabilty",
        r"'learnabilty'. Did you mean 'learnability'?",
    ),
    (
        "JEST selection.stages.0.chunks=2",
        r"mean `selection.stages.0.num_chunks`",
    ),
    (
        "JEST selection.stages.2.candidates=2",
        r"after the list comes a number from 0 to 1. Received: '2'",
    ),
    (
        "TRAIN selection.stages.0.gain=2",
        r"`selection.stages.0.candidates` must be set",
    ),
    (
        "TRAIN selection.stages=joint",
        r"a list of groups of settings; .*'joint'",
    ),
    (
        "JEST selection.stages.0.embeddings=stored",
        r"`selection.stages.0.embeddings` 'stored' has no learner",
    ),
    ("TRAIN model.presets=b16", r"mean `model.preset`"),
    ("TRAIN model.towers= data.image_size=65", r"`data.image_size`: .*=65"),
    (
        "TRAIN model.towers= model.preset=tinny",
        r"`model.preset` must be one of .*'tinny'. Did you mean 'tiny'?",
    ),
    (
        "TRAIN model.towers=examples.custom_towers:bild",
        r"'bild'\). Did you mean 'build'?",
    ),
    *(
        (
            f"TRAIN {name}={value} data.train=missing",
            rf"`{name}` must name a function .*{value}",
        )
        for name, value in (
            ("callbacks", "examples.callbacks:profil"),
            ("model.loss", "examples.callbacks:none"),
            ("optimizer.name", "examples.callbacks:none"),
            ("optimizer.schedule", "nowhere:none"),
        )
    ),
    (
        "JEST selection.stages.0.criterion=nowhere:none data.train=missing",
        r"`criterion` must name a function .*'nowhere:none'",
    ),
    ("TRAIN callbacks=profile", r"`callbacks.0` must be 'module:function'"),
    (
        "TRAIN model.towers=examples/custom_towers.py:build",
        r"`model.towers` must be 'module:function'",
    ),
    (
        "JEST selection.batch_size=1 selection.stages.0.num_chunks=2",
        r"`selection.stages.0.num_chunks` must be at most .*num_chunks=2, row",
    ),
    (
        "train --workdir a --config configs/quickstart_jset.py",
        r"No recipe at .*Did you mean 'configs/quickstart_jest.py'?",
    ),
    (
        "train --workdir a --config quickstart_jest",
        r"Did you mean 'configs/quickstart_jest.py'?",
    ),
    (
        "train --workdir a --config $/syntax.py",
        r"Recipe .*syntax.py': .*syntax.py, line 1\)",
    ),
    (
        "train --workdir a --config $/import.py",
        r"Recipe .*import.py', line 2: ModuleNotFoundError: .*'no_such'",
    ),
    (
        "train --workdir a --config $/field.py",
        r"Recipe .*field.py', line 3: TypeError: .*'batch_size'",
    ),
    (
        "train --workdir $/folder",
        r"`--config` must name a recipe, unless `--workdir` holds a run",
    ),
)
MODELS = (
    (
        "JEST reference.model=google/siglip-base",
        r"Did you mean 'hf:google/siglip-base'?",
    ),
    (
        "JEST reference.model=kerashub:clip",
        r"`reference.model` must be a run directory, .*'kerashub:clip'",
    ),
    (
        "JEST reference.model=hf:gs://bucket/model data.train=/missing",
        r"`reference.model` must .* a local folder, .*Received: 'hf:gs://bu",
    ),
    (
        "JEST reference.model=keras_hub:s3://bucket/a data.train=/missing",
        r"a local folder or a path of file, gs, hf, .*Received: 'keras_hub:s3",
    ),
    (
        "TRAIN data.reader=ops data.train=s3://bucket/*.tfrecord",
        r"'ops' reads what TensorFlow opens, .*Received: s3://bucket/",
    ),
    (
        "embed --model hf:s3://bucket/model --data /missing",
        r"`--model` must .* a local folder, .*Received: 'hf:s3://bucket/model'",
    ),
    (
        "JEST reference.model=$/rnu",
        r"`reference.model` must be the directory of a finished run, "
        r".*/rnu', which does not exist. Did you mean '.*/run'?",
    ),
    ("JEST reference.model=$/vocab.txt", r"vocab.txt', a file"),
    (
        "JEST reference.model=$/run/checkpoints",
        r"checkpoints', a folder without it. Did you mean '.*/run'?",
    ),
    (
        "JEST reference.model=$/unfinished",
        r"`jest-tf train --workdir .*/unfinished` finishes it",
    ),
    (
        "JEST reference.model=$/run reference.sidecar_dir=$/folder",
        r"No sidecar of .*pool-00000.tfrecord",
    ),
    (
        "JEST reference.model=none",
        r"To run a reference instead, in live stages, set `reference.model`",
    ),
    ("JEST reference.model=/nowhere --dry-run", r"`reference.model` must be"),
    ("TRAIN model.towers=no_such:build --dry-run", r"can be imported.*no_such"),
    (
        "evaluate --workdir $/rnu",
        r"`workdir` must be .*/rnu', which does not .* mean '.*/run'?",
    ),
    (
        "evaluate --workdir $/run --data $/pool-* --step 7",
        r"one of the checkpoints of '.*/run', \[1\]. Received: 7",
    ),
    (
        "page --workdir $/folder",
        r"`workdir` must be a run directory, with config.json",
    ),
    (
        "page --workdir $/run",
        r"There is no selection to show: .*/run' without a line of telem",
    ),
    (
        "evaluate --workdir $/run --suite a --format tfds",
        r"--format needs --data",
    ),
    ("evaluate --workdir $/run --data $/pool-* --output a", r"--output needs"),
    ("evaluate --model a.keras", r"`--model` needs `--suite`, and"),
    (
        "export --model $/run --output $/x --format onnx --dtype float16",
        r"`--dtype` is for",
    ),
    (
        "page --workdir $/run --moments 0",
        r"`--moments` must be at least 1. Received: 0",
    ),
    (
        "page --workdir $/run --watch 0",
        r"`--watch` must be at least 1. Received: 0",
    ),
    (
        "export --model nothing --output $/x --format weights",
        r"`--model` must be a run directory, .*'nothing', which is no run",
    ),
    (
        "embed --model $/folder --data $/pool-*",
        r"`--model` must be the directory of a finished run",
    ),
)
DATA = (
    (
        "TRAIN data.train=$/nowhere/*.tar",
        r"`data.train` must match files. .*there is no folder '.*/nowhere'",
    ),
    ("TRAIN data.train=$/table/*.tar", r"matches none: the folder holds a.csv"),
    (
        "TRAIN data.train=$/table",
        r"a folder: name files in it, such as '.*/table/\*.tar'",
    ),
    ("TRAIN data.train=$/a.png", r"it is a picture: name pictures in a table"),
    (
        "TRAIN data.train=$/gzip.tfrecord",
        r"it is compressed: `gunzip < .*gzip.tfrecord > NEW` unpacks it",
    ),
    ("TRAIN data.train=$/gzip.tar", r"it is compressed: `gunzip <"),
    (
        "TRAIN data.train=$/tar.tfrecord",
        r"it is a tar: set `data.format=webdataset`",
    ),
    ("TRAIN data.train=$/empty.tfrecord", r"empty.tfrecord is empty"),
    (
        "TRAIN data.train=$/table/a.csv",
        r"missing file: 'missing.png'; paths in a table begin at its folder",
    ),
    (
        "TRAIN data.caption_fields=captoin",
        r"`data.caption_fields` must name captions. .*Did you mean 'caption'?",
    ),
    (
        "TRAIN data.image_field=jpg",
        r"expected jpg among caption, id, image; `data.image_field` names",
    ),
    (
        "TRAIN data.train=$/text.tfrecord",
        r"`data.train` must hold encoded pictures; .*: unknown picture format",
    ),
    ("TRAIN data.train=gcs://a/*.tar", r"Did you mean gs://?"),
    ("TRAIN data.train=s3://a/b", r"scheme.*Received: s3://"),
    (
        "TRAIN data.train=$/table/a.csv data.image_field=photo",
        r"a.csv must .*column 'photo'",
    ),
    ("TRAIN data.train=$/text", r"/text is not an uncompressed TFRecord"),
    (
        "curate --data $/pool-* --output $/x",
        r"`loss` must be .*without a run; `--set loss=sigmoid` sets",
    ),
    (
        "train --workdir nothing --extend 3",
        r"`--workdir` must be the directory of a fin",
    ),
    ("train --workdir $/run --extend 0", r"`--extend` must be at least 1"),
    (
        "train --workdir $/run --extend 3 --dry-run --set seed=1",
        r"`--workdir` alone beside it. Received: --set, --dry-run",
    ),
    (
        "TRAIN evaluation.data=$/nowhere/*",
        r"`evaluation.data` must match files",
    ),
    (
        "TRAIN data.vocabulary=$/none.txt",
        r"`data.vocabulary` must be a file, .*none.txt', no file",
    ),
    ("TRAIN data.vocabulary=$/folder", r"folder', a folder"),
    (
        "TRAIN data.vocabulary=$/vocab.json",
        # The second without KerasHub, which would read it.
        r"(A vocabulary that ends in .json must be one that|needs KerasHub)",
    ),
    (
        "evaluate --workdir $/run --data $/nowhere/*",
        r"`--data` must match files",
    ),
    ("embed --model $/run --data $/nowhere/*", r"`--data` must match files"),
    (
        "embed --model $/run --data $/pool-* --output $/vocab.txt",
        r"File exists: '.*vocab.txt'",
    ),
    (
        "embed --model $/run --folder $/table --output a.csv",
        r"`--output` must be a file that ends in .parquet or .npy",
    ),
    (
        "advise --pool $/pool-* --curated $/nowhere/* --output $/x",
        r"`--curated` must match files",
    ),
    (
        "TRAIN-IN-RUN seed=4",
        r"with other settings. Expected seed=0, .*seed=4; take another dir",
    ),
    (
        "TRAIN-IN-RUN steps=4",
        r"to train it further, `jest-tf train --workdir .*/run --extend 3`",
    ),
    ("train --workdir $/badjson", r"config.json' is no JSON file"),
)


class CommandsTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        # After an error all objects are collected; there are many by now.
        gc.freeze()
        cls.addClassCleanup(gc.unfreeze)
        _write_files(pathlib.Path(folder.name))
        code, shown = cls.main("TRAIN-IN-RUN")
        assert code == 0, shown
        for name, lost in (
            ("unfinished", "final.weights.h5"),
            ("badjson", "config.json"),
        ):
            shutil.copytree(f"{cls.folder}/run", f"{cls.folder}/{name}")
            os.remove(f"{cls.folder}/{name}/{lost}")
        pathlib.Path(cls.folder, "badjson/config.json").write_text("{")

    @classmethod
    def main(cls, line):
        """The exit code of a command, and its standard error."""
        first, *rest = line.split(" ") if line else [""]
        settings = [
            "data.train=$/pool-*.tfrecord",
            *("steps=1", "evaluation.data=", "selection.batch_size=4"),
            *("optimizer.warmup_steps=0", "data.image_size=4"),
            *("data.text_length=3", "data.vocabulary=$/vocab.txt"),
            "model.towers=examples.custom_towers:build",
        ]
        jest = [
            *("selection.batch_size=2", "selection.stages.0.candidates=2"),
            "selection.stages.0.num_chunks=1",
        ]
        starts = {
            "": [],
            **{
                name: [
                    *("train", "--config", recipe, "--workdir", workdir),
                    *("--set", *settings, *more),
                ]
                for name, recipe, workdir, more in (
                    ("TRAIN", RECIPE, "$/new", []),
                    ("TRAIN-IN-RUN", RECIPE, "$/run", []),
                    ("JEST", JEST, "$/new", jest),
                )
            },
        }
        words = [*starts.get(first, [first]), *rest]
        with (
            contextlib.redirect_stderr(io.StringIO()) as shown,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            code = cli.main([word.replace("$", cls.folder) for word in words])
        return code, shown.getvalue()

    def check(self, cases, expected_code):
        with contextlib.chdir(ROOT):
            for line, message in cases:
                with self.subTest(line):
                    code, shown = self.main(line)
                    self.assertEqual(code, expected_code, shown)
                    self.assertNotIn("Traceback", shown)
                    last = shown.splitlines()[-1]
                    if message.endswith("?"):
                        message = f"{message[:-1]}[?]"
                    self.assertRegex(last, f"^error: .*{message}")
                    self.assertFalse(os.path.exists(f"{self.folder}/new"))

    def test_what_cannot_be_parsed(self):
        self.check(USAGE, 2)

    def test_settings_and_recipes(self):
        self.check(SETTINGS, 1)

    def test_models_and_run_directories(self):
        self.check(MODELS, 1)

    def test_data(self):
        self.check(DATA, 1)

    def test_memory_that_does_not_suffice(self):
        full = tf.errors.ResourceExhaustedError(
            None, None, "{{node a}} OOM when allocating tensor with shape[9,9]"
        )
        with mock.patch.object(runs, "train", side_effect=full):
            self.check(
                [
                    (
                        "JEST reference.model=$/run",
                        r"`scoring_batch_size` of the live .*\(4, 2\), .*"
                        r"\(OOM when allocating tensor with shape\[9,9\]\)",
                    )
                ],
                1,
            )


class PythonTest(tf.test.TestCase):
    """Mistakes in a Keras program; tests/training/test_model.py has more."""

    def fit(self, learner, batch, **settings):
        model = jest_tf.JESTModel(learner, **settings)
        model.compile("sgd")
        model.fit(tf.data.Dataset.from_tensors(batch), verbose=0)

    def test_what_a_learner_returns(self):
        class Pairs(keras.Model):
            def call(self, batch, training=False):
                return batch["image"], batch["text"]

        (batch,) = tiny.super_batches()
        with self.assertRaisesRegex(
            TypeError, r"`learner` must map a batch to Emb.*: tuple of 2"
        ):
            self.fit(Pairs(), batch)
        with self.assertRaisesRegex(
            TypeError, "`reference` must map a .* dict"
        ):
            self.fit(
                tiny.learner(),
                batch,
                reference=dict,
                selection=config.SelectionConfig(
                    4,
                    stages=(
                        config.Stage(
                            3, num_chunks=2, criterion="easy_reference"
                        ),
                    ),
                ),
            )

    def test_names_and_settings(self):
        for overrides in ("steps=3", {"steps": 3}):
            with self.assertRaisesRegex(ValueError, "must be a list of texts"):
                jest_tf.load_config(RECIPE, overrides)
        with self.assertRaises(AttributeError) as caught:
            jest_tf.JestModel  # noqa: B018
        self.assertIs(caught.exception.obj, jest_tf)


def _write_files(folder):
    shard = pathlib.Path(tiny.write_shard(str(folder / "pool-00000.tfrecord")))
    picture = tf.io.encode_png(np.zeros([4, 4, 3], np.uint8)).numpy()
    texts = [shard_files.serialize(image="text", caption="a")] * 3
    shard_files.write_shard(str(folder / "text.tfrecord"), texts)
    members = shard_files.tar_sample("0", image=picture, caption="a b")
    tar = shard_files.write_tar(str(folder / "tar.tfrecord"), members)
    for name in ("folder", "table"):
        (folder / name).mkdir()
    recipe = "from jest_tf import config as c\ndef config():\n"
    for name, content in {
        "vocab.txt": "\n".join(tiny.VOCABULARY) + "\n",
        "vocab.json": "{}",
        "text": "x",
        "syntax.py": "def config(:\n",
        "import.py": "\nimport no_such\n",
        "field.py": f"{recipe}    return c.DataConfig(batch_size=5)\n",
        "a.png": picture,
        "gzip.tfrecord": gzip.compress(shard.read_bytes()),
        "gzip.tar": gzip.compress(pathlib.Path(tar).read_bytes()),
        "empty.tfrecord": b"",
        "table/a.csv": "image,caption\nmissing.png,a b\n",
    }.items():
        if isinstance(content, str):
            content = content.encode()
        (folder / name).write_bytes(content)

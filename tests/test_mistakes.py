"""A mistake is answered by a single line, the same for every command.

The line says which setting is wrong, what was expected, what came, and the way
out. Mistakes that need longer runs are in the tests of what finds them.
"""

import contextlib
import functools
import gc
import gzip
import io
import os
import pathlib
import shutil
import tempfile
import traceback
from unittest import mock

import keras
import numpy as np
import shard_files
import tensorflow as tf
import tiny

import jest_tf
from jest_tf import cli, config, runs
from jest_tf.data.sidecars import embed
from jest_tf.runs import directory, log

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPE = f"{ROOT}/configs/quickstart_uniform.py"
JEST = f"{ROOT}/configs/quickstart_jest.py"

# The command line, and the line that it ends with. `$` is the folder of the
# files below; TRAIN is `jest-tf train` with settings of a small run.
USAGE = (
    ("", "are required: COMMAND. See `jest-tf --help`"),
    ("trian --config a", "one of .'train', .*'trian'. Did you mean 'train'?"),
    (
        "--verbose train --workdir a --config b",
        "unrecognized arguments: --verbose. See `jest-tf --help`",
    ),
    ("train a.py --workdir a", "unexpected a.py. .* `--config a.py`?"),
    ("train --config a", "required: --workdir. See `jest-tf train --help`"),
    ("train --config a --work-dir b", "flag --work-dir. .*mean --workdir?"),
    (
        "train --workdir a --batch_size 64",
        "flag --batch_size. Did you mean `--set selection.batch_size=64`?",
    ),
    ("train --workdir a --config.steps=5", "Did you mean `--set steps=5`?"),
    ("embed --model a", "the following arguments are required: --data"),
    ("evaluate runs/a", "one of the arguments --workdir --model is required"),
)
STAGE = "selection.stages.0"
SETTINGS = (
    ("TRAIN steps", "must read \"a.b=c\", .*Received: 'steps'"),
    ("TRAIN selectoin.batch_size=4", "mean `selection.batch_size`?"),
    (f"JEST {STAGE}.criterion=learnabilty", "Did you mean 'learnability'?"),
    (f"TRAIN {STAGE}.gain=2", f"`{STAGE}.candidates` must be set"),
    ("TRAIN selection.stages=joint", "a list of groups of .*'joint'"),
    (f"JEST {STAGE}.embeddings=stored", "'stored' has no learner"),
    ("TRAIN model.towers= data.image_size=65", "`data.image_size`: .*=65"),
    ("TRAIN model.towers= model.preset=tinny", "Did you mean 'tiny'?"),
    (
        "TRAIN model.towers=examples.custom_towers:bild",
        "'bild'.*Did you mean 'build'?",
    ),
    *(
        (
            f"TRAIN {name}={value} data.train=missing",
            f"`{name}(.0)?` must name a function .*{value}",
        )
        for name, value in (
            ("callbacks", "examples.callbacks:profil"),
            ("model.loss", "examples.callbacks:none"),
            ("optimizer.name", "examples.callbacks:none"),
        )
    ),
    (
        f"JEST {STAGE}.criterion=nowhere:none data.train=missing",
        "criterion` must name a function .*'nowhere:none'",
    ),
    ("TRAIN callbacks=profile", "`callbacks.0` must be 'module:function'"),
    (
        "train --workdir a --config quickstart_jest",
        "Did you mean 'configs/quickstart_jest.py'?",
    ),
    *(
        (f"train --workdir a --config $/{name}", f"No recipe at .*{name}': exp")
        for name in ("missing.py", "folder", "vocab.txt")
    ),
    (
        "train --workdir a --config $/other.py",
        r"other.py' must have a function `config\(\)`.*NoneType",
    ),
    (
        "train --workdir a --config $/dict.py",
        "dict.py' must .* returns a TrainConfig. Received: dict",
    ),
    ("train --workdir a --config $/syntax.py", "syntax.py, line 1.$"),
    (
        "train --workdir a --config $/field.py",
        "Recipe .*field.py', line 3: TypeError: .*'batch_size'",
    ),
    ("train --workdir $/folder", "`--config` must name a recipe, unless"),
)
MODEL = "reference.model"
MODELS = (
    (
        f"JEST {MODEL}=kerashub:clip",
        f"`{MODEL}` must be a run directory, .*'kerashub:clip'",
    ),
    (
        f"JEST {MODEL}=$/rnu",
        f"`{MODEL}` must be the directory of a finished run, "
        ".*/rnu', which does not exist. Did you mean '.*/run'?",
    ),
    (f"JEST {MODEL}=$/vocab.txt", "vocab.txt', a file"),
    (
        f"JEST {MODEL}=$/run/checkpoints",
        "a folder without config.json. .*'.*/run'?",
    ),
    (
        f"JEST {MODEL}=$/unfinished",
        "`jest-tf train .*/unfinished --trust` finishes",
    ),
    (
        "JEST reference.model=$/cut",
        "cut/final.weights.h5 must be as the run wrote it: `jest-tf train "
        "--workdir .*/cut --trust` writes it again .*truncated file",
    ),
    (
        "JEST reference.model=$/preset",
        r"preset', which is not a run .* mean 'keras_hub:.*preset'?",
    ),
    (
        "evaluate --workdir $/run --trust --set evaluation.suite=$/none.toml",
        "No setting `evaluation.suite`. Fields of EvaluationConfig: data, st",
    ),
    *(
        (
            f"evaluate --workdir $/run --trust {words}",
            "`--set` must be of settings that `evaluate` reads: .* Received: "
            + words.rpartition("--set ")[2],
        )
        for words in (
            "--set data.image_size=64",
            "--set model.preset=s16 seed=3",
            "--data $/pool-* --set evaluation.data=a.tfrecord",
        )
    ),
    (
        "JEST reference.model=none reference.sidecar_dir=$/sidecars "
        "selection.stages.0.embeddings=stored "
        "selection.stages.0.criterion=easy_reference --dry-run",
        r"sidecar must be .*damaged `text`; rewrite it with `jest-tf embed",
    ),
    (
        "JEST reference.model=none reference.sidecar_dir=$/sidecars "
        "selection.stages.0.embeddings=stored "
        "selection.stages.0.criterion=own_parts:doubt --dry-run",
        "`selection.stages.0.criterion` of a stored stage must need only the "
        "reference. .*doubt', which needs learner, reference",
    ),
    (
        f"JEST {MODEL}=$/run reference.sidecar_dir=$/folder",
        "No sidecar of .*pool-00000.tfrecord.*`jest-tf embed --model .*/run "
        "--trust --data .*` writes missing ones",
    ),
    (f"JEST {MODEL}=none", f"in live stages or .*, set `{MODEL}`"),
    (f"JEST {MODEL}=/nowhere --dry-run", f"`{MODEL}` must be"),
    (
        "evaluate --workdir $/unfinished --trust --data $/pool-*",
        "`--workdir` must .*unfinished --trust` finishes it, and `--step` tak",
    ),
    (
        "evaluate --workdir $/run --trust --data $/pool-* --step 7",
        "one of the checkpoints of '.*/run', .1.. Received: 7",
    ),
    ("page --workdir $/folder", "`workdir` must be a run directory"),
    ("evaluate --model a.keras", "nothing to evaluate on: expected `--data`"),
    (
        "export --model nothing --output $/x --format onnx",
        "`--model` must be a run directory, .*'nothing', which is not a run",
    ),
    (
        "embed --model $/folder --data $/pool-*",
        "`--model` must be the directory of a finished run",
    ),
)
DATA = (
    ("TRAIN data.train=$/nowhere/*.tar", "there is no folder '.*/nowhere'"),
    (
        "TRAIN data.train=$/table/*.tar",
        "matches none: the folder '.*/table' holds a.csv, holes.csv$",
    ),
    ("TRAIN data.train=$/table", "a folder: name files in it.*/table/.*.csv'$"),
    *(
        (
            f"TRAIN data.train=$/photos{name}",
            "(photos'|folder that) holds 0.png, 1.png, 2.png and 1 more; "
            ".*/0.png: it is an image: name images in a table",
        )
        for name in ("", "/*.tar")
    ),
    ("TRAIN data.train=$/a.png", "it is an image: name images in a table"),
    (
        "TRAIN data.train=$/images.tar",
        "must hold captions.*: none in 1 records, .* caption of 'a.jpg' is in "
        "'a.txt' .* table with the columns `image` and `caption`$",
    ),
    ("TRAIN data.train=$/gzip.tfrecord", "it is compressed: `gunzip < "),
    (
        "TRAIN data.train=$/tar.tfrecord",
        "it is a tar: let its name end in .tar",
    ),
    ("TRAIN data.train=$/empty.tfrecord", "empty.tfrecord is empty"),
    ("TRAIN data.train=$/table/a.csv", "missing file: 'missing.png'; paths"),
    *(
        (
            line,
            "Too many records cannot be read: .*; the first: record .* of "
            ".*/table/holes.csv, missing file: 'missing.png'",
        )
        for line in (
            "TRAIN data.train=$/table/holes.csv",
            "TRAIN data.train=$/table/holes.csv --dry-run",
            "embed --trust --model $/run --data $/table/holes.csv",
        )
    ),
    (
        "TRAIN data.caption_fields=captoin",
        "`data.caption_fields` must name captions. .*mean 'caption'?",
    ),
    (
        "TRAIN data.image_field=jpg",
        "expected jpg among caption, id, image; `data.image_field` names",
    ),
    (
        "TRAIN data.train=$/text.tfrecord",
        "`data.train` must hold encoded images; .*: unknown image format",
    ),
    (
        "TRAIN data.train=$/blank.tfrecord data.vocabulary=",
        "`data.train` must hold captions.*none in 3 records, the first record "
        "0 of .*/blank.tfrecord",
    ),
    ("TRAIN data.train=gcs://a/*.tar", "Did you mean gs://?"),
    ("TRAIN data.train=s3://a/b", "scheme.*Received: s3://"),
    (
        "curate --data $/pool-* --output $/x",
        "`loss` must be .*no `loss`.*add `--set loss=sigmoid`",
    ),
    (
        "curate --data $/pool-* --output $/x --set loss=sigmoid "
        "stage.last_step=9",
        "`stage.last_step` must be left out",
    ),
    (
        "curate --data $/pool-* --output $/x --set loss=sigmoid size=2",
        "No setting `size`. Fields of Choice: ",
    ),
    ("train --workdir nothing --extend 3", "`--workdir` must be the direct"),
    (
        "train --workdir $/run --extend 3 --dry-run --set seed=1",
        "`--workdir` alone beside it. Received: --set, --dry-run",
    ),
    ("TRAIN evaluation.data=$/nowhere/*", "`evaluation.data` must match"),
    ("TRAIN data.vocabulary=$/none.txt", "`data.vocabulary` must be a file"),
    (
        "TRAIN data.vocabulary=$/vocab.json",
        # The second without KerasHub, which would read it.
        "(A vocabulary that ends in .json must be one that|needs KerasHub)",
    ),
    (
        "embed --model $/run --trust --data $/nowhere/*",
        "`--data` must match files",
    ),
    (
        "advise --pool $/pool-* --curated $/nowhere/* --output $/x",
        "`--curated` must match files",
    ),
    (
        "TRAIN-IN-RUN steps=4",
        "`jest-tf train --workdir .*/run --trust --extend 3`",
    ),
    ("train --workdir $/badjson", "config.json' is not a JSON file"),
)


class CommandsTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        # After an error all objects are collected; there are many by now.
        gc.freeze()
        _write_files(pathlib.Path(cls.folder))
        with tiny.eagerly():
            code, shown = cls.main("TRAIN-IN-RUN")
        assert code == 0, shown
        for name in ("unfinished", "cut", "badjson"):
            shutil.copytree(f"{cls.folder}/run", f"{cls.folder}/{name}")
        os.remove(f"{cls.folder}/unfinished/final.weights.h5")
        os.truncate(f"{cls.folder}/cut/final.weights.h5", 3000)
        pathlib.Path(cls.folder, "badjson/config.json").write_text("{")

    @classmethod
    def main(cls, line):
        """The exit code of a command, and its standard error."""
        words = line.split(" ") if line else []
        settings = [
            "data.train=$/pool-*.tfrecord",
            *("steps=1", "evaluation.data=", "selection.batch_size=4"),
            *("optimizer.warmup_steps=0", "data.image_size=4"),
            *("data.text_length=3", "data.vocabulary=$/vocab.txt"),
            "model.towers=examples.custom_towers:build",
        ]
        jest = [
            *("selection.batch_size=2", "selection.stages.0.candidates=2"),
            *("selection.stages.0.num_chunks=1", "reference.sidecar_dir="),
        ]
        starts = {
            "TRAIN": (RECIPE, "$/new", []),
            "TRAIN-IN-RUN": (RECIPE, "$/run", []),
            "JEST": (JEST, "$/new", jest),
        }
        if line.partition(" ")[0] in starts:
            recipe, workdir, more = starts[words.pop(0)]
            start = ["train", "--config", recipe, "--workdir", workdir]
            words = [*start, "--trust", "--set", *settings, *more, *words]
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

    def test_a_flipped_bit_of_the_weights_is_said_and_mended(self):
        path = shutil.copytree(f"{self.folder}/run", f"{self.folder}/flipped")
        weights = pathlib.Path(path, "final.weights.h5")
        content = bytearray(weights.read_bytes())
        # A bit of a weight, which HDF5 does not check.
        load = functools.partial(jest_tf.load, trust=True)
        value = load(path).learner.variables[0].numpy().tobytes()
        content[content.index(value[:16])] ^= 1
        weights.write_bytes(content)
        self.check(
            [
                (
                    "evaluate --trust --workdir $/flipped --data $/pool-*",
                    "final.weights.h5 must be .* `jest-tf train --workdir "
                    ".*flipped --trust` writes it .* fails its checksum",
                )
            ],
            1,
        )
        with tiny.eagerly():
            code, shown = self.main("train --trust --workdir $/flipped")
        self.assertEqual(code, 0, shown)
        self.assertRegex(shown, "was damaged: .*checksum.* written again")
        self.assertIn("already finished", shown)
        tiny.assert_equal_variables(
            self, load(path).learner, load(f"{self.folder}/run").learner
        )
        os.remove(f"{path}/final.json")  # as a run of an older version
        weights.write_bytes(content)
        load(path)

    def test_a_dry_run_refuses_what_a_run_refuses(self):
        first = "selection.stages.0."
        for line, message in (
            ("JEST model.micro_batch_size=7", "divide .*: 7, b/R=2"),
            (f"JEST {first}scoring_batch_size=7", f"`{first}scoring.*: 7, 4"),
            # In steps that do not come first.
            (
                f"JEST {first}scoring_batch_size=7 {first}first_step=5 steps=9",
                "scoring_batch_size` must .*: 7, 4 rows",
            ),
            (f"JEST {first}candidates=1073741824", "less than 2.31.*=2147483"),
            (f"JEST {first}candidates=1000000000", "memory of this machine"),
            ("JEST data.image_size=16384 selection.batch_size=99", "memory"),
            ("JEST distribution.virtual_devices=3", "before TensorFlow"),
            ("JEST distribution.virtual_devices=257", "in .1, 256"),
            (
                "JEST reference.distillation_weight=1 reference.projection=7",
                "=64",
            ),
            ("JEST model.train_views=true", "`model.train_views` needs"),
            ("JEST model.loss=own_parts:no_rows", "`loss` must name a func"),
            ("JEST model.frozen=nothing", "`model.frozen`"),
            (
                "TRAIN-IN-RUN seed=4",
                "with other settings. Expected seed=0, .*seed=4",
            ),
        ):
            line = line.replace("JEST", f"JEST {MODEL}=$/run")
            with self.subTest(line), contextlib.chdir(ROOT):
                results = []
                for flag in (" --dry-run", ""):
                    self.assertFalse(os.path.exists(f"{self.folder}/new"))
                    with tiny.eagerly():
                        code, shown = self.main(line + flag)
                    results.append((code, shown.splitlines()[-1]))
                    self.assertNotIn("Traceback", shown)
                shutil.rmtree(f"{self.folder}/new", ignore_errors=True)
                self.assertEqual(*results)
                self.assertRegex(results[0][1], f"^error: .*{message}")

    def test_a_loss_that_stays_at_chance_is_said_once_and_at_the_end(self):
        """tests/runs/test_log.py has which losses do."""
        words = "TRAIN steps=3 evaluation.log_every_steps=1"
        for found in ((None, True, True), (None, True, False)):
            judge = mock.patch.object(log, "is_at_chance", side_effect=found)
            with tiny.eagerly(), judge, contextlib.chdir(ROOT):
                code, shown = self.main(words)
            rows = directory.read_rows(f"{self.folder}/new", "metrics.jsonl")
            shutil.rmtree(f"{self.folder}/new")
            self.assertEqual(code, 0, shown)
            self.assertEqual(shown.count(f"step 2: {log.AT_CHANCE}\n"), 1)
            last = shown.splitlines()[-1]
            self.assertEqual(last.endswith(f"; but {log.AT_CHANCE}"), found[2])
            column = [row.get("train/at_chance") for row in rows]
            self.assertEqual(column, [*found])

    def test_memory_that_does_not_suffice(self):
        texts = "OOM when allocating a tensor", "Out of memory allocating 9 B"
        errors = (
            tf.errors.ResourceExhaustedError(
                None, None, "{{node}} " + texts[0]
            ),
            RuntimeError(f"RESOURCE_EXHAUSTED: {texts[1]}"),  # as JAX's
        )
        for error, text in zip(errors, texts, strict=True):
            message = r"`scoring_batch_size` of the live .*\(4, 2\), .*\(.*"
            with mock.patch.object(runs, "train", side_effect=error):
                self.check([("JEST reference.model=$/run", message + text)], 1)


class PythonTest(tf.test.TestCase):
    """Mistakes in a Keras program; tests/training/test_model.py has more."""

    STAGE = config.Stage(3, num_chunks=2, criterion="easy_reference")
    SELECTION = config.SelectionConfig(4, stages=(STAGE,))

    def fit(self, learner, batch, **settings):
        model = jest_tf.JESTModel(learner, **settings)
        model.compile("sgd")
        model.fit(tf.data.Dataset.from_tensors(batch), verbose=0)

    def test_what_a_learner_returns(self):
        class Pairs(keras.Model):
            def call(self, batch, training=False):
                return batch["image"], batch["text"]

        (batch,) = tiny.super_batches()
        with self.assertRaisesRegex(TypeError, "`learner` must map a batch"):
            self.fit(Pairs(), batch)
        with self.assertRaisesRegex(TypeError, "`reference` must .* dict"):
            self.fit(
                tiny.learner(), batch, reference=dict, selection=self.SELECTION
            )

    def test_pixels_ids_and_a_missing_reference(self):
        learner = tiny.learner()
        (batch,) = tiny.super_batches()
        levels = batch["image"].astype(np.float32)
        for scale, offset, received in (
            (1.0, 0.0, r"\[0, 255\]"),
            (1 / 255, 0.0, r"\[0, 1\]"),
            (1 / 58, -2.1, r"\[-2.1, 2.3\]"),
        ):
            images = batch | {"image": levels * scale + offset}
            for data in (images, (images, None)):
                with self.assertRaisesRegex(
                    ValueError,
                    r"`image`: .* floats that fill \[-1, 1\], not float32 in "
                    f"{received}. The model rescales uint8 itself",
                ):
                    self.fit(learner, data)
        self.fit(learner, batch | {"image": levels / 127.5 - 1})
        text = batch["text"].copy()
        text[3, 1] = tiny.VOCABULARY_SIZE
        with self.assertRaisesRegex(
            ValueError,
            r"`text` must hold token ids in \[0, 12\).*Received: 12$",
        ):
            self.fit(learner, batch | {"text": text})
        model = jest_tf.Embedder(
            learner, lambda texts: tf.fill([tf.size(texts), 3], 99)
        )
        with self.assertRaisesRegex(ValueError, r"\[0, 12\).*Received: 99$"):
            model.embed_texts(["a"])
        with self.assertRaisesRegex(
            ValueError, "pass `reference` to the Funnel"
        ) as e:
            self.fit(learner, batch, selection=self.SELECTION)
        # Not from within Keras' `fit`.
        self.assertLess(
            len(list(traceback.walk_tb(e.exception.__traceback__))), 7
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
    image = tf.io.encode_png(np.zeros([4, 4, 3], np.uint8)).numpy()
    texts = [shard_files.serialize(image="text", caption="a")] * 3
    shard_files.write_shard(str(folder / "text.tfrecord"), texts)
    blank = [shard_files.serialize(image=image, caption=" ")] * 3
    shard_files.write_shard(str(folder / "blank.tfrecord"), blank)
    members = shard_files.tar_sample("0", image=image, caption="a b")
    shard_files.write_tar(str(folder / "tar.tfrecord"), members)
    shard_files.write_tar(str(folder / "images.tar"), members[:1])
    for name in ("folder", "table", "preset", "photos"):
        (folder / name).mkdir()
    tiny.write_sidecars(str(shard), output=embed.Output(f"{folder}/sidecars"))
    (sidecar,) = (folder / "sidecars").iterdir()
    sidecar.write_bytes(sidecar.read_bytes()[:-100] + bytes(100))
    recipe = "from jest_tf import config as c\ndef config():\n"
    for name, content in {
        "vocab.txt": "\n".join(tiny.VOCABULARY) + "\n",
        "vocab.json": "{}",
        "other.py": "def other():\n    return 1\n",
        "dict.py": "def config():\n    return {'steps': 3}\n",
        "syntax.py": "def config(:\n",
        "field.py": f"{recipe}    return c.DataConfig(batch_size=5)\n",
        "a.png": image,
        "gzip.tfrecord": gzip.compress(shard.read_bytes()),
        "empty.tfrecord": b"",
        # As KerasHub's `save_to_preset` begins it.
        "preset/config.json": '{"registered_name": "keras_hub>CLIPBackbone"}',
        "table/a.csv": "image,caption\nmissing.png,a b\n",
        **{f"photos/{number}.png": image for number in range(4)},
        "photos/.hidden": "",
        "table/holes.csv": "image,caption\n"
        + "".join(f"{name}.png,a b\n" for name in ["../a"] * 9 + ["missing"]),
    }.items():
        if isinstance(content, str):
            content = content.encode()
        (folder / name).write_bytes(content)

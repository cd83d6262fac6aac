"""The commands, end to end through `main(argv)` on the shipped images."""

import contextlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from unittest import mock

import numpy as np
import pytest
import shard_files
import tensorflow as tf
import tiny

import jest_tf
from examples import quickstart, quickstart_report
from jest_tf import cli
from jest_tf.data import stores
from jest_tf.runs import bootstrap, directory, log

ROOT = pathlib.Path(__file__).resolve().parent.parent
_FOLDER = tempfile.TemporaryDirectory()
DATA = _FOLDER.name  # a part of the shipped images
# A run of seconds: a few small steps.
SHRUNK = (
    f"evaluation.data={DATA}/val-*.tfrecord",
    "evaluation.every_steps=none",
    "evaluation.log_every_steps=2",
    "data.vocabulary_size=400",
    "selection.batch_size=24",
    "optimizer.warmup_steps=1",
    "checkpoint.every_steps=3",
    "steps=5",
)
ICONS = [
    f"evaluation.stores.0.{setting}"
    for setting in (
        "name=icons",
        f"data={DATA}/val-*.tfrecord",
        "captions=all",
        "label_field=style",
    )
]


def setUpModule():
    # Tests of other modules may come between those of this module.
    os.makedirs(DATA, exist_ok=True)
    counts = {"curated": 200, "pool": 400, "val": 250, "test": 250}
    shard_files.write_shipped(DATA, **counts)


def tearDownModule():
    _FOLDER.cleanup()


def train(recipe, workdir, *overrides, flags=()):
    return cli.main(
        [
            *("train", "--config", f"{ROOT}/configs/quickstart_{recipe}.py"),
            *("--workdir", workdir, "--trust", *flags, "--set", *SHRUNK),
            *(f"data.train={DATA}/pool-*.tfrecord", "data.vocabulary="),
            *("reference.sidecar_dir=", *overrides),
        ]
    )


def run(recipe, workdir, *overrides):
    with quiet() as shown:
        code = train(recipe, workdir, *overrides)
    if code:
        raise AssertionError(shown.getvalue())


def lines(workdir, name):
    return directory.read_rows(workdir, name)


@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stderr(io.StringIO()) as captured:
        yield captured


class TrainersTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.teacher = os.path.join(cls.folder, "reference")
        cls.learner = os.path.join(cls.folder, "jest")
        small = "model.towers=examples.custom_towers:build"
        cls.jest = (
            small,
            *("selection.batch_size=8", "selection.stages.0.candidates=3"),
            "selection.stages.0.num_chunks=3",
            *(f"reference.model={cls.teacher}", "evaluation.log_ids=true"),
        )
        with tiny.eagerly():
            run(
                *("uniform", cls.teacher, *ICONS, small),
                f"data.train={DATA}/curated-*.tfrecord",
            )
        run("jest", cls.learner, *cls.jest)

    def test_a_run_directory_has_the_documented_files(self):
        # All of them are in a table that test_docs.py checks.
        self.assertIn("flops.json", os.listdir(self.learner))
        resolved = directory.load_config(self.learner, trust=True)
        self.assertEqual(resolved.steps, 5)
        self.assertEqual(resolved.selection.batch_size, 8)
        self.assertEqual(resolved.reference.model, self.teacher)
        self.assertEqual(
            sorted(os.listdir(f"{self.learner}/checkpoints")),
            ["step-000000003", "step-000000005"],
        )
        versions = directory.read(self.learner, "versions.json")["versions"]
        self.assertEqual(versions["tensorflow"], tf.__version__)
        rows = lines(self.learner, "metrics.jsonl")
        draws = lines(self.learner, "draws.jsonl")
        for row, draw in zip(rows, draws, strict=True):
            self.assertLen(set(draw["ids"]), 8)
            self.assertEqual(log.digest(draw["ids"]), row["select/digest"])
        # A finished run is found without its recipe.
        with quiet() as shown:
            code = cli.main(["train", "--workdir", self.teacher, "--trust"])
        self.assertEqual(code, 0)
        self.assertIn("already finished, 5 steps", shown.getvalue())

    def test_evaluate_repeats_the_runs_evaluation_or_takes_a_checkpoint(self):
        row = lines(self.learner, "evaluation.jsonl")[-1]
        self.assertEqual(row["step"], 5)
        expected = {n: row[n] for n in row if n.startswith("eval/")}
        found = [
            self.evaluate("--workdir", self.learner, *words)
            for words in ([], ["--step", "5"], ["--step", "3"])
        ]
        self.assertAllClose(found[0], expected)
        self.assertEqual(found[1], found[0])
        self.assertNotEqual(found[2], found[0])

    def evaluate(self, *words):
        """The measures that `jest-tf evaluate --json` prints."""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            self.assertEqual(
                cli.main(["evaluate", *words, "--json", "--trust"]), 0
            )
        return json.loads(printed.getvalue())

    def test_named_stores_are_measured_as_in_training_and_written(self):
        row = lines(self.teacher, "evaluation.jsonl")[-1]
        expected = {n: row[n] for n in row if n.startswith("eval/")}
        self.assertIn("eval/icons/zero_shot/mean_per_class", expected)
        folder = os.path.join(self.folder, "results")
        found = self.evaluate("--workdir", self.teacher, "--output", folder)
        self.assertAllClose(found, expected)
        self.assertEqual(directory.read(folder, "evaluation.json"), found)
        page = pathlib.Path(folder, "evaluation.html")
        self.assertIn("<h2>icons</h2>", page.read_text("utf-8"))
        # By slice, too: together they are the whole.
        found = self.evaluate(
            *("--workdir", self.teacher, "--output", folder, "--by", "kind")
        )
        slices = found.pop("slices")
        self.assertAllClose(found, expected)
        name = "zero_shot/accuracy@1"
        of_icons = [
            each["measures"][name]
            for each in slices
            if each["store"] == "icons"
        ]
        self.assertGreater(len(of_icons), 1)
        total = sum(each["value"] * each["count"] for each in of_icons)
        count = sum(each["count"] for each in of_icons)
        self.assertAllClose(total / count, found[f"eval/icons/{name}"])
        written = directory.read(folder, "evaluation.json")
        self.assertEqual(written["slices"], slices)
        title = "<h3>By slice, the weakest first</h3>"
        self.assertIn(title, page.read_text("utf-8"))
        # Another run is measured on the same stores by its settings.
        words = ["--workdir", self.learner, "--set", "evaluation.data="]
        found = self.evaluate(*words, *ICONS)
        self.assertLen(found, 8 + 3)
        self.assertIn("eval/icons/text_to_image/mrr", found)
        # By other fields than the run's.
        words = ["--data", f"{DATA}/val-*.tfrecord", "--trust", "--set"]
        words = ["evaluate", "--workdir", self.learner, *words]
        with quiet() as shown:
            self.assertEqual(cli.main([*words, "data.image_field=photo"]), 1)
        self.assertIn("photo", shown.getvalue())

    def test_a_dry_run_describes_the_run_and_writes_only_missing_indexes(self):
        workdir = os.path.join(self.folder, "planned")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            indexes = pathlib.Path(self.folder, "indexes")
            planned = (*self.jest, f"data.index_dir={indexes}", *ICONS)
            code = train("jest", workdir, *planned, flags=["--dry-run"])
            self.assertEqual(code, 0)
            (index,) = indexes.glob("pool-*.index")
            written = index.stat().st_mtime_ns
            train("jest", workdir, *planned, flags=["--dry-run"])
            self.assertEqual(index.stat().st_mtime_ns, written)
        for line in (
            r"data +400 records in 1 shard\n",
            r"reference +.*/reference, [\d,]+ parameters",
            r"evaluation +250 records, val: retrieval\n",
            r"evaluation +250 records, icons: retrieval, zero_shot\n",
            r"stage 0, live +24 rows, the super-batch, -> 8, joint by learn",
            r"trained +8 rows",
            r"step +image uint8 \[24, 32, 32, 3\], text int32 \[24, 16\]",
            "steps +5: 120 examples drawn, 120 examples scored, 40 examples t",
            "writes +a new run directory, .*/planned",
        ):
            self.assertRegex(printed.getvalue(), line)
        self.assertFalse(os.path.exists(workdir))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            train("jest", self.learner, *self.jest, flags=["--dry-run"])
        self.assertIn("would be continued", printed.getvalue())


class StartTest(tf.test.TestCase):
    """Commands before any of TensorFlow is loaded."""

    def python(self, code, **environment):
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )

    def test_help_and_settings_load_no_tensorflow(self):
        for code in (
            "import jest_tf",
            "from jest_tf import config; config.load_config(RECIPE)",
            "from jest_tf import cli; cli.main(['--help'])",
            "from jest_tf import cli; cli.main(['train', '--help'])",
            "from jest_tf import cli; cli.main(['curate', '--help'])",
        ):
            done = self.python(
                f"RECIPE = 'configs/quickstart_jest.py'; {code}; import sys; "
                "assert not {'tensorflow', 'keras', 'numpy'} & {*sys.modules}"
            )
            self.assertEqual(done.returncode, 0, done.stderr)

    def test_compiled_steps_are_kept_on_a_disk_or_a_bucket(self):
        code = (
            "import os; os.environ.pop('JAX_COMPILATION_CACHE_MAX_SIZE', 0); "
            "from jest_tf import cli; cli.main(['--help']); "
            "print(os.environ.get('JAX_COMPILATION_CACHE_MAX_SIZE'))"
        )
        # JAX cannot take the lock that a limit needs on a bucket.
        for folder, limit in (("/nowhere", 2**32), ("gs://bucket/x", None)):
            done = self.python(code, JAX_COMPILATION_CACHE_DIR=folder)
            self.assertEqual(done.stdout.splitlines()[-1], str(limit))

    def test_a_signal_is_answered_in_any_state(self):
        taken = "signal.signal(15, lambda *_: None); "
        for state, end, said in (
            ("", "time.sleep(60)", "stopped by SIGTERM; .* goes on\n"),
            # As `runs.train` takes it, which waits for a request, or whose
            # process does after it has said so.
            (taken, "time.sleep(60)", "stopped by SIGTERM 0.1 s ago, .*\n"),
            (
                f"{taken}threading.Thread(target=time.sleep, args=[60]).start()"
                "; ",
                "sys.exit(75)",
                "",
            ),
        ):
            started = time.monotonic()
            done = self.python(
                "import os, signal, sys, threading, time\n"
                "from jest_tf import cli, config\n"
                "from jest_tf.cli import train\n"
                "def load_config(*_):\n"
                f"    {state}os.kill(os.getpid(), 15); {end}\n"
                "config.load_config, train.GRACE = load_config, 0.1\n"
                "sys.exit(cli.main(['train', '--config', 'a', '--workdir', "
                "'a']))"
            )
            self.assertEqual(done.returncode, 75, done.stderr)
            self.assertRegex(done.stderr, f"^{said}$")
            self.assertLess(time.monotonic() - started, 60.0)

    def test_another_backend_is_refused_before_anything_is_read(self):
        recipe = f"{ROOT}/configs/quickstart_uniform.py"
        words = ["train", "--config", recipe, "--workdir", "/nowhere/run"]
        done = self.python(
            f"import sys; from jest_tf import cli; sys.exit(cli.main({words}))",
            KERAS_BACKEND="torch",
        )
        self.assertEqual(done.returncode, 1)
        # Old versions of TensorFlow begin with words of their own.
        *before, last = done.stderr.splitlines()
        self.assertRegex(last, "^error: `KERAS_BACKEND` .*Received: 'torch'")
        self.assertNotRegex("\n".join(before), "(?m)Traceback|^error")


@pytest.mark.slow
class QuickstartTest(tf.test.TestCase):
    def test_the_quickstart_embeds_trains_compares_and_reports(self):
        runs = pathlib.Path(self.get_temp_dir()) / "runs"
        pool = f"{DATA}/pool-*.tfrecord"
        shrunk = [
            f"data.train={pool}",
            f"evaluation.data={DATA}/val-*.tfrecord,{DATA}/test-*.tfrecord",
            "steps=4",
            "selection.batch_size=8",
            "optimizer.warmup_steps=1",
            "evaluation.every_steps=2",
            "evaluation.log_every_steps=2",
        ]
        chunks = "selection.stages.0.num_chunks=4"
        chosen = [*shrunk, "selection.stages.0.candidates=3", chunks]
        overrides = {"uniform": shrunk, "jest": chosen, "distilled": chosen}
        with (
            mock.patch.object(quickstart_report, "POOL", pool),
            quiet(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            quickstart.train(runs, 0, overrides)
            shown = quickstart_report.write(runs, [0])
        for name in ("quickstart_curves.png", "offered_and_chosen.png"):
            image = tf.io.decode_png((runs / name).read_bytes())
            self.assertGreater(np.std(image), 1.0)
        self.assertIn(shown, (runs / "report.md").read_text())
        (found,) = re.findall(r"^\| JEST \|(.*)\|$", shown, re.M)
        cells = [cell.strip() for cell in found.split("|")]
        log = lines(runs / "jest", "metrics.jsonl")
        measured = lines(runs / "jest", "evaluation.jsonl")[-1]
        reference = directory.load_config(
            quickstart_report.REFERENCE, trust=True
        )
        step = directory.read(quickstart_report.REFERENCE, "flops.json")
        taught = reference.steps * step["0"]["step"] / 1e12
        store = stores.open_store(pool)
        embedded = bootstrap.embedding_cost(
            jest_tf.load(quickstart_report.REFERENCE, trust=True),
            store,
            str(runs / "embeddings"),
        )
        self.assertEqual(embedded.images, len(store))
        tflops = (log[-1]["flops/step"] + embedded.flops) / 1e12
        clean = np.mean([row["stages/0/clean_out"] for row in log])
        self.assertEqual(
            cells,
            [
                *("4", "32", f"{tflops:.2f}", f"{tflops + taught:.2f}"),
                f"{clean:.0%}",
                *(
                    f"{100 * measured[f'eval/test/{way}/mrr']:.1f}"
                    for way in ("image_to_text", "text_to_image")
                ),
            ],
        )

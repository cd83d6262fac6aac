"""The distribution: what it declares, and its wheel outside of a clone."""

import ast
import configparser
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile

import pytest
import sentencepiece_files
import tensorflow as tf
import tiny

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Packages of a namespace that several distributions share.
DISTRIBUTIONS = {"google.protobuf": "protobuf"}
RECIPE = """
import dataclasses

from jest_tf import config as config_lib


def config():
    return config_lib.TrainConfig(
        steps=2,
        data=config_lib.DataConfig(
            train=("shard.tfrecord",), image_size=4, text_length=4,
            vocabulary="vocabulary.model",
        ),
        model=config_lib.ModelConfig(towers="my_towers:build"),
        selection=config_lib.SelectionConfig(
            4,
            stages=(
                config_lib.Stage(2, num_chunks=2, criterion="hard_learner"),
            ),
        ),
        evaluation=config_lib.EvaluationConfig(
            data=("shard.tfrecord",), log_every_steps=1, log_ids=True
        ),
    )
"""
TOWERS = """
import keras


def build(config, vocabulary_size):
    return (
        keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(6)]),
        keras.Sequential(
            [
                keras.Input([None], dtype="int32"),
                keras.layers.Embedding(vocabulary_size, 6),
                keras.layers.GlobalAveragePooling1D(),
            ]
        ),
    )
"""


def settings():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def required(text):
    """Normalised names of the distributions in a list of requirements."""
    return {
        re.match(r"[\w-]+", line)[0].lower().replace("_", "-")
        for line in text.split("\n")
        if line and not line.startswith("#")
    }


def third_party(path):
    """Modules that a file imports which are neither ours nor Python's."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{name.name}" for name in node.names]
        for name in names:
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "jest_tf":
                yield name


class DeclaredTest(tf.test.TestCase):
    def test_every_third_party_import_is_a_requirement_or_an_extra(self):
        options = settings()
        declared = required(options["options"]["install_requires"])
        for name, extra in options["options.extras_require"].items():
            if name not in ("test", "icontext"):
                declared |= required(extra)
        distributions = importlib.metadata.packages_distributions()
        for path in ROOT.glob("jest_tf/**/*.py"):
            for name in third_party(path):
                top = name.partition(".")[0]
                known = {
                    found
                    for module, found in DISTRIBUTIONS.items()
                    if name.startswith(module)
                } or {
                    found.lower().replace("_", "-")
                    for found in distributions.get(top, [top])
                }
                with self.subTest(path=path.name, module=name):
                    self.assertNotEmpty(known & declared)

    def test_the_oldest_versions_are_the_lower_bounds(self):
        options = settings()
        bounds = options["options"]["install_requires"]
        bounds += options["options.extras_require"]["tables"]
        least = dict(re.findall(r"([\w-]+)>=([\d.]+)", bounds))
        text = (ROOT / "constraints-oldest.txt").read_text()
        pins = dict(re.findall(r"([\w-]+)==([\d.]+)\.\*", text))
        # Optional, and a table of the benchmarks.
        self.assertEqual(pins.pop("pandas"), "2.0")
        least.pop("markupsafe")  # of Jinja
        self.assertEqual(pins, least)

    def test_the_requirements_on_tpus_hold_those_of_the_package(self):
        text = (ROOT / "requirements-tpu.txt").read_text()
        apart = set(re.findall(r"([\w-]+)==", text))  # by --no-deps, or pinned
        needed = required(settings()["options"]["install_requires"])
        self.assertIn("tensorflow-tpu", required(text))
        needed -= {"tensorflow"}
        self.assertContainsSubset(needed, required(text) | apart)


@pytest.mark.slow
class WheelTest(tf.test.TestCase):
    """Builds an sdist, a wheel from it, and installs that in a bare venv.

    The venv sees the packages of the tests, so nothing is downloaded.
    """

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.folder = pathlib.Path(folder)
        source = cls.folder / "source"
        shutil.copytree(
            ROOT / "jest_tf",
            source / "jest_tf",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        cls.sdist = cls.build("sdist", source)
        with tarfile.open(cls.sdist) as file:
            file.extractall(cls.folder, filter="data")
        unpacked = cls.folder / cls.sdist.name.removesuffix(".tar.gz")
        cls.wheel = cls.build("wheel", unpacked)
        bare = cls.folder / "venv"
        cls.check(sys.executable, "-m", "venv", "--without-pip", bare)
        (site,) = bare.glob("lib/python*/site-packages")
        (site / "outer.pth").write_text(sysconfig.get_paths()["purelib"])
        cls.check(
            *(sys.executable, "-m", "pip", "--python", bare / "bin" / "python"),
            *("--disable-pip-version-check", "install", "--quiet"),
            *("--no-deps", "--no-index", cls.wheel),
        )
        cls.program = bare / "bin" / "jest-tf"
        cls.work = cls.folder / "work"
        cls.work.mkdir()
        tiny.write_shard(str(cls.work / "shard.tfrecord"))
        model = sentencepiece_files.model()
        (cls.work / "vocabulary.model").write_bytes(model)
        (cls.work / "my_towers.py").write_text(TOWERS)
        (cls.work / "recipe.py").write_text(RECIPE)

    @classmethod
    def build(cls, kind, source):
        script = (
            "import sys; from setuptools import build_meta; "
            f"build_meta.build_{kind}(sys.argv[1])"
        )
        out = cls.folder / kind
        out.mkdir()
        cls.check(sys.executable, "-c", script, out, cwd=source)
        (built,) = out.iterdir()
        return built

    @classmethod
    def check(cls, *command, cwd=None):
        environment = {**os.environ}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def run_command(self, *arguments):
        return self.check(self.program, *arguments, cwd=self.work)

    def test_the_wheel_and_nothing_else_lists_its_commands(self):
        shown = self.run_command("--help")
        for name in ("train", "embed", "curate", "advise", "page"):
            self.assertRegex(shown, rf"(?m)^    {name} ")
        where = self.check(
            self.folder / "venv" / "bin" / "python",
            *("-c", "import jest_tf; print(jest_tf.__file__)"),
            cwd=self.work,
        )
        self.assertIn("/venv/lib/", where)
        package = pathlib.Path(where.strip()).parent
        self.assertTrue((package / "py.typed").exists())

    def test_it_trains_evaluates_and_writes_a_page_outside_of_a_clone(self):
        self.run_command("train", "--config", "recipe.py", "--workdir", "run")
        log = (self.work / "run" / "metrics.jsonl").read_text().splitlines()
        self.assertEqual([json.loads(line)["step"] for line in log], [1, 2])
        run = "--workdir", "run", "--trust"
        measured = json.loads(self.run_command("evaluate", *run, "--json"))
        self.assertIn("eval/shard/image_to_text/mrr", measured)
        page = self.run_command("page", *run).strip()
        self.assertEqual(page, "run/selection.html")
        self.assertIn("<html", (self.work / page).read_text())

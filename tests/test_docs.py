"""Runs or checks the code, commands, links and names in README and docs.

A page runs from its top: Python blocks in one namespace, and the `jest-tf`
commands of the pages below in the same process, in a folder with a part of the
example data. `jest-tf train` is shrunk, and runs eagerly. All other shell
commands are checked word by word.
"""

import argparse
import ast
import contextlib
import dataclasses
import doctest
import importlib
import importlib.util
import inspect
import io
import itertools
import os
import pathlib
import pkgutil
import re
import shlex
import sys
import tempfile
from unittest import mock

import html_elements
import numpy as np
import pytest
import shard_files
import tensorflow as tf
import tiny

import jest_tf
from jest_tf import cli, curation
from jest_tf import config as config_lib
from jest_tf.cli import flags as cli_flags
from jest_tf.cli import train
from jest_tf.config import overrides
from jest_tf.data import images, stores
from jest_tf.data.stores import shards
from jest_tf.files import retries
from jest_tf.runs import bootstrap, directory

ROOT = pathlib.Path(__file__).parent.parent
PAGES = tuple(
    sorted(
        page.relative_to(ROOT).as_posix()
        for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md")
        for page in ROOT.glob(pattern)
    )
)
README = "README.md"
YOUR_PAIRS = "docs/tutorials/your_pairs.md"
# Pages whose commands are run, in a test each.
RUN = (
    *(README, YOUR_PAIRS, "docs/tutorials/first_run.md"),
    *("docs/tutorials/siglip2.md", "docs/advise.md", "docs/buckets.md"),
    *("docs/bootstrap.md", "docs/curation.md", "docs/data.md"),
    "docs/evaluation.md",
    *("docs/funnel.md", "docs/models.md", "docs/towers.md"),
)
# A block of these starts with a comment that names the file that it is.
FILE_BLOCK = re.compile(r"# (\w+\.py)\n")
MODULES = {}  # by their last name, which several may share
for _, name, _ in pkgutil.walk_packages(jest_tf.__path__, "jest_tf."):
    MODULES.setdefault(name.rpartition(".")[2], []).append(name)
# Folders whose modules have commands in their docstrings.
PROGRAMS = ("jest_tf", "trainers", "configs", "examples", "benchmarks")
# Of the `--set` of commands that take no recipe.
SETTINGS = {"curate": curation.Choice}
# Of Keras and TensorFlow, with the names of our modules.
OTHERS = ("model.fit", "strategy.run")
# Settings of training commands, which end in seconds by them.
FEW = (
    *("steps=2", "optimizer.warmup_steps=1", "evaluation.data="),
    *("data.vocabulary_size=512", "evaluation.log_every_steps=1"),
    "selection.batch_size=64",
)
# The reference runs in the step, as nothing is embedded.
LIVE = (*FEW, "reference.sidecar_dir=")
RENEWED = "bootstrap.renew_at=1", "bootstrap.shares=1"
# Examples of the shipped images that pages run on.
FEW_PAIRS = {"curated": 800, "pool": 1000, "val": 200, "test": 400}


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def any_has(modules, path):
    """True if any of the modules has the attribute at a dotted path."""
    for module in modules:
        value = importlib.import_module(module)
        try:
            for name in path.split("."):
                value = inspect.getattr_static(value, name)
            return True
        except AttributeError:
            pass
    return False


def blocks(page):
    """The fenced blocks of a page, `(language, text)`, in order."""
    return re.findall(
        r"^```(\w+)\n(.*?)^```$", read(page), re.DOTALL | re.MULTILINE
    )


def commands(text):
    """The words of every command in a shell block."""
    joined = text.replace("\\\n", " ")
    lines = (shlex.split(line, comments=True) for line in joined.splitlines())
    return [line for line in lines if line]


def shell_commands(page):
    shell = (text for language, text in blocks(page) if language == "sh")
    return [line for text in shell for line in commands(text)]


def header_commands(path):
    """The words of every command in the docstring of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    header = ast.get_docstring(tree, clean=False) or ""
    program = r"(?:jest-tf|python) "
    lines = re.findall(rf"(?m)^    ({program}(?:.*\\\n)*.*)", header)
    inline = re.findall(rf"`({program}[^`]+ --[^`]+)`", header)
    return [*map(shlex.split, inline)] + commands("\n".join(lines))


class Parsed(BaseException):
    """Ends a program once it has parsed its flags, the argument."""


def parse(module, arguments):
    """Returns the flags as which a program parses its arguments."""
    whole = argparse.ArgumentParser.parse_args

    def parse_args(parser, *given):
        raise Parsed(whole(parser, *given))

    main = importlib.import_module(module).main
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args),
        contextlib.redirect_stderr(io.StringIO()) as shown,
        contextlib.redirect_stdout(shown),
    ):
        try:
            main(arguments)
        except Parsed as parsed:
            return parsed.args[0]
        except SystemExit as ended:
            if not ended.code:  # `--help`
                return argparse.Namespace()
    raise AssertionError(shown.getvalue())


def logged(run):
    """The last line of a run's log."""
    return directory.read_rows(f"runs/{run}", "metrics.jsonl")[-1]


def write_files(page, folder):
    """Writes the files that a page shows."""
    for _, text in blocks(page):
        if named := FILE_BLOCK.match(text):
            (folder / named[1]).write_text(text, encoding="utf-8")


def write_images(folder, count):
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 256, (20, 24, 3), np.uint8)
        encoded = tf.io.encode_jpeg(pixels).numpy()
        (folder / f"{number}.jpg").write_bytes(encoded)


class DocsTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)
        self.enterContext(contextlib.chdir(self.folder))
        path = [str(self.folder), *sys.path]
        self.enterContext(mock.patch.object(sys, "path", path))
        (self.folder / "configs").symlink_to(ROOT / "configs")
        # Sidecars are written beside the shards.
        examples = self.folder / "examples"
        (examples / "icontext_mini").mkdir(parents=True)
        for file in (*ROOT.glob("examples/*.*"), *ROOT.glob("examples/*/*")):
            link = self.folder / file.relative_to(ROOT)
            if link.parent.exists():
                link.symlink_to(file)

    def train(self, recipe, *settings, workdir=None):
        """Trains a quickstart's recipe for two steps."""
        line = ["jest-tf", "train", "--trust", "--config"]
        line += [f"configs/quickstart_{recipe}.py"]
        line += ["--workdir", f"runs/{workdir or recipe}"]
        self.run_command(line, (*LIVE, *settings))

    def run_page(self, page, settings=FEW, skip=(), add=lambda words: ()):
        """Runs the blocks of a page from its top.

        Args:
            page: its path.
            settings: added to `train`.
            skip: texts of commands that are not run.
            add: maps the words of a command to further words.

        Returns:
            The namespace of the Python blocks, and what was printed.
        """
        namespace, printed = {"__name__": "page"}, io.StringIO()
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
        ):
            for number, (language, text) in enumerate(blocks(page)):
                if named := FILE_BLOCK.match(text):
                    (self.folder / named[1]).write_text(text, encoding="utf-8")
                elif language == "python":
                    # A file, because AutoGraph reads a function's source.
                    path = self.folder / f"block_{number}.py"
                    path.write_text(text, encoding="utf-8")
                    exec(compile(text, path, "exec"), namespace)
                elif language == "sh":
                    for line in commands(text):
                        self.run_command(line, settings, skip, add)
        return namespace, printed.getvalue()

    def run_command(self, line, settings, skip=(), add=lambda words: ()):
        program, *words = line
        text = shlex.join(line)
        if program != "jest-tf" or any(part in text for part in skip):
            return
        with self.subTest(text), contextlib.ExitStack() as stack:
            if words[0] == "train":
                words += ["--set", *settings]
                # Tracing takes longer than a few steps.
                stack.enter_context(tiny.eagerly())
            self.assertEqual(cli.main([*words, *add(line)]), 0)


@pytest.mark.slow
class PagesTest(DocsTestCase):
    def setUp(self):
        super().setUp()
        data = self.folder / "examples" / "icontext_mini"
        for shard in data.glob("*.tfrecord"):
            shard.unlink()
        shard_files.write_shipped(data, **FEW_PAIRS)

    def preset(self):
        """Lets KerasHub find a tiny SigLIP 2 under every name."""
        import presets  # KerasHub takes a while

        preset = presets.save(self.folder / "preset", "siglip2", length=64)
        return self.enterContext(presets.hub_of(preset))

    def test_your_own_pairs_go_from_a_folder_to_a_search(self):
        self.preset()
        rows = [f"photos/{number:03d}.png,a" for number in range(40)]
        table = "\n".join(["image,caption", *rows])
        pathlib.Path("curated.csv").write_text(table)
        namespace, printed = self.run_page(
            YOUR_PAIRS,
            ("steps=4", "optimizer.warmup_steps=1")
            + ("evaluation.every_steps=2", "evaluation.log_every_steps=1"),
            # The tiny preset is not as wide as the model that the page names.
            add=lambda words: (
                ("reference.projection=16",)
                if "train" in words and "reference.model=" not in words
                else ()
            ),
        )
        self.assertIn("1 sidecar written, 720 records", printed)
        self.assertIn("96 rows, the hyper-batch, -> 32, joint", printed)
        self.assertLen(namespace["scores"], len(namespace["files"]))
        log = directory.read_rows("runs/photos", "metrics.jsonl")
        self.assertEqual(log[-1]["examples/trained"], 4 * 32)
        self.assertEqual(log[-1]["examples/drawn"], 4 * 32)
        telemetry = directory.read_rows("runs/photos", "telemetry.jsonl")
        self.check_logs(log, telemetry)
        self.check_files(pathlib.Path("runs/photos"))

    def check_logs(self, log, telemetry):
        """The page on logs has every column."""
        text = re.sub(r"```.*?```", "", read("docs/logs.md"), flags=re.DOTALL)
        listed = {*re.findall(r"`([^`]+)`", text)}
        stages = [stage for row in telemetry for stage in row["stages"]]
        names = {name for row in (*log, *telemetry, *stages) for name in row}
        names = {re.sub(r"^stages/\d+", "stages/N", name) for name in names}
        self.assertEmpty(names - listed)

    def check_files(self, run):
        """The table lists every file of a run directory and no other."""
        heading = "## What a run directory holds"
        _, _, part = read("docs/logs.md").partition(heading)
        part, _, _ = part.partition("\n## ")
        name = r"`[\w./]+`"
        rows = re.findall(
            rf"^\| ({name}(?:(?:, {name})? or {name})?) \| ", part, re.MULTILINE
        )
        self.assertGreater(len(rows), 10)
        listed = [re.findall(r"`([^`]+)`", row) for row in rows]
        for names in listed:
            if names != ["flops.json"]:  # an eager step has none
                found = any((run / name).exists() for name in names)
                self.assertTrue(found, names)
        names = {name.strip("/") for row in listed for name in row}
        self.assertLessEqual({path.name for path in run.iterdir()}, names)

    def test_siglip2_is_tuned_and_exported(self):
        self.preset()
        pathlib.Path("data").mkdir()
        for name, count in (
            *(("checked", 80), ("pool", 48), ("replay", 64)),
            *(("held_out", 9), ("general", 9)),
        ):
            tiny.write_shard(f"data/{name}-00000-of-00001.tfrecord", count)
        _, printed = self.run_page(
            "docs/tutorials/siglip2.md",
            ("steps=2", "optimizer.warmup_steps=1", "data.image_size=32")
            + ("selection.batch_size=80", "evaluation.log_every_steps=1"),
            add=lambda line: (
                RENEWED * ("runs/tuned" in line and line[1] == "train")
            ),
        )
        self.assertIn("step 1: the learner recognises", printed)
        # The start, and what it became.
        measure = "eval/held_out/image_to_text/recall@1\n"
        self.assertEqual(printed.count(measure), 2)
        self.assertTrue(pathlib.Path("tuned/saved_model.pb").exists())

    def test_the_first_run_is_looked_at_and_used(self):
        write_images(self.folder / "photos", 1)
        self.train("jest")
        namespace, _ = self.run_page("docs/tutorials/first_run.md", LIVE)
        self.assertEqual(namespace["texts"].shape, (2, 64))
        self.assertTrue(pathlib.Path("runs/jest/selection.html").exists())

    def test_the_readme_selects_by_a_public_model(self):
        asked = self.preset()
        tiny.write_shard("pool-00000-of-00001.tfrecord", 24)
        recipe, code = (
            text for name, text in blocks(README) if name == "python"
        )
        for size, small in (
            ('"s16"', '"tiny"'),
            ("image_size=224", "image_size=32"),
            ("Config(256", "Config(16"),
            ("steps_per_epoch=1000", "steps_per_epoch=2"),
        ):
            self.assertEqual(code.count(size), 1)
            code = code.replace(size, small)
        namespace = {}
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(recipe, namespace)
            exec(code, namespace)
        self.assertIn("siglip2_base_patch16_224", asked[0])
        self.assertIn("loss", printed.getvalue())
        self.assertEqual(namespace["model"].drawn_ids.shape, [16])
        recipe = namespace["config"]()
        self.assertEqual(recipe.selection.sizes(), (1024,))
        self.assertTrue(recipe.reads_sidecars)

    def test_the_recipe_of_the_readme_trains_on_a_pool_cut_once(self):
        self.preset()
        pathlib.Path("bucket").mkdir()
        tiny.write_shard("bucket/pool-00000-of-00001.tfrecord", 24)
        recipe, _ = (text for name, text in blocks(README) if name == "python")
        (cut,) = (
            text for _, text in blocks(README) if "jest-tf curate" in text
        )
        recipe, cut = (
            x.replace("gs://bucket", "bucket") for x in (recipe, cut)
        )
        pathlib.Path("recipe.py").write_text(recipe)
        small = (
            *("steps=2", "optimizer.warmup_steps=1", "selection.batch_size=4"),
            *("model.preset=tiny", "data.image_size=32"),
            *("data.vocabulary_size=512", "reference.projection=16"),
        )
        for line in commands(cut):
            self.run_command(line, small)
        store = stores.open_stores(
            config_lib.DataConfig(
                ("bucket/pool-*.tfrecord",), manifest="bucket/third"
            )
        )
        self.assertEqual((store.manifest.weights > 0).sum(), 8)
        (*_, last) = directory.read_rows("bucket/run", "metrics.jsonl")
        self.assertGreater(last["train/similarities"], 0)

    def test_a_public_model_trains_and_a_run_is_used(self):
        self.preset()
        write_files(YOUR_PAIRS, self.folder)
        write_images(self.folder / "photos", 24)
        rows = [f"photos/{number}.jpg,a {number}" for number in range(24)]
        pathlib.Path("pool.csv").write_text("\n".join(["image,caption", *rows]))
        self.train(
            "uniform", "model.towers=", "model.preset=tiny", workdir="distilled"
        )
        namespace, printed = self.run_page(
            "docs/models.md",
            (*FEW, "data.image_size=16", "selection.batch_size=16"),
        )
        self.assertIn("from 32 x 32 to 16 x 16", printed)
        for run in ("photos_live", "photos_tuned"):
            self.assertEqual(logged(run)["step"], 2)
        self.assertAllClose(
            namespace["served"].embed_texts(["a"])["embeddings"],
            namespace["model"].embed_texts(["a"]),
        )

    def test_named_stores_measure_a_run(self):
        few = [setting for setting in FEW if setting != "evaluation.data="]
        page = "docs/evaluation.md"
        _, printed = self.run_page(page, few, skip=("--model",))
        for name in (
            "test/text_to_image/recall@10",
            "kinds/zero_shot/mean_per_class",
        ):
            self.assertRegex(printed, rf"(?m)^ *[\d.]+  eval/{name}$")

    def test_every_format_is_trained_on(self):
        self.run_page("docs/data.md", ("steps=2", "optimizer.warmup_steps=1"))
        runs = [path.name for path in pathlib.Path("runs").iterdir()]
        self.assertCountEqual(runs, ["tars", "table", "tfrecords", "mixture"])
        for run in runs:
            self.assertEqual(logged(run)["step"], 2)
            self.assertEqual(logged(run)["examples/trained"], 2 * 32)

    def test_the_funnel_chooses_by_stored_embeddings(self):
        namespace, _ = self.run_page("docs/funnel.md")
        self.assertEqual(namespace["selection"].sizes(), (3840, 1280, 256))
        for run, name, count in (
            ("stored", "offered", 3 * 64),
            ("stored", "drawn", 64),
            ("jest_cached", "scored", 5 * 64),
        ):
            self.assertEqual(logged(run)[f"examples/{name}"], 2 * count)

    def test_a_run_renews_its_reference_and_serves_others(self):
        self.run_page(
            "docs/bootstrap.md",
            add=lambda line: RENEWED * ("bootstrap" in shlex.join(line)),
        )
        for run, kept in (("first", [1]), ("second", []), ("renewed", [1])):
            recipe = directory.load_config(f"runs/{run}", trust=True)
            done = bootstrap.renewals(recipe, f"runs/{run}")
            self.assertEqual([renewal.step for renewal in done], kept)
            self.assertEqual(logged(run)["step"], 2)

    def test_own_towers_criteria_and_losses_train(self):
        self.addCleanup(sys.modules.pop, "my_scores", None)
        namespace, _ = self.run_page("docs/towers.md")
        # Three super-batches were drawn from; the loop ended with the third.
        self.assertEqual(namespace["number"], 2)
        self.assertTrue(np.isfinite(namespace["loss"]))
        self.assertEqual(namespace["model"].drawn_ids.shape, [64])
        (telemetry, *_) = directory.read_rows("runs/mine", "telemetry.jsonl")
        stage = telemetry["stages"][0]
        self.assertEqual(stage["criterion"], "my_scores:cautious")
        self.assertEqual(stage["rows_out"], 64)

    def test_curation_chooses_and_trains(self):
        _, printed = self.run_page("docs/curation.md")
        pool = FEW_PAIRS["pool"]
        self.assertIn(
            f"{pool // 4:,} of {pool:,} records are drawn: manifests/easy",
            printed,
        )
        self.assertEqual(logged("curated")["step"], 2)

    def test_advice_is_given(self):
        _, printed = self.run_page("docs/advise.md")
        self.assertRegex(printed, r"- 3\d% of the pairs match")
        self.assertIn("- Add `Stage(candidates=3, ", printed)
        html_elements.parse(pathlib.Path("advice/advice.html").read_text())

    def test_an_interruption_is_rehearsed(self):
        _, printed = self.run_page("docs/buckets.md", FEW)
        self.assertIn("already finished", printed)

    def test_every_recipe_runs_after_the_commands_of_its_header(self):
        import presets

        self.preset()
        paths = sorted(ROOT.glob("configs/*.py"))
        recipes = {path: config_lib.load_config(path) for path in paths}
        names = {
            f"data/{name}-*.tfrecord"
            for name in ("checked", "held_out", "general")
        }
        for recipe in recipes.values():
            names |= {*recipe.data.train, *recipe.data.curated}
            names |= {*recipe.evaluation.data, recipe.data.vocabulary} - {""}
        pieces = {"unk_id": 0, "eos_id": 1, "bos_id": -1}
        for name in names:
            path = self.folder / name.replace("*", "0")
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.startswith("examples"):
                continue
            if path.suffix == ".model":
                path.write_bytes(presets.sentence_piece("unigram", **pieces))
            elif path.suffix == ".txt":
                path.write_text("\n".join(tiny.VOCABULARY))
            else:
                tiny.write_shard(str(path), 400)
        for path, recipe in recipes.items():
            settings = ["steps=2", "optimizer.warmup_steps=1"]
            size = 64 + recipe.data.curated_rows
            settings += [f"selection.batch_size={size}"]
            settings += ["distribution.strategy=default"]
            renewed = RENEWED if recipe.bootstrap.renew_at else ()
            if not recipe.model.towers:  # an L/16 and AdamW take 13 GB
                settings += ["model.preset=tiny"]
                if not recipe.model.init_from:
                    settings += ["data.image_size=32"]
            if recipe.reference.projection == 1152:  # the preset's is 16
                settings += ["reference.projection=16"]
            *_, last = lines = header_commands(path)
            for line in lines:
                is_copy = "bootstrap.renew_at=" in line
                self.run_command(line, [*settings, *renewed * (not is_copy)])
            run = last[last.index("--workdir") + 1]
            rows = directory.read_rows(run, "metrics.jsonl")
            self.assertEqual(rows[-1]["step"], 2, path)

    def test_the_python_blocks_of_every_other_page_run(self):
        for page in PAGES:
            if page not in RUN:
                with self.subTest(page):
                    self.run_page(page, skip=("jest-tf",))


class CommandsTest(DocsTestCase):
    def test_every_command_on_every_page_exists(self):
        count = 0
        for page in PAGES:  # recipes that a page shows are files by now
            write_files(page, self.folder)
        lines = {page: shell_commands(page) for page in PAGES}
        for folder in PROGRAMS:
            for path in ROOT.glob(f"{folder}/**/*.py"):
                lines[path] = header_commands(path)
                if folder == "configs":
                    self.assertTrue(lines[path], path)
        for page in lines:
            for line in lines[page]:
                with self.subTest(page=page, command=shlex.join(line)):
                    self.check(line)
                    count += 1
        self.assertGreater(count, 100)

    def check(self, line):
        """Fails unless every part of a command exists."""
        while re.fullmatch(r"[A-Z_]+=\S*", line[0]):
            line = line[1:]
        program, *arguments = line
        if program == "make":
            self.assertLen(arguments, 1)
            self.assertRegex(read("Makefile"), rf"(?m)^{arguments[0]}:")
        elif program == "ruff":
            self.assertIn(arguments[0], ("format", "check"))
        elif program == "pip":
            self.assertEqual(arguments[0], "install")
        elif program == "python" and arguments[:2] == ["-m", "pytest"]:
            for argument in arguments[2:]:
                path, *names = argument.split("::")
                self.assertTrue((ROOT / path).exists(), path)
                for name in names:
                    self.assertRegex(read(path), rf"(class|def) {name}\b")
        elif program == "python" and arguments[0] == "-m":
            self.check_flags(arguments[1], arguments[2:])
        elif program == "python" and arguments[0].startswith("tests/"):
            for flag in arguments[1:]:
                self.assertIn(f'"{flag}"', read(arguments[0]))
        elif program == "jest-tf":
            self.check_flags("jest_tf.cli", arguments)
        elif program == "python":
            module = arguments[0].removesuffix(".py").replace("/", ".")
            self.check_flags(module, arguments[1:])
        else:
            self.fail(f"no rule for {program!r}")

    def check_flags(self, module, arguments):
        """The program takes the flags, and a recipe or a command settings."""
        flags = vars(parse(module, arguments))
        settings, path = flags.get("set", []), flags.get("config")
        if path:
            path = path if pathlib.Path(path).is_file() else ROOT / path
            config_lib.load_config(path, settings)
        elif settings:
            kind = SETTINGS[flags["command"]]
            cli_flags.settings(
                kind,
                argparse.Namespace(**flags),
                **dataclasses.asdict(kind("sigmoid")),
            )


class ReferencesTest(tf.test.TestCase):
    def test_every_link_leads_somewhere(self):
        for page in PAGES:
            for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
                if re.match(r"[a-z]+:", target):
                    continue
                path, _, anchor = target.partition("#")
                file = (ROOT / page).parent / path if path else ROOT / page
                with self.subTest(page=page, target=target):
                    self.assertTrue(file.exists())
                    if anchor:
                        self.assertIn(anchor, anchors(file))

    def test_every_named_test_exists(self):
        count = 0
        pattern = r"`(?:tests/)?((?:\w+/)*test_\w+\.py)(?:::(test_\w+))?`"
        for page in PAGES:
            for file, name in re.findall(pattern, read(page)):
                with self.subTest(page=page, test=f"{file}::{name}"):
                    self.assertIn(f"def {name}", read(f"tests/{file}"))
                    count += 1
        self.assertGreater(count, 30)

    def test_every_named_function_and_setting_exists(self):
        settings = {
            setting.path
            for setting in overrides.settings(config_lib.TrainConfig)
        }
        groups = {path.partition(".")[0] for path in settings if "." in path}
        count = 0
        for page in PAGES:
            # IconText has modules of the same names; a changelog names
            # what is gone.
            if page.startswith("benchmarks/icontext") or page == "CHANGELOG.md":
                continue
            code = " ".join(re.findall(r"`([^`\n]+)`", read(page)))
            for module, path in re.findall(
                r"(?<![\w./])(\w+)\.([A-Za-z_]\w*(?:\.\w+)*)", code
            ):
                name = f"{module}.{path}"
                is_file = re.search(r"\.(py|jsonl?|html|toml|md|csv|h5)$", name)
                is_setting = any(
                    f"{setting}.".startswith(f"{name}.") for setting in settings
                )
                is_class = inspect.isclass(getattr(jest_tf, module, None))
                is_known = is_class or module in {*MODULES, *groups}
                if is_file or is_setting or not is_known or name in OTHERS:
                    continue
                with self.subTest(page=page, name=name):
                    modules = MODULES.get(module, ())
                    self.assertTrue(
                        any_has(modules, path) or any_has(["jest_tf"], name)
                    )
                    count += 1
        self.assertGreater(count, 30)

    def test_every_named_file_exists(self):
        pattern = r"`((?:tests|configs|examples|docs|jest_tf)/[\w./]+\.\w+)`"
        for page in PAGES:
            for path in re.findall(pattern, read(page)):
                if page != "CHANGELOG.md":
                    self.assertTrue((ROOT / path).exists(), f"{page}: {path}")

    def test_the_times_and_sizes_of_storage_are_those_of_the_code(self):
        page = " ".join(read("docs/storage.md").split())
        *some, last = retries.WAITS
        waits = f"{', '.join(f'{wait:g}' for wait in some)} and {last:g}"
        for words in (
            f"after retries, {waits} seconds later",
            f"2^{images.MAX_PIXELS.bit_length() - 1} pixels",
            "within 20 seconds of SIGTERM",
            "within five seconds",
        ):
            self.assertIn(words, page)
        self.assertEqual(images.MAX_PIXELS.bit_count(), 1)
        self.assertBetween(train.GRACE, 15, 20)  # the rest is for the exit
        self.assertEqual(shards._PATIENCE, 5)

    def test_a_page_is_read_in_ten_minutes(self):
        for page in PAGES:
            if page.startswith("docs/") or page == README:
                text = read(page)
                self.assertLessEqual(len(text.splitlines()), 350, page)
                self.assertLessEqual(len(text.split()), 2000, page)
        self.assertLessEqual(len(read(README).splitlines()), 150)

    def test_every_public_name_is_in_the_changelog(self):
        changelog = read("CHANGELOG.md")
        names = [n for n in jest_tf.__all__ if f"`{n}`" not in changelog]
        self.assertEmpty(names)


class SiteTest(tf.test.TestCase):
    """The pages that docs/hooks.py makes; `make docs` checks their links."""

    def setUp(self):
        super().setUp()
        place = ROOT / "docs" / "hooks.py"
        spec = importlib.util.spec_from_file_location("hooks", place)
        self.hooks = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.hooks)

    def test_every_setting_has_its_default_rule_and_meaning(self):
        page = self.hooks.settings_page()
        parts = re.split(r"^### `([\w.]+)`\n", page, flags=re.MULTILINE)[1:]
        shown = dict(zip(parts[::2], parts[1::2], strict=True))
        for setting in overrides.settings(config_lib.TrainConfig):
            with self.subTest(setting.path):
                self.assertNotEmpty(setting.meaning)
                default, meaning = shown[setting.path].split("\n\n")[:2]
                written = overrides.format_value(setting.default)
                words = f"`{written}`" if written else "empty"
                if written == "None" and "None" not in setting.type:
                    words = "must be set"
                self.assertIn(words, default)
                self.assertIn(setting.meaning[1:20], meaning)
        self.assertIn("in (0, 1]", shown["data.min_crop_area"])
        methods = shown["selection.stages.0.method"]
        self.assertIn("`joint`, `independent`", methods)
        # Of the checks across settings.
        self.assertIn("`selection.stages` with stored embeddings must", page)

    def test_every_public_name_is_in_the_reference(self):
        page = self.hooks.python_page()
        named = re.findall(r"^::: (\S+)$", page, re.M)
        of_settings = re.findall(r"^\| `(\w+)` \|", page, re.M)
        self.assertCountEqual(
            [*(name.rpartition(".")[2] for name in named), *of_settings],
            jest_tf.__all__,
        )
        for name in named:
            module, _, last = name.rpartition(".")
            self.assertIs(
                getattr(importlib.import_module(module), last),
                getattr(jest_tf, last),
            )


class DoctestsTest(tf.test.TestCase):
    @pytest.mark.slow
    def test_examples_in_docstrings_give_what_they_show(self):
        attempted = 0
        for name in sorted(itertools.chain(*MODULES.values())):
            if name.endswith("_jax"):  # which is not installed here
                continue
            module = importlib.import_module(name)
            result = doctest.testmod(module)
            self.assertEqual(result.failed, 0, name)
            attempted += result.attempted
        self.assertGreater(attempted, 10)


class MakefileTest(tf.test.TestCase):
    def test_help_lists_every_target_and_paths_exist(self):
        makefile = read("Makefile")
        phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
        described = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
        self.assertCountEqual(phony, described)
        for path in re.findall(r"\btests/[\w/.]+", makefile):
            self.assertTrue((ROOT / path).exists(), path)

    def test_continuous_integration_runs_every_test(self):
        script = ROOT / ".ci" / "run"
        self.assertTrue(os.access(script, os.X_OK))
        targets = re.findall(r"make ([a-z-]+)", script.read_text())
        expected = ["test", "test-oldest", "test-jax", "test-slow"]
        self.assertEqual(targets, expected)
        on_jax = re.search('JAX_TESTS="([^"]*)"', script.read_text())[1]
        self.assertIn("tests/on_jax", on_jax.split())
        chosen = re.findall(
            r'-m pytest -m "?([a-z ]+|\$\(JAX_MARK\))', read("Makefile")
        )
        # Those of `make test`, `test-slow`, and with other versions.
        self.assertEqual(
            [marks.strip() for marks in chosen],
            ["not slow", "slow", *["not slow"] * 2, "$(JAX_MARK)"],
        )


def anchors(path):
    """The anchors of a page's headings, as code hosts make them."""
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }

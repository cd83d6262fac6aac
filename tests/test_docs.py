"""Runs or checks the code, commands, links and names in README and docs.

Python blocks run in order, one namespace a page, in a folder with the example
data and a few pictures. Shell blocks are checked word by word, and the training
commands of docs/training.md run, shrunk.
"""

import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import itertools
import json
import os
import pathlib
import pkgutil
import re
import shlex
import sys
import tempfile

import numpy as np
import pytest
import tensorflow as tf
import tiny

import jest_tf
from jest_tf import cli
from jest_tf import config as config_lib
from jest_tf.config import overrides
from jest_tf.runs import directory
from trainers import advise, curate, embed, evaluate, train

ROOT = pathlib.Path(__file__).parent.parent
PAGES = tuple(
    sorted(
        page.relative_to(ROOT).as_posix()
        for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md")
        for page in ROOT.glob(pattern)
    )
)
README = "README.md"
TRAINING = "docs/training.md"
AFTER_TRAINING = "docs/after_training.md"
FIRST_RUN = "docs/tutorials/first_run.md"
PHOTOS = "docs/tutorials/photos.md"
SIGLIP2 = "docs/tutorials/siglip2.md"
CLOUD = "docs/tutorials/cloud.md"
# A block of these starts with a comment that names the file that it is.
FILE_BLOCK = re.compile(r"# (\w+\.py)\n")
MODULES = {}  # by their last name, which several may share
for _, name, _ in pkgutil.walk_packages(jest_tf.__path__, "jest_tf."):
    MODULES.setdefault(name.rpartition(".")[2], []).append(name)
# Appended to the training commands of docs/training.md, to end in seconds.
SHRUNK = (
    *("steps=2", "model.preset=tiny", "data.image_size=16"),
    *("optimizer.warmup_steps=1", "data.vocabulary_size=64"),
    *("data.super_batch_size=8", "evaluation.log_every_steps=1"),
)


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def any_has(modules, path):
    """True if one of the modules has the attribute at a dotted path."""
    for module in modules:
        value = importlib.import_module(module)
        try:
            for name in path.split("."):
                value = inspect.getattr_static(value, name)
            return True
        except AttributeError:
            pass
    return False


def blocks(page, language):
    """The fenced blocks of a page in one language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", read(page), re.DOTALL | re.MULTILINE
    )


def commands(text):
    """The words of every command in a shell block."""
    joined = text.replace("\\\n", " ")
    lines = (shlex.split(line, comments=True) for line in joined.splitlines())
    return [line for line in lines if line]


def shell_commands(page):
    return [line for block in blocks(page, "sh") for line in commands(block)]


def header_commands(path):
    """The commands in the docstring of a recipe or a program."""
    found = re.findall(
        r"^ +((?:python|make|jest-tf) (?:.*\\\n)*.*)$",
        path.read_text(encoding="utf-8").split('"""')[1],
        re.MULTILINE,
    )
    return [line for text in found for line in commands(text)]


def write_pictures(folder, count):
    """Writes pictures as a user has them: `x.jpg` and `x.txt`."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 256, (20, 24, 3), np.uint8)
        (folder / f"{number}.jpg").write_bytes(
            tf.io.encode_jpeg(pixels).numpy()
        )
        (folder / f"{number}.txt").write_text(
            f"Picture {number}\nA picture of the number {number}\n"
        )


class DocsTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )
        self.enterContext(contextlib.chdir(self.folder))
        (self.folder / "examples").symlink_to(ROOT / "examples")

    def run_blocks(self, page):
        """Runs the Python blocks of a page; returns their namespace."""
        namespace = {"__name__": "page"}
        for number, block in enumerate(blocks(page, "python")):
            named = FILE_BLOCK.match(block)
            # A file even so: AutoGraph reads the source of a `tf.function`.
            path = self.folder / (named[1] if named else f"block_{number}.py")
            path.write_text(block, encoding="utf-8")
            if named:
                continue
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block, path, "exec"), namespace)
        return namespace


class PythonBlocksTest(DocsTestCase):
    @pytest.mark.slow
    def test_the_page_on_training_trains_on_a_users_pictures_and_towers(self):
        write_pictures(self.folder / "pool", 12)
        write_pictures(self.folder / "curated", 9)
        write_pictures(self.folder / "held_out", 5)
        namespace = self.run_blocks(TRAINING)

        # Three super-batches were drawn from; the loop ended with the third.
        self.assertEqual(namespace["number"], 2)
        self.assertTrue(np.isfinite(namespace["loss"]))
        self.assertEqual(namespace["model"].drawn_ids.shape, [64])

        with contextlib.redirect_stdout(io.StringIO()) as printed:
            for program, command, *arguments in shell_commands(TRAINING):
                if (program, command) == ("jest-tf", "train"):
                    train.main([*arguments, *self.shrink(arguments)])
                elif (program, command) == ("jest-tf", "evaluate"):
                    evaluate.main(arguments)
                elif (program, command) == ("jest-tf", "curate"):
                    curate.main(arguments)
        self.assertIn("eval/held_out/image_to_text/mrr", printed.getvalue())
        run = self.folder / "runs" / "photos_jest"
        self.check_table_of_the_run_directory(run)

    @pytest.mark.slow
    def test_the_page_on_trained_models_uses_a_run(self):
        write_pictures(self.folder / "photos", 4)
        recipe = str(ROOT / "configs/quickstart_uniform.py")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            train.main(
                ["--config", recipe, "--workdir", "runs/bootstrap", "--set"]
                + ["steps=2", "optimizer.warmup_steps=1"]
                + ["data.vocabulary_size=64", "evaluation.data="]
                + ["model.towers=", "model.preset=tiny"]
            )
            for program, *arguments in shell_commands(AFTER_TRAINING):
                if program == "jest-tf" and "keras_hub" not in str(arguments):
                    self.assertEqual(cli.main(arguments), 0)
        self.assertIn("photos.npy: 4 pictures embedded", printed.getvalue())
        namespace = self.run_blocks(AFTER_TRAINING)
        self.assertAllClose(
            namespace["served"].embed_texts(["a"])["embeddings"],
            namespace["model"].embed_texts(["a"]),
        )

    @pytest.mark.slow
    def test_the_page_on_evaluation_measures_a_run_on_its_suites(self):
        recipe = str(ROOT / "configs/quickstart_uniform.py")
        for block in blocks("docs/evaluation.md", "toml"):
            name = re.match(r"# (\w+\.toml)\n", block)[1]
            (self.folder / name).write_text(block, encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            train.main(
                ["--config", recipe, "--workdir", "runs/bootstrap", "--set"]
                + ["steps=2", "optimizer.warmup_steps=1"]
                + ["data.vocabulary_size=64", "evaluation.data="]
                + ["evaluation.log_ids=true", "evaluation.log_every_steps=1"]
            )
            for _, _, *arguments in shell_commands("docs/evaluation.md"):
                if "--model" not in arguments:
                    evaluate.main(arguments)
        for name in (
            "icons/text_to_image/recall@10",
            "kinds/zero_shot/mean_per_class",
            "kinds/few_shot/10_shots_std",
            "kinds/linear_probe/accuracy@1",
            "draws/selection/effective_share",
            "draws/selection/concept_coverage",
        ):
            self.assertRegex(
                printed.getvalue(), rf"(?m)^ *[\d.]+  eval/{name}$"
            )

    @pytest.mark.slow
    def test_the_page_on_models_embeds_and_trains_by_name(self):
        # Imported here, because KerasHub takes a while.
        import presets

        preset = presets.save(self.folder / "preset", "siglip2", length=64)
        tiny.write_shard("pool-00000-of-00001.tfrecord", 24)
        for block in blocks(TRAINING, "python"):
            if named := FILE_BLOCK.match(block):
                (self.folder / named[1]).write_text(block, encoding="utf-8")
        printed = io.StringIO()
        with (
            presets.hub_of(preset),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
        ):
            for _, command, *arguments in shell_commands("docs/models.md"):
                if command == "train":
                    train.main([*arguments, *self.shrink(arguments)[1:]])
                else:
                    embed.main(arguments)
        self.assertIn("1 sidecars written, 24 records", printed.getvalue())
        self.assertIn("from 32 x 32 to 16 x 16", printed.getvalue())
        for run in ("photos_jest", "photos_cached", "photos_tuned"):
            log = directory.read_rows(f"runs/{run}", "metrics.jsonl")
            self.assertEqual(log[-1]["step"], 2)
        jest, cached = (
            [
                row["ids"]
                for row in directory.read_rows(f"runs/{run}", "draws.jsonl")
            ]
            for run in ("photos_jest", "photos_cached")
        )
        self.assertEqual(jest, cached)

    @pytest.mark.slow
    def test_the_readme_selects_by_a_public_model(self):
        # Imported here, because KerasHub takes a while.
        import presets

        preset = presets.save(self.folder / "preset", "siglip2", length=64)
        tiny.write_shard("pool-00000-of-00001.tfrecord", 24)
        (code,) = blocks(README, "python")
        for size, small in (
            ('"s16"', '"tiny"'),
            ("image_size=224", "image_size=32"),
            ("super_batch_size=1280", "super_batch_size=20"),
            ('"joint"', '"joint", num_chunks=2'),
            ("batch_size=256", "batch_size=4"),
            ("steps_per_epoch=1000", "steps_per_epoch=2"),
        ):
            self.assertEqual(code.count(size), 1)
            code = code.replace(size, small)
        namespace = {}
        with (
            presets.hub_of(preset) as asked,
            contextlib.redirect_stdout(io.StringIO()) as printed,
        ):
            exec(code, namespace)
        self.assertIn("siglip2_base_patch16_224", asked[0])
        self.assertIn("loss", printed.getvalue())
        self.assertEqual(namespace["model"].drawn_ids.shape, [4])

    @pytest.mark.slow
    def test_the_page_on_data_trains_on_every_format(self):
        self.run_blocks("docs/data.md")
        runs = []
        with contextlib.redirect_stdout(io.StringIO()):
            for line in shell_commands("docs/data.md"):
                arguments = line[2:]
                if "try_data.py" in arguments:
                    train.main(arguments)
                    runs.append(arguments[arguments.index("--workdir") + 1])
        # The page's last command continues its first run, which is done.
        self.assertEqual(runs[0], runs[-1])
        for run in set(runs):
            log = directory.read_rows(run, "metrics.jsonl")
            self.assertEqual(log[-1]["step"], 20)
            self.assertEqual(log[-1]["examples/trained"], 20 * 32)

    @pytest.mark.slow
    def test_the_page_on_curation_chooses_and_trains(self):
        (self.folder / "configs").symlink_to(ROOT / "configs")
        few = (*("steps=2", "optimizer.warmup_steps=1"), "evaluation.data=")
        few += ("data.super_batch_size=16", "data.vocabulary_size=64")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            for _, command, *arguments in shell_commands("docs/curation.md"):
                if command == "train":
                    more = () if "--set" in arguments else ("--set",)
                    train.main([*arguments, *more, *few])
                elif command == "curate":
                    # A reference of two steps finds all pictures alike.
                    if "--like" in arguments:
                        arguments += ["near=1.1", "leak=1.1"]
                    if "--beam" not in arguments:
                        curate.main(arguments)
        # A quarter of the one shard, over nine windows of 2,000.
        for name, count in (
            ("easy", f"{18_000 // 4:,}"),
            ("like", 400),
        ):
            self.assertIn(
                f"{count} of 18,000 records are drawn: manifests/{name}",
                printed.getvalue(),
            )
        log = directory.read_rows("runs/curated", "metrics.jsonl")
        self.assertEqual(log[-1]["step"], 2)

    @pytest.mark.slow
    def test_the_page_on_advice_advises(self):
        (self.folder / "configs").symlink_to(ROOT / "configs")
        (line,) = [
            words
            for words in shell_commands("docs/advise.md")
            if words[:2] == ["jest-tf", "advise"]
        ]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            advise.main(line[2:])
        self.assertIn("- Add `Stage(candidates=3", printed.getvalue())
        self.assertTrue((self.folder / "advice/advice.html").exists())

    @pytest.mark.slow
    def test_the_first_run_is_looked_at_and_used(self):
        write_pictures(self.folder / "photos", 1)
        (self.folder / "configs").symlink_to(ROOT / "configs")
        few = (*("steps=2", "optimizer.warmup_steps=1"), "evaluation.data=")
        few += ("data.vocabulary_size=64", "evaluation.log_every_steps=1")
        with contextlib.redirect_stdout(io.StringIO()):
            for name in ("reference", "jest"):
                recipe = f"configs/quickstart_{name}.py"
                command = ["train", "--config", recipe]
                command += ["--workdir", f"runs/{name}", "--set", *few]
                self.assertEqual(cli.main(command), 0)
            self.run_commands(FIRST_RUN, few)
        self.assertTrue((self.folder / "runs/jest/selection.html").exists())
        self.assertEqual(
            self.run_blocks(FIRST_RUN)["texts"].shape,
            (2, 128),
        )

    @pytest.mark.slow
    def test_the_tutorial_on_photos_has_a_reference_by_name(self):
        # Imported here, because KerasHub takes a while.
        import presets

        preset = presets.save(self.folder / "preset", "siglip2", length=64)
        self.run_blocks(PHOTOS)
        few = (*("steps=4", "optimizer.warmup_steps=1"),)
        few += ("evaluation.every_steps=2", "evaluation.log_every_steps=1")
        with (
            presets.hub_of(preset),
            contextlib.redirect_stdout(io.StringIO()) as printed,
        ):
            self.run_commands(PHOTOS, few)
        self.assertIn("1 sidecars written, 720 records", printed.getvalue())
        self.assertTrue((self.folder / "runs/photos/selection.html").exists())
        log = directory.read_rows("runs/photos", "metrics.jsonl")
        self.assertEqual(log[-1]["examples/trained"], 4 * 32)
        self.assertEqual(log[-1]["examples/drawn"], 4 * 160)
        # The reference has every column of the logs.
        listed = re.findall(r"`([^`]+)`", load_hooks().run_directory_page())
        for file in ("metrics.jsonl", "telemetry.jsonl"):
            for row in directory.read_rows("runs/photos", file):
                self.assertLessEqual({*row}, {*listed})

    @pytest.mark.slow
    def test_the_tutorial_on_siglip2_tunes_and_exports(self):
        import presets

        preset = presets.save(self.folder / "preset", "siglip2", length=64)
        (self.folder / "configs").symlink_to(ROOT / "configs")
        (self.folder / "data").mkdir()
        for name, count in (("curated", 16), ("pool", 24), ("held_out", 9)):
            tiny.write_shard(f"data/{name}-00000-of-00001.tfrecord", count)
        (suite,) = blocks(SIGLIP2, "toml")
        (self.folder / "tuning.toml").write_text(suite, encoding="utf-8")
        few = (*("steps=2", "optimizer.warmup_steps=1"), "data.image_size=32")
        few += ("data.super_batch_size=8", "evaluation.log_ids=true")
        few += ("evaluation.log_every_steps=1",)
        some = ("selection.batch_size=4", "selection.num_chunks=2")
        with (
            presets.hub_of(preset),
            contextlib.redirect_stdout(io.StringIO()) as printed,
        ):
            self.run_commands(SIGLIP2, few, some)
        # The start, and what it became.
        self.assertLen(
            re.findall(
                r"eval/held_out/image_to_text/recall@1\n", printed.getvalue()
            ),
            2,
        )
        self.assertTrue((self.folder / "tuned_preset/config.json").exists())

    @pytest.mark.slow
    def test_the_rehearsal_of_a_cloud_job_runs(self):
        (self.folder / "configs").symlink_to(ROOT / "configs")
        few = (*("steps=2", "optimizer.warmup_steps=1"), "evaluation.data=")
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            self.run_commands(CLOUD, few)
        self.assertIn("already finished", printed.getvalue())

    def run_commands(self, page, settings, of_selections=()):
        """Runs the `jest-tf` commands of a page with these settings."""
        for program, *arguments in shell_commands(page):
            if program != "jest-tf":
                continue
            if arguments[0] == "train":
                arguments += ["--set", *settings]
                if "selection.batch_size=none" not in arguments:
                    arguments += of_selections
            with self.subTest(shlex.join(arguments)):
                self.assertEqual(cli.main(arguments), 0)

    def shrink(self, arguments):
        settings = list(SHRUNK)
        if "selection.batch_size=none" not in arguments:
            settings += ["selection.batch_size=4", "selection.num_chunks=2"]
            settings += ["evaluation.data=pool-*.tfrecord"]
            settings += ["evaluation.log_ids=true"]
        return ["--set", *settings]

    def check_table_of_the_run_directory(self, run):
        """The table lists every file of the directory and no other."""
        _, _, section = read("docs/data.md").partition(
            "## What a run directory holds"
        )
        section, _, _ = section.partition("\n## ")
        name = r"`[\w./]+`"
        rows = re.findall(
            rf"^\| ({name}(?: or {name})?) \| ", section, re.MULTILINE
        )
        self.assertGreater(len(rows), 10)
        listed = [re.findall(r"`([^`]+)`", row) for row in rows]
        for names in listed:
            self.assertTrue(any((run / name).exists() for name in names), names)
        names = {name.strip("/") for row in listed for name in row}
        self.assertLessEqual({path.name for path in run.iterdir()}, names)

    @pytest.mark.slow
    def test_the_blocks_of_every_other_page_run(self):
        for page in PAGES:
            if page not in (README, TRAINING, AFTER_TRAINING, FIRST_RUN):
                with self.subTest(page):
                    self.run_blocks(page)


class CommandsTest(DocsTestCase):
    def test_every_command_on_every_page_exists(self):
        count = 0
        # Recipes that a page shows are files in the folder by now.
        for page in PAGES:
            for block in blocks(page, "python"):
                named = FILE_BLOCK.match(block)
                if named:
                    (self.folder / named[1]).write_text(block)
        for page in PAGES:
            for line in shell_commands(page):
                with self.subTest(page=page, command=shlex.join(line)):
                    self.check(line)
                    count += 1
        self.assertGreater(count, 10)

    def test_the_header_of_every_program_shows_its_command(self):
        programs = [
            *ROOT.glob("configs/*.py"),
            *ROOT.glob("trainers/[a-z]*.py"),
            *(
                path
                for folder in ("examples", "benchmarks")
                for path in ROOT.glob(f"{folder}/**/*.py")
                if {"argparse", "__main__"}
                <= set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
            ),
        ]
        for path in programs:
            name = path.relative_to(ROOT).as_posix()
            with self.subTest(name):
                lines = header_commands(path)
                self.assertNotEmpty(lines)
                for line in lines:
                    self.check(line)
                    module = name.removesuffix(".py").replace("/", ".")
                    words = " ".join(line)
                    self.assertTrue(name in words or module in words, line)

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
        elif program == "cp":
            self.assertEqual([arguments[0], len(arguments)], ["-r", 3])
        elif program == "python" and arguments[:2] == ["-m", "pytest"]:
            for argument in arguments[2:]:
                self.check_test(argument)
        elif program == "python" and arguments[0] == "-m":
            self.check_flags(arguments[1], arguments[2:])
        elif program == "python" and arguments[0].startswith("tests/"):
            for flag in arguments[1:]:
                self.assertIn(f'"{flag}"', read(arguments[0]))
        elif program == "jest-tf":
            self.check_flags(f"trainers.{arguments[0]}", arguments[1:])
        elif program == "python":
            self.check_exists(arguments[0])
            module = arguments[0].removesuffix(".py").replace("/", ".")
            self.check_flags(module, arguments[1:])
        else:
            self.fail(f"no rule for {program!r}")

    def check_exists(self, path):
        self.assertTrue((ROOT / path).exists(), path)

    def check_test(self, argument):
        path, *names = argument.split("::")
        self.check_exists(path)
        for name in names:
            self.assertRegex(read(path), rf"(class|def) {name}\b")

    def check_flags(self, module, arguments):
        """The program's help shows every flag."""
        main = importlib.import_module(module).main
        command = []
        while arguments and not arguments[0].startswith("-"):
            command, arguments = [*command, arguments[0]], arguments[1:]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            with self.assertRaises(SystemExit) as ended:
                main([*command, "--help"])
        self.assertEqual(ended.exception.code, 0)
        flags = [one for one in arguments if one.startswith("--")]
        for flag in flags:
            self.assertRegex(printed.getvalue(), rf"{flag}\b")
        if "--config" in flags:
            self.check_recipe(arguments)

    def check_recipe(self, arguments):
        path = arguments[arguments.index("--config") + 1]
        if not pathlib.Path(path).is_file():
            path = ROOT / path
        overrides = []
        if "--set" in arguments:
            overrides = arguments[arguments.index("--set") + 1 :]
        config = config_lib.load_config(path, overrides)
        self.assertIsInstance(config, config_lib.TrainConfig)


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
        for page in PAGES:
            for file, name in re.findall(
                r"((?:\w+/)*test_\w+\.py)::(test_\w+)`", read(page)
            ):
                with self.subTest(page=page, test=name):
                    self.assertTrue(f"def {name}(" in read(f"tests/{file}"))
                    count += 1
        self.assertGreater(count, 30)

    def test_every_named_function_exists(self):
        settings = setting_names()
        count = 0
        for page in PAGES:
            # IconText has modules of the same names; a changelog names
            # what is gone.
            if page.startswith("benchmarks/icontext") or page == "CHANGELOG.md":
                continue
            for text in re.findall(r"`([^`\n]+)`", read(page)):
                for module, path in re.findall(
                    r"(?<![\w./])(\w+)\.(\w[\w.]*)", text
                ):
                    if (
                        module not in MODULES
                        or f"{module}.{path}"
                        in (
                            "model.fit",
                            "strategy.run",
                        )
                        or path
                        in (
                            "py",
                            "json",
                            "jsonl",
                            "html",
                            "toml",
                        )
                    ):
                        continue
                    if f"{module}.{path}" in settings:
                        continue
                    with self.subTest(page=page, name=f"{module}.{path}"):
                        self.assertTrue(any_has(MODULES[module], path))
                        count += 1
        self.assertGreater(count, 30)

    def test_every_named_file_exists(self):
        for page in PAGES:
            for path in re.findall(
                r"`((?:tests|configs|examples|docs|jest_tf)/[\w./]+\.\w+)`",
                read(page),
            ):
                with self.subTest(page=page, path=path):
                    self.assertTrue((ROOT / path).exists())

    def test_the_readme_has_the_quickstarts_marks_once(self):
        for mark in ("<!-- quickstart: written by", "<!-- end quickstart -->"):
            self.assertEqual(read("README.md").count(mark), 1)

    def test_every_public_name_is_in_the_changelog(self):
        changelog = read("CHANGELOG.md")
        for name in jest_tf.__all__:
            self.assertRegex(changelog, rf"`{name}`")


class SiteTest(tf.test.TestCase):
    """The pages that docs/hooks.py makes; `make docs` checks their links."""

    def setUp(self):
        super().setUp()
        self.hooks = load_hooks()

    def test_every_setting_has_its_default_rule_and_meaning(self):
        page = self.hooks.settings_page()
        parts = re.split(r"^#+ `([\w.]+)`\n", page, flags=re.MULTILINE)[1:]
        shown = dict(zip(parts[::2], parts[1::2], strict=True))
        listed = [
            *overrides.settings(config_lib.TrainConfig),
            *overrides.settings(config_lib.Entry),
        ]
        for setting in listed:
            with self.subTest(setting.path):
                self.assertNotEmpty(setting.meaning)
                default, meaning = shown[setting.path].split("\n\n")[:2]
                written = overrides.text_of(setting.default)
                self.assertIn(f"`{written}`" if written else "empty", default)
                self.assertIn(setting.meaning[1:20], meaning)
        self.assertIn("in [0, 1]", shown["data.max_fault_rate"])
        self.assertIn("`adamw`, `sgd`", shown["optimizer.name"])
        # Of the checks across settings.
        self.assertIn("`reference.sidecar_dir` needs", page)

    def test_every_command_has_all_of_its_flags(self):
        page = self.hooks.commands_page()
        for command in cli.COMMANDS:
            _, _, part = page.partition(f"\n## `jest-tf {command}`\n")
            part, _, _ = part.partition("\n## ")
            help_text = self.hooks.parsers()[command].format_help()
            flags = re.findall(r"^  (--[\w-]+)", help_text, re.M)
            self.assertNotEmpty(flags)
            for flag in flags:
                with self.subTest(command=command, flag=flag):
                    self.assertRegex(part, rf"(?m)^\| `.*{flag}\b")

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

    def test_files_and_columns_of_a_run_are_collected(self):
        page = self.hooks.run_directory_page()
        for name in (
            *("config.json", "final.weights.h5", "examples/drawn"),
            *("select/score", "flops/step", "filter_ratio", "zero_shot"),
        ):
            self.assertIn(f"`{name}`", page)

    def test_every_page_is_in_the_list_of_the_site(self):
        listed = re.findall(r"^ +- (\S+\.md)$", read("mkdocs.yml"), re.M)
        for page in ROOT.glob("docs/**/*.md"):
            self.assertIn(page.relative_to(ROOT / "docs").as_posix(), listed)

    def test_a_notebook_is_a_page_with_its_outputs(self):
        outputs = [
            {"output_type": "stream", "text": ["2\n"]},
            {"output_type": "display_data", "data": {"image/png": "aGk=\n"}},
        ]
        cells = [
            {"cell_type": "markdown", "source": ["# A\n", "b"]},
            {"cell_type": "code", "source": ["1 + 1"], "outputs": outputs},
        ]
        self.assertEqual(
            self.hooks.notebook_page(json.dumps({"cells": cells})),
            "# A\nb\n\n```python\n1 + 1\n```\n\n```text\n2\n```\n\n"
            "![Picture](data:image/png;base64,aGk=)\n",
        )

    def test_links_out_of_docs_stay_on_the_site(self):
        for text, there in (
            ("(../configs/lit_b16.py)", "(source/configs/lit_b16.py.md)"),
            ("(../examples/guide.ipynb)", "(source/examples/guide.ipynb.md)"),
            ("(../README.md#licence)", "(source/README.md#licence)"),
            ("(../jest_tf/config)", "(reference/settings.md)"),
            ("(data.md#order)", "(data.md#order)"),
            ("(https://arxiv.org)", "(https://arxiv.org)"),
        ):
            self.assertEqual(
                self.hooks.relinked(f"[a]{text}", "docs/index.md", "index.md"),
                f"[a]{there}",
            )
        self.assertEqual(
            self.hooks.relinked(
                "[a](docs/data.md)", "README.md", "source/README.md"
            ),
            "[a](../data.md)",
        )


class DoctestsTest(tf.test.TestCase):
    @pytest.mark.slow
    def test_examples_in_docstrings_give_what_they_show(self):
        attempted = 0
        for name in sorted(itertools.chain(*MODULES.values())):
            module = importlib.import_module(name)
            result = doctest.testmod(module)
            self.assertEqual(result.failed, 0, name)
            attempted += result.attempted
        self.assertGreater(attempted, 10)


class MakefileTest(tf.test.TestCase):
    def test_help_lists_every_target(self):
        makefile = read("Makefile")
        phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
        described = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
        self.assertCountEqual(phony, described)

    def test_every_path_to_tests_exists(self):
        for path in re.findall(r"\btests/[\w/.]+", read("Makefile")):
            self.assertTrue((ROOT / path).exists(), path)

    def test_continuous_integration_runs_every_test(self):
        script = ROOT / ".ci" / "run"
        self.assertTrue(os.access(script, os.X_OK))
        targets = re.findall(r"make ([a-z-]+)", script.read_text())
        self.assertEqual(targets, ["test", "test-oldest", "test-slow"])
        chosen = re.findall(r'-m pytest -m "?([a-z ]+)', read("Makefile"))
        chosen = [c.strip() for c in chosen]
        # Those of `make test`, `make test-slow` and `make test-oldest`.
        self.assertEqual(chosen, ["not slow", "slow", "not slow"])

    def test_the_makefile_accepts_this_python(self):
        lowest, below = re.search(
            r"\((3, \d+)\) <= sys.version_info < \((3, \d+)\)", read("Makefile")
        ).groups()
        self.assertLessEqual(eval(f"({lowest})"), sys.version_info[:2])
        self.assertLess(sys.version_info[:2], eval(f"({below})"))


def anchors(path):
    """The anchors of a page's headings, as code hosts make them."""
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


def load_hooks():
    """The module docs/hooks.py, which is in no package."""
    place = ROOT / "docs" / "hooks.py"
    spec = importlib.util.spec_from_file_location("hooks", place)
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks


def setting_names():
    """`selection.batch_size` and the like."""
    config = config_lib.TrainConfig()
    return {
        f"{group}.{name}"
        for group, part in vars(config).items()
        if hasattr(part, "__dataclass_fields__")
        for name in part.__dataclass_fields__
    }


if __name__ == "__main__":
    tf.test.main()

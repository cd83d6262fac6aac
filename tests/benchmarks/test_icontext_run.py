"""IconText's runner: what it trains, in which order, and what it collects."""

import contextlib
import io
import json
import pathlib
import re
from unittest import mock

import numpy as np
import pandas as pd
import picture_files
import tensorflow as tf

import jest_tf
from benchmarks.icontext import cells, towers
from benchmarks.protocol import collect, records, run
from jest_tf import config as config_lib
from jest_tf.data import stores, tokenizers

ROOT = pathlib.Path(__file__).parents[2]
SPLITS = cells.BENCHMARK.tests + cells.BENCHMARK.validation


class RunnerTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.work = pathlib.Path(self.get_temp_dir())
        self.commands, self.failing = [], ()

    def command(self, log, *words):
        """Takes the place of `jest-tf`."""
        self.commands.append(words)
        if log in self.failing:
            raise RuntimeError("it failed")
        if words[0] == "train":
            folder = pathlib.Path(words[words.index("--workdir") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "final.weights.h5").touch()
        return 7.0

    def run_all(self, wanted, jobs=2):
        def found(benchmark, job, workdir, data, mix):
            return {"cell": job.name, "seed": job.seed}, "1 2 3"

        results = self.work / "results" / "web"
        runner = run.Runner(cells.BENCHMARK, self.work, results, jobs)
        runner._command = self.command
        with (
            mock.patch.object(collect, "collect", found),
            mock.patch.object(collect, "embedding_flops", lambda *_: 5),
            mock.patch.object(collect, "families", lambda *_: pd.DataFrame()),
            contextlib.redirect_stderr(io.StringIO()) as log,
        ):
            is_well = runner.run(wanted)
        rows = pd.DataFrame()
        if (results / "runs.csv").exists():
            rows = pd.read_csv(results / "runs.csv")
        return is_well, rows, log.getvalue()

    def test_a_reference_is_trained_and_embeds_before_its_learner(self):
        is_well, rows, _ = self.run_all([("web_jest_curated_1400", 0)])
        self.assertTrue(is_well)
        kinds = [words[0] for words in self.commands]
        self.assertEqual(kinds, ["train", "embed", "train"])
        reference, embedding, learner = self.commands
        runs = self.work / "runs"
        self.assertIn(runs / "web_curated_1000-0", reference)
        sidecars = self.work / "sidecars/web_curated_1000-pool70"
        pool = f"{self.work}/web/pool70/pool-*.tfrecord"
        self.assertEqual(
            embedding,
            ("embed", "--model", runs / "web_curated_1000-0")
            + ("--data", pool, "--output", sidecars),
        )
        self.assertIn(f"reference.sidecar_dir={sidecars}", learner)
        # The reference is of the tables as well, once it has run.
        names = ["web_curated_1000", "web_jest_curated_1400"]
        self.assertCountEqual(rows["cell"], names)
        by_cell = rows.set_index("cell")
        self.assertEqual(
            by_cell.loc["web_jest_curated_1400", "flops_embedded"], 5
        )
        self.assertEqual(by_cell["processor_seconds"].tolist(), [7.0, 7.0])

    def test_a_cell_is_trained_once_at_the_greatest_length_wanted(self):
        wanted = [(f"part70_narrow_clean_{n}", 1) for n in (700, 350)]
        is_well, rows, _ = self.run_all(wanted)
        self.assertTrue(is_well)
        self.assertEqual(rows["cell"].tolist(), [x for x, _ in wanted[::-1]])
        (command,) = self.commands
        self.assertIn(self.work / "runs/part70_narrow_clean_700-1", command)
        self.assertContainsSubset(
            ["steps=700", "evaluation.every_steps=350"], command
        )
        evaluated = [str(x) for x in command if "evaluation.data" in str(x)]
        self.assertRegex(evaluated[0], "/test_sets-.*/val_sets-")
        # A length that is wanted later is trained on its own.
        self.run_all([("part70_narrow_clean_1400", 1)])
        self.assertIn("steps=1400", self.commands[1])

    def test_what_is_in_the_tables_is_not_run_again(self):
        wanted = [("web_clean_700", 0), ("web_clean_700", 1)]
        self.run_all(wanted)
        self.commands.clear()
        _, rows, _ = self.run_all(wanted)
        self.assertEmpty(self.commands)
        self.assertLen(rows, 2)
        results = self.work / "results" / "web"
        self.assertEqual(run.finished(results), set(wanted))
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            run.main(
                ["icons", "--work", str(self.work), "--list"]
                + ["--cells", "web_clean_*00", "--seeds", "0"]
            )
        names = [line.split()[0] for line in shown.getvalue().splitlines()]
        steps = ("1400", "2700", "4500")
        self.assertEqual(names, [f"web_clean_{number}" for number in steps])

    def test_quick_runs_begin_in_their_order_and_show_scores(self):
        quick = (("web_clean_700", 1), ("apart_reference_3000", 0))
        benchmark = cells.BENCHMARK._replace(quick=quick)
        words = ["icons", "--quick", "--work", str(self.work)]
        table = pd.DataFrame(quick[::-1], columns=["cell", "seed"])
        table["examples_trained"] = table["processor_seconds"] = [8, 9]
        table["test_sets"] = [0.25, 0.123]
        with (
            mock.patch.dict(run.BENCHMARKS, {"icons": benchmark}),
            contextlib.redirect_stdout(io.StringIO()) as shown,
        ):
            run.main([*words, "--list"])
            (self.work / "results" / "web").mkdir(parents=True)
            table.to_csv(self.work / "results/web/runs.csv", index=False)
            run.main(words)
        lines = shown.getvalue().splitlines()
        self.assertEqual(
            lines[:2], ["web_clean_700 1", "apart_reference_3000 0"]
        )
        self.assertEqual(
            lines[4:],
            [
                "| web_clean_700 | 1 | 9 | 9 | 12.3 |",
                "| apart_reference_3000 | 0 | 8 | 8 | 25.0 |",
            ],
        )
        none = mock.patch.dict(
            run.BENCHMARKS, {"icons": benchmark._replace(quick=())}
        )
        with none, contextlib.redirect_stderr(io.StringIO()) as log:
            self.assertRaises(SystemExit, run.main, words)
        self.assertIn("icons has none", log.getvalue())

    def test_a_failure_stops_what_needs_it_and_nothing_else(self):
        self.failing = ("web_curated_1000-0",)
        is_well, rows, log = self.run_all(
            [("web_jest_curated_1400", 0), ("web_clean_700", 0)], jobs=1
        )
        self.assertFalse(is_well)
        self.assertEqual(rows["cell"].tolist(), ["web_clean_700"])
        self.assertIn(
            "[1/2] web_jest_curated_1400, seed 0 failed: it failed", log
        )

    def test_every_cell_has_settings_that_its_recipe_takes(self):
        for benchmark in run.BENCHMARKS.values():
            runner = run.Runner(benchmark, self.work, self.work, 1)
            self.assertContainsSubset(benchmark.quick, benchmark.runs())
            for (name, seed), job in benchmark.runs().items():
                is_last = job.steps == max(job.cell.lengths)
                if seed not in (0, 1) or not (
                    is_last or (name, seed) in benchmark.quick
                ):
                    continue
                with self.subTest(name):
                    path = f"{ROOT}/configs/{job.cell.recipe}.py"
                    recipe = config_lib.load_config(path, runner.settings(job))
                    self.assertEqual(recipe.steps, job.steps)
                    is_large = re.search("b1024|_large_", name)
                    size = 1024 if is_large else 256
                    self.assertEqual(recipe.selection.batch_size, size)
                    self.assertEqual(
                        bool(recipe.reference.sidecar_dir),
                        bool(job.cell.reference) and job.cell.reads_sidecars,
                    )
                    self.assertEqual(
                        bool(recipe.data.manifest), bool(job.cell.cut)
                    )
                    if recipe.bootstrap.renew_at:
                        (stage,) = recipe.selection.stages
                        self.assertEqual(stage.embeddings, "stored")


def a_record(number, noise=""):
    """An icon with random pixels."""
    pixels = np.random.default_rng(number).integers(0, 200, [32, 32, 3])
    image = picture_files.encode(pixels.astype(np.uint8), "PNG")
    row = records.Row(
        *("mono icon", "set", "some@1.0", "MIT", f"name {number}"),
        captions=(f"word{number}", f"other{number}"),
    )
    return records.Record(row, number, image, noise)


class CollectTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.data = pathlib.Path(self.get_temp_dir())
        for number, split in enumerate(SPLITS):
            pairs = [a_record(100 * number + n) for n in range(5)]
            records.write(self.data, split, pairs)
        pool = self.data / "pool70"
        pool.mkdir()
        pairs = [a_record(n, "moved" * (n % 4 > 0)) for n in range(900, 940)]
        records.write(pool, "pool", pairs)
        self.pattern = f"{pool}/pool-*.tfrecord"
        words = ["[UNK]", "[EOS]", "word", *(f"##{n}" for n in range(10))]
        image, text = towers.build_small(config_lib.TrainConfig(), len(words))
        learner = jest_tf.TwoTower(image, text)
        learner.build({"image": (None, 32, 32, 3), "text": (None, 8)})
        tokenizer = tokenizers.WordPieceTokenizer(words, 8)
        self.model = jest_tf.Embedder(learner, tokenizer)

    def write_run(self):
        """A run directory, as far as the tables need one."""
        workdir = self.data / "run"
        workdir.mkdir()
        config = config_lib.TrainConfig(
            steps=20, data=config_lib.DataConfig(train=(self.pattern,))
        )
        config_lib.save_config(config, f"{workdir}/config.json")
        versions = {"versions": {"numpy": "2.0", "extra": None}}
        (workdir / "versions.json").write_text(json.dumps(versions))
        measures = {
            f"eval/{split}/{side}/mrr": 0.25 + 0.5 * (side < "j")
            for split in SPLITS
            for side in ("image_to_text", "text_to_image")
        }
        of_a_step = {"flops/step": 10, "flops/stored": 1, "flops/forward": 3}
        of_a_step |= dict.fromkeys(
            [f"examples/{what}" for what in ("drawn", "scored", "trained")], 4
        )
        first, last = [900, 901, 902, 904], [900, 904, 908, 901]
        logs = {
            # With the costs so far, also between two rows of the log.
            "evaluation": [
                {name: step * value for name, value in of_a_step.items()}
                | {"step": step}
                | measures
                for step in (12, 20)
            ],
            "draws": [
                {"step": step, "ids": first if step < 10 else last}
                for step in range(1, 21)
            ],
        }
        for name, rows in logs.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (workdir / f"{name}.jsonl").write_text(lines)
        return workdir

    def test_a_run_becomes_a_line_of_each_table(self):
        wanted = cells.BENCHMARK.runs()["web_uniform_700", 2]
        wanted = wanted._replace(steps=20)
        with mock.patch.object(
            jest_tf, "load", lambda _, trust, mix: self.model
        ):
            given = cells.BENCHMARK, wanted, self.write_run(), self.data
            row, pairs = collect.collect(*given)
            early = wanted._replace(steps=12)
            of_early, nothing = collect.collect(given[0], early, *given[2:])
        # Ranks of the matches by the product of all embeddings.
        store = stores.open_store(f"{self.data}/test_sets-*.tfrecord")
        read = store.read(range(5))
        images = self.model.embed_images([record.image for record in read])
        texts = self.model.embed_texts([f"word{n}" for n in range(5)])
        scores = images @ texts.T
        matches = np.diag(scores)
        by_image = 1 / (scores >= matches[:, None]).sum(1)
        by_text = 1 / (scores >= matches).sum(0)
        self.assertEqual(
            pairs.split(), [str(round(500 * two)) for two in by_image + by_text]
        )
        mean = (by_image.mean() + by_text.mean()) / 2
        self.assertAllClose(row["test_sets"], mean, atol=1e-5)
        self.assertEqual((row["cell"], row["seed"]), ("web_uniform_20", 2))
        self.assertEqual((row["noise"], row["steps"]), (0.7, 20))
        self.assertEqual((row["flops_step"], row["flops_stored"]), (200, 20))
        self.assertEqual(row["versions"], "numpy 2.0")
        # A pair whose number is a multiple of four is clean.
        self.assertEqual((row["clean_first"], row["clean_last"]), (0.5, 0.75))
        # A shorter length is what the run evaluated and spent on the way.
        self.assertEqual(nothing, "")
        self.assertEqual(
            (of_early["test_sets"], of_early["val_sets"]), (0.5,) * 2
        )
        self.assertEqual((of_early["steps"], of_early["flops_step"]), (12, 120))
        self.assertEqual(of_early["clean_last"], 0.75)
        families = collect.families(cells.BENCHMARK, self.data)
        self.assertEqual(
            families.to_numpy().tolist(), [["test_sets", "set"]] * 5
        )

    def test_runs_are_added_below_each_other(self):
        folder = self.data / "tables"
        for seed in (0, 1):
            row = {"cell": "web_x_1", "seed": seed, "flops_step": 2**60}
            row["flops_renewals"] = None
            collect.add(folder, row, "7 8")
        collect.add(folder, row | {"seed": 2}, "")
        lines = (folder / "runs.csv").read_text().splitlines()
        self.assertEqual(lines[1], f"web_x_1,0,{2**60},")
        self.assertLen(lines, 4)
        pairs = pd.read_csv(folder / "pairs.csv")
        self.assertEqual(pairs["scores"].tolist(), ["7 8", "7 8"])

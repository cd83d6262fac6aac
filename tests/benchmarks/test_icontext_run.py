"""IconText's runs: matrix, plan, runner, pools, and a small matrix."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from benchmarks.icontext import (
    collect,
    comparison,
    matrix,
    prolong,
    report,
    results,
    run,
    runner,
    shards,
    variants,
)
from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.data import tokenizers
from jest_tf.runs import bootstrap, directory

ROOT = pathlib.Path(__file__).parents[2]
MINI = ROOT / "examples" / "icontext_mini"


class MatrixTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.plan = run.Plan(pathlib.Path("/w"), pathlib.Path("/nowhere"))

    def resolve(self, name, seed=0):
        cell = matrix.find(name)
        recipe = ROOT / "configs" / f"icontext_{cell.recipe}.py"
        return config_lib.load_config(recipe, self.plan.settings(cell, seed))

    def test_every_cell_resolves_and_names_a_matrix_and_its_needs(self):
        for cell in matrix.load().values():
            self.assertContainsSubset(cell.matrices, matrix.MATRICES)
            self.assertGreater(self.resolve(cell.cell).steps, 0)
            for name in (cell.reference, *cell.judges):
                if name:
                    self.assertEqual(matrix.find(name).data, cell.data)

    def test_a_digest_changes_with_a_cell_and_with_its_reference(self):
        cells = {
            name: matrix.find(name)
            for name in ("jest_750", "jest_2500", "jest_by_pool", "jest_400")
        }
        digests = {name: cell.digest for name, cell in cells.items()}
        self.assertLen({*digests.values()}, len(cells))

    def test_settings_are_chosen_without_the_test_splits(self):
        for name in matrix.TUNED_ON:
            for cell in matrix.cells(name):
                seen = self.resolve(cell.cell).evaluation.data
                self.assertTrue(seen)
                self.assertFalse([one for one in seen if "test_" in one])
                self.assertEqual(cell.splits, matrix.TUNED_ON[name])

    def test_tests_of_the_web_like_data_are_not_seen_in_training(self):
        for name in ("web", "web_levels", "web_claims", "web_quick"):
            for cell in matrix.cells(name):
                self.assertEqual(cell.watched, matrix.WEB_VALIDATION)
                self.assertContainsSubset(matrix.WEB_TESTS, cell.splits)
        seen = self.resolve("web_uniform_1125").evaluation.data
        self.assertEqual(
            seen,
            tuple(f"/w/web/{one}-*.tfrecord" for one in matrix.WEB_VALIDATION),
        )

    def test_the_quick_matrix_has_one_seed_of_each_cell(self):
        for cell in matrix.cells("web_quick"):
            self.assertEqual(cell.seeds, (0,))
            self.assertEqual(matrix.find(cell.cell).seeds, (0, 1, 2))
            self.assertEqual(cell.digest, matrix.find(cell.cell).digest)

    def test_a_cell_has_the_noise_of_its_pool(self):
        levels = {
            "web_uniform_4500": 0.7,
            "web_filtered_30_4500": 0.7,
            "web30_oracle_1400": 0.3,
            "web00_uniform_4500": 0.0,
            "web_curated": None,
            "uniform_noise50": None,
        }
        for name, level in levels.items():
            self.assertEqual(matrix.find(name).level, level)

    def test_the_web_like_data_is_in_a_folder_of_its_own(self):
        recipe = self.resolve("web_bootstrapped_1400")
        self.assertEqual(recipe.data.train, ("/w/web/pool70/pool-*.tfrecord",))
        self.assertEqual(recipe.data.curated, ("/w/web/curated-*.tfrecord",))
        self.assertEqual(recipe.data.vocabulary, "/w/web/vocab.txt")
        self.assertEqual(
            recipe.evaluation.data,
            tuple(f"/w/web/{one}-*.tfrecord" for one in matrix.WEB_VALIDATION),
        )
        fewer = self.resolve("web_curated250_bootstrapped_2700")
        self.assertEqual(fewer.data.curated, ("/w/web/curated250-*.tfrecord",))
        oracle = self.resolve("web_oracle_1400")
        self.assertEqual(
            oracle.data.train, ("/w/pools/oracle70/pool-*.tfrecord",)
        )

    def test_runs_of_a_cell_differ_in_nothing_but_the_seed(self):
        one, other = (self.resolve("jest_750", seed) for seed in range(2))
        self.assertEqual((one.seed, other.seed), (0, 1))
        self.assertEqual(dataclasses.replace(one, seed=1), other)

    def test_an_unknown_cell_is_refused(self):
        with self.assertRaisesRegex(ValueError, "Received: 'nonsense'"):
            matrix.find("nonsense")

    def test_a_step_of_jest_costs_eight_thirds_of_a_uniform_one(self):
        costs = []
        for name in ("jest_750", "uniform_750"):
            cell = matrix.find(name)
            recipe = ROOT / "configs" / f"icontext_{cell.recipe}.py"
            costs.append(run.cost(recipe, self.plan.settings(cell, 0)))
        self.assertAllClose(costs, [750 * 8 / 3, 750])


class PlanTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.work = pathlib.Path(self.get_temp_dir())

    def plan(self, name, finished=(), splits=()):
        """Tasks for the first seed of a cell; finished ones have `splits`."""
        found = {
            (one, 0): (cell.digest, splits or cell.splits)
            for one in finished
            for cell in [matrix.find(one)]
        }
        with mock.patch.object(results, "finished", return_value=found):
            plan = run.Plan(self.work, self.work / "results")
        plan.add_run(matrix.find(name), 0)
        return plan.tasks

    def test_what_a_run_needs_comes_before_it(self):
        self.assertEqual(
            list(self.plan("best_by_filtered")),
            [
                *("reference_curated-0", "sidecars reference_curated pool"),
                *("pool filtered", "reference_filtered-0"),
                *("sidecars reference_filtered pool", "best_by_filtered-0"),
            ],
        )

    def test_a_finished_run_is_left_out(self):
        self.assertEqual(self.plan("jest_750", ["jest_750"]), {})

    def test_a_known_reference_is_trained_again_for_others_only(self):
        tasks = self.plan("jest_750", ["reference"])
        # Its row is there, so it is trained and not collected.
        self.assertLen(tasks["reference-0"].commands, 1)
        self.assertLen(tasks["jest_750-0"].commands, 2)
        self.assertEqual(self.plan("reference", ["reference"]), {})

    def test_a_trained_run_is_collected_again_on_splits_that_it_lacks(self):
        name = "web_oracle_700"
        pool = run.Plan(self.work, self.work)._pool_folder("oracle70")
        pool.mkdir(parents=True)
        (pool / "done").touch()
        tasks = self.plan(name, [name], matrix.WEB_VALIDATION)
        _, collect = tasks[f"{name}-0"].commands
        at = collect.index("--splits") + 1
        self.assertEqual(
            [pathlib.Path(one).name for one in collect[at : at + 6]],
            [f"{one}-*.tfrecord" for one in matrix.find(name).splits],
        )
        self.assertEqual(tasks[f"{name}-0"].steps, 700)
        workdir = run.Plan(self.work, self.work).workdir(matrix.find(name), 0)
        workdir.mkdir(parents=True)
        (workdir / "final.weights.h5").touch()
        recipe = ROOT / "configs" / "icontext_web.py"
        settings = config_lib.load_config(recipe, ["steps=700"])
        (workdir / "config.json").write_text(
            json.dumps(dataclasses.asdict(settings))
        )
        evaluations = workdir / "evaluation.jsonl"
        # A run may be stopped before its last evaluation.
        for step, commands in ((600, 2), (700, 1)):
            evaluations.write_text(json.dumps({"step": step}) + "\n")
            tasks = self.plan(name, [name], matrix.WEB_VALIDATION)
            self.assertLen(tasks[f"{name}-0"].commands, commands)
        self.assertEqual(tasks[f"{name}-0"].commands, (collect,))
        self.assertEqual(tasks[f"{name}-0"].steps, 0)
        self.assertEqual(self.plan(name, [name]), {})

    def test_a_filtered_web_like_pool_is_cut_by_the_curated_reference(self):
        tasks = self.plan("web_filtered_30_4500")
        self.assertEqual(
            list(tasks),
            [
                *("web_curated-0", "sidecars web_curated pool70"),
                *("pool filtered70_30", "web_filtered_30_4500-0"),
            ],
        )
        (command,) = tasks["pool filtered70_30"].commands
        self.assertIn(str(self.work / "web" / "pool70"), command)
        self.assertEqual(command[command.index("--share") + 1], "0.3")
        self.assertEqual(command[-6:-4], ("--captions", "best"))
        collect = tasks["web_filtered_30_4500-0"].commands[-1]
        embedded = collect[collect.index("--embedded") + 1 :]
        self.assertLen(embedded, 3)
        self.assertEqual(
            embedded[2], str(self.work / "web/pool70/pool-*.tfrecord")
        )

    def test_a_longer_run_at_a_constant_rate_prolongs_the_shorter_one(self):
        tasks = self.plan("web_uniform_4500")
        lengths = 700, 1125, 2250, 4500
        names = [f"web_uniform_{steps}-0" for steps in lengths]
        self.assertEqual([*tasks], names)
        self.assertEqual(
            [tasks[one].steps for one in names], [700, 425, 1125, 2250]
        )
        self.assertEqual(tasks[names[0]].commands[0][0], "trainers.train")
        longest = tasks[names[3]]
        self.assertEqual(longest.needs, (names[2],))
        command = longest.commands[0]
        self.assertEqual(command[0], runner.PROLONG)
        flags = dict(zip(command[1::2], command[2::2], strict=True))
        folders = [
            str(run.Plan(self.work, self.work).workdir(matrix.find(one), 0))
            for one in ("web_uniform_2250", "web_uniform_4500")
        ]
        self.assertEqual(
            flags,
            {
                "--source": folders[0],
                "--workdir": folders[1],
                "--steps": "4500",
            },
        )
        # Not one that renews elsewhere, nor one with a cosine.
        for name in ("web_bootstrapped_2700", "web_uniform_cosine_4500"):
            self.assertEqual([*self.plan(name)], [f"{name}-0"])

    def test_a_copy_that_was_killed_counts_its_seconds_once(self):
        source, workdir = self.work / "short", self.work / "long"
        source.mkdir()
        (source / runner.PROCESSOR_FILE).write_text("100\n")
        (source / directory.CONFIG_FILE).write_text("{}")
        workdir.mkdir()
        (workdir / runner.PROCESSOR_FILE).write_text("2\n")
        with (
            mock.patch.object(files, "write_whole", side_effect=OSError),
            self.assertRaises(OSError),
        ):
            prolong._copy(source, workdir)
        prolong._copy(source, workdir)
        self.assertEqual(
            (workdir / runner.PROCESSOR_FILE).read_text(), "100\n2\n"
        )
        self.assertEqual((workdir / directory.CONFIG_FILE).read_text(), "{}")

    def test_curated_pools_are_written_from_a_manifest(self):
        task = self.plan("uniform_chosen")["pool chosen"]
        modules = [command[0] for command in task.commands]
        self.assertEqual(
            modules, ["trainers.curate", "benchmarks.icontext.variants"]
        )

    def test_cells_that_match_nothing_are_refused(self):
        with (
            contextlib.redirect_stderr(io.StringIO()) as printed,
            self.assertRaises(SystemExit),
        ):
            run.main(["--work", str(self.work), "--cells", "nonsense"])
        self.assertIn("Received: ['nonsense']", printed.getvalue())

    def test_runs_without_data_are_refused(self):
        arguments = ["--work", str(self.work), "--cells", "uniform_750"]
        with self.assertRaisesRegex(SystemExit, "no data in .*icontext-data"):
            run.main(arguments)


class RunnerTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.work = pathlib.Path(self.get_temp_dir())

    def run_tasks(self, *tasks):
        tasks = {task.name: task for task in tasks}
        return runner.Runner(tasks, self.work, 2).run()

    def test_a_task_waits_for_what_it_needs(self):
        first, second = self.work / "first", self.work / "second"
        self.assertTrue(
            self.run_tasks(
                runner.Task("b", (("this",),), ("a",), 1, second),
                runner.Task("a", (("this",),), (), 1, first),
            )
        )
        self.assertTrue(first.exists() and second.exists())
        self.assertLessEqual(first.stat().st_mtime, second.stat().st_mtime)

    def test_a_task_is_not_run_if_what_it_needs_failed(self):
        done = self.work / "done"
        went_well = self.run_tasks(
            runner.Task("a", (("no_such_module",),)),
            runner.Task("b", (("this",),), ("a",), 1, done),
        )
        self.assertFalse(went_well)
        self.assertFalse(done.exists())
        self.assertIn("no_such_module", (self.work / "logs/a.log").read_text())

    def test_processor_seconds_are_unknown_if_a_process_was_killed(self):
        path = self.work / runner.PROCESSOR_FILE
        self.assertIsNone(runner.processor_seconds(self.work))
        path.write_text("started\n2.0\nstarted\n3.5\n")
        self.assertEqual(runner.processor_seconds(self.work), 5.5)
        path.write_text("started\nstarted\n3.5\n")
        self.assertIsNone(runner.processor_seconds(self.work))

    def test_a_signal_is_passed_on_and_a_second_runner_is_refused(self):
        (self.work / "slow_task.py").write_text(
            "import pathlib, signal, sys, time\n"
            "def save(*_):\n"
            "  pathlib.Path(sys.argv[2]).touch()\n"
            "  sys.exit(75)\n"
            "signal.signal(signal.SIGTERM, save)\n"
            "pathlib.Path(sys.argv[1]).touch()\n"
            "time.sleep(60)"
        )
        ready, saved = self.work / "ready", self.work / "saved"
        command = ("slow_task", str(ready), str(saved))
        program = (
            "from benchmarks.icontext import runner\n"
            f"tasks = {{n: runner.Task(n, ({command!r},)) for n in 'ab'}}\n"
            "runner.exit_on_signals()\n"
            f"runner.Runner(tasks, {str(self.work)!r}, 1).run()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(self.work)},
        )
        self.addCleanup(process.kill)
        while not ready.exists():
            self.assertIsNone(process.poll())
            time.sleep(0.05)
        with self.assertRaisesRegex(SystemExit, "another runner works in"):
            self.run_tasks(runner.Task("c", (("this",),)))
        process.terminate()
        _, printed = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 128 + signal.SIGTERM)
        self.assertTrue(saved.exists())
        self.assertIn("give the command again to continue", printed)


class VariantsTest(tf.test.TestCase):
    def test_noise_moves_the_captions_of_a_share_and_nothing_else(self):
        (file,) = MINI.glob("val-*.tfrecord")
        # No two with the same captions, so that none can get its own.
        by_captions = {one.row.captions: one for one in shards.read(file)}
        records = list(by_captions.values())
        found = variants.with_noise(records, 0.5)
        moved = [
            place
            for place, (new, old) in enumerate(zip(found, records, strict=True))
            if new.row.captions != old.row.captions
        ]
        self.assertCountEqual(moved, variants.moved(len(records), 0.5))
        self.assertLen(moved, round(0.5 * len(records)))
        self.assertCountEqual(
            [one.row.captions for one in found],
            [one.row.captions for one in records],
        )
        for new, old in zip(found, records, strict=True):
            self.assertEqual(
                (new.identifier, new.png), (old.identifier, old.png)
            )

    def test_noise_survives_a_copy(self):
        (file,) = MINI.glob("val-*.tfrecord")
        records = list(itertools.islice(shards.read(file), 2))
        records[1] = records[1]._replace(noise="moved")
        folder = pathlib.Path(self.get_temp_dir())
        shards.write(folder, "pool", records)
        variants.main(
            ["clean", "--data", str(folder), "--out", str(folder / "clean")]
        )
        self.assertEqual(
            list(shards.read(next(folder.glob("pool-*")))), records
        )
        kept = next((folder / "clean").glob("pool-*"))
        self.assertEqual(list(shards.read(kept)), records[:1])

    def test_a_picture_is_matched_with_its_first_or_best_caption(self):
        rows = types.SimpleNamespace(
            image=np.eye(3, dtype=np.float16),
            text=np.eye(3, dtype=np.float16)[[1, 0, 1, 2]],
            offsets=np.array([0, 2, 3, 4]),
            valid=np.array([True, True, False]),
        )
        self.assertAllEqual(variants.matches(rows), [0, 1, -np.inf])
        self.assertAllEqual(variants.matches(rows, "best"), [1, 1, -np.inf])

    def test_of_equal_drawings_the_first_stays(self):
        shapes = np.eye(4, dtype=np.float32)[[0, 1, 0, 2, 1, 3]]
        self.assertAllEqual(variants.distinct(shapes, 2), [0, 1, 3, 5])

    def test_balance_prefers_words_that_were_chosen_least(self):
        concepts = [{"cat"}] * 6 + [{"dog"}, set()]
        found = variants.balanced(concepts, 1, batch=8, chosen=2)
        # Four passes, each with a cat and the dog; no pair without a word.
        self.assertLen(found, 8)
        self.assertEqual(np.sum(found == 6), 4)
        self.assertAllLess(found, 7)

    def test_words_of_few_pairs_are_no_concepts(self):
        concepts = [{"cat"}] * 3 + [{"aardvark"}]
        found = variants.balanced(concepts, 2, batch=4, chosen=2)
        self.assertAllLess(found, 3)

    def test_words_are_letters_alone(self):
        captions = ("Arrow-left 24", "img_03.png"), ("dsc00123",)
        self.assertEqual(
            [variants.words(one) for one in captions],
            [{"arrow", "left", "img", "png"}, {"dsc"}],
        )

    def test_the_best_stay_in_their_order(self):
        scores = np.array([0.1, 0.9, 0.5, 0.8, 0.2])
        self.assertAllEqual(variants.best(scores, 0.6), [1, 2, 3])


@pytest.mark.slow
class CollectTest(tf.test.TestCase):
    def test_shares_are_of_the_first_and_the_last_fifth_of_the_draws(self):
        shares = np.arange(12) / 10
        chosen = pd.DataFrame({"clean": shares}, index=10 * np.arange(12))
        self.assertEqual(
            collect.ends_of(chosen),
            {"clean_first": 0.05, "clean_last": 1.05},
        )
        self.assertEqual(collect.ends_of(pd.DataFrame()), {})

    def test_a_renewal_stands_beside_what_was_trained_on_after_it(self):
        renewals = [
            bootstrap.Renewal(step, images, 0, 0, 0.0, recognised, kept)
            for step, images, recognised, kept in (
                (20, 8, 0.1, True),
                (40, 0, 0.0, True),
                (60, 8, 0.2, False),
            )
        ]
        curves = pd.DataFrame({"step": [20, 40, 60, 80]})
        # The draw of step 40 was before the evaluation after it.
        steps = [10, 20, 30, 40, 50, 70, 80]
        shares = [0.0, 0.0, 0.2, 0.4, 0.5, 0.6, 0.8]
        chosen = pd.DataFrame({"clean": shares}, index=steps)
        with mock.patch.object(bootstrap, "renewals", return_value=renewals):
            found = collect.with_renewals(curves, chosen, "", None)
        self.assertAllClose(found["clean"][:3], [0.3, 0.5, 0.7])
        self.assertTrue(np.isnan(found["clean"][3]))
        self.assertAllClose(found["recognised"].dropna(), [0.1, 0.2])
        self.assertEqual([*found["is_kept"].dropna()], [True, False])
        with mock.patch.object(bootstrap, "renewals", return_value=[]):
            found = collect.with_renewals(curves, chosen, "", None)
        self.assertEqual([*found.columns], ["step"])


class SmallRunTest(tf.test.TestCase):
    def test_a_small_matrix_from_data_to_report(self):
        work = pathlib.Path(self.get_temp_dir())
        self.make_data(work / "data")
        file = work / "matrix.csv"
        small = "steps=4 optimizer.warmup_steps=1 data.super_batch_size"
        flat = f"{small}=32 optimizer.schedule=constant"
        file.write_text(
            "cell,matrix,recipe,seeds,sources,reference,evaluations,settings,"
            "what\n"
            f"reference_curated,quick,reference,0,reference,,2,{small}=32,\n"
            f"quick_uniform,quick,uniform,0,pool,,2,{small}=32,\n"
            f"quick_jest,quick,jest,0,filtered,reference_curated,2,{small}=64 "
            "selection.batch_size=32,\n"
            f"chosen,quick,uniform,0,chosen,,2,{small}=32,\n"
            f"flat_4,quick,uniform,0,pool,,,{flat},\n"
            f"flat_8,quick,uniform,0,pool,,,{flat} steps=8,\n"
        )
        tables = work / "results"
        arguments = ["--work", str(work), "--matrix", "quick", "--jobs", "1"]
        with (
            mock.patch.object(runner, "exit_on_signals"),
            mock.patch.object(matrix, "FILE", file),
            mock.patch.dict(matrix.JUDGES, {"chosen": "reference_curated"}),
        ):
            matrix.load.cache_clear()
            self.addCleanup(matrix.load.cache_clear)
            run.main(arguments)
            kept = (tables / "runs.csv").read_bytes()
            run.main(arguments)  # finds nothing to do
            self.assertEqual((tables / "runs.csv").read_bytes(), kept)
            report.main(["--results", str(tables), "--matrix", "quick"])
        self.check(results.load(tables), work / "runs")
        text = (tables / "quick_report.md").read_text()
        self.assertIn("Ratios are to the final score of uniform", text)

    def make_data(self, folder):
        folder.mkdir()
        shutil.copy(MINI / "stats.json", folder)
        for split, shipped in (
            ("reference", "reference"),
            ("pool", "pool"),
            ("val_concept", "val"),
            ("test_concept", "test"),
        ):
            (file,) = MINI.glob(f"{shipped}-*.tfrecord")
            records = list(itertools.islice(shards.read(file), 600))
            shards.write(folder, split, records)
        shutil.copy(
            next(folder.glob("val_concept-*")),
            folder / "test_style-00000-of-00001.tfrecord",
        )
        vocabulary = tokenizers.build_wordpiece_vocabulary(
            [text for one in records for text in one.row.captions], 400
        )
        tokenizers.WordPieceTokenizer(vocabulary, 1).save(folder)

    def check(self, tables, runs):
        by_cell = tables.runs.set_index("cell")
        self.assertCountEqual(
            by_cell.index,
            [
                *("reference_curated", "quick_uniform", "quick_jest"),
                *("chosen", "flat_4", "flat_8"),
            ],
        )
        self.assertEqual(by_cell.loc["flat_8", "steps"], 8)
        for what in ("examples_trained", "flops_step"):
            short, long = (by_cell.loc[f"flat_{n}", what] for n in (4, 8))
            self.assertEqual(long, 2 * short, what)
        curve = tables.curves.set_index("cell").loc["flat_8"]
        self.assertEqual(curve["step"].tolist(), [4, 8])
        jest = by_cell.loc["quick_jest"]
        self.assertEqual(jest["examples_scored"], 4 * 64)
        self.assertEqual(jest["examples_trained"], 4 * 32)
        self.assertBetween(jest["emoji_first"], 0.0, 1.0)
        # Its pool of 600 was embedded to be cut, then the fifth that is left.
        # Records have a caption or more.
        a_pair = jest["flops_forward"] / jest["examples_trained"]
        self.assertGreaterEqual(jest["flops_embedded"], 720 * a_pair)
        self.assertEqual(by_cell.loc["quick_uniform", "flops_embedded"], 0)
        curve = tables.curves.set_index("cell").loc["quick_jest"]
        self.assertEqual(curve["flops_step"].iloc[-1], jest["flops_step"])
        (workdir,) = runs.glob("quick_jest-0-*")
        last = json.loads(
            (workdir / "evaluation.jsonl").read_text().splitlines()[-1]
        )
        (one,) = comparison.Comparison(tables, "quick_uniform").of("quick_jest")
        for split in matrix.SPLITS:
            mrr = [
                last[f"eval/{split}/{direction}/mrr"]
                for direction in ("image_to_text", "text_to_image")
            ]
            self.assertAllClose(one.score((split,)), np.mean(mrr), atol=1e-5)
            # Ranks of ties are rounded.
            values = one.resampled((split,))
            self.assertAllClose(values[0], np.mean(mrr), atol=1e-3)


if __name__ == "__main__":
    tf.test.main()

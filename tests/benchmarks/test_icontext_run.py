"""The benchmark on real data: its matrix, its statistics, and a small run."""

import concurrent.futures
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.icontext import (
    bootstrap,
    claims,
    concepts,
    diagnosis,
    gallery,
    matrix,
    pages,
    questions,
    report,
    results,
    run,
    runner,
    scoring,
    shards,
    targets,
    variants,
)
from jest_tf.data import preprocessing

MINI = pathlib.Path(__file__).parents[2] / "examples" / "icontext_mini"
QUERIES = {
    "q": {
        "key": "q",
        # Two concepts: three pictures of the first, one of the second.
        "image": results.encode_ranks([0, 0, 0, 1]),
        "text": results.encode_ranks([0, 1]),
        "subsets": {"named": [1, 0], "icons_only": [1, 0]},
    }
}


def a_run(image_ranks, text_ranks, seed=0, **changes):
    """A row of results with the same ranks in both splits."""
    ranks = {
        "queries": "q",
        "image_to_text": results.encode_ranks(image_ranks),
        "text_to_image": results.encode_ranks(text_ranks),
    }
    return {
        "cell": "some",
        "seed": seed,
        "digest": "settings",
        "steps": 100,
        "differs": {},
        "log": {},
        "costs": {"examples/scored": 0, "examples/trained": 1000},
        "ranks": {split: ranks for split in bootstrap.SPLITS},
        "kinds": {},
        "processor_seconds": None,
    } | changes


def with_curve(steps, values, **changes):
    """A row whose main measure over time is `values`."""
    measures = itertools.product(bootstrap.SPLITS, bootstrap.MAIN_MEASURES)
    curve = {f"{split}/{measure}": values for split, measure in measures}
    return a_run([1] * 4, [1] * 2, curve={"step": steps, **curve}, **changes)


class MatrixTest(tf.test.TestCase):
    def test_cells_have_names_of_their_own(self):
        for name, cells in matrix.MATRICES.items():
            with self.subTest(name):
                names = [cell.name for cell in cells]
                self.assertLen(set(names), len(names))

    def test_a_cell_of_several_matrices_has_the_seeds_of_all(self):
        cells = matrix.reported("standard")
        names = [cell.name for cell in cells]
        self.assertLen(set(names), len(names))
        (cell,) = (one for one in cells if one.name == "jest_400")
        self.assertEqual(cell.seeds, matrix.SEEDS)
        self.assertEqual(matrix.find("jest_400").seeds, matrix.SEEDS[:1])

    def test_every_cell_resolves_and_what_it_needs_is_planned(self):
        folder = pathlib.Path(self.get_temp_dir())
        for name, cells in matrix.MATRICES.items():
            tasks = run.plan(cells, folder, folder / f"{name}.jsonl")
            for task in tasks.values():
                self.assertContainsSubset(task.needs, tasks)
            for cell in cells:
                config = run.resolve(cell, 1, folder)
                self.assertEqual(config.seed, 1)
                self.assertLen(config.data.train, len(cell.sources))
                chooses = config.selection.scores or (
                    config.cascade.hyper_batch_size is not None
                )
                self.assertEqual(
                    chooses or config.steps_need_reference,
                    cell.reference != "",
                )

    def test_cells_of_one_seed_differ_in_nothing_but_their_settings(self):
        folder = self.get_temp_dir()
        cells = {cell.name: cell for cell in matrix.MAIN}
        jest, easy = (
            results._settings(run.resolve(cells[name], 2, folder), folder)
            for name in ("jest_750", "easy")
        )
        differ = {key for key in jest if jest[key] != easy[key]}
        self.assertEqual(differ, {"selection.criterion"})

    def test_tuning_sees_no_test(self):
        for name, splits in matrix.TUNED_ON.items():
            config = run.resolve(matrix.MATRICES[name][1], 0, "work", splits)
            self.assertEqual(
                [os.path.basename(one) for one in config.evaluation.data],
                [f"{split}-*.tfrecord" for split in splits],
            )
            self.assertNotIn("test", " ".join(splits))

    def test_a_pool_that_a_reference_filters_comes_after_it(self):
        folder = pathlib.Path(self.get_temp_dir())
        tasks = run.plan(matrix.MATRICES["standard"], folder, folder / "x")
        order = list(run._with_needs(tasks, ["reference_filtered-0"]))
        self.assertEqual(
            order,
            [
                "reference_curated-0",
                "sidecars reference_curated-pool",
                "pool filtered",
                "reference_filtered-0",
            ],
        )
        tasks = run.plan(matrix.MATRICES["beyond"], folder, folder / "x")
        order = list(run._with_needs(tasks, ["reference_inferred-0"]))
        self.assertEqual(
            order,
            [
                "reference_pool-0",
                "sidecars reference_pool-pool",
                "pool inferred",
                "reference_inferred-0",
            ],
        )
        curate, cut = tasks["pool inferred"].commands
        self.assertIn("trainers.curate", curate)
        # What is inferred is like the validation, and kept from the tests.
        like, apart = curate.index("--like"), curate.index("--evaluation")
        self.assertIn("val_concept", " ".join(curate[like:apart]))
        self.assertNotIn("test", " ".join(curate[like:apart]))
        self.assertIn("test_concept", curate[apart + 1])
        self.assertIn("test_style", curate[apart + 2])
        manifest = curate[curate.index("--output") + 1]
        self.assertEqual(cut[cut.index("--manifest") + 1], manifest)

    def test_a_step_with_jest_costs_eight_thirds_of_a_uniform_one(self):
        # f = 0.8: 3 passes of 256 to train, 5 x 256 = 1,280 to score.
        cells = {cell.name: cell for cell in matrix.MAIN}
        jest, stage_0, uniform = (
            run.cost(run.resolve(cells[name], 0, "work"))
            for name in ("jest_750", "stage_0_1500", "uniform_750")
        )
        self.assertAllClose(jest / uniform, 8 / 3)
        self.assertAllClose(stage_0 / uniform, 1500 / 750)

    def test_a_finished_cell_is_left_out_until_its_settings_change(self):
        folder = pathlib.Path(self.get_temp_dir())
        path = folder / "results.jsonl"
        (cell,) = (one for one in matrix.QUICK if one.recipe == "uniform")
        config = run.resolve(cell, 0, folder)
        results.append(path, {"digest": results.digest(config, folder)})
        name = run.name(cell, 0)
        tasks = run.plan((cell,), folder, path)
        self.assertEmpty(run._with_needs(tasks, [name]))
        changed = matrix.dataclasses.replace(cell, settings=("steps=700",))
        tasks = run.plan((changed,), folder, path)
        self.assertEqual(list(run._with_needs(tasks, [name])), [name])

    def test_a_reference_that_is_known_is_trained_again_for_others_alone(self):
        folder = pathlib.Path(self.get_temp_dir())
        path = folder / "results.jsonl"
        cells = matrix.MATRICES["quick"]
        reference, jest = cells[0].name, run.name(cells[2], 0)
        config = run.resolve(cells[0], 0, folder)
        results.append(path, {"digest": results.digest(config, folder)})
        tasks = run.plan(cells, folder, path)
        name = run.name(cells[0], 0)
        self.assertEmpty(run._with_needs(tasks, [name]))
        order = list(run._with_needs(tasks, [name, jest]))
        self.assertEqual(order, [name, f"sidecars {reference}-pool", jest])
        weights = run.folder(cells[0], 0, folder) / "final.weights.h5"
        weights.parent.mkdir(parents=True)
        weights.touch()
        tasks = run.plan(cells, folder, path)
        self.assertNotIn(name, run._with_needs(tasks, [name, jest]))


def a_task(name, code, folder, **fields):
    """A task of the runner that runs a line of Python."""
    done = folder / f"{name}.done"
    return runner.Task(
        name, (("-c", code),), (), 1.0, done.exists, done, **fields
    )


class RunnerTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.get_temp_dir())

    def test_names_that_no_cell_has_are_refused(self):
        arguments = ["--work", str(self.folder), "--only", "jest_750"]
        arguments.append("nonsense")
        with (
            self.assertRaises(SystemExit),
            mock.patch("sys.stderr") as printed,
        ):
            run.main(arguments)
        said = "".join(call.args[0] for call in printed.write.call_args_list)
        self.assertIn("has no cell ['nonsense']", said)
        self.assertIn("jest_750", said)

    def test_a_folder_is_of_one_data_set(self):
        with self.assertRaisesRegex(SystemExit, "no data in .*icontext-data"):
            run._claim_data(self.folder)
        stats = self.folder / "data" / "stats.json"
        stats.parent.mkdir()
        stats.write_text("some")
        for _ in range(2):
            run._claim_data(self.folder)
        stats.write_text("other")
        with self.assertRaisesRegex(SystemExit, "made of other data"):
            run._claim_data(self.folder)

    def test_what_another_runner_has_is_waited_for_and_not_done_again(self):
        count = self.folder / "count"
        code = (
            f"import time; time.sleep(1); open({str(count)!r}, 'a').write('x')"
        )
        tasks = {"one": a_task("one", code, self.folder)}
        with (
            mock.patch.object(runner, "_POLL_SECONDS", 0.1),
            concurrent.futures.ThreadPoolExecutor() as pool,
        ):
            both = [runner.Runner(tasks, self.folder, 1) for _ in range(2)]
            went_well = [pool.submit(one.run) for one in both]
            self.assertTrue(all(future.result() for future in went_well))
        self.assertEqual(count.read_text(), "x")

    def test_a_signal_is_handed_on_to_what_runs(self):
        ready, saved = self.folder / "ready", self.folder / "saved"
        code = (
            "import pathlib, signal, sys, time\n"
            "def save(*_):\n"
            f"  pathlib.Path({str(saved)!r}).touch()\n"
            "  sys.exit(75)\n"
            "signal.signal(signal.SIGTERM, save)\n"
            f"pathlib.Path({str(ready)!r}).touch()\n"
            "time.sleep(60)"
        )
        program = (
            "import pathlib, signal\n"
            "from benchmarks.icontext import runner\n"
            f"folder = pathlib.Path({str(self.folder)!r})\n"
            "done = folder / 'done'\n"
            f"commands = (('-c', {code!r}),)\n"
            "tasks = {name: runner.Task(name, commands, (), 1.0, done.exists)\n"
            "         for name in ('one', 'two')}\n"
            "signal.signal(signal.SIGTERM, runner.stop)\n"
            "runner.Runner(tasks, folder, 1).run()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True
        )
        self.addCleanup(process.kill)
        while not ready.exists():
            self.assertIsNone(process.poll())
            time.sleep(0.05)
        process.terminate()
        _, said = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 128 + signal.SIGTERM)
        self.assertTrue(saved.exists())
        self.assertIn("goes on when the command is repeated", said)
        self.assertEqual(said.count("starts:"), 1)


class BootstrapTest(tf.test.TestCase):
    def test_chance_is_the_mean_over_all_orders(self):
        run = a_run([1] * 4, [1] * 2)
        means = []
        image, text = [0, 0, 0, 1], [0, 1]
        for asked, answers in ((image, text), (text, image)):
            orders = list(itertools.permutations(answers))
            for concept in asked:
                ranks = [1 + order.index(concept) for order in orders]
                means.append((len(asked), np.mean(1 / np.array(ranks))))
        by_direction = [
            np.mean([value for count, value in means if count == size])
            for size in (4, 2)
        ]
        self.assertAllClose(
            bootstrap.chance(run, QUERIES), np.mean(by_direction)
        )

    def test_ranks_survive_their_encoding(self):
        ranks = np.array([1, 2, 300, 70_000, 1.5])
        decoded = results.decode_ranks(results.encode_ranks(ranks))
        self.assertAllEqual(decoded, [1, 2, 300, 65_535, 2])

    def test_the_value_is_the_mean_over_queries(self):
        # MRR of images (1 + 1/2 + 1/4 + 1) / 4, of texts (1/2 + 1) / 2.
        found = bootstrap.estimate([a_run([1, 2, 4, 1], [2, 1])], QUERIES)
        self.assertAllClose(found.value, ((2.75 / 4) + 0.75) / 2)
        self.assertLess(found.low, found.value)
        self.assertGreater(found.high, found.value)

    def test_concepts_are_drawn_with_all_their_queries(self):
        # With one concept drawn twice the mean is that concept's: 2/3 or 1,
        # so every resample is one of the two or the mean of all, 0.75.
        runs = [a_run([1, 2, 2, 1], [1, 1])]
        values = bootstrap._resampled(
            runs, QUERIES, ("test_concept",), ("i2t_mrr",)
        )
        self.assertAllClose(np.unique(values.round(6)), [2 / 3, 0.75, 1.0])

    def test_a_subset_counts_its_own_queries(self):
        # The first concept's pictures, 1, 1/2, 1/4, and its text, 1/2.
        runs = [a_run([1, 2, 4, 1], [2, 1])]
        found = bootstrap.estimate(runs, QUERIES, subset="named")
        self.assertAllClose(found.value, (1.75 / 3 + 0.5) / 2)
        rest = bootstrap.estimate(runs, QUERIES, subset="rest")
        self.assertAllClose(tuple(rest), (1.0, 1.0, 1.0))

    def test_icons_teach_by_the_name_or_by_its_words(self):
        found = concepts.taught_by_icons(
            ["Honey Bee", "red fox", "old owl", "sad owl"],
            {"honey bee", "fox", "red paint", "old"},
            {"honey bee: insect", "owl", "fox: red"},
        )
        self.assertAllEqual(found["named"], [True, False, False, False])
        # All words in icons: bee, fox. Of these emoji art lacks none.
        self.assertAllEqual(found["icons_only"], [False] * 4)
        found = concepts.taught_by_icons(
            ["red fox", "old owl"], {"fox", "red paint"}, {"owl", "fox"}
        )
        self.assertAllEqual(found["icons_only"], [True, False])

    def test_a_run_does_not_differ_from_itself(self):
        runs = [a_run([1, 2, 4, 1], [2, 1], seed) for seed in range(3)]
        found = bootstrap.difference(runs, runs[1:], QUERIES)
        self.assertAllClose(tuple(found), (0.0, 0.0, 0.0))
        self.assertIsNone(bootstrap.difference(runs[:1], runs[1:], QUERIES))

    def test_a_target_between_two_evaluations(self):
        run = with_curve([50, 100], [0.2, 0.4])
        self.assertAllClose(bootstrap.steps_to(run, 0.3), 75.0)
        self.assertAllClose(bootstrap.steps_to(run, 0.1), 25.0)
        self.assertAllEqual(
            bootstrap.steps_to(run, np.array([[0.0, 0.5], [0.2, 0.4]])),
            [[0.0, np.inf], [50.0, 100.0]],
        )
        # It counts when it is there first, though it falls again.
        run = with_curve([50, 100, 200, 300], [0.2, 0.4, 0.3, 0.5])
        self.assertAllClose(
            bootstrap.steps_to(run, np.array([0.35, 0.45])), [87.5, 275.0]
        )

    def test_a_ratio_moves_with_the_ends_of_a_resample(self):
        def steps(run, count):
            return count

        # The run is better on one concept and worse on the other.
        base = a_run([2, 2, 2, 2], [2, 2], seed=0)
        run = a_run([1, 1, 1, 4], [1, 4], seed=0)
        measures = list(
            itertools.product(bootstrap.SPLITS, bootstrap.MAIN_MEASURES)
        )

        def with_end(row, values):
            curve = {f"{split}/{one}": values for split, one in measures}
            return row | {"curve": {"step": [50, 100], **curve}}

        # Means of the reciprocal ranks: of images (3 + 1/4) / 4, of texts 5/8.
        end = (3.25 / 4 + 0.625) / 2
        long = with_end(base, [0.5, 0.5])
        run = with_end(run, [0.25, end])
        found = bootstrap.ratio([run], [long], QUERIES, steps)
        # The long run has its end after 50; the other on its way from 50 on.
        reached = 50 + 50 * (0.5 - 0.25) / (end - 0.25)
        self.assertAllClose(found.value, 50 / reached)
        self.assertEqual((found.seeds, found.missed), (1, 0))
        self.assertAllClose(found.bound, 50 / 100)
        # Concepts drawn: both, or the first twice (above), or the second twice,
        # where the run's end is at a quarter: below 0.5.
        self.assertEqual(found.low, 0.0)
        # Its curve is as many times as high as its end of the first alone, 1.
        target = 0.5 * end / 1
        self.assertGreater(target, 0.25)
        reached = 50 + 50 * (target - 0.25) / (end - 0.25)
        self.assertAllClose(found.high, 50 / reached)

    def test_passes_are_three_to_train_on_and_one_to_score(self):
        costs = {"examples/scored": 5000, "examples/trained": 1000}
        run = a_run([1] * 4, [1, 1], costs=costs)
        self.assertEqual(bootstrap.passes(run, 50), (3 * 1000 + 5000) / 2)
        by_cache = {"selection.criterion": "easy_reference"}
        run = a_run([1] * 4, [1, 1], costs=costs, differs=by_cache)
        self.assertEqual(bootstrap.passes(run, 50), 3 * 1000 / 2)


class LookAlikesTest(tf.test.TestCase):
    def test_who_has_one_is_counted(self):
        angles = np.arccos(results.LOOK_ALIKE) * np.array([0.0, 0.9, 1.95, 9.0])
        pictures = np.stack([np.cos(angles), np.sin(angles)], 1)
        # The first two are close; the third is to none, nor is the fourth.
        self.assertEqual(results.share_of_look_alikes(pictures), 2 / 4)
        self.assertEqual(results.share_of_look_alikes(pictures[1:]), 0.0)


class ClaimsTest(tf.test.TestCase):
    def test_without_runs_nothing_is_claimed(self):
        for row in claims.table(claims.Runs([], {})):
            missing = claims.NOT_RUN
            self.assertEqual(row[2:], (*[missing] * 3, "", missing, ""))

    def test_a_verdict_of_few_seeds_says_so_and_each_split_has_its_column(self):
        rows = [
            with_curve([100], [0.4], cell=cell, ranks=a_run(*ranks)["ranks"])
            for cell, ranks in (
                ("jest_750", ([1] * 4, [1] * 2)),
                ("independent", ([2] * 4, [2] * 2)),
            )
        ]
        # The splits have ranks of their own.
        rows[1]["ranks"] |= {
            bootstrap.SPLITS[1]: a_run([4] * 4, [4] * 2)["ranks"][
                bootstrap.SPLITS[1]
            ]
        }
        (row,) = (
            row
            for row in claims.table(claims.Runs(rows, QUERIES))
            if "independent" in row[0]
        )
        # A rank of 2 loses half, one of 4 three quarters.
        self.assertEqual(
            row[2:],
            (
                "+62.5 [+62.5, +62.5]",
                "+50.0 [+50.0, +50.0]",
                "+75.0 [+75.0, +75.0]",
                *("1", f"{claims.HOLDS}, by 1 seed"),
                claims.WHY["joint", claims.HOLDS],
            ),
        )

    def test_a_length_that_another_processor_timed_may_come_to_the_target(self):
        def row(cell, ends, machine):
            seconds = {"processor_seconds": 10.0, "machine": machine}
            return with_curve([50, 100], ends, cell=cell, **seconds)

        def missed(machine):
            rows = [
                row("uniform", [0.2, 0.4], "a"),
                row("flexi", [0.1, 0.2], "a"),
                row("flexi_2500", [0.2, 0.3], machine),
            ]
            return claims.Runs(rows, QUERIES).to_target(
                claims.FLEXI_LENGTHS, bootstrap.seconds
            )

        self.assertIsNone(missed("b"))
        self.assertEqual(missed("a").missed, 1)

    def test_when_all_is_run_no_claim_is_of_fewer_than_three_seeds(self):
        rows = [
            with_curve(
                *([100], [0.5]),
                seed=seed,
                cell=cell.name,
                recipe=cell.recipe,
                machine="a",
                batch_size=256,
            )
            for cell in matrix.reported("standard")
            for seed in cell.seeds
        ]
        for row in rows:
            # What is missing on validation decides what is called the best.
            for split in (*bootstrap.SPLITS, "val_concept"):
                row["ranks"] |= {split: row["ranks"][bootstrap.SPLITS[0]]}
                for measure in bootstrap.MAIN_MEASURES:
                    row["curve"][f"{split}/{measure}"] = [0.5]
            row["costs"] |= {"flops/step": 100}
        for row in claims.table(claims.Runs(rows, QUERIES)):
            self.assertEqual(row[5], "3", row)

    def test_what_is_explained_is_a_claim(self):
        names = {claim.name for claim in claims.CLAIMS}
        self.assertLen(names, len(claims.CLAIMS))
        self.assertContainsSubset({name for name, _ in claims.WHY}, names)

    def test_fewer_than_three_seeds_have_the_spread_of_others_added(self):
        rows = [
            with_curve([100], [end], cell=cell, seed=seed)
            for cell, ends in (
                ("a", (0.3, 0.2, 0.4)),
                ("b", (0.5,)),
                ("c", (0.2, 0.2)),
            )
            for seed, end in enumerate(ends)
        ]
        runs = claims.Runs(rows, QUERIES)
        # Of the only cell with three: 0.1 around 0.3.
        self.assertAllClose(runs.spread(), 1 / 3)
        # All ranks are equal, so that concepts add nothing.
        value, low, high = runs.difference("b", "c")
        half = 1.96 * (0.5**2 + 0.2**2) ** 0.5 / 3
        self.assertAllClose((value - low, high - value), (half, half))
        # Two seeds on both sides tell twice as much.
        value, low, high = runs.difference("a", "c")
        half = 1.96 * (0.3**2 + 0.2**2) ** 0.5 / 3 / 2**0.5
        self.assertAllClose((value - low, high - value), (half, half))
        self.assertIsNone(runs.difference("a", "d"))
        # What is of the seed, for both cells, is not between them.
        rows += [
            with_curve([100], [end], cell="e", seed=seed)
            for seed, end in enumerate((0.6, 0.3, 0.9))
        ]
        # Around their means a third and a half of it: 1/12 from the middle.
        half = (1 / 2 - 1 / 3) / 2
        expected = (4 * half**2 / (1 * 2)) ** 0.5
        self.assertAllClose(claims.Runs(rows, QUERIES).spread(), expected)

    def test_ratios_are_of_the_uniform_runs_length(self):
        uniform = with_curve([100], [0.4], cell="uniform")
        jest = with_curve([50, 100], [0.4, 0.5], cell="jest")
        runs = claims.Runs([uniform, jest], QUERIES)
        found = runs.to_target(("jest",), lambda run, steps: steps)
        self.assertAllClose(found.value, 2.0)
        slow = with_curve([50, 100], [0.1, 0.2], cell="jest_750")
        runs = claims.Runs([uniform, slow], QUERIES)
        found = runs.to_target(("jest_750",), lambda run, steps: steps)
        self.assertEqual((found.value, found.missed), (0.0, 1))
        self.assertEqual(claims.ratio(found), "target not reached")
        # The longer ones have not been run.
        self.assertIsNone(claims.CLAIMS[0].measure(runs))
        longer = [
            slow | {"cell": cell, "steps": 200}
            for cell in claims.JEST_LENGTHS[1:]
        ]
        runs = claims.Runs([uniform, slow, *longer], QUERIES)
        self.assertEqual(
            claims.CLAIMS[0].measure(runs),
            ("target not reached", 1, claims.OPEN),
        )

    def test_a_longer_uniform_run_counts_where_it_is_there_sooner(self):
        rows = [
            with_curve([50, 100], [0.2, 0.4], cell="uniform", seed=seed)
            for seed in range(2)
        ]
        rows += [
            with_curve([50, 80], [0.4, 0.5], cell="jest_750", seed=seed)
            for seed in range(2)
        ]
        # One is there after 80 of its steps, the other never.
        rows += [
            with_curve([80, 200], ends, cell="uniform_10000", seed=seed)
            for seed, ends in enumerate(([0.4, 0.6], [0.3, 0.3]))
        ]

        def to_target(rows):
            return claims.Runs(rows, QUERIES).to_target(
                ("jest_750",), lambda run, steps: steps
            )

        found = to_target(rows)
        self.assertAllClose(found.value, (80 + 100) / (50 + 50))
        self.assertAllClose(found.bound, (80 + 100) / (100 + 100))
        # Resamples of seeds: both times the one, or the other.
        self.assertAllClose([found.low, found.high], [80 / 50, 100 / 50])
        # It is not held against itself.
        itself = claims.Runs(rows[:2] + rows[4:5], QUERIES).to_target(
            ("uniform_10000",), lambda run, steps: steps
        )
        self.assertAllClose(itself.value, 100 / 80)
        # Without all seeds it does not count.
        self.assertAllClose(to_target(rows[:-1]).value, 2.0)

    def test_of_the_lengths_the_one_counts_that_spends_least(self):
        rows = [
            *(
                with_curve([100], [0.4], cell="uniform", seed=seed)
                for seed in range(2)
            ),
            *(
                with_curve([50], [0.1], cell="jest_750", seed=seed)
                for seed in range(2)
            ),
            with_curve([50, 80], [0.4, 0.5], cell="jest_2500"),
        ]
        runs = claims.Runs(rows, QUERIES)
        cells = claims.JEST_LENGTHS
        found = runs.to_target(cells, lambda run, steps: steps)
        self.assertEqual((found.value, found.seeds), (2.0, 1))
        found = runs.to_target(cells[:1], lambda run, steps: steps)
        self.assertEqual((found.value, found.missed), (0.0, 2))
        found = runs.to_target(
            cells[:1], lambda run, steps: steps, base="jest_750", seeds=(1,)
        )
        self.assertEqual((found.value, found.seeds), (1.0, 1))

    def test_no_worse_is_judged_by_a_margin(self):
        def measure(low, high):
            estimate = bootstrap.Estimate((low + high) / 2, low, high)
            with mock.patch.object(
                claims.Runs, "difference", return_value=estimate
            ):
                measured = claims._no_worse("a", "b")
                return measured(claims.Runs([], {}))[2]

        self.assertEqual(measure(-0.009, 0.009), claims.HOLDS)
        self.assertEqual(measure(-0.011, 0.009), claims.OPEN)
        # Lost for certain, if little.
        self.assertEqual(measure(-0.02, -0.001), claims.FAILS)

    def test_a_ratio_is_judged_by_three_seeds_that_agree(self):
        def measure(*ends):
            rows = []
            for seed, end in enumerate(ends):
                rows += [
                    with_curve([100], [0.4], cell="uniform", seed=seed),
                    with_curve([end], [0.4], cell="jest_750", seed=seed),
                ]
            return claims.CLAIMS[0].measure(claims.Runs(rows, QUERIES))

        self.assertEqual(measure(50), ("2.0x [2.0, 2.0]", 1, claims.OPEN))
        # Three seeds took 300 steps, and the same three 125; resamples of them
        # 3 * 25 to 3 * 50.
        text = f"{300 / 125:.1f}x [2.0, 4.0]"
        self.assertEqual(measure(25, 50, 50), (text, 3, claims.HOLDS))
        self.assertEqual(measure(200, 200, 200)[2], claims.FAILS)
        # At the target as soon as the uniform run, and for longer than that.
        rows = [
            with_curve(steps, [0.4] * len(steps), cell=cell, seed=seed)
            | {"steps": steps[-1]}
            for seed in range(3)
            for cell, steps in (
                ("uniform", [100]),
                ("jest_750", [100, 300]),
            )
        ]
        found = claims.CLAIMS[0].measure(claims.Runs(rows, QUERIES))
        self.assertEqual(found, ("1.0x [1.0, 1.0]", 3, claims.OPEN))
        self.assertEqual(measure(25, 50, 200)[2], claims.OPEN)

    def test_every_cost_is_compared_but_seconds_of_another_machine(self):
        costs = {
            "examples/scored": 0,
            "examples/trained": 1000,
            "flops/step": 500,
        }
        base = dict(costs=costs, processor_seconds=60.0, machine="a")
        uniform = with_curve([100], [0.4], cell="uniform", **base)
        base |= {"costs": costs | {"flops/cascade": 500}}
        jest = with_curve([50, 100], [0.4, 0.5], cell="jest", **base)
        expected = {
            bootstrap.examples: 2.0,
            bootstrap.flops: 1.0,
            bootstrap.seconds: 2.0,
        }
        self.assertEqual({*bootstrap.COSTS.values()}, {*expected})
        runs = claims.Runs([uniform, jest], QUERIES)
        for spent, ratio in expected.items():
            found = runs.to_target(("jest",), spent)
            self.assertAllClose(found.value, ratio)
        runs = claims.Runs([uniform, jest | {"machine": "b"}], QUERIES)
        self.assertIsNone(runs.to_target(("jest",), bootstrap.seconds))
        found = runs.to_target(("jest",), bootstrap.flops)
        self.assertAllClose(found.value, 1.0)

    def test_a_run_can_be_charged_with_its_reference(self):
        def row(digest, **changes):
            forward = {"examples/trained": 1000, "flops/forward": 2000}
            costs = {"flops/step": 500, **forward}
            return a_run(
                [1] * 4, [1] * 2, digest=digest, costs=costs, **changes
            )

        judge = row("ddddeeeeff", cell="reference_curated")
        filtered = row("eeeeffffaa", cell="reference_filtered")
        reference = row("aaaabbbbcc", cell="reference")
        spent = bootstrap.flops_with([reference, judge, filtered])

        def of_run(digest, spent=spent):
            folder = f"sidecars/some-pool-{digest}"
            differs = {"reference.sidecar_dir": folder}
            return spent(row("x", cell="best", differs=differs), 50)

        # Half of the run, the reference's training, a pass over the pool.
        each = 500 + 2 * matrix.POOL_SIZE
        self.assertEqual(of_run("aaaabbbb"), 250 + each)
        # Its pool was cut by another reference.
        self.assertEqual(of_run("eeeeffff"), 250 + 2 * each)
        self.assertEqual(spent(row("x", cell="uniform"), 50), 250)
        # The run's own pool was, and nothing else scored for it.
        self.assertEqual(spent(row("x", cell="filtered"), 50), 250 + each)
        # What is not known is not counted.
        self.assertIsNone(of_run("99999999"))
        without = bootstrap.flops_with([reference, filtered])
        self.assertIsNone(of_run("eeeeffff", without))

    def test_a_verdict_needs_an_interval_on_one_side_of_zero(self):
        for interval, expected in (
            ((1.0, 0.5, 2.0), claims.HOLDS),
            ((1.0, -0.5, 2.0), claims.OPEN),
            ((-1.0, -2.0, -0.5), claims.FAILS),
        ):
            found = claims.verdict(bootstrap.Estimate(*interval))
            self.assertEqual(found, expected)


class DiagnosisTest(tf.test.TestCase):
    def test_every_cell_that_it_names_is_of_the_standard_matrix(self):
        names = {cell.name for cell in matrix.reported("standard")}
        asked = [
            cell
            for question in questions.QUESTIONS
            for pair in question.pairs
            for cell in pair
        ]
        drawn = [
            cell
            for panel in questions.PANELS
            for line in panel.lines.values()
            for _, cell in line
        ]
        self.assertEmpty({*asked, *drawn} - names)
        # And no sweep is left out.
        self.assertEmpty({cell.name for cell in matrix.SWEEPS} - {*asked})

    def test_a_cell_stands_beside_the_one_that_it_is_held_against(self):
        uniform = with_curve([100], [0.5], cell="uniform_400")
        jest = with_curve([100], [1.0], cell="jest_400")
        jest["costs"] |= {"examples/scored": 5000}
        jest |= {"processor_seconds": 50.0}
        ranks = a_run([2, 2, 2, 2], [2, 2])["ranks"]
        uniform |= {"ranks": ranks}
        runs = claims.Runs([uniform, jest], QUERIES)
        folder = pathlib.Path(self.get_temp_dir())
        text = pages.markdown(diagnosis.blocks(runs, folder))
        # Rank 1 in place of 2; three passes to train and five to score.
        self.assertIn(
            "| 2.67 | 0.50 | uniform_400 | +50.0 [+50.0, +50.0] |",
            text,
        )
        self.assertTrue((folder / "sweeps.png").exists())

    def test_noise_has_a_target_of_its_own(self):
        cell = {"costs": {"examples/scored": 0, "examples/trained": 256}}
        rows = [
            with_curve([100], [0.9], cell="uniform", **cell),
            with_curve([100], [0.2], cell="uniform_noise50", **cell),
            with_curve([50], [0.2], cell="best_noise50", **cell),
            *(
                with_curve(
                    *([50], [0.2]),
                    cell="jest_noise50",
                    seed=seed,
                    kinds={"moved": [first, 0.3, 0.3, 0.3, 0.2]},
                    **cell,
                )
                for seed, first in ((1, 0.4), (2, 0.2))
            ),
        ]
        runs = claims.Runs(rows, QUERIES)
        folder = pathlib.Path(self.get_temp_dir())
        with mock.patch.object(bootstrap, "chance", lambda *_: 0.4):
            text = pages.markdown(diagnosis.blocks(runs, folder))
        # There after half of its steps.
        self.assertRegex(text, r"\| 50 % \|.*\| 2\.0x \[2\.0, 2\.0\] \|")
        self.assertNotIn("| 25 % |", text)
        # Of five parts of the run the first and the last, means of two seeds.
        self.assertRegex(text, r"\| jest_noise50 \|.*\| 2 \| 30\.0 \| 20\.0 \|")
        # An end that chance would have is none.
        with mock.patch.object(bootstrap, "chance", lambda *_: 0.6):
            text = pages.markdown(diagnosis.blocks(runs, folder))
        self.assertNotIn("2.0x", text)

    def test_what_was_tried_is_listed_and_what_was_not_is_named(self):
        folder = pathlib.Path(self.get_temp_dir())
        cells = [
            cell
            for cell in matrix.MATRICES["tuning"]
            if cell.recipe != "reference"
        ]
        curve = {
            f"val_concept/{name}": [0.1, value]
            for name, value in (("i2t_mrr", 0.2), ("t2i_mrr", 0.3))
        }
        row = a_run([1] * 4, [1] * 2, cell=cells[1].name)
        row["curve"] = {"step": [50, 100], **curve}
        results.append(folder / "tuning.jsonl", row)
        text = pages.markdown(diagnosis.tried(folder))
        self.assertIn(f"| {cells[1].about} | 100 | 25.0 |", text)
        self.assertIn(f"Planned, and not run: {cells[0].name}, ", text)
        self.assertEmpty(diagnosis.tried(folder / "none"))


class TargetsTest(tf.test.TestCase):
    def test_every_cell_that_it_names_is_of_its_matrix(self):
        for matrix_name, uniform in report._UNIFORM_CELLS.items():
            names = {cell.name for cell in matrix.reported(matrix_name)}
            methods = targets.METHODS[uniform].values()
            self.assertContainsSubset(
                {uniform, *itertools.chain(*methods)}, names
            )
        names = {cell.name for cell in matrix.reported("standard")}
        self.assertContainsSubset({*report._MAIN_CURVES}, names)
        self.assertContainsSubset({*report._UNIFORM}, names)
        self.assertContainsSubset({*targets._LENGTHS}, names)
        references = {cell.name for cell in matrix.REFERENCES}
        self.assertContainsSubset({*matrix.JUDGES.values()}, references)

    def test_a_method_that_lacks_a_length_has_not_missed(self):
        rows = [
            with_curve([100], [0.4], cell="uniform", processor_seconds=9.0),
            with_curve([50], [0.1], cell="jest_750", processor_seconds=9.0),
        ]
        for row in rows:
            row["machine"] = "a"
            row["batch_size"] = 10
        for more, expected in (
            ([], claims.NOT_RUN),
            (
                [rows[1] | {"cell": cell} for cell in claims.JEST_LENGTHS[1:]],
                claims.MISSED,
            ),
        ):
            runs = claims.Runs(rows + more, QUERIES)
            text = pages.markdown(targets.methods(runs))
            self.assertRegex(text, rf"\| JEST, f = 0.8 \|.*\| {expected} \|")

    def test_a_longer_uniform_run_has_an_end_of_its_own_to_come_to(self):
        rows = [
            with_curve(steps, values, cell=cell)
            for cell, steps, values in (
                ("uniform", [100], [0.4]),
                ("jest_750", [100], [0.4]),
                ("reference_curated", [50, 80], [0.6, 0.6]),
            )
        ]
        for row in rows:
            row |= {"batch_size": 10}
            row["costs"] |= {"flops/step": 7}
        self.assertEqual(targets.longer(claims.Runs(rows, QUERIES)), [])
        longer = with_curve([100, 200], [0.4, 0.6], cell="uniform_10000")
        longer |= {"batch_size": 10, "steps": 200}
        for row in (*rows, longer):
            row |= {"processor_seconds": None, "machine": "a"}
        longer["costs"] |= {"flops/step": 7, "examples/trained": 2000}
        runs = claims.Runs([*rows, longer], QUERIES)
        text = pages.markdown(targets.longer(runs))
        # A doubling lies between 100 and 200 steps.
        self.assertIn("| 100 | 100.0 [100.0, 100.0], 1 seed |  |  |", text)
        self.assertIn(
            "| 200 | 100.0 [100.0, 100.0], 1 seed | +0.0 [+0.0, +0.0] | 1 |",
            text,
        )
        # 200 steps of 10 examples, and 50.
        self.assertIn("after 100 steps, 1 seed | 4.0x [4.0, 4.0]", text)
        self.assertRegex(text, rf"\| JEST, f = 0.8 \|.* \| {claims.NOT_RUN} \|")
        self.assertIn("by none of: none.", text)
        shorter = [
            rows[1] | {"cell": one, "seed": 0}
            for one in ("jest_2500", "jest_5000")
        ]
        whole = claims.Runs([*rows, *shorter, longer], QUERIES)
        text = pages.markdown(targets.longer(whole))
        self.assertIn("by none of: JEST, f = 0.8.", text)
        self.assertIn("200 steps uniform training gained +20.0 points", text)
        for blocks in (targets.methods(runs), targets.summary(runs)):
            self.assertIn(
                "ends at 100.0 [100.0, 100.0] after 200 steps, 1 seed, +0.0 "
                "[+0.0, +0.0] from there. Of what was run, that far come, in "
                "so many times fewer examples: uniform on the curated set "
                "alone, 4.0x [4.0, 4.0], 1 seed.",
                pages.markdown(blocks),
            )
        text = pages.markdown(targets.summary(runs))
        near, far = re.findall(
            "^\\| uniform on the curated.*$", text, re.MULTILINE
        )
        self.assertEqual(
            near.split(" | ")[2:4], ["3.0x [3.0, 3.0], 1 seed", "1.0x"]
        )
        self.assertEqual(far.split(" | ")[3], "4.0x [4.0, 4.0], 1 seed")
        for row in re.findall("^\\| JEST, f = 0.8.*$", text, re.MULTILINE):
            self.assertEqual(row.count("|"), 7)

    def test_the_best_is_what_validation_puts_first(self):
        # The other is better on the tests, there after 20 steps.
        better, worse = claims.BEST_OF[2], claims.BEST_OF[1]
        validated = {"uniform": 0.3, better: 0.6, worse: 0.5}
        rows = [
            with_curve(steps, [0.4] * len(steps), cell=cell, seed=seed)
            for seed in range(3)
            for cell, steps in (
                ("uniform", [100]),
                (better, [50, 80]),
                (worse, [20, 80]),
            )
        ]
        for row in rows:
            for measure in bootstrap.MAIN_MEASURES:
                ends = [validated[row["cell"]]] * len(row["curve"]["step"])
                row["curve"][f"val_concept/{measure}"] = ends
            row["ranks"] |= {"val_concept": row["ranks"][bootstrap.SPLITS[0]]}
            row["steps"] = row["curve"]["step"][-1]
            row["costs"] |= {
                "flops/step": 100,
                "examples/trained": 10 * row["steps"],
            }
            row |= {"batch_size": 10, "processor_seconds": None, "machine": "a"}
        runs = claims.Runs(rows, QUERIES)
        self.assertEqual(claims.best(runs), (better,))
        self.assertEqual(claims.best(claims.Runs([], {})), ())
        text = pages.markdown(targets._statement(runs))
        # Of the steps alone, as those of all FLOPs count the same a run.
        self.assertIn("The best: 2.0x [2.0, 2.0] fewer examples", text)
        self.assertIn(f"It is {better}", text)
        # 100 of 80 steps, to the end of the run.
        self.assertIn("it is 1.2x and", text)
        self.assertIn(f"{worse} (its reference: ", text)
        self.assertIn("+0.0 [+0.0, +0.0] on test_concept", text)
        self.assertNotIn("processor seconds", text)
        # Of the distilled one row a table, and no claim that the paper has not.
        text = pages.markdown(targets.summary(runs))
        row, _ = re.findall(r"^\| stage 0 alone, .*$", text, re.MULTILINE)
        self.assertRegex(row, r"twice as wide \| .* after 80 steps, 3 seeds \|")
        self.assertIn(" | 2.0x [2.0, 2.0] | ", row)
        claimed = {
            one.text for one in claims.CLAIMS if f"| {one.text} |" in text
        }
        ours = {one.text for one in claims.CLAIMS if one.paper == claims.OURS}
        self.assertLen(claimed, len(claims.CLAIMS) - len(ours))
        self.assertEmpty(claimed & ours)

    def test_the_one_reference_stands_beside_each_seed(self):
        rows = [
            with_curve([100], [0.5], cell="a", seed=seed) for seed in range(3)
        ]
        reference = with_curve([100], [0.3], cell="b", recipe="reference")
        reference["ranks"] = a_run([2, 2, 2, 2], [2, 2])["ranks"]
        runs = claims.Runs([*rows, reference], QUERIES)
        self.assertEqual(runs.shared("a", "b"), 3)
        self.assertEqual(runs.shared("b", "a"), 1)
        self.assertEqual(tuple(runs.difference("a", "b")), (0.5, 0.5, 0.5))


class FileTest(tf.test.TestCase):
    def test_half_a_line_of_a_killed_process_is_left_out_and_cut_off(self):
        path = pathlib.Path(self.get_temp_dir()) / "results.jsonl"
        results.append(path, {"cell": "a"})
        with open(path, "a", encoding="utf-8") as file:
            file.write('{"cell": "b", "se')
        self.assertEqual(results.read(path), [{"cell": "a"}])
        results.append(path, {"cell": "c"})
        self.assertEqual(results.read(path), [{"cell": "a"}, {"cell": "c"}])

    def test_queries_are_written_once_and_after_half_a_line(self):
        path = pathlib.Path(self.get_temp_dir()) / "queries.jsonl"
        results.append_queries(path, {"a": {"text": "x"}})
        with open(path, "a", encoding="utf-8") as file:
            file.write('{"key": "b", "te')
        more = {"a": {"text": "z"}, "b": {"text": "y"}}
        results.append_queries(path, more)
        expected = [{"key": "a", "text": "x"}, {"key": "b", "text": "y"}]
        self.assertEqual(results.read(path), expected)


class ProcessorSecondsTest(tf.test.TestCase):
    def test_a_process_whose_end_nobody_saw_makes_the_time_unknown(self):
        path = pathlib.Path(self.get_temp_dir()) / results.PROCESSOR_FILE
        for lines, expected in (
            ("started\n1.5\n", 1.5),
            ("started\n1.5\nstarted\n2.0\n", 3.5),
            ("started\nstarted\n2.0\n", None),
        ):
            path.write_text(lines)
            found = results._processor_seconds(path.parent)
            self.assertEqual(found, expected)


class ReportTest(tf.test.TestCase):
    def test_the_uniform_learner_is_drawn_first(self):
        runs = claims.Runs([], {}, "quick_uniform")
        names = ["quick_reference", "quick_uniform", "quick_jest"]
        self.assertEqual(
            report._to_draw(runs, report._MAIN_CURVES, names),
            ["quick_uniform", "quick_reference", "quick_jest"],
        )
        runs = claims.Runs([], {})
        names = ["reference", "jest_5000", "uniform"]
        self.assertEqual(
            report._to_draw(runs, report._MAIN_CURVES, names),
            ["uniform", "jest_5000"],
        )

    def test_without_the_long_uniform_run_a_page_says_so(self):
        folder = pathlib.Path(self.get_temp_dir())
        kept = results.read(results.FOLDER / "standard.jsonl")
        row = next(one for one in kept if one["cell"] == "jest_400")
        results.append(folder / "standard.jsonl", row)
        shutil.copy(results.FOLDER / results.QUERIES_FILE, folder)
        pages_of = {name: folder / f"{name}.md" for name in ("a", "b")}
        report.main(
            [
                *("--results", str(folder)),
                *("--summary", str(pages_of["a"])),
                *("--methods", str(pages_of["b"])),
            ]
        )
        for page in pages_of.values():
            text = page.read_text()
            self.assertIn(f"The long uniform run: {claims.NOT_RUN}.", text)
        self.assertNotIn("![", pages_of["a"].read_text())

    def test_any_part_of_the_results_makes_a_report(self):
        kept = [
            row
            for name in matrix.REPORTS["standard"]
            for row in results.read(results.FOLDER / f"{name}.jsonl")
        ]
        queries = {
            row["key"]: row
            for row in results.read(results.FOLDER / results.QUERIES_FILE)
        }
        for there in (
            ("uniform-0", "uniform_10000-1", "jest_750-0"),
            ("uniform-0", "reference_wide-0", "best_by_wide-0", "best-1"),
            ("uniform-0", "best_by_wide-0", "best-0"),
        ):
            rows = [
                row for row in kept if f"{row['cell']}-{row['seed']}" in there
            ]
            runs = claims.Runs(rows, queries)
            blocks = [
                *targets.methods(runs),
                *targets.longer(runs),
                *targets.summary(runs),
            ]
            text = pages.markdown(blocks)
            with self.subTest(there=there):
                self.assertIn(claims.NOT_RUN, text)
                self.assertNotIn("None", text)

    def test_rows_of_settings_of_before_are_left_out(self):
        folder = pathlib.Path(self.get_temp_dir())
        kept = results.read(results.FOLDER / "standard.jsonl")
        row = next(one for one in kept if one["cell"] == "jest_400")
        older = row | {"digest": "of before", "machine": "an old one"}
        for one in (older, row):
            results.append(folder / "standard.jsonl", one)
        shutil.copy(results.FOLDER / results.QUERIES_FILE, folder)
        report.main(["--results", str(folder)])
        text = (folder / "report.md").read_text()
        self.assertIn(f"| {row['machine']} | 1 | jest_400-0 |", text)
        self.assertNotIn("an old one", text)
        # What was found was found of the kept results.
        self.assertIn(report._OTHERS, text)
        kept = (results.FOLDER / "report.md").read_text()
        self.assertNotIn(report._OTHERS, kept)

    def test_what_is_run_again_stands_beside_the_first(self):
        first = a_run([1] * 4, [1] * 2, cell="uniform", machine="a")
        again = a_run([2] * 4, [2] * 2, cell="uniform", machine="b")
        runs = claims.Runs([first, again], QUERIES)
        self.assertEqual(runs.of("uniform"), [first])
        (cell,) = (one for one in matrix.MAIN if one.name == "uniform")
        text = pages.markdown(report._machines(runs, [cell]))
        self.assertIn("| a | 1 | uniform-0 |", text)
        self.assertNotIn("| b | 1 |", text)
        # Rank 2 in place of 1.
        self.assertIn(
            "| uniform-0 | a | 100.0 [100.0, 100.0] | b | 50.0 [50.0, 50.0] | "
            "-50.0 [-50.0, -50.0] |",
            text,
        )


class PagesTest(tf.test.TestCase):
    def test_one_html_file_holds_everything(self):
        folder = pathlib.Path(self.get_temp_dir())
        (folder / "a.png").write_bytes(b"picture")
        blocks = [
            pages.heading("A & B"),
            pages.paragraph("with `code` < 1"),
            pages.table(("x",), [("1",)]),
            pages.image("a.png", "alt"),
        ]
        pages.write_html(blocks, folder, folder / "a.html")
        text = (folder / "a.html").read_text()
        for part in (
            "<h1>A &amp; B</h1>",
            "<p>with <code>code</code> &lt; 1</p>",
            "<th>x</th>",
            "data:image/png;base64,cGljdHVyZQ==",
        ):
            self.assertIn(part, text)
        pages.write_markdown(blocks, folder / "a.md")
        self.assertIn("| x |\n| --- |\n| 1 |", (folder / "a.md").read_text())


class VariantsTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        (file,) = MINI.glob("val_concept-*.tfrecord")
        self.records = list(shards.read(file))

    def test_noise_moves_captions_of_a_share_and_nothing_else(self):
        # No two of these have the same caption, so none can get its own.
        firsts = {one.row.captions: one for one in self.records}
        records = list(firsts.values())
        found = variants.with_noise(records, 0.5)
        moved = [
            new.row.captions != old.row.captions
            for new, old in zip(found, records, strict=True)
        ]
        self.assertEqual(sum(moved), round(0.5 * len(records)))
        self.assertCountEqual(
            [one.row.captions for one in found],
            [one.row.captions for one in records],
        )
        for new, old in zip(found, records, strict=True):
            self.assertEqual(
                (new.identifier, new.png), (old.identifier, old.png)
            )
        # A run on such a pool knows which.
        for cell, expected in (("jest_noise50", moved), ("jest_750", None)):
            config = run.resolve(matrix.find(cell), 0, self.get_temp_dir())
            is_moved = results._is_moved(config, len(records))
            expected = expected or [False] * len(records)
            self.assertEqual(is_moved.tolist(), expected)

    def test_of_look_alikes_the_first_is_kept(self):
        random = np.random.default_rng(0)
        # Around few places, so that there are chains of look-alikes.
        places = random.normal(size=[6, 4])
        pictures = places[random.integers(0, 6, 200)]
        pictures = pictures + 0.2 * random.normal(size=pictures.shape)
        pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
        valid = random.random(200) < 0.9
        expected = []
        for row, picture in enumerate(pictures):
            if valid[row] and all(
                picture @ pictures[one] <= 0.95 for one in expected
            ):
                expected.append(row)
        self.assertBetween(len(expected), 7, 150)
        for size in (1, 7, 64, 500):
            found = variants.distinct(pictures, valid, 0.95, size)
            self.assertAllEqual(np.flatnonzero(found), expected)

    def test_the_best_stay_in_their_order(self):
        records = self.records[:5]
        scores = np.array([0.1, 0.9, 0.5, 0.8, 0.2])
        self.assertEqual(
            variants.best_of(records, scores, 0.6),
            [records[1], records[2], records[3]],
        )


@pytest.mark.slow
class SmallRunTest(tf.test.TestCase):
    def test_a_small_matrix_from_data_to_report(self):
        work = pathlib.Path(self.get_temp_dir())
        self.make_data(work / "data")
        small = ("steps=4", "optimizer.warmup_steps=1")
        cells = (
            matrix.Cell(
                "reference_curated",
                "reference",
                "",
                (*small, "data.super_batch_size=32"),
                sources=("reference",),
                reference="",
            ),
            matrix.Cell(
                "quick_uniform",
                "uniform",
                "",
                (*small, "data.super_batch_size=32"),
                reference="",
            ),
            matrix.Cell(
                "quick_jest",
                "jest",
                "",
                (
                    *small,
                    "data.super_batch_size=64",
                    "selection.batch_size=32",
                ),
                sources=("filtered",),
                reference="reference_curated",
            ),
            matrix.Cell(
                "chosen",
                "uniform",
                "",
                (*small, "data.super_batch_size=32"),
                sources=("chosen",),
                reference="",
            ),
        )
        arguments = [
            *("--work", os.fspath(work), "--results", os.fspath(work / "r")),
            *("--matrix", "quick", "--jobs", "1"),
        ]
        matrices = {"quick": cells}
        judges = {"chosen": "reference_curated"}
        with (
            mock.patch.dict(matrix.MATRICES, matrices, clear=True),
            mock.patch.dict(matrix.JUDGES, judges),
        ):
            run.main(arguments)
            rows = results.read(work / "r" / "quick.jsonl")
            self.assertEqual(
                [row["cell"] for row in rows],
                [
                    *("reference_curated", "quick_uniform", "quick_jest"),
                    "chosen",
                ],
            )
            # Nothing is left to do, so nothing is added.
            run.main(arguments)
            again = results.read(work / "r" / "quick.jsonl")
            self.assertEqual(rows, again)
            page, other = work / "page.md", work / "other.md"
            page.write_text("Before.\n")
            for _ in range(2):  # the second time it is replaced
                report.main(
                    [
                        *("--results", str(work / "r"), "--matrix", "quick"),
                        *("--summary", str(page), "--methods", str(other)),
                    ]
                )
        (workdir,) = (work / "runs").glob("quick_jest-0-*")
        self.check(rows[2], workdir)
        gallery.main(
            [
                *("--work", os.fspath(work), "--runs", "quick_jest-0"),
                *("--results", os.fspath(work / "r")),
            ]
        )
        self.assertTrue((work / "r" / "gallery_quick_jest-0.png").exists())
        for _ in range(2):  # the second time it is there
            scoring.main(
                [
                    *("--work", os.fspath(work), "--runs", "quick_jest-0"),
                    *("--results", os.fspath(work / "r")),
                ]
            )
        (row,) = results.read(work / "r" / scoring.FILE)
        blocks = pages.markdown(scoring.blocks(work / "r"))
        kept = row["views"]["image_size=16"]["score_kept"]["mean"]
        self.assertRegex(
            blocks, rf"\| quick_jest-0, step 4 \| image_size=16 .* {kept:.2f} "
        )
        self.assertNotIn(scoring.FOUND, blocks)
        text = (work / "r" / "quick_report.md").read_text()
        self.assertIn("| quick_jest-0 | 0 | 256 | 256 | 128 |", text)
        self.assertTrue((work / "r" / "quick_report.html").exists())
        summary = page.read_text()
        self.assertStartsWith(summary, "Before.\n\n<!-- icontext: written by")
        self.assertEqual(summary.count("after 4 steps, 1 seed, b = 32"), 1)
        self.assertIn("](r/quick_summary.png)", summary)
        self.assertTrue((work / "r" / "quick_summary.png").exists())
        self.assertIn("| JEST, f = 0.8 | ", other.read_text())
        self.assertIn("](r/quick_frontier.png)", other.read_text())
        self.assertTrue((work / "r" / "quick_frontier.png").exists())

    def make_data(self, folder):
        folder.mkdir()
        shutil.copy(MINI / "stats.json", folder)
        for split in ("reference", "pool", "val_concept", "test_concept"):
            (file,) = MINI.glob(f"{split}-*.tfrecord")
            records = list(itertools.islice(shards.read(file), 600))
            shards.write(folder / file.name, records)
        shutil.copy(
            next(folder.glob("val_concept-*")),
            folder / "test_style-00000-of-00001.tfrecord",
        )
        vocabulary = preprocessing.build_wordpiece_vocabulary(
            [text for one in records for text in one.row.captions], 400
        )
        preprocessing.WordPieceTokenizer(vocabulary, 1).save(folder)

    def check(self, row, workdir):
        self.assertEqual(row["costs"]["examples/scored"], 4 * 64)
        self.assertEqual(row["differs"]["selection.method"], "joint")
        last = json.loads(
            (workdir / "evaluation.jsonl").read_text().splitlines()[-1]
        )
        for split in ("val_concept", "test_concept", "test_style"):
            for direction, short in (
                ("image_to_text", "i2t"),
                ("text_to_image", "t2i"),
            ):
                ranks = results.decode_ranks(row["ranks"][split][direction])
                mrr = last[f"eval/{split}/{direction}/mrr"]
                # Ranks of ties are rounded.
                self.assertAllClose(np.mean(1 / ranks), mrr, atol=1e-3)
                self.assertEqual(
                    row["curve"][f"{split}/{short}_mrr"][-1], round(mrr, 4)
                )
        drawn = row["kinds"]["drawn"]
        self.assertAllClose(
            np.sum(list(drawn.values()), axis=0), np.ones(1), atol=1e-3
        )


if __name__ == "__main__":
    tf.test.main()

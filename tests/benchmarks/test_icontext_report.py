"""IconText's ratios and intervals by hand, and the numbers of its pages."""

import itertools
import json
import pathlib
import re

import numpy as np
import pandas as pd
import tensorflow as tf

from benchmarks.icontext import cells, figures, report
from benchmarks.protocol import measures
from benchmarks.protocol.benchmark import GIVEN

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = report.RESULTS
README = "README.md"
# Pages whose sentences have numbers of the tables.
PAGES = [README, *(f"docs/{n}.md" for n in ("results", "recipes", "bootstrap"))]
APPENDIX = [
    *("methods", "noise", "tried", "half_width_more", "two_targets"),
    *("same_width", "held_out", "strengths", "validation", "tried_given"),
]


def read(path):
    return path.read_text(encoding="utf-8")


def markdown_tables(path):
    """The tables of a page, lists of rows of text; the first is the header."""
    found, rows = [], []
    for line in [*read(path).splitlines(), ""]:
        if line.startswith("| "):
            rows.append([cell.strip() for cell in line.split("|")[1:-1]])
        elif rows:
            header, _, *others = rows
            found.append([header, *others])
            rows = []
    return found


class PagesTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.found = report.everything()
        cls.tables = {
            name: [list(row) for row in make(cls.found, RESULTS)]
            for name, make in report.TABLES.items()
        }

    def test_every_table_of_the_pages_is_computed_from_the_results(self):
        for page, names in (
            ("docs/results.md", ["half_width", "claims"]),
            ("docs/recipes.md", ["given_noise"]),
            ("benchmarks/icontext/results/report.md", APPENDIX),
            ("benchmarks/icontext/results/emoji_art.md", ["emoji"]),
        ):
            expected = [self.tables[name] for name in names]
            self.assertEqual(markdown_tables(ROOT / page), expected, page)
        self.assertIn(self.tables["readme"], markdown_tables(ROOT / README))

    def test_numbers_in_sentences_are_in_the_tables(self):
        reference = self.found.narrow.line("reference", 0.7, 3000)
        end = 100 * self.found.narrow.end(reference)[0]
        numbers = {f"{end:.1f}"} | {
            number
            for table in self.tables.values()
            for row in table
            for cell in row
            for number in re.findall(r"\d+\.\d", cell)
        }
        for page in PAGES:
            prose = re.sub(r"(?m)^\|.*$|```[^`]*```", "", read(ROOT / page))
            # The quickstart's scores have a page of their own.
            prose = re.sub(r"<!-- q[^§]*end quickstart -->", "", prose)
            stated = re.findall(r"(?<![\d.])\d+\.\d(?=x|\b(?![.\d]))", prose)
            self.assertNotEmpty(stated, page)
            self.assertContainsSubset(stated, numbers, page)

    def test_medians_over_seeds_agree_at_two_lengths_of_the_target(self):
        found = self.found.narrow
        for method in ("jest", "stored_3_distilled"):
            medians = [
                np.median(
                    [*found.by_seed(found.line(method, 0.7), steps=n).values()],
                    0,
                )
                for n in (18_000, 36_000)
            ]
            self.assertAllClose(medians[0], medians[1], rtol=0.05)

    def test_the_summary_is_that_of_the_results(self):
        kept = json.loads(read(RESULTS / "summary.json"))
        found = json.loads(json.dumps(report.summary(self.found)))
        self.assertEqual(kept, found)

    def test_both_figures_are_drawn(self):
        folder = pathlib.Path(self.get_temp_dir())
        figures.draw(self.found, folder)
        names = [path.name for path in sorted(folder.iterdir())]
        self.assertEqual(names, ["map.png", "results.png"])


class IntervalsTest(tf.test.TestCase):
    def test_a_resample_draws_as_many_families_as_there_are(self):
        scores = np.array([0.0, 0.5, 1.0, 0.25, 0.75, 0.0])
        families = np.array([0, 1, 0, 2, 3, 3])
        drawn = measures.weights(4)
        self.assertAllEqual(drawn[0], [1, 1, 1, 1])
        self.assertAllEqual(drawn.sum(axis=1), np.full(2001, 4))
        found = measures.resample(scores, families)
        self.assertAllClose(found[0], scores.mean())
        # Each pair as often as its family.
        times = drawn[7][families].astype(int)
        self.assertAllClose(found[7], np.repeat(scores, times).mean())
        # Families of a pair each: the spread of a mean of four draws.
        found = measures.resample(scores[:4], np.arange(4))
        deviation = scores[:4].std() / 2
        self.assertAllClose(found[1:].std(), deviation, rtol=0.05)

    def test_resamples_draw_seeds_as_well(self):
        constant = [np.full(2001, value) for value in (1.0, 2.0, 6.0)]
        found = measures.over_seeds(constant)
        self.assertEqual(found[0], 3.0)
        draws = itertools.product((1, 2, 6), repeat=3)
        self.assertAllInSet(found[1:], {sum(draw) / 3 for draw in draws})
        # Three draws, each with the variance of the three values.
        self.assertAllClose(found[1:].var(), np.var([1, 2, 6]) / 3, rtol=0.1)

    def test_an_interval_is_between_the_percentiles_of_the_resamples(self):
        values = np.append(0.4, np.arange(2000) / 1999)
        found = measures.estimate(values)
        self.assertEqual(found.value, 0.4)
        self.assertAllClose(found[1:], [0.025, 0.975], atol=1e-3)
        self.assertIsNone(measures.estimate(np.append(np.inf, values)))

    def test_a_ratio_of_costs_knows_who_missed_the_target(self):
        ours = np.array([2.0, 4.0, np.inf, 1.0])
        theirs = np.array([8.0, np.inf, 8.0, 8.0])
        found = measures.ratio(theirs, ours)
        # 4; an infinite cost of theirs, a miss of ours, 8.
        self.assertEqual(found, (4.0, 0.0, np.inf))
        self.assertIsNone(measures.ratio(ours[::-1], np.full(4, np.inf)))


def results_of(folder, runs, pairs, families):
    """Results of tables, written to a folder."""
    families = pd.DataFrame({"split": "test_sets", "family": families})
    for name, table in (("runs", runs), ("pairs", pairs)):
        table.to_csv(f"{folder}/{name}.csv", index=False)
    families.to_csv(f"{folder}/families.csv", index=False)
    return measures.Results(cells.BENCHMARK, pathlib.Path(folder))


class ResultsTest(tf.test.TestCase):
    """Three pairs, two lengths of uniform training, a method and its reference.

    A uniform step costs 10 FLOPs. The method's costs 12; its reference took 500
    in training and 300 to embed the pool.
    """

    def setUp(self):
        super().setUp()
        columns = ["cell", "noise", "steps", "flops_step", "flops_embedded"]
        runs = pd.DataFrame(
            [
                ("uniform_100", 0.7, 100, 1000, 0, "", 0.1),
                ("uniform_400", 0.7, 400, 4000, 0, "", 0.3),
                ("curated_50", None, 50, 500, 0, "", 0.05),
                ("method_100", 0.7, 100, 1200, 300, "curated_50", 0.2),
                ("method_200", 0.7, 200, 2400, 300, "curated_50", 0.4),
            ],
            columns=[*columns, "reference", "test_sets"],
        ).merge(pd.DataFrame({"seed": range(3)}), how="cross")
        runs["method"] = [name.partition("_")[0] for name in runs["cell"]]
        runs["val_sets"] = runs["test_sets"]
        runs["flops_stored"] = runs["flops_renewals"] = None
        # All pairs alike: resamples change nothing.
        pairs = runs[["cell", "seed"]].copy()
        pairs["scores"] = [
            " ".join([str(round(10_000 * score))] * 3)
            for score in runs["test_sets"]
        ]
        self.found = results_of(self.get_temp_dir(), runs, pairs, ["a", *"bb"])

    def assert_sure(self, found, expected):
        """Compares an estimate, all of whose resamples are alike."""
        self.assertAllClose([*found], [expected] * 3)

    def test_the_target_is_the_end_that_validation_prefers(self):
        self.assertEqual(self.found.target(0.7).steps, 400)

    def test_ratios_to_the_target_count_what_led_to_the_method(self):
        ratios = self.found.to_target(self.found.line("method", 0.7))
        # 0.3 is half-way from 0.2 to 0.4: after 100 * 2^0.5 steps.
        steps = 100 * 2**0.5
        self.assert_sure(ratios.examples, 400 / steps)
        share = (steps - 100) / 100
        scores = 1200 + share * 1200
        for kind, spent in (
            ("paper", scores + 300),
            ("shared", scores + 300 + 500 / 4),
            ("all", scores + 300 + 500),
        ):
            self.assert_sure(ratios.flops[kind], 4000 / spent)
        self.assertFalse(ratios.is_bound)

    def test_seeds_are_compared_with_their_own_target(self):
        line = self.found.line("method", 0.7)
        # Uniform training ends at 0.2 with seed 1, where the method begins, and
        # at 0.5 with seed 2, above the method's end.
        for seed, score in ((1, 0.2), (2, 0.5)):
            pairs = " ".join([str(round(10_000 * score))] * 3)
            self.found._pairs["uniform_400", seed] = pairs
        steps = 100 * 2**0.5
        spent = 1200 + (steps - 100) / 100 * 1200 + 300
        expected = {
            0: (400 / steps, 4000 / spent),
            1: (400 / 100, 4000 / (1200 + 300)),
            2: (0.0, 0.0),
        }
        found = self.found.by_seed(line)
        self.assertEqual(found.keys(), expected.keys())
        for seed, ratios in expected.items():
            self.assertAllClose(found[seed], ratios)

    def test_a_line_that_misses_the_target_is_compared_at_its_own_end(self):
        line = self.found.line("method", 0.7, 100)
        self.assertIsNone(self.found.to_target(line).examples)
        examples, flops = self.found.to_own_end(line)
        # Uniform training has 0.2 half-way between 100 and 400: after 200.
        self.assert_sure(examples, 2.0)
        self.assert_sure(flops, 2000 / (1200 + 500 + 300))

    def test_a_score_ratio_is_at_equal_cost(self):
        line = self.found.line("method", 0.7, 100)
        # 2,000 FLOPs are 200 uniform steps, which score 0.2.
        self.assertEqual(self.found.bill(line), 200)
        self.assert_sure(self.found.over_uniform(line), 1.0)
        # Without the training of its reference, 150 steps.
        given = 0.1 + 0.2 * np.log2(1.5) / 2
        found = self.found.over_uniform(line, "paper")
        self.assert_sure(found, 0.2 / given)

    def test_differences_are_of_equal_seeds(self):
        found, count = self.found.difference("method_100", "curated_50")
        self.assert_sure(found, 0.15)
        self.assertEqual(count, 3)

    def test_a_single_run_without_uniform_training_has_a_score_alone(self):
        for name in ("runs", "pairs"):
            path = pathlib.Path(self.get_temp_dir()) / f"{name}.csv"
            rows = pd.read_csv(path).set_index("cell").loc[["method_200"]]
            rows[rows["seed"] == 0].to_csv(path)
        found = measures.Results(cells.BENCHMARK, path.parent)
        line = found.line("method", 0.7)
        value, low, high = measures.estimate(found.end(line))
        # Two standard deviations between the published runs' seeds.
        spread = 0.4 * measures.Results(cells.BENCHMARK).spread(200)
        expected = [0.4, 2 * 1.96 * spread]
        self.assertAllClose([value, high - low], expected, rtol=0.1)
        ratios = found.to_target(line)
        self.assertEqual({ratios.examples, *ratios.flops.values()}, {None})
        self.assertEqual(found.to_own_end(line), [None, None])
        self.assertIsNone(found.over_uniform(line))

    def test_a_method_without_a_pool_stands_at_all_levels(self):
        self.assertEqual(self.found.levels, [0.7])
        self.assertEqual(self.found.line("curated", 0.7).cell, "curated_50")


class SpreadTest(tf.test.TestCase):
    def test_the_spread_leaves_out_what_a_seed_does_to_all(self):
        scores = {"a": (9, 10, 11), "b": (20, 20, 20)}
        runs = pd.DataFrame(
            [
                (cell, cell, 0.7, seed, "", 100, scores[cell][seed])
                for cell, seed in itertools.product(scores, range(3))
            ],
            columns=["cell", "method", "noise", "seed", "reference", "steps"]
            + ["test_sets"],
        ).assign(val_sets=0.0)
        pairs = pd.DataFrame(columns=["cell", "seed", "scores"])
        found = results_of(self.get_temp_dir(), runs, pairs, [])
        # Relative deviations of -0.1, 0, 0.1 and of 0; less the means of seeds
        # they are half as large in both; one cell less is free, and a seed.
        expected = np.sqrt(4 * 0.05**2 / (1 * 2))
        self.assertAllClose(found.spread(100), expected)


class CellsTest(tf.test.TestCase):
    def test_the_tables_say_of_each_run_what_its_cell_says(self):
        rows = pd.read_csv(
            RESULTS / "web" / "runs.csv", dtype=str, keep_default_na=False
        ).set_index(["cell", "seed"])
        columns = ["method", "noise", "steps", "reference"]
        for (name, seed), run in cells.BENCHMARK.runs().items():
            cell, place = run.cell, (name, str(seed))
            if cell.regime == GIVEN and place not in rows.index:
                continue  # still to be run
            noise = "" if cell.noise is None else str(cell.noise)
            expected = [cell.method, noise, str(run.steps), cell.reference]
            with self.subTest(name, seed=seed):
                self.assertEqual([*rows.loc[place][columns]], expected)

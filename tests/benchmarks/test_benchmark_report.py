"""Ratios and intervals by hand, and the numbers of the benchmarks' pages."""

import itertools
import pathlib
import re
import tempfile

import numpy as np
import pandas as pd
import tensorflow as tf
from PIL import Image

from benchmarks.icontext import cells
from benchmarks.phototext import cells as photos
from benchmarks.protocol import measures, report, tables
from benchmarks.protocol.benchmark import GIVEN

ROOT = pathlib.Path(__file__).parents[2]
README = "README.md"
SUMMARY = ROOT / "benchmarks/results/summary.json"
_CHOICES = "stored", "top"  # by a stage, and by a cut
# Pages whose sentences have numbers of the tables.
PAGES = [
    README,
    *(f"docs/{n}.md" for n in ("results", "recipes", "bootstrap", "photos")),
]
# The tables of pages, in order, but for those that describe the data.
TABLES = {
    "docs/results.md": ("photos", ["moved", "noise", "large"]),
    "docs/photos.md": (
        "photos",
        ["two_targets", "sources", "steering", "steering_ratios", "people"],
    ),
    "docs/fine_tuning.md": ("photos", ["tuning", "rates"]),
    "benchmarks/icontext/results/report.md": (
        "icons",
        ["half_width", "methods", "noise", "given_noise", "half_width_more"]
        + ["two_targets", "half_width again", "two_targets again"]
        + ["strengths", "claims", "tried"],
    ),
}


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
    return [table for table in found if table[0][0] != "source"]


def chance(benchmark):
    """The score of chance on one of the tests, which are equally large."""
    families = pd.read_csv(benchmark.published / "families.csv")
    size = (families["split"] == benchmark.tests[0]).sum()
    return 100 * np.mean(1 / np.arange(1, size + 1))


class PagesTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.groups = {
            name: contents.groups()
            for name, contents in report.CONTENTS.items()
        }
        cls.tables = {
            name: {
                table: make(cls.groups[name])
                for table, make in contents.TABLES.items()
            }
            for name, contents in report.CONTENTS.items()
        }
        icons = report.CONTENTS["icons"]
        again = icons.groups(ROOT / "benchmarks/icontext/results/split_1/web")
        for name in ("half_width", "two_targets"):
            cls.tables["icons"][f"{name} again"] = icons.TABLES[name](again)

    def test_every_table_of_the_pages_is_computed_from_the_results(self):
        for page, (benchmark, names) in TABLES.items():
            expected = [self.tables[benchmark][name] for name in names]
            self.assertEqual(markdown_tables(ROOT / page), expected, page)
        expected = self.tables["photos"]["readme"]
        self.assertIn(expected, markdown_tables(ROOT / README))

    def test_numbers_of_pages_are_in_the_tables(self):
        half = self.groups["icons"]["half"].results
        end = 100 * half.end(half.line("reference", 0.7, 3000))[0]
        numbers = {f"{end:.1f}"} | {
            number
            for some in self.tables.values()
            for table in some.values()
            for row in table
            for cell in row
            for number in re.findall(r"\d+\.\d", cell)
        }
        for contents in report.CONTENTS.values():
            numbers.add(f"{chance(contents.BENCHMARK):.1f}")
        for page in PAGES:
            prose = re.sub("```[^`]*```", "", read(ROOT / page))
            # The quickstart's scores have a page of their own.
            prose = re.sub(r"<!-- q[^§]*end quickstart -->", "", prose)
            stated = re.findall(r"(?<![\d.])\d+\.\d(?=x|\b(?![.\d]))", prose)
            self.assertNotEmpty(stated, page)
            self.assertContainsSubset(stated, numbers, page)

    def test_choosing_in_the_run_beats_every_pool_cut_once_by_a_tenth(self):
        results = self.groups["photos"]["tuned"].results
        scores = {
            (method, line.steps): results.runs.loc[line.cell, "test_fashion"]
            for (_, method), lines in results.lines.items()
            for line in lines
        }
        ours = scores["stored_3_by_copy_renewed_replayed", 1000]
        self.assertLen(ours, 3)
        cuts = [
            score
            for (method, _), score in scores.items()
            if re.fullmatch("top_3_by_(second_)?copy(_replayed)?", method)
        ]
        self.assertGreaterEqual(len(cuts), 9)
        for cut in cuts:
            self.assertGreater(ours.mean(), 1.1 * cut.mean())
            self.assertGreater(ours.min(), cut.max())

    def test_which_of_the_goals_that_the_page_names_are_reached(self):
        groups, reached = self.groups["photos"], set()
        for name, candidates, goals in (
            ("moved", 3, (20, 6, 20)),
            *((x, 10, (10, 4, 12)) for x in ("aerial", "flickr8k")),
        ):
            recipes = (f"{x}_{candidates}_distilled" for x in _CHOICES)
            group = groups[name]
            jest, *others = (
                np.median([*group.results.by_seed(line).values()], 0)
                for line in map(group.line, ("jest", *recipes))
            )
            # Examples and FLOPs of JEST, and FLOPs of the best other recipe.
            values = *jest, max(flops for _, flops in others)
            is_reached = np.greater_equal(values, goals)
            reached |= {(name, place) for place in np.flatnonzero(is_reached)}
        self.assertEqual(reached, {("aerial", 0)})
        # Over uniform training with as many FLOPs, nothing moved.
        results = groups["moved"].results
        jest, *others = (
            results.over_uniform(results.line(x, 0.0, 800), "paper").value
            for x in ("jest", "distilled", "stored_3_distilled")
        )
        self.assertLess(jest, 1.0)
        self.assertGreater(min(others), 1.0)

    def test_a_stage_beats_the_cut_where_most_pairs_match(self):
        results, text = self.groups["photos"]["moved"].results, []
        for ending, level in itertools.product(("_distilled", ""), (0.3, 0.0)):
            stage, cut = (
                results.runs["score"][line.cell]
                for x in _CHOICES
                for line in [results.line(f"{x}_3{ending}", level, 800)]
            )
            self.assertLen(stage, 3)
            self.assertGreater((stage - cut).min(), 0)
            text.append(f"{100 * (stage.mean() / cut.mean() - 1):.0f} %")
        words = (
            "In all seeds it scores higher: {} with 30 % moved, and {} with "
            "none; without distillation, {} and {}."
        )
        page = " ".join(read(ROOT / "docs/results.md").split())
        self.assertIn(words.format(*text), page)

    def test_pages_say_how_many_of_the_chosen_pairs_match(self):
        results = self.groups["photos"]["tuned"].results
        replayed = 0.25  # of a batch; all of these match
        for page, method, steps, words in (
            ("fine_tuning", "stored_3_by_copy_renewed", 1000, "stage, {} % of"),
            ("fine_tuning", "top_3_by_copy", 1000, "The cut, {} % of"),
            ("trials", "top_3_by_second_copy", 500, "Of both, {} % of"),
        ):
            line = results.line(f"{method}_replayed", 0.6, steps)
            share = results.mean(line, "clean_last")
            chosen = (share - replayed) / (1 - replayed)
            text = " ".join(read(ROOT / f"docs/{page}.md").split())
            self.assertIn(words.format(round(100 * chosen)), text)

    def test_the_readme_says_what_its_rows_say(self):
        text = " ".join(read(ROOT / README).split())
        tables = self.tables["photos"]
        (_, given), *_ = (row[1:] for row in tables["readme"][1:])
        self.assertIn(f"with {given.replace(', ', ' and ')}, medians", text)
        moved = self.groups["photos"]["moved"]
        for method, words in (
            ("top_3_distilled", "scores {:.1f} times as high"),
            ("distilled", "alone gives {:.1f} times"),
        ):
            ends = (moved.line(name) for name in (method, "uniform"))
            ours, theirs = (moved.results.end(line)[0] for line in ends)
            self.assertIn(words.format(ours / theirs), text)
        found = {
            tuple(row[:2]): [cell.split()[0].strip("+") for cell in row[4:6]]
            for row in tables["tuning"][1:]
        }
        by_copy = "by a tuned copy, {}with replay"
        stage = f"stored stage, 3 candidates, {by_copy.format('renewed, ')}"
        cut = f"the pool cut once to a third {by_copy.format('')}"
        (gain, lost), of_cut, checked, plain = (
            found[row]
            for row in (
                (f"{stage}, for longer", "1,000"),
                (f"{cut}, for longer", "1,000"),
                ("the checked pairs alone, with replay, for longer", "900"),
                ("plain, with replay", "500"),
            )
        )
        self.assertIn(
            f"{gain} points and lost {lost} elsewhere. With the same replay "
            f"and fewer FLOPs, a pool cut once gained {of_cut[0]} and lost "
            f"{of_cut[1]}, the checked pairs alone {checked[0]} and "
            f"{checked[1]}, and plain tuning {plain[0]} and {plain[1]}.",
            text,
        )

    def test_medians_over_seeds_agree_at_two_lengths_of_the_target(self):
        found = self.groups["icons"]["half"].results
        for method in ("jest", "stored_3_distilled"):
            line = found.line(method, 0.7)
            shorter, longer = (
                np.median([*found.by_seed(line, steps=n).values()], 0)
                for n in (18_000, 36_000)
            )
            self.assertAllClose(shorter, longer, rtol=0.05)

    def test_the_summary_is_that_of_the_results(self):
        path = pathlib.Path(self.get_temp_dir()) / "summary.json"
        for name, contents in report.CONTENTS.items():
            report.write_summary(path, contents, self.groups[name])
        self.assertEqual(read(path), read(SUMMARY))
        # A benchmark replaces its own rows alone.
        report.write_summary(path, contents, self.groups[name])
        self.assertEqual(read(path), read(SUMMARY))

    def test_every_figure_is_drawn(self):
        for name, contents in report.CONTENTS.items():
            wide = 650 * len(contents.panels(self.groups[name]))
            for file, draw in contents.FIGURES.items():
                path = pathlib.Path(self.get_temp_dir()) / file
                draw(self.groups[name], path)
                width = 832 if file == "tuning.png" else wide
                with Image.open(path) as image:
                    self.assertEqual(image.size, (width, 546))


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


class SeedsTest(tf.test.TestCase):
    def test_most_seeds_reach_the_target_or_it_is_missed(self):
        for ratios, expected in (
            ([], ""),
            ([2.0], "2.0x"),
            ([2.0, 2.01, 1.99], "2.0x"),
            ([0.0, 2.0], "missed (missed, 2.0)"),
            ([0.0, 2.0, 3.0], "2.0x (missed, 2.0, 3.0)"),
            ([0.0, 0.0, 0.0], "missed"),
        ):
            self.assertEqual(tables._seeds(ratios), expected)


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
            " ".join([str(round(1000 * score))] * 3)
            for score in runs["test_sets"]
        ]
        self.found = results_of(self.get_temp_dir(), runs, pairs, ["a", *"bb"])

    def assert_sure(self, found, expected):
        """Compares an estimate, all of whose resamples are alike."""
        self.assertAllClose([*found], [expected] * 3)

    def test_the_target_is_the_end_that_validation_prefers(self):
        self.assertEqual(self.found.target(0.7).steps, 400)

    def test_seeds_are_compared_with_their_own_target(self):
        line = self.found.line("method", 0.7)
        # Uniform training ends at 0.2 with seed 1, where the method begins, and
        # at 0.5 with seed 2, above the method's end.
        for seed, score in ((1, 0.2), (2, 0.5)):
            self.found.runs.loc[("uniform_400", seed), "score"] = score
        # 0.3 is half-way from 0.2 to 0.4: after 100 * 2^0.5 steps.
        steps = 100 * 2**0.5
        spent = 1200 + (steps - 100) / 100 * 1200 + 300
        for cost, more in (("paper", 0), ("shared", 500 / 4), ("all", 500)):
            expected = {
                0: (400 / steps, 4000 / (spent + more)),
                1: (400 / 100, 4000 / (1200 + 300 + more)),
                2: (0.0, 0.0),
            }
            found = self.found.by_seed(line, cost)
            self.assertEqual(found.keys(), expected.keys())
            for seed, ratios in expected.items():
                self.assertAllClose(found[seed], ratios)

    def test_a_method_that_begins_at_the_target_has_bounds(self):
        line = self.found.line("method", 0.7)
        self.assertFalse(self.found.is_bound(line))
        self.found.runs.loc["uniform_400", "score"] = 0.19
        self.assertTrue(self.found.is_bound(line))

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
        self.assertEqual(found.by_seed(line), {})
        self.assertIsNone(found.over_uniform(line))

    def test_pairs_with_another_mean_than_the_run_are_refused(self):
        pairs = self.found._pairs
        pairs["method_200", 0] = pairs["method_200", 0].replace(" ", "0 ")
        with self.assertRaisesRegex(ValueError, "400.0. Received: a mean of 2"):
            self.found.end(self.found.line("method", 0.7))

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


def write_photos(folder):
    """Tables of all runs of PhotoText, as if each had trained.

    The score on each test is 0.01 times log2(steps / 125), three times that of
    methods with a reference or clean pairs; steered, it is doubled on the tests
    of the domain. A uniform step costs 10 GFLOPs, and any other step 20;
    embedding costs 1,000, and a step of a reference 40.
    """
    rows = []
    for (name, seed), run in photos.BENCHMARK.runs().items():
        cell, is_uniform = run.cell, run.cell.method.startswith("uniform")
        scores = {
            split: (0.01 if is_uniform else 0.03)
            * (2 if cell.domain and split.endswith(cell.domain) else 1)
            * np.log2(run.steps / 125)
            for split in (*photos.BENCHMARK.tests, *photos.BENCHMARK.validation)
        }
        is_reference = cell.method.partition("_of_")[0] == "reference"
        cost = 10 if is_uniform else 40 if is_reference else 20
        rows.append(
            {
                "cell": name,
                "method": cell.method,
                "noise": cell.noise,
                "seed": seed,
                "reference": cell.reference or None,
                "steps": run.steps,
                "flops_step": cost * run.steps * 10**9,
                "flops_embedded": 1000 * 10**9 * bool(cell.reference),
                **dict.fromkeys(("flops_stored", "flops_renewals")),
                **scores,
            }
        )
    runs, tests = pd.DataFrame(rows), photos.BENCHMARK.tests
    runs.to_csv(folder / "runs.csv", index=False)
    pairs = runs[["cell", "seed"]].assign(
        scores=[
            " ".join(f"{1000 * row[test]:.0f}" for test in tests)
            for _, row in runs.iterrows()
        ]
    )
    pairs.to_csv(folder / "pairs.csv", index=False)
    families = pd.DataFrame({"split": tests, "family": "one"})
    families.to_csv(folder / "families.csv", index=False)


class PhotosTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.work = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.work.cleanup)
        folder = pathlib.Path(cls.work.name) / "photos"
        folder.mkdir()
        write_photos(folder)
        cls.domains = photos.BENCHMARK.domains
        cls.contents = report.CONTENTS["photos"]
        cls.groups = cls.contents.groups(folder)
        cls.tables = {
            name: make(cls.groups) for name, make in cls.contents.TABLES.items()
        }

    def row(self, table, *start):
        """The cells of the one row that begins with these."""
        (row,) = (
            row for row in self.tables[table] if row[: len(start)] == [*start]
        )
        return row[len(start) :]

    def test_every_method_is_compared_with_the_target(self):
        shown = {"": [row[0] for row in self.tables["moved"][1:]]}
        for place, domain in enumerate(self.domains):
            rows = self.tables["steering"][1:]
            shown[domain] = [row[0] for row in rows if row[1 + 2 * place]]
        large = [row[0] for row in self.tables["large"][1:]]
        self.assertContainsSubset(large, shown[""])
        self.assertLen(large, 5)
        for domain, names in shown.items():
            methods = {
                cell.method.removeprefix("large_")
                for cell in photos.BENCHMARK.cells
                if cell.seeds == (1, 2, 3)
                and not cell.start
                and cell.domain == domain
                and (domain or cell.noise in (0.7, None))
            }
            # Steering has uniform training as well.
            self.assertLen({*names}, len(methods) + bool(domain))

    def test_a_steered_run_is_compared_on_the_tests_of_its_domain(self):
        # Steered scores are six times those of uniform training, whose steps
        # cost half as much. There are longer runs on the pairs of all sources.
        end = np.log2(800 / 125)
        embedding = {"JEST, f = 0.8": 1000, "the reference's pairs alone": 0}
        for what, embedded in embedding.items():
            scores = self.row("steering", what)
            for score, others in zip(scores[::2], scores[1::2], strict=True):
                self.assertStartsWith(score, f"{6 * end:.1f} [")
                self.assertEqual(others, f"{3 * end:.1f}")
            expected = []
            for n in (2000, 4000):
                steps = 125 * (n / 125) ** (1 / 6)
                flops = 10 * n / (20 * steps + embedded)
                expected.append(f"{n / steps:.1f}x, {flops:.1f}x")
            found = self.row("steering_ratios", what)
            self.assertEqual(found, len(self.domains) * expected)

    def test_sources_and_noise(self):
        found = self.row("sources", "uniform, no caption moved", "4,000")
        self.assertEqual(found, ["5.0"] * 6)
        bill = (20 * 800 + 1000) / 10
        ratio = 3 * np.log2(800 / 125) / np.log2(bill / 125)
        for cell in self.row("noise", "JEST, f = 0.8", "800"):
            self.assertStartsWith(cell, f"{ratio:.1f} [")

    def test_gain_and_forgetting_by_hand(self):
        # The start has 3 log2(3000 / 125) on every test. Tuning has as much on
        # the shop's tests as elsewhere, and 20 GFLOPs a step. A copy's count.
        start = 3 * np.log2(3000 / 125)
        by_copy = "stored stage, 3 candidates, by a tuned copy"
        for what, steps, spent in (
            ("plain, for longer", 875, 20 * 875),
            (by_copy, 500, 20 * 500 + 1000 + 20 * 300),
        ):
            change = 3 * np.log2(steps / 125) - start
            found = self.row("tuning", what, f"{steps}", f"{spent / 1e3:.1f}")
            self.assertEqual(
                found[:3],
                [
                    "3",
                    *(
                        f"{value:+.1f} ({', '.join([f'{value:+.1f}'] * 3)})"
                        for value in (change, -change)
                    ),
                ],
            )


class CellsTest(tf.test.TestCase):
    def test_the_tables_say_of_each_run_what_its_cell_says(self):
        rows = pd.read_csv(
            cells.BENCHMARK.published / "runs.csv",
            dtype=str,
            keep_default_na=False,
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

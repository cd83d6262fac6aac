"""IconText's statistics and report: intervals, ratios, claims, pages."""

import itertools
import json
import pathlib

import numpy as np
import pandas as pd
import tensorflow as tf

from benchmarks.icontext import (
    bootstrap,
    claims,
    comparison,
    gains,
    matrix,
    report,
    results,
    targets,
    web_words,
)

STEPS = "jest_750", "jest_2500", "jest_5000"
SPLITS = ("val_concept", *comparison.TEST)


def concepts(image_mrr, text_mrr=(1.0, 1.0)):
    """Two concepts: three pictures of the first, one of the second."""
    return bootstrap.Concepts(
        *map(np.array, ([3, 1], [1, 1], image_mrr, text_mrr))
    )


WEB_SPLITS = (*matrix.WEB_VALIDATION, *matrix.WEB_TESTS)


def a_run(cell, steps, scores, seed=0, mrr=((1.0, 1.0), (1.0, 1.0)), **changes):
    """Tables of a run with the same curve and ranks on all splits."""
    is_web = cell.startswith("web")
    splits = WEB_SPLITS if is_web else SPLITS
    # Tests of the web-like data are not looked at while a run trains.
    watched = matrix.WEB_VALIDATION if is_web else SPLITS
    row = {
        **{"cell": cell, "seed": seed, "digest": "", "steps": steps[-1]},
        "batch_size": 1,
        **dict.fromkeys(splits, scores[-1]),
        "reference": None,
        "examples_scored": 0,
        "examples_trained": steps[-1],
        **{"flops_step": steps[-1], "flops_cascade": None},
        **{"flops_forward": steps[-1], "processor_seconds": 1.0},
        **dict.fromkeys(
            (
                *("emoji_first", "emoji_last", "moved_first", "moved_last"),
                *("effective_filter_ratio", "repeat_rate"),
            )
        ),
        **{"machine": "some", "versions": "keras 3"},
    } | changes
    key = {"cell": cell, "seed": seed}
    by_concept = [
        {**key, "split": split, "concept": number}
        | dict(zip(bootstrap.Concepts._fields, values, strict=True))
        for split in splits
        for number, values in enumerate(zip(*concepts(*mrr), strict=True))
    ]
    curves = [
        {**key, "step": step, **dict.fromkeys(watched, score)}
        for step, score in zip(steps, scores, strict=True)
    ]
    return results.Tables(*map(pd.DataFrame, ([row], curves, by_concept)))


def compare(*runs):
    """A `Comparison` of runs."""
    tables = (
        pd.concat([getattr(run, name) for run in runs], ignore_index=True)
        for name in ("runs", "curves", "concepts")
    )
    return comparison.Comparison(results.Tables(*tables))


def estimate(mean, low=None, high=None):
    """An estimate of summary.json."""
    if mean is None:
        return None
    low, high = (mean if end is None else end for end in (low, high))
    return {"mean": mean, "low": low, "high": high}


def ratios(examples, flops, **names):
    return {
        "examples_ratio": estimate(examples),
        "flops_ratio": {
            "scores": estimate(examples),
            "reference": estimate(examples and 0.75 * examples),
            "all": estimate(flops),
        },
        **names,
    }


def web_line(method, steps, score, examples=None, seeds=3, **changes):
    """A line of a method in the lists of summary.json.

    Args:
        method: name.
        steps: its length.
        score: mean.
        examples: ratio to the target; that of FLOPs is its half.
        seeds: how many.
        **changes: other numbers, by name.
    """
    numbers = dict.fromkeys(("oracle", "lead", "slope", "mixture"))
    numbers |= {"over_uniform": 1.0, "over_target": 1.0, "own": 2.0}
    numbers |= {"crossing": 3.0, "bound": False, "ends": ()}
    numbers |= {"noise": claims.LEVEL} | changes
    half, own = examples and examples / 2, numbers["own"]
    key = {"noise": numbers["noise"], "method": method, "seeds": seeds}
    key |= {"steps": steps}
    row = ratios(examples, half, score=estimate(score)) | {
        **{name: estimate(numbers[name]) for name in ("lead", "slope")},
        "oracle_share": estimate(numbers["oracle"]),
        "mixture_ratio": {
            "examples": estimate(numbers["mixture"]),
            "all": estimate(numbers["mixture"]),
        },
    }
    over = "over_uniform", "over_target"
    bill = {name: estimate(numbers[name]) for name in over}
    spent = dict.fromkeys(("scores", "without_references", "all"), steps)
    bill |= {"uniform_steps": spent, "uniform_score": estimate(score)}
    held_out = "concepts_over_target", "styles_over_target"
    return {
        "rows": key | row,
        "bills": key | bill,
        "held_out": key | dict.fromkeys(held_out, estimate(0.01)),
        "equal_scores": key | ratios(own, own and own / 2),
        "first_crossings": key | ratios(numbers["crossing"], 0.5),
        "uniform_ends": key
        | {"is_bound": numbers["bound"], "ends": numbers["ends"]}
        | {"mixture": dict.fromkeys(("examples", "all"), estimate(6.0))}
        # The target is at 18,000 steps of uniform training.
        | {"reached": examples and 18000 / examples},
    }


def web_summary(*lines):
    """The content of summary.json of lines."""
    names = "rows", "bills", "held_out", "equal_scores", "first_crossings"
    names += ("uniform_ends",)
    target = {"noise": claims.LEVEL, "steps": 18000, "is_longest": True}
    target |= {"mixture": "mixed_4", "reached": estimate(12000.0)}
    return {
        **{"split": "test", "targets": [target]},
        **{name: [line[name] for line in lines] for name in names},
    }


NOTHING = compare(a_run("emoji", [9], [0.4]))  # that a claim asks for


class BootstrapTest(tf.test.TestCase):
    def test_a_score_is_the_mean_over_queries(self):
        # Three pictures of mean 1/2 and one of 1; texts of 1/4 and 1.
        values = bootstrap.score([concepts([0.5, 1.0], [0.25, 1.0])])
        self.assertAllClose(values[0], ((3 * 0.5 + 1) / 4 + 1.25 / 2) / 2)
        self.assertLen(values, 1 + bootstrap.RESAMPLES)

    def test_a_resample_draws_concepts_with_all_their_queries(self):
        # Of two concepts either one is drawn twice, or each once.
        values = bootstrap.score([concepts([0.5, 1.0])])
        images = 2 * values - 1  # the texts' part is 1
        expected = [0.5, (3 * 0.5 + 1) / 4, 1.0]
        self.assertAllClose(np.unique(images.round(6)), expected)

    def test_seeds_are_resampled_as_well(self):
        scores = [np.full(1 + bootstrap.RESAMPLES, end) for end in (0.0, 1.0)]
        values = bootstrap.over_seeds(scores, 2)
        self.assertAllClose(np.unique(values), [0.0, 0.5, 1.0])
        self.assertEqual(values[0], 0.5)

    def test_resamples_are_the_same_every_time(self):
        split = concepts([0.5, 1.0])
        self.assertAllEqual(bootstrap.score([split]), bootstrap.score([split]))

    def test_chance_is_the_mean_over_all_orders(self):
        sides = []
        image, text = [0, 0, 0, 1], [0, 1]
        for asked, answers in ((image, text), (text, image)):
            orders = list(itertools.permutations(answers))
            ranks = [[1 + o.index(one) for o in orders] for one in asked]
            sides.append(np.mean(1 / np.array(ranks)))
        found = bootstrap.chance([concepts([1.0, 1.0])])
        self.assertAllClose(found, np.mean(sides))


class TargetsTest(tf.test.TestCase):
    def test_a_target_is_read_off_between_two_evaluations(self):
        curve = [50, 100], [0.2, 0.4]
        self.assertAllClose(
            targets.steps_to(*curve, np.array([0.1, 0.3, 0.4, 0.5])),
            [25.0, 75.0, 100.0, np.inf],
        )
        self.assertEqual(targets.steps_to(*curve, 0.0), 0.0)

    def test_a_target_counts_at_the_first_time_it_is_reached(self):
        curve = [50, 100, 200, 300], [0.2, 0.4, 0.3, 0.5]
        found = targets.steps_to(*curve, np.array([0.35, 0.45]))
        self.assertAllClose(found, [87.5, 275.0])

    def test_a_ratio_moves_with_the_final_scores_of_a_resample(self):
        # Better than the uniform run on the first concept, worse on the other.
        end = ((3 * 1 + 0.25) / 4 + (1 + 0.25) / 2) / 2
        found = compare(
            a_run("uniform", [50, 100], [0.5, 0.5], mrr=([0.5] * 2, [0.5] * 2)),
            a_run(
                "jest_750", [50, 100], [0.25, end], mrr=([1, 0.25], [1, 0.25])
            ),
        ).to_target(("jest_750",), targets.examples)
        reached = 50 + 50 * (0.5 - 0.25) / (end - 0.25)
        self.assertAllClose(found.value, 50 / reached)
        self.assertAllClose(found.all_steps, 50 / 100)
        # With the second concept only, the score is a quarter: missed.
        self.assertEqual(found.low, 0.0)
        # With the first only it is 1, and the curve is scaled by 1 / end.
        reached = 50 + 50 * (0.5 * end - 0.25) / (end - 0.25)
        self.assertAllClose(found.high, 50 / reached)

    def test_the_cheapest_length_that_reaches_the_target_counts(self):
        runs = [
            *(a_run("uniform", [100], [0.4], seed) for seed in range(2)),
            *(a_run("jest_750", [50], [0.1], seed) for seed in range(2)),
            a_run("jest_2500", [50, 80], [0.4, 0.5]),
        ]
        found = compare(*runs).to_target(STEPS, targets.examples)
        self.assertEqual((found.value, found.seeds), (2.0, 1))
        found = compare(*runs).to_target(STEPS[:1], targets.examples)
        self.assertEqual((found.value, found.missed), (0.0, 2))

    def test_a_method_with_a_missing_length_has_not_missed_the_target(self):
        runs = compare(
            a_run("uniform", [100], [0.4]), a_run("jest_750", [50], [0.1])
        )
        self.assertIsNone(runs.to_target(STEPS, targets.examples))

    def test_a_longer_uniform_run_counts_if_it_gets_there_sooner(self):
        runs = [
            *(
                a_run("uniform", [50, 100], [0.2, 0.4], seed)
                for seed in range(2)
            ),
            *(
                a_run("jest_750", [50, 80], [0.4, 0.5], seed)
                for seed in range(2)
            ),
            # The first seed is there after 80 steps, the second never.
            a_run("uniform_10000", [80, 200], [0.4, 0.6], 0),
            a_run("uniform_10000", [80, 200], [0.3, 0.3], 1),
        ]
        found = compare(*runs).to_target(("jest_750",), targets.examples)
        self.assertAllClose(found.value, (80 + 100) / (50 + 50))
        # Resamples of the seeds: twice the first, or twice the second.
        self.assertAllClose((found.low, found.high), (80 / 50, 100 / 50))
        without = compare(*runs[:-1]).to_target(("jest_750",), targets.examples)
        self.assertAllClose(without.value, 2.0)

    def test_a_pass_is_counted_for_scoring_and_three_for_training(self):
        costs = {"examples_scored": 5000, "examples_trained": 1000}
        for cell, expected in (
            ("jest_750", (3 * 1000 + 5000) / 2),
            ("easy_reference_f80", 3 * 1000 / 2),  # scored by the cache
        ):
            (run,) = compare(a_run(cell, [100], [0.4], **costs)).of(cell)
            self.assertEqual(targets.passes(run, 50), expected)

    def test_a_run_can_be_charged_with_all_that_led_to_it(self):
        names = (
            *("reference", "reference_curated", "reference_filtered"),
            *("best", "best_by_filtered", "filtered", "uniform"),
        )
        runs = compare(*(a_run(name, [100], [0.4]) for name in names))
        spent = targets.flops_with_reference(runs)
        # A reference's training, and its forward pass over the pool.
        each = 100 + 1 * matrix.POOL_SIZE
        for name, references in (
            ("best", 1),
            ("best_by_filtered", 2),  # whose pool another reference cut
            ("filtered", 1),
            ("uniform", 0),
        ):
            (run,) = runs.of(name)
            self.assertEqual(spent(run, 50), 50 + references * each, name)


class ComparisonTest(tf.test.TestCase):
    def test_a_cell_does_not_differ_from_itself(self):
        runs = compare(*(a_run("uniform", [9], [0.4], s) for s in range(3)))
        found = runs.difference("uniform", "uniform")
        self.assertAllClose(tuple(found), (0.0, 0.0, 0.0))

    def test_cells_without_a_common_seed_are_not_compared(self):
        runs = compare(
            a_run("uniform", [9], [0.4], 0), a_run("jest_750", [9], [0.4], 1)
        )
        self.assertIsNone(runs.difference("jest_750", "uniform"))

    def test_a_reference_is_compared_with_each_seed(self):
        runs = compare(
            a_run("reference", [9], [0.4]),
            *(a_run("jest_750", [9], [0.4], seed) for seed in range(3)),
        )
        self.assertEqual(runs.shared("jest_750", "reference"), 3)

    def test_few_seeds_have_the_spread_of_others_added(self):
        runs = compare(
            *(
                a_run("uniform", [9], [end], seed, ([end] * 2,) * 2)
                for seed, end in enumerate((0.2, 0.3, 0.4))
            ),
            a_run("jest_750", [9], [0.3], 1, ([0.3] * 2,) * 2),
        )
        # Of 0.2, 0.3, 0.4 around their mean: -1/3, 0, 1/3, two of them free.
        spread = (2 / 9 / 2) ** 0.5
        self.assertAllClose(runs.spread(), spread)
        self.assertAllClose(runs.spread(steps=1_000), spread)
        found = runs.difference("jest_750", "uniform")
        wide = 1.96 * spread * np.hypot(0.3, 0.3)
        self.assertAllClose(tuple(found), (0.0, -wide, wide))


class ClaimsTest(tf.test.TestCase):
    def judge(self, name, *runs):
        evidence = claims.Evidence(compare(*runs))
        return claims.judge(claims.load()[name][0], evidence)

    def test_the_paper_has_twelve_claims(self):
        self.assertLen(claims.load(), 12)

    def test_a_claim_without_its_runs_is_not_run_yet(self):
        runs = compare(a_run("web_curated", [9], [0.4]))
        values = web_summary(web_line("uniform", 18000, 0.1))
        for evidence in (
            claims.Evidence(NOTHING),
            claims.Evidence(NOTHING, runs),
            claims.Evidence(NOTHING, None, values),
            claims.Evidence(NOTHING, runs, values),
        ):
            for name, lines in claims.load().items():
                for line in lines:
                    found = claims.judge(line, evidence)
                    self.assertEqual(found.verdict, claims.NOT_RUN, name)

    def test_a_ratio_holds_for_three_seeds_above_one(self):
        def judge(*ends):
            runs = [
                run
                for seed, end in enumerate(ends)
                for run in (
                    a_run("uniform", [100], [0.4], seed),
                    *(a_run(cell, [end], [0.4], seed) for cell in STEPS),
                )
            ]
            return self.judge("iterations", *runs)

        self.assertEqual(judge(50), ("2.0x [2.0, 2.0]", 1, ""))
        # 300 steps over 125; resamples of the seeds: 300 over 3 * 50 to 3 * 25.
        text = f"{300 / 125:.1f}x [2.0, 4.0]"
        self.assertEqual(judge(25, 50, 50), (text, 3, claims.HOLDS))
        self.assertEqual(judge(200, 200, 200).verdict, claims.FAILS)
        self.assertEqual(judge(25, 50, 200).verdict, claims.OPEN)

    def test_a_difference_holds_above_zero_and_fails_below(self):
        def judge(name, first, second, ours, others):
            return self.judge(
                name,
                *(
                    a_run(cell, [9], [score], seed, ([score] * 2,) * 2)
                    for seed in range(3)
                    for cell, score in ((first, ours), (second, others))
                ),
            ).verdict

        joint = "joint", "jest_750", "independent"
        # A loss of less than a point is no worse.
        coarse = "coarse", "flexi", "jest_750"
        for claim, ours, verdict in (
            (joint, 0.5, claims.HOLDS),
            (joint, 0.4, claims.OPEN),
            (joint, 0.3, claims.FAILS),
            (coarse, 0.4, claims.HOLDS),
            (coarse, 0.395, claims.HOLDS),
            (coarse, 0.38, claims.FAILS),
        ):
            self.assertEqual(judge(*claim, ours, 0.4), verdict)

    def test_a_difference_of_two_seeds_has_no_verdict(self):
        runs = [
            a_run(cell, [9], [score], seed, ([score] * 2,) * 2)
            for seed in range(2)
            for cell, score in (("jest_750", 0.5), ("independent", 0.4))
        ]
        found = self.judge("joint", *runs)
        self.assertEqual(found, ("+10.0 [+10.0, +10.0]", 2, ""))

    def test_no_worse_fails_beyond_its_margin_alone(self):
        runs = [
            a_run(cell, [9], [score], seed, ([score] * 2,) * 2)
            for seed, ours in enumerate((0.385, 0.390, 0.398))
            for cell, score in (("flexi", ours), ("jest_750", 0.4))
        ]
        found = self.judge("coarse", *runs)
        # All seeds are worse, one of them by less than a point.
        self.assertEqual(found, ("-0.9 [-1.5, -0.2]", 3, claims.OPEN))

    def on_web(
        self, test, *lines, cells="web_flexi_1400", against="", judged=""
    ):
        line = {"data": "web", "test": test, "cells": cells, "against": against}
        line |= {"judged": judged}
        evidence = claims.Evidence(NOTHING, None, web_summary(*lines))
        return tuple(claims.judge(line, evidence))

    def test_web_ratios_are_those_of_the_summary(self):
        lines = [
            web_line("flexi", 1400, 0.1, 6.0),
            web_line("flexi", 4500, 0.1, 9.0),
            web_line("flexi", 1400, 0.1, 3.0, noise=0.3),
        ]
        found = self.on_web("examples", *lines)
        self.assertEqual(found, ("6.0x [6.0, 6.0]", 3, claims.HOLDS))
        found = self.on_web("flops", *lines)
        self.assertEqual(found, ("3.0x [3.0, 3.0]", 3, claims.HOLDS))

    def test_a_web_ratio_below_one_fails_and_few_seeds_leave_it_open(self):
        for seeds, verdict in ((3, claims.FAILS), (2, "")):
            line = web_line("flexi", 1400, 0.1, 1.0, seeds=seeds)
            found = self.on_web("flops", line)
            self.assertEqual(found, ("0.5x [0.5, 0.5]", seeds, verdict))

    def test_a_web_line_has_no_more_seeds_than_its_target(self):
        uniform = web_line("uniform", 18000, 0.1, 1.0, seeds=2)
        shorter = web_line("uniform", 1125, 0.1, seeds=1)
        line = web_line("flexi", 1400, 0.1, 6.0)
        found = self.on_web("examples", uniform, shorter, line)
        self.assertEqual(found, ("6.0x [6.0, 6.0]", 2, ""))

    def test_a_web_ratio_has_no_more_seeds_than_the_shorter_lengths(self):
        shorter = web_line("flexi", 700, 0.1, seeds=1)
        other = web_line("flexi", 700, 0.1, noise=0.3, seeds=2)
        line = web_line("flexi", 1400, 0.1, 6.0, lead=0.05)
        found = self.on_web("examples", shorter, other, line)
        self.assertEqual(found, ("6.0x [6.0, 6.0]", 1, ""))
        self.assertEqual(self.on_web("lead", shorter, line)[1:], (3, "holds"))
        self.assertEqual(self.on_web("examples", other, line)[1:], (3, "holds"))

    def test_a_method_that_a_claim_is_not_about_has_no_verdict(self):
        line = web_line("flexi", 1400, 0.1, 6.0)
        found = self.on_web("examples", line, judged="no")
        self.assertEqual(found, ("6.0x [6.0, 6.0]", 3, ""))
        not_run = self.on_web("examples", judged="no")
        self.assertEqual(not_run[2], claims.NOT_RUN)

    def test_a_web_line_that_misses_the_target_leaves_a_claim_open(self):
        line = web_line("flexi", 1400, 0.1, own=4.0)
        text = "4.0x [4.0, 4.0] to its own end"
        found = self.on_web("examples", line)
        self.assertEqual(found, (text, 3, claims.OPEN))

    def test_two_web_lines_are_compared_if_both_reach_the_target(self):
        def judge(first, second):
            return self.on_web(
                "flops_against",
                web_line("flexi", 1400, 0.1, first),
                web_line("jest_curated", 1400, 0.1, second),
                against="web_jest_curated_1400",
            )

        text = "4.0x [4.0, 4.0], JEST 2.0x [2.0, 2.0]"
        self.assertEqual(judge(8.0, 4.0), (text, 3, claims.HOLDS))
        self.assertEqual(judge(4.0, 8.0)[2], claims.FAILS)
        self.assertEqual(judge(4.0, 4.0)[2], claims.OPEN)
        self.assertEqual(judge(8.0, None)[2], claims.OPEN)

    def test_web_leads_are_points_and_scores_at_equal_flops_are_times(self):
        line = web_line("flexi", 1400, 0.1, lead=0.05, over_uniform=0.8)
        self.assertEqual(
            self.on_web("lead", line), ("+5.0 [+5.0, +5.0]", 3, claims.HOLDS)
        )
        self.assertEqual(
            self.on_web("over_uniform", line),
            ("0.8 times as high [0.8, 0.8]", 3, claims.FAILS),
        )

    def test_web_differences_are_of_the_tests_by_seed(self):
        runs = [
            a_run(cell, [9], [0.9], seed, ([score] * 2,) * 2)
            for seed in range(3)
            for cell, score in (("web_flexi_1400", 0.4), ("web_curated", 0.1))
        ]
        evidence = claims.Evidence(NOTHING, compare(*runs), web_summary())
        line = {"data": "web", "test": "better", "cells": "web_flexi_1400"}
        line |= {"against": "web_curated", "judged": ""}
        found = claims.judge(line, evidence)
        self.assertEqual(found, ("+30.0 [+30.0, +30.0]", 3, claims.HOLDS))

    def test_every_cell_of_a_claim_is_in_the_matrix(self):
        for line in itertools.chain(*claims.load().values()):
            for name in (*line["cells"].split(), *line["against"].split()):
                is_web = matrix.find(name).data == "web"
                self.assertEqual(line["data"] == "web", is_web, name)


class ResultsTest(tf.test.TestCase):
    def test_added_runs_are_read_back_and_replace_their_forerunners(self):
        folder = pathlib.Path(self.get_temp_dir())
        self.assertEqual(results.finished(folder), {})
        runs = (
            a_run("uniform", [50, 100], [0.2, 0.4], digest="old"),
            a_run("uniform", [50, 100], [0.1, 0.3], 1, digest="00120034"),
            a_run("uniform", [50], [0.5], digest="71892e99"),
        )
        for run in runs:
            results.add(folder, run)
        self.assertEqual(
            results.finished(folder),
            {
                ("uniform", 0): ("71892e99", {*SPLITS}),
                ("uniform", 1): ("00120034", {*SPLITS}),
            },
        )
        tables = results.load(folder)
        one, other = comparison.Comparison(tables).of("uniform")
        self.assertAllClose(one.curve(), [0.5])
        self.assertAllClose(other.curve(), [0.1, 0.3])
        self.assertAllEqual(one.concepts["test_style"].image_queries, [3, 1])


class ReportTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.get_temp_dir())

    def write(self, *arguments):
        report.main(["--out", str(self.folder), *arguments])
        return (self.folder / "report.md").read_text()

    def test_the_kept_report_is_what_the_command_writes(self):
        kept = (results.FOLDER / "report.md").read_text()
        self.assertEqual(self.write(), kept)

    def test_every_kept_run_is_of_the_matrix_as_it_is(self):
        kept = results.finished(results.FOLDER)
        for (name, _), (digest, splits) in kept.items():
            cell = matrix.find(name)
            self.assertEqual((digest, splits), (cell.digest, {*cell.splits}))

    def test_the_best_is_what_validation_puts_first(self):
        tables = results.load(results.FOLDER)
        by_cell = tables.runs.groupby("cell")["val_concept"].mean()
        names = ["best", "best_by_filtered", "best_by_wide"]
        self.assertEqual(by_cell[names].idxmax(), "best_by_wide")

    def test_a_part_of_the_results_makes_a_report(self):
        own = self.folder / "results"
        results.add(own, a_run("uniform", [50, 100], [0.2, 0.4]))
        results.add(own, a_run("jest_750", [50], [0.4]))
        text = self.write("--results", str(own))
        self.assertIn("These are not the results that the package keeps", text)
        self.assertIn("far target: not run yet | not run yet |", text)
        self.assertNotIn("web-like data* has", text)
        self.assertIn("Not run yet: reference-0, ", text)

    def web_report(self, *lines):
        """The report of one uniform run on emoji art and of web-like lines."""
        own = self.folder / "results"
        results.add(own, a_run("uniform", [50, 100], [0.2, 0.4]))
        text = json.dumps(web_summary(*lines))
        (own / "summary.json").write_text(text)
        return self.write("--results", str(own))

    def write_validation(self, *lines):
        text = json.dumps(web_summary(*lines) | {"split": "val"})
        (self.folder / "results" / "validation.json").write_text(text)

    def test_the_summary_is_filled_from_the_web_like_results(self):
        uniform = web_line("uniform", 18000, 0.1, 1.0)

        def write(examples, over_target, seeds=3):
            cascade = web_line(
                *("bootstrapped", 4500, 0.2, examples, seeds),
                **{"oracle": 0.91, "lead": 0.08, "slope": 0.04},
                over_uniform=None,
                **{"mixture": 3.0, "over_target": over_target},
            )
            return self.web_report(uniform, cascade)

        text = write(20.0, 1.4)
        self.assertIn("takes 20.0x [20.0, 20.0]\n  fewer examples", text)
        self.assertIn("10.0x [10.0, 10.0] fewer FLOPs", text)
        self.assertIn(
            "| 20.0 [20.0, 20.0] | 8.0 / 4.0 = 4.0x | 20.0x [20.0, 20.0] | "
            "20.0x / 15.0x / 10.0x [10.0, 10.0] | 0.91 |",
            text,
        )
        self.assertIn("the lead is worth 2.0 doublings, 4.0x the steps.", text)
        self.assertIn(
            "3.0x [3.0, 3.0] fewer examples and 0.5x [0.5, 0.5]", text
        )
        self.assertIn("uniform training: 20.0 [20.0, 20.0], met", text)
        self.assertIn("3 seeds): 1.40 [1.40, 1.40], **missed**", text)
        self.assertIn("oracle's score: 0.91 [0.91, 0.91], met", text)
        self.assertIn("4,500 steps: 20.0x [20.0, 20.0] (3 seeds)", text)
        text = write(12.0, 1.6, seeds=2)
        self.assertIn("takes 12.0x [12.0, 12.0]", text)
        self.assertIn("(2 of 3 seeds so far)", text)
        self.assertIn("uniform training: 12.0 [12.0, 12.0], **missed**", text)
        self.assertIn("2 seeds): 1.60 [1.60, 1.60], met", text)
        self.assertIn("4,500 steps: 12.0x [12.0, 12.0] (2 seeds)", text)
        text = write(None, 0.5)
        self.assertIn("uniform training: never there, **missed**", text)

    def test_the_other_methods_of_the_matrix_have_a_table(self):
        text = self.web_report(
            web_line("uniform", 18000, 0.1, 1.0),
            web_line("bootstrapped", 4500, 0.2, 2.0),
            # No row in the first table; the longest run of each.
            web_line("balanced", 4500, 0.05, lead=-0.05, over_uniform=0.6),
            web_line("jest_curated", 700, 0.05),
            web_line("jest_curated", 1400, 0.1, lead=0.05, over_uniform=0.9),
            # Of matrix `web_claims`.
            web_line("jest_f95", 700, 0.1),
        )
        table = text.partition("## Appendix: other methods")[2]
        table = table.partition("\n## ")[0].splitlines()
        self.assertEqual(
            [line for line in table if line.startswith("| ")][2:],
            [
                "| balanced by concept before training (CABS balances batches) "
                "| 4,500 | 3 | 5.0 [5.0, 5.0] | -5.0 [-5.0, -5.0] "
                "| 0.6 [0.6, 0.6] |  |  |",
                "| JEST, f = 0.8, reference of the curated set alone | 1,400 "
                "| 3 | 10.0 [10.0, 10.0] | 5.0 [5.0, 5.0] | 0.9 [0.9, 0.9] "
                "|  |  |",
            ],
        )

    def test_a_missed_target_has_the_ratio_to_the_methods_own_end(self):
        text = self.web_report(
            web_line("uniform", 18000, 0.1, 1.0),
            web_line("bootstrapped", 4500, 0.2, 2.0),
            web_line("filtered_50", 4500, 0.05, own=3.0),
            web_line("oracle", 4500, 0.05, own=None),
        )
        for name, words in (
            ("the best-matching half", "3.0x [3.0, 3.0] to its own end"),
            ("uniform on the clean pairs", "not reached"),
        ):
            (row,) = (
                line
                for line in text.splitlines()
                if line.startswith(f"| {name}")
            )
            self.assertEqual(row.split(" | ")[5], words)

    def test_ratios_of_mixtures_stand_by_length(self):
        text = self.web_report(
            web_line("uniform", 18000, 0.1, 1.0),
            web_line("mixed_2", 4500, 0.1, over_uniform=1.0),
            web_line("mixed_2", 1000, 0.1, over_uniform=2.5),
            web_line("mixed_16", 1000, 0.1, over_uniform=None),
        )
        self.assertIn(
            "- a half curated: 2.5 [2.5, 2.5] after 1,000, 1.0 [1.0, 1.0] "
            "after 4,500",
            text,
        )
        self.assertNotIn("- a sixteenth curated", text)

    def test_what_the_tables_alone_tell(self):
        lines = {
            "web_bootstrapped_2700": (0, 0.25, 0.6, 0.7),
            "web_bootstrapped_k5_2700": (0, 0.225, 0.8, 0.75),
            "web90_bootstrapped_2700": (0, 0.125, None, None),
            "web90_bootstrapped_k8_2700": (0, 0.12, None, None),
            "web_uniform_crops_4500": (0, 0.1, None, None),
            "web50_uniform_2250": (0, 0.1, None, None),
            "web50_uniform_slow_2250": (0, 0.11, None, None),
            "web90_uniform_2250": (0, 0.12, None, None),
            "web90_uniform_fast_2250": (0, 0.1, None, None),
        }
        columns = "seed", "val_sets", "clean_first", "clean_last"
        runs = pd.DataFrame(
            {"cell": name} | dict(zip(columns, values, strict=True))
            for name, values in lines.items()
        ).assign(
            processor_seconds=range(1000, 1009),
            machine=["one"] * 8 + ["other"],
        )
        curves = pd.DataFrame(
            {"cell": "web_bootstrapped_2700", "seed": seed, "step": step}
            | {"val_sets": score}
            for seed, scores in ((0, (0.1, 0.3, 0.25)), (1, (0.1, 0.2, 0.26)))
            for step, score in zip((150, 1000, 2700), scores, strict=True)
        ).assign(
            recognised=[0.1, 0.3, None, 0.2, 0.4, None],
            is_kept=[True, False, None, True, True, None],
            clean=[0.5, 0.75, None, 0.75, 0.75, None],
            agreement=[None, 0.75, 0.875, None, 0.25, 0.625],
        )
        words = web_words.WebWords(None, self.folder)
        # One concept with two pictures, which no order can miss.
        of_split = pd.DataFrame(
            {"split": ["test_sets"] * 2 + ["val_sets"], "seed": [0, 1, 0]}
            | {"image_queries": 2, "text_queries": 1}
            | {"image_mrr": 1.0, "text_mrr": 1.0, "cell": "web_curated"}
        )
        words.__dict__["_tables"] = results.Tables(runs, curves, of_split)
        # One without what was kept beside it is left out.
        self.assertEqual(
            words.trials(),
            [
                ("bootstrapped, K = 5", "70 %", "2,700", "22.5", "25.0"),
                ("bootstrapped, K = 8", "90 %", "2,700", "12.0", "12.5"),
                (
                    "uniform, learning rate 1e-3",
                    "50 %",
                    "2,250",
                    "11.0",
                    "10.0",
                ),
                (
                    "uniform, learning rate 2e-3",
                    "90 %",
                    "2,250",
                    "10.0",
                    "12.0",
                ),
            ],
        )
        self.assertEqual(
            words.renewals("web_bootstrapped_2700"),
            [
                *[("150", "15.0", "2 of 2", "0.62", "10.0")],
                *[("1,000", "35.0", "1 of 2", "0.75", "25.0")],
            ],
        )
        self.assertEqual(words.renewals("web_uniform_crops_4500"), [])
        self.assertEqual(words.clean("web_bootstrapped_2700"), ["0.60", "0.70"])
        self.assertIsNone(words.clean("web90_bootstrapped_2700"))
        self.assertIsNone(words.clean("web_uniform_700"))
        self.assertEqual(
            words.agreement("web_bootstrapped_2700"),
            [("1,000", "0.50"), ("2,700", "0.75")],
        )
        self.assertIsNone(words.agreement("web_uniform_crops_4500"))
        names = "web_bootstrapped_2700", "web90_uniform_2250"
        self.assertEqual(words.processor_seconds(*names), ["1,000", "1,007"])
        names = names[0], "web90_uniform_fast_2250"
        self.assertEmpty(words.processor_seconds(*names))
        self.assertEmpty(words.processor_seconds("web_uniform_700"))
        self.assertEqual(words.pairs("test_sets"), ("2", "100.0"))
        # Renewed at 150 and 1,000 steps among others; one learner was rejected.
        self.assertAllClose(
            words.over_references("web_bootstrapped_2700"), [0.15, 0.06]
        )
        self.assertEmpty(words.over_references("web_bootstrapped_28000"))
        self.assertEqual(words.factors("cascade_curated"), "K = 5")

    def test_ratios_to_uniform_ends_stand_beside_those_to_the_target(self):
        ends = [
            {"steps": steps, "seeds": seeds, "is_bound": steps < 4500}
            | {"examples_ratio": examples, "all": flops}
            for steps, seeds, examples, flops in (
                (2250, 3, estimate(2.0), estimate(1.0)),
                (9000, 3, estimate(6.0), estimate(4.0)),
                (18000, 3, estimate(9.0), estimate(6.0)),
                (36000, 1, estimate(16.0), estimate(11.0)),
                (72000, 1, None, None),
            )
        ]
        text = self.web_report(
            web_line("uniform", 18000, 0.1, 1.0),
            web_line("uniform", 36000, 0.11, seeds=1),
            web_line("bootstrapped", 4500, 0.2, 9.0, ends=ends),
        )
        self.assertIn("uniform, the target | 18,000 | 3 |", text)
        self.assertIn("uniform, longer | 36,000 | 1 | 11.0 [11.0, 11.0]", text)
        self.assertIn(
            "targets** give other ratios.\n"
            "  With the score after 9,000 uniform steps as the target they are "
            "6.0x [6.0, 6.0] for examples and 4.0x [4.0, 4.0] for FLOPs.\n"
            "  With the score after 36,000 uniform steps (1 seed) as the "
            "target they are 16.0x [16.0, 16.0] for examples and "
            "11.0x [11.0, 11.0] for FLOPs.\n"
            "  After 36,000 steps, uniform training has 11.0 [11.0, 11.0] "
            "(1 seed); the cascade has 20.0 [20.0, 20.0]\n"
            "  with the FLOPs of 4,500 uniform steps.\n",
            text,
        )

    def test_a_bound_is_said_to_be_one(self):
        text = self.web_report(
            web_line("uniform", 18000, 0.1, 1.0),
            web_line("bootstrapped", 4500, 0.2, 9.0, bound=True),
        )
        self.assertIn("takes at least 9.0x\n", text)
        self.assertIn("at least 4.5x fewer FLOPs", text)

    def test_methods_of_other_lengths_do_not_stand_side_by_side(self):
        def rows(steps):
            text = self.web_report(
                web_line("uniform", 18000, 0.1, 1.0),
                web_line("cascade_curated", steps, 0.12),
                web_line("renewed", steps, 0.14),
                web_line("bootstrapped", 4500, 0.2, 9.0),
            )
            return [
                text.count(f"by a reference of the curated set{end}")
                for end in (" |", ", then renewed |")
            ]

        self.assertEqual(rows(4500), [1, 1])
        self.assertEqual(rows(1400), [0, 0])

    def test_ratios_on_validation_stand_beside_those_on_the_tests(self):
        lines = (
            web_line("uniform", 18000, 0.1, 1.0),
            web_line("bootstrapped", 4500, 0.2, 9.0),
        )
        self.assertNotIn("On validation, by", self.web_report(*lines))
        lines[1]["rows"] |= ratios(7.0, 5.0)
        self.write_validation(*lines)
        self.assertIn(
            "On validation, by which settings were chosen, the ratios are "
            "7.0x [7.0, 7.0] and 5.0x [5.0, 5.0].",
            self.web_report(*lines),
        )

    def test_the_goal_at_equal_cost_is_of_a_run_that_costs_as_much(self):
        for steps, best, gain in (
            (18_500, None, 1.8),
            (18_600, None, 1.6),
            # Uniform training of as many steps is known.
            (18_500, 1.7, 1.7),
        ):
            gains = {"over_target": 1.6, "over_uniform": None}
            more = {"over_target": 1.8, "over_uniform": best}
            text = self.web_report(
                web_line("uniform", 18000, 0.1, 1.0),
                web_line("bootstrapped", 14000, 0.2, 9.0, **gains),
                web_line("bootstrapped", steps, 0.3, 9.0, **more),
            )
            self.assertIn(f"3 seeds): {gain:.2f} [{gain:.2f}", text)

    def test_the_method_is_shown_where_the_oracle_was_run_and_for_longer(self):
        text = self.web_report(
            web_line("uniform", 18000, 0.1, 1.0),
            web_line("oracle", 4500, 0.25, 20.0),
            web_line("bootstrapped", 4500, 0.2, 9.0, lead=0.1, slope=0.05),
            web_line("bootstrapped", 14000, 0.3, 8.0, 1),
        )
        name = "**bootstrapped cascade**"
        self.assertIn(f"| {name} | 4,500 | 3 | 20.0", text)
        self.assertIn(
            "| 14,000 | 1 | 30.0 [30.0, 30.0] |  | as above | as above |",
            text,
        )
        self.assertIn("cascade has spent the FLOPs of 14,000 uniform", text)
        self.assertIn("takes 9.0x [9.0, 9.0]\n  fewer examples", text)

    def test_the_mixture_is_the_one_that_the_summary_calls_best(self):
        text = self.web_report(
            web_line("uniform", 18000, 0.1, 1.0),
            web_line("mixed_8", 9000, 0.11, 2.0),
            web_line("mixed_4", 4500, 0.12, 3.0),
            web_line("bootstrapped", 4500, 0.2, 9.0, mixture=4.0),
        )
        row = "a quarter of every batch curated, the best of 2 mixtures | 4,500"
        self.assertIn(row, text)
        self.assertIn("takes 4.0x [4.0, 4.0] fewer examples and", text)
        self.assertIn("own end, it takes 6.0x [6.0, 6.0] fewer examples", text)
        # Nor is there a lead's worth without a slope.
        self.assertNotIn("doublings", text)

    def test_uniform_training_stands_in_the_table_at_its_best_end(self):
        text = self.web_report(
            web_line("uniform", 18000, 0.1, 1.0),
            web_line("uniform", 36000, 0.09, 1.0),
            web_line("bootstrapped", 4500, 0.2, 9.0),
        )
        self.assertIn("| uniform, the target | 18,000 | 3 | 10.0 ", text)
        self.assertIn("So far 2 of ", text)
        self.assertIn("| uniform, longer | 36,000 | 3 | 9.0 ", text)

    def test_the_map_needs_two_levels_of_noise(self):
        uniform = web_line("uniform", 18000, 0.1, 1.0)
        cascade = web_line("bootstrapped", 4500, 0.2, 9.0)
        title = "## The map"
        self.assertNotIn(title, self.web_report(uniform, cascade))
        self.assertFalse((self.folder / "map.png").exists())
        clean = web_line(
            *("bootstrapped", 2700, 0.3, 2.0),
            **{"lead": 0.06, "slope": 0.05, "noise": 0.0},
        )
        text = self.web_report(uniform, cascade, clean)
        self.assertIn(title, text)
        self.assertIn(
            "| 0 % | bootstrapped cascade | 2,700 | 3 | "
            "30.0 [30.0, 30.0] | 2.0x [2.0, 2.0] | 1.0 [1.0, 1.0] | "
            "6.0 / 5.0 = 2.3x |  |",
            text,
        )
        self.assertTrue((self.folder / "map.png").exists())

    def test_the_headroom_is_a_share_of_the_oracles_lead_at_equal_steps(self):
        text = self.web_report(
            web_line("uniform", 18000, 0.1, 1.0),
            web_line("bootstrapped", 4500, 0.2, 9.0, lead=0.06),
            web_line("bootstrapped", 1400, 0.2, 9.0, noise=0.0),
            web_line("oracle", 1400, 0.3, 9.0, lead=0.5),
            web_line("oracle", 4500, 0.3, 9.0, lead=0.08),
        )
        self.assertIn("| 9.0x [9.0, 9.0] | 1.0 [1.0, 1.0] |  | 0.75 |", text)
        found = gains.Gains(
            web_summary(
                web_line("oracle", 1400, 0.3, lead=0.5),
                web_line("oracle", 4500, 0.3, lead=-0.1),
            )
        )
        self.assertEqual(found.headroom(claims.LEVEL, 1400, 20.0), 0.4)
        self.assertIsNone(found.headroom(claims.LEVEL, 1400, None))
        self.assertIsNone(found.headroom(claims.LEVEL, 4500, 20.0))
        self.assertIsNone(found.headroom(0.0, 1400, 20.0))

    def test_the_map_says_where_selection_pays(self):
        def line(
            steps, gain, noise=claims.LEVEL, method="bootstrapped", **more
        ):
            gains = {"over_uniform": gain, "noise": noise} | more
            return web_line(method, steps, 0.2, 2.0, **gains)

        text = self.web_report(
            web_line("uniform", 18000, 0.1, 1.0),
            *(line(2700, 0.5, 0.0), line(2700, 1.0, 0.3)),
            *(line(2700, 1.5, 0.5), line(2700, 2.5), line(2700, 3.0, 0.9)),
            # A length of one level alone is not beside the others.
            *(line(1400, 0.1, 0.9), line(4500, 2.0)),
            line(2700, 1.2, method="curated250_bootstrapped"),
            line(2700, 1.7, method="curated1000_bootstrapped"),
        )
        for words in (
            "After 2,700 steps the bootstrapped cascade (K = 3, K = 5 at 90 %",
            "at 50, 70 and 90 % noise, not clearly different at 30 %, and "
            "below it at 0 %: train",
            "score ratio is 2.5 [2.5, 2.5] with 4,000 of\n  them, 1.2 "
            "[1.2, 1.2] with 250 and 1.7 [1.7, 1.7] with 1,000.",
            "FLOPs of 2,700 and 4,500 uniform steps, at 70 % noise, its score "
            "is\n  2.5 and 2.0 times uniform training's.",
        ):
            self.assertIn(words, text)
        self.assertNotIn("**Slope.**", text)

    def test_a_slope_stands_beside_its_lead(self):
        lines = [
            web_line(
                *("bootstrapped", 2700, 0.2, 2.0),
                **{"noise": noise, "lead": 0.06, "slope": slope},
            )
            for noise, slope in ((0.5, 0.03), (claims.LEVEL, 0.02))
        ]
        text = self.web_report(web_line("uniform", 18000, 0.1, 1.0), *lines)
        self.assertIn(
            "2,700 steps are 6.0 / 3.0 at 50 % and 6.0 / 2.0 at 70 %", text
        )

    def test_a_page_has_its_block_replaced(self):
        page = self.folder / "README.md"
        page.write_text("Before.\n")
        own = self.folder / "results"
        results.add(own, a_run("uniform", [50, 100], [0.2, 0.4]))
        for _ in range(2):
            self.write("--results", str(own), "--pages", str(page))
        text = page.read_text()
        self.assertEqual(text.count("<!-- icontext: written by"), 1)
        self.assertStartsWith(text, "Before.\n")
        # Two marks beside the block's own lines.
        self.assertLessEqual(len(text.splitlines()) - 2, 15)

    def test_results_without_the_uniform_run_are_refused(self):
        with self.assertRaisesRegex(SystemExit, "no results"):
            self.write("--results", str(self.folder / "none"))
        own = self.folder / "results"
        results.add(own, a_run("jest_750", [50], [0.4]))
        with self.assertRaisesRegex(SystemExit, "lacks the cell 'uniform'"):
            self.write("--results", str(own))


if __name__ == "__main__":
    tf.test.main()

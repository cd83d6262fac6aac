"""IconText's summary: leads, ratios and bills, against values by hand."""

import json
import pathlib

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from benchmarks.icontext import ladders, matrix, results, summary, targets

SPLITS = (*matrix.WEB_VALIDATION, *matrix.WEB_TESTS)
# A step of uniform training costs one, stage 0 a tenth of it.
UNIFORM = {1125: 0.02, 2250: 0.04, 4500: 0.08, 9000: 0.12, 18000: 0.10}


def a_run(cell, steps, score, seed=0, val=None, curve=None, **costs):
    """Tables of a run, of one concept, so that resamples are alike.

    Args:
        cell: name.
        steps: of the run.
        score: on the tests.
        seed: of the run.
        val: score on the validation splits; None is that of the tests.
        curve: `{step: validation score}`; None is the end alone.
        **costs: FLOPs at the end, by the columns' names.
    """
    val = score if val is None else val
    key = {"cell": cell, "seed": seed}
    costs = {"flops_step": steps} | costs
    row = {**key, "digest": matrix.find(cell).digest, "steps": steps}
    row |= {"examples_trained": 10 * steps, **costs}
    by_concept = [
        {**key, "split": split, "concept": 0}
        | {"image_queries": 1, "text_queries": 1}
        | dict.fromkeys(
            ("image_mrr", "text_mrr"),
            score if split in matrix.WEB_TESTS else val,
        )
        for split in SPLITS
    ]
    curves = [
        {**key, "step": step, **dict.fromkeys(matrix.WEB_VALIDATION, value)}
        for step, value in (curve or {steps: val}).items()
    ]
    return results.Tables(*map(pd.DataFrame, ([row], curves, by_concept)))


def uniform(ends=UNIFORM, **changes):
    return [
        a_run(f"web_uniform_{steps}", steps, end, **changes)
        for steps, end in ends.items()
    ]


def cascade(steps, score, **changes):
    """A run of a cascade, whose reference is `web_curated`."""
    cell, costs = f"web_cascade_curated_{steps}", {"flops_embedded": 400}
    costs["flops_cascade"] = steps / 10
    return a_run(cell, steps, score, **costs, **changes)


CURATED = a_run("web_curated", 1000, 0.03)


def summarise(*runs, splits="test"):
    tables = (
        pd.concat([getattr(run, name) for run in runs], ignore_index=True)
        for name in results.Tables._fields
    )
    return summary.Summary(results.Tables(*tables), splits)


def row(values, method, steps, part="rows"):
    (found,) = (
        one
        for one in values[part]
        if (one["method"], one["steps"]) == (method, steps)
    )
    return found


class CurveTest(tf.test.TestCase):
    """Ends of full schedules between lengths."""

    lengths = np.array([1000, 2000, 8000])
    ends = np.array([[0.1, 0.3], [0.2, 0.2], [0.6, 0.4]])

    def test_ends_are_linear_in_the_logarithm_of_the_steps(self):
        for steps, expected in (
            *((1000, [0.1, 0.3]), (2000, [0.2, 0.2]), (4000, [0.4, 0.3])),
            *((8000, [0.6, 0.4]), (999, [np.nan] * 2), (8001, [np.nan] * 2)),
        ):
            found = ladders.end_at(self.lengths, self.ends, steps)
            self.assertAllClose(found, expected)

    def test_a_target_is_reached_by_the_shortest_schedule_that_does(self):
        for target, expected in (
            # The second curve is above both at once, then falls, then rises.
            *(([0.4, 0.25], [4000, 1000]), ([0.05, 0.35], [1000, 5656.85])),
            ([0.6, 0.45], [8000, np.inf]),
        ):
            found = ladders.steps_to_end(
                self.lengths, self.ends, np.array(target)
            )
            self.assertAllClose(found, expected, rtol=1e-5)

    def test_one_length_is_a_curve_of_one_point(self):
        one = self.lengths[:1], self.ends[:1]
        self.assertAllClose(ladders.end_at(*one, 1000), [0.1, 0.3])
        self.assertAllEqual(
            ladders.steps_to_end(*one, np.array([0.1, 0.4])), [1000, np.inf]
        )

    def test_a_method_is_a_cells_name_without_its_length(self):
        for cell, method in (
            *(
                ("web_uniform_4500", "uniform"),
                ("web30_mixed_8_4500", "mixed_8"),
            ),
            *(
                ("web_filtered_30_4500", "filtered_30"),
                ("web_curated", "curated"),
            ),
        ):
            self.assertEqual(summary.method_of(cell), method)


class SummaryTest(tf.test.TestCase):
    def check(self, found, expected):
        """Compares means; None is None."""
        if expected is None or found is None:
            self.assertIs(found, expected)
        else:
            self.assertAllClose(found["mean"], expected, rtol=1e-4)

    def test_lead_and_slope_are_taken_at_equal_steps(self):
        values = summarise(
            *uniform(), CURATED, cascade(1400, 0.10), cascade(4500, 0.16)
        ).values()
        late, early = (row(values, "cascade_curated", n) for n in (4500, 1400))
        self.check(late["lead"], 0.08)
        self.check(late["slope"], 0.04)
        other = 0.02 * (1 + np.log2(1400 / 1125))
        self.check(early["lead"], 0.10 - other)
        self.check(early["slope"], (0.12 - other) / np.log2(9000 / 1400))
        # Uniform training gains nothing after its best end.
        self.check(row(values, "uniform", 9000)["slope"], None)
        # 1,000 steps are fewer than uniform training's fewest.
        self.check(row(values, "curated", 1000)["lead"], None)

    def test_the_slope_ends_where_the_target_is_first_reached(self):
        # Validation chooses 9,000 steps. The tests have its score before 4,500.
        ends = {2250: (0.04, 0.04), 4500: (0.12, 0.08), 9000: (0.10, 0.12)}
        runs = [
            a_run(f"web_uniform_{steps}", steps, score, val=val)
            for steps, (score, val) in ends.items()
        ]
        values = summarise(*runs, CURATED, cascade(4500, 0.16)).values()
        (target,) = values["targets"]
        reached = 2250 * 2**0.75
        self.check(target["reached"], reached)
        self.check(row(values, "uniform", 2250)["slope"], 0.06 / 0.75)
        # It is past the target there.
        self.check(row(values, "cascade_curated", 4500)["slope"], None)

    def test_ratios_are_to_uniform_trainings_best_end(self):
        values = summarise(
            *uniform(), CURATED, cascade(1400, 0.10), cascade(4500, 0.16)
        ).values()
        (target,) = values["targets"]
        self.assertEqual(target["steps"], 9000)
        self.check(target["score"], 0.12)
        found = row(values, "cascade_curated", 4500)
        # 0.12 is a third of the way from 0.10 to 0.16.
        steps = 1400 * (4500 / 1400) ** (1 / 3)
        self.check(found["examples_ratio"], 9000 / steps)
        for kind, spent in (
            *(("scores", 1.1 * steps), ("reference", 1.1 * steps + 1000)),
            ("all", 1.1 * steps + 1000 + 400),
        ):
            self.check(found["flops_ratio"][kind], 9000 / spent)
        missed = row(values, "cascade_curated", 1400)
        self.check(missed["examples_ratio"], None)
        self.check(missed["flops_ratio"]["all"], None)

    def test_a_ratio_is_never_of_less_than_a_methods_shortest_run(self):
        values = summarise(*uniform(), CURATED, cascade(1400, 0.2)).values()
        found = row(values, "cascade_curated", 1400)
        self.check(found["examples_ratio"], 9000 / 1400)

    def test_the_target_is_chosen_on_validation(self):
        runs = uniform({4500: 0.08, 9000: 0.12})
        runs.append(a_run("web_uniform_18000", 18000, 0.13, val=0.1))
        values = summarise(*runs).values()
        (target,) = values["targets"]
        self.assertEqual(target["steps"], 9000)
        self.check(target["score"], 0.12)
        # On the tests, it is passed by the longer schedule.
        self.check(row(values, "uniform", 18000)["examples_ratio"], 1.0)

    def test_a_length_of_fewer_seeds_is_no_target(self):
        runs = [
            a_run(f"web_uniform_{steps}", steps, end, seed)
            for steps, end in ((4500, 0.08), (9000, 0.12))
            for seed in range(3)
        ]
        runs.append(a_run("web_uniform_18000", 18000, 0.14))
        runs += [CURATED, cascade(1400, 0.10), cascade(4500, 0.16)]
        values = summarise(*runs).values()
        (target,) = values["targets"]
        self.assertEqual(target["steps"], 9000)
        self.assertFalse(target["is_longest"])
        # The ratios to all ends, a doubling of 0.06 / log2(4500 / 1400) each.
        found = row(values, "cascade_curated", 4500, "uniform_ends")
        self.assertFalse(found["is_bound"])
        self.assertAllClose(found["reached"], 1400 * (4500 / 1400) ** (1 / 3))
        long = (4500 / 1400) ** (1 / 3), (4500 / 1400) ** (2 / 3)
        for end, steps, needed, is_bound in (
            (found["ends"][0], 4500, 1400, True),
            (found["ends"][1], 9000, 1400 * long[0], False),
            (found["ends"][2], 18000, 1400 * long[1], False),
        ):
            self.assertEqual((end["steps"], end["seeds"]), (steps, 1))
            self.assertEqual(end["is_bound"], is_bound)
            self.check(end["examples_ratio"], steps / needed)
            spent = 1.1 * needed + 1000 + 400
            self.check(end["all"], steps / spent)
        early = row(values, "cascade_curated", 1400, "uniform_ends")
        self.check(early["ends"][1]["examples_ratio"], None)

    def test_what_uniform_training_does_beyond_its_runs_is_not_known(self):
        values = summarise(
            *uniform({2250: 0.04, 4500: 0.08}),
            *(CURATED, cascade(1400, 0.1), cascade(4500, 0.2)),
        ).values()
        known = row(values, "cascade_curated", 1400, "bills")
        bill = 1.1 * 1400 + 1000 + 400
        self.check(known["uniform_score"], 0.04 + 0.04 * np.log2(bill / 2250))
        unknown = row(values, "cascade_curated", 4500, "bills")
        self.assertEqual(unknown["uniform_steps"]["all"], 1.1 * 4500 + 1400)
        self.check(unknown["uniform_score"], None)
        self.check(unknown["over_uniform"], None)
        self.check(unknown["over_target"], 0.2 / 0.08)

    def test_the_best_mixture_is_soonest_at_the_target(self):
        values = summarise(
            *uniform(),
            *(CURATED, cascade(1400, 0.2)),
            a_run("web_mixed_8_4500", 4500, 0.06),
            a_run("web_mixed_8_9000", 9000, 0.14),
            a_run("web_mixed_2_1000", 1000, 0.02),
            a_run("web_mixed_2_4500", 4500, 0.07),
            # A trial of a setting is no mixture.
            a_run("web_mixed_8_slow_4500", 4500, 0.3),
        ).values()
        (target,) = values["targets"]
        steps = 4500 * 2**0.75
        self.assertEqual(target["mixture"], "mixed_8")
        self.check(target["mixture_reached"], steps)
        found = row(values, "cascade_curated", 1400)["mixture_ratio"]
        self.check(found["examples"], steps / 1400)
        self.check(found["all"], steps / (1.1 * 1400 + 1400))
        found = row(values, "cascade_curated", 1400, "uniform_ends")["mixture"]
        self.check(found["examples"], 9000 / 1400)
        self.check(found["all"], 9000 / (1.1 * 1400 + 1400))

    def test_a_mixture_that_misses_the_target_has_no_cost(self):
        values = summarise(
            *uniform(),
            *(CURATED, cascade(1400, 0.2)),
            a_run("web_mixed_8_4500", 4500, 0.06),
            a_run("web_mixed_2_4500", 4500, 0.07),
        ).values()
        (target,) = values["targets"]
        self.assertEqual(target["mixture"], "mixed_2")
        self.assertIsNone(target["mixture_reached"])
        found = row(values, "cascade_curated", 1400)
        self.check(found["mixture_ratio"]["examples"], None)
        self.check(found["examples_ratio"], 9000 / 1400)

    def test_ratios_are_of_full_schedules_and_curves_stand_beside_them(self):
        curve = {6000: 0.12, 7000: 0.13, 9000: 0.12}
        values = summarise(
            *uniform({4500: 0.08}),
            # The tests are lower than validation throughout.
            a_run("web_uniform_9000", 9000, 0.1, val=0.12, curve=curve),
            a_run("web_mixed_8_9000", 9000, 0.2, curve={4500: 0.12, 9000: 0.2}),
            *(CURATED, cascade(1400, 0.2)),
        ).values()
        (target,) = values["targets"]
        self.check(target["reached"], 6000)
        self.assertTrue(target["is_longest"])
        self.check(target["mixture_reached"], 4500)
        found = row(values, "cascade_curated", 1400)
        self.check(found["examples_ratio"], 9000 / 1400)
        # There is one mixture, whose shortest schedule ends above the target.
        self.check(found["mixture_ratio"]["examples"], 9000 / 1400)
        found = row(values, "cascade_curated", 1400, "equal_scores")
        self.check(found["examples_ratio"], 9000 / 1400)

    def test_first_crossings_are_read_on_validation_curves(self):
        values = summarise(
            *uniform(),
            CURATED,
            # The tests are lower than validation throughout.
            cascade(4500, 0.1, val=0.16, curve={2250: 0.08, 4500: 0.16}),
        ).values()
        found = row(values, "cascade_curated", 4500, "first_crossings")
        self.check(found["examples_ratio"], 9000 / 3375)
        self.check(found["flops_ratio"]["all"], 9000 / (1.1 * 3375 + 1400))
        missed = row(values, "uniform", 4500, "first_crossings")
        self.check(missed["examples_ratio"], None)

    def test_equal_scores_are_of_uniform_trainings_steps_to_an_end(self):
        values = summarise(
            *uniform(), CURATED, cascade(1400, 0.10), cascade(4500, 0.16)
        ).values()
        found = row(values, "cascade_curated", 1400, "equal_scores")
        self.check(found["examples_ratio"], 4500 * 2**0.5 / 1400)
        # An end above the target counts as the target.
        found = row(values, "cascade_curated", 4500, "equal_scores")
        self.check(found["examples_ratio"], 2.0)
        self.check(found["flops_ratio"]["all"], 9000 / (1.1 * 4500 + 1400))

    def test_a_score_below_uniforms_shortest_has_no_equal(self):
        low = a_run("web_curated", 1000, 0.01)
        values = summarise(*uniform(), low).values()
        found = row(values, "curated", 1000, "equal_scores")
        self.check(found["examples_ratio"], None)

    def test_a_bill_is_compared_with_what_uniform_training_buys(self):
        values = summarise(
            *uniform(), CURATED, cascade(1400, 0.10), cascade(4500, 0.16)
        ).values()
        found = row(values, "cascade_curated", 1400, "bills")
        self.assertEqual(
            found["uniform_steps"],
            {"scores": 1540, "reference": 2540, "all": 2940}
            | {"without_references": 1940},
        )
        other = 0.04 * (1 + np.log2(2940 / 2250))
        self.check(found["uniform_score"], other)
        self.check(found["over_uniform"], 0.10 / other)
        self.check(found["over_target"], 0.10 / 0.12)
        # Whoever can pay for 18,000 steps takes the better 9,000.
        found = row(values, "uniform", 18000, "bills")
        self.check(found["uniform_score"], 0.12)
        # 1,000 steps buy less than uniform training's shortest schedule.
        found = row(values, "curated", 1000, "bills")
        self.check(found["uniform_score"], None)

    def test_renewals_are_charged_to_all_alone(self):
        run = a_run("web_bootstrapped_1400", 1400, 0.12, flops_renewals=600)
        values = summarise(*uniform(), run).values()
        found = row(values, "bootstrapped", 1400)["flops_ratio"]
        self.check(found["scores"], 9000 / 1400)
        self.check(found["reference"], 9000 / 1400)
        self.check(found["all"], 9000 / 2000)

    def test_a_given_reference_costs_neither_training_nor_renewals(self):
        values = summarise(
            *uniform(),
            a_run("web_bootstrapped_1400", 1400, 0.12, flops_renewals=600),
            a_run("web_second_1400", 1400, 0.16, flops_embedded=400),
        ).values()
        found = row(values, "second", 1400, "bills")
        self.assertEqual(
            found["uniform_steps"],
            {"scores": 1400, "reference": 2800, "all": 3800}
            | {"without_references": 1800},
        )

    def test_recorded_renewals_count_from_the_evaluation_after_them(self):
        run = a_run(
            *("web_bootstrapped_1400", 1400, 0.24),
            curve={700: 0.06, 1400: 0.24},
            flops_renewals=600,
        )
        spent = {"flops_step": [700, 1400], "flops_renewals": [200, 600]}
        spent["flops_cascade"] = 0
        run = run._replace(curves=run.curves.assign(**spent))
        values = summarise(*uniform(), run).values()
        found = row(values, "bootstrapped", 1400, "first_crossings")
        # 0.12 is a third of the way from 0.06 to 0.24, at 933 steps.
        steps = 700 * 4 / 3
        self.check(found["flops_ratio"]["scores"], 9000 / steps)
        self.check(found["flops_ratio"]["all"], 9000 / (steps + 600))

    def test_cutting_a_pool_is_charged_with_its_judge(self):
        run = a_run("web_filtered_30_4500", 4500, 0.2, flops_embedded=400)
        values = summarise(*uniform(), CURATED, run).values()
        found = row(values, "filtered_30", 4500)["flops_ratio"]
        self.check(found["scores"], 2.0)
        self.check(found["reference"], 9000 / 5500)
        self.check(found["all"], 9000 / 5900)

    def test_a_reference_without_a_row_is_refused(self):
        found = summarise(*uniform(), cascade(1400, 0.2))
        with self.assertRaisesRegex(ValueError, "'web_curated', which is char"):
            found.values()

    def test_the_oracles_share_is_at_equal_steps(self):
        oracle = [
            a_run(f"web_oracle_{steps}", steps, end)
            for steps, end in ((700, 0.1), (1400, 0.2))
        ]
        values = summarise(
            *(*uniform(), *oracle, CURATED),
            *(cascade(1400, 0.15), cascade(4500, 0.16)),
        ).values()
        early, late = (row(values, "cascade_curated", n) for n in (1400, 4500))
        self.check(early["oracle_share"], 0.75)
        self.check(late["oracle_share"], None)
        share = 0.03 / (0.1 * (1 + np.log2(1000 / 700)))
        self.check(row(values, "curated", 1000)["oracle_share"], share)

    def test_other_splits_are_compared_with_the_targets_runs(self):
        values = summarise(
            *uniform(), a_run("web_mixed_8_4500", 4500, 0.1)
        ).values()
        found = row(values, "mixed_8", 4500, "held_out")
        for what in ("concepts", "styles"):
            self.check(found[what], 0.1)
            self.check(found[f"{what}_over_target"], 0.1 - 0.12)

    def test_seeds_are_compared_with_uniform_runs_of_the_same_seeds(self):
        higher = {steps: 2 * end for steps, end in UNIFORM.items()}
        values = summarise(
            *uniform(),
            *uniform(higher, seed=1),
            a_run("web_mixed_8_4500", 4500, 0.2, seed=1),
        ).values()
        found = row(values, "mixed_8", 4500)
        self.assertEqual(found["seeds"], 1)
        self.check(found["lead"], 0.2 - 0.16)
        self.check(found["examples_ratio"], None)  # 0.24 of seed 1 is missed
        both = row(values, "uniform", 9000)
        self.assertEqual(both["seeds"], 2)
        self.assertAllClose(
            [*both["score"].values()], [0.18, 0.12, 0.24], rtol=1e-4
        )

    def test_few_seeds_have_the_spread_of_others_added(self):
        ends = (0.08, 0.10, 0.12)
        values = summarise(
            *(
                a_run("web_uniform_4500", 4500, end, seed)
                for seed, end in enumerate(ends)
            ),
            a_run("web_mixed_8_4500", 4500, 0.2),
        ).values()
        # The three deviate from their mean by 0.2 of it.
        one = row(values, "mixed_8", 4500)["score"]
        self.assertAllClose(one["mean"], 0.2)
        around = [one["high"] - 0.2, 0.2 - one["low"]]
        self.assertAllClose(around, [1.96 * 0.2 * 0.2] * 2, rtol=0.1)
        three = row(values, "uniform", 4500)
        self.assertAllClose(
            [*three["score"].values()], [0.1, 0.08, 0.12], rtol=1e-4
        )

    def test_the_spread_is_of_runs_about_as_long(self):
        def ends(steps, *scores):
            return [
                a_run(f"web_uniform_{steps}", steps, end, seed)
                for seed, end in enumerate(scores)
            ]

        values = summarise(
            *ends(1125, 0.03, 0.04, 0.05),
            *ends(2250, 0.045, 0.05, 0.055),
            *ends(4500, 0.11, 0.10, 0.09),
            *(a_run("web_mixed_8_4500", 4500, 0.2),),
            *(a_run("web_mixed_8_1125", 1125, 0.2),),
        ).values()
        # Deviations of 0.1 at both longer lengths, in other seeds: the effects
        # of the seeds cancel.
        one = row(values, "mixed_8", 4500)["score"]
        wide = 1.96 * 0.2 * (4 * 0.1**2 / 2) ** 0.5
        self.assertAllClose(
            [one["high"] - 0.2, 0.2 - one["low"]], [wide] * 2, rtol=0.1
        )
        other = row(values, "mixed_8", 1125)["score"]
        self.assertLess(other["low"], one["low"])

    def test_a_line_of_one_seed_does_not_differ_from_itself(self):
        values = summarise(
            a_run("web_uniform_4500", 4500, 0.1),
            *(
                a_run("web_mixed_8_4500", 4500, end, seed)
                for seed, end in enumerate((0.08, 0.10, 0.12))
            ),
        ).values()
        found = row(values, "uniform", 4500)
        self.assertLess(found["score"]["low"], 0.08)
        self.assertEqual([*found["lead"].values()], [0.0] * 3)

    def test_a_resample_below_uniforms_shortest_counts_as_no_ratio(self):
        values = summarise(
            *(run for seed in range(3) for run in uniform(seed=seed)),
            CURATED,
            *(
                cascade(1400, end, seed=seed)
                for seed, end in enumerate((0.01, 0.03, 0.05))
            ),
        ).values()
        found = row(values, "cascade_curated", 1400, "equal_scores")
        ratio = found["examples_ratio"]
        self.assertAllClose(ratio["mean"], 1125 * 2**0.5 / 1400, rtol=1e-4)
        self.assertEqual(ratio["low"], 0.0)

    def test_every_level_has_its_own_target(self):
        values = summarise(
            *(*uniform(), CURATED),
            a_run("web90_uniform_4500", 4500, 0.3),
            a_run("web90_mixed_8_4500", 4500, 0.4),
        ).values()
        levels = [one["noise"] for one in values["targets"]]
        self.assertEqual(levels, [0.7, 0.9])
        by_level = [
            one["noise"] for one in values["rows"] if one["method"] == "curated"
        ]
        self.assertEqual(by_level, levels)
        self.check(row(values, "mixed_8", 4500)["examples_ratio"], 1.0)

    def test_rows_have_the_agreed_form(self):
        values = summarise(*uniform()).values()
        self.assertEqual(
            list(values["rows"][0]),
            [
                *("domain", "noise", "method", "seeds", "steps", "score"),
                *("lead", "slope", "examples_ratio", "flops_ratio"),
                *("is_bound", "mixture_ratio", "oracle_share"),
            ],
        )
        self.assertEqual(
            list(values["rows"][3]["flops_ratio"]), [*targets.KINDS]
        )
        self.assertEqual(
            list(values["rows"][3]["score"]), ["mean", "low", "high"]
        )

    def test_rows_of_a_changed_cell_are_left_out(self):
        old = a_run("web_mixed_8_4500", 4500, 0.2)
        old = old._replace(runs=old.runs.assign(digest="old"))
        values = summarise(*uniform(), old).values()
        methods = {one["method"] for one in values["rows"]}
        self.assertEqual(methods, {"uniform"})


class CommandTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.get_temp_dir())
        self.results = self.folder / "results"

    def add(self, *runs):
        for run in runs:
            results.add(self.results, run)

    def write(self, *more):
        summary.main(
            [
                *("--results", str(self.results)),
                *("--out", str(self.folder), *more),
            ]
        )

    def test_it_writes_a_table_and_its_numbers(self):
        self.add(*uniform(), CURATED, cascade(4500, 0.16))
        self.write()
        values = json.loads((self.folder / "summary.json").read_text())
        self.assertEqual(values["split"], "test")
        text = (self.folder / "summary.md").read_text()
        self.assertIn("## 70% of noise", text)
        line = next(one for one in text.splitlines() if "cascade" in one)
        cells = [one.strip() for one in line.strip("|").split("|")]
        self.assertEqual(cells[1:4], ["4,500", "1", "16.0 [16.0, 16.0]"])
        # 2 ** (0.08 / 0.04)
        self.assertEqual(cells[-1], "4.0x")

    def test_validation_alone_has_a_summary_of_its_own(self):
        run, *more = uniform()
        is_test = run.concepts["split"].isin(matrix.WEB_TESTS)
        run = run._replace(concepts=run.concepts[~is_test])
        self.add(run)
        with self.assertRaisesRegex(SystemExit, "has the split 'test_sets'"):
            self.write()
        self.write("--splits", "val")
        self.assertTrue((self.folder / "validation.md").exists())
        self.add(more[0])
        self.write()
        values = json.loads((self.folder / "summary.json").read_text())
        self.assertLen(values["rows"], 1)

    @pytest.mark.slow
    def test_kept_summaries_are_what_the_command_writes(self):
        for splits, name in (("test", "summary"), ("val", "validation")):
            kept = results.FOLDER / f"{name}.json"
            if kept.exists():
                summary.main(["--out", str(self.folder), "--splits", splits])
                for path in (kept, kept.with_suffix(".md")):
                    written = (self.folder / path.name).read_text()
                    self.assertEqual(written, path.read_text())

    def test_no_results_are_refused(self):
        with self.assertRaisesRegex(SystemExit, "no results in"):
            self.write()


if __name__ == "__main__":
    tf.test.main()

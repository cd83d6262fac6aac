"""Advice: which row applies, what it sets, what is expected of it."""

import argparse
import dataclasses
import json
import pathlib
import shlex

import tensorflow as tf

from jest_tf import config
from jest_tf.cli import advise as cli
from jest_tf.cli import flags as flags_lib
from jest_tf.config import overrides
from jest_tf.curation import advice, decision_table, evidence
from jest_tf.curation.estimates import Estimate

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = config.TrainConfig(
    steps=1000,
    data=config.DataConfig(train=("pool",), super_batch_size=64),
)


def facts(share=0.3, power=0.5, **changes):
    """Facts of a pool whose reference has a share of the room above chance."""
    found = decision_table.Facts(
        Estimate(share, share - 0.05, share + 0.05),
        {},
        size=100_000,
        pool=("pool-*.tar",),
        curated=("a.tar", "b.tar"),
        reference="runs/r",
    )._replace(**changes)
    factor = found.factor
    best = min(1.0, factor * share)
    return found._replace(precision={factor: share + power * (best - share)})


def cell(noise, method="bootstrapped", steps=1000, gain=2.0, **changes):
    spread = {"mean": gain, "low": 0.9 * gain, "high": 1.2 * gain}
    gains = "over_uniform", "over_uniform_given_reference"
    values = dict.fromkeys(("score", "lead", *gains), spread)
    values["over_target"] = None
    return evidence.Cell(
        noise, 1.0 - noise, method, steps, 1, "val", **values | changes
    )


class RowsTest(tf.test.TestCase):
    def test_the_first_row_that_applies_is_the_advice(self):
        for expected, found in (
            ("bootstrapped", facts()),
            ("reference", facts(is_quick=False)),
            ("several", facts(learners=2)),
            ("reference", facts(learners=3, is_quick=False)),
            ("weak", facts(power=0.05, learners=3)),
            ("clean", facts(0.9)),
            ("clean", facts(0.99, power=0.0)),
            ("covered", facts(covered=0.7)),
            # Only tests can tell.
            ("bootstrapped", facts(apart=0.7)),
            ("bootstrapped", facts(apart=0.7, covered=0.5)),
            ("clean", facts(0.95, covered=0.5)),
        ):
            row = advice.advise(found, RECIPE, []).row
            self.assertEqual(row.name, expected, found)
        names = [row.name for row in decision_table.ROWS]
        self.assertLessEqual(len(names), 7)
        self.assertLen({*names}, len(names))

    def test_half_of_the_rows_say_do_not_select(self):
        refused = [row.name for row in decision_table.ROWS if not row.selects]
        self.assertEqual(refused, ["covered", "clean", "weak"])
        for row in decision_table.ROWS:
            self.assertEqual("do not select" in row.do, not row.selects)

    def test_k_is_the_candidates_that_hold_one_matched_pair(self):
        for share, factor in (
            *((0.5, 2), (0.34, 3), (0.2, 5), (0.01, 10), (0.0, 10)),
            (0.9, 2),
        ):
            self.assertEqual(facts(share).factor, factor)

    def test_power_is_of_the_room_between_chance_and_a_perfect_choice(self):
        for power in (0.0, 0.4, 1.0):
            for share in (0.1, 0.3, 0.7):
                self.assertAllClose(facts(share, power).power, power)
        self.assertEqual(facts(1.0, 0.5).power, 0.0)

    def test_settings_are_those_of_a_recipe(self):
        for found, expected in (
            (facts(0.9), {}),
            (facts(covered=0.9), {"data.curated_rows": 32}),
            (facts(power=0.0), {"data.curated_rows": 8}),
            (
                facts(),
                {
                    "data.curated": ("a.tar", "b.tar"),
                    "data.super_batch_size": 64,
                    "cascade.hyper_batch_size": 192,
                    "bootstrap.renew_at": (100, 200, 400),
                    # A quarter of 1,000 steps is three renewals of as many
                    # records as 250 steps embed, 250 * 3 * 64 / 3.
                    "bootstrap.shares": (0.16,),
                    "bootstrap.curated_rows": 64,
                },
            ),
            (
                facts(0.2, is_quick=False),
                {
                    "reference.model": "runs/r",
                    "reference.sidecars": True,
                    "cascade.hyper_batch_size": 320,
                    "bootstrap.renew_at": (200, 400),
                    # 250 * 3 * 64 / 2 of 100,000 records.
                    "bootstrap.shares": (0.24,),
                    "bootstrap.curated_rows": None,
                    "optimizer.ema": 0.98,
                },
            ),
            (
                facts(learners=9),
                {
                    "reference.model": "FIRST",
                    "reference.sidecars": True,
                    "cascade.hyper_batch_size": 192,
                    "bootstrap.renew_at": (),
                },
            ),
        ):
            settings = advice.advise(found, RECIPE, []).settings
            values = {"steps": 1000, "data": {"train": ("pool",)}}
            for text in settings:
                overrides.override(config.TrainConfig, values, text)
            recipe = overrides.build(config.TrainConfig, values)
            for name, value in expected.items():
                group, field = name.split(".")
                found = getattr(getattr(recipe, group), field)
                self.assertEqual(found, value, name)

    def test_a_recipe_with_selection_trains_uniformly_where_that_is_advised(
        self,
    ):
        for recipe in ROOT.glob("configs/*.py"):
            recipe = config.load_config(str(recipe))
            for found, name in (
                (facts(0.9), "clean"),
                (facts(covered=0.9), "covered"),
                (facts(power=0.0), "weak"),
                (facts(learners=3), "several"),
                (facts(is_quick=False), "reference"),
                (facts(), "bootstrapped"),
            ):
                advised = advice.advise(found, recipe, [])
                self.assertEqual(advised.row.name, name)
                values = dataclasses.asdict(recipe)
                for text in advised.settings:
                    overrides.override(config.TrainConfig, values, text)
                is_tpu = recipe.distribution.strategy == "tpu"
                if name in ("several", "bootstrapped") and is_tpu:
                    self.assertIn("one process embeds", advised.cautions[-1])
                    continue
                built = overrides.build(config.TrainConfig, values)
                self.assertEqual(built.selection, config.SelectionConfig())
                self.assertEqual(built.batch_size, recipe.batch_size)
                is_mixed = name in ("covered", "weak")
                self.assertEqual(built.data.curated_rows > 0, is_mixed)
                has_curated = is_mixed or name == "bootstrapped"
                self.assertEqual(bool(built.data.curated), has_curated)
                is_cascade = name in ("several", "reference", "bootstrapped")
                self.assertEqual(
                    bool(built.cascade.hyper_batch_size), is_cascade
                )
                renews = is_cascade and name != "several" and not is_tpu
                self.assertEqual(bool(built.bootstrap.renew_at), renews)

    def test_renewals_double_from_the_thirtieth_part_of_the_steps(self):
        for steps, expected in (
            (4500, [150, 300, 600, 1200, 2400]),
            (1400, [100, 200, 400, 800]),
            (167, [100]),
            (166, [83]),
            (100, [50]),
            (1, [1]),
        ):
            self.assertEqual(decision_table.renewals(steps), expected)

    def test_a_small_pool_is_embedded_whole(self):
        for size, share in ((1000, "1"), (10**6, "0.016"), (10**8, "0.00016")):
            settings = advice.advise(facts(size=size), RECIPE, []).settings
            self.assertIn(f"bootstrap.shares={share}", settings)

    def test_a_renewal_embeds_ten_hyper_batches_or_more(self):
        short = dataclasses.replace(RECIPE, steps=1)
        settings = advice.advise(facts(size=10**4), short, []).settings
        self.assertIn("cascade.hyper_batch_size=192", settings)
        self.assertIn("bootstrap.shares=0.19", settings)  # of 10 times 192

    def test_commands_come_first_where_a_choice_or_sidecars_are_needed(self):
        embed = "embed --model runs/r --data pool-*.tar"
        for found, expected in (
            (facts(), []),
            (facts(is_quick=False), [embed]),
            (facts(learners=3), ["embed --model FIRST --data pool-*.tar"]),
        ):
            before = advice.advise(found, RECIPE, []).before
            self.assertEqual([" ".join(words) for words in before], expected)

    def test_of_several_learners_the_first_is_bootstrapped(self):
        self.assertEmpty(advice.advise(facts(), RECIPE, []).first)
        first = advice.advise(facts(learners=3), RECIPE, []).first
        alone = advice.advise(facts(), RECIPE, []).settings
        self.assertEqual(first, alone)

    def test_the_commands_of_several_learners_are_in_order(self):
        flags = argparse.Namespace(config=None, pool=["pool-*.tar"])
        for name in flags_lib.FORMAT_FIELDS:
            setattr(flags, name, None)
        found = advice.advise(facts(learners=3), RECIPE, [])
        first, embed, others = [
            shlex.split(line)
            for line in cli._command(flags, RECIPE, found).splitlines()
        ]
        train = ["jest-tf", "train", "--config", "RECIPE", "--workdir"]
        pool = ["--set", "data.train=pool-*.tar"]
        self.assertEqual(first, [*train, "FIRST", *pool, *found.first])
        self.assertEqual(
            embed,
            ["jest-tf", "embed", "--model", "FIRST", "--data", "pool-*.tar"],
        )
        self.assertEqual(others, [*train, "WORKDIR", *pool, *found.settings])

    def test_what_is_wrong_with_the_estimates_is_said(self):
        wide = facts()._replace(matched=Estimate(0.3, 0.1, 0.5))
        for found, words in (
            (facts(apart=0.7, covered=0.5), "may be too low"),
            (wide, "more curated pairs"),
            (facts(knows_pool=True), "was trained on this pool"),
            # Two standard errors of 640 are 0.037.
            (
                facts(covered=2 / 3 + 0.035, num_tests=640),
                "covers the tests is",
            ),
            (
                facts(covered=2 / 3 - 0.035, num_tests=640),
                "covers the tests is",
            ),
            (facts(breadth=0.4), "cascade.uniform_share=0.5"),
            (facts(duplicates=0.2), "look at the pairs"),
        ):
            (caution,) = advice.advise(found, RECIPE, []).cautions
            self.assertIn(words, caution)
        for found in (
            facts(),
            facts(covered=2 / 3 + 0.035),
            facts(covered=2 / 3 + 0.035, num_tests=800),
            facts(covered=2 / 3 - 0.04, num_tests=640),
        ):
            self.assertEmpty(advice.advise(found, RECIPE, []).cautions)
        # 2 sqrt(0.8 x 0.2 / 400).
        error = facts(covered=0.8, num_tests=400).covered_error
        self.assertAllClose(error, 0.04)
        self.assertIsNone(facts(covered=0.8).covered_error)

    def test_settings_fit_the_rest_of_a_recipe(self):
        def advised(found, **changes):
            recipe = dataclasses.replace(RECIPE, **changes)
            data = recipe.data
            advised = advice.advise(found, recipe, [])
            self.assertEmpty(advised.cautions)
            self.assertEqual(data, recipe.data)
            return advised.settings

        together = config.DistributionConfig(steps_per_execution=8)
        settings = advised(facts(), distribution=together)
        self.assertIn("bootstrap.renew_at=104,200,400", settings)
        small = dataclasses.replace(RECIPE.data, super_batch_size=8)
        settings = advised(facts(), data=small)
        self.assertIn("cascade.num_chunks=8", settings)
        by_ops = dataclasses.replace(
            RECIPE.data, reader="ops", token_field="tokens"
        )
        settings = advised(facts(), data=by_ops)
        self.assertContainsSubset(
            ["data.reader=numpy", "data.token_field=none"], settings
        )
        self.assertNotIn("data.reader=numpy", advised(facts(0.9), data=by_ops))
        chosen = dataclasses.replace(RECIPE.data, manifest="chosen")
        for found in (facts(), facts(0.9)):
            self.assertIn("data.manifest=none", advised(found, data=chosen))

    def test_a_batch_repeats_no_curated_record(self):
        for count, rows in ((0, 64), (64, 64), (63, 32), (1, 1)):
            settings = advice.advise(
                facts(num_curated=count), RECIPE, []
            ).settings
            self.assertIn(f"bootstrap.curated_rows={rows}", settings)
        settings = advice.advise(
            facts(covered=0.9, num_curated=20), RECIPE, []
        ).settings
        self.assertIn("data.curated_rows=16", settings)

    def test_curated_rows_divide_the_batch(self):
        for size, rows in ((100, 10), (63, 7), (64, 8), (7, 1)):
            data = config.DataConfig(train=("pool",), super_batch_size=size)
            recipe = dataclasses.replace(RECIPE, data=data)
            found = advice.advise(facts(power=0.0), recipe, [])
            self.assertIn(f"data.curated_rows={rows}", found.settings)
            self.assertEmpty(found.cautions)

    def test_a_pool_smaller_than_a_hyper_batch_is_said(self):
        for size, words in ((192, []), (191, ["fewer records than a hyper"])):
            cautions = advice.advise(facts(size=size), RECIPE, []).cautions
            self.assertLen(cautions, len(words))
            for caution, word in zip(cautions, words, strict=True):
                self.assertIn(word, caution)

    def test_words_lose_their_marks(self):
        words = "a [cascade](cascade.md) of `K = 3`, [sets](x.md#a)"
        self.assertEqual(
            decision_table.plain(words), "a cascade of K = 3, sets"
        )


class ExpectationTest(tf.test.TestCase):
    def expect(self, cells, noise):
        return evidence.expect(
            cells, "bootstrapped", 1.0 - noise, "over_uniform"
        )

    def test_logarithms_are_linear_between_levels(self):
        # Halves, quarters and eighths match.
        cells = [cell(0.5, gain=1.0), cell(0.875, gain=4.0), cell(0, "other")]
        (found,) = self.expect(cells, 0.75)
        self.assertAllClose([*found.value], (2.0, 1.8, 2.4))
        self.assertEqual(found.levels, (0.5, 0.875))
        self.assertTrue(found.is_inside)

    def test_the_nearest_line_is_taken(self):
        cells = [
            cell(noise, gain=gain)
            for noise, gain in ((0.5, 1.0), (0.75, 1.0), (0.875, 4.0))
        ]
        for noise, gain in ((0.6, 1.0), (1 - 2**-2.5, 2.0)):
            (found,) = self.expect(cells, noise)
            self.assertAllClose(found.value.mean, gain)

    def test_beyond_the_levels_lines_go_on_for_a_factor_of_two(self):
        cells = [cell(0.5, gain=1.0), cell(0.75, gain=2.0)]
        for noise, gain in (
            *((0.875, 4.0), (0.99, 4.0), (1.0, 4.0)),
            *((1 - 2**-0.5, 2**-0.5), (0.0, 0.5)),
        ):
            (found,) = self.expect(cells, noise)
            self.assertAllClose(found.value.mean, gain, 1e-3)
            self.assertFalse(found.is_inside)
        (found,) = self.expect(cells[:1], 0.0)
        self.assertAllClose(found.value.mean, 1.0)

    def test_lengths_are_apart_and_what_was_not_measured_is_left_out(self):
        cells = [
            cell(0.3, steps=2000, gain=1.0),
            cell(0.3, gain=2.0),
            cell(0.7, steps=3000, over_uniform=None),
            cell(0.7, over_uniform={"mean": 4.0, "low": None, "high": 5.0}),
        ]
        short, long = self.expect(cells, 0.7)
        self.assertEqual((short.steps, long.steps), (1000, 2000))
        self.assertAllClose([*short.value], (4.0, 4.0, 5.0))
        self.assertAllClose(long.value.mean, 1.0)
        self.assertEmpty(self.expect([], 0.5))

    def test_a_method_that_is_expected_to_lose_is_not_advised(self):
        for gain, expected in ((0.99, "clean"), (1.01, "bootstrapped")):
            cells = [cell(noise, gain=gain) for noise in (0.5, 0.9)]
            found = advice.advise(facts(), RECIPE, cells)
            self.assertEqual(found.row.name, expected)
        # Only where it was measured around this share.
        found = advice.advise(facts(), RECIPE, [cell(0.5, gain=0.5)])
        self.assertEqual(found.row.name, "bootstrapped")

    def test_the_next_row_is_advised_where_the_first_is_expected_to_lose(self):
        found = facts(is_quick=False)
        cells = [cell(0.7, "renewed", gain=0.9)]
        self.assertEqual(
            advice.advise(found, RECIPE, cells).row.name, "bootstrapped"
        )
        # The reference is there: its training does not count.
        (given,) = (
            one._replace(over_uniform_given_reference={"mean": 1.1} | ends)
            for one in cells
            for ends in [{"low": 1.05, "high": 1.2}]
        )
        advised = advice.advise(found, RECIPE, [given])
        self.assertEqual(advised.row.name, "reference")
        self.assertEqual(advised.expected[0].value.mean, 1.1)

    def test_what_was_not_measured_is_expected_to_bootstrap(self):
        # Of several learners the first is a bootstrapped run, whatever the
        # others gain.
        for found, name in (
            (facts(learners=2), "several"),
            (facts(is_quick=False), "reference"),
        ):
            for gain, expected in ((0.9, "clean"), (1.1, name)):
                cells = [cell(0.7, gain=gain), cell(0.3, "second")]
                row = advice.advise(found, RECIPE, cells).row
                self.assertEqual(row.name, expected)
        cells = [cell(0.7, gain=0.9), cell(0.7, "second", gain=3.0)]
        row = advice.advise(facts(learners=2), RECIPE, cells).row
        self.assertEqual(row.name, "clean")
        # A given reference has been measured: a bootstrapped run is no reason.
        cells = [cell(0.7, gain=0.9), cell(0.7, "renewed", gain=1.1)]
        row = advice.advise(facts(is_quick=False), RECIPE, cells).row
        self.assertEqual(row.name, "reference")

    def test_intervals_cover_those_of_the_matched_share(self):
        # The gain doubles from a half to a quarter, and is 2 at a quarter.
        cells = [cell(0.5, gain=1.0), cell(0.75, gain=2.0)]
        found = facts(0.25)._replace(matched=Estimate(0.25, 0.25, 0.5))
        advised = advice.advise(found, RECIPE, cells)
        (one,) = advised.expected
        self.assertAllClose([*one.value], (2.0, 0.9, 2.4))
        self.assertIn("expected score ratio goes below 1", advised.cautions[-1])
        certain = facts(0.25)._replace(matched=Estimate(0.25, 0.25, 0.25))
        advised = advice.advise(certain, RECIPE, cells)
        self.assertAllClose([*advised.expected[0].value], (2.0, 1.8, 2.4))
        self.assertEmpty(advised.cautions)

    def test_a_verdict_that_turns_within_the_interval_is_said(self):
        cells = [cell(0.5, gain=0.9), cell(0.75, gain=1.8)]
        for share, low, high, verdict, turns in (
            (0.45, 0.4, 0.5, True, True),
            (0.3, 0.28, 0.32, True, False),
            (0.49, 0.4, 0.5, False, True),
            (0.49, 0.485, 0.5, False, False),
            (0.75, 0.74, 0.85, True, True),
            (0.9, 0.75, 1.0, False, True),
        ):
            found = facts(share)._replace(matched=Estimate(share, low, high))
            advised = advice.advise(found, RECIPE, cells)
            self.assertEqual(advised.row.selects, verdict, share)
            said = [words for words in advised.cautions if "changes" in words]
            self.assertLen(said, turns, share)

    def test_the_shortest_and_the_longest_runs_are_shown_and_an_oracle(self):
        cells = [cell(0.7, steps=steps) for steps in (1000, 2000, 3000)]
        cells[1] = cells[1]._replace(over_target=cells[1].score)
        cells.append(cell(0.7, "oracle", 700))
        found = advice.advise(facts(), RECIPE, cells).expected
        self.assertEqual(
            [(one.method, one.steps, one.measure) for one in found],
            [
                ("bootstrapped", 1000, "over_uniform"),
                ("bootstrapped", 3000, "over_uniform"),
                ("bootstrapped", 2000, "over_target"),
                ("oracle", 700, "over_uniform"),
            ],
        )
        for share, count in ((0.35, 4), (0.36, 0), (0.8, 0)):
            found = advice.advise(facts(share), RECIPE, cells).expected
            self.assertLen(found, count)

    def test_the_evidence_is_what_the_package_carries(self):
        content = json.loads(evidence.FILE.read_text("utf-8"))["cells"]
        cells = evidence.cells()
        self.assertLen(cells, len(content))
        self.assertBetween(evidence.accuracy().cells, 0, len(cells))
        methods = {one.method for one in cells}
        self.assertContainsSubset({"uniform", "bootstrapped"}, methods)


if __name__ == "__main__":
    tf.test.main()

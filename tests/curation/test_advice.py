"""Advice: the numbers that rules read, and the rules that apply to them."""

import tensorflow as tf

from jest_tf.curation import advice
from jest_tf.curation.estimates import Estimate


def facts(share=0.3, power=0.5, **changes):
    """Facts of a pool whose reference has a share of the room above chance."""
    found = advice.Facts(
        Estimate(share, share - 0.02, share + 0.02), {}, reference="runs/r"
    )
    room = found.perfect - share
    return found._replace(
        precision={found.candidates: share + power * room}
    )._replace(**changes)


class FactsTest(tf.test.TestCase):
    def test_the_candidates_are_as_many_as_hold_one_matched_pair(self):
        for share, candidates in (
            *((0.9, 2), (0.5, 2), (0.34, 3), (0.2, 5), (0.01, 10)),
            (0.0, 10),
        ):
            self.assertEqual(facts(share).candidates, candidates)

    def test_power_is_of_the_room_between_chance_and_a_perfect_choice(self):
        for power in (0.0, 0.4, 1.0):
            for share in (0.1, 0.3, 0.7):
                self.assertAllClose(facts(share, power).power, power)
        self.assertEqual(facts(1.0).power, 0.0)

    def test_the_covered_share_has_two_standard_errors(self):
        # 2 sqrt(0.8 x 0.2 / 400).
        found = facts(covered=0.8, num_tests=400)
        self.assertAllClose(found.covered_error, 0.04)
        self.assertIsNone(facts().covered_error)


class RulesTest(tf.test.TestCase):
    def check(self, found, *rules):
        self.assertEqual([*advice.advise(found)], [*rules])

    def test_one_rule_says_what_becomes_of_a_stage(self):
        for found, *rules in (
            (facts(), "stage", "renewal"),
            (facts(advice.CLEAN), "clean"),
            (facts(0.99, power=0.0), "clean"),
            (facts(advice.CLEAN - 0.01), "stage", "mild", "renewal"),
            (facts(advice.MOST), "stage", "mild", "renewal"),
            (facts(power=0.9 * advice.LEAST_POWER), "weak"),
            (facts(power=1.1 * advice.LEAST_POWER), "stage", "renewal"),
        ):
            self.check(found, *rules)

    def test_a_given_reference_is_kept_and_distilled(self):
        self.check(facts(is_given=True), "stage", "distillation")
        self.check(facts(0.9, is_given=True), "clean", "distillation")
        # It hardly knows what to teach.
        self.check(facts(power=0.0, is_given=True), "weak")
        tests = {"covered": 0.9, "num_tests": 400}
        self.check(
            facts(is_given=True, **tests), "stage", "covered", "distillation"
        )
        for found in (
            *(facts(share, is_given=True) for share in (0.3, 0.9)),
            facts(power=0.0, is_given=True),
        ):
            self.assertIn("`runs/r`", " ".join(advice.advise(found).values()))

    def test_curated_rows_replace_a_stage_by_a_quick_reference(self):
        self.check(facts(covered=0.9, num_tests=400), "covered")
        self.check(facts(covered=0.5, num_tests=400), "stage", "renewal")

    def test_what_is_wrong_with_the_sets_is_said(self):
        for found, rule in (
            (facts(breadth=0.9 * advice.NARROW), "narrow"),
            (facts(knows_pool=True), "known_pool"),
            (facts(apart=advice.APART), "apart"),
        ):
            self.check(found, "stage", "renewal", rule)
        # There is no choice to be narrow.
        self.check(facts(0.9, breadth=0.4), "clean")

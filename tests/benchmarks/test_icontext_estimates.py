"""IconText's check of the advice: cells, levels left out, verdicts."""

import json
import pathlib
import tempfile

import tensorflow as tf

from benchmarks.icontext import advice, estimates, results
from jest_tf.curation import decision_table, evidence


def number(mean):
    return {"mean": mean, "low": 0.9 * mean, "high": 1.1 * mean}


def cell(noise, gain, method="bootstrapped", steps=1400):
    values = [number(0.1), None, number(gain), number(2.0 * gain), None]
    return evidence.Cell(noise, 1.0 - noise, method, steps, 1, "val", *values)


def level(noise, share=None):
    share = 1.0 - noise if share is None else share
    precision = {
        str(factor): min(1.0, share * factor) for factor in range(2, 11)
    }
    return {
        "noise": noise,
        "matched": {"mean": share, "low": share, "high": share},
        "labelled_matched": 1.0 - noise,
        "near_duplicates": 0.01,
        "repeated": 0.07 * noise,
        "precision": precision,
        "labelled_precision": precision,
        "apart": 0.5,
    }


def check(cells, *noises):
    return advice.check(cells, {noise: level(noise) for noise in noises})


class FolderTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)

    def write(self, name, noise=0.7, **scores):
        """A summary of one run of each method, of this score."""
        rows = [
            {
                "noise": noise,
                "method": method,
                "steps": 1400,
                "seeds": 1,
                "score": number(score),
                "lead": None,
            }
            for method, score in scores.items()
        ]
        bill = {
            "over_uniform": number(2.0),
            "over_uniform_given_reference": number(3.0),
            "over_target": None,
        }
        content = {"rows": rows, "bills": [bill] * len(rows), "targets": []}
        (self.folder / name).write_text(json.dumps(content))


class EvidenceTest(FolderTestCase):
    def test_tests_come_before_validation(self):
        self.write("summary.json", uniform=0.1)
        self.write("validation.json", uniform=0.2, oracle=0.3)
        found = advice.measured(self.folder)
        self.assertEqual(
            [(one.method, one.split, one.score["mean"]) for one in found],
            [("oracle", "val", 0.3), ("uniform", "test", 0.1)],
        )

    def test_a_level_of_short_uniform_runs_has_no_best_end(self):
        line = {"method": "oracle", "steps": 1400, "seeds": 1, "lead": None}
        line["score"] = number(0.1)
        bill = {
            "over_uniform": number(2.0),
            "over_uniform_given_reference": number(2.5),
            "over_target": number(1.5),
        }
        content = {
            "rows": [line | {"noise": noise} for noise in (0.5, 0.7)],
            "bills": [bill, bill],
            "targets": [
                {"noise": noise, "steps": steps}
                for noise, steps in ((0.5, 2250), (0.7, 18000))
            ],
        }
        (self.folder / "summary.json").write_text(json.dumps(content))
        short, whole = advice.measured(self.folder)
        self.assertEqual(
            (short.over_uniform, short.over_target), (number(2.0), None)
        )
        self.assertEqual(whole.over_target, number(1.5))

    def test_a_trial_of_a_setting_is_no_evidence(self):
        self.write("validation.json", uniform_slow=0.1, bootstrapped=0.2)
        self.assertEqual(
            [one.method for one in advice.measured(self.folder)],
            ["bootstrapped"],
        )

    def test_the_package_carries_the_cells_of_the_results(self):
        self.assertEqual(
            json.loads(evidence.FILE.read_text()),
            advice.evidence(results.FOLDER),
            "python -m benchmarks.icontext.advice evidence",
        )


class CheckTest(FolderTestCase):
    def test_a_level_is_expected_from_the_others_alone(self):
        cells = [cell(0.5, 1.0), cell(0.75, 9.0), cell(0.875, 4.0)]
        found = check(cells, 0.5, 0.75, 0.875)
        # Lines through the two others: 9 and 4 back to 20.25, 1 and 4 between
        # which is 2, 1 and 9 on to 81. All in logarithms, to three digits.
        expected = [miss.expected for miss in found.misses]
        self.assertAllClose(expected, [20.25, 2.0, 81.0], 1e-3)
        self.assertAllClose([one.measured for one in found.misses], [1, 9, 4])
        # Of both ends nothing is told.
        self.assertEqual(
            [one.is_told for one in found.misses], [False, True, False]
        )
        self.assertIsNone(found.rank_correlation())
        # Too much by 20.25 is as bad as too little, and the first is taken.
        self.assertEqual(found.worst(is_told=False).cell.noise, 0.5)
        self.assertEqual([*found.accuracy()], [1, None, 4.5])
        page = found.render()
        self.assertIn(
            "in the matched share: 1 cell of 1,400 steps, rank correlation -",
            page,
        )
        self.assertIn(
            "no expectation: 2 cells of 1,400 steps, rank correlation -,", page
        )

    def test_ranks_are_of_what_is_told(self):
        gains = (1.0, 9.0, 4.0, 16.0, 1.0)
        levels = (0.2, 0.4, 0.5, 0.6, 0.8)
        cells = [cell(*one) for one in zip(levels, gains, strict=True)]
        found = check(cells, *levels)
        self.assertLen(found.told(), 3)
        # Between 1 and 4, 9 and 16, 4 and 1 are 2.3, 12 and 2.9: ranks 1, 3, 2
        # where 9, 4 and 16 have 2, 1, 3.
        self.assertAllClose(found.rank_correlation(), -0.5)

    def test_the_estimated_noise_is_asked_for(self):
        cells = [cell(0.5, 1.0), cell(0.75, 1.0), cell(0.875, 4.0)]
        levels = {0.75: level(0.75, share=2**-2.5)}
        (miss,) = advice.check(cells, levels).misses
        self.assertAllClose(miss.expected, 2**1.5, 1e-3)

    def test_what_was_only_validated_is_left_out(self):
        tested = [
            cell(noise, gain)._replace(split="test")
            for noise, gain in ((0.5, 1.0), (0.75, 2.0), (0.875, 4.0))
        ]
        longer = [one._replace(split="val", steps=9) for one in tested]
        self.assertLen(check([*tested, *longer], 0.75).misses, 1)
        self.assertLen(check(longer, 0.75).misses, 1)

    def test_methods_and_lengths_are_not_mixed(self):
        cells = [
            *(cell(0.5, 1.0), cell(0.75, 2.0), cell(0.875, 4.0)),
            *(cell(0.75, 8.0, "oracle"), cell(0.75, 8.0, steps=9)),
            *(cell(noise, 1.0, "uniform") for noise in (0.5, 0.75)),
        ]
        (miss,) = check(cells, 0.75).misses
        self.assertEqual((miss.expected, miss.measured), (2.0, 2.0))

    def test_a_verdict_is_right_if_selecting_won_where_it_was_advised(self):
        cells = [cell(0.0, 0.8), cell(0.05, 1.3), cell(0.7, 3.0)]
        cells += [cell(0.5, 0.7), cell(0.5, 1.1, "renewed")]
        found = check(cells, 0.0, 0.05, 0.5, 0.7, 0.9)
        self.assertEqual(
            [
                (one.noise, one.row, one.gain, one.is_right)
                for one in found.verdicts
                if one.is_quick
            ],
            [
                # The best of those that select, where none is to.
                (0.0, "clean", number(0.8), True),
                (0.05, "clean", number(1.3), False),
                # That of the method that is advised.
                (0.5, "bootstrapped", number(0.7), False),
                (0.7, "bootstrapped", number(3.0), True),
                (0.9, "bootstrapped", None, None),
            ],
        )
        given = {
            one.noise: (one.row, one.gain, one.is_right)
            for one in found.verdicts
            if not one.is_quick
        }
        # The reference's training is not counted.
        self.assertEqual(given[0.5], ("reference", number(2.2), True))
        self.assertEqual(given[0.0][0], "clean")

    def test_an_interval_around_one_contradicts_no_verdict(self):
        cells = [cell(0.05, 1.05), cell(0.5, 0.95), cell(0.7, 0.8)]
        found = check(cells, 0.05, 0.5, 0.7)
        self.assertEqual(
            [one.is_right for one in found.verdicts if one.is_quick],
            [None, None, False],
        )
        page = found.render()
        self.assertIn("| 0.95 [0.85, 1.04] | undecided |", page)
        self.assertIn("| 0.80 [0.72, 0.88] | no |", page)

    def test_one_level_leaves_nothing_to_expect_from(self):
        found = check([cell(0.7, 3.0)], 0.7)
        self.assertEmpty(found.misses)
        self.assertIsNone(found.worst())
        self.assertIsNone(found.rank_correlation())
        self.assertIn("none can be left out", found.render())

    def test_the_files_have_what_was_found(self):
        self.write("validation.json", bootstrapped=0.2)
        levels = {"sample": 10, "levels": [level(0.7), level(0.0)]}
        (self.folder / "estimates.json").write_text(json.dumps(levels))
        advice.main(["check", "--results", str(self.folder)])
        content = json.loads((self.folder / "advice.json").read_text())
        verdicts = [
            (one["noise"], one["is_quick"], one["selects"], one["gain"])
            for one in content["verdicts"]
        ]
        self.assertEqual(
            verdicts,
            [
                (0.0, True, False, None),
                (0.0, False, False, None),
                (0.7, True, True, number(2.0)),
                (0.7, False, True, None),
            ],
        )
        page = (self.folder / "advice.md").read_text()
        self.assertIn(
            "| 70% | no | select (`bootstrapped`) | 2.00 [1.80, 2.20] | yes |",
            page,
        )
        out = self.folder / "evidence.json"
        arguments = ["--results", str(self.folder), "--out", str(out)]
        advice.main(["evidence", *arguments])
        content = json.loads(out.read_text())
        self.assertEqual(content["accuracy"]["cells"], 0)
        (found,) = content["cells"]
        self.assertEqual(found["over_uniform"], number(2.0))

    def test_without_estimates_there_is_nothing_to_check(self):
        with self.assertRaisesRegex(SystemExit, "estimates` first"):
            advice.main(["check", "--results", str(self.folder)])

    def test_the_block_has_estimates_beside_labels(self):
        content = {"sample": 10, "levels": [level(0.0), level(0.7)]}
        text = estimates.block(content)
        self.assertIn("| 70% | 0.30 | 0.30 [0.30, 0.30] | 0.90 / 0.90 |", text)
        self.assertIn("4.9% of the sample at", text)
        self.assertIn("finds 1.0%. Without added noise it finds 1.0%.", text)
        self.assertNotIn("emoji", text)
        content["emoji"] = {"covered": 0.8, "apart": 0.9, "advice": "covered"}
        content["emoji"] |= {"num_tests": 400, "may_be_covered": False}
        content["emoji"] |= {"covered_error": 0.04}
        text = estimates.block(content)
        self.assertIn(
            f"80% of the 400 validation pictures (the verdict needs "
            f"{decision_table.APART:.0%}; two standard errors are 4 points) "
            "and 90% of the",
            text,
        )
        self.assertIn("half curated rows and half pool", text)
        self.assertNotIn("within that error", text)
        content["emoji"]["may_be_covered"] = True
        self.assertIn("but within that error.", estimates.block(content))


if __name__ == "__main__":
    tf.test.main()

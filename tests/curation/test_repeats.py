"""Near-duplicates of a pool, against all cosines."""

import contextlib
import csv
import io
import os
from unittest import mock

import numpy as np
import pool_pairs
import test_survey

from jest_tf import cli, files
from jest_tf.curation import repeats, survey
from jest_tf.data.stores import manifest

NEAR = 0.999


class RepeatsTest(test_survey.KnownTestCase):
    def expected(self, images, is_pool):
        """Pairs of an image and another of the pool, by all cosines."""
        cosines = images @ self.images[0].T
        cosines[:, 1_998] = -1.0  # without an embedding
        if is_pool:
            cosines[1_998] = -1.0
            np.fill_diagonal(cosines, -1.0)
        else:
            cosines[98] = -1.0
        return {
            *zip(
                *map(np.ndarray.tolist, np.nonzero(cosines >= NEAR)),
                strict=True,
            )
        }

    def test_pairs_are_those_of_all_cosines(self):
        # Exactly, among embeddings of a byte a number, and projected ones.
        for exact, width in ((repeats._EXACT, 64), (500, 64), (500, 32)):
            report, indexing, comparing = (mock.Mock() for _ in range(3))
            with (
                mock.patch.object(repeats, "_EXACT", exact),
                mock.patch.object(repeats, "_WIDTH", width),
                mock.patch.object(survey, "_BLOCK", 700),
            ):
                found = repeats.find(
                    *(self.pool, NEAR, self.tests),
                    report=report,
                    indexing=indexing,
                    comparing=comparing,
                )
            self.assertEqual(indexing.call_args, mock.call(2_000, 2_000))
            self.assertEqual(comparing.call_args, mock.call(2_100, 2_100))
            blocks = [call.args for call in report.call_args_list]
            of = [queries is self.pool for queries, _ in blocks]
            self.assertEqual(of, [True] * 3 + [False])
            for is_pool, images in zip((True, False), self.images, strict=True):
                pairs = [
                    pair
                    for (_, (rows, others, cosines)), here in zip(
                        blocks, of, strict=True
                    )
                    if here == is_pool
                    for pair in zip(rows, others, cosines, strict=True)
                ]
                self.assertEqual(
                    {(int(row), int(other)) for row, other, _ in pairs},
                    self.expected(images, is_pool),
                )
                self.assertAllGreaterEqual([pair[2] for pair in pairs], NEAR)
            # The first of a group is kept, and no copy of a test.
            left_out = np.delete(np.arange(1_980, 2_000), 18)
            self.assertAllEqual(np.flatnonzero(found.left_out), left_out)

    def test_pool_and_tests_need_embeddings(self):
        pairs = pool_pairs.pairs(2, 1.0, 2)[:2]
        none = self.write("none", *pairs, invalid=[0, 1])
        for name, *sets in (
            ("pool", none, NEAR),
            ("tests", self.pool, NEAR, none),
        ):
            with self.assertRaisesRegex(
                ValueError, f"At least 1 record of the {name} must .*: 0$"
            ):
                repeats.find(*sets, report=mock.Mock())

    def test_few_embeddings_are_read_beside_those_of_pairs(self):
        image, text, _ = pool_pairs.pairs(1_000, 1.0, 5)
        # Copies of the first half: cosines of 0.9995, and of 0.95.
        noise = pool_pairs.pairs(500, 1.0, 6)[0]
        noise *= np.repeat([[0.03], [0.33]], 250, 0)
        image[500:] = pool_pairs.unit(image[:500] + noise)
        pool, report = self.write("close", image, text), mock.Mock()
        with (
            mock.patch.object(repeats, "_EXACT", 500),
            mock.patch.object(repeats, "_WIDTH", 32),
            mock.patch.object(survey, "read", wraps=survey.read) as read,
        ):
            repeats.find(pool, NEAR, report=report)
        _, (rows, others, _) = report.call_args.args
        of = np.argsort(rows)
        self.assertAllEqual(rows[of], [*range(250), *range(500, 750)])
        self.assertAllEqual(others[of], [*range(500, 750), *range(250)])
        self.assertBetween(len(read.call_args.args[1]), 500, 505)

    def test_a_group_is_what_pairs_link(self):
        """Block by block; against a power of the graph."""
        pairs = np.random.default_rng(0).integers(0, 60, [8, 5, 2])
        groups, linked = np.arange(60), np.eye(60, dtype=int)
        for rows, others in pairs.transpose(0, 2, 1):
            repeats._link(groups, rows, others)
            linked[rows, others] = linked[others, rows] = 1
        for _ in range(6):  # paths of up to 64 pairs
            linked = (linked @ linked > 0).astype(int)
        self.assertAllEqual(
            repeats._firsts(groups, np.arange(60)), linked.argmax(1)
        )

    def test_a_choice_leaves_them_out_and_lists_them(self):
        output = os.path.join(self.folder, "distinct")
        words = ["curate", "--data", self.path("pool"), "--output", output]
        words += ["--set", "loss=sigmoid", "stage.candidates=2"]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            self.assertEqual(
                cli.main(
                    [*words, "--distinct", f"{NEAR}"]
                    + ["--tests", self.path("tests")]
                ),
                0,
            )
        self.assertIn(
            "19 of 2,000 records are left out: near-duplicates, 9 of them of "
            f"the tests ({output}/near.csv)",
            said.getvalue(),
        )
        made = manifest.read(output, self.pool.store)
        self.assertStartsWith(made.made_by["left_out"], "19 records (")
        weights = made.weights
        self.assertEqual(weights[1_980:].sum(), 0.0)
        # Of the others, but for the one without an embedding, a half.
        self.assertAllClose(weights.sum(), 1_980 / 2, atol=1.0)
        with open(f"{output}/near.csv", encoding="utf-8") as file:
            rows = [*csv.DictReader(file)]
        of_tests = [row for row in rows if row["of"] == "tests"]
        self.assertEqual(
            {(int(row["row"]), int(row["pool_id"])) for row in of_tests},
            self.expected(self.images[1], False),
        )
        before = files.read_whole(f"{output}/near.csv")
        other = [*words, "--distinct", "0.9"]
        with contextlib.redirect_stderr(io.StringIO()) as said:
            self.assertEqual(cli.main(other), 1)
            with files.locked(f"{output}/.lock"):
                self.assertEqual(cli.main([*other, "--overwrite"]), 1)
            self.assertEqual(files.read_whole(f"{output}/near.csv"), before)
            self.assertEqual(cli.main([*words, "--tests", "x"]), 1)
            self.assertEqual(cli.main([*words, "--distinct", "2"]), 1)
        for message in (
            *("was made with other settings", "Another process is writing"),
            *("`--tests` needs `--distinct`", "`--distinct` must be in (0, 1]"),
        ):
            self.assertIn(message, said.getvalue())
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(cli.main([*words, "--overwrite"]), 0)
        self.assertFalse(files.is_file(f"{output}/near.csv"))

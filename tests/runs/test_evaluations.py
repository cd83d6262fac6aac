"""Evaluations in training: when, once a step, and what is written."""

import contextlib
import io
import tempfile
import types
from unittest import mock

import numpy as np
import tensorflow as tf
from evaluation_cases import ROWS, Oracle, number_of, write_shard

from jest_tf import config, evaluation
from jest_tf.runs import directory, evaluations


class EvaluationTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.get_temp_dir()
        path = f"{self.folder}/some.tfrecord"
        write_shard(path, ROWS)
        self.config = config.TrainConfig(
            evaluation=config.EvaluationConfig((path,))
        )
        self.logged = {}

    def make(self, every_steps=None, **settings):
        return evaluations.Evaluation(
            evaluation.open_stores(self.config.evaluation.named),
            evaluation.Encoder(Oracle(), number_of, 2),
            self.folder,
            every_steps=every_steps,
            report=self.logged.__setitem__,
            **{"costs": lambda step: {}} | settings,
        )

    def fit(self, callback, steps):
        """Calls the callback as `fit` does."""
        callback.set_model(types.SimpleNamespace())
        callback.on_train_begin()
        for batch in range(steps):
            callback.on_train_batch_begin(batch)
            callback.on_train_batch_end(batch)
        callback.on_train_end()

    def rows(self):
        return directory.read_rows(self.folder, directory.EVALUATION_FILE)

    def steps_written(self):
        return [row["step"] for row in self.rows()]

    def test_it_evaluates_every_so_many_steps_and_at_the_end(self):
        for settings, steps, expected in (
            # The start is evaluated once, as it is.
            ({"from_start": True, "every_steps": 2}, 3, [0, 2, 3]),
            ({"from_start": True, "start_step": 2}, 1, [3]),
            ({"every_steps": 2}, 5, [2, 4, 5]),
            ({}, 5, [5]),
            # A continued run counts on, and makes up for the step it starts
            # at, or for the last step of the `fit` before.
            ({"every_steps": 4, "start_step": 5}, 5, [8, 10]),
            ({"every_steps": 4, "start_step": 4}, 2, [4, 6]),
            ({"start_step": 3, "follows": True}, 2, [3, 5]),
        ):
            self.logged.clear()
            self.folder = self.enterContext(tempfile.TemporaryDirectory())
            self.fit(self.make(**settings), steps)
            self.assertEqual(list(self.logged), expected, settings)
        # Image 4 alone is wrong, see EvaluateStoreTest.
        self.fit(self.make(start_step=4), 1)
        self.assertAllClose(
            self.logged[5]["eval/some/image_to_text/recall@1"], 4 / 5
        )

    def test_measures_are_said_beside_those_of_a_blind_model(self):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            self.fit(self.make(), 1)
        measures = self.logged[1]
        # Five images find their captions among four; of these the first has
        # two images. There are two classes.
        to_image = [np.mean([2 / 5, 1 / 5, 1 / 5, 1 / 5])]
        # The first of two among five comes after 0 to 3 others.
        first = (4 / 1 + 3 / 2 + 2 / 3 + 1 / 4) / 10
        others = np.mean(1 / np.arange(1, 6))
        to_image.append((first + 3 * others) / 4)
        chances = [1 / 4, np.mean(1 / np.arange(1, 5)), *to_image, 1 / 2]
        told = [
            f"{title} {measures[f'eval/some/{name}']:.3f} (chance {chance:.3f})"
            for (name, title), chance in zip(
                evaluations.HEADLINES, chances, strict=True
            )
        ]
        self.assertIn(f"step 1  some: {', '.join(told)}\n", said.getvalue())
        # A page, which has the rows alone, says the measures.
        shown = evaluations.describe("some", measures)
        self.assertEqual(shown.count(", "), 4)
        self.assertNotIn("chance", shown)

    def test_changes_are_told_from_the_start(self):
        names = "zero_shot/accuracy@1", "text_to_image/mrr", "image_to_text/mrr"
        rows = [
            {"step": step, "flops/step": 1}
            | {f"eval/some/{name}": value for name in names}
            for step, value in ((0, 0.25), (5, 0.5), (9, 0.125))
        ]
        for row in rows:
            row["eval/classes/zero_shot/accuracy@1"] = 2 * row["step"] / 18
        self.assertEqual(
            evaluations.summarize(rows, {}),
            "from the start to the end eval/some/image_to_text/mrr 0.250 to "
            "0.125, "
            "eval/classes/zero_shot/accuracy@1 0.000 to 1.000",
        )
        measures = {"eval/a/zero_shot/accuracy@1": 1.0, "eval/a/x/mrr": 0.5}
        for later in (rows[1:], []):
            found = evaluations.summarize(later, measures)
            self.assertEqual(found, "eval/a/x/mrr 0.5000")
        self.assertEqual(evaluations.summarize([], {}), "")

    def test_what_is_written_is_not_evaluated_again(self):
        callback = self.make(every_steps=2)
        self.fit(callback, 4)
        first = callback.run(4)
        self.assertEqual(self.steps_written(), [2, 4])
        self.logged.clear()
        again = self.make(every_steps=2, start_step=4)
        self.fit(again, 2)
        self.assertEqual(self.steps_written(), [2, 4, 6])
        self.assertEqual(list(self.logged), [6])
        self.assertEqual(again.run(4), first)

    def test_a_line_tells_what_the_steps_have_cost(self):
        costs = mock.Mock(side_effect=lambda step: {"flops/step": 10 * step})
        callback = self.make(every_steps=2, costs=costs)
        self.fit(callback, 3)
        self.assertEqual([row["flops/step"] for row in self.rows()], [20, 30])
        self.assertGreater(callback.seconds, 0.0)
        # Costs are no measures, neither now nor when they are read back.
        again = self.make(costs=costs)
        for row in (callback.run(3), again.run(3), self.logged[3]):
            self.assertNotIn("flops/step", row)
            self.assertLen(row, 11)

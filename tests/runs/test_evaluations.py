"""Evaluations in training: when, once a step, and what is written."""

import os
from unittest import mock

import keras
import tensorflow as tf
from evaluation_cases import ROWS, Oracle, number_of, write_shard

from jest_tf import evaluation
from jest_tf.data import stores as stores_lib
from jest_tf.runs import directory, evaluations


class EvaluationTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.get_temp_dir()
        path = f"{self.folder}/some.tfrecord"
        write_shard(path, ROWS)
        self.stores = {"some": stores_lib.open_store(path)}
        self.logged = {}

    def make(self, every_steps=None, **settings):
        return evaluations.Evaluation(
            {
                name: evaluation.StoreEvaluation(
                    Oracle(), store, tokenizer=number_of, image_size=2
                )
                for name, store in self.stores.items()
            },
            self.folder,
            every_steps=every_steps,
            report=self.logged.__setitem__,
            **{"costs": lambda step: {}} | settings,
        )

    def fit(self, callback, steps, **settings):
        """Any model will do: the callback evaluates the learner it has."""
        model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
        model.compile(optimizer="sgd", loss="mse")
        data = tf.data.Dataset.from_tensors((tf.ones([1, 1]), tf.ones([1])))
        model.fit(
            data.repeat(),
            steps_per_epoch=steps,
            shuffle=False,
            verbose=0,
            callbacks=[callback],
            **settings,
        )

    def rows(self):
        return directory.read_rows(self.folder, directory.EVALUATION_FILE)

    def steps_written(self):
        return [row["step"] for row in self.rows()]

    def test_it_evaluates_every_so_many_steps_and_at_the_end(self):
        self.fit(self.make(every_steps=2), 5)
        self.assertEqual(list(self.logged), [2, 4, 5])
        # Image 4 alone is wrong, see EvaluateStoreTest.
        self.assertAllClose(
            self.logged[5]["eval/some/image_to_text/recall@1"], 4 / 5
        )

    def test_it_counts_over_epochs(self):
        self.fit(self.make(every_steps=2), 3, epochs=2)
        self.assertEqual(list(self.logged), [2, 4, 6])

    def test_without_an_interval_only_the_end_is_evaluated(self):
        self.fit(self.make(), 5)
        self.assertEqual(list(self.logged), [5])

    def test_a_continued_run_counts_on(self):
        self.fit(self.make(every_steps=4, start_step=5), 5)
        self.assertEqual(list(self.logged), [8, 10])

    def test_a_continued_run_makes_up_for_the_step_it_starts_at(self):
        self.fit(self.make(every_steps=4, start_step=4), 2)
        self.assertEqual(list(self.logged), [4, 6])

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
        for one in (callback.run(3), again.run(3), self.logged[3]):
            self.assertNotIn("flops/step", one)
            self.assertLen(one, 10)

    def test_no_stores_measure_nothing(self):
        self.stores = {}
        callback = self.make(every_steps=1)
        self.assertEqual(callback.run(3), {})
        self.assertEqual(self.logged, {})
        self.assertNotIn(directory.EVALUATION_FILE, os.listdir(self.folder))


if __name__ == "__main__":
    tf.test.main()

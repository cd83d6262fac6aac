"""The step benchmark: its arithmetic, its turns, its tables, a real step."""

from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import bench_step
from jest_tf import config as config_lib


class BenchStepTest(tf.test.TestCase):
    def test_steps_take_turns_and_do_not_time_their_tracing(self):
        order = []

        class Step:
            def __init__(self, name):
                self.name = name

            def run(self):
                order.append(self.name)
                return len(order)

        seconds = bench_step.take_turns([Step("a"), Step("b")], 3)
        self.assertEqual("".join(order), "abab" + "ababab")
        self.assertEqual(seconds, [[5, 7, 9], [6, 8, 10]])

    @pytest.mark.slow
    def test_a_real_step_trains(self):
        selection = config_lib.SelectionConfig(
            4, stages=(config_lib.Stage(2, num_chunks=2),)
        )
        step = bench_step.Step(bench_step._QUICK, 8, selection)
        with mock.patch.object(
            step, "_function", wraps=step._function
        ) as function:
            seconds = step.run()
        function.assert_called_once()
        self.assertGreater(seconds, 0.0)
        losses = [
            float(step._function(step._batches)["loss"]) for _ in range(3)
        ]
        self.assertTrue(np.all(np.isfinite(losses)))
        # The mean since the start moves, as steps differ.
        self.assertLen(set(losses), 3)

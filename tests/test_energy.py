"""The example of a callback that measures energy, with a fake of codecarbon."""

import json
import os
import sys
import types
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from examples import energy


class Tracker:
    """Of codecarbon's tracker, what is used; task n takes n watt hours."""

    def __init__(self, **options):
        self.options = options
        self.tasks, self.is_active = 0, False

    def start_task(self):
        assert not self.is_active
        self.tasks, self.is_active = self.tasks + 1, True

    def stop_task(self):
        assert self.is_active
        self.is_active = False
        return types.SimpleNamespace(energy_consumed=self.tasks / 1000)


class EnergyTest(tf.test.TestCase):
    def test_evaluations_and_the_last_step_have_a_row_in_joules(self):
        module = types.SimpleNamespace(OfflineEmissionsTracker=Tracker)
        workdir = self.get_temp_dir()
        with mock.patch.dict(sys.modules, {"codecarbon": module}):
            callback = energy.measure(None, workdir)
        tracker = callback._tracker
        self.assertFalse(tracker.options["save_to_file"])

        def evaluate(batch, logs):
            if batch == 1:
                callback.on_evaluation(2, {})

        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(
            np.ones([3, 1]),
            np.ones([3, 1]),
            batch_size=1,
            verbose=0,
            callbacks=[
                callback,
                keras.callbacks.LambdaCallback(on_train_batch_end=evaluate),
            ],
        )
        callback.on_evaluation(3, {})  # the last, after `fit`
        self.assertFalse(tracker.is_active)
        with open(os.path.join(workdir, "energy.jsonl")) as file:
            rows = [json.loads(line) for line in file]
        # A watt hour is 3,600 joules.
        self.assertEqual(
            rows,
            [{"step": 2, "joules": 3600.0}, {"step": 3, "joules": 7200.0}],
        )

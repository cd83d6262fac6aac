"""A callback for recipes that measures energy; `pip install codecarbon` first.

    jest-tf train --config configs/quickstart_jest.py --trust \
        --workdir runs/measured --set callbacks=examples.energy:measure

It measures the whole machine. codecarbon reads the counters of GPUs and
processors, and estimates a processor without counters from its rated power. It
runs offline and sends nothing.
"""

import json
import os

import keras


def measure(config, workdir):
    """Adds a row to `energy.jsonl` at each evaluation and after the last step.

    A row has the step, and the joules since the row before or since the process
    began to train. Their sum is the energy of the run, except for its last
    evaluation and for the time of a killed process after its last row.
    """
    del config
    import codecarbon

    tracker = codecarbon.OfflineEmissionsTracker(
        country_iso_code="USA",  # needed for carbon, which is not logged
        allow_multiple_runs=True,
        log_level="error",
        save_to_file=False,
    )
    return Energy(os.path.join(workdir, "energy.jsonl"), tracker)


class Energy(keras.callbacks.Callback):
    """Writes the energy that a tracker of codecarbon measures to `path`."""

    def __init__(self, path, tracker):
        super().__init__()
        self._path, self._tracker, self._trains = path, tracker, False

    def on_train_begin(self, logs=None):
        """Begins to measure."""
        self._trains = True
        self._tracker.start_task()

    def on_evaluation(self, step, measures):
        """Writes a row, except after the last step, which already has a row."""
        if self._trains:
            self._write(step)
            self._tracker.start_task()

    def on_train_end(self, logs=None):
        """Writes the last row."""
        self._trains = False
        self._write(int(self.model.optimizer.iterations))

    def _write(self, step):
        kilowatt_hours = self._tracker.stop_task().energy_consumed
        row = {"step": step, "joules": 3.6e6 * kilowatt_hours}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

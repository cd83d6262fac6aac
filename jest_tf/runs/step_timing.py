"""Seconds of steps and of waiting for input."""

import time
from collections.abc import Hashable

import numpy as np
import tensorflow as tf


class InputWait:
    """Sums up the `seconds` for which a dataset's consumer was blocked."""

    def __init__(self):
        self.seconds = 0.0
        self._asked_at = 0.0

    def watch(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Returns the same dataset, timing the wait for each element.

        It must be iterated directly, under the default strategy: others fetch
        ahead, so the waiting of their threads would be counted.
        """

        def ask(_):
            return tf.numpy_function(self._ask, [], tf.bool)

        def get(asked, batch):
            del asked
            tf.numpy_function(self._get, [], tf.bool)
            return batch

        # A zip asks its inputs in order, on the consumer's thread; functions
        # with side effects are not run ahead of it.
        watched = tf.data.Dataset.zip(
            tf.data.Dataset.counter().map(ask), dataset
        ).map(get)
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        return watched.with_options(options)

    def _ask(self):
        self._asked_at = time.monotonic()
        return np.bool_(True)

    def _get(self):
        self.seconds += time.monotonic() - self._asked_at
        return np.bool_(True)


class StepTimes:
    """Seconds of steps and of waiting, since the last row and in total.

    The first step of each kind, which is traced, is left out. An `input_wait`
    of None omits waiting.
    """

    def __init__(self, input_wait: InputWait | None):
        self._input_wait = input_wait
        self._kinds = set()
        self._began = np.zeros(2)
        # Steps, their seconds, and the seconds waited: in total, and up to the
        # last row.
        self._sums, self._before = np.zeros(3), np.zeros(3)

    def begin(self) -> None:
        """Starts the clock of a step."""
        self._began = self._now()

    def end(self, kind: Hashable) -> bool:
        """Counts a step; returns whether its kind is new."""
        spent = self._now() - self._began
        if kind in self._kinds:
            self._sums += (1, *spent)
            return False
        self._kinds.add(kind)
        return True

    def since_last(self) -> dict[str, float]:
        """Returns `time/step_seconds` and the like since the last call."""
        values = self._values(self._sums - self._before)
        self._before = self._sums.copy()
        return values

    def total(self) -> dict[str, float]:
        """Returns the same values over all steps."""
        return self._values(self._sums)

    def _now(self):
        waited = self._input_wait.seconds if self._input_wait else 0.0
        return np.array([time.monotonic(), waited])

    def _values(self, sums):
        steps, spent, waited = sums
        if not steps:
            return {}
        values = {"time/step_seconds": round(spent / steps, 6)}
        if self._input_wait:
            values["time/input_wait_share"] = round(waited / spent, 6)
        return values

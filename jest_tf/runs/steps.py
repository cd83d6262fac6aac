"""The callbacks of a run: their base, which counts steps, and the user's."""

import keras

from jest_tf import config as config_lib
from jest_tf.config import imports


class StepCallback(keras.callbacks.Callback):
    """Counts the steps of a run, over epochs and executions of several steps.

    Attributes:
        step: steps done, from `start_step`.
        previous: steps done before the last execution.
    """

    def __init__(self, start_step: int = 0):
        super().__init__()
        self.step = self.previous = self._epoch_start = start_step

    def on_epoch_begin(self, epoch, logs=None):
        """Notes the epoch's first step, from which Keras counts."""
        self._epoch_start = self.step

    def on_train_batch_end(self, batch, logs=None):
        """Counts the steps of the execution."""
        self.previous, self.step = self.step, self._epoch_start + batch + 1

    def passed(self, every: int | None) -> bool:
        """Returns whether the last execution reached a multiple of `every`."""
        return bool(every) and self.step // every > self.previous // every


def named_callbacks(
    config: config_lib.TrainConfig, workdir: str
) -> list[keras.callbacks.Callback]:
    """Makes the callbacks of `config.callbacks`, for a run in `workdir`.

    A callback with a method `on_evaluation(step, measures)` gets the measures.

    Raises:
        ValueError: a name is not that of a function that returns a callback.
    """
    named = []
    for name in config.callbacks:
        callback = imports.load_function("callbacks", name)(config, workdir)
        if not isinstance(callback, keras.callbacks.Callback):
            raise ValueError(
                "`callbacks` must name functions that return a Keras callback. "
                f"Received: {callback!r}, of {name}"
            )
        named.append(callback)
    return named

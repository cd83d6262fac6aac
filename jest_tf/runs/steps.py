"""The callbacks of a run: their base, which counts steps, and the user's."""

import keras

from jest_tf import config as config_lib
from jest_tf.config import imports


class StepCallback(keras.callbacks.Callback):
    """Counts the steps of a run: `step` are done, `start_step` before `fit`."""

    def __init__(self, start_step: int = 0):
        super().__init__()
        self.step = start_step

    def on_train_batch_end(self, batch, logs=None):
        """Counts the step."""
        self.step += 1

    def is_due(self, every: int | None) -> bool:
        """Returns whether `every` divides the steps done."""
        return bool(every) and self.step % every == 0


def named_callbacks(
    config: config_lib.TrainConfig, workdir: str
) -> list[keras.callbacks.Callback]:
    """Makes the callbacks of `config.callbacks`, for a run in `workdir`.

    A callback with a method `on_evaluation(step, measures)` gets the measures.
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

"""The selection of the next step, under a schedule.

Steps of different kinds have different static shapes. So the kind is chosen
between executions, and each kind is compiled once, on first use.
"""

import keras
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import selection as selection_lib


class Schedule:
    """Chooses the selection of the next execution from scheduled `settings`."""

    def __init__(self, settings: config_lib.SelectionConfig):
        self._settings = settings
        self._next_step = None

    def restart(self) -> None:
        """Forgets the step; `next` reads it again."""
        self._next_step = None

    def next(
        self, iterations, num_steps: int, stopped_at: int | None
    ) -> config_lib.SelectionConfig:
        """Returns the selection of the next `num_steps` steps.

        `iterations`, the optimizer's counter, is read only after a `restart`.
        `stopped_at` is the first step that no longer selects, or None.
        """
        if not self._settings.is_scheduled:
            return self._settings
        if self._next_step is None:
            self._next_step = int(read(iterations))
        step = self._next_step
        self._next_step += num_steps
        if stopped_at is not None:
            return self._settings.stopped
        return self._settings.at(step)


def add_state(model: keras.Model) -> keras.Variable:
    """Adds the state of `passed` to a model's weights."""
    return model.add_weight(
        name="passed",
        shape=(2,),
        dtype="int32",
        # Consecutive steps in which the learner had passed; first step that no
        # longer selects, or -1.
        initializer=lambda shape, dtype: tf.constant([0, -1], dtype),
        trainable=False,
        aggregation="only_first_replica",
    )


def passed(
    state: tf.Tensor,
    draw: selection_lib.Draw,
    step: tf.Tensor,
    *,
    patience: int,
    num_steps: int,
) -> tf.Tensor:
    """Returns the stop state, int32 `[2]` (see `add_state`), after a step.

    The learner has passed if its loss on the uniform rows of `draw`, by
    learnability, is at most the reference's. After `patience` consecutive such
    steps, selection stops with the execution of `num_steps` steps.
    """
    count, stop = tf.unstack(state)
    count = tf.where(draw.uniform_score <= 0.0, count + 1, 0)
    is_due = (stop < 0) & (count >= patience)
    after = (step // num_steps + 1) * num_steps
    return tf.stack([count, tf.where(is_due, after, stop)])


def read(variable):
    """Reads a variable on any number of replicas, also while tracing."""
    with tf.init_scope():
        return tf.convert_to_tensor(variable.value).numpy()

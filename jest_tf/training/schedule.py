"""What each step of a run chooses its sub-batch by.

A step of another kind is another program of static shapes. So the kind of a
step is decided between executions, by the step's number and by one number of
the model's state, and every kind is compiled once, when it first comes.

Not here: the settings (`config.SelectionConfig`), the draw (selection.py).
"""

import keras
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import selection as selection_lib


class Schedule(keras.layers.Layer):
    """Tells the kind of the next step, and whether to stop selecting.

    It is a layer for its weight, which is saved and restored with those of the
    model that holds it; it has one with `stop_when_passed` alone.

    Args:
        settings: of the selection, with its schedule.
    """

    def __init__(self, settings: config_lib.SelectionConfig):
        super().__init__(name="schedule")
        self._settings = settings
        self._next_step = None
        self._passed = None
        if settings.stop_when_passed:
            # Steps in succession that passed; the step to stop at, or -1.
            self._passed = self.add_weight(
                name="passed",
                shape=(2,),
                dtype="int32",
                initializer=lambda shape, dtype: tf.constant([0, -1], dtype),
                trainable=False,
                aggregation="only_first_replica",
            )
        self.built = True

    @property
    def stopped_at(self) -> int | None:
        """The first step of those that select no more; None without any."""
        if self._passed is None:
            return None
        step = int(_read(self._passed)[1])
        return None if step < 0 else step

    def restart(self) -> None:
        """Forgets which step comes next, as others may have stepped since."""
        self._next_step = None

    def next(
        self, optimizer: keras.optimizers.Optimizer, num_steps: int
    ) -> config_lib.SelectionConfig:
        """What the next `num_steps` steps choose by; then come those after.

        Args:
            optimizer: has counted the steps so far.
            num_steps: of an execution.
        """
        if not self._settings.is_scheduled:
            return self._settings
        if self._next_step is None:
            self._next_step = int(_read(optimizer.iterations))
        step = self._next_step
        self._next_step += num_steps
        if self.stopped_at is not None:
            return self._settings.stopped
        return self._settings.at(step)

    def note(
        self, draw: selection_lib.Draw, step: tf.Tensor, num_steps: int
    ) -> None:
        """Takes up, in the step, whether the learner has passed the reference.

        It has where its loss on uniform rows is no more than the reference's.

        Args:
            draw: of the step, by learnability.
            step: int32, the step's number.
            num_steps: of an execution. They are of one kind, so that the
                rest of this one goes on selecting.
        """
        if self._passed is None:
            return
        count, stop = tf.unstack(self._passed.value)
        count = tf.where(draw.uniform_score <= 0.0, count + 1, 0)
        is_due = (stop < 0) & (count >= self._settings.stop_when_passed)
        after = (step // num_steps + 1) * num_steps
        self._passed.assign(tf.stack([count, tf.where(is_due, after, stop)]))


def _read(variable):
    """The value, on any number of replicas, while a graph is made too."""
    with tf.init_scope():
        return tf.convert_to_tensor(variable.value).numpy()

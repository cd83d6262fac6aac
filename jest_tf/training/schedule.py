"""The end of selection once the learner has passed the reference."""

import keras
import tensorflow as tf

from jest_tf import selection as selection_lib


def add_state(model: keras.Model) -> keras.Variable:
    """Adds to a model the weight that `update` changes, int32 `[2]`."""
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


def update(
    state: keras.Variable,
    draw: selection_lib.Draw,
    step: tf.Tensor,
    *,
    patience: int,
    num_steps: int,
) -> None:
    """Updates the state, int32 `[2]` (see `add_state`), after a step.

    The learner has passed if its loss on the uniform rows of `draw`, by
    learnability, is at most the reference's. After `patience` consecutive such
    steps, selection stops with the execution of `num_steps` steps.
    """
    count, stop = tf.unstack(state.value)
    count = tf.where(draw.uniform_score <= 0.0, count + 1, 0)
    is_due = (stop < 0) & (count >= patience)
    after = (step // num_steps + 1) * num_steps
    state.assign(tf.stack([count, tf.where(is_due, after, stop)]))


def read(variable):
    """Reads a variable on any number of replicas, also while tracing."""
    with tf.init_scope():
        return tf.convert_to_tensor(variable.value).numpy()

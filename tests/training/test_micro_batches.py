"""The gradient by micro-batches against that of the whole batch."""

import keras
import numpy as np
import tensorflow as tf
import tiny

from jest_tf import losses
from jest_tf.training.step import backend

ROWS = 12


def batch(rows=slice(None)):
    (arrays,) = tiny.super_batches(rows=ROWS)
    return {name: tf.constant(value[rows]) for name, value in arrays.items()}


def gradients(learner, size, loss=losses.sigmoid_loss, **more):
    found = backend.gradients(
        learner,
        batch(),
        lambda embeddings: {"loss": loss(embeddings)},
        micro_batch_size=size,
        **more,
    )
    return found.terms["loss"], found.embeddings, found.by_variable


def dense(tape, target, learner):
    found = tape.gradient(target, learner.trainable_variables)
    return [tf.convert_to_tensor(gradient) for gradient in found]


def regularized():
    start = keras.initializers.Orthogonal(seed=1)
    layer = keras.layers.Dense(
        6, "relu", kernel_initializer=start, kernel_regularizer="l2"
    )
    return tiny.learner(0, extra=[layer])


class Idle(keras.layers.Layer):
    """A layer with a weight that nothing uses."""

    def build(self, input_shape):
        self.idle = self.add_weight(shape=(2,), name="idle")

    def call(self, inputs):
        return inputs


class MicrobatchTest(tf.test.TestCase):
    def assert_equal(self, found, expected):
        """Each gradient, relative to its largest entry.

        Sums over the rows round by their order, which differs by processor.
        """
        self.assertEqual(len(found), len(expected))
        for ours, other in zip(found, expected, strict=True):
            scale = np.abs(other).max() or 1.0
            self.assertAllClose(ours / scale, other / scale, 0, 1e-5)

    def test_the_gradient_is_that_of_the_whole_batch(self):
        for loss in (losses.sigmoid_loss, losses.softmax_loss):
            learner = regularized()
            value, embeddings, expected = gradients(learner, None, loss)
            # The definition, with nothing of ours between.
            with tf.GradientTape() as tape:
                direct = loss(learner(batch(), training=True))
                total = direct + sum(learner.losses)
            self.assertAllClose(value, direct)
            self.assert_equal(expected, dense(tape, total, learner))
            for size in (1, 4):
                again, same, found = gradients(learner, size, loss)
                self.assertAllClose(again, value, 1e-6)
                for ours, other in zip(same, embeddings, strict=True):
                    self.assertAllClose(ours, other, 1e-6, 1e-6)
                self.assert_equal(found, expected)

    def test_xla_finds_what_eager_mode_finds(self):
        learner = tiny.learner(0)
        _, _, expected = gradients(learner, None)
        compiled = tf.function(gradients, jit_compile=True)
        self.assert_equal(compiled(learner, 4)[2], expected)

    def test_both_passes_drop_the_same_units(self):
        learner, twin = (
            tiny.learner(0, extra=[keras.layers.Dropout(0.5, seed=3)])
            for _ in range(2)
        )
        for _ in range(2):  # the second time from another state
            _, embeddings, found = gradients(learner, 4)
            with tf.GradientTape() as tape:
                parts = [
                    twin(batch(slice(i, i + 4)), training=True)
                    for i in (0, 4, 8)
                ]
                whole = parts[0]._replace(
                    image=tf.concat([part.image for part in parts], 0),
                    text=tf.concat([part.text for part in parts], 0),
                )
                loss = losses.sigmoid_loss(whole)
            self.assertAllClose(embeddings.image, whole.image)
            self.assert_equal(found, dense(tape, loss, twin))

    def test_batch_statistics_count_each_row_once(self):
        learner, twin = (
            tiny.learner(0, extra=[keras.layers.BatchNormalization()])
            for _ in range(2)
        )
        gradients(learner, 4)
        for start in (0, 4, 8):
            twin(batch(slice(start, start + 4)), training=True)
        states = learner.non_trainable_variables, twin.non_trainable_variables
        for ours, other in zip(*states, strict=True):
            self.assertAllClose(ours, other)

    def test_an_unused_variable_gets_no_gradient(self):
        learner = tiny.learner(0, extra=[Idle()])
        names = [variable.name for variable in learner.trainable_variables]
        for size in (None, 4):
            _, _, found = gradients(learner, size)
            for name, gradient in zip(names, found, strict=True):
                self.assertEqual(gradient is None, name == "idle", name)

    def test_the_loss_is_scaled_and_regularizers_are_shared_by_replicas(self):
        _, _, once = gradients(regularized(), None)
        _, _, shared = gradients(regularized(), None, num_replicas=4)
        self.assertNotAllClose(once[4], shared[4], 1e-4)
        eightfold = {"scale_loss": lambda loss: 8.0 * loss, "num_replicas": 4}
        for size in (None, 4):
            _, _, found = gradients(regularized(), size, **eightfold)
            self.assert_equal(found, [8.0 * gradient for gradient in shared])

"""A worker of several that train together: see test_distribution.

    TF_CONFIG=... python tests/worker.py FILE

trains as `train` does and writes what came of it to FILE.
"""

import sys

import keras
import numpy as np
import tensorflow as tf
import tiny

import jest_tf
from jest_tf import config, distribution, training
from jest_tf.data import augmentation
from jest_tf.distribution import keras_fit

SELECTION = config.SelectionConfig(8, stages=(config.Stage(2, num_chunks=2),))
STEPS, ROWS = 20, 16


class SGD(keras_fit.AggregateThenClip, keras.optimizers.SGD):
    """An optimizer as a user would write it."""


class Line(keras_fit.TrainerHooks, keras.Model):
    """y = w x with w = 0 at first, trained by the mean squared error."""

    def __init__(self):
        super().__init__()
        self.line = keras.layers.Dense(
            1, use_bias=False, kernel_initializer="zeros"
        )
        self.mean = keras.metrics.Mean(name="loss")

    def call(self, batch, training=None):
        return self.line(batch["x"])

    @property
    def metrics(self):
        return [self.mean]

    def train_step(self, data):
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        with tf.GradientTape() as tape:
            errors = self(data, training=True) - data["y"]
            loss = tf.reduce_mean(errors**2)
            share = loss / replicas
        variables = self.trainable_variables
        gradients = tape.gradient(share, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        self.mean.update_state(loss)
        return self.get_metrics_result()


class Drawn(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.steps = []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(self.model.drawn_ids.numpy())


def train(strategy, steps_per_execution):
    """Ids drawn, history and weights after `STEPS` steps."""
    with strategy.scope():
        model = training.JESTModel(
            tiny.learner(0),
            tiny.learner(5),
            SELECTION,
            options=jest_tf.StepOptions(
                augment=augmentation.Augmentation(flip=True, min_area=0.5)
            ),
        )
        model.compile(
            optimizer=SGD(0.05, global_clipnorm=0.3),
            steps_per_execution=steps_per_execution,
            jit_compile=False,
        )
    batches = tiny.super_batches(STEPS, rows=ROWS)
    for batch in batches:
        batch["record_replaced"] = np.arange(ROWS) >= 13

    def super_batches(host, num_hosts):
        share = ROWS // num_hosts
        rows = slice(host * share, (host + 1) * share)
        return tiny.dataset(
            [
                {n: value[rows] for n, value in batch.items()}
                for batch in batches
            ]
        ).repeat()

    drawn = Drawn()
    dataset = distribution.distribute(strategy, super_batches)
    history = model.fit(
        dataset, steps_per_epoch=STEPS, verbose=0, callbacks=[drawn]
    ).history
    told = {
        **model.rows.scored(0),
        **{
            f"uniform_{name}": values
            for name, values in model.rows.uniform(0).items()
        },
        "draw": model.rows.drawn,
    }
    history |= {f"rows/{name}": values for name, values in told.items()}
    return np.array(drawn.steps), history, model.learner.get_weights()


def main(path):
    """Trains as a worker of TF_CONFIG."""
    strategy = distribution.build_strategy(
        config.DistributionConfig("multi_worker_mirrored")
    )
    drawn, history, weights = train(strategy, 2)
    np.savez(
        path,
        replicas=strategy.num_replicas_in_sync,
        drawn=drawn,
        **{f"log/{name}": value for name, value in history.items()},
        **{f"weight/{i}": value for i, value in enumerate(weights)},
    )


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    main(sys.argv[1])

"""Callbacks for recipes: Weights & Biases, and a trace of the profiler.

    jest-tf train --config configs/quickstart_jest.py --trust \
        --workdir runs/traced --set callbacks=examples.callbacks:profile
"""

import dataclasses
import os

import keras
import tensorflow as tf


def weights_and_biases(config, workdir):
    """Logs settings, metrics and evaluations; `pip install wandb` first."""
    import wandb

    run = wandb.init(dir=workdir, config=dataclasses.asdict(config))
    return keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: run.log(logs),
        on_evaluation=lambda step, measures: run.log(measures),
    )


def profile(config, workdir, first=10, last=13):
    """Writes a trace of a few steps, for TensorBoard, to the run directory."""

    def trace(batch, logs):
        if batch == first:
            tf.profiler.experimental.start(os.path.join(workdir, "tensorboard"))
        elif batch == last:
            tf.profiler.experimental.stop()

    return keras.callbacks.LambdaCallback(on_train_batch_end=trace)

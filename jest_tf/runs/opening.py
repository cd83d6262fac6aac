"""Opening a run with its data and reference, to inspect its steps."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import training
from jest_tf.runs import inputs, interruptions, loading


class Training(NamedTuple):
    """A run opened with its data and reference.

    `step` is that of the weights of `model`, the compiled `JESTModel`;
    `super_batches` maps the number of the first to a dataset of them, as the
    run's steps get them.
    """

    config: config_lib.TrainConfig
    model: training.JESTModel
    step: int
    super_batches: Callable[[int], tf.data.Dataset]


def open_training(
    workdir: str, step: int | None = None, patch_sizes: Sequence[int] = ()
) -> Training:
    """Opens a run on one device; arguments as in `loading.load_run`.

    Raises:
        ValueError: as `load_run`, or the data is unreadable.
    """
    run = loading.load_run(workdir, step, patch_sizes)
    config = run.config
    sources = inputs.open_sources(config, tf.distribute.get_strategy())
    skipped = interruptions.Skipped(workdir, writes=False)
    stream = inputs.Stream(config, sources, run.tokenizer, skipped)
    model = training.build_model(config, run.learner, sources.reference)
    if step is None:
        model.build(None)
    else:
        loading.restore(model, workdir, step)
    return Training(config, model, step or config.steps, stream.super_batches)

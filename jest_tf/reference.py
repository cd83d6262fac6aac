"""The frozen reference, and finished runs that serve as one.

A reference is a function from a batch to `losses.Embeddings` that nobody
trains: a tower of any make, or the learner of an earlier run.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import keras

from jest_tf import config as config_lib
from jest_tf import losses, models
from jest_tf.data import preprocessing

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "final.weights.h5"


class Run(NamedTuple):
    """A finished run, read from its directory.

    Attributes:
        config: the resolved settings it ran with.
        tokenizer: what it read captions with.
        learner: with the weights that it ended with.
    """

    config: config_lib.TrainConfig
    tokenizer: Callable
    learner: models.TwoTower


def load_run(workdir: str) -> Run:
    """Reads the run directory of a finished run.

    Raises:
        ValueError: where there is none, or the run has not finished.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not os.path.isfile(os.path.join(workdir, name)):
            raise ValueError(
                f"Expected the directory of a finished run, with {name}. "
                f"Received: {workdir!r}"
            )
    config = config_lib.load_config(os.path.join(workdir, CONFIG_FILE))
    tokenizer = preprocessing.load_tokenizer(workdir, config.data.text_length)
    learner = models.build_learner(config, tokenizer.vocabulary_size)
    learner.load_weights(os.path.join(workdir, WEIGHTS_FILE))
    return Run(config, tokenizer, learner)


def frozen(model: Callable) -> Callable[[dict], losses.Embeddings]:
    """A reference from a Keras model or any callable.

    A Keras model is called in evaluation mode. Where the batch holds
    `image_for_reference` or `text_for_reference`, because the reference
    preprocesses differently from the learner, the reference sees those as its
    `image` and `text`.

    Args:
        model: maps a dict of tensors with n rows to four tensors, the fields
            of `losses.Embeddings`.

    Raises:
        TypeError: if `model` can't be called.
    """
    if not callable(model):
        raise TypeError(
            "`reference` must be a Keras model or a callable that maps a batch "
            f"to Embeddings. Received: {model!r}"
        )
    options = (
        {"training": False} if isinstance(model, keras.layers.Layer) else {}
    )

    def embed(batch):
        view = dict(batch)
        for name in ("image", "text"):
            view[name] = view.pop(f"{name}_for_reference", view[name])
        return losses.Embeddings(*model(view, **options))

    return embed

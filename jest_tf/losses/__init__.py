"""Pair losses, which train a learner and score rows.

A `PairLoss` has both: the training loss (`training.py`) and the losses of rows
given those chosen so far (`running.py`, in tiles of `tiles.py`). Your own loss
is a "module:function" that returns a `PairLoss`.
"""

from collections.abc import Callable
from typing import NamedTuple

from jest_tf.config import checks, imports, methods
from jest_tf.losses.running import SigmoidRows, SoftmaxRows
from jest_tf.losses.training import (
    feature_distillation,
    sigmoid_loss,
    softmax_loss,
)

__all__ = [
    "PairLoss",
    "SigmoidRows",
    "SoftmaxRows",
    "feature_distillation",
    "pair_loss",
    "sigmoid",
    "sigmoid_loss",
    "softmax",
    "softmax_loss",
]


class PairLoss(NamedTuple):
    """A contrastive loss, for training and for scoring.

    Attributes:
        train: the loss of a batch, with the arguments of `sigmoid_loss`.
        rows: a class with the methods of `SigmoidRows`: the losses of all rows
            given the chosen rows.

    Example:
        >>> def scaled(learner, **options):
        ...     return 2.0 * sigmoid_loss(learner, **options)
        >>> mine = sigmoid()._replace(train=scaled)
    """

    train: Callable
    rows: type


def sigmoid() -> PairLoss:
    """Returns SigLIP's loss."""
    return PairLoss(sigmoid_loss, SigmoidRows)


def softmax() -> PairLoss:
    """Returns CLIP's loss."""
    return PairLoss(softmax_loss, SoftmaxRows)


def pair_loss(name: str) -> PairLoss:
    """Returns the loss of a name or of a "module:function".

    Raises:
        ValueError: there is no such loss, or the function returns no PairLoss.
    """
    checks.check("loss", name, checks.name_or_function(*methods.LOSSES))
    found = imports.load_function("loss", methods.LOSSES.get(name, name))()
    if not isinstance(found, PairLoss):
        raise ValueError(
            "`loss` must name a function that returns a PairLoss. Received: "
            f"{found!r}, of {name}"
        )
    return found

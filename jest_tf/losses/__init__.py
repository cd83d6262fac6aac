"""Pair losses, which train a learner and score rows.

A `PairLoss` has both: the training loss (`training.py`) and the losses of rows
given those chosen so far (`running.py`). Your own loss is a "module:function"
that returns a `PairLoss`.
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


_PARTS_OF_ROWS = (
    *("start", "add", "conditional", "row_losses", "sample_losses", "model"),
)


class PairLoss(NamedTuple):
    """A contrastive loss, for training and for scoring.

    Attributes:
        train: the loss of a batch, with the arguments of `sigmoid_loss`.
        rows: a NamedTuple of tensors with the methods and the field `model` of
            `SigmoidRows`: the losses of all rows given the chosen rows.

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


def pair_loss(name: str, setting: str = "loss") -> PairLoss:
    """Returns the loss of a name or of a "module:function".

    Raises:
        ValueError: there is no such loss, or the function returns no PairLoss.
    """
    checks.check(setting, name, checks.name_or_function(*methods.LOSSES))
    path = methods.LOSSES.get(name, name)
    found = imports.call_function(setting, path, "PairLoss")
    if not isinstance(found, PairLoss) or not all(
        hasattr(found.rows, part) for part in _PARTS_OF_ROWS
    ):
        raise ValueError(
            f"`{setting}` must name a function that returns a PairLoss, whose "
            "`rows` has the methods of SigmoidRows and the field `model`. "
            f"Received: {found!r} from {name}"
        )
    return found

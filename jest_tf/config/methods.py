"""Criteria and methods of a stage, each a value with all that defines it.

Imports no TensorFlow. A new criterion is an entry of `CRITERIA`, or a user's
"module:function" that returns a `Criterion`; no other code need change.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jest_tf.config import checks, imports

# The models that a criterion may need.
MODELS = ("learner", "reference")


class Criterion(NamedTuple):
    """A score of rows by the models' losses.

    Attributes:
        needs: the models, from `MODELS`, whose losses it reads.
        score: maps losses by model, float32 tensors of one shape, to scores of
            that shape; rows with higher scores are more likely to be chosen.
            It must be elementwise: the score of a row depends on the losses of
            that row alone, not on the mean or the rank among other rows,
            because rows are scored in parts. This is checked when a run begins.
        highest: heading, on pages, of the rows with the highest scores.
        lowest: heading of the rows with the lowest scores.

    Example:
        >>> doubt = Criterion(
        ...     needs=("learner", "reference"),
        ...     score=lambda losses: (
        ...         losses["learner"] - 2.0 * losses["reference"]
        ...     ),
        ... )
        >>> doubt.score({"learner": 3.0, "reference": 1.0})
        1.0
    """

    needs: tuple[str, ...]
    score: Callable[[Mapping[str, Any]], Any]
    highest: str = "Highest score"
    lowest: str = "Lowest score"


# arXiv 2406.17711, section 2.1.
CRITERIA = {
    "learnability": Criterion(
        ("learner", "reference"),
        lambda losses: losses["learner"] - losses["reference"],
        "Most learnable",
        "Least learnable",
    ),
    "easy_reference": Criterion(
        ("reference",),
        lambda losses: -losses["reference"],
        "Easiest for the reference",
        "Hardest for the reference",
    ),
    "hard_learner": Criterion(
        ("learner",),
        lambda losses: losses["learner"],
        "Hardest for the learner",
        "Easiest for the learner",
    ),
}


class Method(NamedTuple):
    """A sampler of rows; other samplers need code in `selection/samplers.py`.

    Attributes:
        scores: whether it reads scores; if not, all rows are equally likely.
        in_chunks: whether chunks are scored given the chunks before them.
        adds_noise: whether rows are drawn at random by their scores; if not,
            the rows with the highest scores are taken.
    """

    scores: bool = True
    in_chunks: bool = False
    adds_noise: bool = True


METHODS = {
    "joint": Method(in_chunks=True),  # the paper's
    "independent": Method(),  # its baseline
    # RHO-LOSS, arXiv 2206.07137.
    "top": Method(adds_noise=False),
    "uniform": Method(scores=False),
}

# Pair losses that train and score, each named by the function that returns it,
# so that a user's "module:function" is no special case.
LOSSES = {
    "sigmoid": "jest_tf.losses:sigmoid",
    "softmax": "jest_tf.losses:softmax",
}


def criterion(name: str) -> Criterion:
    """Returns the criterion of a name or of a "module:function".

    Raises:
        ValueError: the name is unknown, or the function returns no criterion.
    """
    if name in CRITERIA:
        return CRITERIA[name]
    setting = "selection.stages.criterion"
    checks.check(setting, name, checks.name_or_function(*CRITERIA))
    found = imports.call_function(setting, name, "Criterion")
    if not (
        isinstance(found, Criterion)
        and isinstance(found.needs, tuple)
        and set() < {*found.needs} <= {*MODELS}
    ):
        raise ValueError(
            f"`{setting}` must name a function that returns a Criterion whose "
            f"`needs` is a tuple of some of {MODELS}. Received: {found!r} from "
            f"{name}"
        )
    return found

"""Names that settings take, each with all that defines it.

Imports no TensorFlow: a value names a function of the package as
"module:function". A criterion or a pair loss of a user is the "module:function"
that returns its value.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from jest_tf.config import checks, imports

# Keras' names.
DTYPE_POLICIES = ("float32", "mixed_bfloat16")


class TowerSizes(NamedTuple):
    """Sizes of a preset's towers; tokens and embeddings have the `width`."""

    patch_size: int
    width: int
    depth: int
    num_heads: int


# "tiny" is for 32-pixel images on a CPU. The others are the ViT classes of
# SigLIP's released models.
PRESETS = {
    "tiny": TowerSizes(patch_size=8, width=64, depth=3, num_heads=2),
    "s16": TowerSizes(patch_size=16, width=384, depth=12, num_heads=6),
    "b32": TowerSizes(patch_size=32, width=768, depth=12, num_heads=12),
    "b16": TowerSizes(patch_size=16, width=768, depth=12, num_heads=12),
    "l16": TowerSizes(patch_size=16, width=1024, depth=24, num_heads=16),
}


class FalseNegatives(NamedTuple):
    """A rule by which the loss leaves out pairs of different rows.

    It leaves out pairs with the same caption if it `needs_ids`, and pairs that
    the reference finds to match if it `needs_reference`.
    """

    needs_ids: bool
    needs_reference: bool


FALSE_NEGATIVES = {
    "keep": FalseNegatives(False, False),  # the paper's
    "equal_captions": FalseNegatives(True, False),
    "reference": FalseNegatives(True, True),
}


class Quota(NamedTuple):
    """A rule on how many rows of each replica a draw takes.

    If it `exchanges`, any replica may supply any number of rows, which the
    replicas then exchange; if not, each supplies equally many and keeps them.
    """

    exchanges: bool

    def parts(self, num_replicas: int) -> int:
        """Returns the number of parts that supply equally many rows each."""
        return 1 if self.exchanges else num_replicas


QUOTAS = {
    "global": Quota(exchanges=True),
    "per_replica": Quota(exchanges=False),
}

# Each names a function of (OptimizerConfig, schedule) that returns a Keras
# optimizer, as a user's own does.
OPTIMIZERS = {"adamw": "jest_tf.training.optimizer:adamw"}


class Schedule(NamedTuple):
    """A schedule of the learning rate.

    `build` names a function of (OptimizerConfig, steps) that returns a Keras
    schedule. If it `has_end`, at the last step, it begins anew in a run that is
    extended.
    """

    build: str
    has_end: bool = True


SCHEDULES = {
    "cosine": Schedule("jest_tf.training.optimizer:cosine"),
    "constant": Schedule("jest_tf.training.optimizer:constant", has_end=False),
}


def schedule(name: str) -> Schedule:
    """Returns the schedule of a name or of a "module:function"."""
    return SCHEDULES.get(name, Schedule(name))


class Strategy(NamedTuple):
    """A way to run steps on devices.

    `build` names a function of DistributionConfig that returns the strategy, of
    either backend. If it `is_local`, one process trains on this machine's CPU
    or GPUs; if it `fetches_ahead`, other threads fetch batches.
    """

    build: str
    is_local: bool
    fetches_ahead: bool = True


STRATEGIES = {
    "default": Strategy(
        "jest_tf.distribution:default", True, fetches_ahead=False
    ),
    "mirrored": Strategy("jest_tf.distribution:mirrored", True),
    "multi_worker_mirrored": Strategy(
        "jest_tf.distribution:multi_worker_mirrored", False
    ),
    "tpu": Strategy("jest_tf.distribution:tpu", False),
}

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
        ...     ("learner", "reference"),
        ...     lambda losses: losses["learner"] - 2.0 * losses["reference"],
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

    If it `scores`, rows are chosen by their scores, else all are equally
    likely. `in_chunks` scores chunks given those before them. `adds_noise`
    draws at random; without noise the highest scores are taken.
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
Loss = Annotated[str, checks.name_or_function(*LOSSES)]


def criterion(name: str) -> Criterion:
    """Returns the criterion of a name or of a "module:function"."""
    if name in CRITERIA:
        return CRITERIA[name]
    setting = "selection.stages.criterion"
    checks.check(setting, name, checks.name_or_function(*CRITERIA))
    made = imports.call_function(setting, name, "Criterion")
    if not (
        isinstance(made, Criterion)
        and isinstance(made.needs, tuple)
        and set() < {*made.needs} <= {*MODELS}
    ):
        raise ValueError(
            f"`{setting}` must name a function that returns a Criterion whose "
            f"`needs` is a tuple of some of {MODELS}. Received: {made!r} from "
            f"{name}"
        )
    return made

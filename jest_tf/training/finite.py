"""Detection of values that are not finite."""

import re
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from jest_tf.embeddings import Embeddings, Tensor

# Metrics of a stage that are NaN if scored embeddings are not finite.
_SCORES = re.compile(
    r"stages/\d+/(score|learner_loss_kept|reference_loss_kept)"
)


class NotFinite(ValueError):
    """Values of a run are NaN or infinite.

    `names` lists them: "loss", "stages/0/score" or variable names. `values` has
    loss, temperature and bias of the step, where known.
    """

    def __init__(
        self, names: Sequence[str], values: dict[str, float] | None = None
    ):
        super().__init__(
            f"Expected finite numbers. Received: {shorten(names)}; a model has "
            "diverged"
        )
        self.names = tuple(names)
        self.values = dict(values or {})


def cleaned(
    embeddings: Embeddings | None,
) -> tuple[Embeddings | None, Tensor]:
    """Replaces NaN and infinity by 0; also returns whether all were finite.

    The step goes on, with NaN in `stages/...`: XLA and TPUs raise no errors.
    """
    if embeddings is None:
        return None, ops.convert_to_tensor(True)
    flags = [ops.isfinite(part) for part in embeddings]
    zeros = map(ops.zeros_like, embeddings)
    parts = map(ops.where, flags, embeddings, zeros)
    is_finite = ops.all(ops.stack([ops.all(flag) for flag in flags]))
    return Embeddings(*parts), is_finite


def check_scores(logs: Mapping[str, Tensor]) -> None:
    """Raises `NotFinite` if metrics of a stage are not finite."""
    names = [name for name in not_finite(logs) if name != "loss"]
    if names:
        raise NotFinite(names)


def not_finite(logs: Mapping[str, Tensor]) -> list[str]:
    """Names the loss and the metrics of stages that are not finite, sorted."""
    return sorted(
        name
        for name, value in logs.items()
        if (name == "loss" or _SCORES.fullmatch(name))
        and not np.isfinite(value)
    )


def shorten(names: Sequence[str]) -> str:
    """Joins the first three names, and counts the others."""
    shown = ", ".join(names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def finder(variables: Sequence[keras.Variable]) -> Callable[[], list[str]]:
    """Returns a function that names the variables that are not finite."""
    watched = [
        variable
        for variable in variables
        if tf.as_dtype(variable.dtype).is_floating
    ]

    @tf.function
    def are_finite():
        values = [tf.convert_to_tensor(variable) for variable in watched]
        return ops.stack([tf.reduce_all(tf.math.is_finite(x)) for x in values])

    def find():
        flags = are_finite().numpy() if watched else ()
        return [
            variable.path
            for variable, is_finite in zip(watched, flags, strict=True)
            if not is_finite
        ]

    return find

"""Numbers that are not finite: the error, and the search for them."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf


class NotFinite(ValueError):
    """Numbers of a run are NaN or infinite.

    Attributes:
        names: what is not finite, such as "loss", "select/score" or names of
            variables.
        values: loss, temperature and bias of the step, where known.
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


def shorten(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def finder(variables: Sequence[keras.Variable]) -> Callable[[], list[str]]:
    """Returns a function that names the variables that are not finite now."""
    watched = [
        variable
        for variable in variables
        if tf.as_dtype(variable.dtype).is_floating
    ]

    @tf.function
    def finite():
        return tf.stack(
            [
                tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(variable)))
                for variable in watched
            ]
        )

    def find():
        flags = finite().numpy() if watched else ()
        return [
            variable.path
            for variable, flag in zip(watched, flags, strict=True)
            if not flag
        ]

    return find

"""Scores of all rows given the chosen rows, by the models' running losses."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from jest_tf import embeddings, losses
from jest_tf.config import methods
from jest_tf.embeddings import Embeddings, Tensor
from jest_tf.selection import local_rows


class State(NamedTuple):
    """The chosen rows and each model's losses of all rows given them.

    Attributes:
        kept: bool `[B/R]`, true for the chosen rows.
        models: running losses by the model's name, e.g. `losses.SigmoidRows`.
    """

    kept: Tensor
    models: dict[str, losses.SigmoidRows | losses.SoftmaxRows]


def start(models: dict[str, Embeddings], loss: str) -> State:
    """Starts without chosen rows, from the result of `check_models`."""
    kind = losses.pair_loss(loss).rows
    num_rows = next(iter(models.values())).image.shape[0]
    return State(
        ops.zeros([num_rows], "bool"),
        {name: kind.start(model) for name, model in models.items()},
    )


def add(state: State, rows: Tensor, local: local_rows.LocalRows) -> State:
    """Adds global `rows`, int32 `[c]`, to the chosen rows."""
    chosen = local.fetch(
        {name: rows.model[:2] for name, rows in state.models.items()}, rows
    )
    # Unrolled chunks share one graph of the tiles.
    add_chosen = _add_chosen if local.in_loops else _add_chosen_shared
    kept = state.kept | local.mask(rows)
    return State(kept, add_chosen(state.models, chosen))


def conditional(state: State, criterion: methods.Criterion) -> Tensor:
    """Returns each row's score given the chosen rows, float32 `[B/R]`."""
    score = criterion.score(
        {name: rows.conditional() for name, rows in state.models.items()}
    )
    expected = tuple(state.kept.shape)
    if tuple(getattr(score, "shape", ())) != expected:
        raise ValueError(
            "The `score` of a criterion must return a number for each row, "
            f"float32 {list(expected)}. Received: {score!r}"
        )
    return ops.cast(score, "float32")


def check_criterion(name: str) -> None:
    """Checks that a criterion scores each row by the losses of that row alone.

    A draw scores rows in parts, on several replicas and in chunks, so a score
    that depends on the other rows would depend on how they are cut.

    Raises:
        ValueError: there is no such criterion, or its score of a row changes
            with the rows beside it.
    """
    criterion = methods.criterion(name)
    random = np.random.default_rng(0)
    values = random.uniform(0.1, 5.0, (len(criterion.needs), 16))
    values = values.astype("float32")

    def score(rows):
        found = criterion.score(
            {
                model: ops.convert_to_tensor(some[rows])
                for model, some in zip(criterion.needs, values, strict=True)
            }
        )
        return ops.convert_to_numpy(found)

    rows = np.arange(16)
    some = random.permutation(rows)[:5]
    whole, part = score(rows), score(some)
    if whole.shape == rows.shape and not np.allclose(
        whole[some], part, rtol=1e-4, atol=1e-6, equal_nan=True
    ):
        raise ValueError(
            "`selection.stages.criterion` must score a row by the losses of "
            "that row alone: expected the same scores for the same rows in "
            f"another order and without the others. Received: {name!r}, which "
            "compares rows with each other, e.g. by their mean"
        )


def row_losses(state: State) -> dict[str, Tensor]:
    """Returns rows' losses given the chosen rows, by model; float32 `[B/R]`."""
    return {
        name: rows.row_losses(state.kept) for name, rows in state.models.items()
    }


def _add_chosen(models, chosen):
    return {name: model.add(*chosen[name]) for name, model in models.items()}


_add_chosen_shared = embeddings.compiled(_add_chosen)


def check_models(
    learner: Embeddings | None,
    reference: Embeddings | None,
    needs: Sequence[str],
) -> dict[str, Embeddings]:
    """Returns the models that are not None, by name, in float32, no gradient.

    Raises:
        ValueError: if models do not fit together, or one of `needs` is None.
    """
    models = {
        name: _checked(name, model)
        for name, model in (("learner", learner), ("reference", reference))
        if model is not None
    }
    for name in needs:
        if name not in models:
            raise ValueError(
                f"`criterion` needs the {name}'s embeddings. "
                f"Received: {name}=None"
            )
    sizes = {name: model.image.shape[0] for name, model in models.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(
            "`learner` and `reference` must embed the same super-batch. "
            f"Received rows: {sizes}"
        )
    return models


def _checked(name, model):
    parts = Embeddings(*(ops.convert_to_tensor(part) for part in model))
    dtypes = [keras.backend.standardize_dtype(part.dtype) for part in parts]
    shape = parts.image.shape
    if not (
        all(map(keras.backend.is_float_dtype, dtypes))
        and len(shape) == 2
        and None not in tuple(shape)
        and parts.text.shape == shape
        and len(parts.scale.shape) == len(parts.bias.shape) == 0
    ):
        found = [
            f"{dtype} {part.shape}"
            for dtype, part in zip(dtypes, parts, strict=True)
        ]
        raise ValueError(
            f"`{name}` must hold floating-point embeddings: `{name}.image` and "
            f"`{name}.text` must both be [B, dim] with a static shape, "
            f"`{name}.scale` and `{name}.bias` scalars. Received: {found}"
        )
    if embeddings.ON_TENSORFLOW:
        parts = _finite(f"`{name}` embeddings hold NaN or infinity", parts)
    return Embeddings(
        *(ops.stop_gradient(ops.cast(part, "float32")) for part in parts)
    )


def _finite(message, parts):
    import tensorflow as tf

    try:
        return [tf.debugging.check_numerics(part, message) for part in parts]
    except tf.errors.InvalidArgumentError as error:  # only when run eagerly
        raise ValueError(f"{message}; expected finite numbers") from error

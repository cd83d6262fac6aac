"""Scores of all rows given the chosen rows, on one replica or several.

The scores come from the models' running losses. R replicas hold B/R rows of a
super-batch each: row i of replica r is the global row `r * B/R + i`.
`LocalRows` hides the number of replicas from scores and samplers.
docs/distribution.md has the cost of each collective.
"""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops, tree

from jest_tf import config, embeddings, losses
from jest_tf.config import tables
from jest_tf.embeddings import Embeddings, Tensor


class LocalRows:
    """The rows of a super-batch that are on this replica.

    `top`, `fetch` and `means` are collectives; if `in_loops`, they work inside
    a loop of the graph. Each of `num_quotas` parts of the super-batch, 1, or R
    with quota "per_replica", contributes equally many rows to a draw.
    """

    def __init__(self, num_rows: int, quota: str = "global", replicas=None):
        self._replicas = replicas
        self._num_replicas, self._number = 1, 0
        self.in_loops = True
        if replicas is not None:
            self._num_replicas = replicas.num_replicas
            self._number = replicas.replica_id
            self.in_loops = replicas.in_loops
        self.num_rows = num_rows
        self.super_batch_size = self._num_replicas * num_rows
        self.num_quotas = config.QUOTAS[quota].parts(self._num_replicas)
        self._first = self._number * num_rows

    def own(self, values: Tensor) -> Tensor:
        """Slices the local rows, `[..., B] -> [..., B/R]`."""
        leading = values.shape[:-1]
        begin = [0] * len(leading) + [self._first]
        return ops.slice(values, begin, [*leading, self.num_rows])

    def top(self, keys: Tensor, size: int) -> Tensor:
        """Returns the rows with the `size` highest `keys`, highest first.

        Ties go to the lower row. Quota "per_replica" takes `size / R` rows of
        each replica, in replica order. Keys are float32 `[B/R]`, -inf if never
        drawn; the result is int32 `[size]`, global rows, on every replica.
        """
        if self._replicas is None:
            return ops.top_k(keys, size)[1]
        offered = min(size // self.num_quotas, self.num_rows)
        best, rows = ops.top_k(keys, offered)
        rows = self._replicas.all_gather(self._first + rows)
        if self.num_quotas > 1:
            return rows
        # The gathered rows are in the order of replica, key, row: here, too,
        # ties go to the lower row.
        keys = self._replicas.all_gather(best)
        return embeddings.take(rows, ops.top_k(keys, size)[1])

    def fetch(self, tensors, rows: Tensor):
        """Gathers rows of a nest of tensors, `[B/R, ...] -> [c, ...]`.

        `rows` are int32 `[c]`, global rows, equal on every replica.
        """
        if self._replicas is None:
            return tree.map_structure(
                lambda tensor: embeddings.take(tensor, rows), tensors
            )
        # Replicas add zeros for others' rows: b * dim per draw, not B * dim.
        here, is_local = self._places_here(rows)

        def contribution(tensor):
            values = embeddings.take(tensor, ops.where(is_local, here, 0))
            shape = [-1] + [1] * (len(values.shape) - 1)
            return ops.where(ops.reshape(is_local, shape), values, 0.0)

        return self._replicas.all_reduce(
            tree.map_structure(contribution, tensors)
        )

    def mask(self, rows: Tensor) -> Tensor:
        """Returns bool `[B/R]`, true for the local rows among global `rows`."""
        here, is_local = self._places_here(rows)
        # Rows of other replicas map to a spare row, which is cut off.
        here = ops.where(is_local, here, self.num_rows)
        mask = ops.scatter_update(
            ops.zeros([self.num_rows + 1], "bool"),
            here[:, None],
            ops.ones_like(here, "bool"),
        )
        return mask[: self.num_rows]

    def share(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns this replica's share of `size` places; int32 and bool `[n]`.

        The shares are equally large, padded by repeating the last place; the
        second tensor is false for the padding.
        """
        length = -(-size // self._num_replicas)
        places = self._number * length + ops.arange(length, dtype="int32")
        return ops.minimum(places, size - 1), places < size

    def means(
        self, values: dict[str, Tensor], counted: Tensor, size: int
    ) -> dict[str, Tensor]:
        """Averages `values`, float32 `[n]` by name, over the entries `counted`.

        `size` is the number of counted entries on all replicas.
        """
        totals = {
            name: ops.sum(ops.where(counted, value, 0.0))
            for name, value in values.items()
        }
        if self._replicas is not None:
            totals = self._replicas.all_reduce(totals)
        return {name: total / size for name, total in totals.items()}

    def _places_here(self, rows):
        """Converts global to local rows; also returns which rows are local."""
        here = rows - self._first
        return here, (here >= 0) & (here < self.num_rows)


def top_rows(keys: Tensor, size: int, num_quotas: int = 1) -> Tensor:
    """Does `LocalRows.top` on keys `[B]` of all rows, without collectives."""
    parts = ops.reshape(keys, [num_quotas, -1])
    best = ops.top_k(parts, size // num_quotas)[1]
    first = ops.arange(num_quotas, dtype="int32") * parts.shape[1]
    return ops.reshape(first[:, None] + best, [size])


class State(NamedTuple):
    """The chosen rows, and each model's running losses of all given them."""

    kept: Tensor  # bool [B/R]
    models: dict[str, losses.SigmoidRows | losses.SoftmaxRows]


def start(models: dict[str, Embeddings], loss: str) -> State:
    """Starts without chosen rows, from the result of `check_models`."""
    kind = losses.pair_loss(loss).rows
    num_rows = next(iter(models.values())).image.shape[0]
    return State(
        ops.zeros([num_rows], "bool"),
        {name: kind.start(model) for name, model in models.items()},
    )


def add(state: State, rows: Tensor, local: LocalRows) -> State:
    """Adds global `rows`, int32 `[c]`, to the chosen rows."""
    chosen = local.fetch(
        {name: rows.model[:2] for name, rows in state.models.items()}, rows
    )
    # Unrolled chunks share one graph of the tiles.
    add_chosen = _add_chosen if local.in_loops else _add_chosen_shared
    kept = state.kept | local.mask(rows)
    return State(kept, add_chosen(state.models, chosen))


def conditional(state: State, criterion: tables.Criterion) -> Tensor:
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
    """
    criterion = tables.criterion(name)
    random = np.random.default_rng(0)
    values = random.uniform(0.1, 5.0, (len(criterion.needs), 16))
    values = values.astype("float32")

    def score(rows):
        scores = criterion.score(
            {
                model: ops.convert_to_tensor(some[rows])
                for model, some in zip(criterion.needs, values, strict=True)
            }
        )
        return ops.convert_to_numpy(scores)

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
    """Returns the models that are not None, in float32, without gradient."""
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
        shapes = [
            f"{dtype} {part.shape}"
            for dtype, part in zip(dtypes, parts, strict=True)
        ]
        raise ValueError(
            f"`{name}` must hold floating-point embeddings: `{name}.image` and "
            f"`{name}.text` must both be [B, dim] with a static shape, "
            f"`{name}.scale` and `{name}.bias` scalars. Received: {shapes}"
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

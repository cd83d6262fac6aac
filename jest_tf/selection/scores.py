"""Scores of all rows given the chosen ones, as running sums.

The paper's algorithm 1 forms the `B x B` matrix of pair scores. Here a chunk
only adds its rows and columns to running sums of every row (`tiles.py`), which
gives the same draw for the same noise. `State` is immutable.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import embeddings
from jest_tf.embeddings import Embeddings
from jest_tf.selection import local_rows, tiles


class SigmoidScores(NamedTuple):
    """A model's running sums of sigmoid pair losses.

    Attributes:
        model: embeddings of the rows, `[B/R, dim]`.
        own: float32 `[B/R]`, logits of the rows' own pairs.
        sums: float32 `[2, B/R]`, softplus(logit) summed over the chosen rows,
            image to text and text to image.
    """

    model: Embeddings
    own: tf.Tensor
    sums: tf.Tensor

    @classmethod
    def start(cls, model: Embeddings) -> "SigmoidScores":
        """Starts without chosen rows."""
        own = _own_logits(model)
        return cls(model, own, tf.zeros([2, *own.shape]))

    def add(self, image: tf.Tensor, text: tf.Tensor) -> "SigmoidScores":
        """Adds rows with these embeddings, `[c, dim]`, to the chosen."""
        scale, bias = self.model[2:]
        more = tiles.reduce_pairs(
            lambda cosines: tiles.sum_softplus(cosines, scale, bias),
            *(self.model, image, text),
        )
        return self._replace(sums=self.sums + more)

    def conditional(self) -> tf.Tensor:
        """float32 `[B/R]`: the loss that each row would add."""
        return tf.math.softplus(-self.own) + tf.reduce_sum(self.sums, 0)

    def row_losses(self, kept: tf.Tensor) -> tf.Tensor:
        """float32 `[B/R]`: losses of rows given the chosen rows, `kept`."""
        # `sums` counts a kept row as its own negative, once per direction.
        itself = tf.where(kept, tf.math.softplus(self.own), 0.0)
        others = tf.reduce_sum(self.sums - itself, 0)
        return tf.math.softplus(-self.own) + 0.5 * others

    def sample_losses(self, size: int, batch_size: int) -> tf.Tensor:
        """Losses of the `size` chosen rows, scaled up to a larger batch."""
        others = tf.reduce_sum(self.sums - tf.math.softplus(self.own), 0)
        scale = 0.5 * (batch_size - 1) / max(size - 1, 1)
        return tf.math.softplus(-self.own) + scale * others


class SoftmaxScores(NamedTuple):
    """A model's running log-sum-exps of logits; methods as `SigmoidScores`.

    Attributes:
        model: embeddings of the rows, `[B/R, dim]`.
        own: float32 `[B/R]`, logits of the rows' own pairs, without bias.
        sums: float32 `[2, B/R]`, log-sum-exp of the logits over the chosen
            rows; -inf before the first.
    """

    model: Embeddings
    own: tf.Tensor
    sums: tf.Tensor

    @classmethod
    def start(cls, model: Embeddings) -> "SoftmaxScores":
        """Starts without chosen rows."""
        own = _own_logits(model._replace(bias=0.0))
        return cls(model, own, tf.fill([2, *own.shape], -np.inf))

    def add(self, image: tf.Tensor, text: tf.Tensor) -> "SoftmaxScores":
        """Adds rows with these embeddings, `[c, dim]`, to the chosen."""
        scale = self.model.scale
        more = tiles.reduce_pairs(
            lambda cosines: tiles.log_sum_exp(cosines, scale),
            *(self.model, image, text),
        )
        return self._replace(sums=embeddings.logaddexp(self.sums, more))

    def conditional(self) -> tf.Tensor:
        """float32 `[B/R]`: the loss of each row among the chosen."""
        # Without a chosen row there is no normaliser.
        return self._loss(tf.where(self.sums > -np.inf, self.sums, 0.0))

    def row_losses(self, kept: tf.Tensor) -> tf.Tensor:
        """float32 `[B/R]`: losses of rows given the chosen rows, `kept`."""
        # A row's normaliser includes the row itself; a kept row's already does.
        joined = embeddings.logaddexp(self.sums, self.own)
        return self._loss(tf.where(kept, self.sums, joined))

    def sample_losses(self, size: int, batch_size: int) -> tf.Tensor:
        """Losses of the `size` chosen rows, scaled up to a larger batch."""
        if size == batch_size:
            return self.conditional()
        # The row itself counts once, whatever the size of the batch.
        share = tf.exp(tf.minimum(self.own - self.sums, 0.0))
        others = self.sums + tf.math.log1p(-share)
        others += np.log((batch_size - 1) / (size - 1))
        return self._loss(embeddings.logaddexp(self.own, others))

    def _loss(self, normalisers):
        return -self.own + 0.5 * tf.reduce_sum(normalisers, 0)


class State(NamedTuple):
    """The chosen rows and each model's scores of all rows given them.

    `kept`, bool `[B/R]`, is true for the chosen rows.
    """

    kept: tf.Tensor
    models: dict[str, SigmoidScores | SoftmaxScores]


def start(models: dict[str, Embeddings], loss: str) -> State:
    """Starts without chosen rows, from the result of `check_models`."""
    kind = SigmoidScores if loss == "sigmoid" else SoftmaxScores
    num_rows = next(iter(models.values())).image.shape[0]
    return State(
        tf.zeros([num_rows], tf.bool),
        {name: kind.start(model) for name, model in models.items()},
    )


def add(state: State, rows: tf.Tensor, local: local_rows.LocalRows) -> State:
    """Adds `rows`, int32 `[c]` of all, to the chosen."""
    chosen = local.fetch(
        {name: scores.model[:2] for name, scores in state.models.items()}, rows
    )
    # Unrolled chunks share one graph of the tiles.
    add_chosen = _add_chosen if local.in_loops else _add_chosen_shared
    kept = state.kept | local.mask(rows)
    return State(kept, add_chosen(state.models, chosen))


def conditional(state: State, criterion: str) -> tf.Tensor:
    """float32 `[B/R]`: the score of each row given the chosen rows."""
    return by_criterion(
        criterion, {n: s.conditional() for n, s in state.models.items()}
    )


def row_losses(state: State) -> dict[str, tf.Tensor]:
    """Each row's loss given the chosen rows, by model; float32 `[B/R]`."""
    return {n: s.row_losses(state.kept) for n, s in state.models.items()}


def by_criterion(criterion: str, losses: dict[str, tf.Tensor]) -> tf.Tensor:
    """Combines losses by model into the criterion."""
    if criterion == "learnability":
        return losses["learner"] - losses["reference"]
    if criterion == "easy_reference":
        return -losses["reference"]
    return losses["learner"]


def _add_chosen(models, chosen):
    return {name: model.add(*chosen[name]) for name, model in models.items()}


_add_chosen_shared = tf.function(_add_chosen, autograph=False)


def _own_logits(model):
    """scale <image_i, text_i> + bias; einsum forms no `[B, dim]` products."""
    cosines = tf.einsum("nd,nd->n", model.image, model.text)
    return model.scale * cosines + model.bias


def check_models(
    learner: Embeddings | None, reference: Embeddings | None, criterion: str
) -> dict[str, Embeddings]:
    """Returns the models given, by name, in float32 without gradient.

    Raises:
        ValueError: if models do not fit together or the criterion lacks one.
    """
    models = {
        name: _checked(name, model)
        for name, model in (("learner", learner), ("reference", reference))
        if model is not None
    }
    needs = {
        "learnability": ("learner", "reference"),
        "easy_reference": ("reference",),
        "hard_learner": ("learner",),
    }[criterion]
    for name in needs:
        if name not in models:
            raise ValueError(
                f"`criterion={criterion!r}` needs the {name}'s embeddings. "
                f"Received: {name}=None"
            )
    sizes = {name: model.image.shape[0] for name, model in models.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            "`learner` and `reference` must embed the same super-batch. "
            f"Received rows: {sizes}"
        )
    return models


def _checked(name, model):
    parts = Embeddings(*(tf.convert_to_tensor(part) for part in model))
    shape = parts.image.shape
    if not (
        all(part.dtype.is_floating for part in parts)
        and shape.rank == 2
        and shape.is_fully_defined()
        and parts.text.shape == shape
        and parts.scale.shape.rank == parts.bias.shape.rank == 0
    ):
        found = [f"{part.dtype.name} {part.shape}" for part in parts]
        raise ValueError(
            f"`{name}` must hold floating-point embeddings: `{name}.image` and "
            f"`{name}.text` must both be [B, dim] with a static shape, "
            f"`{name}.scale` and `{name}.bias` scalars. Received: {found}"
        )
    message = f"`{name}` embeddings hold NaN or infinity"
    try:
        parts = (tf.debugging.check_numerics(part, message) for part in parts)
        return Embeddings(
            *(tf.stop_gradient(tf.cast(part, tf.float32)) for part in parts)
        )
    except tf.errors.InvalidArgumentError as error:  # only when run eagerly
        raise ValueError(f"{message}; expected finite numbers") from error

"""`Draw`: a sub-batch, and the losses and scores to report about it."""

from typing import NamedTuple

import numpy as np
from keras import ops

from jest_tf import embeddings
from jest_tf.config import methods
from jest_tf.embeddings import Tensor
from jest_tf.selection import local_rows, noise, scores

# The uniform draw for comparison has at most this many rows; for a larger
# sub-batch, its score is scaled up.
UNIFORM_ROWS = 1024


class Draw(NamedTuple):
    """A sub-batch, and the losses and scores of its super-batch.

    A row's loss is its share of the contrastive loss of the sub-batch. For a
    row that was not chosen, it is the share of the row if it were added. The
    mean over the chosen rows is the sub-batch's loss.

    All replicas have the same indices and scores. The other fields cover the
    B/R rows of a replica, and its part of the uniform draw.

    Attributes:
        indices: int32 `[b]`, rows of the super-batch in the order drawn; with
            quota "per_replica", each chunk has the rows of replica 0 first.
        score: float32 scalar, the criterion of the sub-batch: for learnability
            the learner's loss on it minus the reference's. NaN, in a graph that
            XLA compiles, if embeddings on this replica are not finite.
        uniform_score: float32 scalar, `score` of a uniform draw of `b` rows.
            Above 1,024 rows it is scaled up from a uniform draw of 1,024.
        kept: bool `[B/R]`, true for the chosen rows.
        learner_loss: float32 `[B/R]`, losses of rows given the sub-batch; None
            without a learner.
        reference_loss: float32 `[B/R]`, likewise of the reference.
        own_score: float32 `[B/R]`, the criterion of each row's own pair, by
            which `independent_rows` draws.
        uniform_places: int32 `[u]`, the rows of the uniform draw that the next
            two fields cover, in the order drawn; the last may be repeated.
        uniform_learner_loss: float32 `[u]`, losses of rows of the uniform draw
            given that draw; None without a learner.
        uniform_reference_loss: float32 `[u]`, likewise of the reference.
    """

    indices: Tensor
    score: Tensor
    uniform_score: Tensor
    kept: Tensor
    learner_loss: Tensor | None
    reference_loss: Tensor | None
    own_score: Tensor
    uniform_places: Tensor
    uniform_learner_loss: Tensor | None
    uniform_reference_loss: Tensor | None


def report(
    state: scores.State,
    indices: Tensor,
    own_score: Tensor,
    seed: noise.Seed,
    criterion: methods.Criterion,
    local: local_rows.LocalRows,
) -> Draw:
    """Builds the `Draw` of `indices`, int32 `[b]`, which `state` includes."""
    size = indices.shape[0]
    row_losses = scores.row_losses(state)
    means = local.means(row_losses, state.kept, size)
    uniform_score, places, uniform_losses = _uniform_draw(
        state, size, seed, criterion, local
    )
    # Under XLA nothing checks the embeddings, and a row whose score is NaN
    # might not be drawn. So the score of the draw is set to NaN.
    finite = ops.all(ops.isfinite(own_score))
    score = criterion.score(means)
    return Draw(
        indices=indices,
        score=ops.where(finite, score, np.nan),
        uniform_score=uniform_score,
        kept=state.kept,
        learner_loss=row_losses.get("learner"),
        reference_loss=row_losses.get("reference"),
        own_score=own_score,
        uniform_places=places,
        uniform_learner_loss=uniform_losses.get("learner"),
        uniform_reference_loss=uniform_losses.get("reference"),
    )


def _uniform_draw(state, batch_size, seed, criterion, local):
    """Draws rows uniformly; returns the draw's score, places and losses."""
    size = min(batch_size, UNIFORM_ROWS)
    # Independent of the draw's noise: with equal noise, draws would share rows.
    seed = noise.salted(seed, 0x5EED)
    keys = noise.gumbel_noise(seed, 1, local.super_batch_size)[0]
    rows = ops.top_k(keys, size)[1]
    sample = local.fetch(
        {name: model.model[:2] for name, model in state.models.items()}, rows
    )
    places, counted = local.share(size)
    losses = {}
    for name, model in state.models.items():
        image, text = (embeddings.take(part, places) for part in sample[name])
        own = type(model).start(model.model._replace(image=image, text=text))
        losses[name] = own.add(*sample[name]).sample_losses(size, batch_size)
    means = local.means(losses, counted, size)
    return criterion.score(means), places, losses


def summarize(draw: Draw, replicas=None) -> dict[str, Tensor]:
    """Summarises a draw for a log, in scalars by name.

    Returns `score`, `uniform_score`, and for each model the mean loss of the
    kept and of the dropped rows, or 0 without rows. With `replicas`, the
    means cover the rows of all replicas.
    """
    totals = {}
    for model in ("learner", "reference"):
        values = getattr(draw, f"{model}_loss")
        if values is None:
            continue
        for name, rows in (("kept", draw.kept), ("dropped", ~draw.kept)):
            totals[f"{model}_loss_{name}"] = (
                ops.sum(ops.where(rows, values, 0.0)),
                ops.sum(ops.cast(rows, "float32")),
            )
    if replicas is not None:
        totals = replicas.all_reduce(totals)
    means = {name: ops.divide_no_nan(*total) for name, total in totals.items()}
    return {"score": draw.score, "uniform_score": draw.uniform_score, **means}

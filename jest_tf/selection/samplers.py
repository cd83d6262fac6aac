"""Draws a stage's rows: jointly, independently, from the top or uniformly.

JEST chooses the `b` of `B` examples of a super-batch that are most *learnable*
together: hard for the learner, easy for the reference. In a contrastive loss
an example's difficulty depends on the rest of the batch, so chunks are drawn
one after another, each given the rows already chosen (Evans et al. 2024, arXiv
2406.17711, section 3 and algorithm 1).

A draw is a pure function of embeddings, settings and seed. It is computed in
float32, compiles under XLA, and has no gradient. Each of R replicas passes the
embeddings of its B/R rows, and all replicas compute the same draw.
"""

from typing import NamedTuple

import numpy as np
from keras import ops

from jest_tf import config, embeddings
from jest_tf.config import tables
from jest_tf.embeddings import Embeddings, Tensor
from jest_tf.selection import noise, scores
from jest_tf.selection.noise import Seed

Model = Embeddings | None

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
        own_score: float32 `[B/R]`, the criterion of each row's own pair.
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


@embeddings.in_float32
def draw(
    learner: Model,
    reference: Model,
    stage: config.Stage,
    *,
    size: int,
    loss: str,
    seed: Seed,
    quota: str = "global",
    replicas=None,
) -> Draw:
    """Draws the rows that pass a stage, each chunk given those before it.

    With S_ij the criterion of the pair (image i, text j), a row's score given
    the chosen rows C is

        sigmoid: S_ii + sum_{k in C} (S_ik + S_ki)
        softmax: the criterion of the models' losses; with logits l a loss is
                 -l_ii + 1/2 log sum_{k in C} exp(l_ik)
                       + 1/2 log sum_{k in C} exp(l_ki)

    A chunk is drawn without replacement with p proportional to
    exp(gain * score): the top rows of `gain * score + Gumbel noise`. For the
    sigmoid loss the score is exactly what the row adds to the sum of S over all
    pairs of the sub-batch.

    Args:
        learner: embeddings of the super-batch, `[B, dim]`, or with `replicas`
            of the local rows, `[B/R, dim]`. It may be None if the criterion
            does not use it; then the report has no losses of the learner.
        reference: embeddings of the same rows, `[B/R, other_dim]`; may be None
            for "hard_learner".
        stage: settings of the draw; `candidates` and `view` are not used here.
        size: b, rows that pass.
        loss: "sigmoid", "softmax" or a "module:function", as in
            `config.SelectionConfig`.
        seed: two integers, (run seed, step).
        quota: as in `config.SelectionConfig`.
        replicas: the collectives of `distribution.current()`; None if one
            replica has all rows.

    Raises:
        ValueError: if settings or shapes do not fit together, or, run eagerly,
            if embeddings are not finite. For such embeddings a graph raises
            `tf.errors.InvalidArgumentError`; a graph that XLA compiles, and
            Keras on JAX, return a `score` of NaN.

    Reference: arXiv 2406.17711, algorithm 1; docs/method.md lists where this
    differs and why.
    """
    method = tables.METHODS[stage.method]
    criterion = tables.criterion(stage.criterion)
    models = scores.check_models(learner, reference, criterion.needs)
    state = scores.start(models, loss)
    local = scores.LocalRows(state.kept.shape[0], quota, replicas)
    sizes = chunk_sizes(
        size,
        stage.num_chunks if method.in_chunks else 1,
        local.super_batch_size,
        num_quotas=local.num_quotas,
    )
    own_score = scores.conditional(state, criterion)
    chunk_keys = _chunk_keys(stage, len(sizes), seed, local)

    def draw_chunk(chunk, num_rows, state):
        keys = chunk_keys(chunk, scores.conditional(state, criterion))
        rows = local.top(ops.where(state.kept, -np.inf, keys), num_rows)
        return rows, scores.add(state, rows, local)

    chosen = []
    draw_chunks = _draw_in_a_loop if local.in_loops else _draw_unrolled
    for each in sorted(set(sizes), reverse=True):  # at most two sizes
        rows, state = draw_chunks(
            draw_chunk, sizes.index(each), sizes.count(each), each, state
        )
        chosen.append(rows)
    indices = ops.concatenate(chosen, 0)
    return _report(state, indices, own_score, seed, criterion, local)


def select_jointly(
    learner: Model,
    reference: Model,
    *,
    batch_size: int,
    num_chunks: int = 16,
    seed: Seed,
    criterion: str = "learnability",
    loss: str = "sigmoid",
) -> Draw:
    """Draws a sub-batch as the paper does, each chunk given those before it.

    Args:
        learner: embeddings of the super-batch, `[B, dim]`; may be None for
            "easy_reference".
        reference: embeddings of the same rows, `[B, other_dim]`; may be None
            for "hard_learner".
        batch_size: b, rows to draw.
        num_chunks: N, chunks of the draw.
        seed: two integers, (run seed, step).
        criterion: "learnability", "easy_reference", "hard_learner" or a
            "module:function", as in `config.Stage`.
        loss: "sigmoid", "softmax" or a "module:function", as in
            `config.SelectionConfig`.

    Example:
        >>> random = np.random.default_rng(0)
        >>> rows = random.normal(size=[2, 8, 4]).astype("float32")
        >>> rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        >>> learner = Embeddings(*rows, 10.0, -10.0)
        >>> reference = learner._replace(text=learner.image)
        >>> drawn = select_jointly(
        ...     learner, reference, batch_size=4, num_chunks=2, seed=(0, 1)
        ... )
        >>> tuple(drawn.indices.shape)
        (4,)
    """
    return draw(
        learner,
        reference,
        config.Stage(1, num_chunks=num_chunks, criterion=criterion),
        size=batch_size,
        loss=loss,
        seed=seed,
    )


def uniform_rows(
    seed: Seed, batch_size: int, super_batch_size: int, *, num_quotas: int = 1
) -> Tensor:
    """Draws rows uniformly, without scores; int32 `[b]`.

    Args:
        seed: two integers, (run seed, step).
        batch_size: b.
        super_batch_size: B.
        num_quotas: R for quota "per_replica", 1 for "global". Both draw without
            a collective.
    """
    chunk_sizes(batch_size, 1, super_batch_size, num_quotas=num_quotas)
    keys = noise.gumbel_noise(seed, 1, super_batch_size)[0]
    return scores.top_rows(keys, batch_size, num_quotas)


def chunk_sizes(
    batch_size: int,
    num_chunks: int,
    super_batch_size: int,
    *,
    num_quotas: int = 1,
) -> list[int]:
    """Returns the number of rows that each of `num_chunks` chunks draws.

    The b/R rows of each of the R quotas are split among the N = `num_chunks`
    chunks; the remainder goes to the first chunks, one row each.
    """
    share, rest = divmod(batch_size, num_quotas)
    rest += super_batch_size % num_quotas
    if rest or not 1 <= num_chunks <= share <= super_batch_size // num_quotas:
        raise ValueError(
            "`batch_size` (b) must not exceed the super-batch (B), R must "
            "divide both, and `num_chunks` must be from 1 to b/R, so that "
            "every chunk draws a row. R is the number of replicas with "
            "`quota='per_replica'`, else 1. "
            f"Received: num_chunks={num_chunks}, B={super_batch_size}, "
            f"batch_size={batch_size}, R={num_quotas}"
        )
    size, rest = divmod(share, num_chunks)
    return [num_quotas * (size + (n < rest)) for n in range(num_chunks)]


def draw_flops(
    rows_in: int, rows_out: int, width: int, num_groups: int = 1
) -> int:
    """Counts the floating-point operations of a draw's matrix products.

    A multiply-add is two operations. Each row is compared with its own caption
    and, in both directions, with the rows of its group that pass. The rows of
    the uniform draw are compared with each other.

    Args:
        rows_in: rows of all groups.
        rows_out: rows that pass, of all groups.
        width: sum of the widths of the models that score.
        num_groups: equal groups within which rows are drawn.
    """
    passed = rows_out // num_groups
    compared = num_groups * min(passed, UNIFORM_ROWS) ** 2
    return 2 * width * (rows_in * (1 + 2 * passed) + 2 * compared)


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


def _report(
    state: scores.State,
    indices: Tensor,
    own_score: Tensor,
    seed: noise.Seed,
    criterion: tables.Criterion,
    local: scores.LocalRows,
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


def _chunk_keys(stage, num_chunks, seed, local):
    """Returns `(chunk, score) -> keys`, `[B/R]`; the highest keys are drawn."""
    method = tables.METHODS[stage.method]
    if not method.adds_noise:
        return lambda chunk, score: score
    # Noise depends on a row's place among all rows.
    every = noise.gumbel_noise(seed, num_chunks, local.super_batch_size)
    own = local.own(every)

    def keys(chunk, score):
        of_chunk = embeddings.take(own, chunk)
        return stage.gain * score + of_chunk if method.scores else of_chunk

    return keys


def _draw_unrolled(draw_chunk, first, count, size, state):
    """As `_draw_in_a_loop`, unrolled: a loop can't contain some collectives."""
    drawn = []
    for chunk in range(first, first + count):
        rows, state = draw_chunk(chunk, size, state)
        drawn.append(rows)
    return ops.concatenate(drawn, 0), state


def _draw_in_a_loop(draw_chunk, first, count, size, state):
    """Draws `count` chunks of one size, from chunk `first` on, in one graph."""

    def step(state, index):
        rows, state = draw_chunk(first + index, size, state)
        return state, (rows,)

    state, (drawn,) = embeddings.scan(step, count, state, (([size], "int32"),))
    return ops.reshape(drawn, [count * size]), state

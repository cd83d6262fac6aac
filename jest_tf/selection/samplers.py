"""Draws of a sub-batch: jointly, independently, from the top, uniformly.

JEST chooses the `b` of `B` examples of a super-batch that are most *learnable*
together: hard for the learner, easy for the reference. In a contrastive loss
an example's difficulty depends on the rest of the batch, so chunks are drawn
one after another, each given the rows already chosen (Evans et al. 2024, arXiv
2406.17711, section 3 and algorithm 1).

A draw is a pure function of embeddings, settings and seed, in float32, compiles
under XLA and has no gradient. With R replicas each passes the embeddings of its
B/R rows, and all compute the same draw.
"""

import numpy as np
import tensorflow as tf

from jest_tf import config
from jest_tf.embeddings import Embeddings
from jest_tf.selection import local_rows, noise, report, scores
from jest_tf.selection.noise import Seed

Model = Embeddings | None

_SETTINGS = ("num_chunks", "criterion", "loss", "first_chunk", "gain", "quota")


def draw(
    learner: Model,
    reference: Model,
    seed: Seed,
    settings: config.SelectionConfig,
    replicas=None,
) -> report.Draw:
    """Draws a sub-batch in chunks, each given all rows chosen before it.

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
        learner: embeddings of the super-batch, `[B, dim]`, with `replicas` of
            the local rows, `[B/R, dim]`. None, for a criterion that does not
            use it, also leaves it out of the report.
        reference: embeddings of the same rows, `[B/R, other_dim]`; may be None
            for "hard_learner".
        seed: two integers, (run seed, step).
        settings: of the draw, with a `batch_size`; a `loss` of None is
            "sigmoid". Views, candidates and a schedule are the caller's.
        replicas: the collectives of `distribution.current()`; None where one
            replica has all rows.

    Raises:
        ValueError: if settings or shapes do not fit together, or, run eagerly,
            if embeddings are not finite. For these a graph raises
            `tf.errors.InvalidArgumentError`; one that XLA compiles gives a
            `score` of NaN.

    Reference: arXiv 2406.17711, algorithm 1; docs/method.md lists where this
    differs and why.
    """
    criterion = settings.criterion
    models = scores.check_models(learner, reference, criterion)
    state = scores.start(models, settings.loss or "sigmoid")
    local = local_rows.LocalRows(state.kept.shape[0], settings.quota, replicas)
    sizes = chunk_sizes(
        settings.batch_size,
        settings.num_chunks if settings.method == "joint" else 1,
        local.super_batch_size,
        num_quotas=local.num_quotas,
    )
    own_score = scores.conditional(state, criterion)
    chunk_keys = _chunk_keys(settings, len(sizes), seed, local)

    def draw_chunk(chunk, size, state):
        keys = chunk_keys(chunk, scores.conditional(state, criterion))
        rows = local.top(tf.where(state.kept, -np.inf, keys), size)
        return rows, scores.add(state, rows, local)

    chosen = []
    draw_chunks = _draw_in_a_loop if local.in_loops else _draw_unrolled
    for size in sorted(set(sizes), reverse=True):  # two at most
        rows, state = draw_chunks(
            draw_chunk, sizes.index(size), sizes.count(size), size, state
        )
        chosen.append(rows)
    indices = tf.concat(chosen, 0)
    return report.report(state, indices, own_score, seed, criterion, local)


def select_jointly(
    learner: Model, reference: Model, *, seed: Seed, replicas=None, **settings
) -> report.Draw:
    """Draws a sub-batch as the paper does, each chunk given those before it.

    Args:
        learner, reference, seed, replicas: as in `selection.draw`.
        **settings: `batch_size`, and any of `num_chunks`, `criterion`, `loss`,
            `first_chunk`, `gain` and `quota`, as in `SelectionConfig`.

    Returns, Raises: as `selection.draw`.
    """
    return _select("joint", learner, reference, seed, replicas, **settings)


def select_independently(
    learner: Model, reference: Model, *, seed: Seed, replicas=None, **settings
) -> report.Draw:
    """Draws every row by its own pair: joint selection with a single chunk.

    The paper's baseline. Arguments and result as in `select_jointly`;
    `num_chunks` is unused.
    """
    return _select(
        "independent", learner, reference, seed, replicas, **settings
    )


def select_top(
    learner: Model, reference: Model, *, seed: Seed, replicas=None, **settings
) -> report.Draw:
    """Takes the `batch_size` rows whose own pair scores highest.

    Deterministic independent selection, as in RHO-LOSS (Mindermann et al.
    2022, arXiv 2206.07137). Ties go to the lower row. Arguments and result as
    in `select_jointly`; `num_chunks`, `first_chunk` and `gain` are unused, and
    `seed` only affects the uniform draw reported for comparison.
    """
    return _select("top", learner, reference, seed, replicas, **settings)


def select_uniformly(
    learner: Model, reference: Model, *, seed: Seed, replicas=None, **settings
) -> report.Draw:
    """Draws uniformly; the criterion affects only the report.

    Arguments and result as in `select_jointly`; `num_chunks`, `first_chunk`
    and `gain` are unused.
    """
    return _select("uniform", learner, reference, seed, replicas, **settings)


SAMPLERS = {
    "joint": select_jointly,
    "independent": select_independently,
    "top": select_top,
    "uniform": select_uniformly,
}


def uniform_rows(
    seed: Seed, batch_size: int, super_batch_size: int, *, num_quotas: int = 1
) -> tf.Tensor:
    """Draws the rows of `select_uniformly`, without scores; int32 `[b]`.

    Args, Raises: as `independent_rows`, of B = `super_batch_size` rows.
    """
    own_score = tf.zeros([super_batch_size])
    return independent_rows(own_score, seed, batch_size, num_quotas=num_quotas)


def independent_rows(
    own_score: tf.Tensor,
    seed: Seed,
    batch_size: int,
    *,
    gain: float = 1.0,
    num_quotas: int = 1,
) -> tf.Tensor:
    """Draws the rows of `select_independently`; int32 `[b]`.

    Args:
        own_score: float32 `[B]`, `Draw.own_score` of all rows.
        seed: two integers, (run seed, step).
        batch_size: b.
        gain: factor of every score.
        num_quotas: R for quota "per_replica", 1 for "global". Neither needs a
            collective.

    Raises:
        ValueError: unless 1 <= batch_size <= B, and `num_quotas` divides both.
    """
    size = own_score.shape[0]
    chunk_sizes(batch_size, 1, size, num_quotas=num_quotas)
    keys = gain * own_score + noise.gumbel_noise(seed, 1, size)[0]
    return local_rows.top_rows(keys, batch_size, num_quotas)


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

    Raises:
        ValueError: unless 1 <= num_chunks <= b/R <= B/R, in integers, with
            b = `batch_size`, B = `super_batch_size` and R = `num_quotas`.
    """
    share, rest = divmod(batch_size, num_quotas)
    rest += super_batch_size % num_quotas
    if rest or not 1 <= num_chunks <= share <= super_batch_size // num_quotas:
        raise ValueError(
            "`batch_size` (b) must be at most the super-batch (B), R divide "
            "both, and `num_chunks` be from 1 to b/R, so that every chunk "
            "draws a row; with `quota='per_replica'` R is the number of "
            "replicas, or else 1. "
            f"Received: num_chunks={num_chunks}, B={super_batch_size}, "
            f"batch_size={batch_size}, R={num_quotas}"
        )
    size, rest = divmod(share, num_chunks)
    return [num_quotas * (size + (n < rest)) for n in range(num_chunks)]


def _select(
    method, learner, reference, seed, replicas, *, batch_size, **settings
):
    if not settings.keys() <= {*_SETTINGS}:
        raise TypeError(
            f"The settings of a draw must be `batch_size` and of {_SETTINGS}. "
            f"Received: {(*settings,)}"
        )
    settings = config.SelectionConfig(method, batch_size, **settings)
    return draw(learner, reference, seed, settings, replicas)


def _chunk_keys(settings, num_chunks, seed, local):
    """`(chunk, score) -> keys`, `[B/R]`; the highest keys are drawn."""
    if settings.method == "top":
        return lambda chunk, score: score
    # Noise depends on a row's place among all rows.
    every = noise.gumbel_noise(seed, num_chunks, local.super_batch_size)
    own = local.own(every)
    uniform = settings.method == "uniform"

    def keys(chunk, score):
        logits = settings.gain * score
        if uniform or settings.first_chunk == "uniform":
            logits = tf.where(chunk == 0, 0.0, logits)
        return logits + tf.gather(own, chunk)

    return keys


def _draw_unrolled(draw_chunk, first, count, size, state):
    """`_draw_in_a_loop`, unrolled for collectives that a loop can't contain."""
    drawn = []
    for chunk in range(first, first + count):
        rows, state = draw_chunk(chunk, size, state)
        drawn.append(rows)
    return tf.concat(drawn, 0), state


def _draw_in_a_loop(draw_chunk, first, count, size, state):
    """Draws `count` chunks of one size, from chunk `first` on, in one graph."""
    drawn = tf.TensorArray(tf.int32, size=count, element_shape=[size])

    def step(chunk, drawn, state):
        rows, state = draw_chunk(chunk, size, state)
        return chunk + 1, drawn.write(chunk - first, rows), state

    _, drawn, state = tf.while_loop(
        lambda chunk, *_: chunk < first + count,
        step,
        (tf.constant(first), drawn, state),
        parallel_iterations=1,
    )
    return tf.reshape(drawn.stack(), [count * size]), state

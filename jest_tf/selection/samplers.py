"""Joint example selection, without a matrix of pairs.

JEST chooses `b` of the `B` examples of a super-batch so that the sub-batch is
most *learnable*: hard for the learner, easy for the reference. In a
contrastive loss an example's difficulty depends on its companions, so the
choice is joint: chunks are drawn one after another, each conditioned on the
rows already chosen (Evans et al. 2024, arXiv 2406.17711, section 3 and
algorithm 1).

The scores that a draw is made by are in `selection/scores.py`, which is how no
matrix of pairs comes to be. Everything is a pure function of embeddings,
settings and seed, in float32, and compiles under XLA. No gradient flows through
a draw.

With R replicas each gives the embeddings of the B/R rows that it holds, and
all arrive at one draw: by default the one that a single replica makes. How
rows and scores find together is in `distribution/placement.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf.distribution import placement
from jest_tf.embeddings import Embeddings
from jest_tf.selection import scores as scores_lib

CRITERIA = scores_lib.CRITERIA
LOSSES = scores_lib.LOSSES
QUOTAS = placement.QUOTAS
FIRST_CHUNKS = ("diagonal", "uniform")

# Rows of the uniform draw that a draw is compared with. For larger sub-batches
# its score is scaled up from so many rows.
UNIFORM_ROWS = 1024


class Draw(NamedTuple):
    """A sub-batch, and what the draw reports about itself.

    The loss of a row is its share of the contrastive loss of the sub-batch;
    for a row that was not chosen, the share it would have as one more row. The
    mean over the chosen rows is the sub-batch's loss.

    Of several replicas, all have the same indices and scores; the other fields
    are of the B/R rows that each holds, r * B/R and on of replica r, and those
    of the uniform draw of the part of it that each works through.

    Attributes:
        indices: int32 `[b]`, rows of the super-batch in the order drawn; with
            quota "per_replica", chunk by chunk, those of replica 0 first.
        score: float32 scalar, the criterion of the sub-batch: for learnability
            the learner's loss on it minus the reference's. NaN, in a graph that
            XLA compiles, if embeddings held here are not finite.
        uniform_score: float32 scalar, the same of a uniform draw of `b` rows.
            Above 1,024 rows it is scaled up from a uniform draw of 1,024.
        kept: bool `[B/R]`, true for the chosen rows.
        learner_loss: float32 `[B/R]`, given the sub-batch; None without
            learner.
        reference_loss: float32 `[B/R]`, the same of the reference.
        own_score: float32 `[B/R]`, the criterion of each row's own pair, by
            which `independent_rows` draws.
        uniform_places: int32 `[u]`, which rows of the uniform draw, in the
            order drawn, the next two fields are of; the last may stand there
            several times.
        uniform_learner_loss: float32 `[u]`, of rows of the uniform draw given
            that draw; None without learner.
        uniform_reference_loss: float32 `[u]`, the same of the reference.
    """

    indices: tf.Tensor
    score: tf.Tensor
    uniform_score: tf.Tensor
    kept: tf.Tensor
    learner_loss: tf.Tensor | None
    reference_loss: tf.Tensor | None
    own_score: tf.Tensor
    uniform_places: tf.Tensor
    uniform_learner_loss: tf.Tensor | None
    uniform_reference_loss: tf.Tensor | None


def select_jointly(
    learner: Embeddings | None,
    reference: Embeddings | None,
    *,
    batch_size: int,
    num_chunks: int = 16,
    seed: Sequence[int] | tf.Tensor,
    criterion: str = "learnability",
    loss: str = "sigmoid",
    first_chunk: str = "diagonal",
    gain: float = 1.0,
    quota: str = "global",
    replicas=None,
) -> Draw:
    """Draws a sub-batch in chunks, each given all rows chosen before it.

    With S_ij the criterion of the pair (image i, text j), a row's score given
    the chosen rows C is

        sigmoid: S_ii + sum_{k in C} (S_ik + S_ki)
        softmax: S_ii + 1/2 (log sum_{k in C} exp(l_ik) + log sum exp(l_ki)),
                 l the logits, the criterion taken of each model's value

    and a chunk is drawn without replacement with p proportional to
    exp(gain * score): the top rows of `gain * score + Gumbel noise`. For the
    sigmoid loss the score is the exact amount that the row adds to the sum of
    S over all pairs of the sub-batch.

    Args:
        learner: embeddings of the super-batch, `[B, dim]`, with `replicas` of
            the rows held here, `[B/R, dim]`. May be None for a criterion that
            does not use it, and is then not reported either.
        reference: embeddings of the same rows, `[B/R, other_dim]`; may be None
            for "hard_learner".
        batch_size: b, rows to choose, at most B.
        num_chunks: N, at most b; of b rows over N chunks the remainder goes
            one each to the first chunks.
        seed: two integers, (run seed, step).
        criterion: "learnability" (learner - reference), "easy_reference"
            (- reference) or "hard_learner" (learner).
        loss: "sigmoid" or "softmax", what a pair's loss is.
        first_chunk: "diagonal" draws it by S_ii alone, "uniform" uniformly.
        gain: multiplies every score before the noise is added; 0 is uniform.
        quota: with `replicas`, whose rows they are: "global" draws what one
            replica would, "per_replica" b/R rows from each replica's own,
            every chunk R times the same number, and each scored given all
            rows chosen anywhere.
        replicas: the collectives of `distribution.current()`; None where one
            replica holds all rows.

    Returns:
        A `Draw`.

    Raises:
        ValueError: on settings or shapes that do not fit together, and, run
            eagerly, on embeddings that are not finite. A graph raises
            `tf.errors.InvalidArgumentError` for these; one that XLA compiles
            has a `score` of NaN.

    Reference: arXiv 2406.17711, algorithm 1; docs/method.md lists where this
    differs and why.
    """
    if first_chunk not in FIRST_CHUNKS:
        raise ValueError(
            f"`first_chunk` must be one of {FIRST_CHUNKS}. "
            f"Received: {first_chunk!r}"
        )
    scores = scores_lib.Scores(
        learner, reference, criterion, loss, quota, replicas
    )
    held = scores.held
    sizes = _chunk_sizes_of(held, batch_size, num_chunks)
    # The noise of a row is that of its place among all.
    noise = held.own(gumbel_noise(seed, num_chunks, held.super_batch_size))
    own_score = scores.conditional()  # nothing is chosen yet

    def draw(chunk, size, kept, state):
        scores.state = state
        logits = gain * scores.conditional()
        if first_chunk == "uniform":
            logits = tf.where(chunk == 0, 0.0, logits)
        keys = tf.where(kept, -np.inf, logits + tf.gather(noise, chunk))
        rows = held.top(keys, size)
        scores.add(rows)
        return rows, kept | held.mask(rows), scores.state

    kept = tf.zeros([held.num_rows], tf.bool)
    chosen, state = [], scores.state
    draw_chunks = _draw_in_a_loop if held.in_loops else _draw_unrolled
    for size in sorted(set(sizes), reverse=True):  # two at most
        rows, kept, state = draw_chunks(
            draw, sizes.index(size), sizes.count(size), size, kept, state
        )
        chosen.append(rows)
    scores.state = state
    return _report(scores, tf.concat(chosen, 0), kept, own_score, seed)


def select_independently(
    learner: Embeddings | None,
    reference: Embeddings | None,
    *,
    batch_size: int,
    num_chunks: int = 16,
    seed: Sequence[int] | tf.Tensor,
    criterion: str = "learnability",
    loss: str = "sigmoid",
    first_chunk: str = "diagonal",
    gain: float = 1.0,
    quota: str = "global",
    replicas=None,
) -> Draw:
    """Draws every row by its own pair: joint selection with a single chunk.

    The baseline that the paper calls independent selection. Arguments and
    result as in `select_jointly`; `num_chunks` is not used.
    """
    del num_chunks
    return select_jointly(
        learner,
        reference,
        batch_size=batch_size,
        num_chunks=1,
        seed=seed,
        criterion=criterion,
        loss=loss,
        first_chunk=first_chunk,
        gain=gain,
        quota=quota,
        replicas=replicas,
    )


def select_top(
    learner: Embeddings | None,
    reference: Embeddings | None,
    *,
    batch_size: int,
    num_chunks: int = 16,
    seed: Sequence[int] | tf.Tensor,
    criterion: str = "learnability",
    loss: str = "sigmoid",
    first_chunk: str = "diagonal",
    gain: float = 1.0,
    quota: str = "global",
    replicas=None,
) -> Draw:
    """Takes the `batch_size` rows whose own pair scores highest.

    Independent selection without chance, as RHO-LOSS selects (Mindermann et
    al. 2022, arXiv 2206.07137). Ties go to the lower row. Arguments and result
    as in `select_jointly`; `num_chunks`, `first_chunk` and `gain` are not used,
    `seed` only by the uniform draw that is reported for comparison.
    """
    del num_chunks, first_chunk, gain
    scores = scores_lib.Scores(
        learner, reference, criterion, loss, quota, replicas
    )
    _chunk_sizes_of(scores.held, batch_size, 1)
    own_score = scores.conditional()
    rows = scores.held.top(own_score, batch_size)
    scores.add(rows)
    kept = scores.held.mask(rows)
    return _report(scores, rows, kept, own_score, seed)


def select_uniformly(
    learner: Embeddings | None,
    reference: Embeddings | None,
    *,
    batch_size: int,
    num_chunks: int = 16,
    seed: Sequence[int] | tf.Tensor,
    criterion: str = "learnability",
    loss: str = "sigmoid",
    first_chunk: str = "diagonal",
    gain: float = 1.0,
    quota: str = "global",
    replicas=None,
) -> Draw:
    """Draws uniformly; the criterion only says what is reported.

    Arguments and result as in `select_jointly`; `num_chunks`, `first_chunk`
    and `gain` are not used.
    """
    del num_chunks, first_chunk, gain
    return select_jointly(
        learner,
        reference,
        batch_size=batch_size,
        num_chunks=1,
        seed=seed,
        criterion=criterion,
        loss=loss,
        first_chunk="uniform",
        quota=quota,
        replicas=replicas,
    )


def uniform_rows(
    seed: Sequence[int] | tf.Tensor,
    batch_size: int,
    super_batch_size: int,
    *,
    num_quotas: int = 1,
) -> tf.Tensor:
    """The rows that `select_uniformly` draws, with nothing scored; int32 `[b]`.

    Args:
        seed: two integers, (run seed, step).
        batch_size: b.
        super_batch_size: B.
        num_quotas: the number of replicas, R, for quota "per_replica"; 1 for
            "global". No collective is needed for either.

    Raises:
        ValueError: unless 1 <= batch_size <= super_batch_size, and
            `num_quotas` divides both.
    """
    chunk_sizes(batch_size, 1, super_batch_size)
    noise = gumbel_noise(seed, 1, super_batch_size)[0]
    return _top_rows(noise, batch_size, num_quotas)


def independent_rows(
    own_score: tf.Tensor,
    seed: Sequence[int] | tf.Tensor,
    batch_size: int,
    *,
    gain: float = 1.0,
    num_quotas: int = 1,
) -> tf.Tensor:
    """The rows that `select_independently` draws; int32 `[b]`.

    Args:
        own_score: float32 `[B]`, `Draw.own_score` of all rows.
        seed: two integers, (run seed, step).
        batch_size: b.
        gain: multiplies every score before the noise is added.
        num_quotas: as in `uniform_rows`.

    Raises:
        ValueError: as `uniform_rows`.
    """
    size = own_score.shape[0]
    chunk_sizes(batch_size, 1, size)
    noise = gumbel_noise(seed, 1, size)[0]
    return _top_rows(gain * own_score + noise, batch_size, num_quotas)


def sub_batch_score(
    learner: Embeddings | None,
    reference: Embeddings | None,
    rows: tf.Tensor,
    *,
    criterion: str = "learnability",
    loss: str = "sigmoid",
) -> tuple[tf.Tensor, tf.Tensor]:
    """The criterion of a sub-batch that others have chosen.

    Args:
        learner: embeddings of the super-batch, `[B, dim]`, or None.
        reference: embeddings of the same rows, or None.
        rows: int32 `[b]`, each once.
        criterion: as in `select_jointly`.
        loss: as in `select_jointly`.

    Returns:
        float32 scalar, as `Draw.score`; float32 `[B]`, what each row would add
        to the sub-batch, by which a further chunk would be drawn. Of rows that
        it holds already that says nothing.
    """
    scores = scores_lib.Scores(learner, reference, criterion, loss)
    scores.add(rows)
    kept = scores.held.mask(rows)
    row_losses = {
        name: model.row_losses(kept) for name, model in scores.models.items()
    }
    score = scores.of(scores.held.means(row_losses, rows, kept))
    return score, scores.conditional()


SAMPLERS = {
    "joint": select_jointly,
    "independent": select_independently,
    "top": select_top,
    "uniform": select_uniformly,
}


def gumbel_noise(
    seed: Sequence[int] | tf.Tensor, num_chunks: int, super_batch_size: int
) -> tf.Tensor:
    """The noise of a draw: one standard Gumbel variate a chunk and row.

    The top k rows of `logits + noise` are k rows drawn without replacement
    with p proportional to exp(logits) (Kool et al. 2019, arXiv 1903.06059).

    Args:
        seed: two integers, (run seed, step).
        num_chunks: N.
        super_batch_size: B.

    Returns:
        float32 `[N, B]`, a function of its arguments alone.
    """
    # Philox integers are the same bits with and without XLA; its floats aren't.
    bits = tf.random.stateless_uniform(
        [num_chunks, super_batch_size],
        seed=_seed(seed),
        minval=None,
        maxval=None,
        dtype=tf.uint32,
        alg="philox",
    )
    # The middles of 2^23 cells of (0, 1): never 0 or 1, and exact in float32.
    cells = tf.cast(tf.bitwise.right_shift(bits, 9), tf.float32)
    uniform = (cells + 0.5) * 2.0**-23
    return -tf.math.log(-tf.math.log(uniform))


def chunk_sizes(
    batch_size: int, num_chunks: int, super_batch_size: int
) -> list[int]:
    """The rows that each of `num_chunks` chunks draws, `batch_size` in all.

    Raises:
        ValueError: unless 1 <= num_chunks <= batch_size <= super_batch_size.
    """
    if not 1 <= batch_size <= super_batch_size:
        raise ValueError(
            "`batch_size` (b) must be from 1 to the size of the super-batch, "
            f"B={super_batch_size}. Received: batch_size={batch_size}"
        )
    if not 1 <= num_chunks <= batch_size:
        raise ValueError(
            "`num_chunks` must be from 1 to `batch_size`, so that every chunk "
            f"draws a row. Received: num_chunks={num_chunks}, "
            f"batch_size={batch_size}"
        )
    size, rest = divmod(batch_size, num_chunks)
    return [size + (chunk < rest) for chunk in range(num_chunks)]


def summarize(draw: Draw, replicas=None) -> dict[str, tf.Tensor]:
    """The scalars of a draw that a log wants, by name.

    `score` and `uniform_score`, and for each model that was given the mean
    loss of the kept and of the dropped rows. Where nothing was dropped the mean
    of the dropped rows is 0. With `replicas` the means run over all replicas'
    rows, and all replicas get the same.
    """
    totals = {}
    for model in ("learner", "reference"):
        values = getattr(draw, f"{model}_loss")
        if values is None:
            continue
        for name, rows in (("kept", draw.kept), ("dropped", ~draw.kept)):
            totals[f"{model}_loss_{name}"] = (
                tf.reduce_sum(tf.where(rows, values, 0.0)),
                tf.reduce_sum(tf.cast(rows, tf.float32)),
            )
    if replicas is not None:
        totals = replicas.all_reduce(totals)
    means = {
        name: tf.math.divide_no_nan(*total) for name, total in totals.items()
    }
    return {"score": draw.score, "uniform_score": draw.uniform_score, **means}


def _chunk_sizes_of(held, batch_size, num_chunks):
    """The rows of each chunk, over all quotas."""
    parts = held.num_quotas
    if parts == 1:
        return chunk_sizes(batch_size, num_chunks, held.super_batch_size)
    placement.share(batch_size, parts, "`batch_size`")
    share = batch_size // parts
    if not 1 <= share <= held.num_rows or not 1 <= num_chunks <= share:
        raise ValueError(
            "`quota='per_replica'` draws b/R rows from the B/R of a replica, "
            "at least one in every chunk; expected num_chunks <= b/R <= B/R. "
            f"Received: num_chunks={num_chunks}, b/R={share}, "
            f"B/R={held.num_rows} (R={parts})"
        )
    sizes = chunk_sizes(share, num_chunks, held.num_rows)
    return [parts * size for size in sizes]


def _top_rows(keys, batch_size, num_quotas):
    """The rows with the highest of `[B]` keys, as many of each quota."""
    if num_quotas == 1:
        return tf.math.top_k(keys, batch_size).indices
    placement.share(batch_size, num_quotas, "`batch_size`")
    size = placement.share(keys.shape[0], num_quotas, "`super_batch_size`")
    keys = tf.reshape(keys, [num_quotas, -1])
    own = tf.math.top_k(keys, batch_size // num_quotas).indices
    first = tf.range(num_quotas) * size
    return tf.reshape(first[:, tf.newaxis] + own, [batch_size])


def _draw_unrolled(draw, first, count, size, kept, state):
    """As `_draw_in_a_loop`, for collectives that can't stand in one."""
    drawn = []
    for chunk in range(first, first + count):
        rows, kept, state = draw(chunk, size, kept, state)
        drawn.append(rows)
    return tf.concat(drawn, 0), kept, state


def _draw_in_a_loop(draw, first, count, size, kept, state):
    """Draws `count` chunks of one size, from chunk `first` on.

    A loop, because the graph would otherwise hold a copy of each chunk's.
    """
    drawn = tf.TensorArray(tf.int32, size=count, element_shape=[size])

    def step(chunk, drawn, kept, state):
        rows, kept, state = draw(chunk, size, kept, state)
        return chunk + 1, drawn.write(chunk - first, rows), kept, state

    _, drawn, kept, state = tf.while_loop(
        lambda chunk, *_: chunk < first + count,
        step,
        (tf.constant(first), drawn, kept, state),
        parallel_iterations=1,
    )
    return tf.reshape(drawn.stack(), [count * size]), kept, state


def _report(scores, indices, kept, own_score, seed):
    """A draw's `Draw`; `scores` has been given all of its rows."""
    row_losses = {
        name: model.row_losses(kept) for name, model in scores.models.items()
    }
    uniform_score, places, uniform_losses = _uniform_draw(
        scores, indices.shape[0], seed
    )
    score = scores.of(scores.held.means(row_losses, indices, kept))
    # What XLA compiles has no checks, and a row whose score is not a number
    # need not be drawn: the draw's own score has to tell of it.
    finite = tf.reduce_all(tf.math.is_finite(own_score))
    return Draw(
        indices=indices,
        score=tf.where(finite, score, np.nan),
        uniform_score=uniform_score,
        kept=kept,
        learner_loss=row_losses.get("learner"),
        reference_loss=row_losses.get("reference"),
        own_score=own_score,
        uniform_places=places,
        uniform_learner_loss=uniform_losses.get("learner"),
        uniform_reference_loss=uniform_losses.get("reference"),
    )


def _uniform_draw(scores, batch_size, seed):
    """A uniform draw of `batch_size` rows: criterion, places, their losses."""
    size = min(batch_size, UNIFORM_ROWS)
    # Noise of its own, so that the comparison says nothing about the draw.
    seed = tf.bitwise.bitwise_xor(_seed(seed), [0x5EED, 0])
    held = scores.held
    rows = uniform_rows(seed, size, held.super_batch_size)
    sample = held.fetch(
        {name: model.embeddings[:2] for name, model in scores.models.items()},
        rows,
    )
    part = held.part(size)
    values = {}
    for name, model in scores.models.items():
        image, text = (tf.gather(value, part) for value in sample[name])
        sums = type(model)(model.embeddings._replace(image=image, text=text))
        sums.add(*sample[name])
        values[name] = sums.sample_losses(size, batch_size)
    return scores.of(held.part_means(values, size)), part, values


def _seed(seed):
    if isinstance(seed, (tuple, list)):
        seed = tf.stack([tf.cast(part, tf.int32) for part in seed])
    seed = tf.cast(tf.convert_to_tensor(seed), tf.int32)
    if seed.shape != (2,):
        raise ValueError(
            "`seed` must be two integers, (run seed, step). "
            f"Received: shape {seed.shape}"
        )
    return seed

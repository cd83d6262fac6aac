"""Pairwise contrastive losses: sigmoid (SigLIP) and softmax (CLIP).

Both take unit-norm embeddings of `b` image-text pairs, form the logits
`scale * image @ text.T + bias` and return one float32 scalar. With a
`block_size`, logits are formed in blocks of rows and formed again for the
closed-form gradient, so no `b x b` matrix is held. The results are the same.

The pair of the data, image i with text i, is positive. Every other pair of the
batch is negative, or left out as a false negative.

With `replicas`, the collectives, each replica forms the logits of its b/R rows
with all b rows, so negatives come from all replicas.

Reference: Zhai et al. 2023, "Sigmoid loss for language image pre-training"
(arXiv 2303.15343), section 3.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from jest_tf import embeddings
from jest_tf.config import checks, imports, tables
from jest_tf.embeddings import Embeddings, Tensor
from jest_tf.losses.running import SigmoidRows, SoftmaxRows

# The cosine of a duplicate is that of the pair itself, but for rounding.
_ROUNDING = 1e-4
_PARTS_OF_ROWS = (
    *("start", "add", "conditional", "row_losses", "sample_losses", "model"),
)


class PairLoss(NamedTuple):
    """A contrastive loss, for training and for scoring.

    Attributes:
        train: the loss of a batch, with the arguments of `sigmoid_loss`.
        rows: a NamedTuple of tensors with the methods and the field `model` of
            `SigmoidRows`: the losses of all rows given the chosen rows.

    Example:
        >>> def scaled(learner, **options):
        ...     return 2.0 * sigmoid_loss(learner, **options)
        >>> mine = sigmoid()._replace(train=scaled)
    """

    train: Callable
    rows: type


def sigmoid() -> PairLoss:
    """Returns SigLIP's loss."""
    return PairLoss(sigmoid_loss, SigmoidRows)


def softmax() -> PairLoss:
    """Returns CLIP's loss."""
    return PairLoss(softmax_loss, SoftmaxRows)


def pair_loss(name: str, setting: str = "loss") -> PairLoss:
    """Returns the loss of a name or of a "module:function"."""
    if name in tables.LOSSES:
        return _built_in(name)
    checks.check(setting, name, checks.name_or_function(*tables.LOSSES))
    return _called(setting, name)


@functools.cache
def _built_in(name):
    return _called("loss", tables.LOSSES[name])


def _called(setting, name):
    made = imports.call_function(setting, name, "PairLoss")
    if not isinstance(made, PairLoss) or not all(
        hasattr(made.rows, part) for part in _PARTS_OF_ROWS
    ):
        raise ValueError(
            f"`{setting}` must name a function that returns a PairLoss, whose "
            "`rows` has the methods of SigmoidRows and the field `model`. "
            f"Received: {made!r} from {name}"
        )
    return made


def chance(name: str, batch_size: int) -> float | None:
    """Returns the loss of b > 1 pairs under a learner that finds all alike.

    Its logits are all equal: to any number for the softmax loss, log(b), and to
    the best, -log(b - 1), for the sigmoid loss, log(b) + (b - 1) log(b / (b -
    1)). No pair is left out. None for other losses.
    """
    b = batch_size
    if b < 2 or name not in tables.LOSSES:
        return None
    level = math.log(b)
    if name == "sigmoid":
        level -= (b - 1) * math.log1p(-1 / b)
    return level


def sigmoid_loss(
    learner: Embeddings,
    *,
    ids: Tensor | None = None,
    reference: Embeddings | None = None,
    margin: float = 0.0,
    block_size: int | None = None,
    replicas=None,
) -> Tensor:
    """Computes SigLIP's pairwise sigmoid loss.

    With z_ij = +1 for the pairs of the data, i = j, and -1 for the others:

        loss = 1/b sum_i sum_j softplus(-z_ij (scale <image_i, text_j> + bias))

    that is, the mean over rows of the sum over columns. Pairs that
    `ids` or `reference` mark as false negatives have no term. By default there
    are none, as in the paper.

    Args:
        learner: embeddings of the batch, `[b, dim]`, of any float dtype; the
            loss is computed in float32.
        ids: int `[b]`, or int `[b, parts]`, equal if all parts are. Pairs of
            different rows with equal ids, e.g. of a caption, are left out.
        reference: a model's embeddings of the same rows, of any width, without
            a gradient. Pairs that `is_false_negative` marks are left out.
        margin: cosine by which such a pair may be less similar; without
            `reference` it has no effect.
        block_size: rows of logits formed at a time; None forms all local rows
            at once.
        replicas: the collectives of `distribution.current()`, where each of R
            replicas has `[b/R, dim]` embeddings and `[b/R]` ids; None on one
            replica.

    Returns:
        float32 scalar; with `replicas` the loss of all b rows, on every
        replica. Each replica's gradient covers its local rows. Summed over
        replicas, as optimizers do, it is the gradient of the whole loss.

    Reference: arXiv 2303.15343, equation 2 and algorithm 1.
    """
    pairs = ids, reference, margin
    return _loss(_SIGMOID, learner, pairs, block_size, replicas)


def softmax_loss(
    learner: Embeddings,
    *,
    ids: Tensor | None = None,
    reference: Embeddings | None = None,
    margin: float = 0.0,
    block_size: int | None = None,
    replicas=None,
) -> Tensor:
    """Computes the symmetric softmax (InfoNCE) loss, as in CLIP.

        loss = 1/b sum_i [ -l_ii + 1/2 log sum_j exp(l_ij)
                                 + 1/2 log sum_j exp(l_ji) ],
        l_ij = scale <image_i, text_j>

    The normalisers leave false negatives out.

    Args, Returns: as `sigmoid_loss`. The value does not depend on the
    bias, whose gradient is zero.

    Reference: Radford et al. 2021 (arXiv 2103.00020), figure 3; arXiv
    2303.15343, equation 1.
    """
    # The bias cancels out. Weight 0 makes its gradient 0 instead of None.
    learner = learner._replace(bias=0.0 * learner.bias)
    pairs = ids, reference, margin
    return _loss(_SOFTMAX, learner, pairs, block_size, replicas)


def is_false_negative(
    cosines: Tensor, own: Tensor, other: Tensor, margin: float
) -> Tensor:
    """Returns whether image i and text j match, by a reference's cosines.

    They do if they are at least as similar as both pairs of the data that they
    belong to, i with i and j with j, less `margin`. The larger of the two
    counts, because a wrong pair is less similar than many others.

    Args:
        cosines: float `[m, n]`, of m rows with n others.
        own, other: float `[m]` and `[n]`, of the pairs of the data.
    """
    return cosines >= ops.maximum(own[:, None], other) - margin - _ROUNDING


def _loss(form, learner, pairs, block_size, replicas):
    """Checks the arguments, then computes the loss at once or by blocks."""
    dense, by_blocks = form
    learner = Embeddings(*(ops.cast(part, "float32") for part in learner))
    shape = learner.image.shape
    if len(shape) != 2 or not fit(shape, learner.text.shape):
        raise ValueError(
            "`learner.image` and `learner.text` must both be [b, dim]. "
            f"Received: {learner.image.shape} and {learner.text.shape}"
        )
    num_rows = shape[0]
    ids, reference, margin = pairs
    pairs = _checked_ids(num_rows, ids), _sides(num_rows, reference), margin
    if replicas is None and block_size is None:
        size = ops.shape(learner.image)[0]
        logits = learner.scale * embeddings.products(*learner[:2])
        masks = _pair_masks(size, *pairs)(0, 0, size)
        return dense(logits + learner.bias, *masks)
    block_size = num_rows if block_size is None else block_size
    if num_rows is None or block_size < 1:
        raise ValueError(
            "`block_size` must be at least 1; it and `replicas` need a static "
            f"batch size. Received: block_size={block_size}, "
            f"batch {learner.image.shape}"
        )
    masks = _pair_masks(num_rows, *pairs, replicas)
    by_blocks = functools.partial(by_blocks, masks)
    return blockwise(by_blocks, learner, block_size, replicas)


def _checked_ids(num_rows, ids):
    if ids is None:
        return None
    ids = ops.convert_to_tensor(ids)
    dtype, shape = keras.backend.standardize_dtype(ids.dtype), ids.shape
    of_rows = len(shape) in (1, 2) and fit(shape[:1], [num_rows])
    if not (keras.backend.is_int_dtype(dtype) and of_rows):
        raise ValueError(
            f"`ids` must be integers of shape [{num_rows}] or [{num_rows}, "
            f"parts]. Received: {dtype} of shape {shape}"
        )
    return ids


def _sides(num_rows, reference):
    """Returns the reference's images and texts in float32, as constants."""
    if reference is None:
        return None
    image, text = (
        ops.stop_gradient(ops.cast(part, "float32")) for part in reference[:2]
    )
    if not fit(image.shape, text.shape) or not fit(
        image.shape, [num_rows, image.shape[-1]]
    ):
        raise ValueError(
            f"`reference` must embed the {num_rows} rows of the batch, "
            f"[b, dim]. Received: {image.shape} and {text.shape}"
        )
    return image, text


def fit(left, right):
    """Returns whether shapes may be equal; None is any size."""
    return len(left) == len(right) and all(
        size == other or None in (size, other)
        for size, other in zip(left, right, strict=True)
    )


@embeddings.in_float32
def _pair_masks(num_rows, ids, reference, margin, replicas=None):
    """Returns `(side, start, size) -> own, keep`, bool `[size, b]`.

    Side 0 has images x texts, side 1 texts x images. `start` counts the local
    rows. `own` are the pairs of the data, `keep` those and the negatives.
    """
    first_row = 0
    if replicas is not None:
        first_row = replicas.replica_id * num_rows
        num_rows *= replicas.num_replicas
        ids = None if ids is None else replicas.all_gather(ids)
        if reference is not None:
            reference = [replicas.all_gather(part) for part in reference]
    parts = []
    if ids is not None:
        parts = [ids] if len(ids.shape) == 1 else ops.unstack(ids, axis=1)
    if reference is not None:
        cosines_of_own = ops.einsum("nd,nd->n", *reference)

    def masks(side, start, size):
        start = first_row + start
        rows = start + ops.arange(size, dtype="int32")
        own = rows[:, None] == ops.arange(num_rows, dtype="int32")
        keep, equal = ops.ones_like(own), ops.ones_like(own)
        for part in parts:
            of_rows = embeddings.rows_from(part, start, size)
            equal &= of_rows[:, None] == part
        if parts:
            keep = own | ~equal
        if reference is not None:
            part = embeddings.rows_from(reference[side], start, size)
            is_false = is_false_negative(
                embeddings.products(part, reference[1 - side]),
                embeddings.rows_from(cosines_of_own, start, size),
                cosines_of_own,
                margin,
            )
            keep &= own | ~is_false
        return own, keep

    return embeddings.in_float32(masks)


def blockwise(by_blocks, learner, block_size, replicas):
    """Computes the loss over blocks of logits, with a closed-form gradient.

    The gradient forms every block once more. On several replicas, local images
    x all texts and local texts x all images give the local gradients: each
    logit is formed twice, but no `[b, dim]` gradient is all-reduced.
    """
    num_rows, dim = learner.image.shape
    everyone, batch_size = learner[:2], num_rows
    if replicas is not None:
        everyone = [
            replicas.all_gather(ops.stop_gradient(part)) for part in everyone
        ]
        batch_size *= replicas.num_replicas

    @ops.custom_gradient
    def loss(image, text, scale, bias):
        images, texts = (image, text) if replicas is None else everyone

        def fold(rows, columns, body, state, row_shapes):
            def block(state, start, size):
                part = embeddings.rows_from(rows, start, size)

                def logits():
                    return scale * embeddings.products(part, columns) + bias

                return body(state, part, logits, start, size)

            return embeddings.fold_row_blocks(
                block, num_rows, block_size, state=state, row_shapes=row_shapes
            )

        def pull(rows, columns, slope, state=()):
            """Sums slope * column over columns; in `state`, slope * row."""

            def body(state, part, logits, start, size):
                slopes = slope(logits(), start, size)
                if state:
                    of_columns = ops.matmul(ops.transpose(slopes), part)
                    state = (state[0] + of_columns,)
                sums = ops.matmul(slopes, columns), ops.sum(slopes, 1)
                return state, sums

            return fold(rows, columns, body, state, ((dim,), ()))

        sides = (image, texts), (text, images)
        total, slopes = by_blocks(fold, sides, replicas)
        if replicas is not None:
            total = replicas.all_reduce(total)

        def gradient(upstream):
            state = (ops.zeros_like(text),) if replicas is None else ()
            state, (of_image, of_logits) = pull(*sides[0], slopes[0], state)
            if replicas is None:
                (of_text,) = state
            else:
                _, (of_text, _) = pull(*sides[1], slopes[1])
            upstream /= batch_size
            return (
                upstream * scale * of_image,
                upstream * scale * of_text,
                # sum_ij slope_ij <image_i, text_j>
                upstream * ops.sum(image * of_image),
                upstream * ops.sum(of_logits),
            )

        return total / batch_size, gradient

    return loss(*learner)


# Each loss has a dense form, `(logits, own, keep) -> value`, and a form by
# blocks, `(masks, fold, sides, replicas) -> total, slopes`. `total` is the part
# of local rows in b * value. `fold` passes a body a function that returns the
# block's logits. `slopes` has `(logits, start, size) -> d(total) / d(logits)`
# for (local images, all texts) and for (local texts, all images).


def _sigmoid_terms(logits, own, keep):
    terms = ops.softplus(ops.where(own, -logits, logits))
    return ops.sum(ops.where(keep, terms, 0.0), 1)


def _sigmoid_dense(logits, own, keep):
    return ops.mean(_sigmoid_terms(logits, own, keep))


def _sigmoid_by_blocks(masks, fold, sides, replicas):
    del replicas  # row losses are independent of each other

    def body(state, part, logits, start, size):
        return state, (_sigmoid_terms(logits(), *masks(0, start, size)),)

    def make_slope(side):
        def slope(logits, start, size):
            own, keep = masks(side, start, size)
            # d softplus(-l) = -sigmoid(-l); d softplus(l) = sigmoid(l)
            slopes = ops.where(own, -ops.sigmoid(-logits), ops.sigmoid(logits))
            return ops.where(keep, slopes, 0.0)

        return slope

    _, (terms,) = fold(*sides[0], body, (), ((),))
    return ops.sum(terms), (make_slope(0), make_slope(1))


def _softmax_terms(logits, own, keep):
    """Returns each row's own logit, and logits, -inf if not kept."""
    target = ops.sum(ops.where(own, logits, 0.0), 1)
    return target, ops.where(keep, logits, -np.inf)


def _softmax_dense(logits, own, keep):
    target, logits = _softmax_terms(logits, own, keep)
    rows, columns = (ops.logsumexp(logits, axis) for axis in (1, 0))
    return ops.mean(0.5 * (rows + columns) - target)


def _softmax_by_blocks(masks, fold, sides, replicas):
    def body_of(side):
        def body(state, part, logits, start, size):
            masked = masks(side, start, size)
            target, logits = _softmax_terms(logits(), *masked)
            if state:
                columns = ops.logsumexp(logits, 0)
                state = (embeddings.logaddexp(state[0], columns),)
            return state, (ops.logsumexp(logits, 1), target)

        return body

    shapes = ((), ())
    if replicas is None:
        state = (ops.full([sides[0][1].shape[0]], -np.inf, "float32"),)
        state, (over_texts, target) = fold(*sides[0], body_of(0), state, shapes)
        (over_images,) = state
        everyone = over_texts, over_images
    else:
        _, (over_texts, target) = fold(*sides[0], body_of(0), (), shapes)
        _, (over_images, _) = fold(*sides[1], body_of(1), (), shapes)
        sums = ops.stack([over_texts, over_images], 1)
        everyone = ops.unstack(replicas.all_gather(sums), axis=1)

    def make_slope(side, row_sums, column_sums):
        def slope(logits, start, size):
            own, keep = masks(side, start, size)
            rows = embeddings.rows_from(row_sums, start, size)
            of_row = ops.exp(logits - rows[:, None])
            of_column = ops.exp(logits - column_sums)
            slopes = ops.where(keep, 0.5 * (of_row + of_column), 0.0)
            return slopes - ops.cast(own, "float32")

        return slope

    return ops.sum(0.5 * (over_texts + over_images) - target), (
        make_slope(0, over_texts, everyone[1]),
        make_slope(1, over_images, everyone[0]),
    )


_SIGMOID = _sigmoid_dense, _sigmoid_by_blocks
_SOFTMAX = _softmax_dense, _softmax_by_blocks

"""Pairwise contrastive losses: sigmoid (SigLIP) and softmax (CLIP).

Both take unit-norm embeddings of `b` image-text pairs, form the logits
`scale * image @ text.T + bias` and return one float32 scalar. With a
`block_size` they never hold a `b x b` matrix: logits are formed in blocks of
rows, thrown away, and formed again for the gradient, which is in closed form.
Block by block and at once give the same value and the same gradient.

With `replicas`, which are handed in, each holds b/R rows and forms the logits
of these with all b, so that the negatives of a row are everybody's.

The losses know nothing of selection; `jest_tf.selection` builds on the same
logits. Beside them stands `feature_distillation`, the distance to a reference's
embeddings. Paper: Zhai et al. 2023, "Sigmoid loss for language image
pre-training" (arXiv 2303.15343), section 3.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from jest_tf.embeddings import Embeddings

EQUAL_IDS = ("negative", "positive", "ignore")


def sigmoid_loss(
    learner: Embeddings,
    *,
    ids: tf.Tensor | None = None,
    equal_ids: str = "negative",
    block_size: int | None = None,
    replicas=None,
) -> tf.Tensor:
    """SigLIP's pairwise sigmoid loss.

    With z_ij = +1 for a positive pair and -1 for a negative one:

        loss = 1/b sum_i sum_j softplus(-z_ij (scale <image_i, text_j> + bias))

    that is, the mean over rows of the sum over columns.

    Args:
        learner: embeddings of the batch, `[b, dim]`; any float dtype, the loss
            is computed in float32.
        ids: int `[b]`; rows with equal ids describe the same thing, as
            duplicate captions do. Or `[b, parts]`, equal in all parts.
        equal_ids: what a pair of different rows with equal ids is:
            "negative" (the paper), "positive", or "ignore" (no term).
        block_size: rows of logits held at a time; None holds all `b`, with
            `replicas` all `b/R`.
        replicas: the collectives of `distribution.current()`, where each of R
            replicas holds `[b/R, dim]` embeddings and `[b/R]` ids; None on one
            replica. A row's negatives are then the rows of all replicas.

    Returns:
        float32 scalar; with `replicas` the loss of all b rows, on every
        replica. Its gradient is that of the own rows, and of scale and bias
        the own rows' part: summed over replicas, as optimizers do, gradients
        of parameters are those of the loss of all rows.

    Raises:
        ValueError: on shapes that do not fit, an unknown `equal_ids`, or an
            `equal_ids` that needs `ids` without them.

    Reference: arXiv 2303.15343, equation 2 and algorithm 1.
    """
    return _loss(
        (_sigmoid_dense, _sigmoid_blockwise, _sigmoid_shared),
        learner,
        ids,
        equal_ids,
        block_size,
        replicas,
    )


def softmax_loss(
    learner: Embeddings,
    *,
    ids: tf.Tensor | None = None,
    equal_ids: str = "negative",
    block_size: int | None = None,
    replicas=None,
) -> tf.Tensor:
    """Symmetric softmax (InfoNCE) loss, as in CLIP.

        loss = 1/b sum_i [ -l_ii + 1/2 log sum_j exp(l_ij)
                                 + 1/2 log sum_j exp(l_ji) ],
        l_ij = scale <image_i, text_j>

    With `equal_ids="positive"` the target of row i is uniform over the rows
    with its id, so `-l_ii` becomes the mean of `-1/2 (l_ij + l_ji)` over them;
    with "ignore" the other rows with its id leave its normalisers.

    Args, Returns, Raises: as `sigmoid_loss`. The bias has no part in the value
    and gets a zero gradient.

    Reference: Radford et al. 2021 (arXiv 2103.00020), figure 3; arXiv
    2303.15343, equation 1.
    """
    # The bias cancels out; weight zero gives it the gradient 0, not None.
    learner = learner._replace(bias=0.0 * learner.bias)
    return _loss(
        (_softmax_dense, _softmax_blockwise, _softmax_shared),
        learner,
        ids,
        equal_ids,
        block_size,
        replicas,
    )


def feature_distillation(
    learner: Embeddings, reference: Embeddings, *, replicas=None
) -> tf.Tensor:
    """How far the learner's embeddings are from the reference's.

        loss = 1/b sum_i ( |image_i - image_i^ref|^2 + |text_i - text_i^ref|^2 )

    Between 0 and 8 for unit-norm rows, and 4 where they have nothing to do
    with each other. Scales and biases have no part in it.

    Args:
        learner: embeddings of the batch, `[b, dim]`, any float dtype; the loss
            is computed in float32.
        reference: of the same rows, as wide. No gradient flows into it.
        replicas: as of `sigmoid_loss`, each with `[b/R, dim]` of both.

    Returns:
        float32 scalar; with `replicas` as `sigmoid_loss`.

    Raises:
        ValueError: on embeddings of other widths or numbers of rows.

    Reference: Yang et al. 2024, "CLIP-KD" (arXiv 2307.12732), feature
    distillation.
    """
    total = tf.constant(0.0)
    for name in ("image", "text"):
        own, target = getattr(learner, name), getattr(reference, name)
        if not own.shape.is_compatible_with(target.shape):
            raise ValueError(
                "`distillation_weight` needs a reference whose embeddings are "
                f"as wide as the learner's, and of the same rows. Received: "
                f"`{name}` of {own.shape} and {target.shape}"
            )
        target = tf.stop_gradient(tf.cast(target, tf.float32))
        total += tf.reduce_sum((tf.cast(own, tf.float32) - target) ** 2)
    num_rows = tf.cast(tf.shape(learner.image)[0], tf.float32)
    if replicas is None:
        return total / num_rows
    mean = total / (num_rows * replicas.num_replicas)
    of_others = replicas.all_reduce(tf.stop_gradient(mean)) - mean
    return mean + tf.stop_gradient(of_others)


def fold_row_blocks(
    body: Callable,
    num_rows: int,
    block_size: int,
    *,
    state: tuple = (),
    row_shapes: tuple = (),
) -> tuple[tuple, tuple]:
    """Runs `body` over blocks of rows, in order, one at a time.

    Args:
        body: `(state, start, size) -> (state, rows)`: `start` an int32 scalar,
            `size` a Python int, `rows` a tuple of float32 tensors with `size`
            rows each. The last block may be smaller than the others.
        num_rows: rows in all.
        block_size: rows a block.
        state: tensors carried from block to block; their shapes stay.
        row_shapes: the shape of one row of each of `rows`.

    Returns:
        The last state, and `rows` of all blocks joined, `[num_rows, ...]`.
    """
    if num_rows <= block_size:
        return body(tuple(state), tf.constant(0), num_rows)
    num_blocks, rest = divmod(num_rows, block_size)
    arrays = tuple(
        tf.TensorArray(
            tf.float32, size=num_blocks, element_shape=[block_size, *shape]
        )
        for shape in row_shapes
    )

    def step(index, state, arrays):
        state, rows = body(state, index * block_size, block_size)
        arrays = tuple(
            array.write(index, row)
            for array, row in zip(arrays, rows, strict=True)
        )
        return index + 1, state, arrays

    _, state, arrays = tf.while_loop(
        lambda index, *_: index < num_blocks,
        step,
        (tf.constant(0), tuple(state), arrays),
        parallel_iterations=1,
    )
    rows = tuple(
        tf.reshape(array.stack(), [num_blocks * block_size, *shape])
        for array, shape in zip(arrays, row_shapes, strict=True)
    )
    if rest:
        state, tail = body(state, tf.constant(num_blocks * block_size), rest)
        rows = tuple(
            tf.concat([head, end], 0)
            for head, end in zip(rows, tail, strict=True)
        )
    return state, rows


def rows_from(tensor: tf.Tensor, start: tf.Tensor, size: int) -> tf.Tensor:
    """`tensor[start : start + size]` with a static size, which XLA needs."""
    begin = [start] + [0] * (tensor.shape.rank - 1)
    return tf.slice(tensor, begin, [size, *tensor.shape[1:]])


def logaddexp(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """`log(exp(left) + exp(right))`, elementwise; either may be -inf."""
    high, low = tf.maximum(left, right), tf.minimum(left, right)
    total = high + tf.math.log1p(tf.exp(low - high))
    return tf.where(low > -np.inf, total, high)


def _loss(forms, learner, ids, equal_ids, block_size, replicas):
    """Checks the arguments; then the dense form, the blocks or the replicas."""
    dense, blockwise, shared = forms
    learner = Embeddings(*(tf.cast(part, tf.float32) for part in learner))
    if learner.image.shape.rank != 2 or not (
        learner.image.shape.is_compatible_with(learner.text.shape)
    ):
        raise ValueError(
            "`learner.image` and `learner.text` must both be [b, dim]. "
            f"Received: {learner.image.shape} and {learner.text.shape}"
        )
    num_rows = learner.image.shape[0]
    ids = _checked_ids(num_rows, ids, equal_ids)
    if replicas is None and block_size is None:
        size = num_rows or tf.shape(learner.image)[0]
        return dense(learner, _pair_masks(size, ids, equal_ids))
    block_size = num_rows if block_size is None else block_size
    if num_rows is None or block_size < 1:
        raise ValueError(
            "`block_size` must be at least 1; it and `replicas` need a static "
            f"batch size. Received: block_size={block_size}, "
            f"batch {learner.image.shape}"
        )
    block_size = min(block_size, num_rows)
    if replicas is None:
        pairs = _pair_masks(num_rows, ids, equal_ids)
        return _with_gradient(blockwise, learner, pairs, block_size)
    pairs = _pair_masks(
        replicas.num_replicas * num_rows,
        None if ids is None else replicas.all_gather(ids),
        equal_ids,
        replicas.replica_id * num_rows,
    )
    return _with_shared_gradient(shared, learner, pairs, block_size, replicas)


def _checked_ids(num_rows, ids, equal_ids):
    """The ids as a tensor; None where no pair depends on them."""
    if equal_ids not in EQUAL_IDS:
        raise ValueError(
            f"`equal_ids` must be one of {EQUAL_IDS}. Received: {equal_ids!r}"
        )
    if equal_ids != "negative" and ids is None:
        raise ValueError(
            f"`equal_ids={equal_ids!r}` needs `ids`, one integer a row. "
            "Received: ids=None"
        )
    if ids is None:
        return None
    ids = tf.convert_to_tensor(ids)
    of_rows = ids.shape[:1].is_compatible_with([num_rows])
    if not (ids.dtype.is_integer and of_rows and ids.shape.rank in (1, 2)):
        raise ValueError(
            f"`ids` must be integers of shape [{num_rows}] or [{num_rows}, "
            f"parts]. Received: {ids.dtype.name} of shape {ids.shape}"
        )
    return None if equal_ids == "negative" else ids


def _pair_masks(num_rows, ids, equal_ids, first_row=0):
    """`(start, size) -> positive, keep`, bool `[size, b]`, for a block.

    Args:
        num_rows: b.
        ids: int `[b]` or `[b, parts]`, or None.
        equal_ids: what they say.
        first_row: the row of all that `start` counts from.
    """
    parts = []
    if ids is not None:
        parts = [ids] if ids.shape.rank == 1 else tf.unstack(ids, axis=1)

    def masks(start, size):
        start = first_row + start
        rows = start + tf.range(size)
        same = rows[:, tf.newaxis] == tf.range(num_rows)
        everything = tf.ones_like(same)
        if equal_ids == "negative":
            return same, everything
        equal = everything
        for part in parts:
            equal &= rows_from(part, start, size)[:, tf.newaxis] == part
        if equal_ids == "positive":
            return equal, everything
        return same, same | ~equal

    return masks


def _logits(learner, image):
    cosines = tf.matmul(image, learner.text, transpose_b=True)
    return learner.scale * cosines + learner.bias


def _mean_of_positives(logits, positive):
    total = tf.reduce_sum(tf.where(positive, logits, 0.0), 1)
    return total / tf.reduce_sum(tf.cast(positive, tf.float32), 1)


def _sigmoid_terms(logits, positive, keep):
    terms = tf.math.softplus(tf.where(positive, -logits, logits))
    return tf.where(keep, terms, 0.0)


def _sigmoid_dense(learner, pairs):
    logits = _logits(learner, learner.image)
    terms = _sigmoid_terms(logits, *pairs(0, tf.shape(logits)[0]))
    return tf.reduce_mean(tf.reduce_sum(terms, 1))


def _softmax_dense(learner, pairs):
    logits = _logits(learner, learner.image)
    positive, keep = pairs(0, tf.shape(logits)[0])
    target = _mean_of_positives(logits, positive)
    logits = tf.where(keep, logits, -np.inf)
    rows, columns = (tf.reduce_logsumexp(logits, axis) for axis in (1, 0))
    return tf.reduce_mean(0.5 * (rows + columns) - target)


def _sigmoid_blockwise(learner, pairs, block_size):
    """The value, and the function that gives d(b * value)/d(logits)."""

    def block(state, start, size):
        logits = _logits(learner, rows_from(learner.image, start, size))
        terms = _sigmoid_terms(logits, *pairs(start, size))
        return (state[0] + tf.reduce_sum(terms),), ()

    num_rows = learner.image.shape[0]
    (total,), _ = fold_row_blocks(
        block, num_rows, block_size, state=(tf.constant(0.0),)
    )

    def slope(logits, start, size):
        return _sigmoid_slopes(logits, *pairs(start, size))

    return total / num_rows, slope


def _sigmoid_slopes(logits, positive, keep):
    # d softplus(-l) = -sigmoid(-l); d softplus(l) = sigmoid(l)
    slopes = tf.where(positive, -tf.sigmoid(-logits), tf.sigmoid(logits))
    return tf.where(keep, slopes, 0.0)


def _softmax_blockwise(learner, pairs, block_size):
    """The value, and the function that gives d(b * value)/d(logits)."""

    def block(state, start, size):
        total, columns = state
        logits = _logits(learner, rows_from(learner.image, start, size))
        positive, keep = pairs(start, size)
        target = _mean_of_positives(logits, positive)
        logits = tf.where(keep, logits, -np.inf)
        rows = tf.reduce_logsumexp(logits, 1)
        columns = logaddexp(columns, tf.reduce_logsumexp(logits, 0))
        return (total + tf.reduce_sum(0.5 * rows - target), columns), (rows,)

    num_rows = learner.image.shape[0]
    (total, columns), (rows,) = fold_row_blocks(
        block,
        num_rows,
        block_size,
        state=(tf.constant(0.0), tf.fill([num_rows], -np.inf)),
        row_shapes=((),),
    )

    def slope(logits, start, size):
        normalisers = rows_from(rows, start, size), columns
        return _softmax_slopes(logits, *normalisers, *pairs(start, size))

    return (total + 0.5 * tf.reduce_sum(columns)) / num_rows, slope


def _softmax_slopes(logits, rows, columns, positive, keep):
    """Slopes of a block, given the log-sum-exps of its rows and columns."""
    of_row = tf.exp(logits - rows[:, tf.newaxis])
    of_column = tf.exp(logits - columns)
    target = tf.cast(positive, tf.float32)
    target /= tf.reduce_sum(target, 1, keepdims=True)
    return tf.where(keep, 0.5 * (of_row + of_column), 0.0) - target


def _with_gradient(blockwise, learner, pairs, block_size):
    """A blockwise loss whose gradient forms each block of logits once more."""
    num_rows, dim = learner.image.shape

    @tf.custom_gradient
    def loss(image, text, scale, bias):
        parts = Embeddings(image, text, scale, bias)
        value, slope = blockwise(parts, pairs, block_size)

        def block(state, start, size):
            of_text, of_scale, of_bias = state
            rows = rows_from(image, start, size)
            cosines = tf.matmul(rows, text, transpose_b=True)
            slopes = slope(scale * cosines + bias, start, size)
            state = (
                of_text + tf.matmul(slopes, rows, transpose_a=True),
                of_scale + tf.reduce_sum(slopes * cosines),
                of_bias + tf.reduce_sum(slopes),
            )
            return state, (tf.matmul(slopes, text),)

        def gradient(upstream):
            zero = tf.constant(0.0)
            (of_text, of_scale, of_bias), (of_image,) = fold_row_blocks(
                block,
                num_rows,
                block_size,
                state=(tf.zeros_like(text), zero, zero),
                row_shapes=((dim,),),
            )
            upstream /= num_rows
            return (
                upstream * scale * of_image,
                upstream * scale * of_text,
                upstream * of_scale,
                upstream * of_bias,
            )

        return value, gradient

    return loss(*learner)


def _sigmoid_shared(own, everyone, pairs, block_size, replicas):
    """The own rows' part of b times the value, and the slopes' functions.

    Args:
        own: `Embeddings` of this replica's rows.
        everyone: images and texts of all rows.

    Returns:
        A scalar, and for images with all texts and for texts with all images
        the function that gives d(b * value)/d(logits).
    """
    _, texts = everyone

    def block(state, start, size):
        logits = _logits(
            own._replace(text=texts), rows_from(own.image, start, size)
        )
        terms = _sigmoid_terms(logits, *pairs(start, size))
        return (state[0] + tf.reduce_sum(terms),), ()

    (total,), _ = fold_row_blocks(
        block, own.image.shape[0], block_size, state=(tf.constant(0.0),)
    )

    def slope(logits, start, size):
        # A pair and its mirror image are positive, or left out, together.
        return _sigmoid_slopes(logits, *pairs(start, size))

    return total, (slope, slope)


def _softmax_shared(own, everyone, pairs, block_size, replicas):
    """As `_sigmoid_shared`; every replica needs every normaliser."""

    def log_sums(rows, columns):
        def block(state, start, size):
            logits = _logits(
                own._replace(text=columns), rows_from(rows, start, size)
            )
            positive, keep = pairs(start, size)
            target = _mean_of_positives(logits, positive)
            logits = tf.where(keep, logits, -np.inf)
            return state, (tf.reduce_logsumexp(logits, 1), target)

        _, values = fold_row_blocks(
            block, rows.shape[0], block_size, row_shapes=((), ())
        )
        return values

    images, texts = everyone
    over_texts, target = log_sums(own.image, texts)
    over_images, _ = log_sums(own.text, images)
    normalisers = replicas.all_gather(tf.stack([over_texts, over_images], 1))

    def slope_of(own_sums, other_sums):
        def slope(logits, start, size):
            sums = rows_from(own_sums, start, size), other_sums
            return _softmax_slopes(logits, *sums, *pairs(start, size))

        return slope

    return tf.reduce_sum(0.5 * (over_texts + over_images) - target), (
        slope_of(over_texts, normalisers[:, 1]),
        slope_of(over_images, normalisers[:, 0]),
    )


def _with_shared_gradient(shared, learner, pairs, block_size, replicas):
    """A loss of all replicas' rows, with the gradient of the own rows.

    The own images meet all texts for their gradient, and the own texts all
    images for theirs. That forms each logit twice, but a replica needs nobody
    else's part of a gradient: adding up `[b, dim]` of each would cost more.
    """
    everyone = tuple(
        replicas.all_gather(tf.stop_gradient(part)) for part in learner[:2]
    )
    num_rows, dim = learner.image.shape
    batch_size = replicas.num_replicas * num_rows

    def pull(rows, columns, scale, bias, slope):
        """Sums over columns of the slopes times the column, and of slopes."""

        def block(state, start, size):
            cosines = tf.matmul(
                rows_from(rows, start, size), columns, transpose_b=True
            )
            slopes = slope(scale * cosines + bias, start, size)
            return state, (
                tf.matmul(slopes, columns),
                tf.reduce_sum(slopes, 1),
            )

        _, sums = fold_row_blocks(
            block, num_rows, block_size, row_shapes=((dim,), ())
        )
        return sums

    @tf.custom_gradient
    def loss(image, text, scale, bias):
        own = Embeddings(image, text, scale, bias)
        total, slopes = shared(own, everyone, pairs, block_size, replicas)
        value = replicas.all_reduce(total) / batch_size

        def gradient(upstream):
            images, texts = everyone
            of_image, of_logits = pull(image, texts, scale, bias, slopes[0])
            of_text, _ = pull(text, images, scale, bias, slopes[1])
            upstream /= batch_size
            return (
                upstream * scale * of_image,
                upstream * scale * of_text,
                # sum_ij slope_ij <image_i, text_j>
                upstream * tf.reduce_sum(image * of_image),
                upstream * tf.reduce_sum(of_logits),
            )

        return value, gradient

    return loss(*learner)

"""Distillation: losses that pull a learner towards the reference.

Both take unit-norm embeddings of the same b rows by both models, and give the
reference no gradient.
"""

from keras import ops

from jest_tf import embeddings
from jest_tf.embeddings import Embeddings, Tensor
from jest_tf.losses import training


def feature_distillation(
    learner: Embeddings, reference: Embeddings, *, replicas=None
) -> Tensor:
    """Computes the mean squared distance of the models' embeddings.

        loss = 1/b sum_i ( |image_i - image_i^ref|^2 + |text_i - text_i^ref|^2 )

    It lies in [0, 8] for unit-norm rows, and is 4 for orthogonal rows. Scales
    and biases have no effect.

    Args:
        learner: embeddings of the batch, `[b, dim]`, of any float dtype; the
            loss is computed in float32.
        reference: embeddings of the same rows and width. No gradient flows
            into them.
        replicas: as in `sigmoid_loss`; both embeddings are `[b/R, dim]`.

    Returns:
        float32 scalar; with `replicas` as in `sigmoid_loss`.

    Reference: Yang et al. 2024, "CLIP-KD" (arXiv 2307.12732), feature
    distillation.
    """
    total = 0.0
    for name in ("image", "text"):
        values, target = getattr(learner, name), getattr(reference, name)
        if not training.fit(values.shape, target.shape):
            raise ValueError(
                "`distillation_weight` needs learner and reference embeddings "
                "of the same rows and the same width. If the widths differ, "
                "set `reference.projection` to the reference's width; it "
                "projects the learner's embeddings. "
                f"Received: `{name}` of {values.shape} and {target.shape}"
            )
        target = ops.stop_gradient(ops.cast(target, "float32"))
        total += ops.sum((ops.cast(values, "float32") - target) ** 2)
    num_rows = ops.cast(ops.shape(learner.image)[0], "float32")
    if replicas is None:
        return total / num_rows
    mean = total / (num_rows * replicas.num_replicas)
    of_others = replicas.all_reduce(ops.stop_gradient(mean)) - mean
    return mean + ops.stop_gradient(of_others)


def similarity_distillation(
    learner: Embeddings,
    reference: Embeddings,
    *,
    block_size: int | None = None,
    replicas=None,
) -> Tensor:
    """Computes how far the models' similarities within the batch differ.

        loss = 1/(2b) sum_i [ KL(p_i^ref || p_i) + KL(q_i^ref || q_i) ],
        p_ij = exp(l_ij) / sum_k exp(l_ik),  q_ij = exp(l_ji) / sum_k exp(l_ki),
        l_ij = scale <image_i, text_j>

    The reference's similarities take the place of the pairs as targets, so no
    pair needs to be right. The widths of the models may differ.

    Args:
        learner: embeddings of the batch, `[b, dim]`, of any float dtype; the
            loss is computed in float32.
        reference: embeddings of the same rows, with the reference's scale.
        block_size: rows of logits computed at a time; None computes all.
        replicas: as in `sigmoid_loss`; embeddings are `[b/R, dim]`.

    Returns:
        float32 scalar, 0 if the similarities agree; with `replicas` as in
        `sigmoid_loss`.

    Reference: Yang et al. 2024 (arXiv 2307.12732), contrastive relational
    distillation; Udandarao et al. 2024, "ACED" (arXiv 2411.18674).
    """
    learner, reference = (
        Embeddings(*(ops.cast(part, "float32") for part in model))
        for model in (learner, reference)
    )
    # The biases cancel out. Weight 0 makes a gradient 0 instead of None.
    learner = learner._replace(bias=0.0 * learner.bias)
    reference = Embeddings(*map(ops.stop_gradient, reference))
    num_rows = learner.image.shape[0]
    if num_rows is None or num_rows != reference.image.shape[0]:
        raise ValueError(
            "Learner and reference must embed the same rows, of a static "
            f"number. Received: {learner.image.shape} and "
            f"{reference.image.shape}"
        )
    return training.blockwise(
        _ByBlocks(reference, replicas),
        learner,
        block_size or num_rows,
        replicas,
    )


class _ByBlocks:
    """`similarity_distillation` by blocks, see `training.py`."""

    def __init__(self, reference, replicas):
        everyone = reference[:2]
        if replicas is not None:
            everyone = [replicas.all_gather(part) for part in everyone]
        self._scale = reference.scale
        # Rows of this replica, and all columns, in both directions.
        self._sides = (
            (reference.image, everyone[1]),
            (reference.text, everyone[0]),
        )

    def __call__(self, fold, sides, replicas):
        def everyones(sums):
            if replicas is None:
                return sums
            gathered = replicas.all_gather(ops.stack(sums, 1))
            return ops.unstack(gathered, axis=1)

        def theirs(side):
            def body(state, part, logits, start, size):
                theirs = self._logits(side, start, size)
                return state, (ops.logsumexp(theirs, 1),)

            return fold(*sides[side], body, (), ((),))[1][0]

        sums = [theirs(side) for side in (0, 1)]
        all_sums = everyones(sums)

        def targets(side, start, size):
            """The reference's logits, and the mean of p and q, `[size, b]`."""
            logits = self._logits(side, start, size)
            rows = embeddings.rows_from(sums[side], start, size)
            of_row = ops.exp(logits - rows[:, None])
            return logits, (of_row + ops.exp(logits - all_sums[1 - side])) / 2

        def of_images(state, part, logits, start, size):
            (other, target), logits = targets(0, start, size), logits()
            far = ops.sum(target * (other - logits), 1)
            return state, (ops.logsumexp(logits, 1), far)

        def of_texts(state, part, logits, start, size):
            return state, (ops.logsumexp(logits(), 1),)

        _, (over_texts, far) = fold(*sides[0], of_images, (), ((), ()))
        _, (over_images,) = fold(*sides[1], of_texts, (), ((),))
        ours = over_texts, over_images
        all_ours = everyones(ours)

        def make_slope(side):
            def slope(logits, start, size):
                rows = embeddings.rows_from(ours[side], start, size)
                of_row = ops.exp(logits - rows[:, None])
                of_column = ops.exp(logits - all_ours[1 - side])
                return (of_row + of_column) / 2 - targets(side, start, size)[1]

            return slope

        change = over_texts + over_images - sums[0] - sums[1]
        return ops.sum(change / 2 + far), (make_slope(0), make_slope(1))

    def _logits(self, side, start, size):
        rows, columns = self._sides[side]
        part = embeddings.rows_from(rows, start, size)
        return self._scale * embeddings.products(part, columns)

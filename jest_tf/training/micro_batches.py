"""The gradient of a contrastive loss at the memory of a micro-batch.

The loss couples all rows of a batch, so that gradients of parts of it don't add
up to its own. But it sees the rows through their embeddings alone. So all rows
are embedded first, a micro-batch at a time and without their activations being
kept; then the loss gives the gradient of the embeddings; then each micro-batch
is embedded once more and handed its part of that. The result is the gradient of
the whole batch, for one more forward pass.

Reference: Gao et al. 2021, "Scaling deep contrastive learning batch size under
memory limited setup" (arXiv 2101.06983).
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from jest_tf.embeddings import Embeddings
from jest_tf.training import flops


def embed(
    encode: Callable[[dict], Embeddings],
    batch: dict[str, tf.Tensor],
    size: int | None,
) -> Embeddings:
    """`encode(batch)`, `size` rows at a time; None takes all at once."""
    rows = batch["image"].shape[0]
    if size in (None, rows):
        return encode(batch)

    def in_float32(part):
        # A loop states its types beforehand; a tower may have any.
        return Embeddings(
            *(tf.cast(value, tf.float32) for value in encode(part))
        )

    embeddings = tf.map_fn(
        in_float32,
        _split(batch, size),
        parallel_iterations=1,
        fn_output_signature=Embeddings(*[tf.float32] * 4),
    )
    image, text = (
        tf.reshape(part, [rows, part.shape[-1]]) for part in embeddings[:2]
    )
    # Every part tells the same scale and bias.
    return Embeddings(image, text, embeddings.scale[0], embeddings.bias[0])


def gradients(
    learner: keras.Model,
    batch: dict[str, tf.Tensor],
    loss: Callable[[Embeddings], tf.Tensor],
    *,
    variables: Sequence,
    micro_batch_size: int | None = None,
    scale_loss: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
    num_replicas: int = 1,
    **options,
) -> tuple[tf.Tensor, Embeddings, list[tf.Tensor | None]]:
    """The loss of a batch and its gradient, with the learner in training mode.

    With a `micro_batch_size` the learner draws the same dropout for a row both
    times. Layers that mix the rows of a batch, as batch normalisation does, see
    a micro-batch in place of the batch, and regularizers of activations are
    averaged over them.

    Args:
        learner: maps a batch to `Embeddings`; its own regularizers count
            into the gradient, but not into the loss that is returned.
        batch: tensors with n rows.
        loss: of the embeddings of all n rows, a scalar.
        variables: what to differentiate by.
        micro_batch_size: rows embedded at a time; None takes all at once.
        scale_loss: the gradient is that of `scale_loss(loss)`, as optimizers
            for float16 want it.
        num_replicas: how many replicas' gradients will be summed; each counts
            its share of the regularizers.
        options: further arguments of the learner's calls, such as a `view`.

    Returns:
        The loss, the embeddings, and a gradient a variable, None where it has
        no part in the loss.

    Raises:
        ValueError: if `micro_batch_size` does not divide n.
    """
    rows = batch["image"].shape[0]
    if micro_batch_size in (None, rows):
        with tf.GradientTape() as tape:
            with flops.stage("forward"):
                embeddings = Embeddings(
                    *learner(batch, training=True, **options)
                )
            with flops.stage("loss"):
                value = loss(embeddings)
            target = scale_loss(value + _regularizers(learner, num_replicas))
        with flops.stage("backward"):
            found = tape.gradient(target, variables)
        # Rows of a lookup table come as often as a token does; clipping wants
        # the norm of their sum.
        dense = [
            one if one is None else tf.convert_to_tensor(one) for one in found
        ]
        return value, embeddings, dense
    if rows % micro_batch_size:
        raise ValueError(
            "`micro_batch_size` must divide a replica's share of the "
            f"sub-batch, b/R. Received: {micro_batch_size}, b/R={rows}, "
            f"R={num_replicas}"
        )
    state = learner.non_trainable_variables
    before = [tf.identity(tf.convert_to_tensor(one)) for one in state]
    with flops.stage("forward"):
        embeddings = embed(
            lambda part: Embeddings(*learner(part, training=True, **options)),
            batch,
            micro_batch_size,
        )
    with tf.GradientTape() as tape:
        tape.watch(embeddings)
        with flops.stage("loss"):
            value = loss(embeddings)
        target = scale_loss(value)
    with flops.stage("backward"):
        upstream = tape.gradient(
            target,
            embeddings,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
    # Dropout starts over, and statistics take each row in once.
    for variable, old in zip(state, before, strict=True):
        variable.assign(old)
    count = rows // micro_batch_size

    def regularizers():
        return scale_loss(_regularizers(learner, num_replicas * count))

    return (
        value,
        embeddings,
        _backward(
            learner,
            _split(batch, micro_batch_size),
            _split_upstream(upstream, micro_batch_size),
            variables,
            regularizers,
            options,
        ),
    )


def _backward(learner, parts, upstream, variables, regularizers, options):
    """Sums the gradients of the micro-batches, one after the other."""
    count = parts["image"].shape[0]
    unconnected = set()

    def step(index, sums):
        with tf.GradientTape() as tape:
            part = {name: value[index] for name, value in parts.items()}
            embeddings = Embeddings(*learner(part, training=True, **options))
            # Its gradient by the embeddings is `upstream`.
            target = regularizers()
            for own, of_own in zip(embeddings, upstream, strict=True):
                target += tf.reduce_sum(
                    tf.cast(own, tf.float32) * of_own[index]
                )
        found = tape.gradient(target, variables)
        unconnected.update(
            number for number, one in enumerate(found) if one is None
        )
        return index + 1, [
            total if one is None else total + tf.convert_to_tensor(one)
            for total, one in zip(sums, found, strict=True)
        ]

    zeros = [tf.zeros(one.shape, one.dtype) for one in variables]
    with flops.stage("backward"):
        _, sums = tf.while_loop(
            lambda index, _: index < count,
            step,
            (tf.constant(0), zeros),
            parallel_iterations=1,
        )
    return [
        None if number in unconnected else total
        for number, total in enumerate(sums)
    ]


def _split(batch, size):
    """Tensors `[n, ...]` -> `[n / size, size, ...]`."""
    return {
        name: tf.reshape(value, [-1, size, *value.shape[1:]])
        for name, value in batch.items()
    }


def _split_upstream(upstream, size):
    """The gradient of the embeddings, `[count, ...]` by micro-batches."""
    image, text = (
        tf.reshape(part, [-1, size, part.shape[-1]]) for part in upstream[:2]
    )
    # Scale and bias belong to the batch: the first micro-batch takes theirs.
    once = tf.one_hot(0, image.shape[0])
    return Embeddings(image, text, once * upstream.scale, once * upstream.bias)


def _regularizers(learner, share):
    return sum(tf.cast(term, tf.float32) for term in learner.losses) / share

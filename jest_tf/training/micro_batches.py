"""The gradient of a contrastive loss in the memory of a micro-batch.

The loss couples the rows of a batch only through their embeddings. All rows are
embedded without keeping activations; the loss gives the gradient of the
embeddings; each micro-batch is embedded again and backpropagates its part. The
sum is the gradient of the whole batch, for one more forward pass.

Reference: Gao et al. 2021, "Scaling deep contrastive learning batch size under
memory limited setup" (arXiv 2101.06983).
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import ops

from jest_tf import config as config_lib
from jest_tf import embeddings as embeddings_lib
from jest_tf.embeddings import Embeddings


class Gradients(NamedTuple):
    """Results of `gradients`.

    `terms` are the loss's scalars by name; `embeddings` are of all n rows.
    `by_variable` has None for trainable variables without effect on the loss.
    """

    terms: dict[str, tf.Tensor]
    embeddings: Embeddings
    by_variable: list[tf.Tensor | None]


def embed(
    encode: Callable[[dict], Embeddings],
    batch: dict[str, tf.Tensor],
    size: int | None,
) -> Embeddings:
    """Runs `encode(batch)`, `size` rows at a time; None takes all at once."""
    rows = batch["image"].shape[0]
    if size in (None, rows):
        return encode(batch)

    def in_float32(part):
        # The loop's dtypes are fixed beforehand; a tower may return any dtype.
        return Embeddings(
            *(tf.cast(value, tf.float32) for value in encode(part))
        )

    embeddings = tf.map_fn(
        in_float32,
        split(batch, size),
        parallel_iterations=1,
        fn_output_signature=Embeddings(*[tf.float32] * 4),
    )
    image, text = (
        tf.reshape(part, [rows, part.shape[-1]]) for part in embeddings[:2]
    )
    # Scale and bias are the same for every part.
    return Embeddings(image, text, embeddings.scale[0], embeddings.bias[0])


def gradients(
    learner: keras.Model,
    batch: dict[str, tf.Tensor],
    loss: Callable[[Embeddings], dict[str, tf.Tensor]],
    *,
    micro_batch_size: int | None = None,
    scale_loss: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
    num_replicas: int = 1,
    views: Sequence[config_lib.View] = (),
    projection: keras.layers.Layer | None = None,
) -> Gradients:
    """Computes a batch's loss and gradient, with the learner in training mode.

    With a `micro_batch_size`, both passes over a row use the same dropout.
    Layers that mix rows, such as batch normalisation, see a micro-batch, and
    activity regularizers are averaged over micro-batches.

    Args:
        learner: maps a batch to `Embeddings`; its regularizers enter the
            gradient, but not the returned loss.
        batch: tensors with n rows.
        loss: maps the embeddings of all n rows to scalars by name; `loss` is
            differentiated.
        micro_batch_size: rows embedded at a time; None takes all at once.
        scale_loss: applied to the loss before differentiation, for float16.
        num_replicas: replicas whose gradients will be summed; each adds its
            share of the regularizers.
        views: passed to the learner's calls, unless empty.
        projection: a layer with variables that the loss uses; their gradients
            follow those of the learner's variables.

    Raises:
        ValueError: if `micro_batch_size` does not divide n.
    """

    def encode(part):
        options = {"view": views} if views else {}
        output = learner(part, training=True, **options)
        return embeddings_lib.of_model("learner", output)

    variables = learner.trainable_variables
    of_loss = projection.trainable_variables if projection else []
    rows = batch["image"].shape[0]
    if micro_batch_size in (None, rows):
        with _tape_of(variables + of_loss) as tape:
            embeddings = encode(batch)
            terms = loss(embeddings)
            target = scale_loss(
                terms["loss"] + _regularizers(learner, num_replicas)
            )
        found = tape.gradient(target, variables + of_loss)
        # A lookup table's gradient has a row for each token, with repeats;
        # clipping needs the norm after equal rows are summed.
        dense = [
            gradient if gradient is None else tf.convert_to_tensor(gradient)
            for gradient in found
        ]
        return Gradients(terms, embeddings, dense)
    check_divides(micro_batch_size, rows, num_replicas)
    state = learner.non_trainable_variables
    before = [tf.identity(tf.convert_to_tensor(variable)) for variable in state]
    embeddings = embed(encode, batch, micro_batch_size)
    with _tape_of(of_loss) as tape:
        tape.watch(embeddings)
        terms = loss(embeddings)
        target = scale_loss(terms["loss"])
    upstream, own = tape.gradient(
        target,
        (embeddings, of_loss),
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    # Resets dropout, and makes statistics count each row once.
    for variable, old in zip(state, before, strict=True):
        variable.assign(old)
    parts, *upstream_parts = split((batch, *upstream[:2]), micro_batch_size)
    # Scale and bias belong to the batch: micro-batch 0 takes their gradient.
    once = tf.one_hot(0, rows // micro_batch_size)
    upstream_parts += [once * upstream.scale, once * upstream.bias]
    share = num_replicas * (rows // micro_batch_size)
    by_variable = _backward(
        encode,
        parts,
        upstream_parts,
        variables,
        lambda: scale_loss(_regularizers(learner, share)),
    )
    return Gradients(terms, embeddings, by_variable + own)


def _backward(encode, parts, upstream, variables, regularizers):
    count = parts["image"].shape[0]
    unconnected = set()  # the same in every iteration

    def add(index, sums):
        with _tape_of(variables) as tape:
            part = {name: value[index] for name, value in parts.items()}
            embeddings = encode(part)
            # A scalar whose gradient in the embeddings is `upstream`.
            target = regularizers()
            for value, gradient in zip(embeddings, upstream, strict=True):
                target += tf.reduce_sum(
                    tf.cast(value, tf.float32) * gradient[index]
                )
        found = tape.gradient(target, variables)
        unconnected.update(
            number for number, gradient in enumerate(found) if gradient is None
        )
        return index + 1, [
            total
            if gradient is None
            else total + tf.convert_to_tensor(gradient)
            for total, gradient in zip(sums, found, strict=True)
        ]

    zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    _, sums = tf.while_loop(
        lambda index, _: index < count,
        add,
        (tf.constant(0), zeros),
        parallel_iterations=1,
    )
    return [
        None if number in unconnected else total
        for number, total in enumerate(sums)
    ]


@contextlib.contextmanager
def _tape_of(variables):
    """Opens a tape of `variables` only, which ignores frozen parts."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([variable.value for variable in variables])
        yield tape


def split(tensors, size: int):
    """Splits a nest of tensors, `[n, ...]` -> `[n / size, size, ...]`."""
    return keras.tree.map_structure(
        lambda tensor: ops.reshape(tensor, [-1, size, *tensor.shape[1:]]),
        tensors,
    )


def check_divides(size: int, rows: int, num_replicas: int) -> None:
    """Raises ValueError unless micro-batches of `size` divide the `rows`."""
    if rows % size:
        raise ValueError(
            "`micro_batch_size` must divide a replica's share of the "
            f"sub-batch, b/R. Received: {size}, b/R={rows}, R={num_replicas}"
        )


def _regularizers(learner, share):
    return sum(tf.cast(term, tf.float32) for term in learner.losses) / share

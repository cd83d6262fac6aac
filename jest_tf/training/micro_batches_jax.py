"""`micro_batches` on Keras' JAX backend, where gradients are functions.

Variables are read from the scope of the step (`on_jax.py`); statistics and
seeds are written to it. Functions and arguments are as in `micro_batches`.
"""

import jax
import jax.numpy as jnp
import keras

from jest_tf import distribution
from jest_tf.embeddings import Embeddings, of_model
from jest_tf.training import micro_batches
from jest_tf.training.micro_batches import split


def embed(encode, batch, size):
    """Runs `encode(batch)`, `size` rows at a time; None takes all at once."""
    if size in (None, batch["image"].shape[0]):
        return encode(batch)
    return _joined(jax.lax.map(encode, split(batch, size)))


def gradients(
    learner,
    batch,
    loss,
    *,
    micro_batch_size=None,
    scale_loss=lambda value: value,
    num_replicas=1,
    views=(),
    projection=None,
):
    """Computes a batch's loss, and its gradient summed over replicas."""
    of_loss = projection.trainable_variables if projection else []
    state = learner.non_trainable_variables
    options = {"view": views} if views else {}

    def encode(weights, others, part):
        """Returns embeddings, the new state, and the sum of regularizers."""
        output, others, terms = learner.stateless_call(
            weights, others, part, training=True, return_losses=True, **options
        )
        return of_model("learner", output), others, sum(terms)

    def loss_of(embeddings, projected):
        with keras.StatelessScope(zip(of_loss, projected, strict=True)):
            return loss(embeddings)

    weights, projected, others = (
        [variable.value for variable in group]
        for group in (learner.trainable_variables, of_loss, state)
    )
    rows = batch["image"].shape[0]
    if micro_batch_size in (None, rows):

        def whole(weights, projected):
            embeddings, new, regularizers = encode(weights, others, batch)
            terms = loss_of(embeddings, projected)
            target = scale_loss(terms["loss"] + regularizers / num_replicas)
            return target, (terms, embeddings, new)

        found, (terms, embeddings, others) = jax.grad(
            whole, argnums=(0, 1), has_aux=True
        )(weights, projected)
    else:
        micro_batches.check_divides(micro_batch_size, rows, num_replicas)
        parts = split(batch, micro_batch_size)

        def forward(others, part):
            embeddings, others, _ = encode(weights, others, part)
            return others, embeddings

        embeddings = _joined(jax.lax.scan(forward, others, parts)[1])

        def of_embeddings(embeddings, projected):
            terms = loss_of(embeddings, projected)
            return scale_loss(terms["loss"]), terms

        (upstream, own), terms = jax.grad(
            of_embeddings, argnums=(0, 1), has_aux=True
        )(embeddings, projected)
        count = rows // micro_batch_size
        # Scale and bias belong to the batch: part 0 takes their gradient.
        once = jax.nn.one_hot(0, count)
        upstream = Embeddings(
            *split(upstream[:2], micro_batch_size),
            once * upstream.scale,
            once * upstream.bias,
        )

        def backward(carry, of_part):
            others, sums = carry
            part, upstream = of_part

            def target(weights):
                embeddings, new, regularizers = encode(weights, others, part)
                share = regularizers / (num_replicas * count)
                # A scalar whose gradient in the embeddings is `upstream`.
                pairs = zip(embeddings, upstream, strict=True)
                total = sum(
                    jnp.sum(value.astype("float32") * gradient)
                    for value, gradient in pairs
                )
                return total + scale_loss(share), new

            found, others = jax.grad(target, has_aux=True)(weights)
            return (others, jax.tree.map(jnp.add, sums, found)), None

        zeros = [jnp.zeros_like(weight) for weight in weights]
        (others, sums), _ = jax.lax.scan(
            backward, (others, zeros), (parts, upstream)
        )
        found = sums, own
    for variable, new in zip(state, others, strict=True):
        variable.assign(new)
    found = [*found[0], *found[1]]
    replicas = distribution.current()
    return micro_batches.Gradients(
        terms, embeddings, replicas.all_reduce(found) if replicas else found
    )


def _joined(parts):
    image, text = (part.reshape(-1, part.shape[-1]) for part in parts[:2])
    return Embeddings(image, text, parts.scale[0], parts.bias[0])

"""Training on several replicas.

`strategy` builds the `tf.distribute.Strategy`, `collectives` exchange tensors,
`placement` assigns chosen rows to replicas, `keras_fit` corrects Keras' `fit`.
On Keras' JAX backend, `collectives_jax` takes the place of the first two.
"""

from jest_tf.distribution.collectives import (
    any_worker,
    has_workers,
    join_halves,
)
from jest_tf.distribution.strategy import (
    build_strategy,
    bypass_proxy,
    connect,
    describe,
    distribute,
    in_halves,
    spread,
)
from jest_tf.embeddings import ON_TENSORFLOW

if ON_TENSORFLOW:
    from jest_tf.distribution.collectives import Replicas, current, replica_id
else:
    from jest_tf.distribution.collectives_jax import (
        Replicas,
        current,
        replica_id,
    )

__all__ = [
    "Replicas",
    "any_worker",
    "build_strategy",
    "bypass_proxy",
    "connect",
    "describe",
    "current",
    "distribute",
    "has_workers",
    "in_halves",
    "join_halves",
    "replica_id",
    "spread",
]

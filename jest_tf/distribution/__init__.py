"""Training on several replicas.

`strategy` builds the devices of a run, `collectives` exchange tensors,
`placement` assigns chosen rows to replicas, `keras_fit` corrects Keras' `fit`.
On Keras' JAX backend, `strategy_jax` and `collectives_jax` take the places of
the first two.
"""

from jest_tf.distribution.halves import in_halves, join_halves
from jest_tf.embeddings import ON_TENSORFLOW

if ON_TENSORFLOW:
    from jest_tf.distribution.collectives import (
        Replicas,
        any_worker,
        current,
        has_workers,
        is_tpu,
        replica_id,
    )
    from jest_tf.distribution.strategy import (
        LOST_WORKER,
        build_strategy,
        describe,
        distribute,
        one_device,
        peak_memory,
        share,
        spread,
        writes,
    )
else:
    from jest_tf.distribution.collectives_jax import (
        Replicas,
        current,
        replica_id,
    )
    from jest_tf.distribution.strategy_jax import (
        LOST_WORKER,
        any_worker,
        build_strategy,
        describe,
        distribute,
        has_workers,
        is_tpu,
        one_device,
        peak_memory,
        share,
        spread,
        writes,
    )

__all__ = [
    "LOST_WORKER",
    "Replicas",
    "any_worker",
    "build_strategy",
    "current",
    "describe",
    "distribute",
    "has_workers",
    "in_halves",
    "is_tpu",
    "join_halves",
    "one_device",
    "peak_memory",
    "replica_id",
    "share",
    "spread",
    "writes",
]

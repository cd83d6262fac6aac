"""Training on several replicas.

`strategy` builds the `tf.distribute.Strategy`, `collectives` exchange tensors,
`placement` assigns chosen rows to replicas, `keras_fit` corrects Keras' `fit`.
"""

from jest_tf.distribution.collectives import (
    Replicas,
    any_worker,
    current,
    join_halves,
    placed,
    replica_id,
)
from jest_tf.distribution.strategy import (
    build_strategy,
    bypass_proxy,
    connect,
    describe,
    distribute,
    has_workers,
    is_tpu,
    spread,
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
    "is_tpu",
    "join_halves",
    "placed",
    "replica_id",
    "spread",
]

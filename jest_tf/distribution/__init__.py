"""Replicas: strategies, collectives, row placement and Keras' `fit`."""

from jest_tf.distribution.strategy import (
    Replicas,
    any_worker,
    build_strategy,
    current,
    distribute,
    has_workers,
    is_tpu,
    join_halves,
    placed,
    replica_id,
)

__all__ = [
    "Replicas",
    "any_worker",
    "build_strategy",
    "current",
    "distribute",
    "has_workers",
    "is_tpu",
    "join_halves",
    "placed",
    "replica_id",
]

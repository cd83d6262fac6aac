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
        build_strategy,
        default,
        describe,
        distribute,
        has_lost_worker,
        mirrored,
        multi_worker_mirrored,
        peak_memory,
        share,
        spread,
        tpu,
        writes,
    )
else:
    from jest_tf.distribution.collectives_jax import (
        Replicas,
        current,
        replica_id,
    )
    from jest_tf.distribution.strategy_jax import (
        any_worker,
        build_strategy,
        default,
        describe,
        distribute,
        has_lost_worker,
        has_workers,
        is_tpu,
        mirrored,
        multi_worker_mirrored,
        peak_memory,
        share,
        spread,
        tpu,
        writes,
    )

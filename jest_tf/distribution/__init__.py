"""Training on several replicas.

`strategy` builds the devices of a run, `collectives` exchange tensors,
`placement` assigns chosen rows to replicas, `keras_fit` corrects Keras' `fit`.
On Keras' JAX backend, `strategy_jax` and `collectives_jax` take the places of
the first two.
"""

from jest_tf.distribution.halves import in_halves, join_halves
from jest_tf.embeddings import ON_TENSORFLOW

if ON_TENSORFLOW:
    from jest_tf.distribution import collectives as _collectives
    from jest_tf.distribution import strategy as _strategy
else:
    from jest_tf.distribution import collectives_jax as _collectives
    from jest_tf.distribution import strategy_jax as _strategy

Replicas = _collectives.Replicas
any_worker = _collectives.any_worker
current = _collectives.current
has_workers = _collectives.has_workers
is_tpu = _collectives.is_tpu

build_strategy = _strategy.build_strategy
default = _strategy.default
describe = _strategy.describe
distribute = _strategy.distribute
has_lost_worker = _strategy.has_lost_worker
mirrored = _strategy.mirrored
multi_worker_mirrored = _strategy.multi_worker_mirrored
peak_memory = _strategy.peak_memory
share = _strategy.share
spread = _strategy.spread
tpu = _strategy.tpu

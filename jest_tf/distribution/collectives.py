"""The collectives of a step that runs on every replica at once.

Losses and selection receive a `Replicas`, or None on one replica, and do not
depend on `tf.distribute`.
"""

import math
from collections.abc import Callable

import tensorflow as tf

# TensorFlow gathers these on CPUs and GPUs; other dtypes are sent as bits.
_GATHERED = (tf.float32, tf.float64, tf.int32, tf.int64)


class Replicas:
    """The collectives of a step, created in replica context by `current`.

    Every replica must call the same collectives in the same order. Each method
    takes a tensor or a nest of tensors, sent in one call where possible. Unless
    `in_loops`, collectives must stay out of `tf.while_loop` and `tf.cond`: the
    mirrored strategies synchronise only outside control flow.

    Attributes:
        num_replicas: R, a Python integer.
        replica_id: int32 scalar tensor in [0, R).
        in_loops: True if collectives work inside control flow, as on TPUs.
    """

    def __init__(self, context: tf.distribute.ReplicaContext):
        self._context = context
        self.num_replicas = context.num_replicas_in_sync
        self.replica_id = tf.cast(context.replica_id_in_sync_group, tf.int32)
        self.in_loops = is_tpu(context.strategy)

    def all_gather(self, tensors):
        """Gathers rows `[n, ...]` to `[R * n, ...]`, in replica order.

        n must be static and the same on every replica; the dtype is numeric or
        bool. The gradient, for float32 and float64, is the sum over replicas of
        the gradients of this replica's rows.
        """
        flat = [_static(tensor) for tensor in tf.nest.flatten(tensors)]

        def is_sent_as_bits(tensor):
            return not self.in_loops and tensor.dtype not in _GATHERED

        sent = [
            _to_words(tensor) if is_sent_as_bits(tensor) else tensor
            for tensor in flat
        ]
        gathered = self._context.all_gather(placed(self._context, sent), axis=0)
        results = []
        for rows, tensor in zip(gathered, flat, strict=True):
            shape = [self.num_replicas * tensor.shape[0], *tensor.shape[1:]]
            if is_sent_as_bits(tensor):
                rows = _from_words(rows, tensor.dtype, shape)
            results.append(tf.ensure_shape(rows, shape))
        return tf.nest.pack_sequence_as(tensors, results)

    def all_reduce(self, tensors):
        """Sums over replicas; its gradient is the sum of their gradients.

        All devices can sum float16, bfloat16, float32, float64 and int32, but
        not integers and floats in one call: integers live on the host.
        """
        flat = [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(tensors)]
        totals = self._context.all_reduce(
            tf.distribute.ReduceOp.SUM, placed(self._context, flat)
        )
        totals = [
            tf.ensure_shape(total, tensor.shape)
            for total, tensor in zip(totals, flat, strict=True)
        ]
        return tf.nest.pack_sequence_as(tensors, totals)

    def all_to_all(self, tensors):
        """Sends row d of `[R, m, ...]` to replica d.

        Row s of the result, `[R, m, ...]`, comes from replica s; dtypes are as
        in `all_gather`. Outside TPUs, a replica receives all rows.
        """
        flat = [_static(tensor) for tensor in tf.nest.flatten(tensors)]
        if self.in_loops:
            # TPU device numbers differ from replica numbers; map them.
            at = _exchange_on_tpu(tf.fill([self.num_replicas], self.replica_id))
            places = tf.math.invert_permutation(at)
            sent = [_exchange_on_tpu(tf.gather(rows, at)) for rows in flat]
            received = [tf.gather(rows, places) for rows in sent]
        else:
            everything = self.all_gather([rows[tf.newaxis] for rows in flat])
            # [source, destination, m, ...] -> [source, m, ...]
            received = [
                tf.gather(rows, self.replica_id, axis=1) for rows in everything
            ]
        return tf.nest.pack_sequence_as(tensors, received)


def current() -> Replicas | None:
    """Returns the collectives of the running step; None on one replica."""
    context = tf.distribute.get_replica_context()
    if context is None:
        raise ValueError(
            "Collectives work only inside `strategy.run`, where `fit` runs a "
            "step. Received: a call from the strategy's scope"
        )
    return None if context.num_replicas_in_sync == 1 else Replicas(context)


def placed(context: tf.distribute.ReplicaContext, tensors):
    """Places tensors on the replica's device, if it has a single device.

    Collectives need an explicit device; a worker with one device sets none.
    """
    if context.num_replicas_in_sync == 1:
        return tensors
    devices = context.strategy.extended.worker_devices
    if len(devices) > 1:
        return tensors
    with tf.device(devices[0]):
        return tf.nest.map_structure(tf.identity, tensors)


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """True if steps run on TPUs, which have no 64-bit integers."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def has_workers(strategy: tf.distribute.Strategy) -> bool:
    """True if several processes of a TF_CONFIG run each step together."""
    workers = tf.distribute.MultiWorkerMirroredStrategy
    return isinstance(strategy, workers) and strategy.num_replicas_in_sync > 1


def any_worker(strategy: tf.distribute.Strategy) -> Callable[[bool], bool]:
    """Returns `wish -> bool`, true if `wish` is true on any worker.

    All workers must call it between the same steps of `fit`. They get the same
    answer, from an all-reduce of an integer.
    """
    if not has_workers(strategy):
        return bool

    @tf.function
    def count(wish):
        def on_replica():
            return current().all_reduce(wish)

        counts = strategy.run(on_replica)
        return strategy.experimental_local_results(counts)[0]

    return lambda wish: int(count(tf.constant(int(wish)))) > 0


def _static(tensor):
    tensor = tf.convert_to_tensor(tensor)
    if not tensor.shape.is_fully_defined() or tensor.shape.rank == 0:
        raise ValueError(
            "Replicas exchange rows of tensors of static shape. "
            f"Received: shape {tensor.shape}"
        )
    return tensor


def _exchange_on_tpu(tensor):
    """Sends row d of `[R, ...]` to the TPU's device d."""
    return tf.raw_ops.AllToAll(
        input=tensor,
        group_assignment=[list(range(tensor.shape[0]))],
        concat_dimension=0,
        split_dimension=0,
        split_count=tensor.shape[0],
    )


def _to_words(tensor):
    """Converts rows `[n, ...]` of any dtype to bits, int32 `[n, words]`."""
    if tensor.dtype == tf.bool:
        tensor = tf.cast(tensor, tf.uint8)
    octets = tf.reshape(tf.bitcast(tensor, tf.uint8), [tensor.shape[0], -1])
    octets = tf.pad(octets, [[0, 0], [0, -octets.shape[1] % 4]])
    return tf.bitcast(tf.reshape(octets, [tensor.shape[0], -1, 4]), tf.int32)


def _from_words(words, dtype, shape):
    """Inverts `_to_words`, for any number of rows."""
    size = [dtype.size] if dtype.size > 1 else []
    octets = tf.reshape(tf.bitcast(words, tf.uint8), [shape[0], -1])
    octets = octets[:, : math.prod([*shape[1:], *size])]
    octets = tf.reshape(octets, [*shape, *size])
    convert = tf.cast if dtype == tf.bool else tf.bitcast
    return convert(octets, dtype)

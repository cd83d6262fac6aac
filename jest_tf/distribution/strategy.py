"""Replicas: a strategy from settings, its dataset, and the collectives.

`build_strategy` makes the `tf.distribute.Strategy` of a run, `distribute` its
dataset. `current` gives the collectives to what runs on every replica at once:
the losses and the selection are handed them and mention `tf.distribute`
nowhere.

Not here: how Keras runs a step on several replicas (hooks.py), which rows move
(exchange.py).
"""

import functools
import json
import os
from collections.abc import Callable

import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf.distribution import placement

# What a sum over replicas takes on every device that we know of.
_SUMMED = (tf.float32, tf.float16, tf.bfloat16, tf.float64, tf.int32)
# What a gather of TensorFlow's takes on CPUs and GPUs; others go as bits.
_GATHERED = (tf.float32, tf.float64, tf.int32, tf.int64)


def build_strategy(
    settings: config_lib.DistributionConfig,
) -> tf.distribute.Strategy:
    """The strategy that `settings` names; call it before anything else runs.

    Called again, it gives the same strategy: two strategies of a process would
    use the same keys for different collectives.

    Args:
        settings: see `config.DistributionConfig`. "mirrored" takes the virtual
            devices if there are any, else all GPUs, else the one CPU.

    Raises:
        ValueError: if it can't be built here: no such TPU, a TF_CONFIG that
            is missing or says nothing, TensorFlow already running.
    """
    name, parts = settings.strategy, settings.virtual_devices
    if parts and name in ("multi_worker_mirrored", "tpu"):
        raise ValueError(
            "`distribution.virtual_devices` splits the CPU for the strategies "
            f"'default' and 'mirrored'. Received: {parts} with {name!r}"
        )
    if parts:
        _split_cpu(parts)
    if name == "default":
        return tf.distribute.get_strategy()
    if name == "multi_worker_mirrored":
        _check_tf_config()
    return _strategy(name, settings.tpu, parts)


def distribute(
    strategy: tf.distribute.Strategy,
    super_batches: Callable[[int, int], tf.data.Dataset],
    super_batch_size: int,
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """What `fit` is to be given: every host reads its own rows alone.

    Args:
        strategy: of the run.
        super_batches: `(host, num_hosts) -> dataset` of that host's share of
            each super-batch, the rows from `host * B / num_hosts` on; endless.
        super_batch_size: B, of all hosts together.

    Returns:
        The dataset. TPUs have no numbers of 64 bits, so for them what is int64
        `[n]` comes as int32 `[n, 2]`, see `join_halves`.

    Raises:
        ValueError: if B can't be dealt to the replicas evenly.
    """
    replicas = strategy.num_replicas_in_sync
    if is_tpu(strategy):
        super_batches = _in_halves(super_batches)
    if replicas == 1:
        return super_batches(0, 1)
    rows = placement.share(
        super_batch_size, replicas, "`data.super_batch_size` (B)"
    )

    def of_host(context):
        dataset = super_batches(
            context.input_pipeline_id, context.num_input_pipelines
        )
        dataset = dataset.rebatch(rows, drop_remainder=True)
        # Of other datasets several workers get batches of dynamic shape.
        return dataset.apply(
            tf.data.experimental.assert_cardinality(
                tf.data.INFINITE_CARDINALITY
            )
        )

    return strategy.distribute_datasets_from_function(of_host)


def join_halves(numbers: tf.Tensor) -> tf.Tensor:
    """int32 `[n, 2]`, as TPUs are given int64 `[n]` -> that; others stay."""
    if numbers.dtype == tf.int32 and numbers.shape.rank == 2:
        return tf.bitcast(numbers, tf.int64)
    return numbers


class Replicas:
    """The collectives of one step, made inside replica context by `current`.

    Every replica must call the same ones in the same order. They may not stand
    inside the body of a `tf.while_loop` or `tf.cond` unless `in_loops`: the
    mirrored strategies join their replicas outside of control flow only, so a
    loop with a collective in it is to be unrolled there. Each takes a tensor
    or a structure of them, which is sent in one go where that is possible.

    Attributes:
        num_replicas: R, a Python integer.
        replica_id: int32 scalar tensor in [0, R).
        in_loops: whether collectives work inside control flow, true on TPUs.
    """

    def __init__(self, context: tf.distribute.ReplicaContext):
        self._context = context
        self.num_replicas = context.num_replicas_in_sync
        self.replica_id = tf.cast(context.replica_id_in_sync_group, tf.int32)
        self.in_loops = is_tpu(context.strategy)

    def all_gather(self, tensors):
        """Rows `[n, ...]` of every replica, `[R * n, ...]`, in replica order.

        n must be static and the same on every replica; any numeric dtype or
        bool. The gradient, of float32 and float64, is the sum of all replicas'
        for the own rows.
        """
        flat = [_static(tensor) for tensor in tf.nest.flatten(tensors)]
        as_they_are = [
            self.in_loops or tensor.dtype in _GATHERED for tensor in flat
        ]
        sent = [
            tensor if as_it_is else _to_words(tensor)
            for tensor, as_it_is in zip(flat, as_they_are, strict=True)
        ]
        gathered = self._context.all_gather(placed(self._context, sent), axis=0)
        results = []
        for rows, tensor, as_it_is in zip(
            gathered, flat, as_they_are, strict=True
        ):
            shape = [self.num_replicas * tensor.shape[0], *tensor.shape[1:]]
            if not as_it_is:
                rows = _from_words(rows, tensor.dtype, shape)
            results.append(tf.ensure_shape(rows, shape))
        return tf.nest.pack_sequence_as(tensors, results)

    def all_reduce(self, tensors):
        """The sum over replicas; its gradient is the sum of their gradients.

        Raises:
            TypeError: on a dtype other than float16, bfloat16, float32,
                float64 and int32, which not every device sums.
        """
        flat = [tf.convert_to_tensor(one) for one in tf.nest.flatten(tensors)]
        for tensor in flat:
            if tensor.dtype not in _SUMMED:
                raise TypeError(
                    "`all_reduce` sums float16, bfloat16, float32, float64 and "
                    f"int32. Received: {tensor.dtype.name}"
                )
        totals = [None] * len(flat)
        # Integers lie on the host, and can't go together with the others.
        for is_integer in (False, True):
            numbers = [
                number
                for number, tensor in enumerate(flat)
                if tensor.dtype.is_integer == is_integer
            ]
            if not numbers:
                continue
            sums = self._context.all_reduce(
                tf.distribute.ReduceOp.SUM,
                placed(self._context, [flat[number] for number in numbers]),
            )
            for number, total in zip(numbers, sums, strict=True):
                totals[number] = tf.ensure_shape(total, flat[number].shape)
        return tf.nest.pack_sequence_as(tensors, totals)

    def all_to_all(self, tensors):
        """Sends row d of `[R, m, ...]` to replica d; any dtype as above.

        A TPU sends no more than that; elsewhere every replica gets all rows
        and keeps its own.

        Returns:
            `[R, m, ...]` of the same dtype; row s is what replica s sent here.
        """
        flat = [_static(tensor) for tensor in tf.nest.flatten(tensors)]
        for tensor in flat:
            if tensor.shape[0] != self.num_replicas:
                raise ValueError(
                    "`all_to_all` takes one row for each of the "
                    f"{self.num_replicas} replicas. Received: {tensor.shape}"
                )
        if self.in_loops:
            # TPUs number their devices on their own: who is at each place?
            at = _exchange_on_tpu(tf.fill([self.num_replicas], self.replica_id))
            places = tf.math.invert_permutation(at)
            sent = [_exchange_on_tpu(tf.gather(one, at)) for one in flat]
            received = [tf.gather(one, places) for one in sent]
        else:
            everything = self.all_gather([one[tf.newaxis] for one in flat])
            # [source, destination, m, ...] -> [source, m, ...]
            received = [
                tf.gather(one, self.replica_id, axis=1) for one in everything
            ]
        return tf.nest.pack_sequence_as(tensors, received)


def current() -> Replicas | None:
    """The collectives of the running step; None on a single replica.

    Raises:
        ValueError: in the scope of a strategy, but outside of its `run`.
    """
    context = tf.distribute.get_replica_context()
    if context is None:
        raise ValueError(
            "Replicas meet inside `strategy.run` only, where `fit` runs a "
            "step. Received: a call from the strategy's scope"
        )
    return None if context.num_replicas_in_sync == 1 else Replicas(context)


def replica_id() -> tf.Tensor:
    """The running replica's number, int32 in [0, R); 0 where there is one."""
    context = tf.distribute.get_replica_context()
    number = 0 if context is None else context.replica_id_in_sync_group
    return tf.cast(number, tf.int32)


def placed(context: tf.distribute.ReplicaContext, tensors):
    """The same on the replica's device, if it has none of its own.

    A worker with a single device doesn't say where its tensors lie, but wants
    to know when they are exchanged.

    Args:
        context: of the running replica.
        tensors: a structure of them, about to be exchanged.
    """
    if context.num_replicas_in_sync == 1:
        return tensors
    devices = context.strategy.extended.worker_devices
    if len(devices) > 1:
        return tensors
    with tf.device(devices[0]):
        return tf.nest.map_structure(tf.identity, tensors)


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether steps run on TPUs, which have no numbers of 64 bits."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def has_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether several processes, of TF_CONFIG, run each step together."""
    workers = tf.distribute.MultiWorkerMirroredStrategy
    return isinstance(strategy, workers) and strategy.num_replicas_in_sync > 1


def any_worker(strategy: tf.distribute.Strategy) -> Callable[[bool], bool]:
    """`wish -> whether any worker has it`, between steps of `fit`.

    All workers are to ask at the same place, and get the same answer; it takes
    an all-reduce of an integer. Where there is one, its wish is the answer.
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


def _in_halves(super_batches):
    """The same function, with int32 `[n, 2]` for every int64 `[n]`."""

    def halve(batch):
        return tf.nest.map_structure(
            lambda one: (
                tf.bitcast(one, tf.int32) if one.dtype == tf.int64 else one
            ),
            batch,
        )

    def halved(host, num_hosts):
        return super_batches(host, num_hosts).map(halve)

    return halved


@functools.cache
def _strategy(name, tpu, parts):
    if parts:
        return tf.distribute.MirroredStrategy(
            [f"CPU:{index}" for index in range(parts)]
        )
    # Imported here, as it takes seconds and brings a second Keras.
    from official.common import distribute_utils

    try:
        return distribute_utils.get_distribution_strategy(
            name,
            num_gpus=len(tf.config.list_physical_devices("GPU")),
            tpu_address=tpu,
        )
    except (tf.errors.OpError, OSError, RuntimeError, ValueError) as error:
        place = f" at {tpu!r}" if name == "tpu" else ""
        raise ValueError(
            f"`distribution.strategy={name!r}` can't be built{place}: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error


def _split_cpu(parts):
    (cpu, *_) = tf.config.list_physical_devices("CPU")
    configured = tf.config.get_logical_device_configuration(cpu)
    if configured is not None and len(configured) == parts:
        return
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * parts
        )
    except RuntimeError as error:
        raise ValueError(
            "`distribution.virtual_devices` must be set before TensorFlow "
            f"runs anything. Received: {parts}, after it had started with "
            f"{len(configured or [None])}"
        ) from error


def _check_tf_config():
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text or "{}")
        workers = config["cluster"]["worker"]
        count = len(workers) + len(config["cluster"].get("chief", ()))
        index = config["task"]["index"]
        known = len(config["cluster"][config["task"]["type"]])
        fits = count > 0 and 0 <= int(index) < known
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise ValueError(
            "`distribution.strategy='multi_worker_mirrored'` needs TF_CONFIG, "
            'a JSON object with "cluster": {"worker": ["host:port", ...]} and '
            '"task": {"type": "worker", "index": ...}, one of these. '
            f"Received: {text!r}"
        )


def _static(tensor):
    tensor = tf.convert_to_tensor(tensor)
    if not tensor.shape.is_fully_defined() or tensor.shape.rank == 0:
        raise ValueError(
            "Replicas exchange rows of tensors of static shape. "
            f"Received: shape {tensor.shape}"
        )
    return tensor


def _exchange_on_tpu(tensor):
    """Row d of `[R, ...]` to device d, by the TPU's own numbers."""
    return tf.raw_ops.AllToAll(
        input=tensor,
        group_assignment=[list(range(tensor.shape[0]))],
        concat_dimension=0,
        split_dimension=0,
        split_count=tensor.shape[0],
    )


def _to_words(tensor):
    """The bits of each row, `[n, ...]` of any dtype -> int32 `[n, words]`."""
    if tensor.dtype == tf.bool:
        tensor = tf.cast(tensor, tf.uint8)
    octets = tf.reshape(tf.bitcast(tensor, tf.uint8), [tensor.shape[0], -1])
    octets = tf.pad(octets, [[0, 0], [0, -octets.shape[1] % 4]])
    return tf.bitcast(tf.reshape(octets, [tensor.shape[0], -1, 4]), tf.int32)


def _from_words(words, dtype, shape):
    """The inverse of `_to_words`, of any number of rows."""
    octets = tf.reshape(tf.bitcast(words, tf.uint8), [shape[0], -1])
    size = dtype.size
    octets = octets[:, : size * tf.TensorShape(shape[1:]).num_elements()]
    if dtype == tf.bool:
        return tf.cast(tf.reshape(octets, shape), dtype)
    if size == 1:
        return tf.bitcast(tf.reshape(octets, shape), dtype)
    return tf.bitcast(tf.reshape(octets, [*shape, size]), dtype)

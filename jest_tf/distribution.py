"""Replicas: a strategy from settings, the collectives, and Keras under both.

`build_strategy` makes the `tf.distribute.Strategy` of a run, `distribute` its
dataset. `current` gives the collectives to what runs on every replica at once:
the losses and the selection are handed them and mention `tf.distribute`
nowhere. `TrainerHooks` and `AggregateThenClip` set right what Keras 3 gets
wrong on several replicas; each says what, and tests/test_distribution.py shows
the fault in Keras beside the repair.
"""

import functools
import json
import os
from collections.abc import Callable

import keras
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import exchange

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
    rows = exchange.share(
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
        gathered = self._context.all_gather(
            _placed(self._context, sent), axis=0
        )
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
                _placed(self._context, [flat[number] for number in numbers]),
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


class TrainerHooks:
    """Mixin that lets `keras.Model.fit` run on several replicas.

    Put it before `keras.Model`, and create the model in the strategy's scope.
    Against Keras 3.15 it

    - runs all steps of an execution as one graph with a loop on the host;
      Keras nests graphs there, whose collectives then lack their keys;
    - builds model and optimizer from the shapes of the data; Keras takes the
      mean of a batch over replicas, which uses up the batch and fails on
      strings, on uneven rows, and with several workers;
    - makes a step's logs of the metrics of all replicas; Keras takes those of
      one on TPUs and their mean elsewhere, of sums too, and fails with several
      workers.

    On a single replica Keras' own code runs.
    """

    def compile(self, *args, **kwargs):
        """As `keras.Model.compile`.

        Raises:
            ValueError: on what Keras can't do on several replicas.
        """
        super().compile(*args, **kwargs)
        num_replicas = self.distribute_strategy.num_replicas_in_sync
        if not _needs_hooks(self.distribute_strategy):
            return
        if kwargs.get("jit_compile") is True:
            raise ValueError(
                "`jit_compile=True` is for one device; TPUs compile every step "
                f"without it. Received: it on {num_replicas} replicas"
            )
        self.jit_compile = False
        optimizer = self.optimizer
        clips = [
            f"{name}={getattr(optimizer, name)}"
            for name in ("clipnorm", "global_clipnorm", "clipvalue")
            if getattr(optimizer, name, None)
        ]
        if clips and not isinstance(optimizer, AggregateThenClip):
            raise ValueError(
                f"Keras' {type(optimizer).__name__} clips the gradient of each "
                "replica by itself; use `optimizer.AdamW`, or a class that "
                "inherits from `distribution.AggregateThenClip` and it. "
                f"Received: {clips[0]} on {num_replicas} replicas"
            )
        if getattr(optimizer, "gradient_accumulation_steps", None):
            raise ValueError(
                "`gradient_accumulation_steps` does not work on several "
                "replicas; `micro_batch_size` saves memory there. Received: "
                f"{optimizer.gradient_accumulation_steps} on {num_replicas} "
                "replicas"
            )

    def get_metrics_result(self):
        """The metrics' values, over all replicas within a step too."""
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return super().get_metrics_result()
        metrics = self.metrics
        sums = Replicas(context).all_reduce(
            [
                [tf.convert_to_tensor(one) for one in metric.variables]
                for metric in metrics
            ]
        )
        return {
            metric.name: metric.stateless_result(variables)
            for metric, variables in zip(metrics, sums, strict=True)
        }

    def train_on_batch(self, *args, **kwargs):
        """As `keras.Model.train_on_batch`, on one replica.

        Raises:
            ValueError: on several.
        """
        num_replicas = self.distribute_strategy.num_replicas_in_sync
        if num_replicas > 1:
            raise ValueError(
                "`train_on_batch` hands every replica the same batch; use "
                f"`fit`. Received: {num_replicas} replicas"
            )
        return super().train_on_batch(*args, **kwargs)

    def collect(self, outputs):
        """What an execution returns, of what each local replica's step did.

        Args:
            outputs: a step's result with a tuple of values, one a replica, in
                place of each value.
        """
        return _first(outputs)

    def _make_function(self, step_function):
        strategy = self.distribute_strategy
        if not _needs_hooks(strategy):
            return super()._make_function(step_function)
        num_steps = self.steps_per_execution

        def one_step(iterator):
            outputs = strategy.run(step_function, args=(next(iterator),))
            outputs = tf.nest.map_structure(
                strategy.experimental_local_results, outputs
            )
            return self.collect(outputs)

        # TPUStrategy wants a name that is a name, so no lambda.
        def steps(iterator):
            if num_steps == 1:
                return one_step(iterator)
            return _last_of(num_steps, lambda: one_step(iterator))

        if self.run_eagerly:
            return steps
        return tf.function(steps, autograph=False, reduce_retracing=True)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        strategy = self.distribute_strategy
        if iterator is not None:
            _check_execution(iterator, strategy)
        if not _needs_hooks(strategy):
            super()._maybe_symbolic_build(iterator, data_batch)
            return
        if self.built and (self.optimizer is None or self.optimizer.built):
            return
        if iterator is not None:
            spec = iterator._get_iterator().element_spec
            data_batch = tf.nest.map_structure(
                lambda one: getattr(one, "_value_specs", (one,))[0], spec
            )
        with strategy.scope():
            self._symbolic_build(data_batch=data_batch)


class AggregateThenClip:
    """Mixin for optimizers: the sum over replicas first, then the clipping.

    Keras 3.15 clips each replica's gradient before it sums them, so that R
    replicas take other steps than one. Put it before the optimizer.
    """

    def _clip_gradients(self, grads):
        context = tf.distribute.get_replica_context()
        if context is not None:
            grads = _placed(context, list(grads))
        pairs = [(gradient, None) for gradient in grads]
        summed = super()._all_reduce_sum_gradients(pairs)
        return super()._clip_gradients([gradient for gradient, _ in summed])

    def _all_reduce_sum_gradients(self, grads_and_vars):
        # Summed before they were clipped.
        return list(grads_and_vars)


def check_placed(name: str, model, strategy: tf.distribute.Strategy) -> None:
    """Raises ValueError unless the replicas hold `model`'s variables.

    Args:
        name: what the message calls it.
        model: anything; what has no `variables` passes.
        strategy: of the run.
    """
    if not _needs_hooks(strategy):
        return
    variables = list(getattr(model, "variables", ()))
    outside = [
        one
        for one in variables
        if not strategy.extended.variable_created_in_scope(
            getattr(one, "value", one)
            if isinstance(one, keras.Variable)
            else one
        )
    ]
    if outside:
        raise ValueError(
            f"`{name}` must be created in the scope of the strategy it runs "
            f"under, `with strategy.scope():`. Received: {len(outside)} of its "
            f"{len(variables)} variables from elsewhere, "
            f"{type(strategy).__name__} with {strategy.num_replicas_in_sync} "
            "replicas"
        )


def _last_of(num_steps, one_step):
    """What the last of several steps returns, all of them in one loop.

    A loop wants to know beforehand what it carries, which only a step can say;
    a first step outside would be a second program for a TPU. So the loop
    carries an optional, of which nothing has to be known.
    """
    returned = []

    def body(step, _):
        outputs = one_step()
        returned[:] = [outputs]
        flat = [tf.convert_to_tensor(one) for one in tf.nest.flatten(outputs)]
        # The number as well: an optional of nothing can't be had.
        return step + 1, tf.raw_ops.OptionalFromValue(components=[step, *flat])

    _, last = tf.while_loop(
        lambda step, _: step < num_steps,
        body,
        (tf.constant(0), tf.raw_ops.OptionalNone()),
        parallel_iterations=1,
    )
    (outputs,) = returned
    flat = [tf.convert_to_tensor(one) for one in tf.nest.flatten(outputs)]
    _, *values = tf.raw_ops.OptionalGetValue(
        optional=last,
        output_types=[tf.int32, *(one.dtype for one in flat)],
        output_shapes=[tf.TensorShape([]), *(one.shape for one in flat)],
    )
    return tf.nest.pack_sequence_as(outputs, values)


def _first(outputs):
    """The first local replica's value of each tuple of values."""
    if isinstance(outputs, dict):
        return {name: _first(value) for name, value in outputs.items()}
    return outputs[0]


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


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether steps run on TPUs, which have no numbers of 64 bits."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def _needs_hooks(strategy):
    return strategy.num_replicas_in_sync > 1 or is_tpu(strategy)


def _check_execution(iterator, strategy):
    """Keras would run past the end of an epoch to fill an execution."""
    # On one replica it sees the end of the data itself.
    known = iterator.steps_per_epoch
    if _needs_hooks(strategy):
        known = iterator.num_batches
    if known and known % iterator.steps_per_execution:
        raise ValueError(
            "The steps of an epoch must be a multiple of "
            "`steps_per_execution`. Received: "
            f"{known} steps, steps_per_execution="
            f"{iterator.steps_per_execution}"
        )


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


def _placed(context, tensors):
    """The same on the replica's device, if it has none of its own.

    A worker with a single device doesn't say where its tensors lie, but wants
    to know when they are exchanged.
    """
    if context.num_replicas_in_sync == 1:
        return tensors
    devices = context.strategy.extended.worker_devices
    if len(devices) > 1:
        return tensors
    with tf.device(devices[0]):
        return tf.nest.map_structure(tf.identity, tensors)


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

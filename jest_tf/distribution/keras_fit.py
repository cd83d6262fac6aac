"""Corrections of Keras 3's `fit` on several replicas.

`TrainerHooks` is for models, `AggregateThenClip` for optimizers.
tests/distribution/test_fit.py shows one fault in Keras beside its correction.
"""

import contextlib
import functools
from collections.abc import Iterator

import keras
import tensorflow as tf

from jest_tf import embeddings
from jest_tf.distribution import collectives


class Averages:
    """Mixin that swaps in the averaged weights, and out again, bit for bit.

    On TensorFlow, Keras' `SwapEMAWeights` swaps by sums and differences, which
    round.
    """

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager that gives the model its averaged weights.

        The average is the optimizer's, with `use_ema=True`. If there is none,
        or before the first step, nothing changes. Within the block, average
        and weights have changed places, so neither train nor save a checkpoint
        there. Other variables, such as statistics of batch normalisation, are
        not averaged.
        """
        self._exchange_average()
        try:
            yield
        finally:
            self._exchange_average()

    def _exchange_average(self):
        optimizer = self.optimizer
        # Before the first step, Keras' averages are zeros.
        if not optimizer.use_ema or not int(optimizer.iterations.numpy()):
            return
        with self.distribute_strategy.scope():
            for variable, average in zip(
                optimizer._trainable_variables,
                optimizer._model_variables_moving_average,
                strict=True,
            ):
                kept = embeddings.read(variable)
                variable.assign(embeddings.read(average))
                average.assign(kept)


class TrainerHooks(Averages):
    """Mixin that lets `keras.Model.fit` run on several replicas.

    Put it before `keras.Model`, and create the model in the strategy's scope.
    Unlike Keras 3.15, it

    - runs all steps of an execution as a single graph with a loop on the host;
      Keras nests graphs, whose collectives then lack their keys;
    - builds model and optimizer from the shapes of the data. On several
      replicas Keras averages a batch over them, which consumes the batch and
      fails on strings, on uneven rows, and with several workers. On one
      replica it creates the optimizer's variables while tracing, which traces
      the step twice;
    - computes logs from the metrics of all replicas; Keras takes those of
      one replica on TPUs and their mean elsewhere, even for sums, and fails
      with several workers;
    - swaps in averaged weights as `Averages` does.
    """

    def compile(self, *args, **kwargs):
        """As `keras.Model.compile`; refuses options that replicas can't run."""
        super().compile(*args, **kwargs)
        if not _needs_hooks(self.distribute_strategy):
            return
        if kwargs.get("jit_compile") is True:
            self._refuse(
                "`jit_compile=True` is for one device; TPUs compile every step "
                "without it",
                "it",
            )
        self.jit_compile = False
        optimizer = self.optimizer
        for name in ("clipnorm", "global_clipnorm", "clipvalue"):
            clip = getattr(optimizer, name, None)
            if clip and not isinstance(optimizer, AggregateThenClip):
                self._refuse(
                    f"Keras' {type(optimizer).__name__} clips the gradient of "
                    "each replica by itself; use `optimizer.AdamW`, or a class "
                    "of `keras_fit.AggregateThenClip` and this optimizer",
                    f"{name}={clip}",
                )
        accumulated = getattr(optimizer, "gradient_accumulation_steps", None)
        if accumulated:
            self._refuse(
                "`gradient_accumulation_steps` does not work on several "
                "replicas; `micro_batch_size` saves memory there",
                accumulated,
            )

    def get_metrics_result(self):
        """Returns the metrics' values over all replicas, also within a step."""
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return super().get_metrics_result()
        metrics = self.metrics
        sums = collectives.Replicas(context).all_reduce(
            [
                [tf.convert_to_tensor(value) for value in metric.variables]
                for metric in metrics
            ]
        )
        return {
            metric.name: metric.stateless_result(variables)
            for metric, variables in zip(metrics, sums, strict=True)
        }

    def train_on_batch(self, *args, **kwargs):
        """As `keras.Model.train_on_batch`; raises ValueError if R > 1."""
        if self.distribute_strategy.num_replicas_in_sync > 1:
            self._refuse(
                "`train_on_batch` hands every replica the same batch; use "
                "`fit`",
                "a batch",
            )
        return super().train_on_batch(*args, **kwargs)

    def _refuse(self, reason, received):
        num_replicas = self.distribute_strategy.num_replicas_in_sync
        raise ValueError(
            f"{reason}. Received: {received} on {num_replicas} replicas"
        )

    def _make_function(self, step_function):
        strategy = self.distribute_strategy
        if not _needs_hooks(strategy):
            return super()._make_function(step_function)
        num_steps = self.steps_per_execution

        def one_step(iterator):
            outputs = strategy.run(step_function, args=(next(iterator),))
            return _collected(outputs, strategy)

        # TPUStrategy needs a valid function name, so no lambda.
        def steps(iterator):
            if num_steps == 1:
                return one_step(iterator)
            return _run_steps(num_steps, functools.partial(one_step, iterator))

        if self.run_eagerly:
            return steps
        return tf.function(steps, autograph=False, reduce_retracing=True)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        strategy = self.distribute_strategy
        if iterator is not None:
            _check_execution(iterator, strategy)
        if self.built and (self.optimizer is None or self.optimizer.built):
            return
        if iterator is not None:
            spec = iterator._get_iterator().element_spec
            data_batch = tf.nest.map_structure(
                lambda leaf: getattr(leaf, "_value_specs", (leaf,))[0], spec
            )
        with strategy.scope():
            self._symbolic_build(data_batch=data_batch)


class AggregateThenClip:
    """Mixin for optimizers that sums gradients over replicas, then clips.

    Keras 3.15 clips each replica's gradient before summing, so steps depend on
    R. Put it before the optimizer.
    """

    def _clip_gradients(self, grads):
        context = tf.distribute.get_replica_context()
        if context is not None:
            grads = collectives.placed(context, list(grads))
        pairs = [(gradient, None) for gradient in grads]
        summed = super()._all_reduce_sum_gradients(pairs)
        return super()._clip_gradients([gradient for gradient, _ in summed])

    def _all_reduce_sum_gradients(self, grads_and_vars):
        # Already summed before clipping.
        return list(grads_and_vars)


def check_placed(name: str, model, strategy: tf.distribute.Strategy) -> None:
    """Raises ValueError unless `model` was created in the strategy's scope.

    An object without `variables` passes.
    """
    if not _needs_hooks(strategy):
        return
    variables = [
        variable.value if isinstance(variable, keras.Variable) else variable
        for variable in getattr(model, "variables", ())
    ]
    is_inside = strategy.extended.variable_created_in_scope
    outside = sum(not is_inside(variable) for variable in variables)
    if outside:
        raise ValueError(
            f"`{name}` must be created in the scope of the strategy it runs "
            f"under, `with strategy.scope():`. Received: {outside} of its "
            f"{len(variables)} variables from elsewhere, "
            f"{type(strategy).__name__} with {strategy.num_replicas_in_sync} "
            "replicas"
        )


def _collected(outputs, strategy):
    """The result of a step on the local replicas.

    A single nest has equal values on all replicas. In a pair of nests, the
    second has different rows on each replica; they are concatenated.
    """

    def first(value):
        return strategy.experimental_local_results(value)[0]

    def joined(value):
        return tf.concat(strategy.experimental_local_results(value), 0)

    if not isinstance(outputs, tuple):
        return tf.nest.map_structure(first, outputs)
    equal, rows = outputs
    return (
        tf.nest.map_structure(first, equal),
        tf.nest.map_structure(joined, rows),
    )


def _run_steps(num_steps, one_step):
    """Returns the result of the last of several steps, run in a loop.

    A loop needs the types of its state before any step is traced, and a first
    step outside the loop would be a second program on a TPU. So the loop
    carries an optional, whose content may have any type.
    """
    traced = {}

    def body(step, _):
        traced["outputs"] = one_step()
        values = tf.nest.flatten(traced["outputs"])
        return step + 1, tf.raw_ops.OptionalFromValue(components=values)

    _, last = tf.while_loop(
        lambda step, _: step < num_steps,
        body,
        (tf.constant(0), tf.raw_ops.OptionalNone()),
        parallel_iterations=1,
    )
    flat = tf.nest.flatten(traced["outputs"])
    values = tf.raw_ops.OptionalGetValue(
        optional=last,
        output_types=[value.dtype for value in flat],
        output_shapes=[value.shape for value in flat],
    )
    return tf.nest.pack_sequence_as(traced["outputs"], values)


def _needs_hooks(strategy):
    return strategy.num_replicas_in_sync > 1 or collectives.is_tpu(strategy)


def _check_execution(iterator, strategy):
    """Refuses epochs that end within an execution; Keras would overrun."""
    # On one replica Keras detects the end of the data.
    known = iterator.steps_per_epoch
    if _needs_hooks(strategy):
        known = iterator.num_batches
    together = iterator.steps_per_execution
    if known and known % together:
        raise ValueError(
            "The steps of an epoch must be a multiple of "
            "`steps_per_execution`. Received: "
            f"{known} steps, steps_per_execution={together}"
        )

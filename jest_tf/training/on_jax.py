"""How `JESTModel` runs its step on Keras' JAX backend.

Keras' JAX trainer hands a step all state and takes it back. Within a
`keras.StatelessScope`, `step.py` reads and writes that state through the
variables, so it is the same code on every backend. On several devices it runs
within a `shard_map`; each device has its rows, like a replica on TensorFlow.
"""

import functools
import zlib

import jax
import keras
import numpy as np
import tensorflow as tf
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from jest_tf import distribution, embeddings
from jest_tf.distribution import collectives_jax, keras_fit
from jest_tf.training import finite, step_outputs


class Trainer(keras_fit.Averages):
    """Mixin of `JESTModel`, before `keras.Model`."""

    distribute_strategy = tf.distribute.get_strategy()  # the default: none

    @property
    def metrics_variables(self) -> list[keras.Variable]:
        """All metrics' variables; tracing shows which metrics have values."""
        return [
            variable
            for metric in self.step_metrics
            for variable in metric.variables
        ]

    def compile(self, *args, **kwargs):
        """Compiles as `keras.Model` does; refuses loss scaling."""
        super().compile(*args, **kwargs)
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                "`mixed_float16` needs Keras on TensorFlow; use "
                "`mixed_bfloat16`, which scales no loss. Received: "
                f"{type(self.optimizer).__name__}"
            )

    def fit(self, x=None, *args, validation_data=None, **kwargs):
        """Trains as `keras.Model.fit`; 64-bit ids become int32 `[n, 2]`."""
        if validation_data is not None:
            kwargs["validation_data"] = _in_halves(validation_data)
        return super().fit(_in_halves(x), *args, **kwargs)

    def evaluate(self, x=None, *args, **kwargs):
        """Evaluates as `keras.Model.evaluate`, with ids as in `fit`."""
        return super().evaluate(_in_halves(x), *args, **kwargs)

    def make_train_function(self, force=False):
        """Makes the function for `fit`, which keeps the row outputs."""
        if self.train_function is not None and not force:
            return
        compiled = functools.cache(self._compiled_step)

        def function(state, iterator):
            finite.check_scores(self._last_logs)
            if self._next_step is None:
                self._next_step = int(state[2][self._place_of_iterations()])
            first, draws = self._next_step, [None] * self.steps_per_execution
            settings = self.selection and self.selection.at(first).in_step
            step = compiled(settings)

            def one_step(state, data):
                outputs, state = step(
                    state, self._frozen_values(), self._super_batch(data)
                )
                place = self._next_step % len(draws)
                draws[place] = outputs[0].get("draws")
                self._next_step += 1
                return outputs, state

            (equal, rows), state = self._make_function(one_step)(
                state, iterator
            )
            if "draws" not in equal:
                draws = None
            self.rows = step_outputs.RowReport(
                rows | equal["rows"], draws, self._gather_rows
            )
            self._last_logs = equal["logs"]
            return equal["logs"], state

        self.train_function = function

    def test_step(self, state, data):
        """Computes the contrastive loss of a batch, in evaluation mode."""
        groups = (
            self.trainable_variables,
            self.non_trainable_variables,
            self.metrics_variables,
        )
        with _scope(groups, state) as scope:
            logs = self._test_step(data)
        return logs, _values(groups, scope)

    def _compiled_step(self, settings):
        """Compiles `(state, frozen, super_batch) -> outputs, state`."""
        groups = (
            self.trainable_variables,
            self.non_trainable_variables,
            self.optimizer.variables,
            self.metrics_variables,
        )
        devices = collectives_jax.mesh()

        def on_replica(state, frozen, super_batch):
            *values, metrics = state
            zeros = jax.tree.map(jax.numpy.zeros_like, metrics)
            with (
                collectives_jax.running(devices) as replicas,
                _scope((*groups, self._frozen), (*values, zeros, frozen)) as on,
            ):
                equal, rows = self._train_step(super_batch, settings)
                trained, others, optimizer, added = _values(groups, on)
                if replicas is not None:
                    added = replicas.all_reduce(added)
                    # Statistics, e.g. of batch normalisation, cover local rows.
                    others = [_mean(value, replicas) for value in others]
            metrics = [
                old + new for old, new in zip(metrics, added, strict=True)
            ]
            equal["logs"] = self._logs_of(metrics)
            return (equal, rows), (trained, others, optimizer, metrics)

        if devices is not None:
            every, by_rows = PartitionSpec(), PartitionSpec(*devices.axis_names)
            on_replica = jax.shard_map(
                on_replica,
                mesh=devices,
                in_specs=(every, every, by_rows),
                out_specs=((every, by_rows), every),
                check_vma=False,
            )
        if self.run_eagerly:
            return on_replica
        return jax.jit(on_replica, donate_argnums=0)

    def _logs_of(self, metrics):
        """Returns results of the metrics shown, from values of variables."""
        values = dict(
            zip(map(id, self.metrics_variables), metrics, strict=True)
        )
        return {
            metric.name: metric.stateless_result(
                [values[id(variable)] for variable in metric.variables]
            )
            for metric in self.metrics
        }

    @property
    def _frozen(self):
        """The reference's variables: neither trained nor saved."""
        return getattr(self.step.reference, "variables", ())

    def _frozen_values(self):
        return [variable.value for variable in self._frozen]

    def _place_of_iterations(self):
        return [id(variable) for variable in self.optimizer.variables].index(
            id(self.optimizer.iterations)
        )

    def _steps_done(self):
        return int(self.optimizer.iterations.value)

    def _exchange_average(self):
        self.jax_state_sync()  # within `fit`, variables have no values
        super()._exchange_average()

    def _check_placed(self, name, model):
        """Raises under a `tf.distribute.Strategy`: Keras places variables."""
        if tf.distribute.has_strategy():
            embeddings.check_backend("A `tf.distribute.Strategy`")

    @property
    def _gather_rows(self):
        if jax.process_count() == 1:
            return None
        return functools.partial(multihost_utils.process_allgather, tiled=True)

    @property
    def _num_replicas(self):
        devices = collectives_jax.mesh()
        return 1 if devices is None else devices.size


def _in_halves(data):
    if not isinstance(data, dict | tf.data.Dataset):
        raise ValueError(
            "On Keras' JAX backend `x` must be a `tf.data.Dataset` or a dict "
            "of arrays: JAX would truncate other ids to 32 bits. Received: "
            f"{type(data).__name__}"
        )
    _check_shares(getattr(data, "element_spec", None))
    return distribution.in_halves(data)


def _check_shares(spec):
    """Raises in every process if shares differ, as a step would then hang."""
    digest = np.uint32(zlib.crc32(repr(spec).encode()))
    if len(np.unique(multihost_utils.process_allgather(digest))) > 1:
        raise ValueError(
            "Every process must pass batches with the same keys, dtypes and "
            "sizes: B / processes rows of each super-batch. Received in "
            f"process {jax.process_index()} of {jax.process_count()}: {spec}"
        )


def _scope(groups, values):
    return keras.StatelessScope(
        [
            pair
            for group, of_group in zip(groups, values, strict=True)
            for pair in zip(group, of_group, strict=True)
        ]
    )


def _values(groups, scope):
    return tuple(
        [scope.get_current_value(variable) for variable in group]
        for group in groups
    )


def _mean(value, replicas):
    if not keras.backend.is_float_dtype(value.dtype):
        return value
    return replicas.all_reduce(value) / replicas.num_replicas

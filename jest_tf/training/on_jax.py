"""Training on Keras' JAX backend, on any number of devices: a `Backend`.

Keras' JAX trainer hands a step all state and takes it back. Within a
`keras.StatelessScope`, `step.py` reads and writes that state through the
variables, so it is the same code on every backend. On several devices it runs
within a `shard_map`; each device has its rows, like a replica on TensorFlow.
Gradients are functions of the variables in that scope; statistics and seeds are
written to it.
"""

import functools
import traceback
import zlib

import jax
import jax.numpy as jnp
import keras
import numpy as np
import tensorflow as tf
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from jest_tf import distribution, embeddings
from jest_tf.distribution import collectives_jax, keras_fit
from jest_tf.embeddings import Embeddings, convert_output
from jest_tf.training import backend, sub_batch


class Trainer(keras_fit.Averages):
    """Mixin of `JESTModel`, before `keras.Model`; see `backend.Trainer`."""

    distribute_strategy = tf.distribute.get_strategy()  # the default: none

    @property
    def metrics_variables(self) -> list[keras.Variable]:
        """All metrics' variables; tracing shows which metrics have values."""
        return [
            variable
            for metric in self.stepper.metrics.every
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
        try:
            return super().fit(_in_halves(x), *args, **kwargs)
        except TypeError as error:
            # After any error Keras 3.15 averages weights, which may be gone.
            last = traceback.extract_tb(error.__traceback__)[-1]
            if error.__context__ and last.name == "value":
                raise error.__context__ from None
            raise

    def evaluate(self, x=None, *args, **kwargs):
        """Evaluates as `keras.Model.evaluate`, with ids as in `fit`."""
        return super().evaluate(_in_halves(x), *args, **kwargs)

    def make_train_function(self, force=False):
        """Makes the function for `fit`, which keeps the row outputs."""
        if self.train_function is not None and not force:
            return
        stepper, num_steps = self.stepper, self.steps_per_execution
        steps = {}
        counter = list(map(id, self.optimizer.variables)).index(
            id(self.optimizer.iterations)
        )

        def function(state, iterator):
            segment = stepper.begin_execution(
                lambda: int(state[2][counter]), num_steps
            )
            kind = segment and segment.step_kind
            if kind not in steps:
                steps[kind] = self.compiled_step(segment)

            def one_step(state, data):
                return steps[kind](
                    state,
                    self.frozen_values(),
                    sub_batch.extract_super_batch(data, self.num_replicas),
                )

            (equal, rows), state = self._make_function(one_step)(
                state, iterator
            )
            stepper.end_execution(equal, rows, self.gather_rows)
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
            logs = self.stepper.test(data, self.num_replicas)
        return logs, _values(groups, scope)

    def compiled_step(self, segment):
        """Compiles `(state, frozen, super_batch) -> outputs, state`.

        `frozen` are `frozen_values()`.
        """
        groups = self._state
        devices = collectives_jax.mesh()

        def on_replica(state, frozen, super_batch):
            *values, metrics = state
            zeros = jax.tree.map(jax.numpy.zeros_like, metrics)
            with (
                collectives_jax.running(devices) as replicas,
                _scope((*groups, self._frozen), (*values, zeros, frozen)) as on,
            ):
                self.stepper.note_specs(
                    segment,
                    jax.tree.map(
                        lambda rows: tf.TensorSpec(rows.shape, rows.dtype),
                        super_batch,
                    ),
                )
                equal, rows = self.stepper.run(
                    super_batch, segment, self.gather_rows is not None
                )
                trained, others, optimizer, added = _values(groups, on)
                if replicas is not None:
                    added = replicas.all_reduce(added)
                    # Statistics, e.g. of batch normalisation, cover local rows.
                    others = [_mean(value, replicas) for value in others]
            metrics = [
                old + new for old, new in zip(metrics, added, strict=True)
            ]
            equal["logs"] = self._read_logs(metrics)
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

    def trace(self, dataset):
        """Traces each kind of step of the plan on a dataset, and runs none."""
        spec, kinds = distribution.in_halves(dataset).element_spec, {}
        for segment in self.stepper.plan:
            kinds.setdefault(segment.step_kind, segment)

        def shaped(values):
            return tf.nest.map_structure(
                lambda value: jax.ShapeDtypeStruct(
                    tuple(value.shape), tf.as_dtype(value.dtype).as_numpy_dtype
                ),
                values,
            )

        state = [
            [variable.value for variable in group] for group in self._state
        ]
        for segment in kinds.values():
            jax.eval_shape(
                self.compiled_step(segment),
                shaped(state),
                shaped(self.frozen_values()),
                shaped(spec),
            )

    @property
    def _state(self):
        """The variables of a step by group, as Keras passes them."""
        return (
            self.trainable_variables,
            self.non_trainable_variables,
            self.optimizer.variables,
            self.metrics_variables,
        )

    def _read_logs(self, metrics):
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
        return getattr(self.stepper.step.reference, "variables", ())

    def frozen_values(self):
        """Values of the reference's variables, neither trained nor saved."""
        return [variable.value for variable in self._frozen]

    def steps_done(self) -> int:
        """Reads the number of steps so far."""
        return int(self.optimizer.iterations.value)

    def sync(self):
        """Gives the variables their values, which Keras holds within `fit`."""
        self.jax_state_sync()

    def _exchange_average(self):
        self.sync()
        super()._exchange_average()

    def check_placed(self, name, model):
        """Raises under a `tf.distribute.Strategy`: Keras places variables."""
        if tf.distribute.has_strategy():
            embeddings.check_backend("A `tf.distribute.Strategy`")

    @property
    def gather_rows(self):
        """Joins rows of all processes, outside a step; None if there is one."""
        if jax.process_count() == 1:
            return None
        return functools.partial(multihost_utils.process_allgather, tiled=True)

    @property
    def num_replicas(self):
        """R, the devices of `keras.distribution`."""
        devices = collectives_jax.mesh()
        return 1 if devices is None else devices.size


def embed(encode, batch, size):
    """Runs `encode(batch)`, `size` rows at a time; None takes all at once."""
    if size in (None, batch["image"].shape[0]):
        return encode(batch)
    return _joined(jax.lax.map(encode, backend.split(batch, size)))


def gradients(
    learner,
    batch,
    loss,
    *,
    micro_batch_size=None,
    scale_loss=lambda value: value,
    num_replicas=1,
    views=(),
    projection=None,
):
    """Computes a batch's loss and gradient, see `backend.Backend`.

    The gradient is summed over replicas.
    """
    of_loss = projection.trainable_variables if projection else []
    state = learner.non_trainable_variables
    variables = [*learner.trainable_variables, *state]
    options = {"view": views} if views else {}

    def encode(weights, others, part):
        """Returns embeddings, the new state, and the sum of regularizers."""
        output, others, terms = learner.stateless_call(
            weights, others, part, training=True, return_losses=True, **options
        )
        values = [*weights, *others]
        with keras.StatelessScope(zip(variables, values, strict=True)):
            embeddings = convert_output("learner", output)
        return embeddings, others, sum(terms)

    def compute_terms(embeddings, projected):
        with keras.StatelessScope(zip(of_loss, projected, strict=True)):
            return loss(embeddings)

    weights, projected, others = (
        [variable.value for variable in group]
        for group in (learner.trainable_variables, of_loss, state)
    )
    rows = batch["image"].shape[0]
    if micro_batch_size in (None, rows):

        def whole(weights, projected):
            embeddings, new, regularizers = encode(weights, others, batch)
            terms = compute_terms(embeddings, projected)
            target = scale_loss(terms["loss"] + regularizers / num_replicas)
            return target, (terms, embeddings, new)

        by_group, (terms, embeddings, others) = jax.grad(
            whole, argnums=(0, 1), has_aux=True
        )(weights, projected)
    else:
        parts = backend.split(batch, micro_batch_size)

        def forward(others, part):
            embeddings, others, _ = encode(weights, others, part)
            return others, embeddings

        embeddings = _joined(jax.lax.scan(forward, others, parts)[1])

        def compute_target(embeddings, projected):
            terms = compute_terms(embeddings, projected)
            return scale_loss(terms["loss"]), terms

        (upstream, own), terms = jax.grad(
            compute_target, argnums=(0, 1), has_aux=True
        )(embeddings, projected)
        count = rows // micro_batch_size
        # Scale and bias belong to the batch: part 0 takes their gradient.
        once = jax.nn.one_hot(0, count)
        upstream = Embeddings(
            *backend.split(upstream[:2], micro_batch_size),
            once * upstream.scale,
            once * upstream.bias,
        )

        def backward(carry, of_part):
            others, sums = carry
            part, upstream = of_part

            def target(weights):
                embeddings, new, regularizers = encode(weights, others, part)
                share = regularizers / (num_replicas * count)
                # A scalar whose gradient in the embeddings is `upstream`.
                pairs = zip(embeddings, upstream, strict=True)
                total = sum(
                    jnp.sum(value.astype("float32") * gradient)
                    for value, gradient in pairs
                )
                return total + scale_loss(share), new

            by_variable, others = jax.grad(target, has_aux=True)(weights)
            return (others, jax.tree.map(jnp.add, sums, by_variable)), None

        zeros = [jnp.zeros_like(weight) for weight in weights]
        (others, sums), _ = jax.lax.scan(
            backward, (others, zeros), (parts, upstream)
        )
        by_group = sums, own
    for variable, new in zip(state, others, strict=True):
        variable.assign(new)
    by_variable = [*by_group[0], *by_group[1]]
    replicas = distribution.current()
    return backend.Gradients(
        terms,
        embeddings,
        replicas.all_reduce(by_variable) if replicas else by_variable,
    )


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


def _joined(parts):
    image, text = (part.reshape(-1, part.shape[-1]) for part in parts[:2])
    return Embeddings(image, text, parts.scale[0], parts.bias[0])

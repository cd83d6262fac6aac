"""Training on TensorFlow, on any number of replicas: a `backend.Backend`.

Corrections of Keras' `fit` on several replicas are in
`distribution/keras_fit.py`.
"""

import contextlib
import functools

import tensorflow as tf

from jest_tf import distribution
from jest_tf import embeddings as embeddings_lib
from jest_tf.distribution import keras_fit
from jest_tf.embeddings import Embeddings
from jest_tf.training import backend, sub_batch


class Trainer(keras_fit.TrainerHooks):
    """Mixin of `JESTModel`, before `keras.Model`; see `backend.Trainer`."""

    def make_train_function(self, force=False):
        """Makes the function for `fit`, which keeps the row outputs."""
        if self.train_function is not None and not force:
            return
        stepper, num_steps = self.stepper, self.steps_per_execution
        executions = {}

        def execution(segment):
            """Returns the program of a segment's steps."""
            kind = segment and segment.step_kind
            if kind not in executions:

                def step(data):  # TPUs need its name
                    return self._step(segment, data)

                executions[kind] = self._make_function(step)
            return executions[kind]

        def function(iterator):
            segment = stepper.begin_execution(self.steps_done, num_steps)
            equal, rows = execution(segment)(iterator)
            stepper.end_execution(equal, rows, self.gather_rows)
            return equal["logs"]

        self.train_function = function

    def trace(self, dataset):
        """Traces each kind of step of the plan on a dataset, and runs none."""
        spec, kinds = dataset.element_spec, {}
        for segment in self.stepper.plan:
            kinds.setdefault(segment.step_kind, segment)
        for segment in kinds.values():
            step = functools.partial(self._step, segment)
            tf.function(
                lambda data, step=step: self.distribute_strategy.run(
                    step, args=(data,)
                ),
                autograph=False,
            ).get_concrete_function(spec)

    def train_step(self, data):
        """Runs one step on a super-batch; returns the metrics' running means.

        For custom training loops: `fit` runs `make_train_function`'s programs.
        The stages that score are those of the step at which this is traced.
        """
        segment = self.stepper.segment_at(self.steps_done())
        return self._step(segment, data)[0]["logs"]

    def test_step(self, data):
        """Computes the contrastive loss of a batch, in evaluation mode."""
        return self.stepper.test(data, self.num_replicas)

    def _step(self, segment, data):
        super_batch = sub_batch.extract_super_batch(data, self.num_replicas)
        if not tf.executing_eagerly():
            self.stepper.note_specs(
                segment,
                tf.nest.map_structure(tf.TensorSpec.from_tensor, super_batch),
            )
        # When the data end, operations that need no batch, such as weight
        # decay, must not run: TensorFlow inlines the step into the loop.
        with tf.control_dependencies([super_batch["image"]]):
            equal, rows = self.stepper.run(
                super_batch, segment, self.gather_rows is not None
            )
            return {"logs": self.get_metrics_result()} | equal, rows

    def steps_done(self) -> int:
        """Reads the number of steps so far, also on replicas and in traces."""
        with tf.init_scope():
            counter = tf.convert_to_tensor(self.optimizer.iterations.value)
            return int(counter.numpy())

    def sync(self):
        """Does nothing: steps change the variables themselves."""

    def check_placed(self, name, model):
        """Raises ValueError unless `model` was made in the strategy's scope."""
        keras_fit.check_placed(name, model, self.distribute_strategy)

    @property
    def gather_rows(self):
        """Joins rows of all workers, outside a step; None if there is one."""
        strategy = self.distribute_strategy
        if distribution.has_workers(strategy):
            return functools.partial(strategy.gather, axis=0)
        return None

    @property
    def num_replicas(self):
        """R, the replicas of the strategy."""
        return self.distribute_strategy.num_replicas_in_sync


def embed(encode, batch, size):
    """Runs `encode(batch)`, `size` rows at a time; None takes all at once."""
    rows = batch["image"].shape[0]
    if size in (None, rows):
        return encode(batch)

    def in_float32(part):
        # The loop's dtypes are fixed beforehand; a tower may return any dtype.
        return Embeddings(
            *(tf.cast(value, tf.float32) for value in encode(part))
        )

    embeddings = tf.map_fn(
        in_float32,
        backend.split(batch, size),
        parallel_iterations=1,
        fn_output_signature=Embeddings(*[tf.float32] * 4),
    )
    image, text = (
        tf.reshape(part, [rows, part.shape[-1]]) for part in embeddings[:2]
    )
    # Scale and bias are the same for every part.
    return Embeddings(image, text, embeddings.scale[0], embeddings.bias[0])


def gradients(
    learner,
    batch,
    loss,
    *,
    micro_batch_size=None,
    scale_loss=tf.identity,
    num_replicas=1,
    views=(),
    projection=None,
):
    """Computes a batch's loss and gradient, see `backend.Backend`."""

    def encode(part):
        options = {"view": views} if views else {}
        output = learner(part, training=True, **options)
        return embeddings_lib.convert_output("learner", output)

    variables = learner.trainable_variables
    of_loss = projection.trainable_variables if projection else []
    rows = batch["image"].shape[0]
    if micro_batch_size in (None, rows):
        with _open_tape(variables + of_loss) as tape:
            embeddings = encode(batch)
            terms = loss(embeddings)
            target = scale_loss(
                terms["loss"] + _regularizers(learner, num_replicas)
            )
        by_variable = tape.gradient(target, variables + of_loss)
        # A lookup table's gradient has a row for each token, with repeats;
        # clipping needs the norm after equal rows are summed.
        dense = [
            gradient if gradient is None else tf.convert_to_tensor(gradient)
            for gradient in by_variable
        ]
        return backend.Gradients(terms, embeddings, dense)
    state = learner.non_trainable_variables
    before = [tf.identity(tf.convert_to_tensor(variable)) for variable in state]
    embeddings = embed(encode, batch, micro_batch_size)
    with _open_tape(of_loss) as tape:
        tape.watch(embeddings)
        terms = loss(embeddings)
        target = scale_loss(terms["loss"])
    upstream, own = tape.gradient(
        target,
        (embeddings, of_loss),
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    # Resets dropout, and makes statistics count each row once.
    for variable, old in zip(state, before, strict=True):
        variable.assign(old)
    parts, *upstream_parts = backend.split(
        (batch, *upstream[:2]), micro_batch_size
    )
    # Scale and bias belong to the batch: micro-batch 0 takes their gradient.
    once = tf.one_hot(0, rows // micro_batch_size)
    upstream_parts += [once * upstream.scale, once * upstream.bias]
    share = num_replicas * (rows // micro_batch_size)
    by_variable = _backward(
        encode,
        parts,
        upstream_parts,
        variables,
        lambda: scale_loss(_regularizers(learner, share)),
    )
    return backend.Gradients(terms, embeddings, by_variable + own)


def _backward(encode, parts, upstream, variables, regularizers):
    count = parts["image"].shape[0]
    unconnected = set()  # the same in every iteration

    def add(index, sums):
        with _open_tape(variables) as tape:
            part = {name: value[index] for name, value in parts.items()}
            embeddings = encode(part)
            # A scalar whose gradient in the embeddings is `upstream`.
            target = regularizers()
            for value, gradient in zip(embeddings, upstream, strict=True):
                target += tf.reduce_sum(
                    tf.cast(value, tf.float32) * gradient[index]
                )
        by_variable = tape.gradient(target, variables)
        unconnected.update(
            number
            for number, gradient in enumerate(by_variable)
            if gradient is None
        )
        return index + 1, [
            total
            if gradient is None
            else total + tf.convert_to_tensor(gradient)
            for total, gradient in zip(sums, by_variable, strict=True)
        ]

    zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    _, sums = tf.while_loop(
        lambda index, _: index < count,
        add,
        (tf.constant(0), zeros),
        parallel_iterations=1,
    )
    return [
        None if number in unconnected else total
        for number, total in enumerate(sums)
    ]


@contextlib.contextmanager
def _open_tape(variables):
    """Opens a tape of `variables` only, which ignores frozen parts."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([variable.value for variable in variables])
        yield tape


def _regularizers(learner, share):
    return sum(tf.cast(term, tf.float32) for term in learner.losses) / share

"""The step that `fit` would run on TPUs, traced; nothing here runs it."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tiny

import jest_tf
from benchmarks.tpu import fake_strategy, lifter, step
from jest_tf import config, distribution, training
from jest_tf.data import augmentation
from jest_tf.training import funnel as funnel_lib

REPLICAS = 4
ROWS, BATCH_SIZE = 16, 8
DIM = 6  # of the learner's embeddings
HOST = {
    *("PyFunc", "EagerPyFunc", "Print", "PrintV2", "StringFormat"),
    *("Unique", "Where", "DecodeJpeg", "CollectiveReduceV2"),
}


@functools.cache
def strategy_of_tpus():
    return fake_strategy.build_strategy(REPLICAS)


def selection(quota):
    stage = config.Stage(ROWS // BATCH_SIZE, num_chunks=2)
    return config.SelectionConfig(BATCH_SIZE, stages=(stage,), quota=quota)


class TPUStepTest(tf.test.TestCase):
    def trace(self, quota, loss, is_cached, dtype, steps_per_execution=1):
        with strategy_of_tpus().scope():
            cached = funnel_lib.Cached(10.0, -10.0)
            model = training.JESTModel(
                tiny.learner(0, DIM, dtype=dtype),
                cached if is_cached else tiny.learner(5, dtype=dtype),
                selection(quota),
                loss,
                options=jest_tf.StepOptions(
                    augment=augmentation.Augmentation(flip=True, min_area=0.5),
                    false_negatives="reference",
                ),
            )
            model.compile(
                optimizer=jest_tf.AdamW(0.05, global_clipnorm=0.3),
                steps_per_execution=steps_per_execution,
                jit_compile=False,
            )
            model.optimizer.build(model.trainable_variables)
        (batch,) = tiny.super_batches(1, rows=ROWS)
        batch["record_replaced"] = np.arange(ROWS) < 3
        if is_cached:
            for name in ("reference_image", "reference_text"):
                batch[name] = np.ones([ROWS, 5], np.float16)
        return model, step.trace(model, tiny.dataset([batch]).repeat())

    def check(self, quota, **settings):
        model, function = self.trace(quota, **settings)
        operations = list(of_replicas(function.graph))
        self.check_exchange(model, operations, quota)
        self.check_types(operations)
        return function, operations

    def check_exchange(self, model, operations, quota):
        sums, exchanges = (
            [
                operation.inputs[0]
                for operation in operations
                if operation.type == kind
            ]
            for kind in ("CrossReplicaSum", "AllToAll")
        )
        # A row for each replica is the most that one of 4 can owe another,
        # of a sub-batch of 8 and 4 rows a replica. Images move so, or not.
        images = [tensor for tensor in exchanges if tensor.dtype == tf.uint8]
        moved = [[4, 1, 4, 4, 3]] if quota == "global" else []
        self.assertEqual([tensor.shape for tensor in images], moved)
        # The optimizer sums each gradient once.
        shapes = [tuple(tensor.shape) for tensor in sums]
        for variable in model.trainable_variables:
            if len(variable.shape) == 2:
                self.assertEqual(shapes.count(tuple(variable.shape)), 1)
                shapes.remove(tuple(variable.shape))
        # All else is at most the embeddings of the sub-batch.
        for shape in shapes:
            self.assertLessEqual(np.prod(shape), BATCH_SIZE * DIM, shape)

    def check_types(self, operations):
        self.assertEmpty({operation.type for operation in operations} & HOST)
        for operation in operations:
            for tensor in operation.outputs:
                self.assertNotIn(
                    tensor.dtype, (tf.float64, tf.string), operation.name
                )
                if operation.type == "Placeholder":
                    continue
                self.assertTrue(
                    tensor.shape.is_fully_defined()
                    or tensor.dtype in (tf.variant, tf.resource),
                    (operation.name, tensor.shape),
                )
                # Counters and the states of philox; ids come in halves.
                if tensor.dtype in (tf.int64, tf.uint64):
                    self.assertLessEqual(
                        tensor.shape.num_elements(), REPLICAS, operation.name
                    )

    def test_steps_in_bfloat16_are_one_program_in_one_loop(self):
        function, operations = self.check(
            "global",
            loss="sigmoid",
            is_cached=True,
            dtype="mixed_bfloat16",
            steps_per_execution=3,
        )
        program = lifter.Program(function)  # refuses two
        self.assertEqual(program.host_operations, ["IteratorGetNext"])
        types = {}
        for operation in operations:
            if operation.outputs:
                types.setdefault(operation.type, set()).add(
                    operation.outputs[0].dtype
                )
        self.assertIn(tf.bfloat16, types["MatMul"])
        # Scores, losses and draws are float32 whatever the towers are.
        for kind in ("Softplus", "Log", "TopKV2", "CrossReplicaSum"):
            self.assertNotIn(tf.bfloat16, types[kind], kind)

    @pytest.mark.slow
    def test_what_a_step_exchanges(self):
        for loss, is_cached in (("sigmoid", True), ("softmax", False)):
            for quota in config.QUOTAS:
                with self.subTest(quota, loss=loss, cached=is_cached):
                    options = {"loss": loss, "is_cached": is_cached}
                    self.check(quota, dtype="float32", **options)

    def test_numbers_of_64_bits_come_in_halves(self):
        numbers = tf.constant([2**40 + 7, -3, 2**63 - 1], tf.int64)
        batch = {"id": numbers, "text": tf.ones([3, 2], tf.int32)}
        dataset = distribution.distribute(
            fake_strategy.build_strategy(1),
            lambda host, num_hosts: tf.data.Dataset.from_tensors(batch),
        )
        (given,) = dataset
        self.assertEqual(given["id"].dtype, tf.int32)
        self.assertAllEqual(given["text"], batch["text"])
        self.assertAllEqual(distribution.join_halves(given["id"]), numbers)
        self.assertAllEqual(distribution.join_halves(numbers), numbers)


def of_replicas(graph, is_called=False):
    """The operations that run on every replica, and those that they call."""
    for operation in graph.get_operations():
        attributes = operation.node_def.attr
        is_theirs = is_called or "_tpu_replicate" in attributes
        for value in attributes.values():
            if value.HasField("func"):
                inner = graph._get_function(value.func.name)
                if hasattr(inner, "graph"):
                    yield from of_replicas(inner.graph, is_theirs)
        if is_theirs:
            yield operation

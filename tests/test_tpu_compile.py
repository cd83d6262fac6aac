"""TPU compilation without its wheels: lifter, twins, HLO, results, table."""

import argparse
import contextlib
import dataclasses
import io
import json
import pathlib
import tempfile
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from benchmarks.tpu import (
    compiler,
    fake_strategy,
    hlo,
    lifter,
    matrix,
    step,
    table,
    twins,
)
from jest_tf import config as config_lib
from jest_tf import training
from jest_tf.data import pipeline, preprocessing, records

ROOT = pathlib.Path(__file__).parent.parent


class Toy:
    """A step that touches variables in every way that the lifter knows."""

    def __init__(self):
        # Of different types, by which a program's arguments are told apart.
        self.table = tf.Variable(tf.reshape(tf.range(12.0), [6, 2]))
        self.count = tf.Variable(1)
        self.total = tf.Variable(0.0)
        self.never_assigned = tf.Variable([3.0, -1.0])
        self.variables = (
            *(self.table, self.count),
            *(self.total, self.never_assigned),
        )

    @tf.function
    def shifted(self, rows):
        self.count.assign_add(2)
        return rows + self.never_assigned

    def __call__(self, ids):
        rows = self.shifted(tf.nn.embedding_lookup(self.table, ids))
        for turn in tf.range(3):
            self.total.assign_sub(tf.cast(turn, tf.float32))
            self.table.assign(self.table * 1.5)
        if self.count > 6:
            self.count.assign(self.count * 10)
            rows = rows * 2.0
        else:
            self.total.assign_add(tf.reduce_sum(rows))
        return tf.reduce_sum(rows, 0), tf.size(self.table) + self.count


def trace(strategy, function, *specs):
    @tf.function
    def execution(*arguments):
        return strategy.run(function, args=arguments)

    return execution.get_concrete_function(*specs)


def execute(program, arguments, variables):
    """Runs a program on the CPU: its results, and all variables after."""
    results = tf.function(program)(0, *arguments, *variables)
    after = list(variables)
    for argument, result in program.donated.items():
        after[argument - 1 - len(arguments)] = results[result]
    return results[: len(results) - len(program.donated)], after


class LifterTest(tf.test.TestCase):
    def test_a_lifted_step_does_what_the_step_does(self):
        strategy = fake_strategy.build_strategy(1)
        with strategy.scope():
            traced = Toy()
        program = lifter.Program(
            trace(strategy, traced, tf.TensorSpec([3], tf.int32))
        )
        self.assertEqual(program.specs[1], tf.TensorSpec([3], tf.int32))
        eager = Toy()
        specs = program.specs[2:]
        mine = [
            next(v for v in eager.variables if (v.shape, v.dtype) == type_)
            for type_ in ((spec.shape, spec.dtype) for spec in specs)
        ]
        values = [variable.value() for variable in mine]
        for ids in ([0, 2, 2], [5, 1, 0], [3, 3, 3]):
            expected = tf.function(eager)(tf.constant(ids))
            found, values = execute(program, [tf.constant(ids)], values)
            self.assertAllClose(found, list(expected))
            self.assertAllClose(values, [one.numpy() for one in mine])
        # 1, 3, 5, then 7 in the other branch.
        self.assertEqual(eager.count.numpy(), 70)
        self.assertEqual(eager.total.dtype, tf.float32)
        assigned = {mine[number - 2].ref() for number in program.donated}
        self.assertEqual(assigned, {one.ref() for one in eager.variables[:3]})
        self.assertEqual(program.host_operations, [])

    @pytest.mark.slow
    def test_the_lifted_step_of_fit_does_what_fit_does(self):
        dataset = tiny.dataset(tiny.super_batches(3, rows=8))
        selection = config_lib.SelectionConfig(
            "joint", batch_size=4, num_chunks=2, criterion="hard_learner"
        )

        def build():
            model = training.JESTModel(tiny.learner(), None, selection)
            optimizer = training.AdamW(1e-2, global_clipnorm=1.0)
            model.compile(optimizer, jit_compile=False)
            optimizer.build(model.trainable_variables)
            return model

        expected = build()
        expected.fit(dataset, verbose=0)
        strategy = fake_strategy.build_strategy(1)
        with strategy.scope():
            traced = build()
        program = lifter.Program(step.trace(traced, dataset, 8))
        self.assertEqual(program.host_operations, ["IteratorGetNext"])
        count = len(program.specs) - 1 - len(program.handles)
        names = arguments_of_batch(program, count)
        variables = [
            *traced.variables,
            *traced.optimizer.variables,
            *(one for metric in traced.metrics for one in metric.variables),
        ]
        by_handle = {id(handle_of(one)): one for one in variables}
        order = [by_handle[id(handle)] for handle in program.handles]
        values = [one.value.values[0].read_value() for one in order]
        for batch in dataset:
            arguments = [batch[name] for name in names]
            _, values = execute(program, arguments, values)
        values = {
            id(one): value for one, value in zip(order, values, strict=True)
        }
        for mine, its in zip(
            expected.trainable_variables,
            traced.trainable_variables,
            strict=True,
        ):
            self.assertAllClose(values[id(its)], mine.value, atol=1e-6)

    def test_a_function_without_a_cluster_is_refused(self):
        function = tf.function(lambda: tf.constant(1)).get_concrete_function()
        with self.assertRaisesRegex(
            ValueError, "`function` must hold one .*Received: 0 graphs"
        ):
            lifter.Program(function)


def handle_of(variable):
    """What a graph captures of a Keras variable under a TPUStrategy."""
    packed = variable.value._packed_variable
    if packed is not None:
        return packed.packed_handle
    return variable.value.values[0].handle


def arguments_of_batch(program, count):
    """The batch's entries by the types of a program's arguments."""
    by_type = {
        ((8, 4, 4, 3), tf.uint8): "image",
        ((8, 3), tf.int32): "text",
    }
    return [
        by_type.get((tuple(spec.shape), spec.dtype), "id")
        for spec in program.specs[1 : 1 + count]
    ]

"""Compiled functions, gradients and shapes, on either of Keras' backends."""

import tensorflow as tf
from keras import ops

from jest_tf import selection
from jest_tf.embeddings import ON_TENSORFLOW, Embeddings

if not ON_TENSORFLOW:
    import jax


def compiled(function, jit_compile=None, **options):
    """A compiled function; on TensorFlow as it is if `jit_compile` is None.

    Eagerly, JAX compiles each operation for each shape, and each loop anew.
    `options` are those of `jax.jit`, `jit_compile` is that of `tf.function`.
    """
    if not ON_TENSORFLOW:
        return jax.jit(function, **options)
    if jit_compile is None:
        return function
    return tf.function(function, jit_compile=jit_compile)


def layer(layer, jit_compile):
    """A compiled call, in training, of a layer that keeps state."""
    if ON_TENSORFLOW:
        return tf.function(layer, jit_compile=jit_compile)
    function = jax.jit(layer.stateless_call, static_argnames=["training"])

    def call(*inputs, **options):
        state = layer.trainable_variables, layer.non_trainable_variables
        values = ([variable.value for variable in group] for group in state)
        outputs, new = function(*values, *inputs, **options)
        for variable, value in zip(state[1], new, strict=True):
            variable.assign(value)
        return outputs

    return call


draw = compiled(
    selection.draw, static_argnames=["stage", "size", "loss", "quota"]
)


def value_and_gradients(loss, parts, jit_compile=None, **options):
    parts = Embeddings(*map(ops.convert_to_tensor, parts))

    def run(parts):
        with tf.GradientTape() as tape:
            tape.watch(parts)
            value = loss(parts, **options)
        return value, tape.gradient(value, parts)

    if not ON_TENSORFLOW:
        run = jax.value_and_grad(lambda parts: loss(parts, **options))
    return compiled(run, jit_compile)(parts)


def is_none(gradient):
    """True for the gradient of what a loss does not use, which is 0 on JAX."""
    return gradient is None if ON_TENSORFLOW else not ops.any(gradient)


def shapes_in(function, *arguments):
    """The static shapes of all that a function forms when it is traced."""
    if not ON_TENSORFLOW:
        return _shapes_in_jaxpr(jax.make_jaxpr(function)(*arguments))
    traced = tf.function(function).get_concrete_function(*arguments)
    return _shapes_in_graph(traced.graph)


def _shapes_in_graph(graph):
    shapes = [
        output.shape.as_list()
        for operation in graph.get_operations()
        for output in operation.outputs
        if output.shape.is_fully_defined()
    ]
    for function in graph._functions.values():
        inner = getattr(function, "graph", None)
        if inner is not None:
            shapes += _shapes_in_graph(inner)
    return shapes


def _shapes_in_jaxpr(jaxpr):
    shapes = []
    for equation in jaxpr.eqns:
        shapes += [list(output.aval.shape) for output in equation.outvars]
        for inner in jax.tree.leaves(equation.params):
            if hasattr(inner, "eqns"):
                shapes += _shapes_in_jaxpr(inner)
    return shapes

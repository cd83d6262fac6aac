"""Gradients of losses, and shapes inside traced graphs."""

import tensorflow as tf

from jest_tf.embeddings import Embeddings


def value_and_gradients(loss, parts, jit_compile=None, **options):
    parts = Embeddings(*map(tf.convert_to_tensor, parts))

    def run(parts):
        with tf.GradientTape() as tape:
            tape.watch(parts)
            value = loss(parts, **options)
        return value, tape.gradient(value, parts)

    if jit_compile is None:
        return run(parts)
    return tf.function(run, jit_compile=jit_compile)(parts)


def shapes_in(graph):
    """The static shapes of all that a graph and its functions form."""
    shapes = [
        output.shape.as_list()
        for operation in graph.get_operations()
        for output in operation.outputs
        if output.shape.is_fully_defined()
    ]
    for function in graph._functions.values():
        inner = getattr(function, "graph", None)
        if inner is not None:
            shapes += shapes_in(inner)
    return shapes

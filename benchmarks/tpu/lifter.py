"""A replica's program, taken out of a function traced under TPUStrategy.

`strategy.run` leaves in the traced graph a *cluster*, the operations that are
to run on every TPU core; around it stands what the host does. When such a
function runs, TensorFlow outlines the cluster, for which it needs a TPU. Here
the cluster is emitted once more, as a function without state:

    (replica id, arguments, variables) -> (results, variables assigned)

Calls are inlined; loops and conditionals carry the variables that they touch.
No gradient passes through. Compiling the program is not here (compiler.py).
"""

from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import function_def_to_graph, tensor_util
from tensorflow.python.ops import handle_data_util

# The mark of the cluster's operations, and operations that only mark.
_MARK = "_tpu_replicate"
_SKIPPED = ("NoOp", "TPUReplicateMetadata", "TPUCompilationResult", "Assert")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_LOOPS = ("While", "StatelessWhile")
_CONDITIONALS = ("If", "StatelessIf")


class Program:
    """The cluster of a traced function, to be called in a `tf.function`.

    A call returns the cluster's results, then the new value of every variable
    that it assigns.

    Args:
        function: a concrete function that holds a `strategy.run`, itself or
            in functions and loops that it calls.

    Attributes:
        specs: of a call's arguments: the int32 replica id, what the host hands
            to the cluster, and the variables that it touches.
        handles: of these variables, in their order: a handle for all replicas
            where the strategy packs them, else the first replica's.
        donated: the argument's number -> the result's, of each variable that
            is assigned; empty before the first call.
        host_operations: kinds of the operations with state around the cluster.

    Raises:
        ValueError: unless there is exactly one cluster.
    """

    def __init__(self, function):
        found = [
            (graph, origin)
            for graph, origin in _graphs(function.graph, {})
            if any(_in_cluster(graph))
        ]
        if len(found) != 1:
            raise ValueError(
                "`function` must hold one `strategy.run` under a TPUStrategy. "
                f"Received: {len(found)} graphs with operations of a cluster"
            )
        ((self._graph, origin),) = found
        self._operations = list(_in_cluster(self._graph))
        self._replica_ids, self._inputs, self._constants = [], [], []
        self._handles = []  # (input of the cluster, key of its variable)
        self._owners = {}  # key -> the handle that is the variable
        for tensor in _inputs(self._operations):
            self._sort(tensor)
        self._results = [
            operation.inputs[0]
            for operation in self._graph.get_operations()
            if operation.type == "TPUReplicatedOutput"
        ]
        captured = {
            id(inner): outer for outer, inner in function.graph.captures
        }
        self.handles = [
            captured[id(origin.get(key, owner))]
            for key, owner in self._owners.items()
        ]
        self.specs = [
            tf.TensorSpec([], tf.int32),
            *(tf.TensorSpec(t.shape, t.dtype) for t in self._inputs),
            *(_variable_spec(owner) for owner in self._owners.values()),
        ]
        self.donated = {}
        own = {id(operation) for operation in self._operations}
        self.host_operations = sorted(
            {
                operation.type
                for operation in self._graph.get_operations()
                if id(operation) not in own
                and operation.op_def.is_stateful
                and operation.type not in ("Placeholder", *_SKIPPED)
            }
        )

    def __call__(self, replica_id, *values) -> list[tf.Tensor]:
        """Emits the program on arguments of `specs`."""
        count = len(self._inputs)
        cells = dict(zip(self._owners, map(_Cell, values[count:]), strict=True))
        env = {id(tensor): replica_id for tensor in self._replica_ids}
        env |= {
            id(tensor): value
            for tensor, value in zip(self._inputs, values[:count], strict=True)
        }
        env |= {
            id(tensor): tf.constant(value, tensor.dtype)
            for tensor, value in self._constants
        }
        env |= {id(tensor): cells[key] for tensor, key in self._handles}
        _emit(self._graph, self._operations, env)
        results = [env[id(tensor)] for tensor in self._results]
        assigned = [cell for cell in cells.values() if cell.assigned]
        self.donated = {
            1 + count + number: len(results) + assigned.index(cell)
            for number, cell in enumerate(cells.values())
            if cell.assigned
        }
        return results + [cell.value for cell in assigned]

    def _sort(self, tensor):
        """Classifies an input of the cluster."""
        sources = [tensor]
        if tensor.op.type == "TPUReplicatedInput":
            sources = list(tensor.op.inputs)
        if tensor.dtype == tf.resource:
            # The first replica's stands for all.
            self._owners[id(sources[0])] = sources[0]
            self._handles.append((tensor, id(sources[0])))
            return
        values = [tensor_util.constant_value(source) for source in sources]
        if len(sources) == 1 and values[0] is not None:
            self._constants.append((tensor, values[0]))
        elif _counts_up(values):
            self._replica_ids.append(tensor)
        else:
            self._inputs.append(tensor)


class _Cell:
    """A variable while a program is emitted."""

    def __init__(self, value):
        self.value = value
        self.assigned = False

    def assign(self, value):
        self.value = value
        self.assigned = True


def _graphs(graph, origin) -> Iterator:
    """A graph and those of all functions that it calls.

    Each comes with the origin of its inputs: their ids -> the tensors of the
    first graph that they are.
    """
    yield graph, origin
    for operation in graph.get_operations():
        for name in _function_names(operation):
            inner = _function_graph(graph, name)
            # All but a conditional's predicate go in.
            given = operation.inputs[-len(inner.inputs) :]
            yield from _graphs(
                inner,
                {
                    id(placeholder): origin.get(id(tensor), tensor)
                    for placeholder, tensor in zip(
                        inner.inputs, given, strict=False
                    )
                },
            )


def _function_names(operation):
    names = []
    for value in operation.node_def.attr.values():
        if value.HasField("func"):
            names.append(value.func.name)
        names += [function.name for function in value.list.func]
    return names


def _function_graph(graph, name):
    """The graph of a function that is called by name."""
    function = graph._get_function(name)
    traced = getattr(function, "graph", None)
    if traced is not None:
        return traced
    definition = context.get_function_def(name)
    return function_def_to_graph.function_def_to_graph(definition)


def _in_cluster(graph):
    return (
        operation
        for operation in graph.get_operations()
        if _MARK in operation.node_def.attr
    )


def _inputs(operations):
    """Tensors that come from outside, in the order of their first use."""
    inside = {id(operation) for operation in operations}
    found = {
        id(tensor): tensor
        for operation in operations
        for tensor in operation.inputs
        if id(tensor.op) not in inside
    }
    return list(found.values())


def _counts_up(values):
    """True if values are the scalars 0, 1, ...: the ids of the replicas."""
    if any(value is None or value.ndim for value in values):
        return False
    return [int(value) for value in values] == list(range(len(values)))


def _variable_spec(handle):
    data = handle_data_util.get_resource_handle_data(handle).shape_and_type[0]
    return tf.TensorSpec(tf.TensorShape(data.shape), tf.as_dtype(data.dtype))


def _emit(graph, operations, env):
    """Emits operations in order; `env` maps ids of tensors to their values.

    An operation whose inputs come later brings these forward: the gradient of a
    loop adds to its inputs what it creates only then.
    """
    own = {id(operation) for operation in operations}

    def emit(operation):
        if operation.outputs and all(id(t) in env for t in operation.outputs):
            return  # brought forward, or a placeholder that has its value
        for tensor in operation.inputs:
            if id(tensor) not in env and id(tensor.op) in own:
                emit(tensor.op)
        inputs = [env[id(tensor)] for tensor in operation.inputs]
        outputs = _emit_operation(graph, operation, inputs)
        for tensor, value in zip(operation.outputs, outputs, strict=True):
            env[id(tensor)] = value

    for operation in operations:
        if operation.type not in _SKIPPED:
            emit(operation)


def _emit_operation(graph, operation, inputs):
    kind = operation.type
    if kind in _CALLS:
        return _call(graph, operation.get_attr("f").name, inputs)
    if kind in _LOOPS:
        return _loop(graph, operation, inputs)
    if kind in _CONDITIONALS:
        return _conditional(graph, operation, inputs)
    if any(isinstance(value, _Cell) for value in inputs):
        return _on_variable(operation, *inputs)
    if _function_names(operation):
        raise NotImplementedError(
            f"An operation that names functions, {kind} ({operation.name})"
        )
    emitted = tf.compat.v1.get_default_graph().create_op(
        kind,
        inputs,
        [tensor.dtype for tensor in operation.outputs],
        name=operation.name.split("/")[-1].lstrip("_"),
        attrs={
            name: value
            for name, value in operation.node_def.attr.items()
            if not name.startswith("_")
        },
        op_def=operation.op_def,
    )
    for new, old in zip(emitted.outputs, operation.outputs, strict=True):
        new.set_shape(old.shape)
    return emitted.outputs


def _on_variable(operation, cell, *inputs):
    """Emits an operation on a variable."""
    kind = operation.type
    if kind == "Identity":
        return [cell]
    if kind == "ReadVariableOp":
        return [tf.identity(cell.value)]
    if kind == "ResourceGather":
        return [tf.gather(cell.value, *inputs)]
    if kind == "VarIsInitializedOp":
        return [tf.constant(True)]
    if kind == "VariableShape":
        return [tf.shape(cell.value, operation.outputs[0].dtype)]
    if kind == "AssignVariableOp":
        cell.assign(*inputs)
    elif kind == "AssignAddVariableOp":
        cell.assign(cell.value + inputs[0])
    elif kind == "AssignSubVariableOp":
        cell.assign(cell.value - inputs[0])
    else:
        raise NotImplementedError(
            f"An operation on a variable, {kind} ({operation.name})"
        )
    return []


def _call(graph, name, inputs):
    body = _function_graph(graph, name)
    env = dict(zip(map(id, body.inputs), inputs, strict=True))
    _emit(body, body.get_operations(), env)
    return [env[id(tensor)] for tensor in body.outputs]


def _loop(graph, operation, inputs):
    """A loop whose variables go round with its other values."""
    cells = list(dict.fromkeys(i for i in inputs if isinstance(i, _Cell)))
    places = [n for n, i in enumerate(inputs) if not isinstance(i, _Cell)]

    def enter(values):
        for cell, value in zip(cells, values[len(places) :], strict=True):
            cell.value = value
        arguments = list(inputs)
        for place, value in zip(places, values[: len(places)], strict=True):
            arguments[place] = value
        return arguments

    def condition(*values):
        name = operation.get_attr("cond").name
        return _call(graph, name, enter(values))[0]

    def body(*values):
        name = operation.get_attr("body").name
        outputs = _call(graph, name, enter(values))
        return [outputs[place] for place in places] + [
            cell.value for cell in cells
        ]

    values = tf.while_loop(
        condition,
        body,
        [inputs[place] for place in places] + [cell.value for cell in cells],
        shape_invariants=[operation.outputs[place].shape for place in places]
        + [cell.value.shape for cell in cells],
    )
    return enter(values)


def _conditional(graph, operation, inputs):
    """A conditional that hands on what its branches leave in variables."""
    predicate, *inputs = inputs
    cells = list(dict.fromkeys(i for i in inputs if isinstance(i, _Cell)))
    before = [cell.value for cell in cells]

    def branch(attribute):
        def emit():
            for cell, value in zip(cells, before, strict=True):
                cell.value = value
            name = operation.get_attr(attribute).name
            outputs = _call(graph, name, inputs)
            return outputs + [tf.identity(cell.value) for cell in cells]

        return emit

    values = tf.cond(predicate, branch("then_branch"), branch("else_branch"))
    values = [values] if isinstance(values, tf.Tensor) else list(values)
    count = len(operation.outputs)
    for cell, value in zip(cells, values[count:], strict=True):
        cell.value = value
    return values[:count]

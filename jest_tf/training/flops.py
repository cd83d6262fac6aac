"""FLOPs of a traced function, by stage of the training step.

What is counted is read from the graph that TensorFlow has traced: the matrix
products and convolutions that are there, with the shapes that they have there,
in loops as often as they go round. TensorFlow's own profiler (`float_operation`
of `tf.compat.v1.profiler`) doesn't enter loops and function calls, and knows
no `Einsum`, so that it sees a small part of a step.

A multiplication and an addition are two FLOPs. Elementwise operations are
counted apart from products, one a value; what moves data costs nothing. What an
operation costs is in `training/operation_flops.py`, how the paper counts in
`columns`.
"""

import dataclasses
import re
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf.training import operation_flops

Flops = operation_flops.Flops

# What a step does, in its order. "rest" is what lies in no stage:
# augmentation, the exchange of rows, the optimizer, metrics.
STAGES = (
    "score",
    "reference",
    "select",
    "forward",
    "loss",
    "backward",
    "rest",
)

_STAGE = re.compile(rf"stage\.({'|'.join(STAGES)})(?:_\d+)?")
# TensorFlow's own scope around the gradient of an operation.
_GRADIENT = "gradient_tape"

_LOOPS = ("While", "StatelessWhile")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase")

# A loop that goes round more often is taken for one that does not end.
_MOST_ROUNDS = 10**6


def stage(name: str) -> tf.name_scope:
    """A scope whose operations are counted as that stage's.

    The innermost counts. Gradients of whatever stage are "backward".

    Args:
        name: one of `STAGES`.
    """
    if name not in STAGES:
        raise ValueError(f"`name` must be one of {STAGES}. Received: {name!r}")
    return tf.name_scope(f"stage.{name}")


def count(graph: tf.Graph) -> dict[str, Flops]:
    """Counts what a call of a traced function does.

    Operations that nothing comes of are not counted, as TensorFlow doesn't run
    them. Of the branches of a condition that the data decides, the dearest is.

    Args:
        graph: of a concrete function, `function.graph`.

    Returns:
        The FLOPs of every stage of `STAGES`.

    Raises:
        ValueError: on a product of unknown shape, a loop whose number of
            rounds depends on the data, or an operation that is known to be
            costly and not to be counted here.

    Example:
        >>> @tf.function
        ... def product(a, b):
        ...     return tf.matmul(a, b)
        >>> spec = tf.TensorSpec([4, 5]), tf.TensorSpec([5, 6])
        >>> count(product.get_concrete_function(*spec).graph)["rest"].products
        240
    """
    totals = dict.fromkeys(STAGES, Flops())
    _add(totals, _Frame(graph, {}), "rest", 1)
    return totals


def columns(
    counts: dict[str, Flops], *, scored: int, reused: int
) -> dict[str, int]:
    """The counts of a step as a log wants them, and as the paper counts.

    With F the forward pass over the rows that are trained on, S that over the
    rows that are scored, and T the live reference's, 0 where it is cached:

        no_reuse: 3 F + S + T
        reuse:    3 F + S (1 - reused / scored) + T

    as a gradient costs about two forward passes. The paper's figure 1 counts
    without reuse; its table 1 takes the forward passes of the selected rows
    from their scores. Neither is what a step here does, which is `step`.

    Args:
        counts: of `count`.
        scored: rows that are scored.
        reused: of those, rows that are then trained on in the view that they
            were scored in.

    Returns:
        Matrix products of every stage of `STAGES` and of all, `step`;
        `elementwise` work of all; and the conventions `no_reuse` and `reuse`.

    Reference: Evans et al. 2024, arXiv 2406.17711, figure 1 and table 1.
    """
    stages = {name: counts[name].products for name in STAGES}
    everything = total(counts)
    score = stages["score"]
    no_reuse = 3 * stages["forward"] + score + stages["reference"]
    return {
        **stages,
        "step": everything.products,
        "elementwise": everything.elementwise,
        "no_reuse": no_reuse,
        "reuse": no_reuse - (score * reused // scored if scored else 0),
    }


def num_reused(
    settings: config_lib.SelectionConfig,
    views: Sequence[config_lib.View],
    patch_size: int | None,
) -> int:
    """Rows that are trained on in the view that they were scored in.

    Args:
        settings: that a step chooses by.
        views: that it trains in, equal parts each; () is the tower's own.
        patch_size: the tower's own, if it has one.
    """
    *trained_in, scored_in = (
        dataclasses.replace(view, patch_size=view.patch_size or patch_size)
        for view in (*(views or [config_lib.View()]), settings.view)
    )
    num_parts = trained_in.count(scored_in)
    return settings.batch_size * num_parts // len(trained_in)


class StepGraphs:
    """The graphs that training steps of several kinds were traced in."""

    def __init__(self):
        self._graphs = {}
        self._columns = {}

    def note(self, kind: Hashable, *, scored: int = 0, reused: int = 0) -> None:
        """Keeps the graph in which a step is being traced; none if it is run.

        Args:
            kind: of the step.
            scored: see `columns`; likewise `reused`.
        """
        if tf.executing_eagerly():
            return
        graph = tf.compat.v1.get_default_graph()
        known, times, _ = self._graphs.get(kind, (None, 0, {}))
        # Replicas of a process are traced one after the other in one graph.
        times = times + 1 if known is graph else 1
        self._graphs[kind] = graph, times, {"scored": scored, "reused": reused}
        self._columns.pop(kind, None)

    def count(self, num_replicas: int) -> dict[Hashable, dict[str, int]]:
        """`columns` of a step of each kind, on all replicas together.

        Raises:
            ValueError: as the function `count`.
        """
        for kind, (graph, times, rows) in self._graphs.items():
            if kind in self._columns:
                continue
            # On TPUs one replica is traced for all, and each of several workers
            # traces its own.
            others, rest = divmod(num_replicas, times)
            if rest or not others:
                raise ValueError(
                    "FLOPs are counted in graphs that hold a step of each "
                    f"replica. Received: {times} steps traced into one for "
                    f"{num_replicas} replicas"
                )
            counts = {
                name: Flops().plus(one, others)
                for name, one in count(graph).items()
            }
            self._columns[kind] = columns(counts, **rows)
        return dict(self._columns)


def total(counts: dict[str, Flops]) -> Flops:
    """The sum over stages."""
    result = Flops()
    for one in counts.values():
        result = result.plus(one)
    return result


class _Frame:
    """A graph as it is called: small values that are known without running it.

    Args:
        graph: what is called.
        inputs: by the number of an input, a function that gives its value.
    """

    def __init__(self, graph, inputs):
        self.graph = graph
        self._inputs = {
            graph.inputs[number].name: value for number, value in inputs.items()
        }
        self._known = {}

    def value(self, tensor):
        """A NumPy value, or None where it depends on the data."""
        if tensor.name not in self._known:
            self._known[tensor.name] = self._value(tensor)
        return self._known[tensor.name]

    def callee(self, op, name, inputs):
        """The frame of a function that `op` calls with some of its inputs."""
        graph = _function(self.graph, name)
        return _Frame(
            graph,
            {
                number: lambda outer=outer: self.value(outer)
                for number, outer in enumerate(inputs)
            },
        )

    def body(self, op):
        """The frame of a loop's body: known is what no round changes."""
        graph = _function(self.graph, op.get_attr("body").name)
        return _Frame(
            graph,
            {
                number: lambda outer=op.inputs[number]: self.value(outer)
                for number in range(len(graph.inputs))
                if _source(graph.outputs[number]) is graph.inputs[number]
            },
        )

    def rounds(self, op, wanted=()):
        """How often a loop goes round, and values of its variables after it.

        Args:
            op: the loop.
            wanted: numbers of the variables that are asked for.
        """
        cond, body = (
            _function(self.graph, op.get_attr(name).name)
            for name in ("cond", "body")
        )
        needed = _needed(cond.outputs[0], cond)
        todo = needed | set(wanted)
        needed = set()
        while todo:
            number = todo.pop()
            needed.add(number)
            todo |= _needed(body.outputs[number], body) - needed
        values = {number: self.value(op.inputs[number]) for number in needed}
        for count in range(_MOST_ROUNDS):
            goes_on = _at(cond, values).value(cond.outputs[0])
            if goes_on is None or any(one is None for one in values.values()):
                break
            if not goes_on:
                return count, values
            frame = _at(body, values)
            values = {
                number: frame.value(body.outputs[number]) for number in needed
            }
        raise ValueError(
            "FLOPs are counted in loops whose number of rounds is known when "
            f"they are traced. Received: {op.type} {op.name!r}, which the data "
            "ends"
        )

    def _value(self, tensor):
        if tensor.name in self._inputs:
            return self._inputs[tensor.name]()
        op = tensor.op
        if op.type in _LOOPS:
            return self.rounds(op, [tensor.value_index])[1][tensor.value_index]
        if op.type in _CALLS:
            callee = self.callee(op, op.get_attr("f").name, op.inputs)
            return callee.value(callee.graph.outputs[tensor.value_index])
        if op.type in _ARITHMETIC:
            values = [self.value(one) for one in op.inputs]
            if any(one is None for one in values):
                return None
            return _ARITHMETIC[op.type](*values)
        if op.type == "StridedSlice":
            return _part(op, *(self.value(one) for one in op.inputs))
        return tf.get_static_value(tensor)


def _at(graph, values):
    """The frame of a call with some of the inputs known."""
    return _Frame(
        graph,
        {number: lambda value=value: value for number, value in values.items()},
    )


def _part(op, value, begin, end, strides):
    """`value[begin:end:strides]`, as of a shape; None where it isn't known."""
    masks = {
        name: op.get_attr(f"{name}_mask")
        for name in ("begin", "end", "shrink_axis", "new_axis", "ellipsis")
    }
    if (
        any(one is None for one in (value, begin, end, strides))
        or masks["new_axis"]
        or masks["ellipsis"]
    ):
        return None
    index = []
    for axis in range(len(begin)):
        has = {name: mask >> axis & 1 for name, mask in masks.items()}
        part = slice(
            None if has["begin"] else begin[axis],
            None if has["end"] else end[axis],
            strides[axis],
        )
        index.append(begin[axis] if has["shrink_axis"] else part)
    return value[tuple(index)]


def _needed(tensor, graph):
    """Numbers of the inputs that a tensor's value depends on."""
    numbers = {one.name: number for number, one in enumerate(graph.inputs)}
    found, seen, todo = set(), set(), [tensor]
    while todo:
        one = todo.pop()
        if one.name in seen:
            continue
        seen.add(one.name)
        if one.name in numbers:
            found.add(numbers[one.name])
        elif tf.get_static_value(one) is None:
            todo.extend(one.op.inputs)
    return found


def _source(tensor):
    """Where a tensor comes from that is handed through."""
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


def _function(graph, name):
    """The graph of a function that is called in `graph`."""
    # TensorFlow has no public way from a name to the graph; a GraphDef would
    # have the shapes of the nodes, but not their functions' inputs in order.
    return graph._get_function(name).graph


def _add(totals, frame, default, times):
    """Adds `times` what a frame does; `default` is the stage it lies in."""
    for op in _live(frame.graph):
        where = _stage_of(op.name, default)
        if op.type in _CALLS:
            callee = frame.callee(op, op.get_attr("f").name, op.inputs)
            _add(totals, callee, where, times)
        elif op.type in _LOOPS:
            rounds, _ = frame.rounds(op)
            _add(totals, frame.body(op), where, times * rounds)
        elif op.type in _BRANCHES:
            for name, flops in _dearest_branch(frame, op, where).items():
                totals[name] = totals[name].plus(flops, times)
        else:
            totals[where] = totals[where].plus(operation_flops.cost(op), times)


def _live(graph) -> Iterator[tf.Operation]:
    """The operations that the outputs need, or that have effects."""
    outputs = [one.op for one in graph.outputs]
    todo = [*outputs, *graph.control_outputs]
    seen = set()
    while todo:
        op = todo.pop()
        if op.name in seen:
            continue
        seen.add(op.name)
        yield op
        todo.extend(one.op for one in op.inputs)
        todo.extend(op.control_inputs)


def _stage_of(name, default):
    parts = name.split("/")
    if _GRADIENT in parts:
        return "backward"
    for part in reversed(parts):
        found = _STAGE.fullmatch(part)
        if found:
            return found[1]
    return default


def _dearest_branch(frame, op, where):
    """The counts of the branch that is taken, or of that with most FLOPs."""
    if op.type.endswith("If"):
        names = [op.get_attr(f"{one}_branch") for one in ("else", "then")]
    else:
        names = op.get_attr("branches")
    choice = frame.value(op.inputs[0])
    if choice is not None:
        choice = int(choice)
        last = len(names) - 1
        names = [names[choice if 0 <= choice <= last else last]]
    found = []
    for name in names:
        counts = dict.fromkeys(STAGES, Flops())
        _add(counts, frame.callee(op, name.name, op.inputs[1:]), where, 1)
        found.append(counts)
    return max(found, key=total)


# What decides how often loops go round.
_ARITHMETIC = {
    "Identity": lambda one: one,
    "Cast": lambda one: one,  # of counters, which are small integers
    "Add": np.add,
    "AddV2": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "FloorDiv": np.floor_divide,
    "FloorMod": np.mod,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Less": np.less,
    "LessEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterEqual": np.greater_equal,
    "Equal": np.equal,
    "NotEqual": np.not_equal,
    "LogicalAnd": np.logical_and,
    "LogicalOr": np.logical_or,
    "LogicalNot": np.logical_not,
}

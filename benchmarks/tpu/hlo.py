"""Reads HLO text: collectives, and operations that a TPU should not get.

Works on text, so it is tested without a TPU compiler. A line of a
computation reads

    %name = type operation(%operand, ...), attribute=..., metadata={...}
"""

import collections
import re
from typing import NamedTuple

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
)
# Operations that would stop the chip for the host in every step.
HOST_OPERATIONS = (
    "infeed",
    "outfeed",
    "send",
    "recv",
    "send-done",
    "recv-done",
)
_HOST_CALLS = re.compile(r"(?i)host|callback|infeed|outfeed")
_DYNAMIC_CALLS = ("PadToStatic", "SliceToDynamic")
_BYTES = {"pred": 1, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"\b([a-z]\w*?\d*)\[([^\]]*)\]")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"\b(\w+)=(?:%([\w.\-]+)|\{(%[^}]*)\})")


class Instruction(NamedTuple):
    """A line of a computation.

    Attributes:
        name: of its result.
        type: of its result, an array's or a tuple's.
        operation: such as "all-reduce".
        operands: names of what it takes.
        line: all of it.
    """

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    line: str


class Traffic(NamedTuple):
    """Collectives of a kind.

    Attributes:
        count: outside of loops.
        bytes: that each replica hands over in them, a step.
        loop_count: inside of loops, each counted once.
        loop_bytes: that each replica hands over in these, an iteration.
    """

    count: int
    bytes: int
    loop_count: int
    loop_bytes: int


def collectives(text: str) -> dict[str, Traffic]:
    """The traffic of a module by kind of collective, without the absent."""
    computations = _computations(text)
    looped = _in_loops(computations)
    found = collections.defaultdict(lambda: [0, 0, 0, 0])
    for name, instructions in computations.items():
        types = {
            instruction.name: instruction.type for instruction in instructions
        }
        for instruction in instructions:
            kind = instruction.operation.removesuffix("-start")
            if kind in COLLECTIVES:
                entry = found[kind]
                first = 2 if name in looped else 0
                entry[first] += 1
                entry[first + 1] += sum(
                    num_bytes(types.get(operand, ""))
                    for operand in instruction.operands
                )
    return {kind: Traffic(*found[kind]) for kind in sorted(found)}


def num_bytes(type_: str) -> int:
    """Bytes of an array or a tuple of arrays, without padding."""
    return sum(
        _elements(shape) * _BYTES.get(dtype, _bits(dtype) / 8)
        for dtype, shape in _ARRAY.findall(type_)
    ).__ceil__()


def dynamic_shapes(text: str) -> list[str]:
    """The operations with a shape that depends on values.

    A dimension set to a constant, as a top-k sets that of its result, doesn't.
    """
    found = set()
    for instructions in _computations(text).values():
        constants = {o.name for o in instructions if o.operation == "constant"}
        for instruction in instructions:
            shapes = [shape for _, shape in _ARRAY.findall(instruction.type)]
            resized = instruction.operation == "set-dimension-size"
            if (
                "<=" in "".join(shapes)
                or _target(instruction) in _DYNAMIC_CALLS
                or (resized and instruction.operands[1] not in constants)
            ):
                found.add(_target(instruction) or instruction.operation)
    return sorted(found)


def host_operations(text: str) -> list[str]:
    """Operations that would wait for the host."""
    found = set()
    for instructions in _computations(text).values():
        for instruction in instructions:
            if instruction.operation in HOST_OPERATIONS:
                found.add(instruction.operation)
            elif _HOST_CALLS.search(_target(instruction)):
                found.add(_target(instruction))
    return sorted(found)


def _computations(text):
    """Computations by name, each a list of instructions."""
    found, current = {}, []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = found.setdefault(head[1], [])
            continue
        instruction = _instruction(line)
        if instruction:
            current.append(instruction)
    return found


def _instruction(line):
    left, found, right = line.partition(" = ")
    if not found or line.startswith("HloModule"):
        return None
    type_, rest = _split_type(right)
    operation, _, rest = rest.partition("(")
    operands = re.findall(r"%([\w.\-]+)", _to_closing(rest))
    name = left.split()[-1].lstrip("%")
    return Instruction(name, type_, operation, tuple(operands), line)


def _split_type(text):
    """The type that a text begins with, and what comes after."""
    if not text.startswith("("):
        type_, _, rest = text.partition(" ")
        return type_, rest
    inner = _to_closing(text[1:])
    return f"({inner})", text[len(inner) + 2 :].lstrip()


def _to_closing(text):
    """The text before the parenthesis that closes an opened parenthesis."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[:place]
    return text


def _in_loops(computations):
    """Names of the computations that a loop runs, or what it runs calls."""
    called, looped = {}, set()
    for name, instructions in computations.items():
        called[name] = set()
        for instruction in instructions:
            for _, single, several in _CALLED.findall(instruction.line):
                names = (
                    [single] if single else re.findall(r"%([\w.\-]+)", several)
                )
                called[name].update(names)
                if instruction.operation == "while":
                    looped.update(names)
    waiting = list(looped)
    while waiting:
        for name in called.get(waiting.pop(), ()):
            if name not in looped:
                looped.add(name)
                waiting.append(name)
    return looped & set(computations)


def _target(instruction):
    found = re.search(r'custom_call_target="([^"]*)"', instruction.line)
    return found[1] if found else ""


def _elements(shape):
    count = 1
    for size in shape.replace("<=", "").split(","):
        count *= int(size or 1)
    return count


def _bits(dtype):
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 0

"""TPU executables without a TPU: export by TensorFlow, compile by libtpu.

TensorFlow's TPU kernels (the `tensorflow-tpu` wheel) turn a function without
state into HLO; the compiler in libtpu, driven through JAX's client for
topologies that are only described, turns HLO into an executable of R replicas
with its memory planned. Nothing can be run. Both steps are those of a real
job, except that there TensorFlow's TPU bridge cuts out the program (here
lifter.py does) and hands it to the libtpu that it has loaded.

Needs requirements-tpu-compile.txt. What an executable says is read in hlo.py.
"""

import contextlib
import os
import re
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmarks.tpu import lifter

# Larger than the memory of any TPU, to learn how much a TPU has.
_TOO_MUCH = 2**42


class Executable(NamedTuple):
    """The compiler's report on a program that it accepted.

    Attributes:
        memory: bytes planned on a core: arguments, results, of which donated,
            temporary values and code, by these names.
        text: the optimised HLO; None where JAX can't read it back, as some
            with asynchronous copies.
    """

    memory: dict[str, int]
    text: str | None


class Shortage(NamedTuple):
    """Bytes of a core's memory that a refused program needs, and there are."""

    needed: int
    available: int


def export(program: lifter.Program) -> bytes:
    """A program as serialised HLO, made by TensorFlow's kernels for TPUs.

    Raises:
        Exception: TensorFlow's own, where it has no kernel for an operation.
    """
    function = tf.function(program, jit_compile=True, autograph=False)
    ir = function.experimental_get_compiler_ir(*program.specs)
    return ir(stage="hlo_serialized", platform_name="TPU")


def devices(topology: str, count: int) -> list:
    """The first chips of a topology, as JAX's devices.

    Raises:
        ValueError: if it has fewer.
    """
    with _libtpu():
        from jax.experimental import topologies

        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology
        ).devices
    if len(found) < count:
        raise ValueError(
            f"`count` must be at most the {len(found)} cores of {topology}. "
            f"Received: {count}"
        )
    return list(found[:count])


def compile_program(
    hlo: bytes, donated: dict[int, int], topology: str, num_replicas: int
) -> Executable:
    """Compiles a replica's program for the first chips of a topology.

    Args:
        hlo: serialised HLO.
        donated: argument number -> result number, memory that is reused.
        topology: such as "v5e:2x2".
        num_replicas: R, at most the topology's cores.

    Raises:
        ValueError: if the topology has fewer cores.
        Exception: the compiler's own, where it refuses the program.
    """
    with _libtpu():
        from jax._src.interpreters import mlir as jax_mlir
        from jax._src.lib import _jax
        from jaxlib.mlir import ir

        with jax_mlir.make_ir_context(), ir.Location.unknown():
            module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(hlo))
            _drop_copies(module.operation)
            _mark_donated(module, donated)
            return executable(_compile(module, topology, num_replicas))


def available_memory(topology: str) -> int:
    """Bytes of a core's memory that the compiler may plan with.

    Found by asking for too much: the compiler says what there is.
    """
    module = f"""
    module @too_much {{
      func.func public @main(%x: tensor<{_TOO_MUCH}xi8>)
          -> tensor<{_TOO_MUCH}xi8> {{
        %y = stablehlo.add %x, %x : tensor<{_TOO_MUCH}xi8>
        return %y : tensor<{_TOO_MUCH}xi8>
      }}
    }}"""
    with _libtpu():
        from jax._src.interpreters import mlir as jax_mlir
        from jaxlib.mlir import ir

        with jax_mlir.make_ir_context(), ir.Location.unknown():
            try:
                _compile(ir.Module.parse(module), topology, 1)
            except Exception as error:
                return read_memory(str(error)).available
    raise RuntimeError(f"{topology} took a program of {_TOO_MUCH} bytes")


def read_memory(message: str) -> Shortage:
    """The bytes in the compiler's "(8.00T) exceeds available HBM (15.75G)".

    Raises:
        ValueError: if the message says nothing like it.
    """
    size = r"([\d.]+)([KMGT])\)"
    found = re.search(f"{size} exceeds available HBM \\({size}", message)
    if found is None:
        raise ValueError(
            'Expected "(...) exceeds available HBM (...)" in a message. '
            f"Received: {message}"
        )
    return Shortage(
        *(
            round(float(number) * 2 ** (10 * "_KMGT".index(unit)))
            for number, unit in (found.group(1, 2), found.group(3, 4))
        )
    )


@contextlib.contextmanager
def _libtpu():
    """Lets JAX load libtpu, which TensorFlow was kept from doing."""
    kept = os.environ.pop("TPU_LOAD_LIBRARY", None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ["TPU_LOAD_LIBRARY"] = kept


def _compile(module, topology, num_replicas):
    from jax._src import compiler
    from jax._src.lib import xla_client

    chips = devices(topology, num_replicas)
    options = compiler.get_compile_options(
        num_replicas=num_replicas,
        num_partitions=1,
        device_assignment=np.array([[chip.id] for chip in chips]),
    )
    return chips[0].client.compile(
        module, xla_client.DeviceList(tuple(chips)), options
    )


def executable(compiled) -> Executable:
    """Reads memory and operations from JAX's executable."""
    memory = compiled.get_compiled_memory_stats()
    try:
        text = compiled.hlo_modules()[0].to_string()
    except RuntimeError as error:
        if "async-update" not in str(error):
            raise
        text = None
    return Executable(
        memory={
            "arguments": memory.argument_size_in_bytes,
            "results": memory.output_size_in_bytes,
            "donated": memory.alias_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        },
        text=text,
    )


def _drop_copies(operation):
    """Takes out the `mhlo.copy` on assigned variables, which JAX can't lower.

    It says that the result is to be memory of its own; donation says otherwise.
    """
    for region in operation.regions:
        for block in region:
            for inner in [view.operation for view in block.operations]:
                if inner.name == "mhlo.copy":
                    inner.results[0].replace_all_uses_with(inner.operands[0])
                    inner.erase()
                else:
                    _drop_copies(inner)


def _mark_donated(module, donated):
    from jaxlib.mlir import ir

    main = ir.SymbolTable(module.operation)["main"]
    arguments = [
        {entry.name: entry.attr for entry in ir.DictAttr(attributes)}
        for attributes in main.arg_attrs
    ]
    number = ir.IntegerType.get_signless(32)
    for argument, result in donated.items():
        arguments[argument]["tf.aliasing_output"] = ir.IntegerAttr.get(
            number, result
        )
    main.arg_attrs = ir.ArrayAttr.get(
        [ir.DictAttr.get(attributes) for attributes in arguments]
    )

"""The step that `fit` runs on Keras' JAX backend, compiled for TPUs."""

import jax
import keras
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.tpu import compiler, step
from jest_tf import config as config_lib
from jest_tf import distribution


class Program:
    """A run's step on R devices; arguments as `on_tensorflow.Program`."""

    def __init__(self, config: config_lib.TrainConfig, num_replicas: int):
        self._model = step.build_model(config)
        dataset = distribution.in_halves(step.super_batches(config))
        self._batch = dataset.element_spec
        self._num_replicas = num_replicas

    def compile(self, topology: str) -> compiler.Executable:
        """Compiles it for the first chips of a topology; raises as JAX does."""
        model = self._model
        devices = compiler.devices(topology, self._num_replicas)
        placed = keras.distribution.DataParallel(
            keras.distribution.DeviceMesh([len(devices)], ["batch"], devices)
        )
        # Only now: no variable can be made on devices that are not there.
        keras.distribution.set_distribution(placed)
        mesh = placed.device_mesh.backend_mesh
        every = NamedSharding(mesh, PartitionSpec())
        by_rows = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
        state = tuple(
            [_abstract(variable.value, every) for variable in variables]
            for variables in (
                model.trainable_variables,
                model.non_trainable_variables,
                model.optimizer.variables,
                model.metrics_variables,
            )
        )
        frozen = [_abstract(value, every) for value in model.frozen_values()]
        batch = jax.tree.map(lambda spec: _abstract(spec, by_rows), self._batch)
        try:
            compiled = (
                model.compiled_step(model.stepper.plan[0])
                .lower(state, frozen, batch)
                .compile()
            )
        finally:
            keras.distribution.set_distribution(None)
        return compiler.executable(compiled.runtime_executable())


def _abstract(array, sharding):
    dtype = getattr(array.dtype, "as_numpy_dtype", array.dtype)
    return jax.ShapeDtypeStruct(
        tuple(array.shape), np.dtype(dtype), sharding=sharding
    )

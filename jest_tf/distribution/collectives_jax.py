"""The collectives of `collectives.py` on Keras' JAX backend.

`shard_map` runs a step on every device of `keras.distribution.DataParallel`;
its named axis takes the place of TensorFlow's replica context.
"""

import contextlib
from collections.abc import Callable, Iterator

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils
from keras import tree

_running = []  # the collectives of the step being traced, if any


class Replicas:
    """The collectives of one step; attributes and methods as on TensorFlow."""

    in_loops = True

    def __init__(self, mesh: jax.sharding.Mesh):
        (self._axis,) = mesh.axis_names
        self.num_replicas = mesh.size

    @property
    def replica_id(self) -> jax.Array:
        """int32 scalar in [0, R)."""
        return jax.lax.axis_index(self._axis)

    def all_gather(self, tensors):
        """Gathers rows `[n, ...]` to `[R * n, ...]`, in replica order."""
        return tree.map_structure(
            lambda rows: jax.lax.all_gather(rows, self._axis, tiled=True),
            tensors,
        )

    def all_reduce(self, tensors):
        """Sums over replicas."""
        return tree.map_structure(
            lambda tensor: jax.lax.psum(tensor, self._axis), tensors
        )

    def all_to_all(self, tensors):
        """Sends row d of `[R, m, ...]` to replica d."""
        return tree.map_structure(
            lambda rows: jax.lax.all_to_all(rows, self._axis, 0, 0, tiled=True),
            tensors,
        )


def current() -> Replicas | None:
    """Returns the collectives of the running step; None on one device."""
    return _running[-1] if _running else None


def mesh() -> jax.sharding.Mesh | None:
    """Returns the mesh of `keras.distribution`; None if there is one device."""
    distribution = keras.distribution.distribution()
    devices = (
        distribution.device_mesh.backend_mesh.devices.flat
        if distribution
        else ()
    )
    with_some = {device.process_index for device in devices}
    if len(with_some) < jax.process_count() > 1:
        raise ValueError(
            "Several processes train together by "
            "`keras.distribution.DataParallel` over the devices of all "
            "processes, set in each before it builds the model. Received: "
            f"{jax.process_count()} processes, devices of {len(with_some)}"
        )
    if len(devices) <= 1:
        return None
    if len(distribution.device_mesh.axis_names) != 1:
        raise ValueError(
            "JESTModel runs on several devices by "
            "`keras.distribution.DataParallel`, whose mesh has one axis. "
            f"Received: {type(distribution).__name__} over "
            f"{distribution.device_mesh.axis_names}"
        )
    return distribution.device_mesh.backend_mesh


@contextlib.contextmanager
def running(devices: jax.sharding.Mesh | None) -> Iterator[Replicas | None]:
    """Context manager for a step's body within `shard_map` over `devices`."""
    if devices is None:
        yield None
        return
    _running.append(Replicas(devices))
    try:
        yield _running[-1]
    finally:
        _running.pop()


def has_workers(strategy) -> bool:
    """Returns whether several processes train together."""
    return strategy.num_replicas_in_sync > 1 and jax.process_count() > 1


def any_worker(strategy) -> Callable[[bool], bool]:
    """Returns a function that tells whether any process passes true."""
    del strategy

    def any_wish(wish):
        wishes = multihost_utils.process_allgather(np.int32(wish))
        return bool(np.any(wishes))

    return any_wish


def is_tpu(strategy) -> bool:
    """Returns whether the devices are TPUs."""
    del strategy
    return jax.default_backend() == "tpu"

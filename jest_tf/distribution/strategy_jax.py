"""The devices of a run on Keras' JAX backend: the functions of `strategy.py`.

A run's devices are those of `keras.distribution`. Every process runs the same
command; JAX joins them.
"""

import contextlib
import logging
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import keras
import numpy as np
import tensorflow as tf
from jax.sharding import NamedSharding, PartitionSpec

from jest_tf import config as config_lib
from jest_tf import embeddings
from jest_tf.config import imports
from jest_tf.distribution import cluster, collectives_jax

# Seconds without a sign of life after which JAX ends the other processes.
_HEARTBEAT = 30
# The beginning of an error that may follow. Failures of this process have the
# last three statuses, too, but name no collectives and no other tasks.
_LOST = (
    "(CANCELLED|DEADLINE_EXCEEDED|ABORTED|UNAVAILABLE): |"
    "(UNKNOWN|FAILED_PRECONDITION|INTERNAL): .*(Gloo .*failed|by peer|"
    "heartbeat|coordination service|"
    "NCCL .*(remote process exited|system error))"
)


class Devices(NamedTuple):
    """The devices that share a run's steps.

    Its methods are those of a `tf.distribute.Strategy` that a run uses.
    """

    num_replicas_in_sync: int = 1

    def scope(self):
        """Context manager; models may be made anywhere."""
        return contextlib.nullcontext()


def build_strategy(settings: config_lib.DistributionConfig) -> Devices:
    """Sets the devices of `settings`, before JAX runs anything."""
    if settings.virtual_devices:
        _split_cpu(settings.virtual_devices)
    build = config_lib.STRATEGIES[settings.strategy].build
    return imports.load_function("distribution.strategy", build)(settings)


def default(settings: config_lib.DistributionConfig | None = None) -> Devices:
    """Takes the first device of this process; sets it only with `settings`."""
    return Devices() if settings is None else _over(jax.local_devices()[:1])


def mirrored(settings: config_lib.DistributionConfig) -> Devices:
    """Takes all devices of this process."""
    del settings
    return _over(jax.local_devices())


def multi_worker_mirrored(settings: config_lib.DistributionConfig) -> Devices:
    """Takes all devices of the processes in TF_CONFIG."""
    workers, number = cluster.workers()
    try:
        _join(
            coordinator_address=workers[0],
            num_processes=len(workers),
            process_id=number,
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"`distribution.strategy={settings.strategy!r}` can't be built: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    return _over(jax.devices())


def tpu(settings: config_lib.DistributionConfig) -> Devices:
    """Takes all chips of a slice; JAX finds its hosts."""
    # A slice of one host may belong to no cluster that JAX knows.
    with contextlib.suppress(ValueError):
        _join()
    if jax.default_backend() != "tpu":
        raise ValueError(
            f"`distribution.strategy={settings.strategy!r}` needs a TPU on "
            "this machine; docs/tpu.md has what it takes. Received: "
            f"{jax.default_backend()!r}"
        )
    return _over(jax.devices())


def distribute(
    strategy: Devices, super_batches: Callable[[int, int], tf.data.Dataset]
) -> tf.data.Dataset:
    """Builds the dataset for `fit`; see `strategy.distribute`."""
    del strategy  # Keras shares a process's rows out
    return super_batches(jax.process_index(), jax.process_count())


def spread(strategy: Devices, function: Callable, model) -> Callable:
    """Compiles `function`, row by row, to run on every device's share.

    Arguments and results are as in `strategy.spread`.
    """
    run = embeddings.standalone(function, model)
    mesh = collectives_jax.mesh() if strategy.num_replicas_in_sync > 1 else None
    if mesh is None or collectives_jax.has_workers(strategy):
        return run
    shares = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
    return lambda rows: run(jax.device_put(np.asarray(rows), shares))


def describe(strategy: Devices) -> str:
    """Returns a readable list of the devices of this process."""
    devices = jax.local_devices()
    if strategy.num_replicas_in_sync == 1:
        devices = devices[:1]
    kinds = {device.device_kind for device in devices}
    text = ", ".join(
        f"{device.platform.upper()}:{device.local_hardware_id or number}"
        for number, device in enumerate(devices)
    )
    if kinds := kinds - {"cpu"}:
        text += f" ({', '.join(sorted(kinds))})"
    if strategy.num_replicas_in_sync > len(devices):  # of all processes
        text += f", of {strategy.num_replicas_in_sync} replicas"
    return text


def peak_memory() -> list[int]:
    """Returns peak bytes in use of the devices that report them."""
    found = [device.memory_stats() or {} for device in jax.local_devices()]
    key = "peak_bytes_in_use"
    return [stats[key] for stats in found if key in stats]


def has_lost_worker(error: Exception) -> bool:
    """Returns whether it may say that another process cannot be reached."""
    # A collective that fails at once raises a ValueError.
    kinds = jax.errors.JaxRuntimeError, ValueError
    return isinstance(error, kinds) and bool(re.match(_LOST, str(error)))


def share(strategy: Devices) -> tuple[int, int]:
    """Returns this process's number, and how many there are."""
    if not collectives_jax.has_workers(strategy):
        return 0, 1
    return jax.process_index(), jax.process_count()


def _over(devices):
    distribution = None
    if len(devices) > 1:
        names = [f"{device.platform}:{device.id}" for device in devices]
        mesh = keras.distribution.DeviceMesh((len(names),), ["batch"], names)
        distribution = keras.distribution.DataParallel(
            mesh, auto_shard_dataset=False
        )
    keras.distribution.set_distribution(distribution)
    return Devices(len(devices))


def _join(**options):
    """Joins the processes of `jax.distributed`, unless they are joined."""
    cluster.bypass_proxy()
    # It warns of proxies, which are bypassed.
    logging.getLogger("jax._src.distributed").setLevel(logging.ERROR)
    if not jax.distributed.is_initialized():
        jax.distributed.initialize(
            heartbeat_timeout_seconds=_HEARTBEAT, **options
        )


def _split_cpu(parts):
    if jax.config.jax_num_cpu_devices == parts:
        return
    try:
        jax.config.update("jax_num_cpu_devices", parts)
    except RuntimeError as error:
        found = len(jax.local_devices())
        if found == parts:
            return
        raise ValueError(
            "`distribution.virtual_devices` must be set before JAX runs "
            f"anything. Received: {parts}, after it had started with {found}"
        ) from error

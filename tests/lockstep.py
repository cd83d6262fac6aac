"""Replicas without a strategy: a thread each, collectives over a barrier.

Code runs on them eagerly, on any number of replicas in milliseconds, and every
collective is recorded as it happens, also inside loops. Tests that need a graph
or Keras use a strategy over virtual devices.
"""

import threading
from typing import NamedTuple

import numpy as np
import tensorflow as tf

DEVICES = 8  # as many as any test takes


class Call(NamedTuple):
    """A collective, seen by a replica."""

    kind: str
    shape: tuple[int, ...]  # of this replica's tensor
    dtype: str


class Replicas:
    """The methods of `distribution.Replicas`."""

    def __init__(self, group, replica_id, in_loops):
        self._group = group
        self._number = replica_id
        self.num_replicas = group.size
        self.replica_id = tf.constant(replica_id)
        self.in_loops = in_loops

    def all_gather(self, tensor):
        return tf.concat(self._share("all_gather", tensor), 0)

    def all_reduce(self, tensors):
        return tf.nest.map_structure(
            lambda tensor: tf.add_n(self._share("all_reduce", tensor)), tensors
        )

    def all_to_all(self, tensor):
        if tensor.shape[0] != self.num_replicas:
            raise ValueError(f"{tensor.shape} for {self.num_replicas} replicas")
        every = self._share("all_to_all", tensor)
        return tf.stack([sent[self._number] for sent in every])

    def _share(self, kind, tensor):
        """The tensors that all replicas pass to the same call."""
        group = self._group
        tensor = tf.convert_to_tensor(tensor)
        call = Call(kind, tuple(tensor.shape), tensor.dtype.name)
        group.calls[self._number].append(call)
        group.slots[self._number] = (call, tensor)
        group.barrier.wait()
        calls, tensors = zip(*group.slots, strict=True)
        group.barrier.wait()
        if len(set(calls)) > 1:
            raise RuntimeError(f"replicas differ in their calls: {calls}")
        return tensors


class Echo:
    """Replica 0 of some that all hold the same: for shapes and memory alone."""

    in_loops = True

    def __init__(self, num_replicas):
        self.num_replicas, self.replica_id = num_replicas, tf.constant(0)

    def all_gather(self, tensor):
        return tf.concat([tensor] * self.num_replicas, 0)

    def all_reduce(self, tensors):
        return tf.nest.map_structure(tf.identity, tensors)


class _Group:
    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size)
        self.slots = [None] * size
        self.calls = [[] for _ in range(size)]


def run(num_replicas, function, *, in_loops=True):
    """Runs `function(replicas)` on every replica at once.

    Returns:
        The result of each replica, and the `Call`s that each made.
    """
    group = _Group(num_replicas)
    results, errors = [None] * num_replicas, []

    def work(number):
        try:
            results[number] = function(Replicas(group, number, in_loops))
        except threading.BrokenBarrierError:
            pass  # another replica's error is raised
        except Exception as error:
            errors.append(error)
            group.barrier.abort()

    threads = [
        threading.Thread(target=work, args=(number,))
        for number in range(num_replicas)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results, group.calls


def mirrored(num_replicas):
    """A strategy over virtual CPUs.

    Tensors meet on one device and not in TensorFlow's collectives, because a
    process has a single group of these: a second strategy of another size
    fails.
    """
    return tf.distribute.MirroredStrategy(
        [f"CPU:{number}" for number in range(num_replicas)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def share(values, replica, num_replicas):
    """The rows of a nest of arrays that a replica holds; scalars stay."""

    def cut(value):
        if np.ndim(value) == 0:
            return value
        rows = len(value) // num_replicas
        return value[replica * rows : (replica + 1) * rows]

    return tf.nest.map_structure(cut, values)


# Before TensorFlow starts, so when this is imported.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * DEVICES,
)

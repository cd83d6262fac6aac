"""A TPUStrategy without TPUs, under which steps are traced but can't run.

It is TensorFlow's own class, told of a system of R cores that isn't there: the
graph of `strategy.run` is what a TPU would be given. Variables lie on virtual
CPUs, a CPU a replica.
"""

import collections

import numpy as np
import tensorflow as tf
from tensorflow.python.tpu import tpu_system_metadata

_DEVICE = "/job:localhost/replica:0/task:0/device:{}:{}"
_Device = collections.namedtuple("_Device", ["name", "device_type"])


def build_strategy(num_replicas: int) -> tf.distribute.TPUStrategy:
    """A strategy of that many replicas on a host.

    Several replicas take as many virtual CPUs: call it before TensorFlow has
    run anything, or when there are enough of them.

    Raises:
        RuntimeError: TensorFlow's, if it has.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    parts = tf.config.get_logical_device_configuration(cpu) or [None]
    if len(parts) < num_replicas:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * num_replicas
        )
    strategy = tf.distribute.TPUStrategy(_Resolver(num_replicas))
    # Where the strategy would put variables, and what belongs to the host.
    strategy.extended._tpu_devices = np.array(
        [[_DEVICE.format("CPU", number)] for number in range(num_replicas)]
    ).astype(object)
    strategy.extended._host_device = _DEVICE.format("CPU", 0)
    return strategy


class _Resolver(tf.distribute.cluster_resolver.ClusterResolver):
    """Says what a TPU system would say of itself."""

    task_type = "localhost"
    task_id = 0
    environment = ""

    def __init__(self, num_cores):
        self._num_cores = num_cores

    def get_tpu_system_metadata(self):
        devices = [
            _Device(_DEVICE.format("TPU", number), "TPU")
            for number in range(self._num_cores)
        ]
        return tpu_system_metadata.TPUSystemMetadata(
            num_cores=self._num_cores,
            num_hosts=1,
            num_of_cores_per_host=self._num_cores,
            topology=None,
            devices=[_Device(_DEVICE.format("CPU", 0), "CPU"), *devices],
        )

    def cluster_spec(self):
        return tf.train.ClusterSpec({})

    def master(self, task_type=None, task_id=None, rpc_layer=None):
        return ""

    def num_accelerators(self, task_type=None, task_id=None, config_proto=None):
        return {"TPU": self._num_cores}

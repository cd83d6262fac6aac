"""The process that drives the hosts of a slice: see distribution/test_hosts.

    python tests/coordinator.py SETTINGS

pulls super-batches whose parts are made on the servers at `hosts`, as under
TPUStrategy, and writes to `output` what arrived, where it was made, and how
many bytes came and went by this process's sockets after the first.
"""

import json
import os
import socket
import struct
import sys

import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import input_lib, input_util

from jest_tf import config, distribution
from jest_tf.data import pipeline, stores, tokenizers

# Of Linux' `struct tcp_info`: bytes acknowledged and received.
_TCP_BYTES = struct.Struct("<120xQQ")


class _Extended(tf.distribute.StrategyExtended):
    """Places datasets as TPUStrategy does, a replica a host, on CPUs."""

    def __init__(self, strategy, num_hosts):
        super().__init__(strategy)
        self.worker_devices = [
            f"/job:worker/replica:0/task:{host}/device:CPU:0"
            for host in range(num_hosts)
        ]

    worker_devices = ()
    enable_partial_batch_handling = False

    @property
    def _num_replicas_in_sync(self):
        return len(self.worker_devices)

    def _in_multi_worker_mode(self):
        return True

    def _distribute_datasets_from_function(self, dataset_fn, options):
        count = len(self.worker_devices)
        return input_util.get_distributed_datasets_from_function(
            dataset_fn,
            input_lib.InputWorkers(
                [(device, (device,)) for device in self.worker_devices]
            ),
            [tf.distribute.InputContext(count, i, count) for i in range(count)],
            self._container_strategy(),
            options=options,
        )


class Slice(tf.distribute.Strategy):
    def __init__(self, num_hosts):
        super().__init__(_Extended(self, num_hosts))


TOKENIZER = tokenizers.WordPieceTokenizer(["[UNK]", "[EOS]", "a", "b"], 4)


def super_batches(data, host=0, num_hosts=1):
    """The stream of a shard, which tests compare."""
    return pipeline.super_batches(
        stores.open_store(data),
        plan=config.plan(config.SelectionConfig(16)),
        loss="sigmoid",
        seed=3,
        tokenizer=TOKENIZER,
        image_size=32,
        options=pipeline.Options(host=host, num_hosts=num_hosts),
    )


def socket_bytes():
    """Bytes that have passed the open sockets of this process."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                info = connection.getsockopt(
                    socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_BYTES.size
                )
        except OSError:  # closed by now, or not of TCP
            continue
        if len(info) == _TCP_BYTES.size:
            total += sum(_TCP_BYTES.unpack(info))
    return total


def main(settings):
    hosts = settings["hosts"]
    distribution.connect(",".join(f"grpc://{host}" for host in hosts))
    iterator = iter(
        distribution.distribute(
            Slice(len(hosts)),
            lambda host, num_hosts: super_batches(
                settings["data"], host, num_hosts
            ),
        )
    )
    arrived = []
    for step in range(settings["steps"]):
        parts = next(iterator)
        arrived.append({name: value.values for name, value in parts.items()})
        if step == 0:  # the graphs have been sent
            before = socket_bytes()
    found = {"bytes": socket_bytes() - before}
    found["devices"] = [tensor.device for tensor in arrived[0]["image"]]
    for name in arrived[0]:
        found[f"batch/{name}"] = np.stack(
            [np.concatenate(batch[name]) for batch in arrived]
        )
    np.savez(settings["output"], **found)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    # Iterators on servers that end first would raise.
    sys.stdout.flush()
    os._exit(0)

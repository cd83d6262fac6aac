"""Datasets on the hosts of a slice: servers in processes of their own."""

import json
import os
import socket
import subprocess
import sys

import coordinator
import numpy as np
import pytest
import shard_files
import subprocesses
import tensorflow as tf

STEPS = 8
# A server with TensorFlow alone.
PLAIN = (
    "import sys, tensorflow as tf\n"
    "address = f'127.0.0.1:{sys.argv[1]}'\n"
    "tf.distribute.Server({'worker': [address]}, 'worker', 0).join()\n"
)


def write_pictures(path, num_records):
    """A shard of PNGs that do not compress, and their sizes in bytes."""
    rng = np.random.default_rng(0)
    payloads, sizes = [], []
    for number in range(num_records):
        pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
        image = tf.io.encode_png(pixels).numpy()
        caption = "a b"[: 1 + number % 3]
        tokens = coordinator.TOKENIZER([caption]).numpy()[0].tolist()
        payloads.append(
            shard_files.serialize(
                image=image, caption=caption, id=number, tokens=tokens
            )
        )
        sizes.append(len(image))
    shard_files.write_shard(path, payloads)
    # A damaged payload: the host replaces the record, too.
    shard_files.flip(path, 2000)
    return sizes


def run(*command):
    """A process of Python that has ended."""
    return subprocess.run(
        [sys.executable, *command],
        env=subprocesses.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
class HostsTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = tf.compat.v1.test.get_temp_dir()
        cls.data = os.path.join(cls.folder, "pictures.tfrecord")
        cls.sizes = write_pictures(cls.data, 100)
        cls.servers = []
        cls.addClassCleanup(cls.stop)
        cls.workers = cls.serve("-m", "trainers.worker", "--port")

    @classmethod
    def stop(cls):
        for one in cls.servers:
            # A plain server that has served does not end at SIGTERM.
            (one.terminate if "trainers.worker" in one.args else one.kill)()
        for one in cls.servers:
            one.wait(10)

    @classmethod
    def serve(cls, *command, **environment):
        """Starts two servers; returns their addresses."""
        ports = subprocesses.free_ports(2)
        cls.servers += [
            subprocess.Popen(
                [sys.executable, *command, str(port)],
                env=subprocesses.environment(**environment),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for port in ports
        ]
        return [f"127.0.0.1:{port}" for port in ports]

    def pull(self, hosts, **options):
        """The arrays that the hosts send, or the coordinator's errors."""
        output = os.path.join(self.folder, "arrived.npz")
        settings = {"hosts": hosts, "data": self.data, "steps": STEPS}
        settings |= {"options": options, "output": output}
        script = os.path.join(subprocesses.TESTS, "coordinator.py")
        done = run(script, json.dumps(settings))
        return done.stderr if done.returncode else np.load(output)

    def assert_local(self, found):
        """Checks that each host made its half of the local stream."""
        if isinstance(found, str):
            self.fail(found[-4000:])
        self.assertEqual(
            [one.split("/")[-2] for one in found["devices"]],
            ["task:0", "task:1"],
        )
        local = coordinator.super_batches(self.data)
        for step, batch in enumerate(local.take(STEPS)):
            for name, value in batch.items():
                arrived = found[f"batch/{name}"][step]
                self.assertAllEqual(arrived, value, name)

    def encoded_bytes(self, found):
        """Of the steps whose bytes were counted."""
        return sum(self.sizes[n] for n in found["batch/id"][1:].ravel())

    def test_hosts_call_back_for_what_python_reads(self):
        found = self.pull(self.workers)
        self.assert_local(found)
        # Encoded pictures pass the coordinator, decoded ones do not. A slow
        # machine has fetched some of them before bytes are counted.
        self.assertGreater(found["bytes"], 0.2 * self.encoded_bytes(found))

    def test_what_ops_read_passes_no_coordinator(self):
        found = self.pull(self.workers, reader="ops")
        self.assert_local(found)
        self.assertLess(found["bytes"], 0.01 * self.encoded_bytes(found))

    def test_hosts_with_tensorflow_alone_read_tokens(self):
        plain = self.serve("-c", PLAIN, grpc_proxy="")
        found = self.pull(plain, reader="ops", token_field="tokens")
        self.assert_local(found)
        self.assertLess(found["bytes"], 0.01 * self.encoded_bytes(found))
        self.assertRegex(
            self.pull(plain, reader="ops"),
            "ValueError: The server of every host must have the ops of its "
            "dataset: start it by `jest-tf worker`",
        )

    def test_a_port_in_use_is_refused(self):
        with socket.create_server(("", 0)) as other:
            port = other.getsockname()[1]
            done = run("-m", "trainers.worker", f"--port={port}")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, f"`--port` must be free.*: {port}")

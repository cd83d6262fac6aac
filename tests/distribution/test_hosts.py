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


def write_images(path, num_records):
    """A shard of PNGs that do not compress, and their sizes in bytes."""
    rng = np.random.default_rng(0)
    payloads, sizes = [], []
    for number in range(num_records):
        pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
        image = tf.io.encode_png(pixels).numpy()
        caption = "a b"[: 1 + number % 3]
        payloads.append(
            shard_files.serialize(image=image, caption=caption, id=number)
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
    def test_hosts_call_back_for_what_python_reads(self):
        folder = self.get_temp_dir()
        data = os.path.join(folder, "images.tfrecord")
        sizes = write_images(data, 100)
        workers = []
        for port in subprocesses.free_ports(2):
            server = subprocess.Popen(
                [sys.executable, "-m", "trainers.worker", f"--port={port}"],
                env=subprocesses.environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self.addCleanup(server.wait, 10)
            self.addCleanup(server.terminate)
            workers.append(f"127.0.0.1:{port}")
        output = os.path.join(folder, "arrived.npz")
        settings = {"hosts": workers, "data": data, "steps": STEPS}
        settings["output"] = output
        script = os.path.join(subprocesses.TESTS, "coordinator.py")
        done = run(script, json.dumps(settings))
        self.assertEqual(done.returncode, 0, done.stderr[-4000:])
        found = np.load(output)
        # Each host makes its half of the local stream.
        self.assertEqual(
            [device.split("/")[-2] for device in found["devices"]],
            ["task:0", "task:1"],
        )
        local = coordinator.super_batches(data)
        for step, batch in enumerate(local.take(STEPS)):
            for name, value in batch.items():
                arrived = found[f"batch/{name}"][step]
                self.assertAllEqual(arrived, value, name)
        # Encoded images pass the coordinator, decoded images do not. A slow
        # machine has fetched some of them before bytes are counted.
        encoded = sum(sizes[n] for n in found["batch/id"][1:].ravel())
        self.assertGreater(found["bytes"], 0.2 * encoded)

    def test_a_port_in_use_is_refused(self):
        with socket.create_server(("", 0)) as other:
            port = other.getsockname()[1]
            done = run("-m", "trainers.worker", f"--port={port}")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, f"`--port` must be free.*: {port}")

"""Processes that tests start: runs, workers, their ports."""

import json
import os
import socket
import subprocess
import sys

import h5py

TESTS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TESTS)


class Server:
    """A process of `run_server.py`: runs come and go, TensorFlow stays."""

    def __init__(self, **environment):
        self._process = subprocess.Popen(
            [sys.executable, os.path.join(TESTS, "run_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # On JAX, bits are those of programs as users compile them.
            env=os.environ
            | {"PYTHONPATH": f"{ROOT}:{TESTS}", "XLA_FLAGS": ""}
            | environment,
        )

    def start(self, workdir, *overrides, **options):
        """Starts a run; returns the number of its process.

        With a remote `workdir` give `local`, what names of local files begin
        with.
        """
        request = {"workdir": workdir, "settings": overrides, **options}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        process = int(self._process.stdout.readline())
        # Else a code that nobody waited for: a kill would hit other processes.
        assert process > 1, process
        return process

    def wait(self):
        """The run's exit code, or minus the number of the signal."""
        return int(self._process.stdout.readline())

    def run(self, workdir, *overrides, **options):
        self.start(workdir, *overrides, **options)
        return self.wait()

    def close(self):
        self._process.communicate()


def weight_arrays(path):
    """Every array of a weights file, by name."""
    found = {}

    def take(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(take)
    return found


def environment(**more):
    path = os.pathsep.join([TESTS, ROOT])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "CUDA_VISIBLE_DEVICES": "",
        # Nobody listens there: servers must not go through a proxy.
        "http_proxy": "http://127.0.0.1:9",
        **more,
    }


def free_ports(count):
    """Ports that nobody listens on, as far as can be known."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()

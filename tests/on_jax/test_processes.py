"""`fit` of two processes on Keras' JAX backend, on loopback."""

import os
import subprocess
import sys
import tempfile

import fits
import jax
import keras
import numpy as np
import process
import subprocesses
import tensorflow as tf

from jest_tf import distribution

# Seconds until processes that wait for each other are ended.
LIMIT = 1200
PAGE = os.path.join(subprocesses.ROOT, "docs", "jax.md")


class LostTest(tf.test.TestCase):
    def test_an_own_failure_is_not_called_that_of_another(self):
        def fail(_):
            raise OSError("Connection reset by peer")

        result = jax.ShapeDtypeStruct((), "float32")
        with self.assertRaises(jax.errors.JaxRuntimeError) as own:
            jax.jit(lambda x: jax.pure_callback(fail, result, x))(1.0)
        self.assertStartsWith(str(own.exception), "INTERNAL: ")
        for text, is_lost in (
            (str(own.exception), False),
            ("UNKNOWN: CUDNN_STATUS_EXECUTION_FAILED", False),
            ("UNKNOWN: Gloo AllGather failed: Connection closed", True),
        ):
            error = ValueError(text)
            self.assertIs(distribution.has_lost_worker(error), is_lost)


class ProcessesTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = tempfile.mkdtemp()
        (port,) = subprocesses.free_ports(1)
        processes = []
        try:
            for number in range(2):
                files = (f"{number}.npz", f"{number}.keras")
                files = [os.path.join(cls.folder, name) for name in files]
                environment = subprocesses.environment(
                    KERAS_DISTRIBUTION_JOB_ADDRESSES=f"127.0.0.1:{port}",
                    KERAS_DISTRIBUTION_NUM_PROCESSES="2",
                    KERAS_DISTRIBUTION_PROCESS_ID=str(number),
                    grpc_proxy="",
                    XLA_FLAGS=os.environ["XLA_FLAGS"].replace("=4", "=2"),
                )
                command = [sys.executable, process.__file__, PAGE, *files]
                processes.append(subprocess.Popen(command, env=environment))
            codes = [child.wait(LIMIT) for child in processes]
        finally:
            for child in processes:
                child.kill()  # JAX takes SIGTERM for a notice
                child.wait()
        assert codes == [0, 0], codes
        cls.found = [
            dict(np.load(os.path.join(cls.folder, f"{number}.npz")))
            for number in range(2)
        ]

    def test_ten_steps_are_those_of_one_process(self):
        ours, theirs = self.found
        for name in process.CASES:
            expected = fits.results(name)
            fits.assert_same(self, ours, expected)
            for key in expected:
                self.assertAllEqual(ours[key], theirs[key])

    def test_every_process_saves_and_loads_the_model(self):
        expected = fits.weights_of(fits.towers(0))
        for number in range(2):
            path = os.path.join(self.folder, f"{number}.keras")
            saved = fits.weights_of(keras.saving.load_model(path))
            self.assertAllEqual(saved, expected)
            self.assertAllEqual(self.found[number]["loaded"], expected)

    def test_what_processes_cannot_do_is_refused_in_each(self):
        half = fits.ROWS // 2
        for number, rows in enumerate((half, half - 4)):
            self.assertRegex(
                str(self.found[number]["unequal"]),
                rf"B / processes.*process {number} of 2: .*shape=\({rows},",
            )
            self.assertRegex(
                str(self.found[number]["alone"]),
                "DataParallel.*Received: 2 processes, devices of 0",
            )

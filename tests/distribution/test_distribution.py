"""Strategies, and two workers that train together."""

import json
import os
import subprocess
import sys
import unittest
import unittest.mock

import numpy as np
import pytest
import subprocesses
import tensorflow as tf
import worker

from jest_tf import config, distribution
from jest_tf.distribution import placement


@pytest.mark.slow
class WorkersTest(tf.test.TestCase):
    def test_two_workers_train_as_one_process(self):
        folder, processes = self.get_temp_dir(), []
        ports = subprocesses.free_ports(2)
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        script = os.path.join(subprocesses.TESTS, "worker.py")
        for index in range(2):
            task = {"type": "worker", "index": index}
            place = json.dumps({"cluster": cluster, "task": task})
            process = subprocess.Popen(
                [sys.executable, script, f"{folder}/{index}.npz"],
                env=subprocesses.environment(TF_CONFIG=place),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.addCleanup(process.kill)
            processes.append(process)
        drawn, history, weights = worker.train(tf.distribute.get_strategy(), 2)
        expected = {f"log/{name}": value for name, value in history.items()}
        for index, value in enumerate(weights):
            expected[f"weight/{index}"] = value
        for index, process in enumerate(processes):
            output, _ = process.communicate(timeout=300)
            self.assertEqual(process.returncode, 0, output[-4000:])
            found = np.load(f"{folder}/{index}.npz")
            self.assertEqual(found["replicas"], 2)
            self.assertAllEqual(found["drawn"], drawn)
            # Three of 16 records, on the second worker alone, at each step.
            replaced = found["log/data/records_replaced"]
            self.assertEqual(replaced, 3 * worker.STEPS)
            for name, value in expected.items():
                self.assertAllClose(found[name], value, 1e-5, 1e-6, msg=name)


class StrategyTest(tf.test.TestCase):
    def test_strategies_that_cannot_be_built_are_refused(self):
        cluster = {"worker": ["127.0.0.1:1"]}
        places = [{"cluster": cluster}]
        for kind, index in (("worker", 1), ("chief", 0)):
            task = {"type": kind, "index": index}
            places.append({"cluster": cluster, "task": task})
        for text in ("", "[]", "{", *map(json.dumps, places)):
            with (
                unittest.mock.patch.dict(os.environ, TF_CONFIG=text),
                self.assertRaisesRegex(
                    ValueError, r"needs TF_CONFIG, .* Received: '"
                ),
            ):
                distribution.build_strategy(
                    config.DistributionConfig("multi_worker_mirrored")
                )
        for name in ("tpu", "multi_worker_mirrored"):
            message = (
                "'mirrored'. Received: .*_devices=2, "
                f"distribution.strategy='{name}'"
            )
            with self.assertRaisesRegex(ValueError, message):
                distribution.build_strategy(
                    config.DistributionConfig(name, virtual_devices=2)
                )

    @pytest.mark.slow
    def test_a_missing_tpu_is_refused(self):
        # Looking for TPUs starts TensorFlow anew: in a process of its own.
        code = (
            "from jest_tf import config, distribution\n"
            "settings = config.DistributionConfig('tpu')\n"
            "distribution.build_strategy(settings)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=subprocesses.environment(),
            capture_output=True,
            text=True,
        )
        self.assertRegex(
            done.stderr,
            "ValueError: `distribution.strategy='tpu'` can't be built: ",
        )

    def test_shares_must_be_whole(self):
        self.assertEqual(placement.share(12, 4, "`b`"), 3)
        with self.assertRaisesRegex(ValueError, "`b` must .*: 10, R=4"):
            placement.share(10, 4, "`b`")

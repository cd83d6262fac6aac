"""Peak memory of host and devices."""

import types
from unittest import mock

import numpy as np
import tensorflow as tf

from jest_tf.runs import resources


class MemoryTest(tf.test.TestCase):
    def test_the_peak_of_the_host_rises_by_what_is_held(self):
        name = "memory/host_peak_rss_bytes"
        before = resources.peak_memory()[name]
        # More than was ever free again.
        held = np.ones(before // 8 + 2**22)
        after = resources.peak_memory()[name]
        self.assertGreater(after, held.nbytes)
        del held
        self.assertGreaterEqual(resources.peak_memory()[name], after)

    def test_of_devices_the_fullest_is_told(self):
        peaks = {"GPU:0": 5, "GPU:1": 7}

        def info(device):
            return {"current": 1, "peak": peaks[device]}

        def devices():
            return [types.SimpleNamespace(name=f"/device:{n}") for n in peaks]

        with (
            mock.patch.object(tf.config, "list_logical_devices", devices),
            mock.patch.object(tf.config.experimental, "get_memory_info", info),
        ):
            found = resources.peak_memory()
        self.assertEqual(found["memory/device_peak_bytes"], 7)

    def test_a_device_that_does_not_tell_has_no_column(self):
        device = types.SimpleNamespace(name="/device:TPU:0")
        for devices in (tf.config.list_logical_devices("CPU"), [device]):
            with mock.patch.object(
                tf.config, "list_logical_devices", lambda of=devices: of
            ):
                self.assertNotIn(
                    "memory/device_peak_bytes", resources.peak_memory()
                )

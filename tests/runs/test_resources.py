"""Peak memory of host and devices."""

import types
from unittest import mock

import numpy as np
import pytest
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

    @pytest.mark.tensorflow
    def test_of_devices_that_tell_the_fullest_is_told(self):
        peaks = {"GPU:0": 5, "GPU:1": 7}
        real = tf.config.experimental.get_memory_info

        def info(device):
            return {"peak": peaks[device]} if device in peaks else real(device)

        for names, expected in (
            ([*peaks], 7),
            (["CPU:0"], None),
            (["TPU:0"], None),
        ):
            devices = [
                types.SimpleNamespace(name=f"/device:{n}") for n in names
            ]
            with (
                mock.patch.object(
                    tf.config, "list_logical_devices", lambda of=devices: of
                ),
                mock.patch.object(
                    tf.config.experimental, "get_memory_info", info
                ),
            ):
                found = resources.peak_memory()
            self.assertEqual(found.get("memory/device_peak_bytes"), expected)

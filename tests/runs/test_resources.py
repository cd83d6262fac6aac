"""Peak memory of host and devices, and energy without codecarbon and with."""

import builtins
import sys
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


class Tracker:
    """Of codecarbon, what is used of it: a kilowatt hour a flush."""

    def __init__(self, output_handlers, **options):
        self.handlers, self.options = output_handlers, options
        self.kwh, self.calls = 0.0, []

    def start(self):
        self.calls.append("start")

    def stop(self):
        self.calls.append("stop")

    def flush(self):
        self.kwh += 1.0
        total = types.SimpleNamespace(energy_consumed=self.kwh)
        for handler in self.handlers:
            handler.out(total, None)


class EnergyTest(tf.test.TestCase):
    def test_without_codecarbon_the_error_says_how_to_get_it(self):
        real = builtins.__import__

        def absent(name, *arguments):
            if name == "codecarbon":
                raise ImportError(name)
            return real(name, *arguments)

        with mock.patch.object(builtins, "__import__", absent):
            with self.assertRaisesRegex(
                ValueError, r"`evaluation.energy` needs codecarbon: pip install"
            ):
                resources.EnergyMeter()

    def test_kilowatt_hours_become_joules_and_nothing_is_sent(self):
        module = types.SimpleNamespace(OfflineEmissionsTracker=Tracker)
        with mock.patch.dict(sys.modules, {"codecarbon": module}):
            meter = resources.EnergyMeter()
        self.assertEqual(
            [meter.joules(), meter.joules()], [3_600_000.0, 7_200_000.0]
        )
        tracker = meter._tracker
        for name in ("save_to_api", "save_to_file", "emissions_endpoint"):
            self.assertFalse(tracker.options[name], name)
        meter.close()
        self.assertEqual(tracker.calls, ["start", "stop"])


if __name__ == "__main__":
    tf.test.main()

"""Peak memory and energy of a run; energy needs the package codecarbon."""

import contextlib
import resource
import sys

import tensorflow as tf

_COUNTRY = "USA"  # for the carbon, which is not reported
_JOULES_PER_KWH = 3.6e6


def peak_memory() -> dict[str, int]:
    """Returns peak bytes in use since the process started.

    `memory/host_peak_rss_bytes` is of this process; `memory/device_peak_bytes`,
    if devices report it, is TensorFlow's on the fullest device.
    """
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In KiB, but in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"memory/host_peak_rss_bytes": largest * unit}
    peaks = []
    for device in tf.config.list_logical_devices():
        name = device.name.rpartition("device:")[2]
        if name.startswith("CPU"):
            continue
        # Not every device reports it.
        with contextlib.suppress(ValueError, tf.errors.OpError):
            peaks.append(tf.config.experimental.get_memory_info(name)["peak"])
    if peaks:
        found["memory/device_peak_bytes"] = max(peaks)
    return found


class EnergyMeter:
    """The energy that the whole machine uses from now on.

    codecarbon reads the counters of GPUs and processors, or estimates by the
    processor's rated power. It runs offline and writes no file.

    Raises:
        ValueError: codecarbon is missing.
    """

    def __init__(self):
        try:
            import codecarbon
        except ImportError as error:
            raise ValueError(
                "`evaluation.energy` needs codecarbon: pip install codecarbon. "
                "Received: true without it"
            ) from error
        self._kwh = 0.0
        self._tracker = codecarbon.OfflineEmissionsTracker(
            country_iso_code=_COUNTRY,
            tracking_mode="machine",
            allow_multiple_runs=True,
            log_level="error",
            # These override the user's settings.
            save_to_file=False,
            save_to_api=False,
            save_to_logger=False,
            save_to_prometheus=False,
            save_to_logfire=False,
            emissions_endpoint=None,
            output_handlers=[self],
        )
        self._tracker.start()

    def joules(self) -> float:
        """Returns the energy until now."""
        self._tracker.flush()  # calls `out`
        return self._kwh * _JOULES_PER_KWH

    def close(self) -> None:
        """Ends the measurement; `joules` stays unchanged."""
        self._tracker.stop()

    def out(self, total, delta):
        """Receives the total; codecarbon calls it, and those below."""
        del delta
        self._kwh = total.energy_consumed

    def _nothing(self, *_):
        pass

    live_out = task_out = exit = _nothing

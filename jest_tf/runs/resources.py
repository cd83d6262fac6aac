"""What a run takes of its machine: peak memory, and energy.

Energy needs the package codecarbon
(`pip install codecarbon`), which is imported only where it is asked for.
"""

import resource
import sys

import tensorflow as tf

# Of the country depends what energy means in carbon, which isn't reported.
_COUNTRY = "USA"
_JOULES_PER_KWH = 3.6e6


def peak_memory() -> dict[str, int]:
    """Bytes that were in use at most since the process started.

    Returns:
        `memory/host_peak_rss_bytes`, what of this process lay in the host's
        memory, and where devices tell, `memory/device_peak_bytes`, what
        TensorFlow had given out on the fullest of them.
    """
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In KiB but for macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"memory/host_peak_rss_bytes": largest * unit}
    peaks = []
    for kind in ("GPU", "TPU"):
        for number in range(len(tf.config.list_logical_devices(kind))):
            try:
                info = tf.config.experimental.get_memory_info(
                    f"{kind}:{number}"
                )
            except (ValueError, tf.errors.OpError):
                continue  # not every device tells
            peaks.append(info["peak"])
    if peaks:
        found["memory/device_peak_bytes"] = max(peaks)
    return found


class EnergyMeter:
    """Energy that the machine takes, all of it, from the start of this on.

    codecarbon reads the counters of GPUs and processors where there are any,
    and estimates by the processor's rated power where there are none. It runs
    offline: nothing is sent and no file is written.

    Raises:
        ValueError: without codecarbon.
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
            # What the user's own settings may say otherwise.
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
        """Energy until now."""
        self._tracker.flush()  # which calls `out`
        return self._kwh * _JOULES_PER_KWH

    def close(self) -> None:
        """Ends the measurement; `joules` stays what it was."""
        self._tracker.stop()

    def out(self, total, delta):
        """codecarbon's: takes the total up."""
        del delta
        self._kwh = total.energy_consumed

    def live_out(self, total, delta):
        """codecarbon's; nothing."""

    def task_out(self, data, experiment_name):
        """codecarbon's; nothing."""

    def exit(self):
        """codecarbon's; nothing."""

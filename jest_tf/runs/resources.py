"""Memory of a run and of its machine."""

import contextlib
import os
import resource
import sys

import tensorflow as tf


def host_memory() -> int:
    """Returns the bytes of this machine's main memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory() -> dict[str, int]:
    """Returns peak bytes in use since the process started.

    `memory/host_peak_rss_bytes` is of this process; `memory/device_peak_bytes`,
    if devices report it, is TensorFlow's on the fullest device.
    """
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In KiB, but in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    memory = {"memory/host_peak_rss_bytes": largest * unit}
    peaks = []
    for device in tf.config.list_logical_devices():
        name = device.name.rpartition("device:")[2]
        if name.startswith("CPU"):
            continue
        # Not every device reports it.
        with contextlib.suppress(ValueError, tf.errors.OpError):
            peaks.append(tf.config.experimental.get_memory_info(name)["peak"])
    if peaks:
        memory["memory/device_peak_bytes"] = max(peaks)
    return memory

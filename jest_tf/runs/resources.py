"""Memory of a run and of its machine."""

import os
import resource
import sys

from jest_tf import distribution


def host_memory() -> int:
    """Returns the bytes of this machine's main memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory() -> dict[str, int]:
    """Returns peak bytes in use since the process started.

    `memory/host_peak_rss_bytes` is of this process; `memory/device_peak_bytes`,
    if devices report it, is of the fullest device.
    """
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In KiB, but in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    memory = {"memory/host_peak_rss_bytes": largest * unit}
    if peaks := distribution.peak_memory():
        memory["memory/device_peak_bytes"] = max(peaks)
    return memory

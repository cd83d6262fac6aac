"""Runs: training from settings to final weights in a resumable directory."""

from jest_tf.runs.run import (
    Opened,
    load_run,
    open_run,
    train,
)

__all__ = [
    "Opened",
    "load_run",
    "open_run",
    "train",
]

"""Runs: training from settings to final weights in a resumable directory.

`train` runs, `extend` adds steps, `loading.load` loads a model by name.
`directory` owns every file name, `checkpoints` the state; nothing else writes
to a run directory.
"""

from jest_tf.runs.run import extend, train

__all__ = ["extend", "train"]

"""Runs: training from settings to final weights in a resumable directory.

`train` runs, `extend` adds steps.
`load_run` loads the learner of a run, `load_model` any model by name.
`directory` owns every file name, `checkpoints` the state; nothing else writes
to a run directory.
"""

from jest_tf.runs.loading import load_model, load_run
from jest_tf.runs.run import extend, train

__all__ = [
    "extend",
    "load_model",
    "load_run",
    "train",
]

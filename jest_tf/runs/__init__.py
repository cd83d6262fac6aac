"""Runs: training from settings to final weights in a resumable directory.

`train` runs, `extend` adds steps.
`load_run` loads the learner of a run, `open_training` also its data and
reference, `load_model` any model by name.
`directory` owns every file name, `checkpoints` the state; nothing else writes
to a run directory.
"""

from jest_tf.runs.inputs import Training, open_training
from jest_tf.runs.loading import load_model, load_run
from jest_tf.runs.run import extend, train

__all__ = [
    "Training",
    "extend",
    "load_model",
    "load_run",
    "open_training",
    "train",
]

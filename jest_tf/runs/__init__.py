"""Runs: training from settings to final weights in a resumable directory.

`train` starts or continues a run, `extend` adds steps, and `loading.load` loads
a model by name. `directory` owns every file name and `checkpoints` the state;
other modules write to a run directory only through these two.
"""

from jest_tf.runs.run import extend, train

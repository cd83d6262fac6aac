"""The commands as modules: `python -m trainers.train` is `jest-tf train`.

`--help` explains the flags; the modules of `jest_tf.cli` run the commands.
"""

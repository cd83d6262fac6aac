"""The command `jest-tf evaluate` as a module.

    python -m trainers.evaluate --workdir runs/jest

`--help` explains the flags; `jest_tf.cli.evaluate` runs the command.
"""

from jest_tf import cli

if __name__ == "__main__":
    cli.execute(command="evaluate")

"""The command `jest-tf page` as a module.

    python -m trainers.page --workdir runs/jest

`--help` explains the flags; `jest_tf.cli.page` runs the command.
"""

from jest_tf import cli

if __name__ == "__main__":
    cli.execute(command="page")

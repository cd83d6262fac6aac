"""The command `jest-tf export` as a module.

    python -m trainers.export --model runs/jest --format saved_model \
        --output exported/jest

`--help` explains the flags; `jest_tf.cli.export` runs the command.
"""

from jest_tf import cli

if __name__ == "__main__":
    cli.execute(command="export")

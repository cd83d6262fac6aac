"""The command `jest-tf train` as a module.

    python -m trainers.train --config configs/quickstart_uniform.py \
        --workdir runs/uniform

`--help` explains the flags; `jest_tf.cli.train` runs the command.
"""

from jest_tf import cli

if __name__ == "__main__":
    cli.execute(command="train")

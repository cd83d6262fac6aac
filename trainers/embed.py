"""The command `jest-tf embed` as a module.

    python -m trainers.embed --workdir examples/icontext_mini/reference \
        --data 'examples/icontext_mini/pool-*.tfrecord'

`--help` explains the flags; `jest_tf.cli.embed` runs the command.
"""

from jest_tf import cli

if __name__ == "__main__":
    cli.execute(command="embed")

"""The command `jest-tf curate` as a module.

    python -m trainers.curate --workdir examples/icontext_mini/reference \
        --data 'examples/icontext_mini/pool-*.tfrecord' \
        --output manifests/easy --set stage.candidates=4 window=2048

`--help` explains the flags; `jest_tf.cli.curate` runs the command.
"""

from jest_tf import cli

if __name__ == "__main__":
    cli.execute(command="curate")

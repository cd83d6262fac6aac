"""The command `jest-tf worker` as a module.

    python -m trainers.worker --port 8470

`--help` explains the flags; `jest_tf.cli.worker` runs the command.
"""

import functools

from jest_tf import cli

main = functools.partial(cli.execute, command="worker")

if __name__ == "__main__":
    main()

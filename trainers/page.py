"""The command `jest-tf page` as a module.

    python -m trainers.page --workdir runs/jest --trust

`--help` explains the flags; `jest_tf.cli.page` runs the command.
"""

import functools

from jest_tf import cli

main = functools.partial(cli.execute, command="page")

if __name__ == "__main__":
    main()

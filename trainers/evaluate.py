"""The command `jest-tf evaluate` as a module.

For example, `python -m trainers.evaluate --workdir runs/jest --trust`.
"""

import functools

from jest_tf import cli

main = functools.partial(cli.execute, command="evaluate")

if __name__ == "__main__":
    main()

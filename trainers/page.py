"""The command `jest-tf page` as a module.

For example, `python -m trainers.page --workdir runs/jest --trust`.
"""

import functools

from jest_tf import cli

main = functools.partial(cli.execute, command="page")

if __name__ == "__main__":
    main()

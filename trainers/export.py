"""The command `jest-tf export` as a module."""

import functools

from jest_tf import cli

main = functools.partial(cli.execute, command="export")

if __name__ == "__main__":
    main()

"""The command `jest-tf worker` as a module."""

import functools

from jest_tf import cli

main = functools.partial(cli.execute, command="worker")

if __name__ == "__main__":
    main()

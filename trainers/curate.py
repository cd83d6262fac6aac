"""The command `jest-tf curate` as a module."""

import functools

from jest_tf import cli

main = functools.partial(cli.execute, command="curate")

if __name__ == "__main__":
    main()

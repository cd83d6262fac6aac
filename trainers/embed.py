"""The command `jest-tf embed` as a module."""

import functools

from jest_tf import cli

main = functools.partial(cli.execute, command="embed")

if __name__ == "__main__":
    main()

"""The command `jest-tf advise` as a module."""

import functools

from jest_tf import cli

main = functools.partial(cli.execute, command="advise")

if __name__ == "__main__":
    main()

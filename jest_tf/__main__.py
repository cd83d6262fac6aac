"""The command `jest-tf`, as `python -m jest_tf`."""

from jest_tf import cli

if __name__ == "__main__":
    cli.execute()

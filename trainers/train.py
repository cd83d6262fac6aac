"""The command `jest-tf train` as a module."""

from jest_tf import cli

if __name__ == "__main__":
    cli.execute(command="train")

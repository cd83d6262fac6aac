"""The command `jest-tf embed` as a module."""

from jest_tf import cli

if __name__ == "__main__":
    cli.execute(command="embed")

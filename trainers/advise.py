"""The command `jest-tf advise` as a module."""

from jest_tf import cli

if __name__ == "__main__":
    cli.execute(command="advise")

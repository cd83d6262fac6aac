"""`python -m trainers.train` is the command `jest-tf train`."""

import sys
from collections.abc import Sequence

from jest_tf import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; raises SystemExit unless it succeeds."""
    cli.execute(["train", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    main()

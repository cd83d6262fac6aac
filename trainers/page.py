"""The command `jest-tf page` as a module.

    python -m trainers.page --workdir runs/jest

`--help` explains the flags; `jest_tf.cli.page` runs the command.
"""

import sys
from collections.abc import Sequence

from jest_tf import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; raises SystemExit unless it succeeds."""
    cli.execute(["page", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    main()

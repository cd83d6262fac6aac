"""The command `jest-tf train` as a module.

    python -m trainers.train --config configs/quickstart_reference.py \
        --workdir runs/reference

`--help` explains the flags; `jest_tf.cli.train` runs the command.
"""

import sys
from collections.abc import Sequence

from jest_tf import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; raises SystemExit unless it succeeds."""
    cli.execute(["train", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    main()

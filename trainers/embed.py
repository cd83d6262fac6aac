"""The command `jest-tf embed` as a module.

    python -m trainers.embed --workdir runs/reference \
        --data 'examples/icontext_mini/pool-*.tfrecord'

`--help` explains the flags; `jest_tf.cli.embed` runs the command.
"""

import sys
from collections.abc import Sequence

from jest_tf import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; raises SystemExit unless it succeeds."""
    cli.execute(["embed", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    main()

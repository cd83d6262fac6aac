"""The command `jest-tf curate` as a module.

    python -m trainers.curate --workdir runs/reference \
        --data 'examples/icontext_mini/pool-*.tfrecord' \
        --output manifests/easy --set share=0.2 window=2048

`--help` explains the flags; `jest_tf.cli.curate` runs the command.
"""

import sys
from collections.abc import Sequence

from jest_tf import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; raises SystemExit unless it succeeds."""
    cli.execute(["curate", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    main()

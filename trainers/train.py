"""Trains a recipe, or continues the run that a directory holds.

    python -m trainers.train --config configs/quickstart_jest.py \
        --workdir runs/jest --set reference.workdir=runs/reference

The run directory gets `config.json` (every setting, resolved),
`versions.json`, the vocabulary, `checkpoints/`, `final.weights.h5` (the
learner), `tensorboard/`, `metrics.jsonl` (one JSON object a logged step),
`evaluation.jsonl` and `flops.json`. SIGTERM and Ctrl-C end the step in
progress, save, and exit with code 75; a second Ctrl-C kills.
"""

import argparse
from collections.abc import Sequence

import trainers
from jest_tf import config as config_lib
from jest_tf import runs


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and runs."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", required=True, help="a recipe, configs/*.py"
    )
    parser.add_argument("--workdir", required=True, help="the run directory")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="A.B=C",
        help="settings to override, e.g. selection.batch_size=64",
    )
    flags = parser.parse_args(argv)
    trainers.run(
        lambda: runs.train(
            config_lib.load_config(flags.config, flags.set), flags.workdir
        )
    )


if __name__ == "__main__":
    main()

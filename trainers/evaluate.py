"""Measures the learner of a finished run on held-out data.

    python -m trainers.evaluate --workdir runs/jest

Settings, vocabulary and weights come from the run directory. Prints one
measure a line, or JSON with `--json`.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from jest_tf import evaluation, reference


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="the run directory")
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="GLOB",
        help="TFRecord shards, a set each; quote a glob. By default the run's "
        "`evaluation.data`",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    flags = parser.parse_args(argv)
    try:
        results = evaluate(flags.workdir, flags.data)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if flags.json:
        print(json.dumps(results, indent=2))
        return
    for name, value in results.items():
        print(f"{value:8.4f}  {name}")


def evaluate(
    workdir: str, data: Sequence[str] | None = None
) -> dict[str, float]:
    """What `evaluation.Evaluation` measures of a finished run.

    Args:
        workdir: the run directory.
        data: paths or globs; None is the run's own `evaluation.data`.

    Raises:
        ValueError: where the run has not finished, or there is no data.
    """
    run = reference.load_run(workdir)
    settings = run.config.evaluation
    if data:
        settings = dataclasses.replace(settings, data=tuple(data))
    if not settings.data:
        raise ValueError(
            "There is nothing to evaluate on: expected `--data`, or a run with "
            f"`evaluation.data`. Received: {workdir!r} without either"
        )
    return evaluation.Evaluation(
        run.learner,
        evaluation.open_stores(settings.data),
        settings,
        tokenizer=run.tokenizer,
        image_size=run.config.data.image_size,
    ).run(run.config.steps)


if __name__ == "__main__":
    main()

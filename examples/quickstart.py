"""The quickstart: a reference and three learners, compared at equal cost.

    python -m examples.quickstart

Four runs of `jest-tf train` on the pictures in `examples/icontext_mini`, whose
pool is noisy. The reference trains on the small curated set. Three learners
train on the pool: uniform; JEST, by the reference's sidecars; and a stored
stage whose reference is the run itself. All take the same FLOPs, with
references, scores and embeddings counted. The report is written to `--runs`.
Finished runs are not repeated. `--publish` also renews the results in README.md
and docs/quickstart.md.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from examples import quickstart_report as report

ROOT = pathlib.Path(__file__).resolve().parent.parent
POOL = "examples/icontext_mini/pool-*.tfrecord"


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, trains what is missing, reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default="runs", help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="A.B=C",
        help="settings to override in all recipes",
    )
    parser.add_argument(
        "--publish", action="store_true", help="renew README.md and docs/"
    )
    flags = parser.parse_args(argv)
    runs = pathlib.Path(flags.runs).resolve()
    started = time.monotonic()
    for seed in flags.seeds:
        train(runs, seed, dict.fromkeys(report.RECIPES, flags.set))
    print(report.write(runs, flags.seeds))
    print(
        f"\n{time.monotonic() - started:.0f} s. "
        f"See {os.path.relpath(runs / 'report.md')}"
    )
    if flags.publish:
        report.publish(runs, flags.seeds, ROOT)


def train(
    runs: pathlib.Path, seed: int, overrides: Mapping[str, Sequence[str]]
) -> None:
    """Trains all recipes with one seed, each in its own process.

    Args:
        runs: folder for the runs.
        seed: seed of all of them.
        overrides: settings to override, by recipe.
    """
    teacher = report.workdir(runs, "reference", seed)
    sidecars = report.workdir(runs, "sidecars", seed)
    more = {
        "jest": [
            f"reference.model={teacher}",
            f"reference.sidecar_dir={sidecars}",
        ],
    }
    for recipe in report.RECIPES:
        if recipe == "jest":
            _run(
                *("trainers.embed", "--workdir", teacher, "--data", POOL),
                *("--output", sidecars),
            )
        _run(
            *("trainers.train", "--config", f"configs/quickstart_{recipe}.py"),
            *("--workdir", report.workdir(runs, recipe, seed)),
            *("--set", f"seed={seed}", *more.get(recipe, ())),
            *overrides[recipe],
        )


def _run(*arguments):
    command = [sys.executable, "-m", *map(os.fspath, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed")


if __name__ == "__main__":
    main()

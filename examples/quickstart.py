"""The quickstart: a reference, a uniform learner and a JEST learner, compared.

    python -m examples.quickstart

Three runs of `trainers.train` on the pictures in `examples/icontext_mini`: a
reference on the small curated set, then two learners on the noisy pool from
the same initial weights and for the same number of steps, one on what comes,
one with JEST. Then one table, and in `--runs` a report with learning curves
and the most and least learnable pictures. Runs that have finished are not run
again. `--publish` also renews the result in README.md and docs/quickstart.md.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from examples import quickstart_report as report

ROOT = pathlib.Path(__file__).resolve().parent.parent


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
        help="settings to override in all three recipes",
    )
    parser.add_argument(
        "--publish", action="store_true", help="renew README.md and docs/"
    )
    flags = parser.parse_args(argv)
    runs = pathlib.Path(flags.runs).resolve()
    started = time.monotonic()
    for seed in flags.seeds:
        train(runs, seed, flags.set)
    text = report.write(runs, flags.seeds)
    print(text)
    print(
        f"\n{time.monotonic() - started:.0f} s. The report: "
        f"{os.path.relpath(runs / 'report.md')}"
    )
    if flags.publish:
        report.publish(runs, flags.seeds, ROOT)


def train(runs: pathlib.Path, seed: int, overrides: Sequence[str]) -> None:
    """Trains the three recipes with one seed, each in its own process."""
    for recipe in report.RECIPES:
        workdir = report.workdir(runs, recipe, seed)
        settings = [f"seed={seed}", *overrides]
        if recipe == "jest":
            teacher = report.workdir(runs, "reference", seed)
            settings.append(f"reference.workdir={teacher}")
        command = [
            *(sys.executable, "-m", "trainers.train"),
            *("--config", f"configs/quickstart_{recipe}.py"),
            *("--workdir", os.fspath(workdir)),
            *("--set", *settings),
        ]
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode:
            sys.exit(f"error: {' '.join(command)} failed")


if __name__ == "__main__":
    main()

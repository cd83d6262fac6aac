"""The quickstart: one small learner, trained in three ways at equal cost.

    python -m examples.quickstart

The reference in `examples/icontext_mini` is trained; a command embeds the noisy
pool with it. Three runs of `jest-tf train` follow: uniform; JEST, by these
embeddings; and a stored stage with distillation. All take the same FLOPs by the
paper's count: embedding and scoring count, the reference's training does not.
The report is written to `--runs`. Finished runs are not repeated. `--publish`
also renews the results in README.md and docs/quickstart.md.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from examples import quickstart_report as report


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, trains what is missing, reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default="runs", help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--publish", action="store_true", help="renew README.md and docs/"
    )
    flags = parser.parse_args(argv)
    runs = pathlib.Path(flags.runs).resolve()
    started = time.monotonic()
    for seed in flags.seeds:
        train(runs, seed)
    print(report.write(runs, flags.seeds, flags.publish))
    print(
        f"\n{time.monotonic() - started:.0f} s. "
        f"See {os.path.relpath(runs / 'report.md')}"
    )


def train(
    runs: pathlib.Path,
    seed: int,
    overrides: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Embeds the pool and trains all recipes with one seed.

    Args:
        runs: folder for the runs.
        seed: seed of all of them.
        overrides: settings to override, by recipe.
    """
    _run(
        *("embed", "--model", report.REFERENCE, "--data", report.POOL),
        *("--output", runs / report.EMBEDDINGS),
    )
    for recipe in report.NAMES:
        _run(
            *("train", "--config", f"configs/quickstart_{recipe}.py"),
            *("--workdir", report.workdir(runs, recipe, seed)),
            *("--set", f"seed={seed}"),
            f"reference.sidecar_dir={runs / report.EMBEDDINGS}",
            *(overrides or {}).get(recipe, ()),
        )


def _run(command, *arguments):
    words = [sys.executable, "-m", f"trainers.{command}", *arguments]
    done = subprocess.run([os.fspath(word) for word in words], cwd=report.ROOT)
    if done.returncode:
        sys.exit(f"error: {command} failed")


if __name__ == "__main__":
    main()

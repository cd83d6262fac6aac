"""The quickstart: one small learner, trained in three ways at equal cost.

    python -m examples.quickstart

The reference in `examples/icontext_mini` is already trained; `jest-tf embed`
embeds the noisy pool with it. Three runs of `jest-tf train` follow: uniform;
JEST, by these embeddings; and a stored stage with distillation. All take the
same FLOPs by the paper's count: embedding and scoring count, the reference's
training does not. The report goes to `--runs`. Finished runs are not repeated.
`--publish` also renews the results in README.md and docs/quickstart.md.
"""

import argparse
import concurrent.futures
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from examples import quickstart_report as report

# Two runs at a time, one core each. The number of threads changes rounding, so
# with one thread, all machines of a kind give the same results.
_ONE_THREAD = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, trains the missing runs, and reports."""
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
        seed: seed of all runs.
        overrides: settings to override, by recipe.
    """
    embed = ("embed", "--model", report.REFERENCE, "--data", report.POOL)
    embed += ("--trust",)  # the reference names towers of `benchmarks`
    embeddings = runs / report.EMBEDDINGS
    pool = concurrent.futures.ThreadPoolExecutor(2)
    try:
        # Submitted first, so that waiting for it cannot block both threads.
        embedded = pool.submit(
            _run, "embedding", *embed, "--output", embeddings
        )

        def fit(recipe):
            if recipe != "uniform":
                embedded.result()
            _run(
                report.NAMES[recipe],
                *("train", "--config", f"configs/quickstart_{recipe}.py"),
                "--trust",
                *("--workdir", report.workdir(runs, recipe, seed)),
                *("--set", f"seed={seed}"),
                f"reference.sidecar_dir={embeddings}",
                *(overrides or {}).get(recipe, ()),
            )

        for future in [pool.submit(fit, recipe) for recipe in report.NAMES]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _run(title, command, *arguments):
    """Runs a command on one thread, and marks its lines with a title."""
    words = [sys.executable, "-m", f"trainers.{command}", *arguments]
    with subprocess.Popen(
        [os.fspath(word) for word in words],
        cwd=report.ROOT,
        env=os.environ | _ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout:
            print(f"{title:>17} | {line}", end="", flush=True)
    if process.returncode:
        raise SystemExit(f"error: {command} of '{title}' failed, see above")


if __name__ == "__main__":
    main()

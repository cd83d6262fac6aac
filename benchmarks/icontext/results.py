"""The results of runs as tidy tables: what the report is made of.

| file | a line for each | contents |
| --- | --- | --- |
| runs.csv | run | final scores, costs, what was selected, machine |
| curves.csv | run and evaluation | score by split, FLOPs so far, renewals |
| concepts.parquet | run, split and concept | mean reciprocal ranks |

A score is the mean reciprocal rank of retrieval in both directions.
"""

import contextlib
import fcntl
import os
import pathlib
from typing import NamedTuple

import pandas as pd

from jest_tf import files

FOLDER = pathlib.Path(__file__).parent / "results"
_RUN = ["cell", "seed"]
# FLOPs at an evaluation, which curves have as well.
COSTS = ("flops_step", "flops_cascade", "flops_renewals")
# What curves have of runs that renew their reference, see `collect`.
RENEWALS = ("recognised", "is_kept", "clean")
_COUNTS = dict.fromkeys((*COSTS, "flops_forward", "flops_embedded"), "Int64")


class Tables(NamedTuple):
    """The three tables of a folder."""

    runs: pd.DataFrame  # a row for each run
    curves: pd.DataFrame  # a row for each evaluation
    concepts: pd.DataFrame  # a row for each concept of a final evaluation


def load(folder):
    """The tables of a folder; None if it has none yet."""
    folder = pathlib.Path(folder)
    if not (folder / "runs.csv").exists():
        return None
    return Tables(
        # A digest such as "71892e99" is no number.
        pd.read_csv(folder / "runs.csv", dtype=_COUNTS | {"digest": str}),
        pd.read_csv(folder / "curves.csv", dtype=_COUNTS),
        pd.read_parquet(folder / "concepts.parquet"),
    )


def finished(folder):
    """`{(cell, seed): (digest of the cell when it was run, splits)}`."""
    tables = load(folder)
    if tables is None:
        return {}
    splits = tables.concepts.groupby(_RUN, observed=True)["split"]
    splits = splits.agg(frozenset).to_dict()
    digests = tables.runs.set_index(_RUN)["digest"].to_dict()
    return {run: (digest, splits[run]) for run, digest in digests.items()}


def add(folder, new):
    """Adds one run's tables, replacing an earlier run of its cell and seed.

    Several processes may add to the same folder.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        old = load(folder)
        if old is not None:
            (run,) = new.runs[_RUN].to_numpy()
            new = Tables(
                *(
                    pd.concat([table[(table[_RUN] != run).any(axis=1)], more])
                    for table, more in zip(old, new, strict=True)
                )
            )
        concepts = new.concepts.astype(
            {"cell": "category", "split": "category"}
        )
        # `runs.csv`, which lists them, last.
        with files.written_whole(f"{folder}/concepts.parquet") as path:
            concepts.to_parquet(path, index=False, compression="zstd")
        with files.written_whole(f"{folder}/curves.csv") as path:
            _with_counts(new.curves).to_csv(path, index=False)
        with files.written_whole(f"{folder}/runs.csv") as path:
            _with_counts(new.runs).to_csv(path, index=False)


def _with_counts(table):
    """A table whose counts are integers, also where some are missing."""
    return table.astype({n: k for n, k in _COUNTS.items() if n in table})


@contextlib.contextmanager
def _locked(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

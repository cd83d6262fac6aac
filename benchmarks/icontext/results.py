"""The results of runs as tidy tables: what the report is made of.

| file | a line for each | contents |
| --- | --- | --- |
| runs.csv | run | final scores, costs, what was selected, machine |
| curves.csv | run and evaluation | score by split |
| concepts.parquet | run, split and concept | mean reciprocal ranks |

A score is the mean reciprocal rank of retrieval in both directions.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib

import pandas as pd

FOLDER = pathlib.Path(__file__).parent / "results"
_RUN = ["cell", "seed"]
_COUNTS = dict.fromkeys(
    ("flops_step", "flops_cascade", "flops_forward"), "Int64"
)


@dataclasses.dataclass(frozen=True)
class Tables:
    """The three tables of a folder.

    Attributes:
        runs: a row for each run.
        curves: a row for each evaluation.
        concepts: a row for each concept of a final evaluation.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    concepts: pd.DataFrame

    def without(self, cell, seed):
        """Returns the tables without a run."""
        return Tables(
            *(
                table[(table["cell"] != cell) | (table["seed"] != seed)]
                for table in (self.runs, self.curves, self.concepts)
            )
        )


def load(folder):
    """The tables of a folder; None if it has none yet."""
    folder = pathlib.Path(folder)
    if not (folder / "runs.csv").exists():
        return None
    return Tables(
        pd.read_csv(folder / "runs.csv", dtype=_COUNTS),
        pd.read_csv(folder / "curves.csv"),
        pd.read_parquet(folder / "concepts.parquet"),
    )


def finished(folder):
    """`{(cell, seed): digest of the cell when it was run}`."""
    tables = load(folder)
    if tables is None:
        return {}
    runs = tables.runs
    keys = zip(runs["cell"], runs["seed"], strict=True)
    return dict(zip(keys, runs["digest"], strict=True))


def add(folder, new):
    """Adds one run's tables, replacing an earlier run of its cell and seed.

    Several processes may add to the same folder.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        old = load(folder)
        if old is not None:
            (run,) = new.runs[_RUN].itertuples(index=False)
            old = old.without(*run)
            new = Tables(
                *(
                    pd.concat([getattr(old, name), getattr(new, name)])
                    for name in ("runs", "curves", "concepts")
                )
            )
        save(folder, new)


def save(folder, tables):
    """Writes the tables of a folder; `runs.csv`, which lists them, last."""
    folder = pathlib.Path(folder)
    concepts = tables.concepts.astype({"cell": "category", "split": "category"})
    with _replacing(folder / "concepts.parquet") as path:
        concepts.to_parquet(path, index=False, compression="zstd")
    for name in ("curves", "runs"):
        with _replacing(folder / f"{name}.csv") as path:
            table = getattr(tables, name)
            counts = _COUNTS if name == "runs" else {}
            table.astype(counts).to_csv(path, index=False)


@contextlib.contextmanager
def _locked(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _replacing(path):
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    yield partial
    os.replace(partial, path)

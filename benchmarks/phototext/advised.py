"""What `jest-tf advise` says of the photographs, beside their labels.

    python -m benchmarks.phototext.advised --work photos-work

Advises on each part by the reference of the apart set, with the validation
pairs of all sources as curated pairs, and prints the table of docs/advise.md.
Sidecars go to `WORK/advised`.
"""

import argparse
import pathlib

import numpy as np

from benchmarks import report
from benchmarks.phototext import build, cells
from jest_tf.cli import flags
from jest_tf.curation import survey
from jest_tf.data import stores
from jest_tf.runs import loading


def main(arguments=None):
    """Parse the flags, survey and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=pathlib.Path, default="photos-work")
    work = parser.parse_args(arguments).work
    model = loading.load(f"{work}/runs/{cells.REFERENCE}-0", trust=True)

    def embedded(pattern):
        store = stores.open_store(f"{work}/photos/{pattern}.tfrecord")
        return flags.open_sidecars(store, model, str(work / "advised"))

    curated, rows = embedded("val_*"), []
    for level in build.LEVELS:
        pool = embedded(f"part{level:02}/*")
        found = survey.survey(pool, curated)
        clean = pool.store.columns(["noise"])["noise"] == b""
        best = found.rows[np.argsort(-found.pool)]
        best = best[: len(best) // found.candidates]
        low, high = found.matched.low, found.matched.high
        alike = min(1.0, found.pool.mean() / found.curated.mean())
        rows.append(
            (
                f"{level} %",
                f"{clean.mean():.2f}",
                f"{found.matched.mean:.2f} [{low:.2f}, {high:.2f}]",
                f"{alike:.2f}",
                found.candidates,
                f"{found.chosen:.2f}",
                f"{clean[best].mean():.2f}",
                f"{found.cut:.2f}",
            )
        )
    columns = "moved", "matched, by labels", "matched, estimated"
    columns += "with equal counts", "candidates"
    columns += "matched of the choice, expected", "by labels", "cosine, cut"
    print(report.table(columns, rows))


if __name__ == "__main__":
    main()

"""How the draws of runs change with the view that the learner scores by.

    python -m benchmarks.icontext.scoring --work icontext-work

What `trainers.evaluate --selection` measures of finished runs, by the weights
that they ended with, of augmented and of small pictures; a line each in
results/scoring.jsonl. It needs the runs and their data.
"""

import argparse
import pathlib
import sys

from benchmarks import report
from benchmarks.icontext import pages, results

FILE = "scoring.jsonl"
# Trained on crops, on plain pictures, and on plain and on small ones; of seeds
# that one machine has run, as a reference has to be the run's own.
_RUNS = "crops-0", "jest_2500-1", "flexi_2500-1"
_VIEWS = "min_crop_area=0.6,flip=true", "image_size=16"
_SUPER_BATCHES = 32
_COLUMNS = {
    "spearman_own": "correlation of the rows' own scores",
    "overlap": "rows in common",
    "overlap_other_noise": "with a further draw",
    "score_kept": "share of the gain",
}

FOUND = (
    "A learner has to be scored by views that it was trained on. One that was "
    "trained on crops, for 400 steps, chooses by them nearly as well as "
    "without; one that was not, for 2,500, loses almost half of what its "
    "choice gains, and most of it by small pictures, of which it has seen "
    "none. Flexi-JEST, trained on both sizes, gives a quarter of the gain away "
    "by scoring on small ones."
)


def main(arguments=None):
    """Parse the flags and measure."""
    from jest_tf.evaluation import draw_comparison

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default="icontext-work")
    parser.add_argument("--runs", nargs="+", default=_RUNS)
    parser.add_argument("--results", default=str(results.FOLDER))
    options = parser.parse_args(arguments)
    path = pathlib.Path(options.results) / FILE
    there = {(row["run"], row["digest"]) for row in results.read(path)}
    for run in options.runs:
        workdir = results.find_run(options.work, run)
        if workdir is None:
            print(f"no run {run!r} in {options.work!r}", file=sys.stderr)
            continue
        # Of the run's settings, as its folder's name has them, and of ours.
        settings = workdir.name, _VIEWS, _SUPER_BATCHES
        digest = results.digest_of(settings)
        if (run, digest) in there:
            continue
        found = draw_comparison.measure(
            str(workdir), num_super_batches=_SUPER_BATCHES, views=_VIEWS
        )
        about = {"run": run, "digest": digest, "machine": report.processor()}
        results.append(path, {**about, **found})
        print(f"{run}\n\n{draw_comparison.tables(found)}\n")


def blocks(folder):
    """The report's table of it; nothing where nothing is kept.

    Args:
        folder: of the results.
    """
    # Of one run the last, which the newest settings are of.
    rows = {
        row["run"]: row for row in results.read(pathlib.Path(folder) / FILE)
    }.values()
    if not rows:
        return []
    (number,) = {row["super_batches"] for row in rows}
    table = [
        (
            f"{row['run']}, step {row['step']:,}",
            view,
            *(
                f"{values[column]['mean']:.2f} \u00b1 "
                f"{values[column]['std']:.2f}"
                for column in _COLUMNS
            ),
        )
        for row in rows
        for view, values in row["views"].items()
    ]
    is_whole = {row["run"] for row in rows} >= {*_RUNS}
    return [
        pages.heading(
            "What is scored: pictures as they are, augmented, and small", 2
        ),
        pages.paragraph(
            f"Draws from {number} super-batches that a run would have gone on "
            "with, by the learner that it ended with: one whose scores come "
            "from the pictures as they are, and from the same noise one whose "
            "scores come from others. Shown are the share of the first draw's "
            "rows that the second has, beside what a further draw by the "
            "pictures as they are has of them, and the second's share of the "
            "first's gain over a uniform draw, measured on the pictures as "
            "they are. Means and standard deviations over super-batches; the "
            "reference's embeddings are always of the pictures as they are. No "
            "run was trained by scores of augmented pictures: a step has none."
        ),
        *([pages.paragraph(FOUND)] if is_whole else []),
        pages.table(("run", "looked at", *_COLUMNS.values()), table),
    ]


if __name__ == "__main__":
    main()

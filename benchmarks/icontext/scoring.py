"""How the draws of runs change with the view that the learner scores by.

    python -m benchmarks.icontext.scoring --work icontext-work

What `trainers.evaluate --selection` measures, of finished runs that scored full
pictures, of augmented ones and of small ones, by the weights that they ended
with; a line each in results/scoring.jsonl. It needs the runs and their data.
"""

import argparse
import pathlib
import sys

from benchmarks import report
from benchmarks.icontext import pages, results

FILE = "scoring.jsonl"
# Trained on crops, on plain pictures, and on plain and on small ones.
_RUNS = "crops-0", "jest_2500-1", "flexi_2500-1"
_VIEWS = "min_crop_area=0.6,flip=true", "image_size=16"
_SUPER_BATCHES = 32
_COLUMNS = {
    "spearman_own": "correlation of the rows' own scores",
    "overlap": "rows of the draw by full pictures",
    "overlap_other_noise": "of another draw by full pictures",
    "score_kept": "of its gain over a uniform draw",
}

FOUND = (
    "A learner has to be scored by views that it was trained on. One that was "
    "trained on crops chooses by them nearly as well as by plain pictures, one "
    "that was not loses almost half of what its choice gains, and a learner "
    "that has seen no small pictures loses most by these. Flexi-JEST, trained "
    "on both sizes, gives a quarter of the gain away by scoring on small ones."
)


def main(arguments=None):
    """Parse the flags and measure."""
    from jest_tf import comparison

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default="icontext-work")
    parser.add_argument("--runs", nargs="+", default=_RUNS)
    parser.add_argument("--results", default=str(results.FOLDER))
    options = parser.parse_args(arguments)
    path = pathlib.Path(options.results) / FILE
    there = {row["run"] for row in results.read(path)}
    for run in options.runs:
        workdir = results.find_run(options.work, run)
        if run in there or workdir is None:
            reason = "is there" if run in there else f"not in {options.work!r}"
            print(f"{run}: {reason}", file=sys.stderr)
            continue
        found = comparison.measure(
            str(workdir), num_super_batches=_SUPER_BATCHES, views=_VIEWS
        )
        results.append(
            path, {"run": run, "machine": report.processor(), **found}
        )
        print(f"{run}\n\n{comparison.tables(found)}\n")


def blocks(folder):
    """The report's table of it; nothing where nothing is kept.

    Args:
        folder: of the results.
    """
    rows = results.read(pathlib.Path(folder) / FILE)
    if not rows:
        return []
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
        pages.heading("What is scored: plain, augmented and small pictures", 2),
        pages.paragraph(
            f"Draws from {rows[0]['super_batches']} super-batches that a run "
            "would have gone on with, by the learner that it ended with. To "
            "the draw by plain pictures belongs one from the same noise by "
            "others: the share of the first's rows that it has, beside what "
            "another draw by plain pictures has of them, and its share of the "
            "first's gain over a uniform draw, measured on plain pictures. "
            "Means and standard deviations over super-batches; the reference's "
            "embeddings are of plain pictures always. In training the scores "
            "are of plain or of small ones: no run was trained by scores of "
            "crops."
        ),
        *([pages.paragraph(FOUND)] if is_whole else []),
        pages.table(("run", "looked at", *_COLUMNS.values()), table),
    ]


if __name__ == "__main__":
    main()

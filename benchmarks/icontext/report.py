"""The benchmark's report, from compact results alone.

    python -m benchmarks.icontext.report
    python -m benchmarks.icontext.report --matrix quick --out icontext-work

    python -m benchmarks.icontext.report --pages README.md docs/recipes.md

Writes report.md, its pictures and report.html, one file that needs no other,
into the results' folder. No run and no data are needed. Galleries, which need
both, are made by `python -m benchmarks.icontext.gallery` and taken up if there.
"""

import argparse
import os
import pathlib

from benchmarks import report as benchmark_report
from benchmarks.icontext import (
    bootstrap,
    claims,
    diagnosis,
    figures,
    matrix,
    pages,
    results,
)

_COMMAND = (
    "python -m benchmarks.icontext.report --pages README.md docs/recipes.md"
)
_FRONTIER = "The measure against examples, FLOPs and seconds"

PROTOCOL = (
    "All learners are the same: a convolutional net of seven layers on 32 x 32 "
    "pixels and a bag of tokens with an MLP (towers.py), trained with the "
    "softmax loss, b = 256, unless a row says otherwise. Cells of one seed "
    "start from the same weights and are offered the same stream of the pool; "
    "each has a full schedule, warm-up and cosine to zero, for its own length.",
    "Settings were chosen on `val_concept`, concepts that are in no other "
    "split; how the best distils also on the curated set, known concepts in "
    "two styles that no learner is trained on. With weight 1, before that, the "
    "best was seen on the test splits once (the cell best_weight_1). "
    "`test_concept` (held-out concepts in nine styles) and "
    "`test_style` (known concepts in a style that no training data have) are "
    "what the tables show.",
    "The main measure is the mean reciprocal rank, the mean over both test "
    "splits and both directions, times 100; R@1, R@5 and zero-shot accuracy "
    "with three prompts stand beside it. A query is answered at the rank of "
    "its first match; pictures of one concept match all its texts.",
    "Intervals are 95 %, of 2,000 resamples of concepts, and of seeds where "
    "there are several; differences are paired by concept and seed. One seed "
    "leaves the spread between runs out of its interval.",
    "The target is the score of the long uniform run at its end, each seed's "
    "own. How long another run takes to it is read off its curve, a straight "
    "line between two evaluations; of the lengths of a method the one counts "
    "that spends least. Examples drawn, scored and trained are counted apart; "
    "a forward pass of one example is the unit of compute (three to train on "
    "it, one to score it), since the reference's embeddings are cached. FLOPs "
    "are those of the traced step, all of it, and of a cascade's stage 0.",
    "All references have one seed, so intervals say nothing of others. It is "
    "seed 0: a learner of seed 0 begins with the weights that its reference "
    "began with, which makes distillation easier there.",
)

_COLUMNS = ("i2t_mrr", "t2i_mrr", "i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5")
# Uniform learners on the pool, of several lengths.
_UNIFORM = ("uniform", "uniform_750", "uniform_400", "best_neither")
_MAIN_CURVES = (
    *("uniform", "jest_750", "jest_2500", "flexi"),
    *("cascade_1500", "stage_0_1500", "best_plain", "best_uniform", "best"),
)


def main(arguments=None):
    """Parse the flags and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--results", default=str(results.FOLDER))
    parser.add_argument("--out", help="folder to write to; the results'")
    parser.add_argument(
        "--matrix", default="standard", choices=sorted(matrix.MATRICES)
    )
    parser.add_argument(
        "--pages",
        nargs="+",
        type=pathlib.Path,
        default=(),
        help="Markdown files to put the summary into",
    )
    options = parser.parse_args(arguments)
    folder = pathlib.Path(options.results)
    rows = results.read(folder / f"{options.matrix}.jsonl")
    if not rows:
        raise SystemExit(f"error: no results of {options.matrix!r} in {folder}")
    queries = {
        row["key"]: row for row in results.read(folder / results.QUERIES_FILE)
    }
    out = pathlib.Path(options.out or folder)
    out.mkdir(parents=True, exist_ok=True)
    runs = claims.Runs(rows, queries)
    name = f"{options.matrix}_" if options.matrix != "standard" else ""
    write(runs, matrix.MATRICES[options.matrix], out, name=name)
    for page in options.pages:
        picture = out / f"{name}frontier.png"
        blocks = [
            *_methods(runs),
            pages.image(
                os.path.relpath(picture, page.resolve().parent), _FRONTIER
            ),
            pages.paragraph(_provenance(runs)),
        ]
        benchmark_report.write_block(
            page, "icontext", pages.markdown(blocks), _COMMAND
        )


def write(runs, cells, out, name=""):
    """Write the report of runs and its pictures.

    Args:
        runs: `claims.Runs`.
        cells: `matrix.Cell`s of the report.
        out: folder.
        name: what the names of the files start with.
    """
    there = [cell for cell in cells if cell.name in runs]
    blocks = [
        pages.heading("IconText: the paper's claims on real pairs"),
        pages.heading("Protocol", 2),
        *map(pages.paragraph, PROTOCOL),
        pages.heading("Claims", 2),
        pages.paragraph(
            "Ours are differences of the main measure in points, or ratios. "
            '"Undecided" has an interval with zero in it.'
        ),
        pages.table(
            ("claim", "paper", "ours", "verdict", "why"), claims.table(runs)
        ),
        pages.heading("To the uniform learner's end", 2),
        *_methods(runs),
        *_targets(runs, there),
        pages.heading("One thing at a time", 2),
        *diagnosis.blocks(runs, out, name),
        pages.heading("At the end of each run", 2),
        *_scores(runs, there),
        pages.heading("What icons teach of held-out concepts", 2),
        *_subsets(runs, there),
        pages.heading("Look-alikes in a draw", 2),
        *_look_alikes(runs, there),
        pages.heading("Curves", 2),
        *_pictures(runs, there, out, name),
        pages.heading("Costs", 2),
        *_costs(runs, there),
        pages.paragraph(_provenance(runs)),
    ]
    missing = sorted({cell.name for cell in cells} - set(runs.cells))
    if missing:
        blocks.append(
            pages.paragraph(f"Cells not run yet: {', '.join(missing)}.")
        )
    pages.write_markdown(blocks, out / f"{name}report.md")
    pages.write_html(blocks, out, out / f"{name}report.html")


def _methods(runs):
    """What every method takes to the target, of what the uniform run took."""
    if "uniform" not in runs:
        return [pages.paragraph(f"The long uniform run: {claims.NOT_RUN}.")]
    references = [
        run
        for cell in runs.cells
        if matrix.find(cell).recipe == "reference"
        for run in runs.of(cell)
    ]
    costs = {
        **bootstrap.COSTS,
        "FLOPs, the reference's counted": bootstrap.flops_with(references),
    }
    rows = []
    for about, cells in claims.METHODS.items():
        cells = [cell for cell in cells if cell in runs]
        ratios = {
            what: runs.to_target(cells, spent) for what, spent in costs.items()
        }
        if not cells or not any(ratios.values()):
            continue
        scores = []
        for cell in cells:
            found = runs.of(cell)
            score = bootstrap.estimate(found, runs.queries)
            seeds = f"{len(found)} seed{'s' if found[1:] else ''}"
            scores.append(
                f"{claims.interval(score)} after {found[0]['steps']:,}, {seeds}"
            )
        columns = [claims.ratios(one) if one else "" for one in ratios.values()]
        rows.append((about, "; ".join(scores), *columns))
    long = runs.of("uniform")
    target = claims.interval(bootstrap.estimate(long, runs.queries))
    seeds = "1 seed" if len(long) == 1 else f"{len(long)} seeds"
    return [
        pages.paragraph(
            f"The uniform learner ends at an MRR of {target} after "
            f"{long[0]['steps']:,} steps of {long[0]['batch_size']} ({seeds}). "
            "How many times as much it spent on that as another method until "
            "the same score: mean over seeds, with the lowest and the highest "
            "where there are several. Seconds are compared on one processor "
            "only. The last column charges a run with its reference, all of "
            "it: training, and a pass over the pool for the sidecars. "
            f"{_flatness(runs)}"
        ),
        pages.table(("method", "MRR at its end, steps", *costs), rows),
    ]


def _targets(runs, cells):
    """Ratios of the uniform run's costs to the others', cell by cell."""
    if "uniform" not in runs:
        return []
    rows = []
    for cell in cells:
        if cell.name == "uniform" or cell.recipe == "reference":
            continue
        columns = [
            claims.ratios(found) if found else ""
            for found in (
                runs.to_target((cell.name,), lambda run, steps: steps),
                runs.to_target((cell.name,), bootstrap.passes),
                runs.to_target((cell.name,), bootstrap.flops),
                *(
                    runs.to_target(
                        (cell.name,), lambda run, steps: steps, (split,)
                    )
                    for split in bootstrap.SPLITS
                ),
            )
        ]
        if any(columns):
            rows.append((cell.name, cell.about, *columns))
    header = (
        *("cell", "what", "steps", "forward passes", "FLOPs"),
        *(f"steps, {split} alone" for split in bootstrap.SPLITS),
    )
    return [
        pages.paragraph("The same for every cell:"),
        pages.table(header, rows),
    ]


def _flatness(runs):
    """How far the long uniform run still rose at its end."""
    rises = []
    for run in runs.of("uniform"):
        _, values = bootstrap.curve(run)
        before = values[int(0.8 * len(values)) - 1]
        rises.append(100 * (values[-1] - before))
    shown = ", ".join(f"{rise:+.1f}" for rise in rises)
    return (
        "In the last fifth of its steps the long uniform run still gained "
        f"{shown} points (one number a seed)."
    )


def _scores(runs, cells):
    rows = []
    as_long = {
        runs.of(cell.name)[0]["steps"]: cell.name
        for cell in cells
        if cell.name in _UNIFORM
    }
    for cell in cells:
        found = runs.of(cell.name)
        main_score = bootstrap.estimate(found, runs.queries)
        against = as_long.get(found[0]["steps"], cell.name)
        gain = (
            None
            if cell.name == against
            else runs.difference(cell.name, against)
        )
        by_split = [
            bootstrap.estimate(found, runs.queries, (split,))
            for split in bootstrap.SPLITS
        ]
        rows.append(
            (
                cell.name,
                cell.about,
                str(len(found)),
                f"{found[0]['steps']:,}",
                *(claims.interval(one) for one in (main_score, *by_split)),
                claims.points(gain) if gain else "",
            )
        )
    header = (
        *("cell", "what", "seeds", "steps", "MRR"),
        *bootstrap.SPLITS,
        "less a uniform run as long",
    )
    details = [
        (
            cell.name,
            *(
                f"{100 * _mean(runs.of(cell.name), split, measure):.1f}"
                for split in bootstrap.SPLITS
                for measure in (*_COLUMNS, "zs_1", "zs_5")
            ),
        )
        for cell in cells
    ]
    names = ("i→t MRR", "t→i MRR", "i→t R@1", "R@5", "t→i R@1", "R@5 ")
    columns = [
        f"{split}: {one}" if not place else one
        for split in bootstrap.SPLITS
        for place, one in enumerate((*names, "zero-shot 1", "5"))
    ]
    return [
        pages.table(header, rows),
        pages.paragraph("Each measure by itself, percent, mean over seeds:"),
        pages.table(("cell", *columns), details),
    ]


_SUBSETS = {
    "named": "an icon of the very name",
    "icons_only": "words that icons have and emoji art lacks",
    "rest": "neither",
}


def _subsets(runs, cells):
    """The measure on parts of the held-out concepts, for cells of seeds."""
    split = bootstrap.SPLITS[0]
    cells = [cell for cell in cells if len(cell.seeds) > 1] or cells
    first = runs.of(cells[0].name)[0]
    header = ["cell", "what"]
    for subset, about in _SUBSETS.items():
        size = bootstrap.members(first, runs.queries, split, subset).sum()
        header.append(f"{about}: {size:.0f}")
    rows = [
        (
            cell.name,
            cell.about,
            *(
                claims.interval(
                    bootstrap.estimate(
                        runs.of(cell.name),
                        runs.queries,
                        (split,),
                        subset=subset,
                    )
                )
                for subset in _SUBSETS
            ),
        )
        for cell in cells
    ]
    return [
        pages.paragraph(
            "Emoji art of held-out concepts is in no training data, but the "
            "pool's icons are free to show and name the same things. The main "
            f"measure on `{split}` for queries of each part of its concepts, "
            "ranked among all; a concept may be in the first two."
        ),
        pages.table(header, rows),
    ]


def _look_alikes(runs, cells):
    rows = []
    for cell in cells:
        found = [run.get("look_alikes") for run in runs.of(cell.name)]
        found = [one for one in found if one]
        if found:
            shares = (
                f"{100 * sum(one[kind] for one in found) / len(found):.1f}"
                for kind in ("drawn", "uniform")
            )
            rows.append((cell.name, cell.about, *shares))
    return [
        pages.paragraph(
            "Percent of the pictures of a sub-batch that have a look-alike in "
            "it, one whose embedding by the reference has a cosine above "
            f"{results.LOOK_ALIKE}, and of as many drawn uniformly. For the "
            "contrastive loss they are negatives of each other, unless their "
            "captions are equal. Means over draws spread over a run, where the "
            "run's result has them."
        ),
        pages.table(("cell", "what", "drawn", "uniform"), rows),
    ]


def _pictures(runs, cells, out, name):
    blocks = []
    names = [cell.name for cell in cells if cell.recipe != "reference"]
    main_names = [one for one in _MAIN_CURVES if one in names] or names[:6]
    for file, draw, alt in (
        (
            f"{name}frontier.png",
            figures.frontier,
            _FRONTIER,
        ),
        (f"{name}kinds.png", figures.kinds, "What was chosen, by kind"),
    ):
        if draw(runs, main_names, out / file):
            blocks.append(pages.image(file, alt))
    gallery = f"{name}gallery.png"
    if (out / gallery).exists():
        blocks.append(pages.image(gallery, "Chosen most often, and offered"))
    return blocks


def _costs(runs, cells):
    rows = []
    for cell in cells:
        for run in runs.of(cell.name):
            counts = [
                f"{run['costs'][f'examples/{what}']:,}"
                for what in ("drawn", "scored", "trained")
            ]
            rows.append(
                (
                    f"{cell.name}-{run['seed']}",
                    *counts,
                    f"{bootstrap.passes(run, run['steps']):,.0f}",
                    _flops(run),
                    f"{run['seconds']:,.0f}",
                    _processor(run),
                )
            )
    header = (
        *("run", "drawn", "scored", "trained", "forward passes", "FLOPs"),
        *("seconds", "processor seconds"),
    )
    return [pages.table(header, rows)]


def _processor(run):
    seconds = run["processor_seconds"]
    return "" if seconds is None else f"{seconds:,.0f}"


def _flops(run):
    total = bootstrap.flops(run, run["steps"])
    return claims.NOT_RUN if total is None else f"{total:.3g}"


def _mean(found, split, measure):
    values = [run["curve"][f"{split}/{measure}"][-1] for run in found]
    return sum(values) / len(values)


def _provenance(runs):
    machines, versions = set(), set()
    for cell in runs.cells:
        for run in runs.of(cell):
            machines.add(run["machine"])
            listed = run["versions"].items()
            versions.add(", ".join(f"{k} {v}" for k, v in listed if v))
    return f"Machines: {'; '.join(sorted(machines))}. Versions: " + "; ".join(
        sorted(versions)
    )


if __name__ == "__main__":
    main()

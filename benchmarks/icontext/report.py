"""The benchmark's report, from compact results alone.

    python -m benchmarks.icontext.report
    python -m benchmarks.icontext.report --matrix quick \
        --results icontext-work/results

    python -m benchmarks.icontext.report --summary README.md \
        --methods docs/recipes.md

Writes report.md, its pictures and report.html, one file that needs no other,
into the results' folder. No run and no data are needed. Galleries, which need
both, are made by `python -m benchmarks.icontext.gallery` and taken up if there.
"""

import argparse
import os
import pathlib
import re

from benchmarks import report as benchmark_report
from benchmarks.icontext import (
    bootstrap,
    claims,
    diagnosis,
    figures,
    matrix,
    pages,
    results,
    scoring,
    targets,
)
from benchmarks.icontext import run as run_lib

_COMMAND = (
    "python -m benchmarks.icontext.report --summary README.md "
    "--methods docs/recipes.md"
)
_OTHERS = (
    "These are not the results that the package keeps, of which the sentences "
    "below that say what was found, and why, were written: hold them against "
    "the numbers here."
)
_FRONTIER = "The measure against examples, FLOPs and seconds"

PROTOCOL = (
    "All learners are the same: a convolutional net of seven layers on 32 x 32 "
    "pixels and a bag of tokens with an MLP (towers.py), trained with the "
    "softmax loss, b = 256, unless a row says otherwise. Cells of one seed "
    "start from the same weights and are offered the same stream of the pool; "
    "each has a full schedule, warm-up and cosine to zero, for its own length.",
    "Settings were chosen on `val_concept`, concepts that are in no other "
    "split, but for how the best distils. Its weight and rate were chosen on "
    "the curated set as well, known concepts in two styles that no learner is "
    "trained on but that of the cell mixed_3000, a reference for longer: there "
    "8e-3 is the best rate, on `val_concept` 2e-3 is no worse, and stands "
    "beside it (the cell best_2e-3); 8e-3 is the highest that was tried. For "
    "uniform training it is 4e-3, in runs of 1,500 steps; no longer one was "
    "tuned. Before that, runs of JEST and of cascades had been seen on the "
    "test splits, and the best with weight 1 (the cell best_weight_1); and the "
    "runs of 1,500 steps before one was made for 3,000 (the cell "
    "best_3000_half). `test_concept` "
    "(held-out concepts in nine styles) and `test_style` (known concepts in a "
    "style that no training data have) are what the tables show.",
    "What the protocol was to be was written down before the first run, in the "
    "first version of benchmarks/icontext/report.py: with a ViT and the "
    "sigmoid loss, and all settings chosen on `val_concept` alone. Tower and "
    "loss were changed for ones with which the uniform learner learns sooner. "
    "How a target is read off the curves, that a longer uniform run counts "
    "where it is there sooner, and the interval of a difference of few seeds, "
    "were changed after first results had been seen.",
    "The main measure is the mean reciprocal rank, the mean over both test "
    "splits and both directions, times 100; R@1, R@5 and zero-shot accuracy "
    "with three prompts stand beside it. A query is answered at the rank of "
    "its first match; pictures of one concept match all its texts.",
    "Intervals are 95 %, of 2,000 resamples of concepts, and of seeds where "
    "there are several; differences are paired by concept and seed. A score of "
    "one seed leaves the spread between runs out of its interval; a difference "
    "of fewer than three has it added, as the standard deviation between the "
    "seeds of a cell, relative to its score, in the cells that have three, "
    "without what a seed does to all of them alike.",
    "The target is the score of the long uniform run at its end, each seed's "
    "own. When it and another run first have it is read off their curves, "
    "straight lines between two evaluations; of the lengths of a method, and "
    "of uniform training, the one counts that spends least. Where a resample "
    "of concepts moves the end of a run against the uniform run's, its curve "
    "is moved as much. Examples drawn, scored and trained are counted apart; "
    "a forward pass of one example is the unit of compute (three to train on "
    "it, one to score it), since the reference's embeddings are cached; a "
    "coarse view counts as a whole one there. FLOPs are those of the traced "
    "step, all of it, and of a cascade's stage 0. Seconds are the "
    "processor's, of a process on one core, evaluations included: what the "
    "clock says depends on what else the machine does, and so do these, if "
    "less.",
    "All references have one seed, so intervals say nothing of others. It is "
    "seed 0: a learner of seed 0 begins with the weights that its reference "
    "began with (by the wide one, with those of its texts' tower), which makes "
    "distillation easier there; so rows of distilled learners with seed 0 "
    "alone are the better for it. Three seeds say little of their spread: "
    "intervals are narrow rather than wide.",
)

_INTERVAL = re.compile(r"\[(?:[-+]?[0-9.]+|missed), ")
_COLUMNS = ("i2t_mrr", "t2i_mrr", "i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5")
# The long uniform cell of each matrix that has a report of its own. What was
# tuned is in the standard one.
_UNIFORM_CELLS = {"standard": "uniform", "quick": "quick_uniform"}
# What runs are held against that are as long, and like them but for what they
# choose: see `_likeness`.
_UNIFORM = (
    *("uniform", "uniform_1500", "uniform_750", "uniform_400", "best_neither"),
    *("uniform_b128", "uniform_b512", "sigmoid_uniform", "uniform_chosen"),
    *("uniform_2000", "uniform_crops"),
    *(f"uniform_400_noise{share}" for share in (25, 50, 75)),
)
_MAIN_CURVES = (
    *("uniform", "jest_5000", "flexi_2500", "cascade_1500", "stage_0_1500"),
    *("reference_curated", "best_by_filtered", "best_by_wide"),
    *("best_3000_half", "mixed_3000", "uniform_10000"),
)
_KINDS_CURVES = (
    *("uniform", "jest_750", "jest_2500", "independent", "easy", "flexi"),
    *("cascade_1500", "stage_0_1500", "best", "best_by_filtered"),
)


def main(arguments=None):
    """Parse the flags and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--results", default=str(results.FOLDER))
    parser.add_argument("--out", help="folder to write to; the results'")
    parser.add_argument(
        "--matrix", default="standard", choices=sorted(_UNIFORM_CELLS)
    )
    for flag, what in (
        ("--summary", "main methods and the paper's claims"),
        ("--methods", "all methods"),
    ):
        parser.add_argument(
            flag,
            type=pathlib.Path,
            metavar="PAGE",
            help=f"Markdown file to put {what} into",
        )
    options = parser.parse_args(arguments)
    folder = pathlib.Path(options.results)
    current = {
        run_lib.digest(cell, seed)
        for cell in matrix.reported(options.matrix)
        for seed in cell.seeds
    }
    # Rows of settings that a cell had before are left out.
    rows = [
        row
        for one in matrix.REPORTS[options.matrix]
        for row in results.read(folder / f"{one}.jsonl")
        if row["digest"] in current
    ]
    if not rows:
        raise SystemExit(f"error: no results of {options.matrix!r} in {folder}")
    queries = {
        row["key"]: row for row in results.read(folder / results.QUERIES_FILE)
    }
    out = pathlib.Path(options.out or folder)
    out.mkdir(parents=True, exist_ok=True)
    runs = claims.Runs(rows, queries, _UNIFORM_CELLS[options.matrix])
    name = f"{options.matrix}_" if options.matrix != "standard" else ""
    write(runs, matrix.reported(options.matrix), folder, out, name=name)
    if options.summary:
        picture = out / f"{name}summary.png"
        curves = {}
        if runs.uniform in runs:
            curves = targets.main_curves(runs)
            figures.frontier(runs, curves, picture, (bootstrap.SPLITS,))
        blocks = targets.summary(runs)
        _write_page(options.summary, blocks, picture, runs, curves)
    if options.methods:
        picture = out / f"{name}frontier.png"
        blocks = targets.methods(runs)
        drawn = _to_draw(runs, _MAIN_CURVES, runs.cells)
        if runs.uniform not in runs:
            drawn = []
        curves = dict(zip(drawn, drawn, strict=True))
        _write_page(options.methods, blocks, picture, runs, curves)


def _write_page(page, blocks, picture, runs, curves):
    if curves and picture.exists():
        picture = os.path.relpath(picture, page.resolve().parent)
        blocks = [
            *blocks,
            pages.image(picture, _FRONTIER),
            pages.paragraph(_caption(runs, curves)),
        ]
    blocks = [*blocks, pages.paragraph(_provenance(runs))]
    benchmark_report.write_block(
        page, "icontext", pages.markdown(blocks), _COMMAND
    )


def write(runs, cells, folder, out, name=""):
    """Write the report of runs and its pictures.

    Args:
        runs: `claims.Runs`.
        cells: `matrix.Cell`s of the report.
        folder: of the results.
        out: folder to write to.
        name: what the names of the files start with.
    """
    there = [cell for cell in cells if cell.name in runs]
    blocks = [
        pages.heading("IconText: the paper's claims on real pairs"),
        pages.heading("Protocol", 2),
        *map(pages.paragraph, PROTOCOL),
        *(
            []
            if folder.samefile(results.FOLDER)
            else [pages.paragraph(_OTHERS)]
        ),
    ]
    rest = [
        pages.heading("To the uniform learner's end", 2),
        *targets.methods(runs),
        *targets.longer(runs),
        *targets.cells(runs, there),
        pages.heading("One thing at a time", 2),
        *diagnosis.blocks(runs, out, name),
        *(scoring.blocks(folder) if not name else ()),
        *(diagnosis.tried(folder) if not name else ()),
        pages.heading("At the end of each run", 2),
        *_scores(runs, there),
        pages.heading("What icons teach of held-out concepts", 2),
        *diagnosis.by_icons(runs, there),
        pages.heading("Look-alikes in a draw", 2),
        *_look_alikes(runs, there),
        pages.heading("What was chosen", 2),
        *_kinds(runs, there),
        pages.heading("Curves", 2),
        *_pictures(runs, there, folder, out, name),
        pages.heading("Machines", 2),
        *_machines(runs, there),
        pages.heading("Costs", 2),
        *_costs(runs, there),
        pages.paragraph(_provenance(runs)),
    ]
    count = len(_INTERVAL.findall(pages.markdown(rest)))
    blocks += [*_claims(runs, count), *rest]
    missing = [
        f"{cell.name}-{seed}"
        for cell in cells
        for seed in cell.seeds
        if seed not in runs.seeds(cell.name)
    ]
    if missing:
        blocks.append(pages.paragraph(f"Not run yet: {', '.join(missing)}."))
    pages.write_markdown(blocks, out / f"{name}report.md")
    pages.write_html(blocks, out, out / f"{name}report.html")


def _pairs(runs, cell, other):
    """How many seeds a difference is of, unless it is all of both."""
    is_all = runs.seeds(cell) == runs.seeds(other)
    return "" if is_all else f" (seeds of both: {runs.shared(cell, other)})"


def _claims(runs, others):
    """The table of claims; `others` are the intervals that are not in it."""
    if runs.uniform != "uniform":
        return []
    return [
        pages.heading("Claims", 2),
        pages.paragraph(
            "Ours are differences of the main measure in points, or ratios to "
            "the uniform learner's end, with 95 % intervals. The verdict is "
            "that of both test splits together: a difference is undecided if "
            "its interval has zero in it, a ratio if its has one or it is of "
            'fewer than three seeds; "no worse" allows a margin of one point, '
            'and is denied by an interval below zero. "Holds" is said of the '
            "direction, not of the paper's number. Of claims without truth one "
            "in forty would hold by chance; there are "
            f"{len(claims.CLAIMS)}, and {others:,} intervals elsewhere, which "
            "explore more than they test."
        ),
        pages.table(
            (
                *("claim", "paper", "ours", *bootstrap.SPLITS),
                *("seeds", "verdict", "why"),
            ),
            claims.table(runs),
        ),
    ]


def _scores(runs, cells):
    rows = []
    as_long = {
        _likeness(runs, cell): cell.name
        for cell in cells
        if cell.name in _UNIFORM
    }
    for cell in cells:
        found = runs.of(cell.name)
        main_score = bootstrap.estimate(found, runs.queries)
        against = as_long.get(_likeness(runs, cell), cell.name)
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
                claims.points(gain) + _pairs(runs, cell.name, against)
                if gain
                else "",
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


def _likeness(runs, cell):
    """What two runs must share to be held against each other."""
    run = runs.of(cell.name)[0]
    settings = "model.loss", "data.flip", "data.min_crop_area"
    alike = tuple(run["differs"].get(name) for name in settings)
    return run["steps"], run["batch_size"], alike, cell.sources


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
            "it, one whose embedding by its own reference has a cosine above "
            f"{results.LOOK_ALIKE}, and of as many drawn uniformly. For the "
            "contrastive loss they are negatives of each other, unless their "
            "captions are equal. A reference that tells less apart has more of "
            "them: a row's two numbers are to be compared, rows of different "
            "references are not. Means over draws spread over a run, where the "
            "run's result has them."
        ),
        pages.table(("cell", "what", "drawn", "uniform"), rows),
    ]


def _kinds(runs, cells):
    """Shares of the kinds of picture at the start and at the end of runs."""
    found = {
        cell: [run["kinds"] for run in runs.of(cell.name) if run["kinds"]]
        for cell in cells
    }
    kinds = sorted(
        {
            kind
            for all_ in found.values()
            for one in all_
            for kind in one["pool"]
        }
    )
    rows = []
    for cell, drawn in found.items():
        if not drawn:
            continue
        columns = [
            f"{100 * drawn[0]['pool'].get(kind, 0):.1f}" for kind in kinds
        ]
        for kind in kinds:
            shares = [one["drawn"].get(kind, [0.0]) for one in drawn]
            columns += results.in_percent_at_both_ends(shares)
        rows.append((cell.name, cell.about, *columns))
    if not rows:
        return []
    header = (
        *("cell", "what", *(f"pool: {kind}" for kind in kinds)),
        *(f"{kind}, {part}" for kind in kinds for part in ("first", "last")),
    )
    return [
        pages.paragraph(
            "Percent of the examples trained on that are of each kind, in the "
            "first and in the last fifth of a run, beside the pool's share; "
            "means over seeds. A choice of a share 1 - f of a super-batch can "
            "have 1 / (1 - f) times what the pool has of a kind: of emoji art "
            "a tenth at f = 0.8."
        ),
        pages.table(header, rows),
    ]


def _pictures(runs, cells, folder, out, name):
    blocks = []
    names = [cell.name for cell in cells]
    drawn = _to_draw(runs, _MAIN_CURVES, names)
    abouts = {cell: f"{cell}: {matrix.find(cell).about}" for cell in drawn}
    file = f"{name}frontier.png"
    rows = (bootstrap.SPLITS, *((split,) for split in bootstrap.SPLITS))
    if figures.frontier(runs, abouts, out / file, rows):
        blocks += [
            pages.image(file, _FRONTIER),
            pages.paragraph(
                _caption(runs, dict(zip(drawn, drawn, strict=True)))
            ),
        ]
    file = f"{name}kinds.png"
    drawn = _to_draw(runs, _KINDS_CURVES, names)
    if figures.kinds(runs, drawn, out / file):
        blocks += [
            pages.image(file, "What was chosen, by kind"),
            pages.paragraph(
                "Means of a cell's seeds; dotted is the pool's share. Of a "
                "choice of one in five a kind can be five times that."
            ),
        ]
    for cell in cells:
        for run in runs.of(cell.name):
            label = f"{cell.name}-{run['seed']}"
            gallery = folder / f"gallery_{label}.png"
            if gallery.exists():
                blocks.append(
                    pages.image(
                        os.path.relpath(gallery, out),
                        f"{label}: chosen most often, and offered",
                    )
                )
    return blocks


def _to_draw(runs, wanted, names):
    """The wanted of the cells that are there, or any; the uniform one first."""
    found = [one for one in wanted if one in names] or names
    return sorted(found, key=lambda one: one != runs.uniform)[:10]


def _caption(runs, labels):
    """What is drawn, by cell and label; what the seconds lack, and why."""
    first = runs.of(next(iter(labels)))[0]
    others = [
        label
        for cell, label in labels.items()
        if not any(
            bootstrap.comparable(bootstrap.seconds, run, first)
            and bootstrap.seconds(run, run["steps"]) is not None
            for run in runs.of(cell)
        )
    ]
    return (
        "A line is the mean of a cell's seeds, its band reaches from the least "
        "to the most of them, and dotted is the uniform learner's end."
    ) + (
        " The seconds lack what was timed on another processor, or not to its "
        f"end: {'; '.join(others)}."
        if others
        else ""
    )


def _machines(runs, cells):
    """What ran on which, and what another does to a run of equal settings."""
    by_machine = {}
    for cell in cells:
        for run in runs.of(cell.name):
            by_machine.setdefault(run["machine"], []).append(
                f"{cell.name}-{run['seed']}"
            )
    # The list of the machine that most ran on is what the others' leave.
    most = len(by_machine) > 1 and max(map(len, by_machine.values()))
    blocks = [
        pages.paragraph(
            "Processors add in another order, and the same settings and seed "
            "come to the same bits on one alone. A reference is trained again "
            "where its run is no more, and scores for what is run there."
        ),
        pages.table(
            ("machine", "runs", "of them"),
            [
                (
                    machine,
                    str(len(names)),
                    "the others" if len(names) == most else ", ".join(names),
                )
                for machine, names in by_machine.items()
            ],
        ),
    ]
    rows = [
        (
            f"{first['cell']}-{first['seed']}",
            *(
                value
                for run in (first, again)
                for value in (
                    run["machine"],
                    claims.interval(bootstrap.estimate([run], runs.queries)),
                )
            ),
            claims.points(bootstrap.difference([again], [first], runs.queries)),
        )
        for first, again in runs.again
    ]
    if not rows:
        return blocks
    header = "run", "on", "MRR", "again on", "MRR ", "again less first"
    return [
        *blocks,
        pages.paragraph(
            "Run again with equal settings: what a difference of one seed may "
            "owe to the machine, and to the instance of its reference. The "
            "first counts everywhere else."
        ),
        pages.table(header, rows),
    ]


def _costs(runs, cells):
    rows = []
    for cell in cells:
        for run in runs.of(cell.name):
            counts = [
                f"{run['costs'].get(f'examples/{what}', 0):,}"
                for what in ("cascaded", "drawn", "scored", "trained")
            ]
            rows.append(
                (
                    f"{cell.name}-{run['seed']}",
                    *counts,
                    f"{bootstrap.passes(run, run['steps']):,.0f}",
                    _flops(run),
                    f"{run['seconds']:,.0f}",
                    _processor(run),
                    _waits(run),
                )
            )
    header = (
        *("run", "offered to stage 0", "drawn", "scored", "trained"),
        *("forward passes", "FLOPs"),
        *("seconds", "processor seconds", "waits for input, %"),
    )
    return [
        *(
            pages.paragraph(_hours(runs, one))
            for one in _matrices(runs)
            if any(cell.name in runs for cell in matrix.MATRICES[one])
        ),
        pages.table(header, rows),
    ]


def _matrices(runs):
    (found,) = (
        matrix.REPORTS[name]
        for name, cell in _UNIFORM_CELLS.items()
        if cell == runs.uniform
    )
    return found


def _hours(runs, name):
    """How long a matrix takes, as far as it is known."""
    before = [
        cell
        for one in _matrices(runs)[: _matrices(runs).index(name)]
        for cell in matrix.MATRICES[one]
    ]
    cells = [cell for cell in matrix.MATRICES[name] if cell not in before]
    spent = [
        run["processor_seconds"]
        for cell in cells
        for run in runs.of(cell.name)
        if run["processor_seconds"] and run["seed"] in cell.seeds
    ]
    planned = sum(len(cell.seeds) for cell in cells)
    hours = sum(spent) / 3600
    return (
        f"The matrix `{name}`: {len(spent)} of {planned} runs have their "
        f"processor time, {hours:.1f} hours together, {hours / 2:.1f} on two "
        "cores, evaluations included, sidecars and pools not."
    )


def _waits(run):
    share = run.get("input_wait_share")
    return "" if share is None else f"{100 * share:.1f}"


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

"""What each choice is worth, one thing at a time: tables of the report.

What is asked, and what was found, is in questions.py.
"""

import itertools

from benchmarks.icontext import (
    bootstrap,
    claims,
    figures,
    matrix,
    pages,
    questions,
    results,
)

# What each reference scored for: stage 0 alone, and the best.
_SCORED = ("stage_0_k25", "best")
_BY = ("stage_0_by", "best_by")


def blocks(runs, out, name=""):
    """The section's blocks, of what has been run.

    Args:
        runs: `claims.Runs`.
        out: folder of the picture.
        name: what the name of its file starts with.
    """
    found = [
        block for one in questions.QUESTIONS for block in _question(runs, one)
    ]
    found += _references(runs)
    found += _noise(runs)
    found += _over_time(runs)
    found += _on_the_curve(runs)
    if not found:
        return [pages.paragraph(f"Sweeps: {claims.NOT_RUN}.")]
    picture = f"{name}sweeps.png"
    if figures.sweeps(runs, questions.PANELS, out / picture):
        found.insert(0, pages.image(picture, "The sweeps, seed 0"))
    return [
        *_found(runs, "all"),
        pages.paragraph(
            "One thing is changed at a time, but where a cell says more of "
            "itself, as a rate of its own. Differences are of the seeds that "
            "both sides have, the one of a reference beside each, with an "
            "interval as in the protocol. "
            "Cost is that of a step in forward passes, scoring included, over "
            "those of a uniform step of its batch size; seconds are the "
            "processor's of a step, evaluations included, the mean over seeds, "
            "and depend on the machine and on what else it did."
        ),
        *found,
    ]


def _question(runs, question):
    rows = []
    for cell, base in question.pairs:
        if cell not in runs:
            continue
        found = runs.of(cell)
        gain = runs.difference(cell, base)
        rows.append(
            (
                cell,
                matrix.find(cell).about,
                f"{found[0]['steps']:,}",
                *_score_columns(runs, found),
                f"{_cost(found[0]):.2f}",
                _seconds(found),
                base,
                claims.points(gain) if gain else claims.NOT_RUN,
                str(runs.shared(cell, base)),
            )
        )
    if not rows:
        return []
    header = (
        *("cell", "what", "steps", "MRR", *bootstrap.SPLITS, "cost"),
        *("seconds", "against", "difference", "seeds"),
    )
    return [
        pages.heading(question.text, 3),
        *_found(runs, question.name),
        pages.table(header, rows),
    ]


def _references(runs):
    rows = []
    for cell in matrix.REFERENCES:
        if cell.name not in runs:
            continue
        _, _, name = cell.name.partition("_")
        names = [f"{by}_{name}" for by in _BY] if name else _SCORED
        rows.append(
            (
                cell.name,
                cell.about,
                _validation(runs.of(cell.name)),
                _score(runs, runs.of(cell.name)),
                *(_score(runs, _first(runs, one)) for one in names),
                _validation(_first(runs, names[-1])),
                _ratio(runs, names[-1], "uniform"),
            )
        )
    if not rows:
        return []
    return [
        pages.heading("Curation levels and sizes of the reference", 3),
        pages.paragraph(
            "MRR of a reference, and of the learners of seed 0 that it scored "
            "for: stage 0 alone for 400 steps, the best for 380, this on "
            "`val_concept` as well; last how many times fewer examples it took "
            "to the uniform learner's end."
        ),
        *_found(runs, "reference"),
        pages.table(
            (
                *("reference", "trained on", "itself, val_concept", "itself"),
                *("stage 0 alone", "the best", "the best, val_concept"),
                "examples",
            ),
            rows,
        ),
    ]


def _noise(runs):
    rows = []
    for share, cells in questions.LEVELS.items():
        uniform, reference, jest, best = cells
        if uniform in runs:
            rows.append(
                (
                    f"{share} %",
                    *(_score(runs, _first(runs, one)) for one in cells),
                    *(
                        _ratio(runs, cell, uniform, spent)
                        if _above_chance(runs, uniform)
                        else ""
                        for cell in (jest, best)
                        for spent in (bootstrap.examples, bootstrap.flops)
                    ),
                )
            )
    if not rows:
        return []
    return [
        pages.heading("Caption noise", 3),
        pages.paragraph(
            "So many of the pool's captions are moved to other pictures, and "
            "the reference is trained on the curated set and that pool. MRR of "
            "the uniform learner after 1,500 steps, of the reference, of JEST "
            "after 400 and of the best after 380; then how many times fewer "
            "examples or FLOPs than 1,500 uniform steps they took to where "
            "those end, the reference not counted, if that is more than twice "
            "chance."
        ),
        *_found(runs, "noise"),
        pages.table(
            (
                *("noise", "uniform", "reference", "JEST", "the best"),
                *("JEST: examples", "FLOPs", "the best: examples", "FLOPs"),
            ),
            rows,
        ),
        *_moved(runs),
    ]


def _moved(runs):
    """What share of the chosen has the caption of another picture."""
    rows = []
    for cell in runs.cells:
        kinds = [run["kinds"] for run in runs.of(cell)]
        kinds = [one["moved"] for one in kinds if "moved" in one]
        if kinds:
            rows.append(
                (
                    cell,
                    matrix.find(cell).about,
                    str(len(kinds)),
                    *results.in_percent_at_both_ends(kinds),
                )
            )
    if not rows:
        return []
    header = "cell", "what", "seeds", "first fifth, %", "last fifth, %"
    return [
        pages.paragraph(
            "Of what they were trained on, so much had the caption of another "
            "picture; a blind choice has the share that was moved:"
        ),
        *_found(runs, "moved"),
        pages.table(header, rows),
    ]


def _above_chance(runs, cell):
    """Whether a cell's end says something, more than twice that of chance."""
    (run,) = _first(runs, cell)
    end = bootstrap.estimate([run], runs.queries).value
    return end > 2 * bootstrap.chance(run, runs.queries)


# Runs that choose nothing, beside those that do.
_UNCHOSEN = ("uniform", "reference")
# What the learner says of its draws, and how it is shown.
_LOGGED = {
    "train/scale": ("scale of the logits", "{:.1f}"),
    "select/score": ("score of the chosen", "{:+.2f}"),
    "select/uniform_score": ("of all", "{:+.2f}"),
    "select/effective_filter_ratio": ("effective filter ratio", "{:.2f}"),
    "train/repeat_rate": ("repeats", "{:.2f}"),
}


def _over_time(runs):
    """What selections come to in the course of a run, of seed 0."""
    rows = []
    for cell in runs.cells:
        for run in _first(runs, cell):
            log = run["log"]
            if "select/score" not in log and cell not in _UNCHOSEN:
                continue
            rows.append(
                (
                    cell,
                    *(
                        " to ".join(
                            shown.format(log[name][place]) for place in (0, -1)
                        )
                        if None not in log.get(name, [None])
                        else ""
                        for name, (_, shown) in _LOGGED.items()
                    ),
                )
            )
    if not rows:
        return []
    return [
        pages.heading("Scores in the course of a run", 3),
        pages.paragraph(
            "Seed 0, the first and the last that is logged. The scale of the "
            "logits begins at 10. The effective filter ratio is of distinct "
            "examples: the pool is offered again and again, and what was not "
            "chosen comes back. Repeats are the share of a sub-batch that was "
            "trained on before."
        ),
        *_found(runs, "over_time"),
        pages.table(
            ("cell", *(name for name, _ in _LOGGED.values())),
            rows,
        ),
    ]


_SUBSETS = {
    "named": "an icon of the very name",
    "icons_only": "no icon of the name, but a word of it that icons have and "
    "emoji art has not",
    "rest": "neither of the two",
}


def by_icons(runs, cells):
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
        *_found(runs, "icons"),
        pages.table(header, rows),
        *_by_icons_beside(runs, header),
    ]


def _by_icons_beside(runs, header):
    """Differences on the same parts, of cells that have all seeds."""
    split = bootstrap.SPLITS[0]
    rows = []
    for cell, base in questions.BY_ICONS:
        if runs.shared(cell, base) < len(matrix.SEEDS):
            continue
        gains = [
            bootstrap.difference(
                runs.of(cell),
                runs.of(base),
                runs.queries,
                (split,),
                subset=subset,
            )
            for subset in _SUBSETS
        ]
        rows.append((cell, base, *map(claims.points, gains)))
    if not rows:
        return []
    return [
        pages.paragraph("The same, as differences of three seeds:"),
        pages.table(("cell", "against", *header[2:]), rows),
    ]


def _on_the_curve(runs):
    """Where the ends of shorter runs lie on the long uniform run's curve."""
    rows = []
    shorter = "uniform_750", "uniform_1500", "uniform_2000", "uniform_3067"
    base = claims.LONGER if claims.LONGER in runs else runs.uniform
    for cell in (*shorter, "uniform", *claims.JEST_LENGTHS):
        for run in runs.of(cell) if cell != base else ():
            longs = [one for one in runs.of(base) if one["seed"] == run["seed"]]
            for long, splits in itertools.product(
                longs, (bootstrap.SPLITS, *zip(bootstrap.SPLITS))
            ):
                score = bootstrap.curve(run, splits)[1][-1]
                steps = float(bootstrap.steps_to(long, score, splits))
                passes = steps and bootstrap.passes(long, steps)
                reached = steps < long["steps"]
                rows.append(
                    (
                        f"{cell}-{run['seed']}",
                        " and ".join(splits),
                        f"{100 * score:.1f}",
                        f"{steps:,.0f}" if reached else "not in its steps",
                        f"{steps / run['steps']:.1f}x" if reached else "",
                        f"{passes / bootstrap.passes(run, run['steps']):.1f}x"
                        if reached
                        else "",
                    )
                )
    if not rows:
        return []
    return [
        pages.heading("Ends on the longest uniform learner's curve", 3),
        pages.paragraph(
            f"After how many of its steps the run {base} of the same seed "
            "first has what a shorter run has at its end. Its rate is still "
            "high there, where the other's has come to zero. That is for the "
            "better here: shorter uniform runs end at what it has "
            "sooner, the cells below 1.0x. So a short schedule costs steps, "
            "and what is compared over schedules of different lengths favours "
            "the longer."
        ),
        pages.table(
            (
                *("run", "splits", "MRR at its end", "uniform steps to it"),
                *("fewer iterations", "fewer forward passes"),
            ),
            rows,
        ),
    ]


def _found(runs, name):
    cells, text = questions.FOUND.get(name, ((), ""))
    is_there = cells and all(cell in runs for cell in cells)
    return [pages.paragraph(text)] if is_there else []


def _first(runs, cell):
    """Seed 0 of a cell, as a list, for the others may be missing elsewhere."""
    return [run for run in runs.of(cell) if run["seed"] == 0]


def _score(runs, found, splits=bootstrap.SPLITS):
    if not found:
        return ""
    return claims.interval(bootstrap.estimate(found, runs.queries, splits))


def _validation(found):
    return _score_at_end(found[0], "val_concept") if found else ""


def _score_columns(runs, found):
    parts = (bootstrap.SPLITS, *((split,) for split in bootstrap.SPLITS))
    return [_score(runs, found, splits) for splits in parts]


def _cost(run):
    trained = 3 * run["costs"]["examples/trained"]
    return bootstrap.passes(run, run["steps"]) / trained


def _seconds(found):
    """Processor seconds of a step, of the seeds that have them."""
    known = [
        run["processor_seconds"] / run["steps"]
        for run in found
        if run["processor_seconds"]
    ]
    return f"{sum(known) / len(known):.2f}" if known else ""


def _ratio(runs, cell, base, spent=bootstrap.examples):
    if not _first(runs, cell):
        return ""
    found = runs.to_target((cell,), spent, base=base, seeds=(0,))
    return claims.ratio(found) if found else ""


# Cells of equal settings but for what they are evaluated on.
_SAME = {
    "tune_uniform_softmax": "uniform_1500",
    "tune_jest_2e-3": "jest_400",
}


def tried(folder):
    """What settings were chosen by, on validation: each thing and its score.

    Args:
        folder: of the results.
    """
    standard = claims.Runs(results.read(folder / "standard.jsonl"), {})
    found, apart, names = [], [], []
    for name, splits in matrix.TUNED_ON.items():
        runs = claims.Runs(results.read(folder / f"{name}.jsonl"), {})
        cells = [
            cell for cell in matrix.MATRICES[name] if cell.recipe != "reference"
        ]
        rows = [
            (
                cell.name,
                cell.about,
                f"{run['steps']:,}",
                *(_score_at_end(run, split) for split in splits),
            )
            for cell in cells
            for run in runs.of(cell.name)
        ]
        header = ("cell", "what", "steps", *(f"MRR, {one}" for one in splits))
        if rows:
            found.append(pages.table(header, rows))
        names += [row[0] for row in rows]
        apart += [
            f"{one} {_validation(runs.of(one))} and {other} "
            f"{_validation(standard.of(other))}"
            for one, other in _SAME.items()
            if one in runs and other in standard
        ]
        missing = [cell.name for cell in cells if cell.name not in runs]
        if rows and missing:
            text = f"Planned, and not run: {', '.join(missing)}."
            found.append(pages.paragraph(text))
    if not found:
        return []
    uniform, jest = (
        sum(name.startswith(f"tune_{kind}") for name in names)
        for kind in ("uniform", "jest")
    )
    text = (
        f"Settings were chosen by these, one seed each, both directions: "
        f"{uniform} runs of the uniform learner, {jest} of JEST, and "
        f"{len(names) - uniform - jest} on the way to the best. The split "
        "`reference` is the curated set, which the reference is trained on and "
        "learners are not. Distilling logits was tried before features, in a "
        "form that is no more in the code, and gave nothing: of that no run is "
        "kept."
    )
    if apart:
        text += (
            " Equal settings that were run twice have on `val_concept` "
            f"{'; '.join(apart)}: a difference like that is none."
        )
    return [
        pages.heading("What was tried on validation", 2),
        pages.paragraph(text),
        *found,
    ]


def _score_at_end(run, split):
    ends = [
        run["curve"][f"{split}/{one}"][-1] for one in bootstrap.MAIN_MEASURES
    ]
    return f"{100 * sum(ends) / len(ends):.1f}"

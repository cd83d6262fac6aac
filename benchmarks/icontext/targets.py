"""What methods take to the uniform learner's end: tables of the report."""

import numpy as np

from benchmarks.icontext import bootstrap, claims, matrix, pages

# Uniform training, each with a schedule of its own, about twice as long as the
# one before.
_LENGTHS = (
    *("uniform_400", "uniform_750", "uniform_1500", "uniform_3067"),
    *claims.UNIFORM,
)
_LONGEST = (
    "stage 0 alone for 3,000 steps, half of it uniform, distilled for the "
    "first quarter"
)
_MIXED = "uniform on curated and pool, half each (the reference)"
# Cells that are one method, at several lengths, by the long uniform cell that
# they are held against.
METHODS = {
    "uniform": {
        "JEST, f = 0.8": claims.JEST_LENGTHS,
        "Flexi-JEST": claims.FLEXI_LENGTHS,
        "cascade, K = 12.5, then f = 0.5": claims.CASCADES,
        "stage 0 alone, K = 25": claims.STAGE_0,
        _MIXED: ("reference", "mixed_3000"),
        "the reference of curated and the fifth of the pool that fits": (
            "reference_filtered",
        ),
        "the reference twice as wide": ("reference_wide",),
        "uniform on the curated set alone": ("reference_curated",),
        "distilled, without a choice": ("best_uniform",),
        "distilled for the first quarter of 3,000 steps, without a choice": (
            "best_3000_uniform",
        ),
        "stage 0 alone, distilled": claims.BEST_PLAIN,
        "stage 0 alone, distilled, the reference twice as wide": (
            "best_by_wide",
        ),
        "stage 0 alone, distilled, the reference of curated and the fifth of "
        "the pool that fits": ("best_by_filtered",),
        "stage 0 alone, distilled, the reference of the curated set alone": (
            "best_by_curated",
        ),
        "stage 0 alone for 1,500 steps, distilled for the first half": (
            "best_1500_fade",
        ),
        "stage 0 alone for 1,500 steps, half of it uniform, distilled for the "
        "first half": ("best_1500_half",),
        "stage 0 alone for 3,000 steps, distilled for the first quarter": (
            "best_3000_fade",
        ),
        _LONGEST: ("best_3000_half",),
    },
    "quick_uniform": {
        "JEST, f = 0.8": ("quick_jest",),
        "cascade, K = 12.5, then f = 0.5": ("quick_cascade",),
    },
}
# Of them, what a summary has, and the best by validation with it.
_MAIN = (
    *("JEST, f = 0.8", "Flexi-JEST", "stage 0 alone, K = 25"),
    *("uniform on the curated set alone", _MIXED, _LONGEST),
)

# What keeps the best from more, as found.
LIMITS = (
    "What limits it: in 380 steps the learner comes near its reference and not "
    "past it, so that the target is reached because the reference is above it. "
    "It gains on `test_style`, whose concepts the curated set has in another "
    "style, and loses on held-out concepts, which take longer: with a "
    "distillation that fades, and half of stage 0 uniform, it comes further, "
    "the last rows below."
)


def methods(runs):
    """The statement and the table of all methods."""
    if runs.uniform not in runs:
        return [pages.paragraph(f"The long uniform run: {claims.NOT_RUN}.")]
    costs = _costs(runs)
    rows = [
        (about, _ends(runs, cells), *columns)
        for about, cells, columns in _ratios(runs, costs)
    ]
    long = runs.of(runs.uniform)
    splits = " and ".join(f"`{split}`" for split in bootstrap.SPLITS)
    return [
        *_statement(runs),
        pages.paragraph(
            f"The uniform learner: {_end(runs, runs.uniform)}, b = "
            f"{long[0]['batch_size']}. MRR is the mean reciprocal rank times "
            f"100, of both directions on {splits}; by chance it is "
            f"{100 * bootstrap.chance(long[0], runs.queries):.1f}. Each ratio "
            "is what uniform training spends until it first has the score at "
            "which this run of it ends, by this run or by a longer one, "
            "whichever is there sooner, over what the method spends until it "
            "first has the same, all seeds together; brackets are 95 % "
            "intervals over concepts, and over "
            'seeds where there are several, "missed" where the method stays '
            "below the target at that end. An empty cell was not counted or is "
            "of another processor; seconds have no interval, as equal runs on "
            "one kind of processor have differed by nearly a factor of two. "
            "The column before the last two charges a run with its reference, "
            "all of it: training, and a pass over the pool for the sidecars, "
            "and so of a reference before that one. The last two have the "
            "target of one split alone. "
            f"{_rise(runs, runs.uniform)} {_of_longer(runs)}".strip()
        ),
        pages.table(("method", "MRR at its end", *costs), rows),
    ]


def main_curves(runs):
    """`{cell: label}` of uniform training and the longest of main methods."""
    best = claims.best(runs)
    found = {runs.uniform: "uniform"}
    for about, cells in METHODS[runs.uniform].items():
        there = [cell for cell in cells if cell in runs]
        is_main = about in _MAIN or cells == best or runs.uniform != "uniform"
        if there and is_main:
            found[there[-1]] = about
    if runs.uniform == "uniform" and claims.LONGER in runs:
        found[claims.LONGER] = "uniform, twice as long"
    return found


def summary(runs):
    """What a page has room for: main methods, and the paper's own claims."""
    if runs.uniform not in runs:
        return [pages.paragraph(f"The long uniform run: {claims.NOT_RUN}.")]
    examples, flops, *_, whole, on_concepts, on_style = _costs(runs).values()
    costs = {
        "examples": examples,
        "FLOPs": flops,
        "FLOPs, the reference's counted": whole,
        "held-out concepts": on_concepts,
        "held-out style": on_style,
    }
    counted, *shown = costs
    main = {about: cell for cell, about in main_curves(runs).items()}
    to_longer = {about: ratios for about, _, ratios, _ in _to_longer(runs)}
    near, far = [], []
    for about, cells, columns in _ratios(runs, costs):
        if about not in main:
            continue
        found = runs.to_target(cells, bootstrap.examples)
        whole = f"{found.bound:.1f}x" if found and found.value else ""
        count, *rest = columns
        near.append((about, _ends(runs, cells), count, whole, *rest[:2]))
        ratios = to_longer.get(about, ("",) * len(_TO_LONGER))
        far.append((about, *rest[2:], ratios[0], *ratios[2:]))
    long = runs.of(runs.uniform)[0]
    chance = 100 * bootstrap.chance(long, runs.queries)
    blocks = [
        pages.paragraph(
            "How many times fewer training examples and FLOPs a method needs "
            "than uniform training to come to the score at which this ends, "
            f"{_end(runs, runs.uniform)}, b = {long['batch_size']}; below 1x "
            "it needs more. Both count until a curve first has the score, "
            "*all steps* until the run's rate is zero; "
            "of the lengths that were run the cheapest counts. The score is "
            "the mean reciprocal rank times 100 of retrieval both ways, the "
            "mean of held-out concepts and a held-out "
            f"style; by chance it is {chance:.1f}. Brackets are 95 % intervals "
            'over concepts and seeds; "missed" is an end of one at which the '
            "method does not come to that score. The filter ratio f is 1 - b / "
            "B, the share of a super-batch that is left out. *Stage 0* of a "
            "cascade chooses from K times as many examples by the reference's "
            "cached embeddings, before anything is read; *alone* means that "
            "nothing is chosen after it. *Distilled*: the learner is pulled "
            "towards the reference's embeddings, too. *The longer run* is "
            "uniform training for twice as many steps. "
            f"{_of_longer(runs)}".strip()
        ),
        pages.table(
            (
                *("method", "score at its end", counted),
                *(f"{counted}, all steps", *shown[:2]),
            ),
            near,
        ),
        pages.paragraph(
            "Examples once more, to the end of uniform training on one part "
            "alone"
            + (", and to where the longer run ends:" if to_longer else ":")
        ),
        pages.table(
            (
                *("method", *shown[2:]),
                *(f"the longer run{one}" for one in _PARTS if to_longer),
            ),
            far if to_longer else [row[:3] for row in far],
        ),
    ]
    if runs.uniform != "uniform":
        return blocks
    return [
        *blocks,
        pages.paragraph(
            "What became of the paper's claims, as differences of that score "
            "or as such ratios. A verdict of fewer than three seeds says so:"
        ),
        pages.table(
            ("claim", "the paper", "here", "verdict", "why, or what to know"),
            [
                (claim, paper, ours, verdict, why)
                for claim, paper, ours, *_, verdict, why in claims.table(runs)
                if paper != claims.OURS
            ],
        ),
    ]


def _ratios(runs, costs):
    """(method, its cells, its ratios by `costs`) for each that has a run."""
    for about, cells in METHODS[runs.uniform].items():
        there = [cell for cell in cells if cell in runs]
        if not there:
            continue
        # Without some of a method's lengths it is not said to have missed.
        unknown = "" if len(there) == len(cells) else claims.NOT_RUN
        columns = [
            _ratio(
                runs.to_target(cells, spent, splits),
                unknown,
                with_interval=spent is not bootstrap.seconds,
            )
            for spent, splits in costs.values()
        ]
        yield about, cells, columns


def _ratio(found, unknown="", with_interval=True):
    """In words, with how many seeds it is of if that are few."""
    if found is None:
        return unknown
    few = found.value and found.seeds < len(matrix.SEEDS)
    seeds = f", {claims.of_seeds(found.seeds)}" if few else ""
    if found.value and not with_interval:
        return f"{found.value:.1f}x{seeds}"
    return claims.ratio(found) + seeds


# Of the ends of two splits together, and of one alone.
_PARTS = ("", ", held-out concepts", ", held-out style")
_TO_LONGER = (
    (bootstrap.examples, bootstrap.SPLITS),
    (bootstrap.flops, bootstrap.SPLITS),
    *((bootstrap.examples, (split,)) for split in bootstrap.SPLITS),
)


def longer(runs):
    """What methods take to the end of a uniform run that is twice as long."""
    found = list(_to_longer(runs))
    if not found:
        return []
    rows, missed = [], []
    for about, cells, ratios, have_missed in found:
        if have_missed:
            missed.append(about)
        else:
            rows.append((about, _ends(runs, cells), *ratios))
    return [
        pages.paragraph(
            "Its last fifth does not tell whether uniform training has "
            "flattened, as a rate that goes to zero levels any run: runs of "
            "their own that are longer do. Each row is one with its own "
            "schedule, and beside it its end less that of the row before, for "
            "each doubling of the steps that lies between them:"
        ),
        pages.table(
            ("steps", "MRR at its end", "a doubling", "seeds of both"),
            _doublings(runs),
        ),
        pages.paragraph(
            f"{_rise(runs, claims.LONGER)} To where that one ends, each "
            "seed's own, by the lengths that have been run:"
        ),
        pages.table(
            (
                *("method", "MRR at its end", "examples", "FLOPs"),
                *(f"examples, {split} alone" for split in bootstrap.SPLITS),
            ),
            rows,
        ),
        pages.paragraph(
            "It is reached, in their steps, by none of: "
            f"{'; '.join(missed) or 'none'}."
        ),
    ]


def _doublings(runs):
    """Rows of uniform runs by their lengths."""
    there = [cell for cell in _LENGTHS if cell in runs]
    rows = []
    for before, cell in zip((None, *there), there, strict=False):
        (steps, *_) = {run["steps"] for run in runs.of(cell)}
        gain = before and runs.difference(cell, before)
        columns = "", ""
        if gain:
            count = np.log2(steps / runs.of(before)[0]["steps"])
            by_doubling = bootstrap.Estimate(*(one / count for one in gain))
            columns = (
                claims.points(by_doubling),
                str(runs.shared(cell, before)),
            )
        score = bootstrap.estimate(runs.of(cell), runs.queries)
        seeds = claims.of_seeds(len(runs.of(cell)))
        end = f"{claims.interval(score)}, {seeds}"
        rows.append((f"{steps:,}", end, *columns))
    return rows


def _to_longer(runs):
    """To the end of the longer uniform run, of each method that has a run.

    Yields:
        (method, its cells, ratios by `_TO_LONGER` in words, whether none of
        these comes to a target).
    """
    if runs.uniform not in runs or claims.LONGER not in runs:
        return
    for about, cells in METHODS[runs.uniform].items():
        there = [cell for cell in cells if cell in runs]
        if not there:
            continue
        found = [
            runs.to_target(cells, spent, splits, claims.LONGER)
            for spent, splits in _TO_LONGER
        ]
        unknown = "" if len(there) == len(cells) else claims.NOT_RUN
        ratios = [_ratio(one, unknown) for one in found]
        have_missed = all(one and one.missed == one.seeds for one in found)
        yield about, cells, ratios, have_missed


def _of_longer(runs):
    """What the longer uniform run makes of the ratios, in a sentence."""
    ratios = {about: one for about, _, (one, *_), _ in _to_longer(runs)}
    if not ratios:
        return ""
    come = [
        f"{about}, {one}"
        for about, one in ratios.items()
        if one not in ("", claims.NOT_RUN) and claims.MISSED not in one
    ]
    gain = runs.difference(claims.LONGER, runs.uniform)
    from_there = f", {claims.points(gain)} from there" if gain else ""
    return (
        "Uniform training for twice as long ends at "
        f"{_end(runs, claims.LONGER)}{from_there}. "
        + (
            "Of what was run, that far come, in so many times fewer examples: "
            f"{'; '.join(come)}."
            if come
            else "Of what was run, nothing comes that far."
        )
    )


def cells(runs, listed):
    """Ratios of the uniform run's costs to the others', cell by cell."""
    if runs.uniform not in runs:
        return []
    costs = {
        "examples": (bootstrap.examples, bootstrap.SPLITS),
        "forward passes": (bootstrap.passes, bootstrap.SPLITS),
        "FLOPs": (bootstrap.flops, bootstrap.SPLITS),
        "examples looked at": (bootstrap.offered, bootstrap.SPLITS),
        **{
            f"{what}, {split} alone": (spent, (split,))
            for split in bootstrap.SPLITS
            for what, spent in (
                ("examples", bootstrap.examples),
                ("FLOPs", bootstrap.flops),
            )
        },
    }
    rows = []
    for cell in listed:
        if cell.recipe == "reference" or cell.name in (
            runs.uniform,
            *(one.name for one in matrix.NOISE),
        ):
            continue
        found = [
            runs.to_target((cell.name,), spent, splits)
            for spent, splits in costs.values()
        ]
        columns = [_ratio(one) for one in found]
        if any(one and one.missed < one.seeds for one in found):
            rows.append((cell.name, cell.about, *columns))
        else:
            steps = f"{runs.of(cell.name)[0]['steps']:,}"
            rows.append((f"{cell.name} ({steps})", cell.about, claims.MISSED))
    short = [row[0] for row in rows if len(row) == 3]
    rows = [row for row in rows if len(row) > 3]
    return [
        pages.paragraph(
            "The same for every cell that comes to a target. Examples looked "
            "at are those offered to stage 0, or else those of super-batches: "
            "a method that chooses sees more of them than it is trained on."
        ),
        pages.table(("cell", "what", *costs), rows),
        pages.paragraph(
            "None is reached, in their steps, by: "
            f"{', '.join(short) or 'none'}."
        ),
    ]


def _statement(runs):
    """The best result in a sentence, and what is to be known of it."""
    best = claims.best(runs)
    if runs.uniform != "uniform" or not best:
        return []
    examples, flops, seconds = (
        runs.to_target(best, spent) for spent in bootstrap.COSTS.values()
    )
    if not (examples and flops and flops.value):
        return []
    (cell,) = best
    steps = runs.of(cell)[0]["steps"]
    ends = [
        f"{claims.points(runs.difference(cell, 'uniform', splits=splits))} "
        f"on {' and '.join(splits)}"
        for splits in (
            bootstrap.SPLITS,
            *((split,) for split in bootstrap.SPLITS),
        )
    ]
    faster = (
        f", {_ratio(seconds, with_interval=False)} fewer processor seconds"
        if seconds
        else ""
    )
    charged = runs.to_target(best, bootstrap.flops_with(_references(runs)))
    with_reference = (
        f" ({claims.ratio(charged)} in FLOPs with all that led to it)"
        if charged
        else ""
    )
    run = "python -m benchmarks.icontext.run --results again"
    names = {one.name for one in matrix.MATRICES["standard"]}
    wanted = *claims.UNIFORM[:2], *claims.JEST_LENGTHS
    standard = [one for one in wanted if one in names]
    beyond = [one for one in wanted if one not in names]
    return [
        pages.paragraph(text)
        for text in (
            _of_jest(runs),
            f"**The best: {claims.ratio(examples)} fewer examples, "
            f"{claims.ratio(flops)} fewer FLOPs**{faster}, the reference not "
            f"counted{with_reference}; on the pool as it is, no "
            f"noise added, {examples.seeds} seeds, 95 % intervals over "
            f"concepts and seeds. It is {cell}, stage 0 alone and distilled "
            f"({_about_reference(cell)}), which validation puts first. "
            f"With all {steps} steps of the best counted, until its rate is "
            f"zero, it is {examples.bound:.1f}x and {flops.bound:.1f}x.",
            _others(runs, cell),
            "At its end the best is, in points of MRR, "
            f"{'; '.join(ends)} from the uniform learner's end. {LIMITS}",
            "The runs, made again in another folder: "
            f"`{run} --only {' '.join(standard)}` and "
            f"`{run} --matrix beyond --only {' '.join((*beyond, cell))}`.",
        )
        if text
    ]


def _of_jest(runs):
    """JEST as the paper has it, and what the ratios are to."""
    examples, compute = (
        runs.to_target(claims.JEST_LENGTHS, spent)
        for spent in (bootstrap.examples, bootstrap.passes)
    )
    if not (examples and compute):
        return ""
    return (
        f"**JEST**, f = 0.8: {claims.ratio(examples)} fewer examples and "
        f"{claims.ratio(compute)} less compute (forward passes, scoring "
        "counted) than uniform training takes to the score of its end; "
        f"{claims.of_seeds(examples.seeds)}. Here and below both count until a "
        "curve first has the score; with all steps of JEST's run counted, "
        f"until its rate is zero, it is {examples.bound:.1f}x and "
        f"{compute.bound:.1f}x."
    )


def _about_reference(cell):
    reference = matrix.find(matrix.find(cell).reference)
    return f"its reference: {reference.about}"


def _others(runs, best):
    """What else could be called the best, with its validation."""
    charged = bootstrap.flops_with(_references(runs))
    texts = []
    for cell in claims.BEST_OF:
        if cell == best or cell not in runs:
            continue
        found, whole = (
            runs.to_target((cell,), spent)
            for spent in (bootstrap.flops, charged)
        )
        behind = runs.difference(cell, best, ("val_concept",))
        if None in (found, whole, behind):
            continue
        texts.append(
            f"{cell} ({_about_reference(cell)}), {claims.points(behind)} from "
            f"it on `val_concept`, {claims.ratio(found)} fewer FLOPs, and "
            f"{claims.ratio(whole)} with all that led to it"
        )
    for cells, what in (
        (("reference_curated",), "the curated set alone"),
        (METHODS["uniform"][_MIXED], "the curated set and the pool, half each"),
    ):
        found = runs.to_target(cells, bootstrap.flops)
        if found:
            texts.append(
                f"a learner that is trained on {what}, with nothing chosen or "
                f"distilled, {claims.ratio(found)}"
            )
    text = "; ".join(texts)
    return f"Beside it: {text}." if text else ""


def _references(runs):
    """Rows of the references' runs."""
    return [
        run
        for cell in runs.cells
        if matrix.find(cell).recipe == "reference"
        for run in runs.of(cell)
    ]


def _costs(runs):
    """`{what: (spent, splits of the target)}`, a column each."""
    spent = {
        **bootstrap.COSTS,
        "FLOPs, the reference's counted": bootstrap.flops_with(
            _references(runs)
        ),
    }
    return {
        **{what: (one, bootstrap.SPLITS) for what, one in spent.items()},
        **{
            f"examples, {split} alone": (bootstrap.examples, (split,))
            for split in bootstrap.SPLITS
        },
    }


def _ends(runs, cells):
    """The ends of those of a method's lengths that there are."""
    return "; ".join(_end(runs, cell) for cell in cells if cell in runs)


def _end(runs, cell):
    found = runs.of(cell)
    score = bootstrap.estimate(found, runs.queries)
    seeds = claims.of_seeds(len(found))
    steps = f"{found[0]['steps']:,} steps"
    return f"{claims.interval(score)} after {steps}, {seeds}"


def _rise(runs, cell):
    """How far a uniform run still rose at its end."""
    rises = []
    for run in runs.of(cell):
        _, values = bootstrap.curve(run)
        before = values[int(0.8 * len(values)) - 1]
        rises.append(100 * (values[-1] - before))
    shown = ", ".join(f"{rise:+.1f}" for rise in rises)
    return (
        f"In the last fifth of its {runs.of(cell)[0]['steps']:,} steps uniform "
        f"training gained {shown} points (one number a seed), where its rate "
        "goes to zero."
    )

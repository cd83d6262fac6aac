"""What each choice is worth, one thing at a time: tables of the report.

A question has cells that answer it, each beside the cell that it differs from
in that thing alone. All but `best` have one seed here; intervals are over
concepts. Nothing here is typed in after a run but `FOUND`.
"""

import dataclasses

from benchmarks.icontext import (
    bootstrap,
    claims,
    figures,
    matrix,
    pages,
    results,
)

# What the runs answer, by question.
FOUND: dict[str, str] = {
    "reference": "What a reference is trained on counts for more than its "
    "size: the less of the pool as it comes, the better it is on the tests, "
    "and so is what it chooses and hands over. The mix with a fifth of the "
    "pool, chosen by the curated set's own reference, is the best of its "
    "size on validation as well.",
    "inferred": "Without anything curated, a set inferred from the 640 "
    "examples of `val_concept` makes up for more than half of what lies "
    "between a reference of the pool and the hand-curated one. On "
    "`val_concept` itself that reference says nothing.",
}


@dataclasses.dataclass(frozen=True)
class Question:
    """One table.

    Attributes:
        name: key of `FOUND`.
        text: its heading.
        pairs: (cell, cell that it is held against).
    """

    name: str
    text: str
    pairs: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """One plot of the picture of sweeps.

    Attributes:
        title: above it.
        axis: what lies on the horizontal axis, in powers of two.
        lines: `{label: ((place, cell), ...)}`.
        level: a cell drawn as a level line, or "".
    """

    title: str
    axis: str
    lines: dict[str, tuple[tuple[float, str], ...]]
    level: str = ""


def _against(base, *cells):
    return tuple((cell, base) for cell in cells)


_SIZES = (("f50", 2), ("f80", 5), ("f90", 10), ("f95", 20))
_LEARNABILITY = ("jest_400_f50", "jest_400", "jest_400_f90", "jest_400_f95")
_EASY = tuple(f"easy_reference_{size}" for size, _ in _SIZES)
_HARD = tuple(f"hard_learner_{size}" for size, _ in _SIZES[:3])
_LEVELS = (25, 50, 75)

QUESTIONS = (
    Question(
        "ratio",
        "Filter ratio and criterion",
        _against("uniform_400", *_LEARNABILITY, *_EASY, *_HARD),
    ),
    Question(
        "draw",
        "The draw: chunks, gain, noise",
        _against(
            *("jest_400", "chunks_1", "chunks_4", "chunks_32"),
            *("gain_25", "gain_4", "top"),
        ),
    ),
    Question(
        "scores",
        "What the learner's scores are made with",
        (
            *_against("jest_400", "warm_scale", "flexi_scoring", "crops"),
            ("uniform_warm_scale", "uniform_400"),
        ),
    ),
    Question(
        "learner",
        "Loss and batch size: JEST beside uniform",
        (
            ("jest_400", "uniform_400"),
            ("sigmoid", "sigmoid_uniform"),
            ("jest_b128", "uniform_b128"),
            ("jest_b512", "uniform_b512"),
        ),
    ),
    Question(
        "cascade",
        "The cascade's parts",
        (
            ("cascade_400", "jest_400"),
            *_against(
                *("cascade_400", "cascade_k5_f80", "cascade_coarse"),
                *("cascade_floor", "cascade_warm"),
                *(f"stage_0_k{size}" for size in (5, 12, 25, 50)),
            ),
        ),
    ),
    Question(
        "pool",
        "Pools cut once, before training",
        (
            *_against("uniform_750", "filtered", "emoji"),
            ("uniform_chosen", "uniform_400"),
            ("cascade_chosen", "cascade_400"),
        ),
    ),
    Question(
        "inferred",
        "A reference on an inferred set beside one on the hand-curated",
        (
            *_against("best", "best_by_inferred", "best_by_pool"),
            *_against("stage_0_k25", "stage_0_by_inferred", "stage_0_by_pool"),
            ("best_by_inferred", "best_by_pool"),
            ("reference_inferred", "reference"),
            ("reference_inferred", "reference_pool"),
        ),
    ),
    Question(
        "best",
        "The best's parts",
        (
            *_against("best", "best_plain", "best_uniform", "best_neither"),
            *_against("best", "best_2e-3", "best_weight_1", "best_jest"),
            *_against("best_1500", "best_1500_fade", "best_1500_half"),
            ("best_1500", "stage_0_1500"),
            ("best_1500_half", "uniform"),
            ("best_plain_8e-3", "best_plain"),
            ("best_plain_8e-3", "best"),
        ),
    ),
)

PANELS = (
    Panel(
        "What is chosen by, 400 steps",
        "super-batch / b",
        {
            about: tuple(
                (size, cell)
                for (_, size), cell in zip(_SIZES, cells, strict=False)
            )
            for about, cells in (
                ("learnability", _LEARNABILITY),
                ("easy-reference", _EASY),
                ("hard-learner", _HARD),
            )
        },
        "uniform_400",
    ),
    Panel(
        "Chunks, 400 steps",
        "N",
        {
            "joint, f = 0.8": (
                *((1, "chunks_1"), (4, "chunks_4")),
                *((16, "jest_400"), (32, "chunks_32")),
            )
        },
        "uniform_400",
    ),
    Panel(
        "Batch size, 400 steps",
        "b",
        {
            name: (
                (128, f"{name}_b128"),
                (256, f"{name}_400"),
                (512, f"{name}_b512"),
            )
            for name in ("uniform", "jest")
        },
    ),
    Panel(
        "Stage 0 alone, 400 steps",
        "K",
        {
            "stage 0": tuple(
                (size / 256, f"stage_0_k{size // 256}")
                for size in (1280, 3200, 6400, 12800)
            )
        },
        "uniform_400",
    ),
)

# What each reference scored for: JEST, stage 0 alone, and the best.
_SCORED = ("jest_400", "stage_0_k25", "best")
_BY = ("by", "stage_0_by", "best_by")


def blocks(runs, out, name=""):
    """The section's blocks, of what has been run.

    Args:
        runs: `claims.Runs`.
        out: folder of the picture.
        name: what the name of its file starts with.
    """
    found = [block for one in QUESTIONS for block in _question(runs, one)]
    found += _references(runs)
    found += _noise(runs)
    if not found:
        return [pages.paragraph(f"Sweeps: {claims.NOT_RUN}.")]
    picture = f"{name}sweeps.png"
    if figures.sweeps(runs, PANELS, out / picture):
        found.insert(0, pages.image(picture, "The sweeps, seed 0"))
    return [
        pages.paragraph(
            "One thing is changed at a time. Runs have one seed (of those with "
            "more, the seeds that both sides have are compared) and, unless a "
            "row says otherwise, 400 steps, so that an interval tells of "
            "concepts alone. Cost is that of a step in forward passes, scoring "
            "included, over those of a uniform step of its batch size."
        ),
        *found,
    ]


def _question(runs, question):
    rows = []
    for cell, base in question.pairs:
        if cell not in runs:
            continue
        runs_of = runs.of(cell)
        gain = runs.difference(cell, base)
        rows.append(
            (
                cell,
                matrix.find(cell).about,
                *_score_columns(runs, runs_of),
                f"{_cost(runs_of[0]):.2f}",
                base,
                claims.points(gain) if gain else claims.NOT_RUN,
            )
        )
    if not rows:
        return []
    header = (
        *("cell", "what", "MRR", *bootstrap.SPLITS, "cost"),
        *("against", "difference"),
    )
    return [
        pages.heading(question.text, 3),
        *_found(question.name),
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
                _score(runs, runs.of(cell.name)),
                *(_score(runs, _first(runs, one)) for one in names),
                _ratio(runs, names[-1], "uniform"),
            )
        )
    if not rows:
        return []
    return [
        pages.heading("Curation levels and sizes of the reference", 3),
        pages.paragraph(
            "MRR of a reference, and of the learners of seed 0 that it scored "
            "for: JEST and stage 0 alone for 400 steps, the best for 380; last "
            "how many times fewer examples this took to the uniform learner's "
            "end."
        ),
        *_found("reference"),
        pages.table(
            (
                *("reference", "trained on", "itself", "joint, f = 0.8"),
                *("stage 0 alone", "the best", "examples"),
            ),
            rows,
        ),
    ]


def _noise(runs):
    rows = []
    for share in _LEVELS:
        uniform, jest, best, reference = (
            f"{name}_noise{share}"
            for name in ("uniform", "jest", "best", "reference")
        )
        if uniform in runs:
            rows.append(
                (
                    f"{share} %",
                    *(
                        _score(runs, _first(runs, one))
                        for one in (uniform, reference, jest, best)
                    ),
                    _ratio(runs, jest, uniform),
                    _ratio(runs, best, uniform),
                    _ratio(runs, best, uniform, bootstrap.flops),
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
            "those end, the reference not counted."
        ),
        *_found("noise"),
        pages.table(
            (
                *("noise", "uniform", "reference", "JEST", "the best"),
                *("JEST: examples", "the best: examples", "FLOPs"),
            ),
            rows,
        ),
    ]


def _found(name):
    return [pages.paragraph(FOUND[name])] if name in FOUND else []


def _first(runs, cell):
    """Seed 0 of a cell, as a list, for the others may be missing elsewhere."""
    return [run for run in runs.of(cell) if run["seed"] == 0]


def _score(runs, found, splits=bootstrap.SPLITS):
    if not found:
        return ""
    return claims.interval(bootstrap.estimate(found, runs.queries, splits))


def _score_columns(runs, found):
    parts = (bootstrap.SPLITS, *((split,) for split in bootstrap.SPLITS))
    return [_score(runs, found, splits) for splits in parts]


def _cost(run):
    trained = 3 * run["costs"]["examples/trained"]
    return bootstrap.passes(run, run["steps"]) / trained


def _ratio(runs, cell, base, spent=bootstrap.examples):
    if not _first(runs, cell):
        return ""
    found = runs.to_target((cell,), spent, base=base, seeds=(0,))
    return claims.ratios(found) if found else ""


def tried(folder):
    """What settings were chosen by, on validation: each thing and its score.

    Args:
        folder: of the results.
    """
    found = []
    for name, splits in matrix.TUNED_ON.items():
        rows = [
            (
                row["cell"],
                matrix.find(row["cell"]).about,
                f"{row['steps']:,}",
                *(f"{100 * _at_end(row, split):.1f}" for split in splits),
            )
            for row in results.read(folder / f"{name}.jsonl")
            if row["recipe"] != "reference"
        ]
        header = ("cell", "what", "steps", *(f"MRR, {one}" for one in splits))
        if rows:
            found.append(pages.table(header, rows))
    if not found:
        return []
    return [
        pages.heading("What was tried on validation", 2),
        pages.paragraph(
            "Settings were chosen by these, one seed each, both directions. "
            "The split `reference` is the curated set, which the reference "
            "is trained on and learners are not. Distilling logits was tried "
            "before features, in a form that is no more in the code, and gave "
            "nothing: of that no run is kept."
        ),
        *found,
    ]


def _at_end(row, split):
    ends = [
        row["curve"][f"{split}/{one}"][-1] for one in bootstrap.MAIN_MEASURES
    ]
    return sum(ends) / len(ends)

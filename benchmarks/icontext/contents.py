"""IconText's tables and figure: the methods and cells that they compare."""

from benchmarks.icontext import cells
from benchmarks.protocol import figures, measures, tables
from benchmarks.protocol.benchmark import GIVEN, OWN

BENCHMARK = cells.BENCHMARK
_LEVEL = 0.7  # of noise, where no other is named
# Lengths of uniform training that set the target.
_TARGETS = 18_000, 36_000
# Methods of a `tables.Group`. Of the own regime, whose references are made of
# the pool and the curated set.
_OWN = (
    ("uniform, the target", "uniform", None),
    ("an eighth of every batch curated", "mixed_8", None),
    ("JEST, f = 0.8, reference of the curated set", "jest_curated", None),
    ("stored stage, reference of the curated set", "cascade_curated", None),
    ("the same, then renewed", "renewed", None),
    ("**stored stage, bootstrapped**", "bootstrapped", 4500),
    ("the clean pairs of the pool alone", "clean", None),
    ("the curated set alone", "curated", None),
)
# Of the given regime, a learner of half the width.
_HALF = (
    ("uniform, the target", "uniform", None),
    ("the reference's clean pairs alone", "reference_data_at_4e-3", None),
    ("the reference's clean pairs, half a batch", "mixed_2_at_2e-3", None),
    ("the clean pairs of the pool alone", "clean", None),
    ("JEST, f = 0.8", "jest", None),
    ("Flexi-JEST, f = 0.8", "flexi", None),
    ("stored stage, 3 candidates", "stored_3", None),
    ("the pool cut once to a third, distillation", "top_3_distilled", None),
    ("**stored stage with distillation**", "stored_3_distilled", None),
)
_MORE = (
    (
        "stored stage with distillation, reference of 1,600 steps",
        *("stored_3_distilled_by_1600", None),
    ),
    ("distillation alone", "distilled", None),
    ("stored stage, 5 candidates", "stored_5", None),
    ("stored stage, 5 candidates, distillation", "stored_5_distilled", None),
    ("the pool cut once to a third", "top_3", None),
    ("the pool cut once to a fifth", "top_5", None),
    ("the pool cut once to a fifth, distillation", "top_5_distilled", None),
    ("JEST, f = 0.8, distillation", "jest_distilled", None),
    (
        "the pool cut once to a third, JEST, f = 0.67, distillation",
        *("top_3_jest_distilled", None),
    ),
    *(
        ("uniform, annealed at its own length", "uniform_annealed", n)
        for n in _TARGETS
    ),
)
# Of the tables over noise.
_OWN_OVER_NOISE = (
    ("an eighth of every batch curated", "mixed_8", 2250),
    ("JEST, f = 0.8, reference of the curated set", "jest_curated", 1400),
    ("**stored stage, bootstrapped**", "bootstrapped", 1400),
    ("the same, 2 candidates", "bootstrapped_k2", 1400),
    ("the clean pairs of the pool alone", "clean", 1400),
)
_SAME_OVER_NOISE = (
    ("JEST, f = 0.5", "jest_f50", 700),
    ("JEST, f = 0.8", "jest", 700),
    ("distillation alone", "distilled", 700),
    ("stored stage, 3 candidates, distillation", "stored_3_distilled", 700),
)
# Methods by references of several strengths, after so many steps.
_BY_STRENGTH = {
    "JEST": "jest",
    "easy-reference": "easy_reference",
    "distillation alone": "distilled",
    "stored stage, distillation": "stored_3_distilled",
}
_STRENGTH_STEPS = 700
# Differences in points, as the paper claims: methods, after 700 steps.
_PAIRS = (
    ("joint minus independent", "better", "jest_f80", "independent"),
    ("f = 0.8 minus 0.5", "better", "jest_f80", "jest_f50"),
    ("f = 0.9 minus 0.8", "better", "jest_f90", "jest_f80"),
    ("f = 0.95 minus 0.9", "better", "jest_f95", "jest_f90"),
    (
        *("learnability minus easy-reference", "better"),
        *("jest_f80", "easy_reference"),
    ),
    ("learnability minus hard-learner", "better", "jest_f80", "hard_learner"),
    ("16 chunks minus 32", "no worse", "jest_f80", "chunks_32"),
)
# Cells of the own and of the given regime, whose JEST has f = 0.8.
_CLAIMS = (
    *(
        (
            *(what, paper, [f"web_{method}_700" for method in pair]),
            [
                f"part70_{method.replace('jest_f80', 'jest')}_700"
                for method in pair
            ],
        )
        for what, paper, *pair in _PAIRS
    ),
    (
        *("joint minus independent, b = 1,024, sigmoid, 350 steps", "better"),
        *((), ("part70_joint_b1024_350", "part70_independent_b1024_350")),
    ),
    (
        *("JEST minus its reference, 1,400 steps", "better"),
        ("web_jest_curated_1400", "web_curated_1000"),
        ("part70_jest_1400", "apart_reference_3000"),
    ),
)
# Curves of the figure's panels.
_CURVES_HALF = {
    "uniform": ("uniform", "0.6", "-", "."),
    "clean": ("the pool's\nclean pairs", "0.6", "--", "D"),
    "distilled": ("distillation alone", "0.35", ":", "s"),
    "jest": ("JEST", "tab:blue", "-", "o"),
    "stored_3_distilled": ("stored stage, distillation", "black", "-", "o"),
}
_CURVES_OWN = {
    **{method: _CURVES_HALF[method] for method in ("uniform", "clean")},
    "mixed_8": ("an eighth curated", "0.35", ":", "^"),
    "bootstrapped": ("stored stage, bootstrapped", "tab:red", "-", "v"),
}


def groups(folder=None):
    """The `tables.Group`s of a folder of tables, by name.

    "own" has references made of the pool and the curated set. "half" and "same"
    have a given reference, and learners of half its width and of its width.
    """
    about = {"benchmark": BENCHMARK.name, "arm": "moved", "domain": None}
    about["batch_size"] = 256
    own = measures.Results(BENCHMARK, folder)
    half = measures.Results(BENCHMARK, folder, GIVEN, "narrow")
    same = measures.Results(BENCHMARK, folder, GIVEN)
    half = tables.Group(
        *(half, _HALF, _LEVEL, measures.COSTS),
        about | {"regime": GIVEN, "learner": "half width"},
    )
    return {
        "own": tables.Group(
            *(own, _OWN, _LEVEL, ("all",)),
            about | {"regime": OWN, "learner": "same width"},
        ),
        "half": half,
        "more": half._replace(methods=_MORE),
        "same": half._replace(results=same, methods=_SAME_OVER_NOISE),
    }


# Groups whose methods are in summary.json.
SUMMARY = "own", "half", "more"


def panels(found):
    """The `figures.Panel`s of the figure."""
    return (
        figures.Panel(
            found["half"],
            "Strong reference, small learner, 70 % noise",
            *(_CURVES_HALF, cells.STRONG),
        ),
        figures.Panel(
            found["own"], "4,000 clean pairs, no model, 70 % noise", _CURVES_OWN
        ),
    )


def _claims(found):
    """What the paper's claims ask of JEST, in points, in both regimes."""

    def cell(results, names):
        if not names or any(name not in results.runs.index for name in names):
            return ""
        difference, count = results.difference(*names)
        words = tables.told(difference, factor=100, sign="+")
        if count < measures.LEAST_SEEDS:
            words += f" ({count} seed{'s' * (count > 1)})"
        return words

    rows = (
        (
            *(what, paper, cell(found["same"].results, given)),
            cell(found["own"].results, own),
        )
        for what, paper, own, given in _CLAIMS
    )
    return tables.rows_under(
        ("comparison", "paper", "strong reference", "weak reference"),
        (row for row in rows if any(row[2:])),
    )


def _strengths(found):
    """Score ratios at equal FLOPs over the strength of the reference."""
    results, rows = found["same"].results, []
    best = results.target(_LEVEL)
    for reference in results.ladder("reference", _LEVEL) if best else ():
        by = "" if reference.cell == cells.STRONG else f"_by_{reference.steps}"
        lines = [
            results.line(f"{method}{by}", _LEVEL, _STRENGTH_STEPS)
            for method in _BY_STRENGTH.values()
        ]
        if any(lines):
            strength = results.end(reference)[0] / results.end(best)[0]
            ratios = (
                line and results.over_uniform(line, "paper") for line in lines
            )
            shares = (
                line
                and " to ".join(
                    f"{100 * results.mean(line, column):.0f}"
                    for column in ("clean_first", "clean_last")
                )
                for line in lines[:2]
            )
            rows.append(
                (
                    *(f"{strength:.2f}", *map(tables.told, ratios)),
                    *(share or "" for share in shares),
                )
            )
    return tables.rows_under(
        ("reference / target", *_BY_STRENGTH)
        + ("clean rows of JEST, %", "of easy-reference, %"),
        sorted(rows),
    )


# Functions of the groups and a path that draw a figure, by its file's name.
FIGURES = {"results.png": lambda found, path: figures.draw(panels(found), path)}
# Functions of the groups that return rows of text, by the table's name.
TABLES = {
    "methods": lambda found: tables.ratios(found["own"]),
    "half_width": lambda found: tables.ratios(found["half"]),
    "half_width_more": lambda found: tables.ratios(found["more"]),
    "two_targets": lambda found: tables.two_targets(found["half"], _TARGETS),
    "given_noise": lambda found: tables.over_noise(found["same"]),
    "strengths": _strengths,
    "noise": lambda found: tables.over_noise(
        found["own"]._replace(methods=_OWN_OVER_NOISE)
    ),
    "claims": _claims,
    "tried": lambda found: tables.tried(found["half"]),
}

"""Rows of the report's tables: the methods and the cells that they compare."""

# Rows of the tables of methods: what it is, in runs.csv, steps. Of the own
# regime, whose references are made of the pool and the curated set.
OWN = (
    ("uniform, the target", "uniform", 36_000),
    ("an eighth of every batch curated", "mixed_8", 18_000),
    ("the pool cut once to its best-matching half", "filtered_50", 9000),
    ("JEST, f = 0.8, reference of the curated set", "jest_curated", 1400),
    ("Flexi-JEST, f = 0.8, reference of the curated set", "flexi", 1400),
    ("stored stage, reference of the curated set", "cascade_curated", 4500),
    ("the same, then renewed", "renewed", 4500),
    ("**stored stage, bootstrapped**", "bootstrapped", 4500),
    ("the same, longer", "bootstrapped", 14_000),
    ("the clean pairs of the pool alone", "clean", 4500),
    ("the curated set alone", "curated", 1000),
)
# Of the given regime, a learner of half the width; None is the longest.
GIVEN = (
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
MORE_GIVEN = (
    (
        "stored stage with distillation, reference of 1,600 steps",
        *("stored_3_distilled_by_1600", None),
    ),
    ("distillation alone", "distilled", None),
    ("stored stage, 5 candidates", "stored_5", None),
    ("stored stage, 5 candidates, distillation", "stored_5_distilled", None),
)
ALL_GIVEN = (*GIVEN, *MORE_GIVEN)
# Lengths of uniform training that set the target.
TARGETS = 18_000, 36_000
# Of a learner as wide as the reference.
SAME = (
    ("uniform, the target", "uniform", None),
    ("the clean pairs of the pool alone", "clean", None),
    ("JEST, f = 0.8", "jest", None),
    ("stored stage with distillation", "stored_3_distilled", None),
    ("distillation alone", "distilled", None),
)
# Rows of the README's table: results, method, and how FLOPs are counted.
OFFERS = (
    (
        "a model of your domain, and a smaller learner",
        "a stored stage with distillation",
        *("narrow", "stored_3_distilled", "paper"),
    ),
    (
        "a model of your domain, used for selection only",
        *("JEST", "narrow", "jest", "paper"),
    ),
    (
        "100,000 clean pairs of your domain, and no model",
        "these alone, everything counted",
        *("narrow", "reference_data_at_4e-3", "all"),
    ),
    (
        "no model, but a few thousand clean pairs",
        "a stored stage whose reference the run renews",
        *("own", "bootstrapped", "all"),
    ),
)
# Rows of the table over noise: in runs.csv, steps.
OVER_NOISE = (
    ("an eighth of every batch curated", "mixed_8", 2250),
    ("JEST, f = 0.8, reference of the curated set", "jest_curated", 1400),
    ("stored stage, reference of the curated set", "cascade_curated", 1400),
    ("the same, then renewed", "renewed", 1400),
    ("**stored stage, bootstrapped**", "bootstrapped", 1400),
    ("the same, 2 candidates", "bootstrapped_k2", 1400),
    ("the clean pairs of the pool alone", "clean", 1400),
)
GIVEN_NOISE = (
    ("JEST, f = 0.5", "jest_f50", 700),
    ("JEST, f = 0.8", "jest", 700),
    ("distillation alone", "distilled", 700),
    ("stored stage, 3 candidates, distillation", "stored_3_distilled", 700),
)
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
CLAIMS = (
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
# Runs of seed 0 on validation beside what was kept.
TRIED = (
    ("bootstrapped, 2 candidates", "bootstrapped_k2_2700", "bootstrapped_2700"),
    ("renewed, distilled from it", "renewed_distilled_1400", "renewed_1400"),
    ("uniform, learning rate 2e-3", "uniform_fast_4500", "uniform_4500"),
    ("an eighth curated, rate 1e-3", "mixed_8_slow_4500", "mixed_8_4500"),
)
_NAMES = {
    "clean": "the pool's clean pairs",
    "jest": "JEST",
    "flexi": "Flexi-JEST",
    "stored_3": "a stage of 3",
    "distilled": "distillation",
    "stored_3_distilled": "a stage of 3 with distillation",
}
_BEST = "stored_3_distilled"
_ENDS = "distilled_then_stored", _BEST


def _half(what, trial, kept, steps=1400):
    return "narrow", what, trial, kept, steps


# Trials by a given reference, seed 1: learner, what, trial, kept one, steps.
TRIED_GIVEN = (
    *(
        _half(f"uniform, {what}", f"uniform_{name}", "uniform", 9000)
        for what, name in (
            *((f"rate {rate}", f"at_{rate}") for rate in ("5e-4", "2e-3")),
            *(("rate 4e-3", "at_4e-3"), ("crops", "crops")),
            ("cosine decay", "cosine"),
        )
    ),
    *(
        _half(what, f"mixed_{name}", "mixed_2_at_2e-3", 9000)
        for what, name in (
            ("1/16 of every batch clean, rate 1e-3", "16"),
            ("1/4 of every batch clean, rate 1e-3", "4"),
            ("1/4 of every batch clean, rate 2e-3", "4_at_2e-3"),
            ("half of every batch clean, rate 1e-3", "2"),
            ("half of every batch clean, rate 4e-3", "2_at_4e-3"),
        )
    ),
    *(
        _half(f"{what}, rate {rate}", f"{name}_at_{rate}", name, steps)
        for name, what in _NAMES.items()
        for rate, steps in (("2e-3", 1400), ("8e-3", 1400), ("8e-3", 700))
    ),
    *(
        ("same", f"{what}, rate 4e-3", f"{name}_at_4e-3", name, steps)
        for name, what in _NAMES.items()
        for steps in (700, 1400)
    ),
    _half("the pool cut once, not a stage of 3", "cut_3", "stored_3"),
    _half("a stage of 5, not 3", "stored_5", "stored_3"),
    _half("a stage of 10, not 3", "stored_10", "stored_3"),
    _half("a stage of 5 with distillation, not 3", "stored_5_distilled", _BEST),
    _half(
        "a stage of 10 with distillation, not 3", "stored_10_distilled", _BEST
    ),
    _half("a stage of 3 whose distillation ends at step 700", *_ENDS),
    _half(
        "a stage of 3 with distillation, reference of 800 steps",
        *(f"{_BEST}_by_800", _BEST),
    ),
    _half(
        "the reference's clean pairs, not the pool's, both at 2e-3",
        *("reference_data", "clean_at_2e-3"),
    ),
    ("same", "3 stored, then 3 live, not 5 live", "stored_live", "jest", 700),
    ("same", "a stage of 3 whose distillation ends at step 700", *_ENDS, 1400),
)

# Rows of the table of emoji art, by cell.
EMOJI_ART = (
    ("uniform", "uniform_10000"),
    ("uniform, the target", "uniform"),
    ("JEST, f = 0.8", "jest_5000"),
    ("stage 0 only, K = 25", "stage_0_3000"),
    ("stage 0 with distillation", "best"),
    ("stage 0 with distillation, reference twice as wide", "best_by_wide"),
    (
        "stage 0 with distillation for the first quarter, half of its rows "
        "uniform",
        "best_3000_half",
    ),
    ("uniform, half of each batch curated (the reference)", "mixed_3000"),
    ("uniform on the curated set only", "reference_curated"),
)

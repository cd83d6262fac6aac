"""Rows of the report's tables: the methods and the cells that they compare."""

# Rows of the tables of methods: what it is, in runs.csv, steps. Of the own
# regime, whose references are made of the pool and the curated set.
OWN = (
    ("uniform, the target", "uniform", 36_000),
    (
        "an eighth of every batch curated, the best of 2 mixtures run to "
        "18,000 steps",
        *("mixed_8", 18_000),
    ),
    (
        "the best-matching half of the pool, cut once by a reference of the "
        "curated set",
        *("filtered_50", 9000),
    ),
    ("JEST, f = 0.8, reference of the curated set", "jest_curated", 1400),
    ("Flexi-JEST, f = 0.8, reference of the curated set", "flexi", 1400),
    ("stored stage, reference of the curated set", "cascade_curated", 4500),
    (
        "stored stage begun by a reference of the curated set, then renewed",
        *("renewed", 4500),
    ),
    ("**stored stage, bootstrapped**", "bootstrapped", 4500),
    ("the same, longer", "bootstrapped", 14_000),
    ("the clean pairs of the pool alone", "clean", 4500),
    ("the curated set alone", "curated", 1000),
)
# Of the given regime; None is the longest.
GIVEN = (
    ("uniform, the target", "uniform", None),
    (
        "a quarter of every batch from the reference's clean pairs",
        *("mixed_4", None),
    ),
    ("the clean pairs of the pool alone", "clean", None),
    ("JEST, f = 0.8", "jest", None),
    ("Flexi-JEST, f = 0.8", "flexi", None),
    ("stored stage, 3 candidates", "stored_3", None),
    (
        "**stored stage, 3 candidates, with distillation**",
        *("stored_3_distilled", None),
    ),
    (
        "the same, reference trained for 1,600 steps, not 3,000",
        *("stored_3_distilled_by_1600", None),
    ),
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
        "clean pairs to train such a model, and four learners to share it",
        "a stored stage with distillation, a quarter of the training counted",
        *("narrow", "stored_3_distilled_by_1600", "shared"),
    ),
    (
        "no model, but a few thousand clean pairs",
        "a stored stage whose reference the run renews",
        *("own", "bootstrapped", "all"),
    ),
)
# Rows of the table over noise: steps, and how FLOPs are counted.
OVER_NOISE = (
    ("an eighth of every batch curated", "mixed_8", 2250, "all"),
    (
        "JEST, f = 0.8, reference of the curated set",
        *("jest_curated", 1400, "all"),
    ),
    (
        "stored stage, 5 candidates, reference of the curated set",
        *("cascade_curated", 1400, "all"),
    ),
    (
        "stored stage begun by a reference of the curated set, then renewed",
        *("renewed", 1400, "all"),
    ),
    ("**stored stage, bootstrapped**", "bootstrapped", 1400, "all"),
    ("the clean pairs of the pool alone", "clean", 1400, "all"),
)
# Differences in points, as the paper claims: cells of the own and given regime.
CLAIMS = (
    (
        *("joint minus independent selection", "significant"),
        ("web_jest_f80_700", "web_independent_700"),
        ("part70_jest_700", "part70_independent_700"),
    ),
    (
        *("the same, b = 1,024, sigmoid loss, 350 steps", "significant", None),
        ("part70_joint_b1024_350", "part70_independent_b1024_350"),
    ),
    (
        *("f = 0.8 minus 0.5", "monotone"),
        ("web_jest_f80_700", "web_jest_f50_700"),
        ("part70_jest_700", "part70_jest_f50_700"),
    ),
    (
        *("f = 0.9 minus 0.8", "monotone"),
        ("web_jest_f90_700", "web_jest_f80_700"),
        ("part70_jest_f90_700", "part70_jest_700"),
    ),
    (
        *("f = 0.95 minus 0.9", "monotone"),
        ("web_jest_f95_700", "web_jest_f90_700"),
        ("part70_jest_f95_700", "part70_jest_f90_700"),
    ),
    (
        *("learnability minus easy-reference", "scales better"),
        ("web_jest_f80_700", "web_easy_reference_700"),
        ("part70_jest_700", "part70_easy_reference_700"),
    ),
    (
        *("learnability minus hard-learner", "scales better"),
        ("web_jest_f80_700", "web_hard_learner_700"),
        ("part70_jest_700", "part70_hard_learner_700"),
    ),
    (
        *("16 chunks minus 32", "no worse"),
        ("web_jest_f80_700", "web_chunks_32_700"),
        None,
    ),
    (
        *("JEST minus its reference", "better on many tasks"),
        ("web_jest_curated_1400", "web_curated_1000"),
        ("part70_jest_1400", "apart_reference_3000"),
    ),
)
# Runs of seed 0 on validation beside what was kept.
TRIED = (
    ("bootstrapped, 2 candidates", "bootstrapped_k2_2700", "bootstrapped_2700"),
    (
        "stored stage renewed, and distilled from each renewal",
        *("renewed_distilled_1400", "renewed_1400"),
    ),
    ("uniform, learning rate 2e-3", "uniform_fast_4500", "uniform_4500"),
    (
        "an eighth curated, learning rate 1e-3",
        *("mixed_8_slow_4500", "mixed_8_4500"),
    ),
)
# Trials by a given reference, seed 1: learner, what, trial, kept one, steps.
TRIED_GIVEN = (
    *(
        ("narrow", f"uniform, {what}", f"uniform_{name}", "uniform", 9000)
        for what, name in (
            ("rate 5e-4, not 1e-3", "at_5e-4"),
            ("rate 2e-3", "at_2e-3"),
            ("rate 4e-3", "at_4e-3"),
            ("crops", "crops"),
            ("cosine decay", "cosine"),
        )
    ),
    *(
        ("narrow", f"{what}, rate {rate}", f"{name}_at_{rate}", name, steps)
        for what, name, rate, steps in (
            ("the clean pairs of the pool alone", "clean", "2e-3", 1400),
            ("JEST", "jest", "2e-3", 1400),
            ("JEST", "jest", "8e-3", 700),
            ("Flexi-JEST", "flexi", "2e-3", 1400),
            ("a stage of 3", "stored_3", "2e-3", 1400),
            ("distillation", "distilled", "2e-3", 1400),
            *(
                ("a stage of 3 with distillation", "stored_3_distilled", *of)
                for of in (("2e-3", 1400), ("8e-3", 1400))
            ),
        )
    ),
    (
        *("narrow", "the pool cut once, not a stage of 3"),
        *("cut_3", "stored_3", 1400),
    ),
    ("narrow", "a stage of 5, not 3", "stored_5", "stored_3", 1400),
    *(
        ("narrow", f"{what} mixed, not a quarter", name, "mixed_4", 9000)
        for what, name in (("a sixteenth", "mixed_16"), ("a half", "mixed_2"))
    ),
    (
        "narrow",
        "a quarter mixed, rate 2e-3",
        "mixed_4_at_2e-3",
        "mixed_4",
        9000,
    ),
    (
        *(
            "narrow",
            "the reference's clean pairs, not the pool's, both at 2e-3",
        ),
        *("reference_data", "clean_at_2e-3", 1400),
    ),
    (
        *("narrow", "a reference of 800 steps, not 3,000"),
        *("stored_3_distilled_by_800", "stored_3_distilled", 1400),
    ),
    *(
        ("same", f"{what}, rate 4e-3, not 2e-3", f"{name}_at_4e-3", name, steps)
        for what, name, steps in (
            ("JEST", "jest", 700),
            ("distillation", "distilled", 700),
            (
                "a stage of 3 with distillation",
                *("stored_3_distilled", 700),
            ),
        )
    ),
    (
        *("same", "3 stored, then 3 live candidates, not 5 live"),
        *("stored_live", "jest", 700),
    ),
    (
        *("same", "distillation that ends after 700 steps"),
        *("distilled_then_stored", "stored_3_distilled", 1400),
    ),
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
    (
        "uniform on curated set and pool, half each (the reference)",
        "mixed_3000",
    ),
    ("uniform on the curated set only", "reference_curated"),
)

"""What is asked of the runs one thing at a time, and what came out. Data.

A question has cells that answer it, each beside the cell that it differs from
in that thing alone. `FOUND` alone is typed in after the runs.
"""

import dataclasses

# What the runs answer, by question: shown once all of the cells are there.
FOUND: dict[str, tuple[tuple[str, ...], str]] = {
    "all": (
        (
            *("jest_400", "uniform_1067", "uniform_667", "uniform_1733"),
            *("uniform_3067", "easy_reference_f90", "jest_2500"),
            *("stage_0_by_curated", "stage_0_by_pool", "emoji", "filtered"),
            *("gain_25", "top", "warm_scale", "crops", "uniform_distinct"),
        ),
        "Where JEST loses what it could gain. Its scoring: "
        "beside uniform training with as many passes no gain is seen at any "
        "filter ratio, by one seed each, and easy-reference gains as much "
        "without passes of the learner. What "
        "scores: by a reference of the pool alone it keeps a third of its "
        "gain. What it chooses: emoji art, which the tests are of, is "
        "chosen below the tenth that could be, and a pool cut once by what "
        "fits the curated set, or down to emoji art, beats choosing in the "
        "step. Perhaps the small pool, which is offered again and again, so "
        "that soon the chosen were chosen before; a larger one was not tried. "
        "Not, as far as one seed tells, by the noise of "
        "the draw, its chunks, the learner's initial scale or crops. Whether "
        "look-alikes in a draw cost something was not tried.",
    ),
    "compute": (
        (
            *("jest_400_f50", "jest_400", "jest_400_f90", "jest_400_f95"),
            *("uniform_667", "uniform_1067", "uniform_1733", "uniform_3067"),
            *("easy_reference_f90", "easy_reference_f95", "uniform_400"),
        ),
        "JEST beside uniform training with as many forward passes, by one "
        "seed: up to 0.9 no gain and no loss is seen that is above what one "
        "seed can tell, one to two points, and at 0.95 it ends no higher and "
        "perhaps lower. Their schedules are of different lengths, which is to "
        "the good of the longer one. By easy-reference scores cost no pass of "
        "the learner, and the gain is left whole; but its steps read and "
        "decode as large a super-batch, which the seconds show.",
    ),
    "ratio": (
        (
            *("jest_400_f50", "jest_400", "jest_400_f90", "jest_400_f95"),
            *("easy_reference_f50", "easy_reference_f80"),
            *("easy_reference_f90", "easy_reference_f95"),
            *("hard_learner_f50", "hard_learner_f80"),
            *("hard_learner_f90", "hard_learner_f95"),
        ),
        "The more is left out, the more a step teaches, by learnability and "
        "by easy-reference; by hard-learner it does not. In 400 steps no "
        "difference is seen between easy-reference and learnability, and the "
        "first spends no pass of the learner on scores; which is what makes a "
        "stage 0 of it worth so much here.",
    ),
    "draw": (
        (
            *("jest_400", "chunks_1", "chunks_2", "chunks_4", "chunks_8"),
            *("chunks_32", "gain_25", "top"),
        ),
        "A gain of a quarter gives half of what JEST gains away. From two "
        "chunks on no difference is to be seen; one is behind, in 400 steps "
        "hardly by more than a seed can tell, and in 750 (the cell "
        "independent, three seeds) by more. Without noise the draw is as good.",
    ),
    "scores": (
        (
            *("jest_400", "warm_scale", "crops"),
            *("uniform_400", "uniform_warm_scale", "uniform_crops"),
        ),
        "A scale that begins near the reference's is no gain, with JEST or "
        "without it: that the learner's is still low early on is not where "
        "JEST loses. Crops are no gain in so few steps, and a loss without "
        "JEST.",
    ),
    "coarse": (
        ("flexi", "jest_750", "flexi_2500", "jest_2500", "flexi_scoring"),
        "Flexi-JEST has two fifths of JEST's FLOPs and ends below it, further "
        "below in the longer run. There it ends about where uniform training "
        "does, on half of the examples and a little more than half of the "
        "FLOPs; one seed of three never comes to its target. Coarse scores "
        "alone choose "
        "no better than fine ones, perhaps worse: the learner is trained on no "
        "small pictures, and its losses on the chosen ones grow.",
    ),
    "learner": (
        (
            *("jest_400", "uniform_400", "sigmoid", "sigmoid_uniform"),
            *("sigmoid_scored", "sigmoid_by_sigmoid"),
            *("jest_b128", "uniform_b128", "jest_b512", "uniform_b512"),
        ),
        "At each batch size JEST ends above uniform training in as many steps, "
        "by the more the larger the batch; by the sigmoid loss, by which both "
        "learn more slowly, by less. Uniform training at b = 128, and by the "
        "sigmoid loss, has hardly left chance after 400 steps. By the sigmoid "
        "loss the reference, which has learned by softmax and knows no bias, "
        "has a loss that is by far the larger part of a score; but by scores "
        "of the softmax loss, or by a reference that has learned by sigmoid, "
        "the learner gains no more, by one seed each.",
    ),
    "reference": (
        ("best", "best_by_curated", "best_by_pool", "best_by_filtered"),
        "What a reference was trained on counts. One of the pool alone has "
        "nothing to hand over; the mix with the fifth of the pool that fits "
        "the curated set is above the mix with all of it, by three seeds. By "
        "one seed, and with wide intervals, the curated set alone is not "
        "measurably different from that on the tests, and behind on held-out "
        "concepts of the validation.",
    ),
    "pool": (
        (
            *("filtered", "emoji", "uniform_distinct", "best_distinct"),
            *("uniform_chosen", "uniform_750", "best", "jest_400", "jest_750"),
        ),
        "A fifth of the pool that is cut once does for a uniform learner what "
        "JEST does in the step, or more, in as many steps and without its "
        "scoring. The pool of emoji art shows what a perfect choice of the "
        "kind would give: the tests are of it, and a uniform learner on "
        "nothing else ends above the long one within 750 steps, by what it "
        "gains in style, and below it on held-out concepts. Look-alikes "
        "are not what to cut from this pool: a third of it is left without "
        "them, and a sixth of its emoji art, which is the same designs in "
        "several styles; the best loses ten points by that. Draws of stage 0 "
        "have fewer look-alikes than uniform ones anyway.",
    ),
    "cascade": (
        (
            *("stage_0_k5", "stage_0_k12", "stage_0_k25", "stage_0_k50"),
            *("cascade_400", "cascade_coarse", "cascade_floor"),
            *("cascade_warm", "jest_400"),
        ),
        "The more stage 0 looks at, the more its steps teach, up to 25 times "
        "what is trained on; of 50 tests and validation do not agree. One in "
        "five, chosen by stage 0 (K = 5), is about what JEST with its "
        "scoring does. To leave the last half of a "
        "choice of 25 to learnability (cascade_400) is no gain over stage 0 "
        "alone with K = 25 that the interval of one seed bears out, at 1.7 "
        "times the cost. A lower gain of stage 0 loses what it is for; a "
        "quarter of it uniform, and coarse scores, change little.",
    ),
    "inferred": (
        ("best", "best_by_inferred", "best_by_pool"),
        "A set inferred from the 640 examples of `val_concept`, with nothing "
        "else curated, makes up for about half of what lies between the "
        "best by a reference of the pool and by the hand-curated one. What "
        "that reference scores on `val_concept` is not a held-out score.",
    ),
    "best": (
        (
            *("best", "best_1500", "best_1500_fade", "best_1500_half"),
            *("best_3000_fade", "best_3000_half", "best_3000_uniform"),
            *("mixed_3000", "reference"),
        ),
        "Given more steps the best ends about where its reference does; let go "
        "of it halfway, above. That half of stage 0 is drawn uniformly is "
        "worth some four points on held-out concepts in 3,000 steps, by three "
        "seeds, and takes nothing that can be seen in style. Distilled as long "
        "but with nothing chosen it ends some ten points lower, all of it in "
        "style, by one seed. As many steps of uniform training on the curated "
        "set and the pool, half each, end level with those that choose: what "
        "choice and distillation bring, the set brings to a learner that may "
        "train on it, but for held-out concepts, where this one is below the "
        "half that is uniform.",
    ),
    "noise": (
        (
            *("uniform_1500", "jest_400", "reference", "best"),
            *("uniform_noise75", "jest_noise75", "best_noise75"),
        ),
        "The more noise, the less a uniform learner has in 1,500 steps, down "
        "to next to nothing; a reference, half of whose examples are curated, "
        "loses little, and the best stays far above. JEST after 400 steps is "
        "behind uniform training after 1,500 on the pool as it is, and level "
        "with it from 25 % of noise on: noise takes less from it, by one seed.",
    ),
    "moved": (
        ("jest_noise50", "easy_reference_noise50", "hard_learner_noise50"),
        "Where half of the captions are moved, easy-reference chooses fewer of "
        "them than there are, and goes on to: no more than a fifth fewer, as "
        "its reference has half of its training from that pool. JEST begins "
        "so and loses it in these 400 steps, in both seeds: a moved caption "
        "stays hard for the learner while others become easier, and by "
        "hard-learner alone more than half of the chosen are moved in the end.",
    ),
    "scorer": (
        ("jest_400", "jest_by_curated", "jest_by_pool", "uniform_400"),
        "What scores decides in the step, too. By a reference of the curated "
        "set alone JEST gains more than by one of that and the pool; by one "
        "of the pool alone it keeps a third of its gain, and is ahead of "
        "uniform training still.",
    ),
    "noisy": (
        (
            *("jest_noise25", "jest_noise50", "jest_noise75"),
            *(f"uniform_400_noise{share}" for share in (25, 50, 75)),
        ),
        "In as many steps JEST gains at every level of noise, the less the "
        "more noise there is: at 75 % hardly more than a seed can tell.",
    ),
    "over_time": (
        ("jest_750", "jest_2500", "jest_5000", "reference"),
        "What becomes of JEST's choice with time. The pool is offered nearly "
        "three times in 750 steps, nine times in 2,500 and eighteen times in "
        "5,000, and the more often it is offered, the fewer of the chosen are "
        "new: a blind choice of a fifth would leave an effective filter ratio "
        "of 0.8 to the power of the times, which is below what JEST has. What "
        "a larger pool would change has not been measured. The longer the "
        "run, the more of what is chosen are logos, in the longest more than "
        "twice their share of the pool, and emoji art becomes about a seventh "
        "less. The learner's scale stays near its initial one for most of 750 "
        "steps, so that its losses are compared with those of a reference "
        "whose scale is more than twice as high; after 5,000 both are alike.",
    ),
    "icons": (
        ("uniform", "uniform_10000", "jest_5000", "best_3000_half"),
        "What methods lose on held-out concepts they lose where icons teach "
        "them: held against uniform training for 10,000 steps they are behind "
        "on concepts that icons name or have the words of, and on the others "
        "level with it. JEST is above as many steps of uniform training on "
        "those others alone. They choose emoji art, and fewer icons than a "
        "uniform draw has.",
    ),
}


@dataclasses.dataclass(frozen=True)
class Question:
    """One table.

    Attributes:
        name: its key of `FOUND`, if it has been answered.
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
_HARD = tuple(f"hard_learner_{size}" for size, _ in _SIZES)
_CHUNKS = (1, 2, 4, 8, 32)
# By the noise added, in percent: uniform, reference, JEST and the best.
LEVELS = {
    0: ("uniform_1500", "reference", "jest_400", "best"),
    **{
        share: tuple(
            f"{name}_noise{share}"
            for name in ("uniform", "reference", "jest", "best")
        )
        for share in (25, 50, 75)
    },
}

QUESTIONS = (
    Question(
        "ratio",
        "Filter ratio and criterion",
        _against("uniform_400", *_LEARNABILITY, *_EASY, *_HARD),
    ),
    Question(
        "compute",
        "Filter ratio at equal compute",
        (
            ("jest_400_f50", "uniform_667"),
            ("jest_400", "uniform_1067"),
            ("jest_400_f90", "uniform_1733"),
            ("jest_400_f95", "uniform_3067"),
            *_against(
                "uniform_400", "easy_reference_f90", "easy_reference_f95"
            ),
        ),
    ),
    Question(
        "draw",
        "The draw: chunks, gain, noise",
        _against(
            *("jest_400", *(f"chunks_{n}" for n in _CHUNKS), "gain_25", "top"),
        ),
    ),
    Question(
        "scores",
        "The initial scale, and crops",
        (
            *_against("jest_400", "warm_scale", "crops"),
            *_against("uniform_400", "uniform_warm_scale", "uniform_crops"),
            ("warm_scale", "uniform_warm_scale"),
            ("crops", "uniform_crops"),
        ),
    ),
    Question(
        "coarse",
        "Small pictures: Flexi-JEST, and coarse scores alone",
        (
            *(("flexi", "jest_750"), ("flexi_2500", "jest_2500")),
            *(("flexi_2500", "uniform"), ("flexi_scoring", "jest_400")),
        ),
    ),
    Question(
        "learner",
        "Loss and batch size: JEST beside uniform",
        (
            ("jest_400", "uniform_400"),
            *_against(
                *("sigmoid_uniform", "sigmoid"),
                *("sigmoid_scored", "sigmoid_by_sigmoid"),
            ),
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
                *("cascade_400", "cascade_coarse"),
                *("cascade_floor", "cascade_warm"),
                *(f"stage_0_k{size}" for size in (5, 12, 25, 50)),
            ),
        ),
    ),
    Question(
        "scorer",
        "JEST by references of the curated set alone and of the pool alone",
        (
            *_against("jest_400", "jest_by_curated", "jest_by_pool"),
            ("jest_by_pool", "uniform_400"),
        ),
    ),
    Question(
        "noisy",
        "Caption noise, 400 steps each",
        (
            *(
                (f"jest_noise{share}", f"uniform_400_noise{share}")
                for share in (25, 50, 75)
            ),
            *_against(
                *("uniform_400_noise50", "easy_reference_noise50"),
                "hard_learner_noise50",
            ),
        ),
    ),
    Question(
        "pool",
        "Pools cut once, before training",
        (
            *_against("uniform_750", "filtered", "emoji", "uniform_distinct"),
            ("best_distinct", "best"),
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
            ("best_2e-3", "best_plain"),
            ("best_1500_fade", "best_1500"),
            ("best_1500_half", "best_1500_fade"),
            ("best_3000_half", "best_3000_fade"),
            *_against("best_3000_uniform", "best_3000_fade", "best_3000_half"),
            *_against("mixed_3000", "best_3000_fade", "best_3000_half"),
            ("best_1500", "stage_0_1500"),
            *_against("reference", "best_1500", "best_1500_fade"),
            ("best_1500_half", "uniform"),
            *_against("best", "best_by_filtered", "best_by_wide"),
            ("best_by_curated", "best"),
            ("best_by_curated", "best_by_filtered"),
            ("best_plain_8e-3", "best_plain"),
            ("best_plain_8e-3", "best"),
        ),
    ),
)

# What is held against what on concepts that icons teach and on the others.
BY_ICONS = (
    *_against("uniform", "jest_5000"),
    *_against(
        *("uniform_10000", "jest_5000", "stage_0_3000", "best_3000_fade"),
        *("best_3000_half", "mixed_3000"),
    ),
)

PANELS = (
    Panel(
        "Criteria and filter ratios, 400 steps",
        "super-batch / b",
        {
            about: tuple(
                (size, cell)
                for (_, size), cell in zip(_SIZES, cells, strict=True)
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
            "learnability": (
                *((n, f"chunks_{n}") for n in _CHUNKS if n < 16),
                *((16, "jest_400"), (32, "chunks_32")),
            )
        },
        "uniform_400",
    ),
    Panel(
        "Batch size, 400 steps each",
        "b",
        {
            label: (
                (128, f"{name}_b128"),
                (256, f"{name}_400"),
                (512, f"{name}_b512"),
            )
            for label, name in (
                ("uniform", "uniform"),
                ("learnability", "jest"),
            )
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

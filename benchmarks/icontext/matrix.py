"""Which runs the benchmark is made of. Data, no code: one `Cell` a run.

A cell is a recipe of `configs/` with settings changed, on some pool, with some
reference, for some seeds. Cells of one seed start from the same weights and
see the same stream. To add a cell, add a line; runs that are there stay.
"""

import dataclasses
import itertools

SEEDS = (0, 1, 2)
POOL_SIZE = 352_327  # pairs, of the pinned packages


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run, for each of its seeds.

    Attributes:
        name: unique in all matrices.
        recipe: "reference", "uniform", "jest", "flexi" or "best", of
            configs/icontext_*.py.
        about: what it is, for tables.
        settings: what differs from the recipe, "a.b=c" each.
        seeds: one run each.
        sources: the splits and pools that it trains on, in equal shares.
        reference: the cell whose seed 0 scores beside the learner, or "".
        evaluations: in a run, at most, evenly spread.
    """

    name: str
    recipe: str
    about: str
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    sources: tuple[str, ...] = ("pool",)
    reference: str = "reference"
    evaluations: int = 20

    @property
    def key(self):
        """What its sidecars lie under: reference and pool."""
        return f"{self.reference}-{'-'.join(self.sources)}"


# By whose embeddings a pool is cut from the whole. What is inferred from tasks
# must owe nothing to the curated set; and by those of the pool's own reference
# fewest pictures look alike that are not.
JUDGES = {
    "filtered": "reference_curated",
    "chosen": "reference",
    "inferred": "reference_pool",
    "distinct": "reference_pool",
}


def _reference(name, about, *settings, sources=("reference", "pool")):
    return Cell(
        name, "reference", about, settings, sources=sources, reference=""
    )


def _uniform(name, about, *settings, seeds=(0,), sources=("pool",)):
    return Cell(name, "uniform", about, settings, seeds, sources, "")


def _jest(name, about, *settings, seeds=(0,), **places):
    return Cell(name, "jest", about, settings, seeds, **places)


REFERENCES = (
    _reference("reference", "curated and pool, half each"),
    _reference("reference_curated", "curated only", sources=("reference",)),
    _reference("reference_pool", "pool only", sources=("pool",)),
    _reference(
        "reference_filtered",
        "curated and the fifth of the pool that fits best, half each",
        sources=("reference", "filtered"),
    ),
    _reference(
        "reference_inferred",
        "what trainers.curate finds like the validation tasks, and pool",
        sources=("inferred", "pool"),
    ),
    _reference(
        "reference_wide",
        "curated and pool, half each, by a net twice as wide",
        "model.towers=benchmarks.icontext.towers:build_wide",
    ),
)

# How long the learners are, each with its own schedule: those of sweeps,
# those of most claims, and a thirteenth of the long uniform learner's steps,
# which is what the best is sought for.
_SHORT, _MIDDLE, _BEST = "steps=400", "steps=750", "steps=380"
_WARM_UP = "optimizer.warmup_steps=30"
_SIGMOID = "model.loss=sigmoid"
_CROPS = ("data.min_crop_area=0.6", "data.flip=true")


def _rate(value):
    return f"optimizer.learning_rate={value}"


def _super_batch(size):
    return f"data.super_batch_size={size}"


def _cascade(size, super_batch_size, *settings):
    """Settings of a stage 0 that reads `super_batch_size` of `size`."""
    return (
        f"cascade.hyper_batch_size={size}",
        _super_batch(super_batch_size),
        *settings,
    )


# Stage 0 gives the sub-batch itself, and no pass is spent on scores.
_ALONE = "selection.batch_size=none"
_COARSE = "selection.view.image_size=16"


def _distil(weight):
    return f"reference.distillation_weight={weight}"


def _best(name, about, *settings, seeds=(0,), **places):
    return Cell(name, "best", about, settings, seeds, **places)


# The best, and what is left of it where one of its parts is taken away. Without
# distillation the uniform recipe's rate is the better one.
_OWN_RATE = _rate("2e-3")
_FADE = "reference.distillation_steps=750"
_HALF_UNIFORM = "cascade.uniform_share=0.5"
_PARTS = (
    _best("best", "K = 25 and nothing after it, distilled", seeds=SEEDS),
    _best("best_200", "the same for 200 steps", "steps=200", seeds=SEEDS),
    _best(
        "best_uniform",
        "the best without stage 0: uniform, distilled",
        "cascade.hyper_batch_size=none",
        seeds=SEEDS,
    ),
    _best(
        "best_plain",
        "the best without distillation, 2e-3",
        _distil(0),
        _OWN_RATE,
        seeds=SEEDS,
    ),
    _uniform(
        "best_neither",
        "without both: uniform, 2e-3",
        _BEST,
        _WARM_UP,
        seeds=SEEDS,
    ),
    _best(
        "best_2e-3",
        "the best at 2e-3",
        _OWN_RATE,
        seeds=SEEDS,
    ),
    _best(
        "best_plain_8e-3",
        "the best without distillation, 8e-3",
        _distil(0),
    ),
    _best(
        "best_weight_1",
        "the best with weight 1 of distillation, 2e-3",
        _distil(1),
        _OWN_RATE,
    ),
    # Longer, which is to show whether what it lacks comes with time, with a
    # loss of its own in the end, or with all that the choice passes over.
    *(
        _best(
            f"best_{steps}{name}",
            f"the best for {steps:,} steps{about}",
            f"steps={steps}",
            *settings,
            seeds=seeds,
        )
        for steps, name, about, settings, seeds in (
            (1500, "", "", (), SEEDS[:1]),
            (1500, "_fade", ", distilled for the first half", (_FADE,), SEEDS),
            (
                1500,
                "_half",
                ", distilled for the first half, half of stage 0 uniform",
                (_FADE, _HALF_UNIFORM),
                SEEDS[:1],
            ),
            (3000, "_fade", ", distilled for a quarter", (_FADE,), SEEDS),
            (
                3000,
                "_uniform",
                ", distilled for a quarter, without stage 0",
                (_FADE, "cascade.hyper_batch_size=none"),
                SEEDS[:1],
            ),
            (
                3000,
                "_half",
                ", distilled for a quarter, half of stage 0 uniform",
                (_FADE, _HALF_UNIFORM),
                SEEDS,
            ),
        )
    ),
    _best(
        "best_distinct",
        "the best on the pool without look-alikes",
        sources=("distinct",),
    ),
    _best(
        "best_jest",
        "joint, f = 0.8, without stage 0, distilled",
        "cascade.hyper_batch_size=none",
        _super_batch(1280),
        "selection.method=joint",
        "selection.batch_size=256",
    ),
)

# The paper's claims, with three seeds where a claim needs them.
MAIN = (
    _uniform("uniform", "uniform, long", seeds=SEEDS),
    _uniform("uniform_750", "uniform", _MIDDLE, seeds=SEEDS),
    _uniform("uniform_1500", "uniform", "steps=1500"),
    # The forward passes of 750 steps of JEST.
    _uniform("uniform_2000", "uniform", "steps=2000"),
    # Where the long one goes on to, and what comes there.
    _uniform("uniform_10000", "uniform", "steps=10000", seeds=SEEDS),
    # A reference for longer, and in three seeds: what the curated set alone
    # is worth to a learner for which nothing is chosen.
    _uniform(
        "mixed_3000",
        "uniform on curated and pool, half each",
        "steps=3000",
        *_CROPS,
        seeds=SEEDS,
        sources=("reference", "pool"),
    ),
    _jest(
        "jest_5000",
        "joint, learnability, f = 0.8",
        "steps=5000",
        seeds=SEEDS,
    ),
    _jest("jest_750", "joint, learnability, f = 0.8", _MIDDLE, seeds=SEEDS),
    _jest(
        "jest_2500",
        "joint, learnability, f = 0.8",
        "steps=2500",
        seeds=SEEDS,
    ),
    _uniform(
        "uniform_distinct",
        "uniform on the pool without look-alikes",
        _MIDDLE,
        sources=("distinct",),
    ),
    Cell(
        "flexi",
        "flexi",
        "scored at 16 pixels, trained at 16 and at 32",
        (_MIDDLE,),
        seeds=SEEDS,
    ),
    Cell(
        "flexi_2500",
        "flexi",
        "scored at 16 pixels, trained at 16 and at 32",
        ("steps=2500",),
        seeds=SEEDS,
    ),
    _jest(
        "independent",
        "independent, learnability, f = 0.8",
        _MIDDLE,
        "selection.method=independent",
        seeds=SEEDS,
    ),
    _jest(
        "easy",
        "joint, easy-reference, f = 0.8",
        _MIDDLE,
        "selection.criterion=easy_reference",
    ),
    _uniform(
        "filtered",
        "uniform on the fifth of the pool that fits the curated best",
        _MIDDLE,
        sources=("filtered",),
    ),
    _uniform(
        "emoji",
        "uniform on the pool's emoji art, which no score had to find",
        _MIDDLE,
        sources=("emoji",),
    ),
    _jest(
        "cascade_1500",
        "K = 12.5, then joint, f = 0.5",
        "steps=1500",
        *_cascade(6400, 512),
    ),
    _jest(
        "stage_0_1500",
        "K = 25 and nothing after it",
        "steps=1500",
        *_cascade(6400, 256, _ALONE),
        seeds=SEEDS,
    ),
    _jest(
        "stage_0_3000",
        "K = 25 and nothing after it",
        "steps=3000",
        *_cascade(6400, 256, _ALONE),
    ),
)

# Captions that are another picture's: what the methods do on such pools. Each
# has a reference that has seen no better pool.
NOISE = tuple(
    cell
    for share in (25, 50, 75)
    for cell in (
        _reference(
            f"reference_noise{share}",
            f"curated and the pool with {share} % noise, half each",
            sources=("reference", f"noise{share}"),
        ),
        _uniform(
            f"uniform_noise{share}",
            f"uniform, {share} % noise",
            "steps=1500",
            sources=(f"noise{share}",),
        ),
        _jest(
            f"jest_noise{share}",
            f"joint, f = 0.8, {share} % noise",
            _SHORT,
            sources=(f"noise{share}",),
            reference=f"reference_noise{share}",
        ),
        _best(
            f"best_noise{share}",
            f"the best, {share} % noise",
            sources=(f"noise{share}",),
            reference=f"reference_noise{share}",
        ),
    )
)

# What scores, and what it was trained on.
BY_REFERENCE = (
    *(
        _jest(
            f"stage_0_by_{name}",
            f"K = 25 and nothing after it, scored by {name}",
            _SHORT,
            *_cascade(6400, 256, _ALONE),
            reference=f"reference_{name}",
        )
        for name in ("curated", "pool", "filtered", "inferred", "wide")
    ),
    *(
        _best(
            f"best_by_{name}",
            f"the best, by {name}",
            seeds=seeds,
            reference=f"reference_{name}",
        )
        for name, seeds in (
            ("curated", (0,)),
            ("pool", (0,)),
            ("filtered", SEEDS),
            ("inferred", (0,)),
            ("wide", SEEDS),
        )
    ),
)

_SWEPT = (
    _uniform("uniform_400", "uniform", _SHORT),
    _jest("jest_400", "joint, learnability, f = 0.8", _SHORT),
    *(
        _jest(
            f"jest_400_f{percent}", f"f = {ratio}", _SHORT, _super_batch(size)
        )
        for percent, ratio, size in (
            (50, 0.5, 512),
            (90, 0.9, 2560),
            (95, 0.95, 5120),
        )
    ),
    *(
        _jest(
            f"{criterion}_f{round(100 - 25600 / size)}",
            f"{criterion.replace('_', '-')}, f = {1 - 256 / size:g}",
            _SHORT,
            f"selection.criterion={criterion}",
            _super_batch(size),
        )
        for criterion, sizes in (
            ("easy_reference", (512, 1280, 2560, 5120)),
            ("hard_learner", (512, 1280, 2560, 5120)),
        )
        for size in sizes
    ),
    *(
        _jest(
            f"chunks_{count}",
            f"N = {count}",
            _SHORT,
            f"selection.num_chunks={count}",
        )
        for count in (1, 2, 4, 8, 32)
    ),
    _uniform("sigmoid_uniform", "sigmoid, uniform", _SHORT, _SIGMOID),
    _jest(
        "sigmoid",
        "sigmoid, joint; the reference has learned with softmax",
        _SHORT,
        _SIGMOID,
    ),
    *(
        cell
        for size in (128, 512)
        for cell in (
            _uniform(
                f"uniform_b{size}",
                f"uniform, b = {size}",
                _SHORT,
                _super_batch(size),
            ),
            _jest(
                f"jest_b{size}",
                f"joint, b = {size}",
                _SHORT,
                _super_batch(5 * size),
                f"selection.batch_size={size}",
            ),
        )
    ),
    *(
        _jest(f"cascade_{name}", f"cascade, {about}", _SHORT, *settings)
        for name, about, settings in (
            ("400", "K = 12.5, f = 0.5", _cascade(6400, 512)),
            (
                "coarse",
                "K = 12.5, f = 0.5, scored at 16 pixels",
                _cascade(6400, 512, _COARSE),
            ),
            (
                "floor",
                "K = 12.5, f = 0.5, a quarter of stage 0 uniform",
                _cascade(6400, 512, "cascade.uniform_share=0.25"),
            ),
            (
                "warm",
                "K = 12.5, f = 0.5, gain of stage 0 0.25",
                _cascade(6400, 512, "cascade.gain=0.25"),
            ),
        )
    ),
    *(
        _jest(
            f"stage_0_k{size // 256}",
            f"K = {size / 256:g} and nothing after it",
            _SHORT,
            *_cascade(size, 256, _ALONE),
        )
        for size in (1280, 3200, 6400, 12800)
    ),
    _uniform(
        "uniform_chosen",
        "uniform on the fifth that trainers.curate chooses jointly",
        _SHORT,
        sources=("chosen",),
    ),
    _jest(
        "cascade_chosen",
        "cascade on that fifth, K = 5, then f = 0.5",
        _SHORT,
        *_cascade(2560, 512),
        sources=("chosen",),
    ),
    _jest("flexi_scoring", "scored at 16 pixels", _SHORT, _COARSE),
    _jest("gain_25", "gain 0.25", _SHORT, "selection.gain=0.25"),
    _jest(
        "top", "the most learnable, no noise", _SHORT, "selection.method=top"
    ),
    _jest("warm_scale", "initial scale 30", _SHORT, "model.temperature=30"),
    _uniform(
        "uniform_warm_scale",
        "uniform, initial scale 30",
        _SHORT,
        "model.temperature=30",
    ),
    _jest(
        "crops",
        "trained on crops and mirrored pictures",
        _SHORT,
        *_CROPS,
    ),
    _uniform(
        "uniform_crops",
        "uniform, on crops and mirrored pictures",
        _SHORT,
        *_CROPS,
    ),
)

# One seed each and short; `jest_400` is what they are held against. Their end
# is what counts, so that few evaluations do.
SWEEPS = tuple(dataclasses.replace(cell, evaluations=4) for cell in _SWEPT)

# Where JEST loses what it could gain, beside what the standard matrix says.
_LOSES = (
    # The forward passes of 400 steps of JEST, at each filter ratio.
    *(
        _uniform(f"uniform_{steps}", "uniform", f"steps={steps}")
        for steps in (667, 1067, 1733, 3067)
    ),
    *(
        _jest(
            f"jest_by_{name}",
            f"joint, learnability, f = 0.8, scored by {name}",
            _SHORT,
            reference=f"reference_{name}",
        )
        for name in ("curated", "pool")
    ),
    _jest(
        "sigmoid_scored",
        "sigmoid, joint; scored by softmax",
        _SHORT,
        _SIGMOID,
        "selection.loss=softmax",
    ),
    _reference(
        "reference_sigmoid", "curated and pool, half each; sigmoid", _SIGMOID
    ),
    _jest(
        "sigmoid_by_sigmoid",
        "sigmoid, joint; the reference has learned with sigmoid",
        _SHORT,
        _SIGMOID,
        reference="reference_sigmoid",
    ),
    *(
        _uniform(
            f"uniform_400_noise{share}",
            f"uniform, {share} % noise",
            _SHORT,
            sources=(f"noise{share}",),
        )
        for share in (25, 50, 75)
    ),
    *(
        _jest(
            f"{criterion}_noise50",
            f"joint, {criterion.replace('_', '-')}, f = 0.8, 50 % noise",
            _SHORT,
            f"selection.criterion={criterion}",
            sources=("noise50",),
            reference="reference_noise50",
        )
        for criterion in ("easy_reference", "hard_learner")
    ),
)
LOSES = tuple(dataclasses.replace(cell, evaluations=4) for cell in _LOSES)

QUICK = (
    _reference("quick_reference", "curated and pool", "steps=300"),
    _uniform("quick_uniform", "uniform", "steps=600"),
    _jest(
        "quick_jest",
        "joint, learnability, f = 0.8",
        "steps=200",
        reference="quick_reference",
    ),
    _jest(
        "quick_cascade",
        "cascade, K = 12.5, then f = 0.5",
        "steps=200",
        *_cascade(6400, 512),
        reference="quick_reference",
    ),
)

_ALL_STAGE_0 = _cascade(6400, 256, _ALONE)
_HALF_LEFT = _cascade(6400, 512)
_SCALE = "model.temperature=30"
_QUICK_START = (*_ALL_STAGE_0, _WARM_UP, _SCALE)

# What settings were chosen by, on held-out concepts that no result is of.
TUNING = (
    REFERENCES[0],
    *(
        _uniform(
            f"tune_uniform_{name}",
            f"uniform, {about}",
            "steps=1500",
            *settings,
        )
        for name, about, settings in (
            ("2e-3", "sigmoid, learning rate 2e-3", (_SIGMOID,)),
            ("softmax", "softmax, learning rate 2e-3", ()),
            ("softmax_1e-3", "softmax, 1e-3", (_rate("1e-3"),)),
            ("softmax_4e-3", "softmax, 4e-3", (_rate("4e-3"),)),
            (
                "crops",
                "softmax, crops and mirrored pictures",
                _CROPS,
            ),
            (
                "scale",
                "softmax, 2e-3, short warm-up, initial scale 30",
                (_WARM_UP, _SCALE),
            ),
        )
    ),
    *(
        _jest(f"tune_jest_{rate}", f"joint, {rate}", _SHORT, _rate(rate))
        for rate in ("1e-3", "2e-3", "4e-3")
    ),
    *(
        _jest(f"tune_best_{name}", f"{about}, {_BEST}", _BEST, *settings)
        for name, about, settings in (
            ("start", "stage 0 alone, K = 25", (*_ALL_STAGE_0,)),
            ("warm_up", "the same, short warm-up", (*_ALL_STAGE_0, _WARM_UP)),
            (
                "4e-3",
                "4e-3, short warm-up",
                (*_ALL_STAGE_0, _WARM_UP, _rate("4e-3")),
            ),
            (
                "scale",
                "4e-3, short warm-up, initial scale 30",
                (*_QUICK_START, _rate("4e-3")),
            ),
            (
                "1e-3",
                "1e-3, short warm-up",
                (*_ALL_STAGE_0, _WARM_UP, _rate("1e-3")),
            ),
            ("cascade", "K = 12.5, then f = 0.5", (*_HALF_LEFT, _WARM_UP)),
            (
                "k50",
                "stage 0 alone, K = 50",
                (*_cascade(12800, 256, _ALONE), _WARM_UP),
            ),
            *(
                (
                    name,
                    f"stage 0 alone, distilled with weight {weight}",
                    (*_ALL_STAGE_0, _WARM_UP, _distil(weight)),
                )
                for name, weight in (("distil", 1), ("distil_4", 4))
            ),
            *(
                (
                    f"floor_{percent}",
                    f"stage 0 alone, K = 25, {percent} % uniform",
                    (
                        *_ALL_STAGE_0,
                        _WARM_UP,
                        f"cascade.uniform_share={percent / 100}",
                    ),
                )
                for percent in (25, 50)
            ),
        )
    ),
)

# How the best distils. Beside the concepts held out there are known concepts in
# two styles that no learner is trained on, those of the curated set.
DISTILLING = (
    REFERENCES[0],
    *(
        _best(
            f"distil_{name}",
            f"weight {weight}, {rate}{about}",
            _distil(weight),
            _rate(rate),
            *settings,
        )
        for name, weight, rate, about, settings in (
            ("16", 16, "2e-3", "", ()),
            ("64", 64, "2e-3", "", ()),
            ("16_4e-3", 16, "4e-3", "", ()),
            ("16_8e-3", 16, "8e-3", "", ()),
            ("16_k50", 16, "2e-3", ", K = 50", _cascade(12800, 256)),
            (
                "16_4e-3_floor",
                16,
                "4e-3",
                ", 25 % of stage 0 uniform",
                ("cascade.uniform_share=0.25",),
            ),
        )
    ),
)

_ALL = (
    *(*REFERENCES, *MAIN, *_PARTS, *NOISE, *BY_REFERENCE, *SWEEPS),
    *LOSES,
)
# What goes beyond the paper: the cascade, the best with all that is taken away
# from it or put in its place, a reference on an inferred set, and longer runs
# of uniform training and of JEST.
_BEYOND = {
    *(cell.name for cell in _ALL if cell.recipe == "best"),
    *(cell.name for cell in _ALL if cell.name.startswith("cascade_")),
    *(cell.name for cell in _ALL if cell.name.startswith("stage_0_")),
    *("best_neither", "reference_inferred", "emoji", "uniform_distinct"),
    *("uniform_10000", "jest_5000", "mixed_3000"),
} - {f"stage_0_by_{name}" for name in ("curated", "pool", "filtered", "wide")}
# What the paper claims nothing of, and what tells where JEST loses.
_DIAGNOSED = {
    *(cell.name for cell in LOSES),
    *("gain_25", "top", "warm_scale", "uniform_warm_scale"),
    *("crops", "uniform_crops", "flexi_scoring"),
}
# What claims rest on that has one seed in `standard`, and what is looked at
# for what it chooses.
_CLAIMED = {
    "jest_noise50",
    *("uniform_400", "jest_400"),
    *("jest_400_f50", "jest_400_f90", "jest_400_f95", "chunks_32"),
    *("easy_reference_f90", "easy_reference_f95", "hard_learner_f80"),
    *("stage_0_by_curated", "stage_0_by_pool"),
    *("uniform_2000", "filtered", "uniform_chosen"),
}


def _with_judges(cells):
    """Cells, each after the references that score for it or cut its pools."""
    known = {cell.name: cell for cell in _ALL}
    found = {}

    def add(cell):
        for name in (cell.reference, *map(JUDGES.get, cell.sources)):
            if name and name not in found:
                add(known[name])
        found[cell.name] = cell

    for cell in cells:
        add(cell)
    return tuple(found.values())


MATRICES = {
    "standard": _with_judges(
        cell for cell in _ALL if cell.name not in _BEYOND | _DIAGNOSED
    ),
    "diagnosis": _with_judges(cell for cell in _ALL if cell.name in _DIAGNOSED),
    "beyond": _with_judges(cell for cell in _ALL if cell.name in _BEYOND),
    "seeds": _with_judges(
        dataclasses.replace(cell, seeds=SEEDS[1:])
        for cell in _ALL
        if cell.name in _CLAIMED
    ),
    "quick": QUICK,
    "tuning": TUNING,
    "distilling": DISTILLING,
}

# The matrices whose results a report is of.
REPORTS = {
    "standard": ("standard", "diagnosis", "beyond", "seeds"),
    "quick": ("quick",),
}

# The splits that learners of a matrix are evaluated on; the others see all.
TUNED_ON = {
    "tuning": ("val_concept",),
    "distilling": ("val_concept", "reference"),
}


def reported(report):
    """The cells of a report, each once, with its seeds of all matrices."""
    found = {}
    for cell in itertools.chain(*(MATRICES[one] for one in REPORTS[report])):
        known = found.setdefault(cell.name, cell)
        seeds = dict.fromkeys((*known.seeds, *cell.seeds))
        found[cell.name] = dataclasses.replace(known, seeds=tuple(seeds))
    return tuple(found.values())


def find(name):
    """The cell of a name, whatever matrix it is in.

    Raises:
        ValueError: if there is none.
    """
    for cells in MATRICES.values():
        for cell in cells:
            if cell.name == name:
                return cell
    raise ValueError(f"there is no cell {name!r} in {sorted(MATRICES)}")

"""Which runs the benchmark is made of. Data, no code: one `Cell` a run.

A cell is a recipe of `configs/` with settings changed, on some pool, with some
reference, for some seeds. Cells of one seed start from the same weights and
see the same stream. To add a cell, add a line; runs that are there stay.
"""

import dataclasses

SEEDS = (0, 1, 2)
POOLS = ("pool", "noise25", "noise50", "noise75", "emoji", "filtered")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run, for each of its seeds.

    Attributes:
        name: unique in all matrices.
        recipe: "reference", "uniform", "jest" or "flexi", of
            configs/icontext_*.py.
        about: what it is, for tables.
        settings: what differs from the recipe, "a.b=c" each.
        seeds: one run each.
        sources: the splits and pools that it trains on, in equal shares.
        reference: the cell whose seed 0 scores beside the learner, or "".
    """

    name: str
    recipe: str
    about: str
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    sources: tuple[str, ...] = ("pool",)
    reference: str = "reference"

    @property
    def key(self):
        """What its sidecars lie under: reference and pool."""
        return f"{self.reference}-{'-'.join(self.sources)}"


# What scores the pool that is filtered.
JUDGE = "reference_curated"


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
        "reference_fine",
        "as the first, with patches of 4 pixels",
        "model.patch_size=4",
    ),
)

# The paper's claims; every cell with three seeds.
MAIN = (
    _uniform("uniform", "uniform, long", seeds=SEEDS),
    _uniform("uniform_1600", "uniform", "steps=1600", seeds=SEEDS),
    _jest("jest", "joint, learnability, f = 0.8", seeds=SEEDS),
    _jest("jest_800", "the same, half as long", "steps=800", seeds=SEEDS),
    _jest("jest_3200", "the same, twice as long", "steps=3200", seeds=SEEDS),
    _jest(
        "jest_f50",
        "joint, learnability, f = 0.5",
        "data.super_batch_size=512",
        seeds=SEEDS,
    ),
    _jest(
        "jest_f90",
        "joint, learnability, f = 0.9",
        "data.super_batch_size=2560",
        seeds=SEEDS,
    ),
    Cell("flexi", "flexi", "scored at patch 16, trained at both", seeds=SEEDS),
    _jest(
        "independent",
        "independent, learnability, f = 0.8",
        "selection.method=independent",
        seeds=SEEDS,
    ),
    _jest(
        "easy",
        "joint, easy-reference, f = 0.8",
        "selection.criterion=easy_reference",
        seeds=SEEDS,
    ),
    _jest(
        "hard",
        "joint, hard-learner, f = 0.8",
        "selection.criterion=hard_learner",
    ),
    _uniform(
        "filtered",
        "uniform on the fifth of the pool that fits the curated best",
        "steps=1600",
        seeds=SEEDS,
        sources=("filtered",),
    ),
    _uniform(
        "emoji",
        "uniform on the pool's emoji art, which no score had to find",
        "steps=1600",
        seeds=SEEDS,
        sources=("emoji",),
    ),
)

_SHORT = "steps=800"

# One seed each, half as long; `jest_800` is what they are held against.
SWEEPS = (
    _jest("jest_f95", "f = 0.95", _SHORT, "data.super_batch_size=5120"),
    *(
        _jest(
            f"chunks_{count}",
            f"N = {count}",
            _SHORT,
            f"selection.num_chunks={count}",
        )
        for count in (1, 2, 4, 8, 32)
    ),
    _uniform("uniform_800", "uniform", _SHORT),
    _uniform(
        "softmax_uniform", "softmax, uniform", _SHORT, "model.loss=softmax"
    ),
    _jest("softmax", "softmax, joint", _SHORT, "model.loss=softmax"),
    *(
        cell
        for size in (128, 512)
        for cell in (
            _uniform(
                f"uniform_b{size}",
                f"uniform, b = {size}",
                _SHORT,
                f"data.super_batch_size={size}",
            ),
            _jest(
                f"jest_b{size}",
                f"joint, b = {size}",
                _SHORT,
                f"data.super_batch_size={5 * size}",
                f"selection.batch_size={size}",
            ),
        )
    ),
    *(
        cell
        for share in (25, 50, 75)
        for cell in (
            _uniform(
                f"uniform_noise{share}",
                f"uniform, {share} % noise",
                _SHORT,
                sources=(f"noise{share}",),
            ),
            _jest(
                f"jest_noise{share}",
                f"joint, {share} % noise",
                _SHORT,
                sources=(f"noise{share}",),
            ),
        )
    ),
    *(
        _jest(
            f"by_{name}",
            f"scored by {name}",
            _SHORT,
            reference=f"reference_{name}",
        )
        for name in ("curated", "pool", "filtered", "fine")
    ),
    _jest(
        "flexi_scoring",
        "scored at patch 16",
        _SHORT,
        "selection.view.patch_size=16",
    ),
    _jest("gain_25", "gain 0.25", _SHORT, "selection.gain=0.25"),
    _jest("gain_4", "gain 4", _SHORT, "selection.gain=4"),
    _jest(
        "top", "the most learnable, no noise", _SHORT, "selection.method=top"
    ),
    _jest(
        "first_uniform",
        "first chunk uniform",
        _SHORT,
        "selection.first_chunk=uniform",
    ),
    _jest(
        "every_4",
        "every fourth step uniform",
        _SHORT,
        "selection.uniform_every=4",
    ),
    _jest(
        "rate_low", "learning rate 1e-3", _SHORT, "optimizer.learning_rate=1e-3"
    ),
    _jest(
        "rate_high",
        "learning rate 6e-3",
        _SHORT,
        "optimizer.learning_rate=6e-3",
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
        "data.min_crop_area=0.6",
        "data.flip=true",
    ),
)

QUICK = (
    _reference("quick_reference", "curated and pool", "steps=300"),
    _uniform("quick_uniform", "uniform", "steps=600"),
    _jest(
        "quick_jest",
        "joint, learnability, f = 0.8",
        "steps=200",
        reference="quick_reference",
    ),
)

# What settings were chosen by, on held-out concepts that no result is of.
TUNING = (
    REFERENCES[0],
    _uniform(
        "tune_uniform_crops",
        "uniform, trained on crops and mirrored pictures",
        "steps=1600",
        "data.min_crop_area=0.6",
        "data.flip=true",
    ),
    *(
        cell
        for rate in ("1e-3", "3e-3", "6e-3")
        for cell in (
            _uniform(
                f"tune_uniform_{rate}",
                f"uniform, learning rate {rate}",
                "steps=1600",
                f"optimizer.learning_rate={rate}",
            ),
            _jest(
                f"tune_jest_{rate}",
                f"joint, learning rate {rate}",
                _SHORT,
                f"optimizer.learning_rate={rate}",
            ),
        )
    ),
)

MATRICES = {
    "standard": (*REFERENCES, *MAIN, *SWEEPS),
    "quick": QUICK,
    "tuning": TUNING,
}


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

"""The runs of IconText, a line each.

A cell is a recipe of `configs/` with some settings changed, at one length or
several, with one seed or several. To add a cell, add a line to `CELLS`. A cell
that changes takes another name: what stands in the result tables is not run
again.
"""

import pathlib
import re

from benchmarks.protocol.benchmark import STAGE, Benchmark, Cell, live, stored

CLEAN_SETS = ("curated", "apart", "apart_permissive")
# Learners other than the usual; their methods' names begin with these.
LEARNERS = ("narrow_",)
_GIVEN = "web_curated_1000"  # the reference of the curated set
_THREE = (0, 1, 2)
_UNIFORM = (1125, 2250, 4500, 9000, 18_000, 36_000)
# Uniform training and balanced pools at 70 and 90 % of noise; 2e-3 elsewhere.
_SLOW = "optimizer.learning_rate=1e-3"
_FAST = " optimizer.learning_rate=4e-3"  # after other settings
_CURATED = "data.curated={data}/curated-*.tfrecord data.curated_rows="
_DRAWN = " selection.stages.0.captions=drawn"
# Renewals up to a length, and the shares of the pool that they embed.
_RENEWED = {
    1400: "150,300,600,1000 bootstrap.shares=0.3",
    2000: "150,300,600,1000 bootstrap.shares=0.3,0.3,0.3,1",
    2700: "150,300,600,1000,2000 bootstrap.shares=0.3,0.3,0.3,1,1",
    4500: "150,300,600,1000,2000,3000 bootstrap.shares=0.3,0.3,0.3,1,1,1",
    14_000: "150,300,600,1000,2000,3000,4500,6000,7500,9000,10500,12000 "
    "bootstrap.shares=0.3,0.3,0.3,1,1,1,1,1,1,1,1,1",
}


def _rate(rate):
    """Another learning rate than 2e-3 of the recipe."""
    return f" optimizer.learning_rate={rate}"


def _bootstrapped(method, steps, settings="", **changes):
    """A cell that renews its reference as others of its length do."""
    return Cell(
        method,
        (steps,),
        "data.curated={data}/curated-*.tfrecord "
        f"bootstrap.renew_at={_RENEWED[steps]} {settings}",
        recipe="icontext_web_bootstrap",
        **changes,
    )


def _renewed(steps, renewals):
    """A stored stage by the reference of the curated set, then renewed."""
    settings = f"{stored(3)} bootstrap.renew_at={renewals}"
    return Cell("renewed", (steps,), settings, reference=_GIVEN)


# A strong reference, trained on clean pairs of other families of icon sets.
STRONG = "apart_reference_3000"
_APART = "data.curated={data}/apart-*.tfrecord data.curated_rows=128"
_DISTILLED = "reference.distillation_weight=8"
# A learner of half the reference's width.
_NARROW = "model.towers=benchmarks.icontext.towers:build_narrow "
_PROJECTED = f"{_DISTILLED} reference.projection=128"
_SHORT = (350, 700, 1400)
_MIXED = (2250, 4500, 9000)
# The rate falls linearly to 0 in the last eighth.
_ANNEALED = "optimizer.schedule=benchmarks.protocol.schedules:annealed"
# Learners of a given reference begin with other weights than it did.
_OTHERS = (1, 2, 3)


def _part(method, lengths, settings="", **changes):
    """A cell on a part of the pool, chosen by the strong reference."""
    options = {"pool": "part70", "reference": STRONG}
    return Cell(method, lengths, settings, **options | changes)


def _by(steps):
    """Cells by a reference of fewer or more steps."""
    name = f"apart_reference_{steps}"
    for method, settings in (
        ("jest", live(5)),
        ("easy_reference", f"{live(5)} {STAGE}.criterion=easy_reference"),
        ("distilled", _DISTILLED),
        ("stored_3_distilled", f"{stored(3)} {_DISTILLED}"),
    ):
        yield _part(f"{method}_by_{steps}", (700,), settings, reference=name)


_REFERENCES = (
    *(
        Cell("reference", (steps,), pool="apart")
        for steps in (350, 800, 1600, 3000, 6000)
    ),
    # Ships with the examples.
    Cell("reference", (3000,), pool="apart_permissive"),
    Cell("sigmoid_reference", (3000,), "model.loss=sigmoid", pool="apart"),
)
_LEARNERS_OF_GIVEN = (
    Cell("uniform", (700,), _SLOW, pool="part70"),
    Cell("uniform", _UNIFORM, _SLOW, pool="part70"),
    _part("jest", _SHORT, live(5)),
    *(
        _part(method, (700,), live(settings))
        for method, settings in (
            ("jest_f50", "2"),
            ("jest_f90", "10"),
            ("jest_f95", "20"),
            ("independent", f"5 {STAGE}.method=independent"),
            ("easy_reference", f"5 {STAGE}.criterion=easy_reference"),
            ("hard_learner", f"5 {STAGE}.criterion=hard_learner"),
        )
    ),
    _part("distilled", _SHORT, _DISTILLED),
    _part("stored_3_distilled", _SHORT, f"{stored(3)} {_DISTILLED}"),
    *(cell for steps in (350, 800, 1600, 6000) for cell in _by(steps)),
    # In-batch negatives; a sigmoid loss has a term for each of them.
    *(
        _part(
            *(f"{method}_b1024", (350,)),
            f"selection.batch_size=1024 model.loss=sigmoid {live(5)} "
            f"{STAGE}.method={method}",
            reference="apart_sigmoid_reference_3000",
        )
        for method in ("joint", "independent")
    ),
    # The learner of half the width, at the rates that validation chose. The
    # reference data are the clean pairs that the reference was trained on.
    *(
        Cell(f"narrow_{name}", lengths, _NARROW + settings, pool=pool)
        for name, lengths, pool, settings in (
            ("uniform", _UNIFORM, "part70", _SLOW),
            ("uniform_at_5e-4", (9000,), "part70", _rate("5e-4")),
            ("uniform_at_2e-3", (9000,), "part70", ""),
            ("uniform_at_4e-3", (9000,), "part70", _FAST),
            ("clean", _SHORT, "part_clean70", _FAST),
            ("clean_at_2e-3", _SHORT, "part_clean70", ""),
            ("reference_data_at_4e-3", (700, 1400, 2800, 5600), "apart", _FAST),
            ("mixed_2_at_2e-3", _MIXED, "part70", _APART),
            ("mixed_2_at_4e-3", (9000,), "part70", _APART + _FAST),
        )
    ),
    *(
        _part(f"narrow_{method}{name}", _SHORT, _NARROW + settings + rate, **to)
        for name, rate, only in (
            ("", _FAST, None),
            ("_at_2e-3", "", None),
            ("_at_8e-3", _rate("8e-3"), ("jest", "stored_3_distilled")),
        )
        for method, settings, to in (
            ("jest", live(5), {}),
            ("flexi", "", {"recipe": "icontext_web_flexi"}),
            ("distilled", _PROJECTED, {}),
            *((f"stored_{n}", stored(n), {}) for n in (3, 5)),
            *(
                (f"stored_{n}_distilled", f"{stored(n)} {_PROJECTED}", {})
                for n in (3, 5)
            ),
        )
        if only is None or method in only
    ),
    # The rivals of a stage: the pool cut once, and JEST with distillation.
    *(
        _part(f"narrow_{method}", _SHORT, _NARROW + settings + _FAST, cut=cut)
        for method, settings, cut in (
            *((f"top_{n}", "", n) for n in (3, 5)),
            *((f"top_{n}_distilled", _PROJECTED, n) for n in (3, 5)),
            ("jest_distilled", f"{live(5)} {_PROJECTED}", 0),
            ("top_3_jest_distilled", f"{live(3)} {_PROJECTED}", 3),
        )
    ),
    # Uniform training, annealed at its own length; a decay cannot be extended.
    *(
        Cell(
            "narrow_uniform_annealed",
            (steps,),
            f"{_NARROW}{_SLOW} {_ANNEALED}",
            pool="part70",
        )
        for steps in (18_000, 36_000)
    ),
    # A reference of fewer steps, which costs less where its training counts.
    _part(
        *("narrow_stored_3_distilled_by_1600", _SHORT),
        f"{_NARROW}{stored(3)} {_PROJECTED}" + _FAST,
        reference="apart_reference_1600",
    ),
    # Other levels of noise.
    *(
        cell
        for noise in ("00", "30", "90")
        for cell in (
            Cell(
                *("uniform", _UNIFORM[:3]),
                _SLOW * (noise == "90"),
                pool=f"part{noise}",
            ),
            *(
                _part(method, (700,), settings, pool=f"part{noise}")
                for method, settings in (
                    ("jest", live(5)),
                    ("jest_f50", live(2)),
                    ("distilled", _DISTILLED),
                    ("stored_3_distilled", f"{stored(3)} {_DISTILLED}"),
                )
            ),
        )
    ),
)

CELLS = (
    Cell("curated", (1000,), "", _THREE, "curated"),
    Cell("uniform", (700,), _SLOW, _THREE),
    Cell("uniform", _UNIFORM, _SLOW, _THREE),
    Cell("mixed_8", (1125, 2250, 4500, 9000, 18_000), f"{_CURATED}32", _THREE),
    Cell("clean", (700, 1400, 2700, 4500), "", _THREE, "clean70"),
    Cell("jest_curated", (1400,), live(5), _THREE, reference=_GIVEN),
    *(
        Cell(
            *("cascade_curated", (steps,), stored(5) + _DRAWN, seeds),
            reference=_GIVEN,
        )
        for steps, seeds in ((1400, _THREE), (4500, (0, 1)))
    ),
    *(_bootstrapped("bootstrapped", n, seeds=_THREE) for n in _RENEWED),
    _renewed(1400, "300,600,1000 bootstrap.shares=0.3"),
    _renewed(4500, "300,600,1000,2000,3000 bootstrap.shares=0.3,0.3,1,1,1"),
    # Other levels of noise.
    *(
        cell
        for pool in ("pool00", "pool15", "pool30", "pool50")
        for cell in (
            Cell("uniform", (1125, 2250, 4500), pool=pool),
            Cell("mixed_8", (2250,), f"{_CURATED}32", pool=pool),
            _bootstrapped("bootstrapped", 1400, pool=pool),
        )
    ),
    _bootstrapped("bootstrapped_k2", 1400, live(2), pool="pool00"),
    _bootstrapped("bootstrapped_k2", 1400, live(2), pool="pool30"),
    *(Cell("clean", (1400,), pool=f"clean{level}") for level in (30, 50, 90)),
    Cell("uniform", (1125, 2250, 4500, 9000), _SLOW, pool="pool90"),
    Cell("mixed_8", (2250,), f"{_CURATED}32", pool="pool90"),
    Cell("jest_curated", (1400,), live(5), pool="pool90", reference=_GIVEN),
    _bootstrapped("bootstrapped", 1400, live(5), pool="pool90"),
    # JEST's settings that the paper compares.
    *(
        Cell(method, (700,), live(settings), _THREE, reference=_GIVEN)
        for method, settings in (
            ("jest_f50", "2"),
            ("jest_f80", "5"),
            ("jest_f90", "10"),
            ("jest_f95", "20"),
            ("independent", f"5 {STAGE}.method=independent"),
            ("chunks_32", f"5 {STAGE}.num_chunks=32"),
            ("easy_reference", f"5 {STAGE}.criterion=easy_reference"),
            ("hard_learner", f"5 {STAGE}.criterion=hard_learner"),
        )
    ),
    *_REFERENCES,
    *(cell._replace(seeds=_OTHERS) for cell in _LEARNERS_OF_GIVEN),
)


def family(style):
    """The family of an icon set: what its name begins with."""
    return re.sub(r"\d+$", "", style.split("-")[0])


BENCHMARK = Benchmark(
    name="icons",
    work="icontext-work",
    data="web",
    build="make icontext-data",
    tests=("test_sets",),
    validation=("val_sets",),
    clean_sets=CLEAN_SETS,
    learners=LEARNERS,
    cells=CELLS,
    domains=(),
    published=pathlib.Path(__file__).parent / "results" / "web",
    family=family,
)

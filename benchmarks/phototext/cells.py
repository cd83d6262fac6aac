"""The runs of PhotoText, a line each; see `protocol.benchmark.Cell`.

Learners have half the reference's width, those that are tuned all of it. A cell
that changes takes another name: what stands in the result tables is not run
again.
"""

import pathlib

from benchmarks.phototext import sources
from benchmarks.protocol.benchmark import Benchmark, Cell, live, stored

DOMAINS = ("fashion", "aerial", "flickr8k")
LARGE = "large"  # begins the names of methods with large batches
_CLEAN_SETS = (
    "apart",
    "apart_general",
    "apart_checked",
    *(f"apart_{source}" for source in sources.SOURCES),
)
_OTHERS = (1, 2, 3)  # references have seed 0
_LENGTHS = (100, 200, 400, 800)
_LONG = (*_LENGTHS, 1600)
_UNIFORM = (500, 1000, 2000, 4000)
_NARROW = "model.towers=benchmarks.phototext.towers:build_narrow"
_ANNEALED = "optimizer.schedule=benchmarks.protocol.schedules:annealed"
_DISTILLED = (
    "reference.distillation_weight=8 reference.projection=128 "
    "reference.similarity_weight=1"
)
# A stage, and distillation.
_STAGE = stored(3), _DISTILLED
_SAME_WIDTH = "reference.distillation_weight=4 reference.similarity_weight=1"
_CUT = {"cut": 3}
_APART = "data.curated={data}/apart-*.tfrecord data.curated_rows="
_GENERAL = "data.curated={data}/apart_general-*.tfrecord data.curated_rows=64"


def _rate(rate):
    return f"optimizer.learning_rate={rate}"


def reference(steps, domain=""):
    """Name of the run that trains a reference, of a domain or of all."""
    if domain:
        return f"apart_{domain}_reference_of_{domain}_{steps}"
    return f"apart_reference_{steps}"


REFERENCE = reference(2000)
OF_DOMAIN = {domain: reference(1000, domain) for domain in DOMAINS}


def _learner(method, lengths, *settings, pool="part70", rate="4e-3", **changes):
    words = " ".join((_NARROW, *settings, _rate(rate)))
    return Cell(
        method, lengths, words, _OTHERS, pool, recipe="photos"
    )._replace(**changes)


def _by(name, method, lengths, *settings, **changes):
    return _learner(method, lengths, *settings, reference=name, **changes)


_REFERENCES = (
    *(
        Cell("reference", (steps,), pool="apart", recipe="photos")
        for steps in (1000, 2000, 4000)
    ),
    *(
        Cell(
            f"reference_of_{domain}",
            (1000,),
            pool=f"apart_{domain}",
            recipe="photos",
        )
        for domain in DOMAINS
    ),
)
# Learning rates, a seed each.
_TRIALS = (
    *(
        _learner(f"uniform_at_{rate}", (1000,), rate=rate)
        for rate in ("5e-4", "2e-3", "8e-3")
    ),
    *(
        _learner(f"{method}_at_{rate}", (800,), *settings, rate=rate, **changes)
        for method, settings, changes in (
            ("jest", (live(5),), {"reference": REFERENCE}),
            ("stored_3_distilled", _STAGE, {"reference": REFERENCE}),
            ("top_3_distilled", (_DISTILLED,), {"reference": REFERENCE} | _CUT),
            ("reference_data", (), {"pool": "apart"}),
        )
        for rate in ("2e-3", "8e-3")
    ),
)
_MOVED = (
    _learner("uniform", _UNIFORM, rate="1e-3"),
    *(
        _learner("uniform_annealed", (steps,), _ANNEALED, rate="1e-3")
        for steps in (2000, 4000)
    ),
    _learner("clean", _LENGTHS, pool="part_clean70"),
    _learner("reference_data", _LONG, pool="apart"),
    _learner("mixed_2", (500, 1000, 2000), f"{_APART}128", rate="2e-3"),
    _by(REFERENCE, "jest", _LENGTHS, live(5)),
    _by(REFERENCE, "jest_distilled", _LONG, live(5), _DISTILLED),
    _by(REFERENCE, "distilled", _LONG, _DISTILLED),
    _by(REFERENCE, "stored_3", _LENGTHS, stored(3)),
    _by(REFERENCE, "stored_3_distilled", _LONG, *_STAGE),
    *(
        cell
        for n in (3, 5)
        for cell in (
            _by(REFERENCE, f"top_{n}", _LENGTHS, cut=n),
            _by(REFERENCE, f"top_{n}_distilled", _LONG, _DISTILLED, cut=n),
        )
    ),
    # Batches of 1,024, as many examples in all.
    *(
        cell._replace(
            method=f"{LARGE}_{cell.method}",
            lengths=tuple(n // 4 for n in cell.lengths),
            settings=f"{cell.settings} selection.batch_size=1024 "
            "optimizer.warmup_steps=50",
        )
        for cell in (
            _learner("uniform", _UNIFORM[1:], rate="2e-3"),
            *(
                _learner(f"uniform_at_{rate}", (2000,), rate=rate, seeds=(1,))
                for rate in ("1e-3", "4e-3")
            ),
            _by(REFERENCE, "jest", _LENGTHS[1:], live(5)),
            _by(REFERENCE, "top_5", _LENGTHS[1:], cut=5),
            _by(REFERENCE, "stored_3_distilled", _LONG[1:], *_STAGE),
            _by(REFERENCE, "top_3_distilled", _LONG[1:], _DISTILLED, cut=3),
        )
    ),
    # Without the false negatives that the reference marks.
    *(
        _by(
            *(REFERENCE, f"{method}_masked", (steps,)),
            *(*settings, "model.false_negatives=reference"),
            **{"pool": pool, "rate": rate, "seeds": (1,)},
        )
        for pool, method, steps, rate, settings in (
            ("part00", "uniform", 2000, "2e-3", ()),
            ("part70", "uniform", 2000, "1e-3", ()),
            ("part00", "distilled", 800, "4e-3", (_DISTILLED,)),
            ("part70", "jest", 800, "4e-3", (live(5),)),
            ("part70", "stored_3_distilled", 1600, "4e-3", _STAGE),
        )
    ),
    # The reference's clean pairs alone.
    _by(
        *(REFERENCE, "distilled_reference_data", _LONG, _DISTILLED),
        pool="apart",
    ),
    _by(
        *(REFERENCE, "top_3_jest_distilled", _LENGTHS),
        *(live(3), _DISTILLED),
        cut=3,
    ),
    *(
        cell
        for pool in ("part00", "part30")
        for cell in (
            _learner("uniform", _UNIFORM, pool=pool, rate="2e-3"),
            _by(REFERENCE, "jest", _LENGTHS, live(5), pool=pool),
            _by(REFERENCE, "distilled", _LENGTHS, _DISTILLED, pool=pool),
            _by(REFERENCE, "stored_3", _LENGTHS, stored(3), pool=pool),
            _by(REFERENCE, "top_3", _LENGTHS, cut=3, pool=pool),
            _by(REFERENCE, "stored_3_distilled", _LENGTHS, *_STAGE, pool=pool),
            _by(
                *(REFERENCE, "top_3_distilled", _LENGTHS, _DISTILLED),
                cut=3,
                pool=pool,
            ),
        )
    ),
)


def _steered(name, method, *settings, pool="part00", **changes):
    return _by(name, method, _LENGTHS, *settings, pool=pool, **changes)


_STEERED = tuple(
    cell._replace(domain=domain)
    for domain, name in OF_DOMAIN.items()
    for cell in (
        _steered(name, "jest", live(5)),
        _steered(name, "distilled", _DISTILLED),
        _steered(name, "stored_10", stored(10)),
        _steered(name, "top_10", cut=10),
        *(
            cell
            # Half of the pool is of fashion.
            for n in ((2, 10) if domain == "fashion" else (10,))
            for cell in (
                _steered(name, f"stored_{n}_distilled", stored(n), _DISTILLED),
                _steered(name, f"top_{n}_distilled", _DISTILLED, cut=n),
            )
        ),
        _learner("own_pairs", _LENGTHS, pool=f"part_{domain}00"),
        _steered(
            *(name, "own_pairs_distilled", _DISTILLED),
            pool=f"part_{domain}00",
        ),
        _learner("reference_data", _LENGTHS, pool=f"apart_{domain}"),
    )
)

# A general model is tuned on shop photographs. The copy is tuned on the checked
# pairs, and chooses. With it and embedding, a stage's 500 steps cost as 832 do.
START = "apart_general_general_3000"
COPY, SECOND_COPY = "tuned_copy_300", "tuned_second_copy_500"
_TUNED_LENGTHS = (125, 250, 500)
RATE, RATES = "4e-3", ("5e-4", "2e-3", "4e-3", "8e-3")
MIXES = 0.0, 0.25, 0.5, 0.75


def _renewed(times):
    steps = ",".join(str(step) for step in _RENEWALS[:times])
    return f"bootstrap.renew_at={steps}"


def _tuned(method, *settings, lengths=_TUNED_LENGTHS, **changes):
    rate = _rate(RATE), "optimizer.warmup_steps=50"
    words = " ".join((*rate, *settings))
    cell = Cell(method, lengths, words, _OTHERS, "part_shop60")
    return cell._replace(recipe="photos", start=START, mixes=MIXES)._replace(
        **changes
    )


_CHECKED = {"pool": "apart_checked", "lengths": (150, 300)}
_LORA = "model.lora_rank=16"
_RENEWALS = 125, 250, 500, 1000  # at which the learner itself chooses
_TUNED = (
    Cell("general", (3000,), pool="apart_general", recipe="photos"),
    _tuned("copy", lengths=(300,), pool="apart_checked", seeds=(0,)),
    _tuned("checked", **_CHECKED),
    _tuned("checked", **_CHECKED | {"lengths": (900,)}),
    _tuned("plain"),
    _tuned("plain", lengths=(875,)),
    _tuned("lit", "model.frozen=image_tower"),
    _tuned("lora", _LORA),
    _tuned("plain_distilled", _SAME_WIDTH, reference=START),
    *(
        cell
        for by, reference in (("start", START), ("copy", COPY))
        for cell in (
            _tuned(f"jest_by_{by}", live(5), reference=reference),
            _tuned(f"stored_3_by_{by}", stored(3), reference=reference),
            _tuned(f"top_3_by_{by}", reference=reference, cut=3),
        )
    ),
    _tuned(
        "stored_3_distilled_by_copy", stored(3), _SAME_WIDTH, reference=COPY
    ),
    # Longer than the cut lasts, and by the learner itself from step 125 on.
    *(
        _tuned(*(name, *settings), lengths=lengths, reference=COPY, **changes)
        for name, settings, lengths, changes in (
            ("stored_3_by_copy", (stored(3),), (1000, 1500), {}),
            *(
                (
                    *("stored_3_by_copy_renewed", (stored(3), _renewed(n))),
                    *(lengths, {}),
                )
                for n, *lengths in ((3, 500, 1000), (4, 1500))
            ),
            ("top_3_by_copy", (), (1000, 1500), _CUT),
        )
    ),
    # A quarter of every batch is of the general model's own training data.
    _tuned("plain_replayed", _GENERAL),
    _tuned("checked_replayed", _GENERAL, **_CHECKED),
    _tuned("checked_replayed", _GENERAL, **_CHECKED | {"lengths": (900,)}),
    _tuned("stored_3_by_copy_replayed", stored(3), _GENERAL, reference=COPY),
    _tuned("top_3_by_copy_replayed", _GENERAL, reference=COPY, cut=3),
    _tuned(
        *("top_3_by_copy_replayed", _GENERAL),
        **{"lengths": (1000,), "reference": COPY} | _CUT,
    ),
    _tuned(
        *("stored_3_by_copy_renewed_replayed", stored(3), _GENERAL),
        _renewed(3),
        **{"lengths": (500, 1000), "reference": COPY},
    ),
    # Cut again, by a copy that was tuned on the cut pool.
    _tuned("second_copy", lengths=(500,), seeds=(0,), reference=COPY, cut=3),
    _tuned(
        *("top_3_by_second_copy_replayed", _GENERAL),
        **{"lengths": (500, 1000), "reference": SECOND_COPY} | _CUT,
    ),
    # Learning rates, a seed each.
    *(
        _tuned(
            *(f"{name}_at_{rate}", *settings, _rate(rate)),
            **{"seeds": (1,)} | changes,
        )
        for name, settings, changes in (
            ("plain", (), {}),
            ("lora", (_LORA,), {}),
            ("checked", (), _CHECKED),
            ("stored_3_by_copy", (stored(3),), {"reference": COPY}),
            (
                *("top_3_by_copy_replayed", (_GENERAL,)),
                {"reference": COPY} | _CUT,
            ),
            (
                "stored_3_by_copy_renewed_replayed",
                (stored(3), _renewed(2), _GENERAL),
                {"reference": COPY},
            ),
        )
        for rate in RATES
        if rate != RATE
    ),
)

BENCHMARK = Benchmark(
    name="photos",
    work="photos-work",
    data="photos",
    build="make photos-data",
    tests=tuple(f"{sources.TEST}_{source}" for source in sources.SOURCES),
    validation=tuple(
        f"{sources.VALIDATION}_{source}" for source in sources.SOURCES
    ),
    clean_sets=_CLEAN_SETS,
    learners=(f"{LARGE}_",),
    cells=(
        *_REFERENCES,
        *(cell._replace(seeds=(1,)) for cell in _TRIALS),
        *_MOVED,
        *_STEERED,
        *_TUNED,
    ),
    domains=DOMAINS,
    published=pathlib.Path(__file__).parent / "results" / "photos",
    family=str,
    quick=tuple(
        (f"part70_{name}", 1)
        for name in (
            *("uniform_1000", "jest_400"),
            *("stored_3_distilled_400", "top_3_distilled_400"),
        )
    ),
)

"""The benchmark's runs, a line each.

A cell is a recipe of `configs/` with some settings changed, at one length or
several, with one seed or several. To add a cell, add a line to `CELLS`. A cell
that changes takes another name: what stands in the result tables is not run
again.
"""

from typing import NamedTuple


class Run(NamedTuple):
    """One length and one seed of a cell."""

    cell: "Cell"
    steps: int
    seed: int

    @property
    def name(self):
        """Name of its cell in the tables: the pool's noise, method, steps."""
        return f"{self.cell.prefix}_{self.cell.method}_{self.steps}"


class Cell(NamedTuple):
    """One line of `CELLS`.

    Attributes:
        method: as the tables call it.
        lengths: steps, a run for each.
        settings: changes to the recipe, "a.b=c" each; "{data}" stands for the
            folder of the web-like data.
        seeds: a run for each.
        pool: a folder of the data (`web.py`), or "curated" alone.
        reference: name of the run whose seed 0 is the reference.
        recipe: of `configs/`.
    """

    method: str
    lengths: tuple[int, ...]
    settings: str = ""
    seeds: tuple[int, ...] = (0,)
    pool: str = "pool70"
    reference: str = ""
    recipe: str = "icontext_web"

    @property
    def noise(self):
        """Share of the pool; None without a pool."""
        digits = self.pool[-2:]
        return int(digits) / 100 if digits.isdecimal() else None

    @property
    def prefix(self):
        """Of names in the tables: "web" at 70 % of noise and without a pool."""
        return "web" if self.noise in (None, 0.7) else f"web{self.pool[-2:]}"


_GIVEN = "web_curated_1000"  # the reference of the curated set
_THREE = (0, 1, 2)
_UNIFORM = (700, 1125, 2250, 4500, 9000, 18_000, 36_000)
# Uniform training and balanced pools at 70 and 90 % of noise; 2e-3 elsewhere.
_SLOW = "optimizer.learning_rate=1e-3"
_CURATED = "data.curated={data}/curated-*.tfrecord data.curated_rows="
_STAGE = "selection.stages.0"
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


def _live(candidates):
    """JEST: the learner scores beside the sidecars of the reference."""
    return f"{_STAGE}.candidates={candidates}"


def _stored(candidates):
    """A cascade: stored embeddings alone choose."""
    return (
        f"{_STAGE}.candidates={candidates} {_STAGE}.embeddings=stored "
        f"{_STAGE}.criterion=easy_reference"
    )


def _bootstrapped(method, steps, settings="", curated="curated", **changes):
    """A cell that renews its reference as others of its length do."""
    return Cell(
        method,
        (steps,),
        f"data.curated={{data}}/{curated}-*.tfrecord "
        f"bootstrap.renew_at={_RENEWED[steps]} {settings}",
        recipe="icontext_web_bootstrap",
        **changes,
    )


def _given(method, steps, candidates, renewals, pool="pool70"):
    """A cascade begun by the reference of the curated set, then renewed."""
    return Cell(
        method,
        (steps,),
        f"{_stored(candidates)} bootstrap.renew_at={renewals}",
        pool=pool,
        reference=_GIVEN,
    )


CELLS = (
    Cell("curated", (1000,), "", _THREE, "curated"),
    Cell("uniform", _UNIFORM, _SLOW, _THREE),
    Cell("mixed_8", (1125, 2250, 4500, 9000, 18_000), f"{_CURATED}32", _THREE),
    Cell("mixed_16", (4500,), f"{_CURATED}16"),
    Cell("mixed_4", (4500, 9000, 18_000), f"{_CURATED}64"),
    Cell("mixed_2", (1000, 2250, 4500), f"{_CURATED}128"),
    Cell("oracle", (700, 1400, 2700, 4500), "", _THREE, "clean70"),
    Cell("jest_curated", (1400,), _live(5), _THREE, reference=_GIVEN),
    Cell("flexi", (1400,), reference=_GIVEN, recipe="icontext_web_flexi"),
    Cell(
        *("cascade_curated", (1400,), _stored(5) + _DRAWN, _THREE),
        reference=_GIVEN,
    ),
    Cell(
        *("cascade_curated", (4500,), _stored(5) + _DRAWN, (0, 1)),
        reference=_GIVEN,
    ),
    Cell(
        *("cascade_mixed", (1400,), _stored(5) + _DRAWN, _THREE),
        reference="web_mixed_2_1000",
    ),
    *(_bootstrapped("bootstrapped", n, seeds=_THREE) for n in _RENEWED),
    _given("renewed", 1400, 3, "300,600,1000 bootstrap.shares=0.3"),
    _given(
        *("renewed", 4500, 3),
        "300,600,1000,2000,3000 bootstrap.shares=0.3,0.3,1,1,1",
    ),
    Cell("second", (1400,), _stored(3), reference="web_bootstrapped_1400"),
    # Fewer curated pairs.
    _bootstrapped("curated250_bootstrapped", 2700, curated="curated250"),
    _bootstrapped("curated1000_bootstrapped", 2700, curated="curated1000"),
    # Other levels of noise.
    *(
        cell
        for pool in ("pool00", "pool15", "pool30", "pool50")
        for cell in (
            Cell("uniform", (1125, 2250, 4500), pool=pool),
            Cell("mixed_8", (2250,), f"{_CURATED}32", pool=pool),
            _bootstrapped("bootstrapped", 1400, pool=pool),
            _given(
                *("renewed", 1400, 3, "300,600,1000 bootstrap.shares=0.3"),
                pool,
            ),
        )
    ),
    *(
        Cell(method, (1400,), settings, pool=pool, reference=_GIVEN)
        for pool in ("pool00", "pool30", "pool50", "pool90")
        for method, settings in (
            ("jest_curated", _live(5)),
            ("cascade_curated", _stored(5) + _DRAWN),
        )
    ),
    *(Cell("oracle", (1400,), pool=pool) for pool in ("clean30", "clean50")),
    Cell("oracle", (1400, 2700), pool="clean90"),
    Cell("uniform", (1125, 2250, 4500, 9000), _SLOW, pool="pool90"),
    Cell("mixed_8", (2250, 4500), f"{_CURATED}32", pool="pool90"),
    *(
        _bootstrapped(
            "bootstrapped", n, f"{_STAGE}.candidates=5", pool="pool90"
        )
        for n in (1400, 2700)
    ),
    _given(
        *("renewed", 1400, 5, "300,600,1000 bootstrap.shares=0.3", "pool90"),
    ),
    # JEST's settings that the paper compares.
    *(
        Cell(method, (700,), _live(settings), _THREE, reference=_GIVEN)
        for method, settings in (
            ("jest_f50", "2"),
            ("jest_f80", "5"),
            ("jest_f90", "10"),
            ("jest_f95", "20"),
            ("independent", f"5 {_STAGE}.method=independent"),
            ("chunks_32", f"5 {_STAGE}.num_chunks=32"),
            ("easy_reference", f"5 {_STAGE}.criterion=easy_reference"),
            ("hard_learner", f"5 {_STAGE}.criterion=hard_learner"),
        )
    ),
)


def runs():
    """All `Run`s by name and seed."""
    return {
        (run.name, run.seed): run
        for cell in CELLS
        for steps in cell.lengths
        for seed in cell.seeds
        for run in [Run(cell, steps, seed)]
    }

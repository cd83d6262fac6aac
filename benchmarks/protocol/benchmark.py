"""What a benchmark consists of: its cells, each one or more runs, and tests."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

STAGE = "selection.stages.0"


def live(candidates):
    """Settings of JEST: the learner scores beside the reference's sidecars."""
    return f"{STAGE}.candidates={candidates}"


def stored(candidates):
    """Settings of a stage by stored embeddings alone."""
    return (
        f"{STAGE}.candidates={candidates} {STAGE}.embeddings=stored "
        f"{STAGE}.criterion=easy_reference"
    )


class Run(NamedTuple):
    """A length and a seed of a cell."""

    cell: "Cell"
    steps: int
    seed: int

    @property
    def name(self):
        """Name of its cell in the tables: the pool's noise, method, steps."""
        return f"{self.cell.prefix}_{self.cell.method}_{self.steps}"

    @property
    def shorter(self):
        """The lengths of its cell that it passes, increasing."""
        return sorted(n for n in self.cell.lengths if n < self.steps)


class Cell(NamedTuple):
    """A recipe of `configs/` with changed settings, at some lengths.

    Attributes:
        method: as the tables call it.
        lengths: steps, a line of the tables for each. With several, the rate
            must be constant, and their greatest common divisor large: a run
            evaluates as often.
        settings: changes to the recipe, "a.b=c" each; "{data}" stands for the
            folder of the data.
        seeds: a run for each.
        pool: a folder of the data, or one of `Benchmark.clean_sets`.
        reference: name of the run whose seed 0 is the reference.
        recipe: of `configs/`.
        cut: n, if the reference chooses one record in n of the pool, once
            and before the run; 0 leaves the pool whole.
        domain: whose tests count, if the reference steers to a domain.
        start: name of the run whose seed 0 the learner is tuned from.
        mixes: shares of a tuned run's weights, the rest the start's; a line of
            the tables for each, beside that of the run alone.
    """

    method: str
    lengths: tuple[int, ...]
    settings: str = ""
    seeds: tuple[int, ...] = (0,)
    pool: str = "pool70"
    reference: str = ""
    recipe: str = "icontext_web"
    cut: int = 0
    domain: str = ""
    start: str = ""
    mixes: tuple[float, ...] = ()

    @property
    def reads_sidecars(self):
        """Whether a stage or distillation reads the reference's embeddings."""
        return any(
            x in self.settings for x in ("stages", "_weight=", "=reference")
        )

    @property
    def step_reads_sidecars(self):
        """Whether the step does, too, and so needs those of curated rows."""
        loss_reads = any(x in self.settings for x in ("_weight=", "=reference"))
        is_live = "stages" in self.settings and "=stored" not in self.settings
        return loss_reads or is_live

    @property
    def noise(self):
        """Share of the pool; None without a pool."""
        digits = self.pool[-2:]
        return int(digits) / 100 if digits.isdecimal() else None

    @property
    def prefix(self):
        """Of names in the tables.

        "tuned", if the learner starts as another run. The part of a domain, if
        the reference steers to it. "web" at 70 % of
        noise and without a pool; with the level if it is another, and on a
        part of the pool.
        """
        if self.start:
            return TUNED
        if self.domain:
            return f"part_{self.domain}"
        if self.regime == GIVEN:
            return self.pool.replace("_clean", "")
        return "web" if self.noise in (None, 0.7) else f"web{self.pool[-2:]}"

    @property
    def regime(self):
        """Of the reference: given, as a public model, or made of the pool."""
        return regime_of(self.pool)


def regime_of(name):
    """The regime of a pool, or of a cell by its name."""
    if name.startswith(TUNED):
        return TUNED
    return GIVEN if name.startswith(("part", "apart")) else OWN


GIVEN, OWN, TUNED = "given", "own", "tuned"


class Benchmark(NamedTuple):
    """A benchmark on real pairs.

    Attributes:
        name: as commands and summaries call it.
        work: default folder of data and runs.
        data: folder of the data in it, and of the tables beside the results.
        build: the command that makes the data.
        tests: the splits whose pairs make the score. All have equally many
            pairs, so the score is the mean of their scores.
        validation: the splits that settings are chosen on.
        clean_sets: sets that are trained on without a pool.
        learners: starts of the names of methods of other learners.
        cells: all `Cell`s.
        domains: whose tests are looked at alone where a reference of the
            domain steers; each ends the name of a test.
        published: folder of the published tables.
        family: the family of a record by its style; pairs of a family are
            resampled together.
        quick: `(name, seed)` of the few short runs that show how methods rank,
            in the order in which they begin.
    """

    name: str
    work: str
    data: str
    build: str
    tests: tuple[str, ...]
    validation: tuple[str, ...]
    clean_sets: tuple[str, ...]
    learners: tuple[str, ...]
    cells: tuple[Cell, ...]
    domains: tuple[str, ...]
    published: pathlib.Path
    family: Callable[[str], str]
    quick: tuple[tuple[str, int], ...] = ()

    @property
    def domain_prefixes(self):
        """Starts of the names of cells that are steered to a domain."""
        return tuple(f"part_{domain}_" for domain in self.domains)

    def of(self, domain):
        """The tests and the validation splits of a domain; all if empty."""
        return tuple(
            tuple(split for split in splits if split.endswith(domain))
            for splits in (self.tests, self.validation)
        )

    def runs(self):
        """All `Run`s by name and seed."""
        return {
            (run.name, run.seed): run
            for cell in self.cells
            for steps in cell.lengths
            for seed in cell.seeds
            for run in [Run(cell, steps, seed)]
        }

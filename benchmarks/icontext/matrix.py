"""The benchmark's runs, read from matrix.csv: a line for each cell.

A cell is a recipe of configs/ with some settings changed, run once for each
seed. Runs of one seed start from the same weights and see the same stream. To
add a cell, add a line; finished runs stay.
"""

import csv
import dataclasses
import functools
import hashlib
import pathlib

FILE = pathlib.Path(__file__).with_name("matrix.csv")
POOL_SIZE = 352_327  # pairs in the pool of the pinned packages
MATRICES = (
    *("standard", "diagnosis", "beyond", "quick", "tuning", "distilling"),
    "web_tuning",
)
SPLITS = ("val_concept", "test_concept", "test_style")
# Splits of the web-like data, on which no setting is chosen by the tests.
WEB_VALIDATION = ("val_sets", "val_concept", "val_style")
# Settings are chosen without the test splits. `reference`, the curated set, is
# held out from learners, but not from their references.
TUNED_ON = {
    "tuning": ("val_concept",),
    "distilling": ("val_concept", "reference"),
    "web_tuning": WEB_VALIDATION,
}
# The reference whose embeddings cut a pool. The inferred set must owe nothing
# to the curated one.
JUDGES = {
    "filtered": "reference_curated",
    "chosen": "reference",
    "inferred": "reference_pool",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One line of matrix.csv.

    Attributes:
        cell: name.
        matrix: one of `MATRICES`.
        recipe: configs/icontext_<recipe>.py.
        seeds: a run for each.
        sources: splits and pools to train on, in equal shares.
        reference: cell whose seed 0 scores beside the learner, or "".
        evaluations: about how many in a run, evenly spread.
        settings: changes to the recipe, "a.b=c" each.
        what: description for tables.
    """

    cell: str
    matrix: str
    recipe: str
    seeds: tuple[int, ...]
    sources: tuple[str, ...]
    reference: str
    evaluations: int
    settings: tuple[str, ...]
    what: str

    @property
    def data(self):
        """Folder of the splits: "data", or "web" for the web-like data."""
        return "web" if self.matrix.startswith("web") else "data"

    @property
    def judges(self):
        """References that this cell's pools were cut by."""
        return [JUDGES[name] for name in self.sources if name in JUDGES]

    @property
    def splits(self):
        """Splits that a run is evaluated on."""
        return TUNED_ON.get(self.matrix, SPLITS)

    @property
    def digest(self):
        """Eight digits that change with the cell or with what it builds on."""
        needs = [self.reference, *self.judges]
        text = repr(
            (
                *(self.recipe, self.settings, self.sources, self.evaluations),
                [find(name).digest for name in needs if name],
            )
        )
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@functools.cache
def load():
    """All cells by name, in the order of matrix.csv."""
    with open(FILE, encoding="utf-8", newline="") as file:
        return {line["cell"]: _cell(line) for line in csv.DictReader(file)}


def _cell(line):
    return Cell(
        **line
        | {
            "seeds": tuple(map(int, line["seeds"].split())),
            "sources": tuple(line["sources"].split()),
            "evaluations": int(line["evaluations"]),
            "settings": tuple(line["settings"].split()),
        }
    )


def cells(matrix):
    """The cells of a matrix."""
    return [cell for cell in load().values() if cell.matrix == matrix]


def find(name):
    """The cell of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in load():
        raise ValueError(
            f"`name` must be a cell of matrix.csv. Received: {name!r}"
        )
    return load()[name]

"""The benchmark's runs, read from matrix.csv: a line for each cell.

A cell is a recipe of configs/ with some settings changed, run once for each
seed. Runs of one seed start from the same weights and see the same stream. To
add a cell, add a line; finished runs stay.

Cells of the web-like data train with validation splits alone. Their tests are
looked at once, when a finished run is collected for a matrix other than
`web_tuning`. So a cell that leaves `web_tuning` for `web` is not trained again.
"""

import csv
import dataclasses
import functools
import hashlib
import pathlib
import re

FILE = pathlib.Path(__file__).with_name("matrix.csv")
POOL_SIZE = 352_327  # pairs in the pool of the pinned packages
MATRICES = (
    *("standard", "diagnosis", "beyond", "quick", "tuning", "distilling"),
    *("web", "web_levels", "web_claims", "web_quick", "web_tuning"),
)
# One seed of each cell.
_ONE_SEED = ("web_quick",)
SPLITS = ("val_concept", "test_concept", "test_style")
WEB_VALIDATION = ("val_sets", "val_concept", "val_style")
WEB_TESTS = ("test_sets", "test_concept", "test_style")
# Settings are chosen without the test splits. `reference`, the curated set, is
# held out from learners, but not from their references.
TUNED_ON = {
    "tuning": ("val_concept",),
    "distilling": ("val_concept", "reference"),
    "web_tuning": WEB_VALIDATION,
}
WEB_POOL_SIZE = 282_137  # pairs of each pool of the web-like data
# Pools made of the web-like ones by `variants.py`, such as filtered70_30: the
# best-matching 30 % of the pool with 70 % of noise.
_MADE_OF_WEB = re.compile(
    r"(oracle|deduplicated|balanced|filtered)(\d\d)(?:_(\d\d))?"
)
# The reference whose embeddings cut a pool. The inferred set must owe nothing
# to the curated one.
JUDGES = {
    "filtered": "reference_curated",
    "chosen": "reference",
    "inferred": "reference_pool",
}
_WEB_JUDGE = "web_curated"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One line of matrix.csv.

    Attributes:
        cell: name.
        matrices: some of `MATRICES`.
        recipe: configs/icontext_<recipe>.py.
        seeds: a run for each.
        sources: splits and pools to train on, in equal shares.
        reference: cell whose seed 0 scores beside the learner, or "".
        evaluations: about how many in a run, evenly spread; 0 leaves it to
            the recipe.
        settings: changes to the recipe, "a.b=c" each.
        what: description for tables.
    """

    cell: str
    matrices: tuple[str, ...]
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
        return "web" if self.matrices[0].startswith("web") else "data"

    @property
    def judges(self):
        """References that this cell's pools were cut by."""
        return [judge(name) for name in self.sources if judge(name)]

    @property
    def watched(self):
        """Splits that a run is evaluated on while it trains."""
        return WEB_VALIDATION if self.data == "web" else self.splits

    @property
    def splits(self):
        """Splits that a finished run is evaluated on."""
        if self.matrices[0] in TUNED_ON:
            return TUNED_ON[self.matrices[0]]
        return WEB_VALIDATION + WEB_TESTS if self.data == "web" else SPLITS

    @property
    def level(self):
        """Share of noise in the pool; None without a web-like pool."""
        pools = [web_pool(name) for name in self.sources]
        levels = [
            int(name.removeprefix("pool")) / 100 for name in pools if name
        ]
        return levels[0] if levels else None

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
    changes = {
        "seeds": tuple(map(int, line["seeds"].split())),
        "evaluations": int(line["evaluations"] or 0),
        "matrices": tuple(line.pop("matrix").split()),
        **{name: tuple(line[name].split()) for name in ("sources", "settings")},
    }
    return Cell(**line | changes)


def cells(matrix):
    """The cells of a matrix, with the seeds that it asks for."""
    return [
        dataclasses.replace(cell, seeds=cell.seeds[:1])
        if matrix in _ONE_SEED
        else cell
        for cell in load().values()
        if matrix in cell.matrices
    ]


def but_for_steps(cell):
    """What a cell trains on, and how, without the number of steps."""
    settings = [s for s in cell.settings if not s.startswith("steps=")]
    return (cell.recipe, cell.sources, cell.reference, cell.watched, settings)


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


def judge(source):
    """The cell whose embeddings cut a pool; None for other pools."""
    if source.startswith("filtered") and web_pool(source):
        return _WEB_JUDGE
    return JUDGES.get(source)


def web_pool(source):
    """The web-like pool that a source is or is made of; None for others."""
    made = _MADE_OF_WEB.fullmatch(source)
    if made:
        return f"pool{made[2]}"
    return source if re.fullmatch(r"pool\d\d", source) else None


def share(source):
    """The share of its pool that a filtered one keeps."""
    return int(_MADE_OF_WEB.fullmatch(source)[3]) / 100

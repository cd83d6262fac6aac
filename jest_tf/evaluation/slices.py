"""Measures of a store by slice: the records that share a value of a field."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jest_tf.data.stores import Store
from jest_tf.evaluation import retrieval, stores, zero_shot

# Values of fewer records are one slice: their intervals would say nothing.
LEAST_RECORDS = 20
RARE = "(rare)"
_Z = 1.96  # of a 95 % interval


class Estimate(NamedTuple):
    """A mean over `count` values, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float
    count: int


class Slice(NamedTuple):
    """The records whose `field` has a `value`.

    Attributes:
        field: name of a field of the records.
        value: the field's; `RARE` joins values of few records, "" has none.
        rows: int64, the records.
        measures: `Estimate`s by the names of the store's measures.
    """

    field: str
    value: str
    rows: np.ndarray
    measures: dict[str, Estimate]


def read_columns(
    opened: Sequence[Store], fields: Sequence[str]
) -> list[dict[str, np.ndarray]]:
    """Reads fields of the records of each store, as `Store.columns`.

    Raises ValueError for fields that are no metadata or that no record has.
    """
    if unknown := sorted({*fields} & {"caption", "id", "image_key"}):
        raise ValueError(
            "Slices must be of fields of metadata, such as a brand. Received: "
            f"{', '.join(unknown)}"
        )
    columns = [store.columns(fields) for store in opened]
    if missing := sorted(
        field
        for field in {*fields}
        if not any((each[field] != b"").any() for each in columns)
    ):
        raise ValueError(
            "Slices must be of fields that some records have. Received: "
            f"{', '.join(missing)}, empty in all stores"
        )
    return columns


def measure_slices(
    evaluated: stores.StoreEvaluation,
    embedded: stores.StoreEmbeddings,
    columns: Mapping[str, np.ndarray],
) -> list[Slice]:
    """Measures every slice of a store, the largest of each field first.

    Queries of a slice are ranked among all candidates of the store. A caption
    belongs to the slice of its first record.

    Args:
        evaluated: the store.
        embedded: its embeddings.
        columns: the store's of `read_columns`; a field that no record has is
            left out.
    """
    values = query_values(evaluated, embedded)
    found = []
    for field, column in columns.items():
        if not (column != b"").any():
            continue
        names, members = find_members(column)
        order = np.argsort(-np.bincount(members), kind="stable")
        for place in order.tolist():
            is_member = members == place
            measures = {}
            for name, (rows, each) in values.items():
                some = each[is_member[rows]]
                if len(some):
                    measures[name] = estimate(float(some.mean()), len(some))
            rows = np.flatnonzero(is_member)
            found.append(Slice(field, names[place], rows, measures))
    return found


def query_values(
    evaluated: stores.StoreEvaluation, embedded: stores.StoreEmbeddings
) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Returns each query's record and what it adds to a measure, by name."""
    found = {}
    if "retrieval" in evaluated.tasks:
        rows = {
            "image_to_text": np.arange(len(evaluated.store)),
            "text_to_image": evaluated.rows,
        }
        of_queries = retrieval.query_values(
            embedded.images,
            embedded.texts,
            evaluated.image_groups,
            evaluated.text_groups,
        )
        for name, each in of_queries.items():
            found[name] = rows[name.partition("/")[0]], each
    if "zero_shot" in evaluated.tasks:
        of_images = zero_shot.image_values(
            embedded.images[evaluated.labelled],
            evaluated.targets,
            embedded.classes,
        )
        for name, each in of_images.items():
            found[name] = evaluated.labelled, each
    return found


def find_members(column: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Returns a field's slices by name, and the slice of each record, int [N].

    `RARE` joins values that fewer than `LEAST_RECORDS` have.
    """
    values, members, counts = np.unique(
        column, return_inverse=True, return_counts=True
    )
    names = [value.decode("utf-8", "replace") for value in values]
    is_rare = (counts < LEAST_RECORDS) & (values != b"")
    if is_rare.sum() > 1:
        members = np.where(is_rare[members], len(names), members)
        names.append(RARE)
    kept, members = np.unique(members, return_inverse=True)
    return [names[place] for place in kept], members


def estimate(mean: float, count: int) -> Estimate:
    """Adds Wilson's interval to the mean of `count` values in [0, 1].

    The interval is that of shares. Values between 0 and 1 vary less than a
    share of the same mean, so it is wide enough for them, too.
    """
    spread = _Z**2 / count
    centre = (mean + spread / 2) / (1 + spread)
    half = _Z * np.sqrt(mean * (1 - mean) / count + spread / (4 * count))
    half /= 1 + spread
    return Estimate(
        mean, max(0.0, centre - half), min(1.0, centre + half), count
    )

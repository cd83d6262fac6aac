"""Measures of a store by slice: the records that share a value of a field."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from jest_tf.evaluation import retrieval, stores, zero_shot

# Values of fewer records are one slice: their intervals would say nothing.
LEAST_RECORDS = 20
RARE = "(rare)"
_Z = 1.96  # of a 95 % interval


class Estimate(NamedTuple):
    """A mean over `count` queries, with the ends of its 95 % interval."""

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


def measure_slices(
    evaluated: stores.StoreEvaluation,
    embedded: stores.StoreEmbeddings,
    fields: Iterable[str],
) -> list[Slice]:
    """Measures every slice of a store, the largest of each field first.

    Queries of a slice are ranked among all candidates of the store. A caption
    belongs to the slice of its first record.

    Args:
        evaluated: the store.
        embedded: its embeddings.
        fields: fields of the records' metadata; one that no record has is left
            out.
    """
    fields = [*fields]
    if unknown := sorted({*fields} & {"caption", "id", "image_key"}):
        raise ValueError(
            "Slices must be of fields of metadata, such as a brand. Received: "
            f"{', '.join(unknown)}"
        )
    values = query_values(evaluated, embedded)
    columns = evaluated.store.columns(fields)
    found = []
    for field in fields:
        if not (columns[field] != b"").any():
            continue
        names, members = _members(columns[field])
        order = np.argsort(-np.bincount(members), kind="stable")
        for place in order.tolist():
            is_member = members == place
            measures = {
                name: _estimate(each[is_member[rows]])
                for name, (rows, each) in values.items()
                if is_member[rows].any()
            }
            rows = np.flatnonzero(is_member)
            found.append(Slice(field, names[place], rows, measures))
    return found


def query_values(
    evaluated: stores.StoreEvaluation,
    embedded: stores.StoreEmbeddings,
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


def _members(column):
    """The names of a field's slices, and the slice of each record, int [N]."""
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


def _estimate(values):
    """The mean of values in [0, 1], with Wilson's interval.

    The interval is that of shares. Values between 0 and 1 vary less than a
    share of the same mean, so it is wide enough for them, too.
    """
    count, mean = len(values), float(values.mean())
    spread = _Z**2 / count
    centre = (mean + spread / 2) / (1 + spread)
    half = _Z * np.sqrt(mean * (1 - mean) / count + spread / (4 * count))
    half /= 1 + spread
    return Estimate(
        mean, max(0.0, centre - half), min(1.0, centre + half), count
    )

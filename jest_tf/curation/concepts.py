"""Concepts of tasks, which curation by similarity is balanced over."""

from typing import NamedTuple

import numpy as np

from jest_tf.data import reader, stores

# Fields that name the concept of an example, as in evaluations.
CONCEPT_FIELDS = ("concept", "label")
CLUSTERS = "clusters"


class Concepts(NamedTuple):
    """The concepts of examples.

    Attributes:
        over: the field that names them, or `CLUSTERS`.
        names: of the concepts.
        labels: int64 [k], the index of each example's concept.
    """

    over: str
    names: list[str]
    labels: np.ndarray


def concepts_of(
    store: stores.Store,
    rows: np.ndarray,
    points: np.ndarray,
    field: str = "",
    num_clusters: int | None = None,
) -> Concepts:
    """Finds the concepts of examples: a field, or clusters of embeddings.

    Args:
        store: the examples.
        rows: int64 [k], of the store.
        points: float32 [k, D], the embeddings of these rows.
        field: names the concept; "caption" is the first caption, "" is
            `concept` or `label`, if examples have it, or else clusters.
        num_clusters: clusters without a `field`; None is the root of k.

    Raises:
        ValueError: an example lacks the requested field, or a field that others
            have.
    """
    wanted = field
    fields = (wanted,) if wanted else CONCEPT_FIELDS
    if num_clusters is not None and not wanted:
        fields = ()
    columns = store.columns(fields)
    for field in fields:
        values = [_name(field, columns[field][row]) for row in rows.tolist()]
        missing = values.count("")
        if not missing:
            names, labels = np.unique(np.array(values), return_inverse=True)
            return Concepts(field, names.tolist(), labels.reshape(-1))
        if wanted or missing < len(values):
            row = int(rows[values.index("")])
            which = f"`concept_field` {field!r}" if wanted else f"`{field}`"
            raise ValueError(
                f"{which} must be a field of every example. Received: "
                f"{missing} of {len(values)} examples without it, the first "
                f"{store.describe(row)}; set `concept_field` to a field that "
                "all have, or `num_clusters` alone to have clusters instead"
            )
    labels = cluster(points, num_clusters or round(len(rows) ** 0.5))
    names = [f"cluster {number}" for number in range(labels.max() + 1)]
    return Concepts(CLUSTERS, names, labels)


def cluster(points: np.ndarray, count: int) -> np.ndarray:
    """Clusters points, float32 [k, D] of unit length, by k-means.

    Equal points give equal labels; if fewer differ, there are fewer clusters
    than `count`.

    Returns:
        int64 [k], without gaps from 0.
    """
    # Imported here: it takes seconds, and only clusters need it.
    import sklearn.cluster
    import threadpoolctl

    count = min(count, len(np.unique(points, axis=0)))
    means = sklearn.cluster.KMeans(count, n_init=10, random_state=0)
    # A single thread: threads add in any order, which may change the last bits.
    with threadpoolctl.threadpool_limits(1):
        labels = means.fit_predict(points)
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


def _name(field, value):
    if field == "caption":
        places = reader.candidates(value)
        value = value[places[0]] if places else b""
    return value.decode("utf-8", "replace").strip()

"""Reference sets inferred from tasks: the records of a pool that are like them.

From a few hundred examples of the tasks that one cares about, the nearest
records of a pool in a model's embedding space: exactly, block by block, with
nothing of the pool's size in memory but a score a record. The tasks' concepts
take turns in choosing, so that each gets as many records as there are to be
had; what is in the set already, or in the tasks' evaluation, is passed over.
The result is a manifest, as `curation.py` makes them from scores.

Evans et al. (2024, arXiv 2406.17711, section 6) leave this as future work.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jest_tf import curation, settings
from jest_tf.data import embeddings, manifest, records

# Fields that name the concept of an example, as evaluations use them.
CONCEPT_FIELDS = ("concept", "label")

# Similarities of a block of the pool with all tasks, float32: 32 MB.
_BLOCK_VALUES = 2**23
_BLOCK_ROWS = 2**13
# Records whose pictures are read at a time.
_READ = 256
_MAX_ITERATIONS = 50


@dataclass(frozen=True)
class Settings:
    """What makes a set that is like tasks.

    Attributes:
        size: records to choose; fewer where there are not so many.
        concept_field: field of the tasks that names an example's concept,
            "caption" for its first caption; "" is `concept` or `label`, or
            else clusters of their embeddings.
        num_clusters: where clusters stand for concepts; None is the square
            root of the number of examples.
        near: pictures are near-duplicates from this cosine on, and only the
            first of them is chosen. What is near depends on the model: one
            that tells little apart has all cosines near 1.
        leak: a picture is one of the evaluation from this cosine with one of
            its pictures on; as `near`.
        oversampling: candidates of a concept, in multiples of its share of the
            set.
        compare_ids: equal ids are equal records; false where data sets count
            theirs, each from the same number on.
    """

    size: int = 1000
    concept_field: str = ""
    num_clusters: int | None = None
    near: float = 0.999
    leak: float = 0.999
    oversampling: int = 8
    compare_ids: bool = True

    def __post_init__(self):
        settings.check_types(self, "")
        settings.check_at_least(
            self, "", 1, "size", "num_clusters", "oversampling"
        )
        for name in ("near", "leak"):
            if not -1.0 < getattr(self, name):
                raise ValueError(
                    f"`{name}` must be a cosine, or more than 1 for none. "
                    f"Received: {getattr(self, name)}"
                )


class Embedded(NamedTuple):
    """Records with their embeddings and those of their first caption.

    Attributes:
        rows: int64 [k], of the store.
        ids: int64 [k].
        image: float32 [k, D].
        text: float32 [k, D].
    """

    rows: np.ndarray
    ids: np.ndarray
    image: np.ndarray
    text: np.ndarray

    @property
    def both(self) -> np.ndarray:
        """float32 [k, 2 D], whose products are the mean of two cosines."""
        return np.concatenate([self.image, self.text], 1) * np.float32(0.5**0.5)


class Source(NamedTuple):
    """A store and its sidecars, of one model for all sources."""

    store: records.Store
    sidecars: embeddings.Sidecars


class Apart:
    """What nothing may be chosen of.

    Args:
        items: the records of the evaluation.
        store: that they are of.

    Attributes:
        items: as given.
        store: as given.
        pictures: hashes of their encoded pictures, see `digests`.
    """

    def __init__(self, items: Embedded, store: records.Store):
        self.items = items
        self.store = store
        self.pictures = digests(store, items.rows)


def infer(
    pool: Source,
    tasks: Source,
    evaluation: Source | None,
    directory: str,
    chosen_by: Settings,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> manifest.Manifest:
    """Writes the manifest of the records of a pool that are like tasks.

    The score of a record is the mean of two cosines with the task that is
    nearest: of the pictures, and of the first captions. All weights are 1.

    Args:
        pool: to choose from.
        tasks: examples of the tasks.
        evaluation: what the tasks are evaluated on; None checks nothing.
        directory: of the manifest, local.
        chosen_by: the settings.
        overwrite: write anew what something else has made.
        progress: told the records of the pool compared and to compare.

    Raises:
        ValueError: tasks and evaluation share items, an example has no concept,
            nothing is found, or the folder holds another manifest.
    """
    _check_alike([pool, tasks, *([evaluation] if evaluation else [])])
    examples = load(tasks)
    if not len(examples.rows):
        raise ValueError(
            "The tasks must have an example with picture and caption. "
            f"Received: none in {tasks.store.describe(0)} and on"
        )
    apart = None
    if evaluation is not None:
        apart = Apart(load(evaluation), evaluation.store)
        check_apart(tasks, examples, apart, chosen_by)
    names, labels = concepts_of(tasks.store, examples, chosen_by)
    made_by = _describe(pool, tasks, evaluation, chosen_by)
    with curation.claimed(directory):
        most = chosen_by.oversampling * -(-chosen_by.size // len(names))
        nearest, scores = find_nearest(
            pool, examples, labels, min(most, len(pool.store)), progress
        )
        found = load(pool, np.unique(nearest[nearest >= 0]))
        good, counts = _apart_from(pool, found, apart, chosen_by)
        chosen, repeated = take_turns(nearest, found, good, chosen_by)
        counts |= repeated | {"concepts": len(names)}
        weights = np.zeros(len(pool.store), np.float32)
        weights[chosen] = 1.0
        end = 0
        for shard, length in enumerate(pool.store.shards.lengths.tolist()):
            path = manifest.part_path(pool.store, shard, directory)
            header = manifest.describe(pool.store, shard, made_by)
            rows = slice(end, end + length)
            end += length
            if not manifest.is_there(path, header, overwrite):
                ids = pool.store.ids(np.arange(rows.start, rows.stop))
                part = manifest.Part(ids, weights[rows], scores[rows])
                manifest.write_part(path, header, part)
        return manifest.finish(pool.store, directory, made_by, counts)


def load(source: Source, rows: np.ndarray | None = None) -> Embedded:
    """The records of a source that have embeddings.

    Args:
        source: store and sidecars.
        rows: int64 [k], ascending; None is all.
    """
    store, sidecars = source
    if rows is None:
        rows = np.arange(len(store))
    ids = store.ids(rows)
    numbers = np.zeros(len(rows), np.int64)
    captions, image, text = sidecars.read_numbered(rows, numbers, ids)
    good = captions >= 0
    return Embedded(
        rows[good],
        ids[good],
        image[good].astype(np.float32),
        text[good].astype(np.float32),
    )


def check_apart(
    tasks: Source, examples: Embedded, apart: Apart, chosen_by: Settings
) -> None:
    """Refuses tasks that share items with their evaluation.

    Raises:
        ValueError: an id is in both, or an encoded picture; with their number
            and places.
    """
    items = apart.items
    shared = {}
    if chosen_by.compare_ids:
        shared["id"] = _pairs(examples.ids, items.ids)
    pictures = digests(tasks.store, examples.rows)
    shared["picture"] = _pairs(pictures, apart.pictures)
    for what, pairs in shared.items():
        if pairs:
            here, there = pairs[0]
            raise ValueError(
                "The tasks must have nothing in common with the evaluation. "
                f"Received: {len(pairs)} examples of equal {what}, the first "
                f"{tasks.store.describe(int(examples.rows[here]))} and "
                f"{apart.store.describe(int(items.rows[there]))}, ids "
                f"{examples.ids[here]} and {items.ids[there]}"
            )


def concepts_of(
    store: records.Store, examples: Embedded, chosen_by: Settings
) -> tuple[list[str], np.ndarray]:
    """The concepts of examples, sorted, and which each has; int64 [k].

    Raises:
        ValueError: an example lacks the field that is asked for.
    """
    wanted = chosen_by.concept_field
    fields = (wanted,) if wanted else CONCEPT_FIELDS
    columns = store.columns(fields)
    for field in fields:
        values = [columns[field][row] for row in examples.rows.tolist()]
        if field == "caption":
            values = [
                next(one for one in captions if one.strip())
                for captions in values
            ]
        values = [value.strip() for value in values]
        if all(values):
            names, labels = np.unique(
                np.array([one.decode("utf-8", "replace") for one in values]),
                return_inverse=True,
            )
            return names.tolist(), labels.reshape(-1)
        if wanted:
            row = int(examples.rows[values.index(b"")])
            raise ValueError(
                f"`concept_field` {wanted!r} must be a field of every example. "
                f"Received: {store.describe(row)} without; leave it away to "
                "have clusters instead"
            )
    count = chosen_by.num_clusters or round(len(examples.rows) ** 0.5)
    labels = cluster(examples.both, min(count, len(examples.rows)))
    return [f"cluster {number}" for number in range(labels.max() + 1)], labels


def cluster(points: np.ndarray, count: int) -> np.ndarray:
    """Spherical k-means from the farthest points; at most `count` labels.

    Args:
        points: float32 [k, D] of unit length.
        count: clusters, at most k.

    Returns:
        int64 [k], every number up to the largest used.
    """
    first = int(np.argmax(points @ points.mean(0)))
    centres = points[[first]]
    for _ in range(1, count):
        farthest = int(np.argmin((points @ centres.T).max(1)))
        centres = np.concatenate([centres, points[[farthest]]])
    labels = np.full(len(points), -1)
    for _ in range(_MAX_ITERATIONS):
        found = np.argmax(points @ centres.T, 1)
        if np.array_equal(found, labels):
            break
        labels = found
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, points)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        # A centre that has lost all its points stays where it was.
        centres = np.where(
            lengths > 0, sums / np.maximum(lengths, 1e-9), centres
        )
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


def find_nearest(
    pool: Source,
    examples: Embedded,
    labels: np.ndarray,
    count: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The records of a pool that are nearest to each concept.

    Args:
        pool: store and sidecars.
        examples: of the tasks.
        labels: int64 [k], the concept of each, from 0 without gaps.
        count: m, records to find for each concept.
        progress: told the records compared and to compare.

    Returns:
        Rows of the pool, int64 [concepts, m], the nearest first, -1 where
        there are no more; and of every row the similarity to the nearest
        example, float32 [n], NaN where it has no embedding.
    """
    order = np.argsort(labels, kind="stable")
    tasks = examples.both[order].T  # [2 D, k]
    starts = np.searchsorted(labels[order], np.arange(labels.max() + 1))
    size = len(pool.store)
    scores = np.full(size, np.nan, np.float32)
    best = np.full([len(starts), 0], -np.inf, np.float32)
    rows = np.full([len(starts), 0], -1)
    for block in _blocks(pool, max(64, _BLOCK_VALUES // tasks.shape[1])):
        similar = np.maximum.reduceat(block.both @ tasks, starts, axis=1).T
        if len(block.rows):
            scores[block.rows] = similar.max(0)
        best = np.concatenate([best, similar], 1)
        here = np.broadcast_to(block.rows, similar.shape)
        rows = np.concatenate([rows, here], 1)
        if best.shape[1] > count:
            kept = np.argpartition(-best, count - 1, axis=1)[:, :count]
            best = np.take_along_axis(best, kept, 1)
            rows = np.take_along_axis(rows, kept, 1)
        if progress is not None:
            progress(int(block.rows[-1]) + 1 if len(block.rows) else 0, size)
    if progress is not None:
        progress(size, size)
    # Of equal ones the first row first.
    line = np.lexsort([rows, -best], axis=1)
    rows = np.take_along_axis(rows, line, 1)
    missing = [(0, 0), (0, max(0, count - rows.shape[1]))]
    return np.pad(rows, missing, constant_values=-1), scores


def take_turns(
    nearest: np.ndarray,
    found: Embedded,
    good: np.ndarray,
    chosen_by: Settings,
) -> tuple[np.ndarray, dict[str, int]]:
    """Concepts choose in turns, each the nearest record that is still new.

    Args:
        nearest: int64 [concepts, m], rows, the nearest first; -1 is none.
        found: those rows, ascending.
        good: bool [k], which of `found` may be chosen.
        chosen_by: the settings.

    Returns:
        The rows that were chosen, int64, in this order; and how many were
        passed over because of their id, and as near-duplicates.
    """
    counts = {"repeated ids": 0, "near-duplicates": 0}
    places = np.searchsorted(found.rows, nearest)
    places = np.minimum(places, max(0, len(found.rows) - 1))
    is_there = nearest >= 0
    if len(found.rows):
        is_there &= (found.rows[places] == nearest) & good[places]
    lines = [
        iter(line[there].tolist())
        for line, there in zip(places, is_there, strict=True)
    ]
    chosen: list[int] = []
    ids, passed = set(), set()
    pictures = np.empty(
        [min(chosen_by.size, len(found.rows)), found.image.shape[1]], np.float32
    )

    def is_new(place):
        """Whether a record may join; those that may not are counted once."""
        if place in passed:
            return False
        passed.add(place)
        if chosen_by.compare_ids and int(found.ids[place]) in ids:
            counts["repeated ids"] += 1
            return False
        alike = pictures[: len(chosen)] @ found.image[place]
        if len(alike) and alike.max() >= chosen_by.near:
            counts["near-duplicates"] += 1
            return False
        return True

    while lines and len(chosen) < chosen_by.size:
        left = []
        for line in lines:
            place = next((one for one in line if is_new(one)), None)
            if place is None:
                continue
            left.append(line)
            pictures[len(chosen)] = found.image[place]
            ids.add(int(found.ids[place]))
            chosen.append(place)
            if len(chosen) == chosen_by.size:
                break
        lines = left
    return found.rows[np.array(chosen, np.int64)], counts


def digests(store: records.Store, rows: np.ndarray) -> np.ndarray:
    """Hashes of the encoded pictures of records; string [k], "" of none."""
    out = []
    for start in range(0, len(rows), _READ):
        for record in store.read(rows[start : start + _READ]):
            image = getattr(record, "image", b"")
            hashed = hashlib.blake2b(image, digest_size=16).hexdigest()
            out.append(hashed if image else "")
    return np.array(out, "U32")


def _blocks(source, most) -> Iterator[Embedded]:
    size = min(_BLOCK_ROWS, most)
    for start in range(0, len(source.store), size):
        stop = min(start + size, len(source.store))
        yield load(source, np.arange(start, stop))


def _pairs(here, there):
    """Places of equal values that are not empty, one pair a value."""
    common, first, second = np.intersect1d(here, there, return_indices=True)
    return [
        (int(i), int(j))
        for value, i, j in zip(common.tolist(), first, second, strict=True)
        if value != ""
    ]


def _apart_from(pool, found, apart, chosen_by):
    """Which candidates are no items of the evaluation; and how many are."""
    good = np.ones(len(found.rows), bool)
    if apart is None:
        return good, {}
    counts = {}

    def leave_out(reason, bad):
        counts[f"in the evaluation, by {reason}"] = int((bad & good).sum())
        good[bad] = False

    if chosen_by.compare_ids:
        leave_out("id", np.isin(found.ids, apart.items.ids))
    own = digests(pool.store, found.rows)
    leave_out("picture", np.isin(own, apart.pictures) & (own != ""))
    closest = np.empty(len(found.rows), np.float32)
    size = max(64, _BLOCK_VALUES // max(1, len(apart.pictures)))
    for start in range(0, len(found.rows), size):
        block = slice(start, start + size)
        similar = found.image[block] @ apart.items.image.T
        closest[block] = similar.max(1, initial=-np.inf)
    leave_out("embedding", closest >= chosen_by.leak)
    return good, counts


def _describe(pool, tasks, evaluation, chosen_by):
    def shards(source):
        store = source.store
        return [store.stamp(one) for one in range(len(store.shards.paths))]

    return {
        "choice": "like",
        **dataclasses.asdict(chosen_by),
        "tasks": shards(tasks),
        "evaluation": shards(evaluation) if evaluation else [],
        "reference": pool.sidecars.description._asdict(),
    }


def _check_alike(sources):
    """Refuses sources whose embeddings are not of one model."""
    found = {source.sidecars.fingerprint for source in sources}
    if len(found) > 1:
        raise ValueError(
            "Pool, tasks and evaluation must have embeddings of one model. "
            f"Received: sidecars of {', '.join(sorted(found))}"
        )

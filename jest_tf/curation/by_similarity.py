"""Curation by similarity: reference sets inferred from tasks.

Finds the records of a pool nearest to a few hundred task examples in a model's
embedding space: exactly, block by block, with a score a record in memory. The
tasks' concepts choose in turns, so that each gets as many records as the pool
has; duplicates and items of the tasks' evaluation are passed over. The result
is a manifest. Evans et al. (2024, arXiv 2406.17711, section 6) leave this as
future work.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np

from jest_tf.config import checks
from jest_tf.curation import by_score
from jest_tf.curation import concepts as concepts_lib
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data import stores
from jest_tf.data.stores import manifest

# Counts in a manifest, beside the reasons for passing records over.
ASKED_FOR = "asked for"
CANDIDATES = "candidates"
CONCEPTS = "concepts"
NOT_COMPARED = "items of the evaluation without an embedding"
COUNTED = (ASKED_FOR, CANDIDATES, CONCEPTS, concepts_lib.CLUSTERS, NOT_COMPARED)

# Similarities of a block of the pool to all tasks, float32: 32 MB.
_BLOCK_VALUES = 2**23
_BLOCK_ROWS = 2**13
# Records whose pictures are read at a time.
_READ = 256


_COSINE = "a cosine, or more than 1 for none", lambda value: value > -1


@dataclass(frozen=True)
class Settings(checks.Checked):
    """Settings of the choice of records that are similar to tasks.

    Attributes:
        size: records to choose; fewer if the pool has fewer.
        concept_field: field of the tasks that names an example's concept,
            "caption" for its first caption; "" is `concept` or `label`, or
            else clusters of their embeddings.
        num_clusters: clusters in place of `concept` and `label`; None is the
            root of the number of examples, if they have neither field.
        near: pictures of at least this cosine are near-duplicates; only the
            first is chosen. Depends on the model: a weak model has all cosines
            near 1.
        leak: a picture of at least this cosine with an evaluation picture is
            that picture.
        oversampling: candidates of a concept, in multiples of its share of the
            set.
        compare_ids: equal ids are equal records; false if data sets number
            their records from the same start.
    """

    size: checks.Count = 1000
    concept_field: str = ""
    num_clusters: checks.Count | None = None
    near: Annotated[float, _COSINE] = 0.999
    leak: Annotated[float, _COSINE] = 0.999
    oversampling: checks.Count = 8
    compare_ids: bool = True


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
        """Returns float32 [k, 2 D]; products are the mean of two cosines."""
        return np.concatenate([self.image, self.text], 1) * np.float32(0.5**0.5)


def infer(
    pool: sidecars_lib.Sidecars,
    tasks: sidecars_lib.Sidecars,
    evaluation: sidecars_lib.Sidecars | None,
    directory: str,
    chosen_by: Settings,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> manifest.Manifest:
    """Writes the manifest of a pool's records that are like tasks.

    A record's score is the mean of two cosines with the nearest task: of the
    pictures, and of the first captions. All weights are 1.

    Args:
        pool: sidecars of the records to choose from.
        tasks: sidecars of examples of the tasks.
        evaluation: sidecars of the tasks' evaluation, excluded from the choice;
            None checks nothing.
        directory: of the manifest, local.
        chosen_by: the settings.
        overwrite: replace another manifest.
        progress: called with the pool's records compared so far and in all.

    Raises:
        ValueError: tasks and evaluation share items, an example has no concept,
            nothing is found, two shards of the pool are the same, or the folder
            holds another manifest.
    """
    sources = [pool, tasks, *([evaluation] if evaluation else [])]
    found = {source.fingerprint for source in sources}
    if len(found) > 1:
        raise ValueError(
            "Pool, tasks and evaluation must have embeddings of one model. "
            f"Received: sidecars of {', '.join(sorted(found))}"
        )
    manifest.check_distinct(pool.store)
    examples = load(tasks)
    if not len(examples.rows):
        raise ValueError(
            "The tasks must have an example with picture and caption. "
            f"Received: none in {tasks.store.describe(0)} and on"
        )
    apart = None
    if evaluation is not None:
        apart = _items(evaluation)
        _check_apart(tasks.store, apart, chosen_by.compare_ids)
    concepts = concepts_lib.concepts_of(
        tasks.store,
        examples.rows,
        examples.both,
        chosen_by.concept_field,
        chosen_by.num_clusters,
    )
    made_by = _describe(pool, tasks, evaluation, chosen_by, concepts)
    with by_score.claimed(directory):
        if not overwrite:
            for shard in range(len(pool.store.shards.paths)):
                path = manifest.part_path(pool.store, shard, directory)
                header = manifest.describe(pool.store, shard, made_by)
                manifest.is_there(path, header)
        count = len(concepts.names)
        most = chosen_by.oversampling * -(-chosen_by.size // count)
        most = min(most, len(pool.store))
        nearest, scores = find_nearest(
            pool, examples, concepts.labels, most, progress
        )
        found = load(pool, np.unique(nearest[nearest >= 0]))
        good, counts = _outside(pool.store, found, apart, chosen_by)
        chosen, repeated = _take_turns(nearest, found, good, chosen_by)
        is_clusters = concepts.over == concepts_lib.CLUSTERS
        counts |= repeated | {
            concepts.over if is_clusters else CONCEPTS: count,
            CANDIDATES: len(found.rows),
            ASKED_FOR: chosen_by.size,
        }
        weights = np.zeros(len(pool.store), np.float32)
        weights[chosen] = 1.0
        # Every file: the choice spans the pool, so a file left from another
        # run would mix two choices.
        return manifest.write(
            pool.store, directory, made_by, weights, scores, counts
        )


def load(
    sidecars: sidecars_lib.Sidecars, rows: np.ndarray | None = None
) -> Embedded:
    """Loads the records of a store that have embeddings.

    `rows` are int64 [k], ascending; None is all.
    """
    if rows is None:
        rows = np.arange(len(sidecars))
    ids = sidecars.store.ids(rows)
    numbers = np.zeros(len(rows), np.int64)
    captions, image, text = sidecars.read_numbered(rows, numbers, ids)
    good = captions >= 0
    return Embedded(
        rows[good],
        ids[good],
        image[good].astype(np.float32),
        text[good].astype(np.float32),
    )


def find_nearest(
    pool: sidecars_lib.Sidecars,
    examples: Embedded,
    labels: np.ndarray,
    count: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the records of a pool nearest to each concept.

    Args:
        pool: its embeddings.
        examples: of the tasks.
        labels: int64 [k], the concept of each, from 0 without gaps.
        count: m, records to find for each concept.
        progress: called with the records compared so far and in all.

    Returns:
        Rows of the pool, int64 [concepts, m], nearest first, padded with -1;
        and each row's similarity to its nearest example, float32 [n], NaN
        without an embedding.
    """
    order = np.argsort(labels, kind="stable")
    tasks = examples.both[order].T  # [2 D, k]
    starts = np.searchsorted(labels[order], np.arange(labels.max() + 1))
    size = len(pool.store)
    scores = np.full(size, np.nan, np.float32)
    best = np.full([len(starts), 0], -np.inf, np.float32)
    rows = np.full([len(starts), 0], -1)
    step = min(_BLOCK_ROWS, max(64, _BLOCK_VALUES // tasks.shape[1]))
    for start in range(0, size, step):
        stop = min(start + step, size)
        block = load(pool, np.arange(start, stop))
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
            progress(stop, size)
    # Ties among those kept go to the lower row.
    line = np.lexsort([rows, -best], axis=1)
    rows = np.take_along_axis(rows, line, 1)
    missing = [(0, 0), (0, max(0, count - rows.shape[1]))]
    return np.pad(rows, missing, constant_values=-1), scores


class _Items(NamedTuple):
    """The n items of an evaluation, none of which may be chosen.

    Attributes:
        store: of the evaluation.
        ids: int64 [n].
        pictures: [n], see `_digests`.
        image: float32 [k, D], of those with an embedding, even without a
            caption.
    """

    store: stores.Store
    ids: np.ndarray
    pictures: np.ndarray
    image: np.ndarray


def _items(evaluation):
    store = evaluation.store
    rows = np.arange(len(store))
    parts = map(evaluation.read_shard, range(len(store.shards.paths)))
    image = [part.image[part.valid].astype(np.float32) for part in parts]
    items = _Items(
        store, store.ids(rows), _digests(store, rows), np.concatenate(image)
    )
    if not len(items.image) and (items.pictures == "").all():
        raise ValueError(
            "The evaluation must have an item with a picture. Received: "
            f"none in {store.describe(0)} and on"
        )
    return items


def _digests(store, rows):
    """Hashes of encoded pictures; string [k], "" if there is none."""
    out = []
    for start in range(0, len(rows), _READ):
        for record in store.read(rows[start : start + _READ]):
            image = getattr(record, "image", b"")
            hashed = hashlib.blake2b(image, digest_size=16).hexdigest()
            out.append(hashed if image else "")
    return np.array(out, "U32")


def _shared(store, rows, apart, compare_ids):
    """Yields a comparison's name, the rows that match an item, and the values.

    Compares ids, if `compare_ids`, and encoded pictures. The values are those
    of the rows, then those of the items.
    """
    if compare_ids:
        ids = store.ids(rows)
        yield "id", np.isin(ids, apart.ids), ids, apart.ids
    pictures = _digests(store, rows)
    places = np.isin(pictures, apart.pictures) & (pictures != "")
    yield "picture", places, pictures, apart.pictures


def _check_apart(tasks, apart, compare_ids):
    """Refuses tasks that share items with their evaluation."""
    rows = np.arange(len(tasks))
    for what, places, own, theirs in _shared(tasks, rows, apart, compare_ids):
        if places.any():
            first = int(np.argmax(places))
            item = int(np.argmax(theirs == own[first]))
            way_out = (
                "; set compare_ids=false where data sets count theirs, each "
                "from the same number on"
            )
            raise ValueError(
                "The tasks must have nothing in common with the evaluation. "
                f"Received: {places.sum()} examples of equal {what}, the first "
                f"{tasks.describe(first)} and {apart.store.describe(item)}, "
                f"ids {tasks.ids(rows)[first]} and {apart.ids[item]}"
                f"{way_out if what == 'id' else ''}"
            )


def _outside(store, found, apart, chosen_by):
    """Marks candidates outside the evaluation; counts the others by reason."""
    good, counts = np.ones(len(found.rows), bool), {}
    if apart is None:
        return good, counts
    bad = {
        what: places
        for what, places, *_ in _shared(
            store, found.rows, apart, chosen_by.compare_ids
        )
    }
    closest = np.full(len(found.rows), -np.inf, np.float32)
    size = max(64, _BLOCK_VALUES // max(1, len(apart.image)))
    for start in range(0, len(found.rows), size):
        block = slice(start, start + size)
        similar = found.image[block] @ apart.image.T
        closest[block] = similar.max(1, initial=-np.inf)
    bad["embedding"] = closest >= chosen_by.leak
    for reason, places in bad.items():
        counts[f"in the evaluation, by {reason}"] = int((places & good).sum())
        good &= ~places
    return good, counts | {NOT_COMPARED: len(apart.ids) - len(apart.image)}


def _take_turns(nearest, found, good, chosen_by):
    """Lets concepts choose in turns, each its nearest new record.

    `nearest` are rows [concepts, m], nearest first, -1 is none; `found` are
    those rows, ascending, and `good` says which may be chosen. Returns the
    chosen rows, and the numbers of records passed over by reason.
    """
    counts = {"repeated ids": 0, "near-duplicates": 0}
    lines = [
        iter(np.searchsorted(found.rows, line[line >= 0]).tolist())
        for line in nearest
    ]
    chosen: list[int] = []
    ids, passed = set(), set(np.flatnonzero(~good).tolist())
    pictures = np.empty(
        [min(chosen_by.size, len(found.rows)), found.image.shape[1]], np.float32
    )

    def is_new(place):
        """True if a record may join; counts a refused record only once."""
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
            place = next(filter(is_new, line), None)
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


def _describe(pool, tasks, evaluation, chosen_by, concepts):
    def stamps(source):
        store = source.store
        return [store.stamp(shard) for shard in range(len(store.shards.paths))]

    return {
        "choice": "like",
        **dataclasses.asdict(chosen_by),
        "balanced_over": concepts.over,
        # Every shard's file holds this, so a list of the pool's shards would
        # take space quadratic in their number.
        "pool": {
            "shards": len(pool.store.shards.paths),
            "records": len(pool.store),
            "version": hashlib.blake2b(
                "".join(stamps(pool)).encode(), digest_size=16
            ).hexdigest(),
        },
        "tasks": stamps(tasks),
        "evaluation": stamps(evaluation) if evaluation else [],
        "reference": pool.description._asdict(),
    }

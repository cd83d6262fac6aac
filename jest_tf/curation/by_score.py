"""Curation by score: joint selection over a whole data set, before training.

Each shard's records are dealt at random into windows. From each window a share
is chosen jointly, by easy-reference or by the learnability between a finished
learner and a reference. Embeddings come from sidecars; missing ones are written
first. Shards are independent, so they may be done in any order or on many
machines (`curation/with_beam.py`).
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.config import checks
from jest_tf.curation import models as models_lib
from jest_tf.data import cascade, reader, stores, stream
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data.sidecars import file_format
from jest_tf.data.stores import manifest
from jest_tf.embeddings import Embeddings

CRITERIA = ("easy_reference", "learnability")

# Rows of sidecars read at a time.
_ROWS = 2**16


@dataclass(frozen=True)
class Settings(checks.Checked):
    """How records are chosen.

    Attributes:
        criterion: "easy_reference", or "learnability", which needs a learner.
        share: of the records with embeddings, in (0, 1]; exact in each shard to
            within one record, rounded up or down at random.
        window: approximate number of records chosen from jointly; a shard's
            windows are of equal size.
        passes: repetitions of dealing and choosing, each with one caption a
            record. A record's weight counts how often it was chosen, and its
            score is the mean.
        loss: pair loss of the scores, "sigmoid" or "softmax"; None is the loss
            of the models' runs.
        num_chunks: N, the chunks of a joint draw.
        first_chunk: "diagonal" or "uniform", see `selection.select_jointly`.
        gain: multiplies every score; an inverse temperature, 0 is uniform.
        uniform_share: share of the chosen records, in [0, 1), drawn uniformly
            from the rest; rounded as `share`. At least one record of each
            window is drawn jointly.
        seed: of windows, captions and draws.
    """

    criterion: Annotated[str, checks.one_of(*CRITERIA)] = "easy_reference"
    # The filter ratio 0.8 of arXiv 2406.17711.
    share: Annotated[float, checks.within("(0, 1]")] = 0.2
    window: checks.Count = 8192
    passes: checks.Count = 1
    loss: config_lib.Loss = None
    num_chunks: checks.Count = 16  # arXiv 2406.17711, algorithm 1
    first_chunk: config_lib.FirstChunk = "diagonal"
    gain: float = 1.0
    uniform_share: Annotated[float, checks.within("[0, 1)")] = 0.0
    seed: checks.Seed = 0


def curate(
    store: stores.Store,
    directory: str,
    chosen_by: Settings,
    models: Sequence[models_lib.Model],
    *,
    overwrite: bool = False,
    embedding: Callable[[int, int], None] | None = None,
    scoring: Callable[[int, int], None] | None = None,
) -> manifest.Manifest:
    """Writes the manifest of a store, continuing an interrupted call.

    Args:
        store: the records.
        directory: of the manifest, local.
        chosen_by: the settings.
        models: the reference, and the learner if the criterion needs one.
        overwrite: write all files anew.
        embedding: called with the records embedded so far and in all.
        scoring: called with the records scored so far and in all.

    Raises:
        ValueError: models and settings do not fit, embeddings are missing, two
            shards are one, or the folder holds another manifest or is in use.
    """
    chosen_by = for_models(chosen_by, models)
    manifest.check_distinct(store)
    sidecars = [model.sidecars(store, embedding) for model in models]
    made_by = describe(chosen_by, [one.description for one in sidecars])
    with claimed(directory):
        for shard, done in enumerate(np.cumsum(store.shards.lengths).tolist()):
            write_shard(
                store, directory, made_by, chosen_by, models, overwrite, shard
            )
            if scoring is not None:
                scoring(done, len(store))
        return manifest.finish(store, directory, made_by, {})


def write_shard(
    store: stores.Store,
    directory: str,
    made_by: dict,
    chosen_by: Settings,
    models: Sequence[models_lib.Model],
    overwrite: bool,
    shard: int,
) -> None:
    """Writes a shard's file of a manifest, unless it is there."""
    path = manifest.part_path(store, shard, directory)
    header = manifest.describe(store, shard, made_by)
    if overwrite or not manifest.is_there(path, header):
        part = choose(store.of_shard(shard), chosen_by, models)
        manifest.write_part(path, header, part)


def choose(
    store: stores.Store, chosen_by: Settings, models: Sequence[models_lib.Model]
) -> manifest.Part:
    """Returns the weights and scores of a one-shard store.

    Records that are unreadable or have no caption are not scored.

    Raises:
        ValueError: embeddings are missing, or the loss is unknown.
    """
    chosen_by = for_models(chosen_by, models)
    sidecars = [model.sidecars(store) for model in models]
    rows, key = usable(store, sidecars), _key(store, chosen_by.seed)
    ids = store.ids(np.arange(len(store)))
    weights = np.zeros(len(store), np.float32)
    totals = np.full(len(store), np.nan, np.float32)
    totals[rows] = 0.0
    if not len(rows):
        return manifest.Part(ids, weights, totals)
    order = stream.Order(len(rows), key)
    num_windows = max(1, round(len(rows) / chosen_by.window))
    windows = np.array_split(np.arange(len(rows)), num_windows)
    counts = _counts(
        chosen_by.share, [len(one) for one in windows] * chosen_by.passes, key
    )
    uniform = _counts(chosen_by.uniform_share, counts, key)
    for turn in range(chosen_by.passes):
        positions = np.arange(len(rows)) + turn * len(rows)
        line = rows[order.rows(positions)]
        numbers = reader.caption_numbers(key, positions)
        for number, places in enumerate(windows, turn * num_windows):
            window, count = line[places], counts[number]
            # A score depends on the chosen records, so at least one is drawn.
            draw = _drawer(
                chosen_by,
                max(1, count),
                min(uniform[number], max(0, count - 1)),
            )
            embedded = _embedded(sidecars, window, numbers[places], ids[window])
            chosen, scores = draw(tf.constant([key, number]), *embedded)
            weights[window[chosen.numpy()[:count]]] += 1.0
            totals[window] += scores
    return manifest.Part(ids, weights, totals / np.float32(chosen_by.passes))


def usable(
    store: stores.Store, sidecars: Sequence[sidecars_lib.Sidecars]
) -> np.ndarray:
    """Returns the rows with an embedding and a caption in all sidecars."""
    found = []
    for start in range(0, len(store), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(store)))
        for one in sidecars:
            numbers = np.zeros(len(rows), np.int64)
            captions, _, _ = one.read_numbered(rows, numbers, store.ids(rows))
            rows = rows[captions >= 0]
        found.append(rows)
    return np.concatenate(found)


def describe(
    chosen_by: Settings, descriptions: Sequence[file_format.Description]
) -> dict:
    """Returns the `made_by` of a manifest."""
    made_by = {"choice": "joint", **dataclasses.asdict(chosen_by)}
    for name, one in zip(("reference", "learner"), descriptions, strict=False):
        made_by[name] = one._asdict()
    return made_by


def for_models(
    chosen_by: Settings, models: Sequence[models_lib.Model]
) -> Settings:
    """Returns the settings with the loss of the models' runs.

    Raises:
        ValueError: the criterion needs other models, a run is missing, or no
            loss is set and the runs have none or differ.
    """
    needed = ["a reference"]
    if chosen_by.criterion == "learnability":
        needed.append("a learner")
    if len(models) != len(needed):
        raise ValueError(
            f"`criterion` {chosen_by.criterion!r} needs "
            f"{' and '.join(needed)}. Received: {len(models)} models"
        )
    folders = [model.sidecar_dir for model in models]
    if len(set(folders)) < len(folders):
        raise ValueError(
            "The sidecars of reference and learner have the same names, so "
            "they need folders of their own. Received: "
            f"{folders[0]!r} for both"
        )
    if chosen_by.loss is not None:
        return chosen_by
    found = {model.loss() for model in models}
    if len(found) > 1 or None in found:
        names = [
            f"{one.loss()!r} of {one.workdir!r}"
            if one.workdir
            else "sidecars without a run"
            for one in models
        ]
        raise ValueError(
            "`loss` must be 'sigmoid' or 'softmax', as what scores was "
            "trained, unless it is a run, or two of one loss. Received: none, "
            f"with {' and '.join(names)}; `--set loss=sigmoid` sets it"
        )
    return dataclasses.replace(chosen_by, loss=found.pop())


@contextlib.contextmanager
def claimed(directory: str) -> Iterator[None]:
    """Locks the folder of a manifest.

    Raises:
        ValueError: another process holds it.
    """
    with contextlib.ExitStack() as stack:
        try:
            lock = os.path.join(directory, ".lock")
            stack.enter_context(files.locked(lock))
        except BlockingIOError:
            raise ValueError(
                f"Another process is writing the manifest {directory!r}; "
                "expected a folder that nobody else writes to"
            ) from None
        yield


def _key(store, seed):
    text = f"{seed} {store.stamp(0)}".encode()
    digest = hashlib.blake2b(text, digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


def _embedded(sidecars, rows, numbers, ids):
    """Reads `Embeddings` of rows by each model, with the same captions."""
    # Sorted rows are read fastest.
    order = np.argsort(rows)
    back = np.argsort(order)
    rows, numbers, ids = rows[order], numbers[order], ids[order]
    captions, *found = sidecars[0].read_numbered(rows, numbers, ids)
    every = [found]
    every += [one.read(rows, captions, ids) for one in sidecars[1:]]
    return [
        Embeddings(
            tf.constant(image[back], tf.float32),
            tf.constant(text[back], tf.float32),
            tf.constant(one.scale, tf.float32),
            tf.constant(one.bias, tf.float32),
        )
        for one, (image, text) in zip(sidecars, every, strict=True)
    ]


def _counts(share, sizes, key):
    """Numbers of records chosen from each window.

    Systematic rounding: cumulative counts stay within one of the share. The
    random start gives many small shards their share on average.
    """
    # In fractions: a sum of floats may come out below a whole number.
    start = Fraction(key, 2**31)
    ends = [start]
    for size in sizes:
        ends.append(ends[-1] + Fraction(share) * size)
    return np.diff([math.floor(end) for end in ends]).tolist()


# Shards are about equally large, so windows have few sizes.
@functools.lru_cache(maxsize=32)
def _drawer(chosen_by, count, num_uniform):
    """Compiles: seed, reference, learner -> rows, scores of all."""

    def draw(seed, reference, *learners):
        learner = learners[0] if learners else None
        rows, drawn = cascade.draw(
            reference,
            chosen_by,
            batch_size=count,
            num_uniform=num_uniform,
            seed=tf.unstack(seed),
            loss=chosen_by.loss,
            learner=learner,
        )
        scores = -drawn.reference_loss
        if learner is not None:
            scores += drawn.learner_loss
        return rows, scores

    return tf.function(draw, autograph=False)

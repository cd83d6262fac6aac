"""The choice: a stored stage over a whole data set, before training.

Each shard's records are dealt at random into windows, and each window passes
the stage. Embeddings come from sidecars; missing files are written first.
Unlike in a run, the stage may score by learnability, from sidecars of a learner
and of a reference. Shards are independent, so a call that follows an
interrupted one chooses only from the missing shards.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import files, selection
from jest_tf.config import checks
from jest_tf.curation import models as models_lib
from jest_tf.data import reader, stores, stream
from jest_tf.data.stores import manifest
from jest_tf.embeddings import Embeddings

# Rows of sidecars read at a time.
_ROWS = 2**16


@dataclass(frozen=True)
class Choice(checks.Checked):
    """Settings of a choice.

    Attributes:
        stage: a stored stage, which every window passes. In each shard, it
            passes its share of the records with embeddings, rounded up or down
            at random.
        window: approximate number of records chosen from jointly; a shard's
            windows are of equal size.
        passes: repetitions of dealing and choosing. A record's weight counts
            how often it was chosen, and its score is the mean.
        loss: pair loss of the scores; None is the loss of the models' runs.
        seed: of windows, captions and draws.
    """

    stage: config_lib.Stage = field(
        default_factory=lambda: config_lib.Stage(
            5, "stored", criterion="easy_reference"
        )
    )
    window: checks.Count = 8192
    passes: checks.Count = 1
    loss: config_lib.Loss | None = None
    seed: checks.Seed = 0

    def __post_init__(self):
        super().__post_init__()
        self._expect(
            self.stage.is_stored,
            "`stage.embeddings` must be 'stored': records are chosen by their "
            "sidecars",
        )


def curate(
    store: stores.Store,
    directory: str,
    chosen_by: Choice,
    models: Sequence[models_lib.Model],
    *,
    overwrite: bool = False,
    embedding: Callable[[int, int], None] | None = None,
    scoring: Callable[[int, int], None] | None = None,
) -> stores.Manifest:
    """Writes the manifest of a store, continuing an interrupted call.

    Args:
        store: the records.
        directory: the manifest's local folder.
        chosen_by: the settings.
        models: the reference, and the learner if the criterion needs it.
        overwrite: whether to write all files anew.
        embedding: called with the records embedded so far and in all.
        scoring: called with the records scored so far and in all.

    Raises:
        ValueError: models and settings do not fit, embeddings are missing, two
            shards are the same, or the folder has another manifest or is in
            use.
    """
    chosen_by = _for_models(chosen_by, models)
    manifest.check_distinct(store)
    sidecars = [model.sidecars(store, embedding) for model in models]
    made_by = _describe(chosen_by, sidecars)
    with _claimed(directory):
        for shard, done in enumerate(np.cumsum(store.shards.lengths).tolist()):
            path = manifest.part_path(store, shard, directory)
            header = manifest.describe(store, shard, made_by)
            if overwrite or not manifest.is_there(path, header):
                part = _choose(store.of_shard(shard), chosen_by, models)
                manifest.write_part(path, header, part)
            if scoring is not None:
                scoring(done, len(store))
        return manifest.finish(store, directory, made_by)


def _choose(store, chosen_by, models):
    """The `manifest.Part` of a store of a single shard.

    Records that are unreadable or have no caption are not scored.
    """
    sidecars = [model.sidecars(store) for model in models]
    rows, key = _usable(store, sidecars), _key(store, chosen_by.seed)
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
        Fraction(1, chosen_by.stage.candidates),
        [len(places) for places in windows] * chosen_by.passes,
        key,
    )
    for turn in range(chosen_by.passes):
        positions = np.arange(len(rows)) + turn * len(rows)
        line = rows[order.rows(positions)]
        numbers = reader.caption_numbers(key, positions)
        for number, places in enumerate(windows, turn * num_windows):
            window, count = line[places], counts[number]
            # A score depends on the chosen records, so at least one is drawn.
            draw = _drawer(chosen_by, max(1, count))
            embedded = _embedded(
                sidecars,
                window,
                None if chosen_by.stage.captions == "best" else numbers[places],
                ids[window],
            )
            chosen, scores = draw(tf.constant([key, number]), *embedded)
            weights[window[chosen.numpy()[:count]]] += 1.0
            totals[window] += scores
    return manifest.Part(ids, weights, totals / np.float32(chosen_by.passes))


def _usable(store, sidecars):
    """The rows with an embedding and a caption in all sidecars."""
    found = []
    for start in range(0, len(store), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(store)))
        for sidecar in sidecars:
            numbers = np.zeros(len(rows), np.int64)
            captions = sidecar.read_numbered(rows, numbers, store.ids(rows))[0]
            rows = rows[captions >= 0]
        found.append(rows)
    return np.concatenate(found)


def _describe(chosen_by, sidecars):
    """The `made_by` of a manifest."""
    settings = dataclasses.asdict(chosen_by)
    made_by = settings.pop("stage") | settings
    # Settings of live stages and of steps have no effect here.
    for name in ("embeddings", "view", "scoring_batch_size"):
        del made_by[name]
    del made_by["first_step"], made_by["last_step"]
    roles = ("reference", "learner")
    for name, sidecar in zip(roles, sidecars, strict=False):
        made_by[name] = sidecar.description._asdict()
    return made_by


def _for_models(chosen_by, models):
    """The settings with the loss of the models' runs."""
    needed = ["reference"]
    needed += [name for name in chosen_by.stage.needs if name not in needed]
    if len(models) != len(needed):
        raise ValueError(
            f"`stage.criterion` {chosen_by.stage.criterion!r} needs the "
            f"{' and the '.join(needed)}. Received: {len(models)} models"
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
            f"{model.loss()!r} of {model.workdir!r}"
            if model.workdir
            else "sidecars without a run"
            for model in models
        ]
        raise ValueError(
            "`loss` must be set to the pair loss that trained the models, "
            "unless all are runs with the same loss. Received: no `loss`, "
            f"with {' and '.join(names)}; `--set loss=sigmoid` sets it"
        )
    return dataclasses.replace(chosen_by, loss=found.pop())


@contextlib.contextmanager
def _claimed(directory):
    """Locks the folder of a manifest."""
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
    """Reads `Embeddings` of rows by each model, with the same captions.

    Without `numbers`, the captions are those that the first model finds best.
    """
    # Sorted rows are read fastest.
    order = np.argsort(rows)
    back = np.argsort(order)
    rows, ids = rows[order], ids[order]
    if numbers is None:
        captions, *found = sidecars[0].read_best(rows, ids)
    else:
        captions, *found = sidecars[0].read_numbered(rows, numbers[order], ids)
    every = [found]
    every += [sidecar.read(rows, captions, ids) for sidecar in sidecars[1:]]
    return [
        Embeddings(
            tf.constant(image[back], tf.float32),
            tf.constant(text[back], tf.float32),
            tf.constant(sidecar.scale, tf.float32),
            tf.constant(sidecar.bias, tf.float32),
        )
        for sidecar, (image, text) in zip(sidecars, every, strict=True)
    ]


def _counts(share, sizes, key):
    """Numbers of records chosen from each window.

    Systematic rounding: cumulative counts stay within 1 of the share. The
    random start gives many small shards their share on average.
    """
    # Fractions, because a sum of floats may fall just below a whole number.
    start = Fraction(key, 2**31)
    ends = [start]
    for size in sizes:
        ends.append(ends[-1] + Fraction(share) * size)
    return np.diff([math.floor(end) for end in ends]).tolist()


# Shards are about equally large, so few window sizes occur.
@functools.lru_cache(maxsize=32)
def _drawer(chosen_by, count):
    """Compiles `seed, reference[, learner] -> drawn rows, scores of all`."""
    stage, settings = (
        chosen_by.stage,
        config_lib.SelectionConfig(count, loss=chosen_by.loss),
    )
    by_score = count - stage.num_uniform(count)
    stage = dataclasses.replace(
        stage, num_chunks=max(1, min(stage.num_chunks, by_score))
    )
    criterion = config_lib.criterion(stage.criterion)

    def draw(seed, reference, *learners):
        learner = learners[0] if learners else None
        drawn = selection.draw(
            learner,
            reference,
            stage,
            batch_size=count,
            seed=seed,
            settings=settings,
        )
        losses = {
            "learner": drawn.learner_loss,
            "reference": drawn.reference_loss,
        }
        return drawn.indices, criterion.score(losses)

    return tf.function(draw, autograph=False)

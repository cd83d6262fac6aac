"""The choice: a stored stage over a whole data set, before training.

Each shard's records are dealt at random into windows, and each window passes
the stage. Shards are independent, so a call that follows an interrupted one
chooses only from the missing shards.
"""

import contextlib
import dataclasses
import hashlib
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.config import checks
from jest_tf.curation import survey
from jest_tf.data import reader, stored_stages, stores, stream
from jest_tf.data.sidecars import Sidecars
from jest_tf.data.stores import manifest
from jest_tf.embeddings import Embeddings

STAGE = config_lib.Stage(5, "stored", criterion="easy_reference")


@dataclass(frozen=True)
class Choice(checks.Checked):
    """Settings of a choice.

    Attributes:
        loss: pair loss of the scores, that of the reference.
        stage: a stored stage, which every window passes. In each shard, it
            passes its share of the records with embeddings, rounded up or down
            at random.
        window: approximate number of records chosen from jointly; a shard's
            windows are of equal size.
        seed: of windows, captions and draws.
    """

    loss: config_lib.Loss
    stage: config_lib.Stage = STAGE
    window: checks.Count = 8192
    seed: checks.Seed = 0

    def __post_init__(self):
        super().__post_init__()
        self._expect(
            self.stage.is_stored,
            "`stage.embeddings` must be 'stored': records are chosen by their "
            "sidecars",
        )
        self._expect(
            "learner" not in self.stage.needs,
            "`stage.criterion` must need no learner, as 'easy_reference' does",
        )
        self._expect(
            not self.stage.first_step and self.stage.last_step is None,
            "`stage.first_step` and `stage.last_step` must be left out: a "
            "choice has no steps",
        )


def curate(
    sidecars: Sidecars,
    directory: str,
    chosen_by: Choice,
    *,
    overwrite: bool = False,
    left_out: AbstractContextManager[np.ndarray] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> stores.Manifest:
    """Writes the manifest of a store, continuing an interrupted call.

    Args:
        sidecars: the reference's, of the store.
        directory: the manifest's folder.
        chosen_by: the settings.
        overwrite: whether to write all files anew.
        left_out: a context of records that are not chosen, bool [n], such as
            repeats; entered under the folder's lock, left with the manifest.
        progress: called with the records scored so far and in all.
    """
    store = sidecars.store
    manifest.check_distinct(store)
    made_by = _describe(chosen_by, sidecars)
    omitted = np.zeros(len(store), bool)
    with contextlib.ExitStack() as stack:
        try:
            lock = os.path.join(directory, ".lock")
            stack.enter_context(files.locked(lock))
        except BlockingIOError:
            raise ValueError(
                f"Another process is writing the manifest {directory!r}; "
                "expected a folder that nobody else writes to"
            ) from None
        if left_out is not None:
            omitted = stack.enter_context(left_out)
        if omitted.any():
            packed = np.packbits(omitted).tobytes()
            digest = hashlib.blake2b(packed, digest_size=8).hexdigest()
            made_by["left_out"] = f"{omitted.sum():,} records ({digest})"
        for shard, done in enumerate(np.cumsum(store.shards.lengths).tolist()):
            path = manifest.part_path(store, shard, directory)
            header = manifest.describe(store, shard, made_by)
            if overwrite or not manifest.is_there(path, header):
                part = _choose(sidecars, shard, chosen_by, omitted)
                manifest.write_part(path, header, part)
            if progress is not None:
                progress(done, len(store))
        return manifest.finish(store, directory, made_by)


def _choose(sidecars, shard, chosen_by, left_out):
    """The `manifest.Part` of a shard.

    Records that are unreadable, have no caption or are left out are not scored.
    """
    store = sidecars.store
    start = int(store.shards.lengths[:shard].sum())
    length = int(store.shards.lengths[shard])
    ids = store.ids(np.arange(start, start + length))
    weights = np.zeros(length, np.float32)
    scores = np.full(length, np.nan, np.float32)
    usable = survey.blocks(sidecars, start, start + length)
    rows = np.concatenate([rows for _, rows, _ in usable]) - start
    rows = rows[~left_out[start + rows]]
    if not len(rows):
        return manifest.Part(ids, weights, scores)
    key = _key(store.stamp(shard), chosen_by.seed)
    line = rows[stream.Order(len(rows), key).rows(np.arange(len(rows)))]
    numbers = reader.caption_numbers(key, np.arange(len(rows)))
    num_windows = max(1, round(len(rows) / chosen_by.window))
    windows = np.array_split(np.arange(len(rows)), num_windows)
    counts = _counts(
        Fraction(1, chosen_by.stage.candidates), map(len, windows), key
    )
    for number, (places, count) in enumerate(zip(windows, counts, strict=True)):
        window = line[places]
        # A score depends on the chosen records, so at least one is drawn.
        passed = max(1, count)
        stage = dataclasses.replace(
            chosen_by.stage, num_chunks=min(chosen_by.stage.num_chunks, passed)
        )
        draw = stored_stages.drawer(stage, chosen_by.loss, passed)
        embedded = _embedded(
            sidecars,
            start + window,
            None if chosen_by.stage.captions == "best" else numbers[places],
            ids[window],
        )
        drawn = draw(np.int32([key, number]), *embedded)
        losses = {"reference": drawn.reference_loss}
        scores[window] = config_lib.criterion(stage.criterion).score(losses)
        weights[window[drawn.indices[:count]]] = 1.0
    return manifest.Part(ids, weights, scores)


def _describe(chosen_by, sidecars):
    """The `made_by` of a manifest."""
    settings = dataclasses.asdict(chosen_by)
    made_by = settings.pop("stage") | settings
    # Settings of live stages and of steps have no effect here.
    for name in ("embeddings", "view", "scoring_batch_size"):
        del made_by[name]
    del made_by["first_step"], made_by["last_step"]
    return made_by | {"reference": sidecars.description._asdict()}


def _key(stamp, seed):
    text = f"{seed} {stamp}".encode()
    digest = hashlib.blake2b(text, digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


def _embedded(sidecars, rows, numbers, ids):
    """Reads `Embeddings` of rows, with best captions without `numbers`."""
    # Sorted rows are read fastest.
    order = np.argsort(rows)
    back = np.argsort(order)
    numbers = None if numbers is None else numbers[order]
    _, image, text = sidecars.read_numbered(rows[order], numbers, ids[order])
    return Embeddings(
        np.float32(image[back]),
        np.float32(text[back]),
        np.float32(sidecars.scale),
        np.float32(sidecars.bias),
    )


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

"""Notices of what is wrong with a run's data: at its start, in its first steps.

Each is a line on standard error, said once.
"""

import time

import numpy as np

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.data import known_images, pipeline, reader, stores, stream
from jest_tf.runs import inputs, progress, steps

# Records of a sample, and the seconds after which it ends early. It is read in
# parts, each spread over the whole data.
_SAMPLED, _SECONDS, _PARTS = 256, 5.0, 16
# First steps of a process, in which captions and images are compared.
_COMPARED = 100
# Rows of a batch that may have another row's caption, and their share.
_EQUAL, _EQUAL_SHARE = 2, 0.01


def check_data(
    config: config_lib.TrainConfig, opened: inputs.Inputs
) -> inputs.Inputs:
    """Checks a sample of the stream, and warns of tests that are trained on.

    Returns the inputs, with the images of evaluations as `sources.known`, for
    which the first steps look.

    Raises:
        ValueError: if more records of the sample are unreadable than a run
            allows.
    """
    sources = opened.sources
    named = sources.store.first(len(config.data.train)).shards.paths
    if twice := len(named) - len(set(named)):
        progress.say(
            f"warning: {twice:,} of the {len(named):,} shards in `data.train` "
            "repeat others; each adds the shard's records once more"
        )
    tests = _list_tests(sources.store, opened.held_out)
    known = known_images.KnownImages(tests)
    funnel = inputs.funnel_at(config, sources, "", 0)
    order = pipeline.order(sources.store, config.seed, funnel.options)
    check_sample(sources.store, order, config.seed, known)
    return opened._replace(sources=sources._replace(known=known))


def check_sample(
    store: stores.Store,
    order: stream.AnyOrder | None = None,
    seed: int = 0,
    known: known_images.KnownImages | None = None,
) -> None:
    """Reads a sample of a store, in an order, as a run would.

    Warns of records that cannot be read, of captions that are not UTF-8 and of
    `known` images. Few records are read where they take long, as on a bucket.

    Raises:
        ValueError: as `check_data`.
    """
    order = order or stream.Order(len(store), seed)
    last = max(order.num_drawn, _SAMPLED) - 1
    positions = np.linspace(0, last, _SAMPLED).astype(np.int64)
    log = pipeline.FaultLog(None, lost_share=store.lost_share)
    sample = reader.Reader(
        store, order, seed=seed, step_size=1, log=log, known=known
    )
    captions, end = [], time.monotonic() + _SECONDS
    for part in range(_PARTS):
        captions += sample.check(positions[part::_PARTS])
        if time.monotonic() > end:
            break
    if log.first is not None:
        progress.say(
            f"warning: {log.num_replaced:,} of {log.num_drawn:,} sampled "
            f"records cannot be read, the first {log.first['place']}: "
            f"{log.first['reason']}; a run replaces them, and stops if they "
            f"are more than {reader.MAX_FAULT_RATE:.0%}"
        )
    count = sum(
        "\ufffd" in text.decode("utf-8", "replace") for text in captions
    )
    if count:
        progress.say(
            f"warning: {count:,} of {len(captions):,} sampled captions are not "
            "valid UTF-8; the invalid bytes are replaced. Convert the files to "
            "UTF-8"
        )
    if known is not None and known.found:
        _warn_of_tests(known, store, f"{log.num_drawn:,} sampled records")


class Notices(steps.StepCallback):
    """Warns in the first hundred steps of a process; a callback of `fit`.

    It warns of equal captions in a batch, unless `model.false_negatives` leaves
    them out, and of images of evaluations that were trained on.
    """

    def __init__(
        self,
        config: config_lib.TrainConfig,
        sources: inputs.Sources,
        start_step: int = 0,
    ):
        super().__init__(start_step)
        self._start, self._sources = start_step, sources
        rule = config_lib.FALSE_NEGATIVES[config.model.false_negatives]
        self._compares = not rule.needs_ids

    def on_train_batch_end(self, batch, logs=None):
        """Compares the captions of an early step."""
        super().on_train_batch_end(batch, logs)
        number = self.step - self._start
        if self._compares and number <= _COMPARED:
            self._compare_captions()
        if number == _COMPARED:
            self._end_search()

    def on_train_end(self, logs=None):
        """Ends the search for images in a shorter `fit`."""
        self._end_search()

    def _compare_captions(self):
        ids = self.model.rows.trained("caption_id")
        if ids is None:
            return
        _, counts = np.unique(ids, return_counts=True)
        equal = int(counts[counts > 1].sum())
        if equal > max(_EQUAL, _EQUAL_SHARE * len(ids)):
            self._compares = False
            progress.say(
                f"warning: step {self.step:,}: {equal:,} of the {len(ids):,} "
                "rows in the batch have the caption of another row, which "
                "counts as a mismatch of the other's image: "
                "`model.false_negatives=equal_captions` leaves such pairs out"
            )

    def _end_search(self):
        known = self._sources.known
        if known is not None and known.found:
            where = f"the records that {self.step:,} steps read"
            _warn_of_tests(known, self._sources.store, where)
        if known is not None:
            known.stop()


def _list_tests(store, held_out):
    """Lists image keys of evaluations; warns of evaluations in `store`."""
    trained, keys = set(map(files.absolute, store.shards.paths)), []
    for name, evaluated in held_out.items():
        paths, lengths = evaluated.store.shards
        shared = [files.absolute(path) in trained for path in paths]
        if not any(shared):
            keys += evaluated.image_keys.tolist()
            continue
        progress.say(
            f"warning: {lengths[shared].sum():,} of the {lengths.sum():,} "
            f"records of the evaluation data {name!r} are training data too, "
            f"the first in {paths[shared.index(True)]}: its scores will be "
            "too high"
        )
    return keys


def _warn_of_tests(known, store, where):
    rows = [*known.found.values()]
    known.found = {}
    progress.say(
        "warning: images of the evaluation data, byte for byte, are in the "
        f"training data: {len(rows):,} in {where}, the first "
        f"{store.describe(min(rows))}; leave them out of `data.train`, or the "
        "scores will be too high"
    )

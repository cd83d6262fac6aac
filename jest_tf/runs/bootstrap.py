"""Renewal: a run makes its own learner its reference.

At each step of `bootstrap.renew_at` the learner embeds records into sidecars
in the run directory, and becomes the reference of the steps that follow. There
the run ends its `fit`, saves a checkpoint and goes on from it as if it had been
killed, so a renewal is a function of the checkpoint and resuming is exact.

A learner that recognises fewer pairs than the current reference does not
replace it, so a run that goes astray keeps its earlier reference.

Renewal helps because a learner that was trained on the rows that a reference
chose chooses better than that reference.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.data import reader, stored_stages, stream
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data import stores as stores_lib
from jest_tf.data.sidecars import embed, recognition
from jest_tf.models import reference
from jest_tf.runs import checkpoints, directory, progress
from jest_tf.training import flops

_ROWS_SALT = 0x72656E6577
_BUSY = 0.5  # seconds until a shard that another process writes is looked for
# Rejected renewals in succession after which no more are made.
_REJECTIONS = 2


class Renewal(NamedTuple):
    """A renewal, as saved in `references/step-000000300/renewal.json`.

    Attributes:
        step: steps done before it.
        images, captions: numbers of those embedded.
        flops: floating-point operations of embedding both.
        seconds: time taken by the process that finished it.
        recognised: share of the pairs that the learner recognises, see
            `recognition.recognised_share`.
        kept: whether the learner became the reference.
    """

    step: int
    images: int
    captions: int
    flops: int
    seconds: float
    recognised: float
    kept: bool


def renewals(config: config_lib.TrainConfig, workdir: str) -> list[Renewal]:
    """Returns the renewals saved in a run directory, in order."""
    folders = [_folder(workdir, step) for step in config.bootstrap.renew_at]
    return [
        _read(folder)
        for folder in folders
        if directory.has(folder, directory.RENEWAL_FILE)
    ]


def _read(folder):
    with directory.as_written(folder, directory.RENEWAL_FILE):
        content = directory.read(folder, directory.RENEWAL_FILE)
        content.pop("agreement", None)  # of 0.3.0
        renewal = Renewal(**content)
        sum(renewal[:6])  # raises unless they are numbers
        return renewal


def stored_flops(
    config: config_lib.TrainConfig,
    renewals: Sequence[Renewal],
    first: int,
    learner: int,
    step: int,
) -> int:
    """Counts the FLOPs of the stored stages on a host, in `step` steps.

    `first` is the width of the first reference, 0 if there is none, `learner`
    that of the learner.
    """
    kept = [renewal.step for renewal in renewals if renewal.kept]
    return sum(
        segment.num_steps
        * stored_stages.flops(
            segment,
            learner if any(turn <= segment.first for turn in kept) else first,
        )
        for segment in config_lib.cut(config.plan, step)
        if segment.scores_by_sidecars
    )


def renew(
    run: reference.Run,
    workdir: str,
    store: stores_lib.Store,
    step: int,
    first: sidecars_lib.Sidecars | None = None,
    *,
    writes: bool = True,
    meet: Callable[[bool], bool] = bool,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Makes the learner after `step` steps the reference, if this is due.

    Continues an interrupted renewal from its last complete shard. Deletes
    sidecars that no checkpoint needs. After two rejected renewals in
    succession, embeds nothing more. `first` is the reference before all
    renewals, if any.

    Several workers share the shards out, and one `writes` the rest. `meet`
    returns whether any worker passes true, once all have called it; `share` is
    the worker's number, and how many there are.
    """
    config = run.config
    if step not in config.bootstrap.renew_at:
        return
    folder = _folder(workdir, step)
    if not directory.has(folder, directory.RENEWAL_FILE):
        meet(False)  # all have looked
        renewal = _make(run, workdir, store, step, first, meet, share)
        if writes:
            directory.write(folder, directory.RENEWAL_FILE, renewal._asdict())
        meet(False)
    if writes:
        _delete_old(config, workdir)  # a kill may have left some of them


def _make(run, workdir, store, step, first, meet, share):
    config, folder = run.config, _folder(workdir, step)
    last = [
        renewal for renewal in renewals(config, workdir) if renewal.step < step
    ]
    last = last[-_REJECTIONS:]
    if len(last) == _REJECTIONS and not any(renewal.kept for renewal in last):
        progress.say(
            f"step {step:,}: the last {_REJECTIONS} renewals were rejected; "
            "the reference stays and nothing is embedded"
        )
        return Renewal(step, 0, 0, 0, 0.0, last[-1].recognised, False)
    rows = embedded_rows(config, store, step)
    number = len(store) if rows is None else int(rows.sum())
    progress.say(
        f"step {step:,}: the learner embeds {number:,} of {len(store):,} "
        "records"
    )
    cost = embed_records(run, store, folder, rows, meet, share)
    sidecars = sidecars_lib.Sidecars(store, folder)
    recognised, least = _compared(
        config, store, workdir, step, sidecars, first, rows
    )
    renewal = Renewal(step, *cost, recognised, recognised >= least)
    outcome = (
        "it is the reference now" if renewal.kept else "the reference stays"
    )
    compared = f", the reference before {least:.1%}" if least else ""
    progress.say(
        f"step {step:,}: the learner recognises {recognised:.1%} of the pairs"
        f"{compared}; {outcome}"
    )
    return renewal


def _compared(config, store, workdir, step, sidecars, first, rows):
    """The shares that the learner and the reference recognise of the pool."""
    pool = np.ones(len(store), bool) if rows is None else rows.copy()
    pool[_num_pool(config, store) :] = False

    def recognised(some):
        share = recognition.recognised_share(some, store, pool, config.seed)
        return round(share, 5)

    before = _last_kept(config, workdir, step - 1)
    if before is None:
        return recognised(sidecars), recognised(first) if first else 0.0
    return recognised(sidecars), before.recognised


class Cost(NamedTuple):
    """The cost of embedding records; attributes as in `Renewal`."""

    images: int
    captions: int
    flops: int
    seconds: float


def embed_records(
    run: reference.Run,
    store: stores_lib.Store,
    folder: str,
    rows: np.ndarray | None = None,
    meet: Callable[[bool], bool] = bool,
    share: tuple[int, int] = (0, 1),
) -> Cost:
    """Writes the sidecars of a run's learner, or those that are missing.

    `rows`, bool [n], marks the records to embed; None embeds all. `meet` and
    `share` are as in `renew`.
    """
    started = time.monotonic()
    # Each worker begins elsewhere, and leaves out what others have written.
    shards = np.arange(len(store.shards.paths))
    number, count = share
    output = embed.Output(
        folder,
        rows=rows,
        shards=np.roll(shards, -(number * len(shards) // count)).tolist(),
        progress=progress.Progress("embedding", "records"),
    )
    encode, reasons = reference.encoder(run), {}
    while True:
        summary = embed.write(
            store,
            encode,
            reference.describe(run),
            output,
            image_size=run.image_form,
        )
        reasons |= summary.reasons
        # Another process may be writing a shard, also one of a dead run.
        if not meet(bool(summary.busy)):
            break
        time.sleep(_BUSY)
    seconds = round(time.monotonic() - started, 3)
    cost = embedding_cost(run, store, folder)._replace(seconds=seconds)
    wanted = len(store) if rows is None else int(rows.sum())
    limit = reader.MAX_FAULT_RATE
    if wanted - cost.images > limit * max(wanted, reader.MIN_DRAWN):
        # If they were kept, their faults would stop every later step.
        meet(False)  # all have counted
        _delete_sidecars(folder)
        raise ValueError(
            f"At most {limit:.2%} of the records that are embedded may be "
            f"unreadable. Received: {wanted - cost.images:,} of {wanted:,} "
            f"without an embedding ({reasons}). Nothing was kept: the same "
            "command embeds them again"
        )
    return cost


def embedding_cost(
    run: reference.Run, store: stores_lib.Store, folder: str
) -> Cost:
    """Returns the cost of a folder of a run's sidecars, with 0 seconds."""
    sidecars = sidecars_lib.Sidecars(store, folder)
    images = captions = 0
    for shard in range(len(store.shards.paths)):
        rows = sidecars.read_shard(shard)
        images += int(rows["valid"].sum())
        captions += len(rows["text"])
    image = tf.TensorSpec([1, *run.image_form.shape], run.image_form.dtype)
    tokens = tf.TensorSpec([1, run.tokenizer.length], tf.int32)
    total = sum(
        number * flops.count(functools.partial(encode, training=False), spec)[0]
        for number, encode, spec in (
            (images, run.learner.encode_image, image),
            (captions, run.learner.encode_text, tokens),
        )
    )
    return Cost(images, captions, total, seconds=0.0)


def sidecars_at(
    config: config_lib.TrainConfig,
    store: stores_lib.Store,
    workdir: str,
    step: int,
) -> tuple[sidecars_lib.Sidecars, np.ndarray | None] | None:
    """Opens the sidecars by which the step after `step` steps chooses.

    Also returns the rows with embeddings, bool [n], None for all of the pool.
    Returns None if the reference has not been renewed.
    """
    last = _last_kept(config, workdir, step)
    if last is None:
        return None
    sidecars = sidecars_lib.Sidecars(store, _folder(workdir, last.step))
    return sidecars, rows_at(config, store, workdir, step)


def rows_at(
    config: config_lib.TrainConfig,
    store: stores_lib.Store,
    workdir: str,
    step: int,
) -> np.ndarray | None:
    """Returns the rows of `sidecars_at`, also of sidecars deleted since."""
    last = _last_kept(config, workdir, step)
    rows = last and embedded_rows(config, store, last.step)
    is_whole = rows is None or rows[: _num_pool(config, store)].all()
    return None if is_whole else rows


def has_sidecars(
    config: config_lib.TrainConfig, workdir: str, step: int
) -> bool:
    """Returns whether the reference of the step after `step` steps is there.

    The first reference is left out of account.
    """
    last = _last_kept(config, workdir, step)
    return last is None or any(
        name.endswith(sidecars_lib.SUFFIX)
        for name in files.list_folder(_folder(workdir, last.step))
    )


def embedded_rows(
    config: config_lib.TrainConfig, store: stores_lib.Store, step: int
) -> np.ndarray | None:
    """Returns the rows that the renewal after `step` steps embeds, bool [n].

    None means all rows.
    """
    settings, num_pool = config.bootstrap, _num_pool(config, store)
    share, rows = settings.share(step), np.ones(len(store), bool)
    rows[num_pool:] = config.loss_needs_reference
    if share == 1.0 and not store.manifest and rows.all():
        return None
    if share < 1.0:
        salt = _ROWS_SALT + settings.renew_at.index(step)
        values = stream.uniform_hash(config.seed, np.arange(num_pool), salt)
        rows[:num_pool] = values < np.uint64(share * 2.0**64)
    if store.manifest:
        rows[:num_pool] &= store.manifest.weights > 0
    return rows


def _num_pool(config, store):
    """Counts the records of `data.train`; curated records follow them."""
    return sum(store.parts[: len(config.data.train)])


def _last_kept(config, workdir, step):
    """Returns the last kept renewal up to a step; None if there is none."""
    settings = config.bootstrap
    last = None
    for due in settings.renew_at[: settings.num_renewals(step)]:
        folder = _folder(workdir, due)
        if not directory.has(folder, directory.RENEWAL_FILE):
            raise ValueError(
                f"The folder {folder!r} must have the reference of the steps "
                f"after {due:,}, with {directory.RENEWAL_FILE}. Received: "
                "none; `jest-tf train` makes it when it continues the run from "
                "that step, so delete later checkpoints, if there are any"
            )
        renewal = _read(folder)
        last = renewal if renewal.kept else last
    return last


def _folder(workdir, step):
    folder = directory.path(workdir, directory.REFERENCES_FOLDER)
    return directory.path(folder, f"step-{step:09d}")


def _delete_old(config, workdir):
    """Deletes references that no checkpoint needs."""
    saved = checkpoints.saved_steps(workdir)
    needed = [_last_kept(config, workdir, step) for step in saved]
    for renewal in renewals(config, workdir):
        # A run that falls back to an earlier checkpoint reuses later renewals.
        if renewal.step <= max(saved) and renewal not in needed:
            _delete_sidecars(_folder(workdir, renewal.step))


def _delete_sidecars(folder):
    for name in files.list_folder(folder):
        if name.endswith(sidecars_lib.SUFFIX):
            files.remove(files.inside(folder, name))

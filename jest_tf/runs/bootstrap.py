"""References that a run makes of itself.

At each step of `bootstrap.renew_at` the learner embeds records into sidecars
within the run directory, and is the reference of the steps that follow. A run
ends its `fit` there, saves a checkpoint and goes on from it as if it had been
killed, so a renewal is a function of the checkpoint and resuming is exact.

Evans et al. (2024, arXiv 2406.17711) call the effect "data quality
bootstrapping": a learner that was trained on a choice chooses better than the
reference that made the choice.
"""

import os
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data import stores as stores_lib
from jest_tf.data import stream
from jest_tf.data.sidecars import embed
from jest_tf.models import reference
from jest_tf.runs import checkpoints, directory, progress
from jest_tf.training import flops

_ROWS_SALT = 0x72656E6577
_BATCH_SIZE = 256


class Renewal(NamedTuple):
    """A renewal on record, `references/step-000000300/renewal.json`.

    Attributes:
        step: steps done before it.
        images: pictures embedded.
        captions: captions embedded.
        flops: operations of both.
        seconds: time taken by the process that ended it.
    """

    step: int
    images: int
    captions: int
    flops: int
    seconds: float


def end_of(config: config_lib.TrainConfig, step: int) -> int:
    """Returns the step at which a `fit` from `step` ends."""
    later = [stop for stop in config.bootstrap.renew_at if stop > step]
    return min(later, default=config.steps)


def renewals(config: config_lib.TrainConfig, workdir: str) -> list[Renewal]:
    """Returns the renewals on record, in order."""
    folders = [_folder(workdir, step) for step in config.bootstrap.renew_at]
    return [
        Renewal(**directory.read(folder, directory.RENEWAL_FILE))
        for folder in folders
        if directory.has(folder, directory.RENEWAL_FILE)
    ]


def renew(
    run: reference.Run, workdir: str, store: stores_lib.Store, step: int
) -> None:
    """Makes the learner, as it is after `step` steps, the reference.

    Does nothing if that has been done, or if nothing is due. Continues a
    renewal that was interrupted, a shard at a time. References that no
    checkpoint needs are deleted.
    """
    config = run.config
    if step not in config.bootstrap.renew_at:
        return
    folder = _folder(workdir, step)
    if directory.has(folder, directory.RENEWAL_FILE):
        return
    rows = rows_at(config, store, step)
    number = len(store) if rows is None else int(rows.sum())
    progress.say(
        f"step {step:,}: the learner becomes the reference and embeds "
        f"{number:,} of {len(store):,} records"
    )
    started = time.monotonic()
    description = reference.describe(run)
    os.makedirs(folder, exist_ok=True)
    embed.write(
        store,
        reference.encoder(run, _BATCH_SIZE),
        description,
        embed.Output(
            folder,
            rows=rows,
            progress=progress.Progress("embedding", "records"),
        ),
        image_size=run.picture,
        batch_size=_BATCH_SIZE,
    )
    images, captions = _count(store, folder)
    of_image, of_caption = _flops(run)
    renewal = Renewal(
        step,
        images,
        captions,
        images * of_image + captions * of_caption,
        round(time.monotonic() - started, 3),
    )
    directory.write(folder, directory.RENEWAL_FILE, renewal._asdict())
    _delete_old(config, workdir)


def sidecars_at(
    config: config_lib.TrainConfig,
    store: stores_lib.Store,
    workdir: str,
    step: int,
) -> sidecars_lib.Sidecars | None:
    """Opens the sidecars of the last renewal before the step after `step`.

    None stands for no renewal.

    Raises:
        ValueError: they are missing or damaged.
    """
    count = config.bootstrap.num_renewals(step)
    if not count:
        return None
    folder = _folder(workdir, config.bootstrap.renew_at[count - 1])
    if not directory.has(folder, directory.RENEWAL_FILE):
        raise ValueError(
            f"The folder {folder!r} must have the reference of the steps after "
            f"{step:,}, with {directory.RENEWAL_FILE}. Received: none; delete "
            "the later checkpoints, and the same command makes it anew"
        )
    return sidecars_lib.Sidecars(store, folder)


def rows_at(
    config: config_lib.TrainConfig, store: stores_lib.Store, step: int
) -> np.ndarray | None:
    """Returns the rows that the last renewal by a step embeds, bool [n].

    None stands for all of them, and for no renewal.
    """
    settings = config.bootstrap
    count = settings.num_renewals(step)
    if not count:
        return None
    drawn = store.manifest and store.manifest.weights > 0
    if settings.share == 1.0:
        return drawn
    salt = _ROWS_SALT + count - 1
    values = stream.uniform_hash(config.seed, np.arange(len(store)), salt)
    rows = values < np.uint64(settings.share * 2.0**64)
    if config.data.curated:
        # Their embeddings may be read too.
        rows[sum(store.parts[: len(config.data.train)]) :] = True
    return rows if drawn is None else rows & drawn


def _folder(workdir, step):
    return os.path.join(
        directory.path(workdir, directory.REFERENCES_FOLDER),
        f"step-{step:09d}",
    )


def _count(store, folder):
    """Pictures and captions with embeddings."""
    sidecars = sidecars_lib.Sidecars(store, folder)
    images = captions = 0
    for shard in range(len(store.shards.paths)):
        rows = sidecars.read_shard(shard)
        images += int(rows.valid.sum())
        captions += len(rows.text)
    return images, captions


def _flops(run):
    """FLOPs of embedding a picture and a caption."""
    learner = run.learner
    picture = tf.TensorSpec([1, *run.picture.shape], run.picture.dtype)
    tokens = tf.TensorSpec([1, run.tokenizer.length], tf.int32)
    return (
        flops.count(
            lambda part: learner.encode_image(part, training=False), picture
        )[0],
        flops.count(
            lambda part: learner.encode_text(part, training=False), tokens
        )[0],
    )


def _delete_old(config, workdir):
    """Deletes references of steps before the oldest checkpoint's."""
    oldest = min(checkpoints.saved_steps(workdir))
    needed = max(0, config.bootstrap.num_renewals(oldest) - 1)
    for step in config.bootstrap.renew_at[:needed]:
        for name in os.listdir(_folder(workdir, step)):
            if name.endswith(sidecars_lib.SUFFIX):
                os.remove(os.path.join(_folder(workdir, step), name))

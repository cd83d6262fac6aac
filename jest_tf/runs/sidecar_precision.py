"""Compares draws by float16 sidecars with draws by the live reference.

Float16 has 11 bits: rounding changes a logit in about its fourth digit, which
matters if two rows are about equally good.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import losses, selection
from jest_tf.data import batches, pipeline, stores
from jest_tf.data.sidecars import reading
from jest_tf.embeddings import Embeddings
from jest_tf.models import reference

_SUPER_BATCH = 640
_INPUTS = ("image", "text")


class Comparison(NamedTuple):
    """Differences between draws by sidecars and by the live reference.

    Attributes:
        draws: number of draws compared.
        equal: draws with the same rows in the same order.
        rows: rows drawn by the live reference, over all draws.
        common: rows that both drew.
        loss: the largest relative change of the reference's loss on the rows of
            a live draw.
        logit: the largest change of a logit of a row with its caption.
    """

    draws: int
    equal: int
    rows: int
    common: int
    loss: float
    logit: float

    def __str__(self):
        return (
            f"by sidecars and live {self.common:,} of {self.rows:,} rows drawn "
            f"are the same ({self.common / self.rows:.2%}), {self.equal} of "
            f"{self.draws} draws equal; largest change of the reference's loss "
            f"on a draw {self.loss:.1e} of it, of a logit {self.logit:.1e}"
        )


def compare(
    run: reference.Run | reference.Pretrained,
    store: stores.Store,
    sidecars: reading.Sidecars,
    num_super_batches: int = 8,
) -> Comparison:
    """Draws by sidecars and by the live reference `run`, on the same noise.

    Draws are joint and by easy-reference, so scores come from the compared
    embeddings alone. Super-batches of at most 640 rows, from which a fifth is
    drawn, are those of a stream over the store with seed 0.

    Raises:
        ValueError: the sidecars do not fit, or hold fewer than five rows.
    """
    super_batch_size = min(_SUPER_BATCH, len(store))
    size = super_batch_size // 5
    if not size:
        raise ValueError(
            "There must be five records to draw from. Received: "
            f"{super_batch_size}"
        )
    super_batches = pipeline.super_batches(
        store,
        super_batch_size=super_batch_size,
        seed=0,
        tokenizer=run.tokenizer,
        image_size=run.picture,
        options=pipeline.Options(
            sidecars=sidecars, faults=pipeline.FaultLog(None, 1.0)
        ),
    )
    cached = reference.cached(sidecars.scale, sidecars.bias)
    loss = run.loss
    totals, changes = np.zeros(4, np.int64), np.zeros(2)
    with batches.plain_errors():
        for number, batch in enumerate(super_batches.take(num_super_batches)):
            live, stored = _embed(run.learner, batch, size), cached(batch)
            drawn, by_sidecars = (
                selection.select_jointly(
                    None,
                    either,
                    batch_size=size,
                    num_chunks=min(16, size),
                    seed=(0, number),
                    criterion="easy_reference",
                    loss=loss,
                ).indices.numpy()
                for either in (live, stored)
            )
            common = len(np.intersect1d(drawn, by_sidecars))
            same = np.array_equal(drawn, by_sidecars)
            totals += (1, same, size, common)
            change = _changes(live, stored, drawn, losses.BY_NAME[loss])
            changes = np.maximum(changes, change)
    return Comparison(*totals.tolist(), *changes.tolist())


def _embed(learner, batch, size):
    """The embeddings of a super-batch, `size` rows at a time."""
    parts = [
        learner(
            {name: batch[name][start : start + size] for name in _INPUTS},
            training=False,
        )
        for start in range(0, len(batch["id"]), size)
    ]
    image, text = (
        tf.concat([part[place] for part in parts], 0) for place in (0, 1)
    )
    return Embeddings(image, text, *parts[0][2:])


def _changes(live, stored, drawn, loss):
    """Relative change of the loss on drawn rows, and of logits of pairs."""
    losses_, logits = [], []
    for image, text, scale, bias in (live, stored):
        on_draw = (tf.gather(part, drawn) for part in (image, text))
        losses_.append(loss(Embeddings(*on_draw, scale, bias)))
        logits.append(scale * tf.reduce_sum(image * text, 1) + bias)
    return (
        abs(losses_[1] - losses_[0]) / abs(losses_[0]),
        tf.reduce_max(abs(logits[1] - logits[0])),
    )

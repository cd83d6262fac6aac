"""Compares draws by float16 sidecars with draws by the live reference.

Float16 has 11 bits: rounding changes a logit in about its fourth digit, which
matters if two rows are about equally good.
"""

from typing import NamedTuple

import numpy as np

from jest_tf import losses, selection
from jest_tf.data import stores, stream
from jest_tf.data.sidecars import embed, reading
from jest_tf.embeddings import Embeddings
from jest_tf.models import reference

_LOSSES = {"sigmoid": losses.sigmoid_loss, "softmax": losses.softmax_loss}


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
    run: reference.Run,
    store: stores.Store,
    sidecars: reading.Sidecars,
    *,
    batch_size: int = 128,
    super_batch_size: int = 640,
    num_super_batches: int = 8,
) -> Comparison:
    """Draws by sidecars and by the live reference, on the same noise.

    Draws are joint and by easy-reference, so scores come from the compared
    embeddings alone. Draw n takes the first B rows of the stream with seed n,
    without unreadable ones, each with its first nonblank caption.

    Args:
        run: the reference.
        store: the records.
        sidecars: of the store and of the reference.
        batch_size: b; at most a fifth of the readable rows.
        super_batch_size: B; at most all records.
        num_super_batches: draws to compare.

    Raises:
        ValueError: the sidecars do not fit, or hold fewer than five rows.
    """
    encode = reference.encoder(run)
    description = reference.describe(run)
    loss = run.config.model.loss
    totals = np.zeros(4, np.int64)
    changes = np.zeros(2)
    for number in range(num_super_batches):
        positions = np.arange(min(super_batch_size, len(store)))
        rows = stream.Order(len(store), number).rows(positions)
        live, rows, captions, ids = _embed(
            run, store, rows, encode, description
        )
        image, text = sidecars.read(rows, captions, ids)
        stored = Embeddings(
            image.astype(np.float32),
            text.astype(np.float32),
            np.float32(sidecars.scale),
            np.float32(sidecars.bias),
        )
        size = min(batch_size, len(rows) // 5)
        if not size:
            raise ValueError(
                "There must be five records to draw from. Received: "
                f"{len(rows)} that can be read and have a caption"
            )
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
        change = _changes(live, stored, drawn, _LOSSES[loss])
        changes = np.maximum(changes, change)
    return Comparison(*totals.tolist(), *changes.tolist())


def _embed(run, store, rows, encode, description):
    """Live embeddings of the readable rows; these rows, captions and ids."""
    batch = embed.load(store, rows, run.config.data.image_size)
    image, text = encode(batch.images, batch.texts)
    # The first nonblank caption of each row that has one.
    ends = np.cumsum(batch.captions)
    owners = np.searchsorted(ends, batch.places, side="right")
    owners, firsts = np.unique(owners, return_index=True)
    starts = (ends - batch.captions)[owners]
    live = Embeddings(
        image[(np.cumsum(batch.valid) - 1)[owners]],
        text[firsts],
        np.float32(description.scale),
        np.float32(description.bias),
    )
    captions = batch.places[firsts] - starts
    return live, rows[owners], captions, batch.ids[owners]


def _changes(live, stored, drawn, loss):
    """Relative change of the loss on drawn rows, and of logits of pairs."""
    on_draw = [
        float(
            loss(each._replace(image=each.image[drawn], text=each.text[drawn]))
        )
        for each in (live, stored)
    ]
    own = [
        each.scale * np.einsum("ij,ij->i", each.image, each.text) + each.bias
        for each in (live, stored)
    ]
    return (
        abs(on_draw[1] - on_draw[0]) / abs(on_draw[0]),
        float(np.abs(own[1] - own[0]).max()),
    )

"""Measures a reference on a pool's pairs, without labels.

An untrained reference finds pairs no more similar than mismatched pairs. The
better it is, the more pairs it recognises, up to the matched share of the pool.
So the recognised share compares references on a pool, and is a lower bound on
the pool's matched share.
"""

import numpy as np

from jest_tf.data import reader, stores
from jest_tf.data.sidecars import reading

# Share of mismatched pairs that may stand out.
FALSE_POSITIVES = 0.1
# Pairs read; a share of them has a standard error of at most 0.004.
NUM_PAIRS = 20_000
# Makes the sample independent of data that were shuffled with the run's seed.
_SALT = 0x7265636F67


def recognised_share(
    sidecars: reading.Sidecars,
    store: stores.Store,
    rows: np.ndarray,
    seed: int = 0,
) -> float:
    """Estimates the share of pairs that a reference tells from mismatches.

    A pair stands out if its cosine similarity is above that of 90 % of the
    mismatched pairs. If a share p stands out, (p - 0.1) / 0.9 of the pairs are
    recognised.

    Args:
        rows: bool [n], true for records to consider.
        seed: of the sample of at most `NUM_PAIRS` pairs.
    """
    random = np.random.default_rng([seed, _SALT])
    sampled = random.permutation(np.flatnonzero(rows))
    # Some may have no embeddings.
    sampled = np.sort(sampled[: 2 * NUM_PAIRS])
    captions, image, text = sidecars.read_numbered(
        sampled, reader.caption_numbers(seed, sampled), store.ids(sampled)
    )
    places = random.permutation(np.flatnonzero(captions >= 0))[:NUM_PAIRS]
    if len(places) < 2:
        raise ValueError(
            "`rows` must have at least two records with embeddings. "
            f"Received: {len(places)}"
        )
    image = image[places].astype(np.float32)
    text = text[places].astype(np.float32)
    matched = np.einsum("nd,nd->n", image, text)
    mismatched = np.einsum("nd,nd->n", image, np.roll(text, 1, axis=0))
    limit = np.quantile(mismatched, 1.0 - FALSE_POSITIVES)
    standing_out = float(np.mean(matched > limit))
    return max(0.0, (standing_out - FALSE_POSITIVES) / (1.0 - FALSE_POSITIVES))

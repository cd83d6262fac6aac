"""How many pairs a reference recognises, measured without labels.

A reference that knows nothing gives a pair and a mismatched pair the same
similarity. The better it is, the more pairs stand out, up to the share of the
pairs that match; so the number compares references of one pool, and bounds the
pool's clean share from below.
"""

import numpy as np

from jest_tf.data import reader, stores
from jest_tf.data.sidecars import reading

# Share of mismatched pairs that may stand out.
FALSE_POSITIVES = 0.1
# Pairs read, whose share has a standard error of at most 0.004.
NUM_PAIRS = 20_000
# Data may have been shuffled with the run's own seed.
_SALT = 0x7265636F67


def recognised_share(
    sidecars: reading.Sidecars,
    store: stores.Store,
    rows: np.ndarray | None = None,
    seed: int = 0,
) -> float:
    """Estimates the share of pairs that a reference tells from mismatched ones.

    A pair stands out if its cosine similarity is above that of 90 % of the
    mismatched pairs. With p the share that does, (p - 0.1) / 0.9 of the pairs
    are recognised.

    Args:
        sidecars: of the reference.
        store: the records.
        rows: bool [n], of the records considered; None takes all.
        seed: of the pairs read, at most `NUM_PAIRS`.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: fewer than two records have embeddings.
    """
    random = np.random.default_rng([seed, _SALT])
    found = random.permutation(
        len(store) if rows is None else np.flatnonzero(rows)
    )
    found = np.sort(found[: 2 * NUM_PAIRS])
    captions, image, text = sidecars.read_numbered(
        found, reader.caption_numbers(seed, found), store.ids(found)
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

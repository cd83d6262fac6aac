"""Measures of references by a pool's pairs, without labels.

A reference that knows nothing gives a pair and a mismatched pair the same
similarity. The better it is, the more pairs stand out, up to the share of the
pairs that match; so the number compares references of a pool, and bounds the
pool's clean share from below.
"""

import numpy as np
from scipy import stats

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
    """Estimates the share of pairs that a reference tells from mismatches.

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
    random, found = _sample(store, rows, seed)
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


def agreement(
    before: reading.Sidecars,
    after: reading.Sidecars,
    store: stores.Store,
    rows: np.ndarray | None = None,
    seed: int = 0,
) -> float | None:
    """Measures how alike two references rank the pairs of a pool.

    Args:
        before: sidecars of the first reference.
        after: sidecars of the second.
        store: the records.
        rows: bool [n], of the records considered; None takes all.
        seed: of the pairs read, at most twice `NUM_PAIRS`.

    Returns:
        Spearman's correlation of the cosine similarities of the pairs that
        both have embedded, in [-1, 1]; None for fewer than three pairs, or
        if a reference finds all equally similar.
    """
    _, found = _sample(store, rows, seed)
    numbers, ids = reader.caption_numbers(seed, found), store.ids(found)
    captions, similar = [], []
    for sidecars in (before, after):
        numbered, image, text = sidecars.read_numbered(found, numbers, ids)
        captions.append(numbered)
        similar.append(
            np.einsum(
                "nd,nd->n", image.astype(np.float32), text.astype(np.float32)
            )
        )
    both = np.flatnonzero((captions[0] >= 0) & (captions[1] >= 0))
    if len(both) < 3:
        return None
    value = spearman(*(similarity[both] for similarity in similar))
    return value if np.isfinite(value) else None


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Returns the rank correlation of two vectors; NaN of a constant."""
    ranks = [stats.rankdata(values) for values in (left, right)]
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(ranks)[0, 1])


def _sample(store, rows, seed):
    """A generator, and rows at random, ascending: twice `NUM_PAIRS` of them."""
    random = np.random.default_rng([seed, _SALT])
    found = random.permutation(
        len(store) if rows is None else np.flatnonzero(rows)
    )
    return random, np.sort(found[: 2 * NUM_PAIRS])

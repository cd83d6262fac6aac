"""Measures of what a run drew, from the records' own metadata."""

import numpy as np


def is_clean(values: np.ndarray) -> np.ndarray:
    """Returns where a field of noise is empty, 0 or false, bool [n].

    Example:
        >>> is_clean(np.array([b"", b"0", b"False", b"moved"], object))
        array([ True,  True,  True, False])
    """
    return np.array(
        [one.strip().lower() in (b"", b"0", b"false") for one in values], bool
    )


def draw_measures(
    counts: np.ndarray, clean: np.ndarray, concepts: np.ndarray
) -> dict[str, float]:
    """Returns measures of the records drawn, beside those of all records.

    Effective numbers are Kish's, (sum c)^2 / sum c^2 of counts c: that of equal
    draws with as much variance.

    Args:
        counts: integers [n], how often each record was drawn; one at least.
        clean: bool [n]; ignored if it is the same for all.
        concepts: bytes [n], b"" where a record has none; ignored if none has.

    Returns:
        `selection/effective_records`, and, over the number of draws,
        `selection/effective_share`. Where known, `selection/share_clean` of the
        draws and `selection/share_clean_data` of all records;
        `selection/concept_coverage`, the share of all concepts that were drawn,
        and `selection/effective_concepts`.
    """
    counts = np.asarray(counts, np.float64)
    records = _effective(counts)
    results = {
        "selection/effective_records": records,
        "selection/effective_share": records / float(counts.sum()),
    }
    if clean.any() and not clean.all():
        share = float(counts[clean].sum() / counts.sum())
        results["selection/share_clean"] = share
        results["selection/share_clean_data"] = float(clean.mean())
    known = concepts != b""
    if known.any():
        _, numbers = np.unique(concepts[known], return_inverse=True)
        drawn = np.bincount(numbers, counts[known])
        results["selection/concept_coverage"] = float(np.mean(drawn > 0))
        results["selection/effective_concepts"] = _effective(drawn)
    return results


def _effective(counts):
    squares = float(np.square(counts).sum())
    return float(counts.sum()) ** 2 / squares if squares else 0.0

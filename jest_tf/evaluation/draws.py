"""Measures of what a run drew, from the records' own metadata."""

import numpy as np

# A noise field with any of these values marks a clean record.
_CLEAN = {b"", b"0", b"0.0", b"false"}


def is_clean(noise: np.ndarray) -> np.ndarray:
    """Returns which records are clean: noise, bytes [n] -> bool [n].

    A record is clean if its noise field is empty, 0 or false.
    """
    return np.array([value.strip().lower() in _CLEAN for value in noise], bool)


def draw_measures(
    counts: np.ndarray, clean: np.ndarray | None, concepts: np.ndarray
) -> dict[str, float]:
    """Returns measures of the records drawn, beside those of all records.

    Effective numbers are Kish's, (sum c)^2 / sum c^2 of counts c: that of equal
    draws with as much variance.

    Args:
        counts: integers [n], how often each record was drawn; not all 0.
        clean: bool [n]; None if it is not known.
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
    if clean is not None:
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

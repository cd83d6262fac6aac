"""Chooses captions of a sidecar's rows: by number, or the best.

A single array has the captions of all rows; `starts` and `ends`, int64 [k], are
where each row's captions begin and end.
"""

import numpy as np

from jest_tf.data.sidecars import file_format


def numbered(text, starts, ends, numbers):
    """Returns captions chosen by hashes: indices int64 [k], -1 if all blank."""
    counts, firsts, line = in_line(starts, ends)
    blank = file_format.is_zero(text, line)
    if not blank.any():
        choices = numbers % np.maximum(counts, 1)
        choices[counts == 0] = -1
        return choices
    whole = np.append(0, np.cumsum(~blank))
    counts = whole[ends - starts + firsts] - whole[firsts]
    # The n-th nonblank caption is where their running count reaches n.
    wanted = whole[firsts] + numbers % np.maximum(counts, 1) + 1
    choices = np.searchsorted(whole, wanted) - 1 - firsts
    choices[counts == 0] = -1
    return choices


def best(text, starts, ends, pictures):
    """Returns captions most like the pictures: indices, -1 if all are blank."""
    counts, firsts, line = in_line(starts, ends)
    owners = np.repeat(np.arange(len(counts)), counts)
    captions = np.asarray(text[line], np.float32)
    similarity = np.einsum(
        "cd,cd->c", captions, np.asarray(pictures, np.float32)[owners]
    )
    similarity[~captions.any(1)] = -np.inf
    choices = np.full(len(counts), -1)
    # Row by row, the most similar caption first; the sort is stable.
    order = np.lexsort((-similarity, owners))
    has_some = counts > 0
    best = order[firsts[has_some]]
    best = np.where(np.isneginf(similarity[best]), -1, best)
    choices[has_some] = np.where(best < 0, -1, best - firsts[has_some])
    return choices


def in_line(starts, ends):
    """Returns rows' caption counts and offsets, and all captions' indices."""
    counts = ends - starts
    firsts = np.cumsum(counts) - counts
    line = np.repeat(starts - firsts, counts) + np.arange(counts.sum())
    return counts, firsts, line

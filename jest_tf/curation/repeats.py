"""Near-duplicates by stored embeddings of images, in bounded memory.

FAISS finds candidates among 128 bytes for each image of the pool; the
embeddings themselves decide. Images that near-duplicates link are a group,
of which a choice keeps the first. Pairs, of which there may be 16 for each
image, are handed on block by block.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jest_tf.curation import survey
from jest_tf.data.sidecars import Sidecars

# Pools of at most so many images are searched exactly.
_EXACT = 2**17
_NEIGHBOURS = 16
_LISTS_SEARCHED = 8
_WIDTH = 128  # of projected embeddings, a byte a number
_DEVIATIONS = 5.0  # of a projected cosine c, (1 - c^2) / sqrt(128) each
_BYTE_ERROR = 1e-2  # of a cosine, the greatest
_SEED = 0x6E656172


class Repeats(NamedTuple):
    """The records of a pool that have near-duplicates.

    Attributes:
        leaked: bool [n], those with a near-duplicate in the tests.
        left_out: bool [n], those that a choice leaves out: all of a group with
            a leaked record, and all but the first of the others.
    """

    leaked: np.ndarray
    left_out: np.ndarray


def find(
    pool: Sidecars,
    near: float,
    tests: Sidecars | None = None,
    *,
    report: Callable[[Sidecars, survey.Pairs], None],
    indexing: Callable[[int, int], None] | None = None,
    comparing: Callable[[int, int], None] | None = None,
) -> Repeats:
    """Finds near-duplicates in a pool, and between it and tests.

    Memory holds 150 bytes for each image of the pool, or its embedding up to
    131,072 images, but only the pairs of a block.

    Args:
        pool: a model's embeddings of the pool; at least one record has them.
        near: least cosine of near-duplicates, which depends on the model.
        tests: its embeddings of the tests; likewise.
        report: called with the pool or the tests, and pairs of their images
            and images of the pool, block by block.
        indexing: called with the images of the pool indexed so far and in all.
        comparing: likewise with the images of pool and tests compared with it.
    """
    if tests is not None:
        survey.check_count("tests", tests.valid(np.arange(len(tests))).sum())
    index = _index(pool, indexing)
    groups, leaked = np.arange(len(pool)), np.zeros(len(pool), bool)
    before, total = 0, len(pool) + (0 if tests is None else len(tests))
    for queries in (pool, tests) if tests is not None else (pool,):
        for stop, rows, image in survey.blocks(queries):
            own = rows if queries is pool else None
            pairs = _near(index, pool, rows, image, own, near)
            report(queries, pairs)
            if queries is pool:
                _link(groups, pairs.rows, pairs.others)
            else:
                leaked[pairs.others] = True
            if comparing is not None:
                comparing(before + stop, total)
        before = len(pool)
    firsts = _firsts(groups, np.arange(len(pool)))
    left_out = firsts < np.arange(len(pool))
    left_out |= np.isin(firsts, firsts[leaked])
    return Repeats(leaked, left_out)


def _index(pool, progress):
    """FAISS' index of the pool's images, and the row of each, int64 [m]."""
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            "Near-duplicates need FAISS: pip install '.[neighbours]' in a clone"
        ) from error
    usable = [rows for _, rows, _ in survey.blocks(pool)]
    size, dim = sum(map(len, usable)), pool.dim
    survey.check_count("pool", size)
    if size <= _EXACT:
        index = faiss.IndexFlatIP(dim)
    else:
        kind = f"IVF{2 ** int(np.log2(4 * size**0.5))},SQ8"
        if dim > _WIDTH:  # at random, then to unit length
            kind = f"RR{_WIDTH},L2norm,{kind}"
        index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
        random = np.random.default_rng(_SEED)
        some = random.choice(len(pool), min(len(pool), _EXACT), replace=False)
        lists = faiss.downcast_index(faiss.extract_index_ivf(index))
        lists.cp.min_points_per_centroid = 1  # no warning of large pools
        lists.nprobe = _LISTS_SEARCHED
        lists.sq.rangestat_arg = 0.5  # half of the sample's range on each side
        index.train(survey.read(pool, np.sort(some))[1])
    for stop, _, image in survey.blocks(pool):
        index.add(image)
        if progress is not None:
            progress(stop, len(pool))
    return index, np.concatenate(usable)


def _near(index, pool, rows, image, own, near):
    """The pairs of some images, whose rows in the pool are `own`, if any."""
    index, places = index
    slack = _BYTE_ERROR
    if index.ntotal > _EXACT and pool.dim > _WIDTH:
        slack += _DEVIATIONS * (1.0 - near**2) / _WIDTH**0.5
    cosines, found = index.search(image, min(_NEIGHBOURS, index.ntotal))
    queries, ranks = np.nonzero((cosines >= near - slack) & (found >= 0))
    others = places[found[queries, ranks]]
    if own is not None:
        is_other = others != own[queries]
        queries, others = queries[is_other], others[is_other]
    distinct, back = np.unique(others, return_inverse=True)
    _, theirs, _ = survey.read(pool, distinct)
    exact = np.einsum("nd,nd->n", image[queries], theirs[back])
    is_near = exact >= near
    return survey.Pairs(
        rows[queries[is_near]],
        others[is_near],
        exact[is_near].astype(np.float32),
    )


def _link(groups, rows, others):
    """Joins the groups of pairs, int64 [k] each, in place.

    `groups`, int64 [n], maps a row to a row of its group that is lower, or to
    itself if it is the first.
    """
    while len(rows):
        rows, others = _firsts(groups, rows), _firsts(groups, others)
        apart = rows != others
        low, high = np.minimum(rows, others), np.maximum(rows, others)
        rows, others = low[apart], high[apart]
        np.minimum.at(groups, others, rows)


def _firsts(groups, rows):
    """Returns the first row of the group of each row, and shortens its path."""
    firsts = groups[rows]
    while (firsts != (above := groups[firsts])).any():
        firsts = above
    groups[rows] = firsts
    return firsts

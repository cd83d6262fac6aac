"""Near-duplicates by stored embeddings of images, in bounded memory.

FAISS finds candidates among 128 bytes for each image of the pool; the
embeddings themselves decide. Images that near-duplicates link are a group,
of which a choice keeps the first.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jest_tf.curation import survey
from jest_tf.data.sidecars import Sidecars

# Pools of at most so many images are searched exactly.
_EXACT = 2**17
_NEIGHBOURS = 16
_LISTS_SEARCHED = 32
_WIDTH = 128  # of projected embeddings, a byte a number
# Projected embeddings may be so much less similar than they are.
_SLACK = 0.1
_SEED = 0x6E656172


class Repeats(NamedTuple):
    """What a pool has more than once.

    Attributes:
        within: pairs of the pool.
        of_tests: an image of the tests and one of the pool; empty without.
        left_out: bool [n], the records that a choice leaves out: those of a
            group with a near-duplicate in the tests, and all but the first of
            the others.
    """

    within: survey.Pairs
    of_tests: survey.Pairs
    left_out: np.ndarray


def find(
    pool: Sidecars,
    near: float,
    tests: Sidecars | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Repeats:
    """Finds near-duplicates in a pool, and between it and tests.

    Args:
        pool: a model's embeddings of the pool.
        near: least cosine of near-duplicates, which depends on the model.
        tests: its embeddings of the tests.
        progress: called with the images searched for so far and in all.
    """
    index = _index(pool)
    sizes = [len(pool), 0 if tests is None else len(tests)]

    def search(queries, before):
        none = survey.Pairs(
            *(np.zeros(0, dtype) for dtype in ("int64", "int64", "float32"))
        )
        found = [none]
        for stop, rows, image in survey.blocks(queries):
            own = rows if queries is pool else None
            found.append(_near(index, pool, rows, image, own, near))
            if progress is not None:
                progress(before + stop, sum(sizes))
        return survey.Pairs(*map(np.concatenate, zip(*found, strict=True)))

    within = search(pool, 0)
    of_tests = search(tests or (), sizes[0])
    groups = _groups(len(pool), within)
    left_out = groups < np.arange(len(pool))
    left_out |= np.isin(groups, groups[of_tests.others])
    return Repeats(within, of_tests, left_out)


def _index(pool):
    """FAISS' index of the pool's images, and the row of each, int64 [m]."""
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            "Near-duplicates need FAISS: pip install '.[neighbours]' in a clone"
        ) from error
    usable = [rows for _, rows, _ in survey.blocks(pool)]
    size, dim = sum(map(len, usable)), pool.dim
    if not size:
        raise ValueError(
            "Near-duplicates need embeddings of images. Received: a pool of "
            f"{len(pool):,} records without any"
        )
    if size <= _EXACT:
        index = faiss.IndexFlatIP(dim)
    else:
        lists = 2 ** int(np.log2(4 * size**0.5))
        kind = f"IVF{lists},SQ8"
        if dim > _WIDTH:  # at random, then to unit length
            kind = f"RR{_WIDTH},L2norm,{kind}"
        index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
        random = np.random.default_rng(_SEED)
        some = random.choice(len(pool), min(len(pool), _EXACT), replace=False)
        index.train(survey.read(pool, np.sort(some))[1])
        faiss.extract_index_ivf(index).nprobe = _LISTS_SEARCHED
    for _, _, image in survey.blocks(pool):
        index.add(image)
    return index, np.concatenate(usable)


def _near(index, pool, rows, image, own, near):
    """The pairs of some images, whose rows in the pool are `own`, if any."""
    index, places = index
    slack = 0.0 if index.ntotal <= _EXACT else _SLACK
    cosines, found = index.search(image, min(_NEIGHBOURS, index.ntotal))
    queries, ranks = np.nonzero((cosines >= near - slack - 1e-3) & (found >= 0))
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


def _groups(size, pairs):
    """The lowest row that near-duplicates link to each row, int64 [size]."""
    groups = np.arange(size)
    while True:
        before = groups.copy()
        np.minimum.at(groups, pairs.rows, before[pairs.others])
        np.minimum.at(groups, pairs.others, before[pairs.rows])
        groups = groups[groups]
        if (groups == before).all():
            return groups

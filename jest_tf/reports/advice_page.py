"""The page of an advice: sentences, similarities, and pairs of images.

Pairs on both sides of the cut show the matches that the reference confuses.
"""

from collections.abc import Sequence

import numpy as np

from jest_tf import files
from jest_tf.curation import survey as survey_lib
from jest_tf.data import stores
from jest_tf.reports import charts, rendering

_SHOWN = 24
_BINS = 60


def write(
    path: str,
    findings: survey_lib.Survey,
    sentences: Sequence[str],
    pool: stores.Store,
    tests: stores.Store | None = None,
) -> None:
    """Writes the page of a survey of `pool`; `path` may be remote."""
    order = np.argsort(-findings.pool, kind="stable")
    cut = max(1, len(order) // findings.candidates)

    def cards(places):
        """Cards of places in `order`; framed if they are chosen."""
        rows = order[places]
        numbers = findings.pool[rows]
        return rendering.cards(pool, findings.rows[rows], numbers, places < cut)

    around = np.arange(cut - _SHOWN // 2, cut + _SHOWN // 2)
    page = rendering.render(
        "advice.html",
        findings=findings,
        sentences=sentences,
        chart=_chart(findings),
        chosen=cards(charts.evenly(cut, _SHOWN)),
        at_cut=cards(around[(around >= 0) & (around < len(order))]),
        dropped=cards(cut + charts.evenly(len(order) - cut, _SHOWN)),
        repeats=_copies(findings.repeats, pool, pool),
        leaks=_copies(findings.leaks, tests, pool) if tests else None,
    )
    files.write_whole(path, page)


def _copies(nearest, store, pool):
    """Cards of the nearest pairs, each beside its image of the pool."""
    order, pairs = np.argsort(-nearest.cosines, kind="stable"), {}
    for row, other, cosine in zip(
        *(column[order].tolist() for column in nearest), strict=True
    ):
        # A pair of the pool may be found from both sides.
        if store is not pool or (other, row) not in pairs:
            pairs[row, other] = cosine
        if len(pairs) == _SHOWN // 2:
            break
    sides = (
        rendering.cards(side, [pair[i] for pair in pairs], pairs.values())
        for i, side in enumerate((store, pool))
    )
    return [card for pair in zip(*sides, strict=True) for card in pair]


def _chart(findings):
    curated = np.repeat(findings.curated, findings.counts)
    low, high = np.percentile(
        np.concatenate([findings.pool, findings.curated]), [0.5, 99.5]
    ).tolist()
    return charts.histogram(
        "Similarity of pairs, standardised",
        [
            ("pool", charts.KEPT, findings.pool),
            ("curated", charts.UNIFORM, curated),
            ("mismatched", charts.DROPPED, findings.mismatched),
        ],
        np.linspace(low, high if high > low else low + 1.0, _BINS + 1),
        "standard deviations above mismatched pairs",
    )

"""The page of an advice: estimates, sentences, and pictures of both sides.

It shows the least similar pairs of the sample as noise, and the most similar as
a stage's choice, so that users see which pairs the reference confuses.
"""

from collections.abc import Mapping

import numpy as np

from jest_tf import files
from jest_tf.curation import survey as survey_lib
from jest_tf.data import stores
from jest_tf.reports import charts, rendering

_SHOWN = 24
_BINS = 60


def write(
    path: str,
    store: stores.Store,
    found: survey_lib.Survey,
    advice: Mapping[str, str],
) -> None:
    """Writes the page of a survey of `store`, the pool.

    `path` may be remote. `advice` maps names of rules to sentences.
    """
    order = np.argsort(-found.similarity.matched, kind="stable")
    chosen = order[: max(1, len(order) // found.facts.candidates)]
    is_chosen = np.isin(np.arange(len(order)), chosen)

    def cards(places, numbers):
        columns = found.rows[places], numbers, is_chosen[places]
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return rendering.cards(store, list(rows))

    def likely(places):
        return cards(places, found.posterior[places])

    pairs = found.duplicates.pairs.reshape(-1)
    page = rendering.render(
        "advice.html",
        found=found,
        facts=found.facts,
        advice=advice,
        charts=_charts(found),
        noise=likely(order[::-1][:_SHOWN]),
        chosen=likely(chosen[charts.evenly(len(chosen), _SHOWN)]),
        duplicates=cards(pairs, np.repeat(found.duplicates.cosines, 2)),
    )
    files.write_whole(path, page)


def _charts(found):
    values = found.similarity.matched, found.curated
    low, high = np.percentile(np.concatenate(values), [0.5, 99.5]).tolist()
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    precision = found.facts.precision
    counts, expected = zip(*precision.items(), strict=True)
    share = found.facts.matched.mean
    return [
        charts.histogram(
            "Similarity of pairs, standardised",
            [
                ("pool", charts.KEPT, found.similarity.matched),
                ("curated, unseen", charts.UNIFORM, found.curated),
                ("mismatched", charts.DROPPED, found.similarity.mismatched),
            ],
            edges,
            "standard deviations above mismatched pairs",
        ),
        charts.draw(
            "Matched share of the choice",
            [
                charts.Line("by the reference", charts.KEPT, counts, expected),
                charts.Line(
                    "by a perfect choice",
                    charts.DROPPED,
                    counts,
                    [min(1.0, count * share) for count in counts],
                ),
                charts.Line(
                    "by chance", charts.CHANCE, counts, [share] * len(counts)
                ),
            ],
            xlabel="candidates",
            unit_range=True,
        ),
    ]

"""The page of a manifest: scores, sources, near-duplicates, samples.

Scores come from the manifest, pictures and sources from the store, and
near-duplicates from sidecars; no model runs. From a large store, only a limited
number of records is read; the page shows the number.
"""

import collections
import os
from collections.abc import Iterator, Sequence

import numpy as np

from jest_tf import files
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data import stores
from jest_tf.reports import charts, rendering

SOURCE_FIELDS = ("source", "kind", "style")

_MODELS = ("reference", "learner")

# Limits on the records read for the shares of sources, and on the drawn records
# compared with all others.
_SOURCE_ROWS = 2**19
_QUERIES = 10_000
_BLOCK_VALUES = 2**24  # cosines at a time
_READ = 2**10

_BINS = 60
_SAMPLES, _PAIRS = 8, 12
_LISTED = 12
_NEAR = (0.9999, 0.999, 0.99, 0.98, 0.95, 0.9)


def write(
    path: str,
    store: stores.Store,
    curated: stores.Manifest,
    sidecars: sidecars_lib.Sidecars,
    source_fields: Sequence[str] = SOURCE_FIELDS,
) -> None:
    """Writes the page of the manifest of a store; `path` may be remote.

    `sidecars` have the embeddings for near-duplicates. `source_fields` are
    metadata fields that name a record's origin; missing fields are left out.

    Raises:
        ValueError: the store cannot be read, or the sidecars do not fit.
    """
    drawn = np.flatnonzero(curated.weights)
    counted, looked_at = _count_sources(store, curated.weights, source_fields)
    page = rendering.render(
        "manifest.html",
        name=os.path.basename(files.absolute(curated.directory).rstrip("/")),
        made_by={
            name: value["fingerprint"][:16] if name in _MODELS else str(value)
            for name, value in curated.made_by.items()
        },
        scored=int(np.isfinite(curated.scores).sum()),
        charts=_charts(curated),
        sources=[
            {"field": field, "rows": _shares(values)}
            for field, values in counted.items()
        ],
        looked_at=looked_at,
        size=len(store),
        drawn=len(drawn),
        duplicates=_duplicates(store, sidecars, drawn),
        deciles=list(_deciles(store, curated)),
    )
    files.write_whole(path, page)


def _count_sources(store, weights, fields):
    """Counts and weights of records by field and value; records read in all."""
    counted: dict = {
        field: collections.defaultdict(lambda: np.zeros(2)) for field in fields
    }
    rows = charts.evenly(len(store), _SOURCE_ROWS)
    for start in range(0, len(rows), _READ):
        some = rows[start : start + _READ]
        for row, record in zip(some.tolist(), store.read(some), strict=True):
            metadata = getattr(record, "metadata", {})
            for field in fields:
                value = metadata.get(field, b"").decode("utf-8", "replace")
                counted[field][value] += (1.0, weights[row])
    return {
        field: dict(values)
        for field, values in counted.items()
        if set(values) != {""}
    }, len(rows)


def nearest_others(
    source: sidecars_lib.Sidecars, rows: np.ndarray, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds each query's nearest other picture, exactly and block by block.

    Args:
        source: sidecars of the records.
        rows: int64 `[m]`, ascending, the rows to search.
        queries: int64 `[n]`, among `rows`.

    Returns:
        The queries with an embedding, int64 `[k]`; the row with the highest
        cosine for each, int64 `[k]`; and that cosine, float32 `[k]`. The row is
        -1 and the cosine -inf if no other row has an embedding.
    """
    queries, asked = _pictures(source, queries)
    best = np.full(len(queries), -np.inf, np.float32)
    others = np.full(len(queries), -1)
    size = max(1, _BLOCK_VALUES // max(1, len(queries)))
    for start in range(0, len(rows), size):
        block, image = _pictures(source, rows[start : start + size])
        if not len(block):
            continue
        cosines = asked @ image.T
        cosines[queries[:, None] == block] = -np.inf
        places = cosines.argmax(1)
        found = cosines[np.arange(len(places)), places]
        better = found > best
        best[better] = found[better]
        others[better] = block[places[better]]
    return queries, others, best


def _pictures(source, rows):
    """The rows with a caption and embeddings; their pictures' embeddings."""
    numbers = np.zeros(len(rows), np.int64)
    captions, image, _ = source.read_numbered(
        rows, numbers, source.store.ids(rows)
    )
    good = captions >= 0
    return rows[good], image[good].astype(np.float32)


def _charts(curated) -> Iterator[charts.Chart]:
    scored = np.isfinite(curated.scores)
    scores, weights = curated.scores[scored], curated.weights[scored]
    if len(scores):
        # Outliers go into the outer bins.
        low, high = np.percentile(scores, [0.1, 99.9]).tolist()
        yield charts.histogram(
            "Scores: share of the records",
            [
                ("all", charts.DROPPED, scores),
                ("drawn", charts.KEPT, scores[weights > 0]),
            ],
            np.linspace(low, high if high > low else low + 1.0, _BINS + 1),
            "score",
        )
        order = np.argsort(scores, kind="stable")
        parts = np.array_split(weights[order], min(50, len(order)))
        shares = [float((part > 0).mean()) for part in parts]
        quantiles = np.linspace(0.0, 1.0, len(parts))
        yield charts.draw(
            "Share that is drawn, by score",
            [charts.Line("drawn", charts.KEPT, quantiles, shares)],
            xlabel="quantile of the score",
            unit_range=True,
        )
    drawn = curated.weights[curated.weights > 0]
    if drawn.min() < drawn.max():
        yield charts.histogram(
            "Weights",
            [("drawn", charts.KEPT, drawn)],
            np.linspace(0.0, float(drawn.max()) * 1.01, _BINS + 1),
            "weight",
        )


def _shares(values):
    """Rows of the table of sources: value, share of records, and of draws."""
    totals = sum(values.values())
    shares = {
        value: counts / np.maximum(totals, 1e-9)
        for value, counts in values.items()
    }
    line = sorted(shares, key=lambda value: (-shares[value][0], value))
    listed = [(value or "(none)", shares[value]) for value in line[:_LISTED]]
    rest = [shares[value] for value in line[_LISTED:]]
    if rest:
        listed.append((f"({len(rest):,} others)", sum(rest)))
    return [(value, *share.tolist()) for value, share in listed]


def _duplicates(store, sidecars, drawn):
    if len(drawn) < 2:
        return None
    queries, others, cosines = nearest_others(
        sidecars,
        drawn,
        drawn[charts.evenly(len(drawn), _QUERIES)],
    )
    if not (others >= 0).any():
        return None
    pairs = {}
    for place in np.argsort(-cosines, kind="stable").tolist():
        pair = int(queries[place]), int(others[place])
        if pair[::-1] not in pairs and len(pairs) < _PAIRS:
            pairs[pair] = float(cosines[place])
    return {
        "num_queries": len(queries),
        "chart": charts.histogram(
            "Cosine with the nearest other picture",
            [("drawn", charts.KEPT, cosines)],
            np.linspace(min(float(cosines.min()), 0.99), 1.0, _BINS + 1),
            "cosine",
        ),
        "shares": [(near, float((cosines >= near).mean())) for near in _NEAR],
        "cards": rendering.cards(
            store,
            [
                (row, cosine, True)
                for pair, cosine in pairs.items()
                for row in pair
            ],
        ),
    }


def _deciles(store, curated) -> Iterator[dict]:
    """Samples of every tenth of the scored records, highest scores first."""
    scored = np.flatnonzero(np.isfinite(curated.scores))
    line = scored[np.argsort(-curated.scores[scored], kind="stable")]
    if not len(line):
        return
    for rows in np.array_split(line, min(10, len(line))):
        low, high = curated.scores[rows[[-1, 0]]].tolist()
        some = rows[charts.evenly(len(rows), _SAMPLES)].tolist()
        shown = [
            (row, float(curated.scores[row]), bool(curated.weights[row] > 0))
            for row in some
        ]
        yield {
            "share": float((curated.weights[rows] > 0).mean()),
            "low": low,
            "high": high,
            "cards": rendering.cards(store, shown),
        }

"""The report of a manifest: scores, samples, sources, near-duplicates.

One HTML file without scripts that needs no server and no network, in the manner
of `reports/run_page.py`. Scores come from the manifest, pictures and sources
from the store, near-duplicates from sidecars; no model runs. What is looked at
of a large store is bounded, and the page says so where it is less than all.
"""

import collections
import html
import os
from collections.abc import Sequence

import numpy as np

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.curation import by_similarity
from jest_tf.data import pictures, preprocessing, reader, stores
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data.stores import manifest
from jest_tf.reports import run_page

SOURCE_FIELDS = ("source", "kind", "style")

# Bounds of what is looked at, evenly spread: records for the shares of sources,
# and drawn records whose nearest neighbour among all that are drawn is found.
_SOURCE_ROWS = 2**19
_QUERIES = 10_000
_BLOCK, _QUERY_BLOCK = 2**13, 2**10
_READ = 2**10

_BINS = 60
_SAMPLES, _PAIRS = 8, 12
_LISTED = 12
_PICTURE_SIZE = 64
_MAX_PIXELS = config_lib.DataConfig.max_image_pixels
# Cosines above which the page counts pictures as near-duplicates.
_NEAR = (0.9999, 0.999, 0.99, 0.98, 0.95, 0.9)
_LEGEND = {"dropped": "all", "kept": "drawn"}


def write(
    path: str,
    store: stores.Store,
    curated: manifest.Manifest,
    sidecars: sidecars_lib.Sidecars | None = None,
    source_fields: Sequence[str] = SOURCE_FIELDS,
) -> None:
    """Renders the report of a manifest.

    Args:
        path: of the HTML file; may be remote.
        store: the records.
        curated: their manifest.
        sidecars: for near-duplicates; None leaves them out.
        source_fields: of the records, those that tell where one is from;
            what no record has is left out.

    Raises:
        ValueError: the store cannot be read, or the sidecars do not fit.
    """
    drawn = np.flatnonzero(curated.weights)
    counted, looked_at = count_sources(store, curated.weights, source_fields)
    body = [
        f'<section class="charts">{"".join(_histograms(curated))}</section>\n',
        _sources(counted, looked_at, len(store)),
    ]
    if sidecars is not None and len(drawn) > 1:
        queries = evenly(drawn, _QUERIES)
        others, cosines = nearest_others(store, sidecars, drawn, queries)
        body.append(_duplicates(store, curated, queries, others, cosines))
    body.append(_deciles(store, curated))
    name = os.path.basename(os.path.abspath(curated.directory))
    text = run_page.document(
        ("The manifest ", name, ""), _facts(curated), "".join(body)
    )
    files.write_whole(path, text.encode())


def count_sources(
    store: stores.Store, weights: np.ndarray, fields: Sequence[str]
) -> tuple[dict[str, dict[str, np.ndarray]], int]:
    """How many records are of each value of fields.

    Args:
        store: the records.
        weights: float32 [n], how often each is drawn.
        fields: of the metadata.

    Returns:
        For each field that a record has, and each of its values, how many
        records have it, and the sum of their weights, float64 [2]; and how
        many records were looked at.
    """
    counted: dict = {
        field: collections.defaultdict(lambda: np.zeros(2)) for field in fields
    }
    rows = evenly(np.arange(len(store)), _SOURCE_ROWS)
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
    store: stores.Store,
    sidecars: sidecars_lib.Sidecars,
    rows: np.ndarray,
    queries: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The picture that is nearest to each of some, among others; exact.

    Works block by block; nothing of [rows, rows] is held.

    Args:
        store: the records.
        sidecars: of the store.
        rows: int64 [m], ascending, to look among.
        queries: int64 [k], some of them.

    Returns:
        For each query the row whose picture has the highest cosine with its
        own, int64 [k], -1 where it has no embedding or there is none; and that
        cosine, float32 [k].
    """
    best = np.full(len(queries), -np.inf, np.float32)
    others = np.full(len(queries), -1)
    wanted, _ = _images(store, sidecars, queries)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        images, valid = _images(store, sidecars, block)
        for first in range(0, len(queries), _QUERY_BLOCK):
            some = slice(first, first + _QUERY_BLOCK)
            cosines = wanted[some] @ images.T
            cosines[:, ~valid] = -np.inf
            cosines[queries[some, None] == block] = -np.inf
            places = cosines.argmax(1)
            found = cosines[np.arange(len(places)), places]
            better = found > best[some]
            best[some][better] = found[better]
            others[some][better] = block[places[better]]
    without = ~sidecars.valid(queries)
    best[without], others[without] = -np.inf, -1
    return others, best


def evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, evenly spread."""
    if len(rows) <= count:
        return rows
    return rows[np.arange(count) * len(rows) // count]


def _images(store, sidecars, rows):
    """Embeddings of pictures, float32 [k, D], and which there are."""
    numbers = np.zeros(len(rows), np.int64)
    _, image, _ = sidecars.read_numbered(rows, numbers, store.ids(rows))
    valid = sidecars.valid(rows)
    image = np.where(valid[:, None], image, 0)
    return image.astype(np.float32), valid


def _facts(curated):
    made_by = curated.made_by
    drawn = int((curated.weights > 0).sum())
    facts = {
        "records": f"{len(curated.weights):,}",
        "drawn": f"{drawn:,} ({drawn / len(curated.weights):.2%})",
        "scored": f"{int(np.isfinite(curated.scores).sum()):,}",
    }
    for name, value in made_by.items():
        if name in ("reference", "learner"):
            value = value["fingerprint"][:16]
        elif name == "pool":
            value = f"{value['shards']} shards"
        elif name in ("tasks", "evaluation"):
            value = f"{len(value)} shards"
        facts[name.replace("_", " ")] = str(value)
    for name, count in curated.counts.items():
        label = (
            name if name in by_similarity.COUNTED else f"passed over: {name}"
        )
        facts[label] = f"{count:,}"
    return facts


def _histograms(curated):
    scores, weights = curated.scores, curated.weights
    scored = np.isfinite(scores)
    if scored.any():
        # Outliers share the last bins.
        low, high = np.percentile(scores[scored], [0.1, 99.9]).tolist()
        edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
        yield _histogram(
            "Scores: share of the records",
            {"dropped": scores[scored], "kept": scores[scored & (weights > 0)]},
            edges,
            "by score",
        )
        order = np.argsort(scores[scored], kind="stable")
        parts = np.array_split(weights[scored][order], min(50, len(order)))
        yield run_page.chart(
            "Share that is drawn, along the scores",
            {
                "kept": (
                    np.linspace(0.0, 1.0, len(parts)).tolist(),
                    [float((part > 0).mean()) for part in parts],
                )
            },
            legend=_LEGEND,
            unit_range=True,
            across="by quantile of the score",
        )
    drawn = weights[weights > 0]
    if drawn.min() < drawn.max():
        edges = np.linspace(0.0, float(drawn.max()) * 1.01, _BINS + 1)
        yield _histogram("Weights", {"kept": drawn}, edges, "by weight")


def _histogram(title, values, edges, across):
    middles = ((edges[:-1] + edges[1:]) / 2).tolist()
    series = {
        name: (
            middles,
            (
                np.histogram(np.clip(one, edges[0], edges[-1]), edges)[0]
                / max(1, len(one))
            ).tolist(),
        )
        for name, one in values.items()
    }
    bands = {
        name: (middles, [0.0] * len(middles), heights)
        for name, (_, heights) in series.items()
    }
    return run_page.chart(title, series, bands, _LEGEND, across=across)


def _sources(counted, looked_at, size):
    if not counted:
        return ""
    tables = []
    for field, values in counted.items():
        totals = sum(values.values())
        shares = {
            value: counts / np.maximum(totals, 1e-9)
            for value, counts in values.items()
        }
        line = sorted(shares, key=lambda value: (-shares[value][0], value))
        listed = {value or "(none)": shares[value] for value in line[:_LISTED]}
        if line[_LISTED:]:
            rest = sum(shares[value] for value in line[_LISTED:])
            listed[f"({len(line) - _LISTED:,} others)"] = rest
        rows = "".join(_source_row(*item) for item in listed.items())
        tables.append(
            f"<figure><figcaption>{html.escape(field)}</figcaption><table>"
            "<tr><th></th><th>of all</th><th>of what is drawn</th>"
            f"<th>times</th></tr>{rows}</table></figure>"
        )
    note = f"Of all {size:,} records."
    if looked_at < size:
        note = f"Of {looked_at:,} records, evenly spread over all {size:,}."
    return (
        f'<h2>Sources</h2><p class="note">{note} What is drawn is counted by '
        f'weight.</p>\n<section class="charts">{"".join(tables)}</section>\n'
    )


def _source_row(value, shares):
    of_all, of_drawn = shares.tolist()
    times = f"{of_drawn / of_all:.2f}" if of_all else ""
    return (
        f'<tr><td dir="auto">{html.escape(value)}</td><td>{of_all:.2%}</td>'
        f"<td>{of_drawn:.2%}</td><td>{times}</td></tr>"
    )


def _duplicates(store, curated, queries, others, cosines):
    found = others >= 0
    counts = "".join(
        f"<tr><td>{near:g}</td><td>{(cosines[found] >= near).mean():.2%}</td>"
        "</tr>"
        for near in _NEAR
        if found.any()
    )
    drawn = int((curated.weights > 0).sum())
    chart = ""
    if found.any():
        low = float(cosines[found].min())
        chart = _histogram(
            "Cosine with the nearest other picture",
            {"kept": cosines[found]},
            np.linspace(min(low, 0.99), 1.0, _BINS + 1),
            "by cosine",
        )
    line = np.argsort(-cosines, kind="stable")
    pairs, seen = [], set()
    for place in line[found[line]].tolist():
        pair = frozenset((int(queries[place]), int(others[place])))
        if pair not in seen:
            seen.add(pair)
            pairs.append(place)
        if len(pairs) == _PAIRS:
            break
    rows = [(int(queries[one]), float(cosines[one])) for one in pairs]
    rows += [(int(others[one]), float(cosines[one])) for one in pairs]
    line = [rows[i // 2 + i % 2 * len(pairs)] for i in range(2 * len(pairs))]
    return (
        '<h2>Near-duplicates</h2><p class="note">For '
        f"{len(queries):,} of the {drawn:,} records drawn, the picture among "
        "all that are drawn whose embedding is nearest.</p>\n"
        f'<section class="charts">{chart}<figure><figcaption>Records with '
        "another at least so near</figcaption><table><tr><th>cosine</th>"
        f"<th>share</th></tr>{counts}</table></figure></section>\n"
        "<h4>The nearest pairs, side by side</h4>"
        f'<div class="cards">{_cards(store, curated, line)}</div>\n'
    )


def _deciles(store, curated):
    scored = np.flatnonzero(np.isfinite(curated.scores))
    if not len(scored):
        return ""
    line = scored[np.argsort(-curated.scores[scored], kind="stable")]
    parts = []
    for number, rows in enumerate(np.array_split(line, min(10, len(line)))):
        share = float((curated.weights[rows] > 0).mean())
        low, high = curated.scores[rows[[-1, 0]]].tolist()
        some = evenly(rows, _SAMPLES).tolist()
        shown = [(row, float(curated.scores[row])) for row in some]
        parts.append(
            f'<section class="moment"><h3>{10 * number} to '
            f"{10 * number + 10} % from the top</h3><h4>scores {high:.3g} to "
            f"{low:.3g}; {share:.1%} are drawn</h4>"
            f'<div class="cards">{_cards(store, curated, shown)}</div>'
            "</section>\n"
        )
    return (
        '<h2>Samples by decile of the score</h2><p class="note">Evenly spread '
        "over each decile. Framed ones are drawn.</p>\n" + "".join(parts)
    )


def _cards(store, curated, shown):
    """Rows and the number to show with each, as HTML."""
    rows = np.array([row for row, _ in shown], np.int64)
    ids = store.ids(rows)
    parts = []
    for (row, number), record, key in zip(
        shown, store.read(rows), ids.tolist(), strict=True
    ):
        image, caption = _picture(record)
        card = run_page.Card(
            image, caption, key, number, bool(curated.weights[row] > 0)
        )
        parts.append(run_page.figure(card))
    return "".join(parts)


def _picture(record):
    """uint8 [S, S, 3] and a caption; grey where there is no picture."""
    grey = np.full([_PICTURE_SIZE, _PICTURE_SIZE, 3], 128, np.uint8)
    if isinstance(record, stores.Fault):
        return grey, record.reason
    texts = reader.candidates(record.captions)
    caption = record.captions[texts[0]] if texts else b""
    image = pictures.decode(record.image, _MAX_PIXELS)
    if isinstance(image, stores.Fault):
        return grey, image.reason
    resized = preprocessing.resize_image(image, _PICTURE_SIZE)
    return np.asarray(resized), caption.decode("utf-8", "replace")

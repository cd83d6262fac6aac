"""The page of a manifest: records that it keeps and drops, with images."""

import os

import numpy as np

from jest_tf import files
from jest_tf.data import stores
from jest_tf.reports import charts, rendering

_SHOWN = 24


def write(path: str, store: stores.Store, curated: stores.Manifest) -> None:
    """Writes the page of the manifest of a store; `path` may be remote."""
    is_kept = curated.weights > 0
    order = np.argsort(-curated.scores, kind="stable")  # NaN last
    scored = order[np.isfinite(curated.scores[order])]

    def cards(rows):
        rows = rows[charts.evenly(len(rows), _SHOWN)]
        return rendering.cards(store, rows, curated.scores[rows], is_kept[rows])

    page = rendering.render(
        "manifest.html",
        name=os.path.basename(files.absolute(curated.directory).rstrip("/")),
        made_by=curated.made_by,
        counts={
            "records": len(store),
            "scored": len(scored),
            "kept": int(is_kept.sum()),
        },
        kept=cards(scored[is_kept[scored]]),
        dropped=cards(scored[~is_kept[scored]]),
    )
    files.write_whole(path, page)

"""The page of an evaluation: measures, confusions, hardest pairs, pictures."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

from jest_tf import evaluation, files
from jest_tf.evaluation import zero_shot
from jest_tf.reports import rendering

_PAIRS, _CARDS = 15, 12
_MATRIX = 2048  # classes; a picture of this side takes a few megabytes


def write(
    path: str,
    name: str,
    results: Sequence[Mapping],
    opened: Mapping[str, evaluation.EntryEvaluation],
) -> None:
    """Writes the page of the evaluation of the model `name` on a suite.

    `results` come from `evaluation.results`. Entries have a learner attached;
    those with a zero-shot or retrieval task get a section for it.
    """
    sections = []
    for title, evaluated in opened.items():
        if "zero_shot" in evaluated.entry.task:
            sections.append({"title": title, **_confusions(evaluated)})
        if "retrieval" in evaluated.entry.task:
            sections.append({"title": title, **_retrieved(evaluated)})
    page = rendering.render(
        "evaluation.html",
        name=name,
        tables=_tables(results),
        sections=sections,
    )
    files.write_whole(path, page)


def _tables(results):
    """Columns and results by task: a row per data set, a column per measure."""
    tables: dict = {}
    for result in results:
        table = tables.setdefault(result["task"], {"columns": [], "rows": []})
        table["columns"] += [
            column
            for column in result["metrics"]
            if column not in table["columns"]
        ]
        table["rows"].append(result)
    return tables


def _confusions(evaluated):
    found = evaluated.labelled()
    nearest = zero_shot.nearest(found.images, found.classes)
    totals = np.bincount(found.targets, minlength=len(found.names))
    pairs, counts = np.unique(
        np.stack([found.targets, nearest], axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")
    wrong = [place for place in order.tolist() if np.ptp(pairs[place])]
    hardest = [
        {
            "true": found.names[i],
            "chosen": found.names[j],
            "count": int(counts[place]),
            "share": float(counts[place] / totals[i]),
            "cosine": float(found.classes[i] @ found.classes[j]),
        }
        for place in wrong[:_PAIRS]
        for i, j in [pairs[place]]
    ]
    margins = np.einsum(
        "nd,nd->n",
        found.images,
        found.classes[nearest] - found.classes[found.targets],
    )
    rows = _worst(margins, nearest != found.targets)
    texts = [
        f"{found.names[found.targets[row]]}, taken for "
        f"{found.names[nearest[row]]}"
        for row in rows
    ]
    return {
        "kind": "zero_shot",
        "confusion": _matrix(pairs, counts / totals[pairs[:, 0]], len(totals)),
        "pairs": hardest,
        "cards": _cards(evaluated, rows, margins[rows], texts),
    }


def _retrieved(evaluated):
    found = evaluated.captioned()
    ranks = evaluation.ranks(
        found.images, found.texts, range(len(found.images)), found.rows
    )
    from_image, from_text = ranks["image_to_text"], ranks["text_to_image"]

    by_row = {}
    for place, row in enumerate(found.rows.tolist()):
        by_row.setdefault(row, place)
    pictures = _worst(from_image, from_image > 1)
    texts = _worst(from_text, from_text > 1)
    return {
        "kind": "retrieval",
        "pictures": _cards(
            evaluated,
            pictures,
            from_image[pictures],
            [_shown(found.captions[by_row[row]]) for row in pictures],
        ),
        "texts": _cards(
            evaluated,
            found.rows[texts].tolist(),
            from_text[texts],
            [_shown(found.captions[place]) for place in texts],
        ),
    }


def _worst(values, is_wrong):
    """The wrong rows with the highest values, as a list."""
    order = np.argsort(-values, kind="stable")
    return [row for row in order.tolist() if is_wrong[row]][:_CARDS]


def _matrix(pairs, shares, num_classes):
    """A picture of shares, uint8 [C, C, 3]; None if C is above 2,048."""
    if num_classes > _MATRIX:
        return None
    table = np.zeros([num_classes, num_classes])
    table[tuple(pairs.T)] = shares
    colours = matplotlib.colormaps["magma_r"](table)[..., :3]
    return np.uint8(np.round(255 * colours))


def _cards(evaluated, rows, values, texts):
    store = evaluated.data.store
    return [
        {
            **rendering.thumbnail(record),
            "id": store.describe(row),
            "score": float(value),
            "kept": False,
            "caption": text,
        }
        for row, value, text, record in zip(
            rows,
            values,
            texts,
            store.read(np.array(rows, np.int64)),
            strict=True,
        )
    ]


def _shown(caption):
    return caption.decode("utf-8", "replace")

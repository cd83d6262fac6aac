"""The page of an evaluation: measures, confusions, hardest pairs, pictures."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

from jest_tf import evaluation, files
from jest_tf.evaluation import zero_shot
from jest_tf.reports import rendering

_PAIRS, _CARDS = 15, 12


def write(
    path: str,
    name: str,
    results: Sequence[Mapping],
    opened: Mapping[str, evaluation.EntryEvaluation],
) -> None:
    """Writes the page of a model's evaluation on a suite.

    Args:
        path: of the HTML file.
        name: of the model.
        results: as of `evaluation.results`.
        opened: the entries, with a learner attached. Those with zero-shot or
            retrieval tasks get a section.
    """
    sections = []
    for title, one in opened.items():
        if "zero_shot" in one.entry.task:
            sections.append({"title": title, **_confusions(one)})
        if "retrieval" in one.entry.task:
            sections.append({"title": title, **_retrieved(one)})
    page = rendering.render(
        "evaluation.html",
        name=name,
        tables=_tables(results),
        sections=sections,
    )
    files.write_whole(path, page)


def _tables(results):
    """Rows by task: data set, language, and the task's measures."""
    tables: dict = {}
    for one in results:
        table = tables.setdefault(one["task"], {"columns": [], "rows": []})
        table["columns"] += [
            column
            for column in one["metrics"]
            if column not in table["columns"]
        ]
        table["rows"].append(one)
    return tables


def _confusions(one):
    found = one.labelled()
    nearest = zero_shot.nearest(found.images, found.classes)
    num_classes = len(found.names)
    counts = np.bincount(
        found.targets * num_classes + nearest, minlength=num_classes**2
    ).reshape(num_classes, num_classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = np.where(np.eye(num_classes, dtype=bool), 0, counts)
    pairs = [
        {
            "true": found.names[i],
            "chosen": found.names[j],
            "count": int(counts[i, j]),
            "share": float(shares[i, j]),
            "cosine": float(found.classes[i] @ found.classes[j]),
        }
        for i, j in zip(*_largest(wrong, _PAIRS), strict=True)
        if wrong[i, j]
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
    colours = matplotlib.colormaps["magma_r"](shares)[..., :3]
    return {
        "kind": "zero_shot",
        "confusion": np.uint8(np.round(255 * colours)),
        "pairs": pairs,
        "cards": _cards(one, rows, margins[rows], texts),
    }


def _retrieved(one):
    found = one.captioned()
    ranks = evaluation.ranks(
        found.images, found.texts, range(len(found.images)), found.rows
    )
    from_image, from_text = ranks["image_to_text"], ranks["text_to_image"]

    def card(rows, values, texts):
        return _cards(one, rows, values, texts)

    by_row = {}
    for place, row in enumerate(found.rows.tolist()):
        by_row.setdefault(row, place)
    pictures = _worst(from_image, from_image > 1)
    texts = _worst(from_text, from_text > 1)
    return {
        "kind": "retrieval",
        "pictures": card(
            pictures,
            from_image[pictures],
            [_shown(found.captions[by_row[row]]) for row in pictures],
        ),
        "texts": card(
            found.rows[texts].tolist(),
            from_text[texts],
            [_shown(found.captions[place]) for place in texts],
        ),
    }


def _worst(values, is_wrong):
    """Rows with the highest values among the wrong ones, as a list."""
    order = np.argsort(-values, kind="stable")
    return [row for row in order.tolist() if is_wrong[row]][:_CARDS]


def _largest(table, count):
    """Indices of the largest numbers of a table, largest first."""
    flat = np.argsort(-table, axis=None, kind="stable")[:count]
    return [part.tolist() for part in np.unravel_index(flat, table.shape)]


def _cards(one, rows, values, texts):
    store = one.data.store
    return [
        {
            **rendering.thumbnail(record, store.max_image_pixels),
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

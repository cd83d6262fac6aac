"""The page of an evaluation: measures, hardest pairs of classes, mistakes."""

import types
from collections.abc import Mapping, Sequence

import numpy as np

from jest_tf import evaluation, files
from jest_tf.evaluation import zero_shot
from jest_tf.reports import rendering
from jest_tf.runs import evaluations

_PAIRS, _CARDS = 15, 12


def write(
    path: str,
    name: str,
    stores: evaluations.Stores,
    encoder: evaluation.Encoder,
    results: Mapping[str, float],
    slices: Mapping[str, Sequence[evaluation.Slice]] = types.MappingProxyType(
        {}
    ),
) -> None:
    """Writes the page of the evaluations of the model `name`.

    `results` come from `evaluations.measure`, `slices` from
    `evaluations.measure_slices`. Every store has a section for each of its
    tasks.
    """
    sections = []
    for title, store in stores.items():
        embedded = store.embed(encoder)
        everything = np.ones(len(store.store), bool)
        section = {
            "title": title,
            "measures": {
                name.removeprefix(f"eval/{title}/"): value
                for name, value in results.items()
                if name.startswith(f"eval/{title}/")
            },
        }
        if slices.get(title):
            section["slices"] = _slices(store, embedded, slices[title])
        if "zero_shot" in store.tasks:
            section["classes"] = _confusions(store, embedded, everything)
        if "retrieval" in store.tasks:
            section["retrieved"] = _retrieved(store, embedded, everything)
        sections.append(section)
    page = rendering.render("evaluation.html", name=name, sections=sections)
    files.write_whole(path, page)


def _slices(store, embedded, slices):
    """A table of slices, the weakest first, and mistakes in the weakest."""
    measure, weakest = evaluations.weakest(slices)
    if not weakest:
        return None
    first, _ = weakest[0]
    shown = np.zeros(len(store.store), bool)
    shown[first.rows] = True
    mistakes = (
        _retrieved(store, embedded, shown)["images"]
        if "retrieval" in store.tasks
        else _confusions(store, embedded, shown)["cards"]
    )
    return {
        "measure": measure,
        "rows": [
            (f"{some.field}={some.value}", len(some.rows), estimate)
            for some, estimate in weakest
        ],
        "cards": mistakes,
    }


def _confusions(store, embedded, shown):
    """Pairs of classes, and the mistakes among the records `shown`, bool."""
    images, targets = embedded.images[store.labelled], store.targets
    nearest = zero_shot.nearest(images, embedded.classes)
    names, totals = store.class_names, np.bincount(targets)
    pairs, counts = np.unique(
        np.stack([targets, nearest], axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")
    wrong = [place for place in order.tolist() if np.ptp(pairs[place])]
    hardest = [
        {
            "true": names[i],
            "chosen": names[j],
            "count": int(counts[place]),
            "share": float(counts[place] / totals[i]),
            "cosine": float(embedded.classes[i] @ embedded.classes[j]),
        }
        for place in wrong[:_PAIRS]
        for i, j in [pairs[place]]
    ]
    margins = np.einsum(
        "nd,nd->n",
        images,
        embedded.classes[nearest] - embedded.classes[targets],
    )
    is_wrong = (nearest != targets) & shown[store.labelled]
    rows = _worst(margins, is_wrong)
    texts = [
        f"{names[targets[row]]}, taken for {names[nearest[row]]}"
        for row in rows
    ]
    return {
        "pairs": hardest,
        "cards": _cards(store, store.labelled[rows], margins[rows], texts),
    }


def _retrieved(store, embedded, shown):
    """Images and captions among the records `shown` that are found last."""
    ranks = evaluation.ranks(
        embedded.images, embedded.texts, store.image_groups, store.text_groups
    )
    from_image, from_text = ranks["image_to_text"], ranks["text_to_image"]
    captions = [text.decode("utf-8", "replace") for text in store.captions]
    by_group = {}
    for group, caption in zip(store.text_groups, captions, strict=True):
        by_group.setdefault(group, caption)
    image_rows = _worst(from_image, (from_image > 1) & shown)
    texts = _worst(from_text, (from_text > 1) & shown[store.rows])
    return {
        "images": _cards(
            store,
            image_rows,
            from_image[image_rows],
            [by_group[store.image_groups[row]] for row in image_rows],
        ),
        "texts": _cards(
            store,
            store.rows[texts],
            from_text[texts],
            [captions[place] for place in texts],
        ),
    }


def _worst(values, is_wrong):
    """The wrong rows with the highest values, as a list."""
    order = np.argsort(-values, kind="stable")
    return [row for row in order.tolist() if is_wrong[row]][:_CARDS]


def _cards(evaluated, rows, values, texts):
    cards = rendering.cards(evaluated.store, rows, values)
    return [
        card | {"caption": text}
        for card, text in zip(cards, texts, strict=True)
    ]

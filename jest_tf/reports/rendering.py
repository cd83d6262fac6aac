"""Fills the templates of pages; every value is escaped."""

import base64
from collections.abc import Sequence

import jinja2
import numpy as np
import tensorflow as tf

from jest_tf.data import images, reader, stores

_IMAGE_SIZE = 64


def render(template: str, **values: object) -> bytes:
    """Fills a template in `templates/`; returns UTF-8."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jest_tf.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["png"] = _png
    return environment.get_template(template).render(values).encode()


def thumbnail(record: stores.Record | stores.Fault) -> dict[str, object]:
    """Returns `image`, uint8 [64, 64, 3], grey if unreadable, and `caption`."""
    image, caption = record, ""
    if not isinstance(record, stores.Fault):
        texts = [record.captions[i] for i in reader.candidates(record.captions)]
        caption = b"".join(texts[:1]).decode("utf-8", "replace")
        image = images.decode(record.image)
    if isinstance(image, stores.Fault):
        grey = np.full([_IMAGE_SIZE, _IMAGE_SIZE, 3], 128, np.uint8)
        return {"image": grey, "caption": image.reason}
    resized = images.resize_image(image, _IMAGE_SIZE)
    return {"image": np.asarray(resized), "caption": caption}


def cards(
    store: stores.Store, rows: Sequence[int], numbers, framed=None
) -> list[dict[str, object]]:
    """Returns the values of records at rows, `[k]`, for `card_grid`.

    `numbers` stand below them; `framed` tells which have a frame, None if none.
    """
    rows = np.asarray(rows, np.int64)
    framed = np.zeros(len(rows), bool) if framed is None else framed
    return [
        {"id": key, "score": float(number), "kept": bool(is_framed)}
        | thumbnail(record)
        for number, is_framed, record, key in zip(
            *(numbers, framed, store.read(rows), store.ids(rows).tolist()),
            strict=True,
        )
    ]


def _png(image):
    encoded = base64.b64encode(tf.io.encode_png(image).numpy()).decode()
    return f"data:image/png;base64,{encoded}"

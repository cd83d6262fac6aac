"""Fills the templates of pages; every value is escaped."""

import base64
from typing import NamedTuple

import jinja2
import numpy as np
import tensorflow as tf


class Card(NamedTuple):
    """A picture, uint8 `[S, S, 3]`, with its caption and score.

    Framed if `kept`: the record was trained on or is drawn.
    """

    image: np.ndarray
    caption: str
    id: int
    score: float
    kept: bool


def render(template: str, **values: object) -> bytes:
    """Fills a template in `templates/`; returns UTF-8."""
    return _environment().get_template(template).render(values).encode()


def _environment():
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jest_tf.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["png"] = _png
    return environment


def _png(image):
    encoded = base64.b64encode(tf.io.encode_png(image).numpy()).decode()
    return f"data:image/png;base64,{encoded}"

"""Fills the templates of pages; every value is escaped."""

import base64

import jinja2
import tensorflow as tf


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


def _png(image):
    encoded = base64.b64encode(tf.io.encode_png(image).numpy()).decode()
    return f"data:image/png;base64,{encoded}"

"""Training streams with all settings as keywords."""

import dataclasses

from jest_tf.data import pipeline

_OPTIONS = {field.name for field in dataclasses.fields(pipeline.Options)}


def super_batches(store, **settings):
    """`pipeline.super_batches`, with `Options` among the settings."""
    options = {name: settings.pop(name) for name in _OPTIONS & set(settings)}
    return pipeline.super_batches(
        store, **settings, options=pipeline.Options(**options)
    )

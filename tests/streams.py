"""Training streams with all settings as keywords, and their comparison."""

import dataclasses

import numpy as np
import tensorflow as tf

from jest_tf import config
from jest_tf.data import pipeline

_OPTIONS = {field.name for field in dataclasses.fields(pipeline.Options)}


def super_batches(store, *, batch_size, stages=(), loss=None, **settings):
    """`pipeline.super_batches` of a funnel, with `Options` among settings."""
    options = {name: settings.pop(name) for name in _OPTIONS & set(settings)}
    return pipeline.super_batches(
        store,
        selection=config.SelectionConfig(batch_size, stages, loss),
        **settings,
        options=pipeline.Options(**options),
    )


def joined(batches):
    """Batches, of hosts or of steps, joined."""
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *batches)


class StreamTestCase(tf.test.TestCase):
    def assert_equal_batches(self, ours, theirs):
        """Equal names, dtypes and values, of curated rows as well."""
        self.assertEqual(len(ours), len(theirs))
        for our_batch, other in zip(ours, theirs, strict=True):
            self.assertCountEqual(our_batch, other)
            for name, value in our_batch.items():
                if name == "curated":
                    self.assert_equal_batches([value], [other[name]])
                    continue
                self.assertEqual(value.dtype, other[name].dtype, name)
                self.assertAllEqual(value, other[name], name)

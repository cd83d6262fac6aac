"""Training streams with all settings as keywords, and their comparison."""

import dataclasses

import numpy as np
import tensorflow as tf

from jest_tf import config
from jest_tf.data import pipeline


def super_batches(
    store, *, batch_size, stages=(), loss="sigmoid", curated_rows=0, **settings
):
    """`pipeline.super_batches` of a funnel, with all options as settings."""
    parts = {}
    for name, kind in (
        ("options", pipeline.Options),
        ("reference", pipeline.ReferenceInputs),
    ):
        names = {field.name for field in dataclasses.fields(kind)}
        names -= {"tokenizer"}
        given = {field: settings.pop(field) for field in names & set(settings)}
        parts[name] = kind(**given)
    if "tokenizer_of_reference" in settings:
        parts["reference"] = dataclasses.replace(
            parts["reference"], tokenizer=settings.pop("tokenizer_of_reference")
        )
    selection = config.SelectionConfig(batch_size, stages)
    return pipeline.super_batches(
        store,
        plan=config.plan(selection, curated_rows=curated_rows),
        loss=loss,
        **settings,
        **parts,
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

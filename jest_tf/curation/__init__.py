"""Curation: choosing records of a whole data set, once, into a manifest.

`by_score` chooses by a model's scores, on one machine or, `with_beam`, on many;
`by_similarity` chooses records like examples of tasks, balanced over their
`concepts`; `models` are the models to choose by. The result is a pure function
of settings, models and shards; the same call continues an interrupted call.
"""

from jest_tf.curation.by_score import (
    Choice,
    choose,
    claimed,
    curate,
    for_models,
)
from jest_tf.curation.models import Model
from jest_tf.curation.with_beam import curate_with_beam

__all__ = [
    "Choice",
    "Model",
    "choose",
    "claimed",
    "curate",
    "curate_with_beam",
    "for_models",
]

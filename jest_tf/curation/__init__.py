"""Curation: choosing records of a whole data set into a manifest."""

from jest_tf.curation.by_score import (
    CRITERIA,
    Model,
    Settings,
    choose,
    claimed,
    curate,
    curate_with_beam,
    describe,
    for_models,
    usable,
)

__all__ = [
    "CRITERIA",
    "Model",
    "Settings",
    "choose",
    "claimed",
    "curate",
    "curate_with_beam",
    "describe",
    "for_models",
    "usable",
]

"""Evaluation of embeddings: retrieval, zero-shot classification.

Measures are plain functions of arrays; `StoreEvaluation` applies them to a
learner and a store, `EntryEvaluation` to a learner and an entry of a suite.
`runs/evaluations.py` decides when a run evaluates.
"""

from jest_tf.evaluation.embedding import Encoder
from jest_tf.evaluation.retrieval import ranks, retrieval_measures
from jest_tf.evaluation.stores import (
    MEASURES,
    StoreEvaluation,
    open_stores,
)
from jest_tf.evaluation.suite import (
    EntryEvaluation,
    open_suite,
    results,
)
from jest_tf.evaluation.zero_shot import class_embeddings, zero_shot_measures

__all__ = [
    "Encoder",
    "EntryEvaluation",
    "MEASURES",
    "StoreEvaluation",
    "class_embeddings",
    "open_stores",
    "open_suite",
    "ranks",
    "results",
    "retrieval_measures",
    "zero_shot_measures",
]

"""Evaluation of embeddings: retrieval and zero-shot classification.

Measures are plain functions of arrays; `StoreEvaluation` applies them to a
learner and a store. When a run evaluates is decided in `runs/evaluation.py`.
"""

from jest_tf.evaluation.retrieval import ranks, retrieval_measures
from jest_tf.evaluation.stores import (
    MEASURES,
    StoreEmbeddings,
    StoreEvaluation,
    open_stores,
)
from jest_tf.evaluation.zero_shot import class_embeddings, zero_shot_measures

__all__ = [
    "MEASURES",
    "StoreEmbeddings",
    "StoreEvaluation",
    "class_embeddings",
    "open_stores",
    "ranks",
    "retrieval_measures",
    "zero_shot_measures",
]

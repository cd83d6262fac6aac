"""Evaluation of embeddings: retrieval, zero-shot classification.

Measures are plain functions of arrays; `StoreEvaluation` applies them to a
store and a learner. `runs/evaluations.py` decides when a run evaluates.
"""

from jest_tf.evaluation.embedding import Encoder
from jest_tf.evaluation.retrieval import ranks, retrieval_measures
from jest_tf.evaluation.slices import Estimate, Slice
from jest_tf.evaluation.stores import StoreEvaluation, open_stores
from jest_tf.evaluation.zero_shot import class_embeddings, zero_shot_measures

"""Evaluation of embeddings: retrieval and zero-shot classification."""

from jest_tf.evaluation.stores import (
    Evaluation,
    StoreEmbeddings,
    class_embeddings,
    embed_store,
    evaluate_store,
    open_stores,
    ranks,
    retrieval,
    zero_shot,
)

__all__ = [
    "Evaluation",
    "StoreEmbeddings",
    "class_embeddings",
    "embed_store",
    "evaluate_store",
    "open_stores",
    "ranks",
    "retrieval",
    "zero_shot",
]

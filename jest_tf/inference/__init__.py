"""After training: embedding, classifying and searching with a learner; export.

`load` opens a learner, an `Embedder` uses it in Python, and `export` writes it
for programs without `jest_tf`.
"""

from jest_tf.inference.embedder import Classification, Embedder, Hits, load

__all__ = ["Classification", "Embedder", "Hits", "load"]

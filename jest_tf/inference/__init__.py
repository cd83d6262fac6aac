"""After training: embedding, classifying and searching with a learner; export.

`load` opens a learner, an `Embedder` uses it in Python, `export` writes it for
programs without `jest_tf`, and a `collection` holds the embedded pictures of a
folder.
"""

from jest_tf.inference.embedder import Classification, Embedder, Hits, load

__all__ = ["Classification", "Embedder", "Hits", "load"]

"""After training: embedding with a learner, and exports.

`load` opens a learner, an `Embedder` uses it in Python, and `export` writes it
for programs without `jest_tf`.
"""

from jest_tf.inference.embedder import Embedder, load

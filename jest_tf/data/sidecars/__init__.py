"""Sidecars: a reference's embeddings beside the records they belong to."""

from jest_tf.data.sidecars.reading import SUFFIX, Sidecars, sidecar_path

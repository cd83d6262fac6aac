"""Sidecars: a reference's embeddings beside the records they belong to."""

from jest_tf.data.sidecars.reading import (
    SUFFIX,
    Rows,
    Sidecars,
    check_header,
    sidecar_path,
)

__all__ = [
    "Rows",
    "SUFFIX",
    "Sidecars",
    "check_header",
    "sidecar_path",
]

"""A sidecar description and unit-norm rows."""

import numpy as np

from jest_tf.data.sidecars import file_format

DIM = 4
DESCRIPTION = file_format.Description(
    "fingerprint", "tokenizer", "preprocessing", DIM, 8.5, -3.25
)


def unit_rows(count, seed=0, dim=DIM):
    values = np.random.default_rng(seed).standard_normal((count, dim))
    return np.float32(values / np.linalg.norm(values, axis=1, keepdims=True))

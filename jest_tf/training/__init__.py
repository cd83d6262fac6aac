"""The training step and its Keras model."""

from jest_tf.training.model import (
    JESTModel,
    build_model,
)

__all__ = [
    "JESTModel",
    "build_model",
]

"""The training step and its Keras model.

`step.train_step` is Algorithm 1 on a page; the functions of `step` serve
custom loops. `JESTModel` adapts it to Keras; `build_model` makes a run's model.
"""

from jest_tf.training.build import build_model, check_parts
from jest_tf.training.model import JESTModel

__all__ = [
    "JESTModel",
    "build_model",
    "check_parts",
]

"""The training step and its Keras model.

`step.train_step` is Algorithm 1 on one page. `JESTModel` adapts it to Keras,
and `build_model` makes the model of a run; both are public. The functions of
`step` serve custom loops.
"""

from jest_tf.training.build import build_model
from jest_tf.training.model import JESTModel

__all__ = [
    "JESTModel",
    "build_model",
]

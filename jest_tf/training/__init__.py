"""The training step and its Keras model.

`step.train_step` is Algorithm 1 on one page, with its neighbours
`micro_batches` (the gradient), `row_outputs` (results by row) and `flops`.
`model.JESTModel` adapts it to Keras, with `metrics`, `schedule` and
`optimizer`. `JESTModel` and `build_model` are public; the functions of `step`
serve custom loops.
"""

from jest_tf.training.model import (
    JESTModel,
    build_model,
)

__all__ = [
    "JESTModel",
    "build_model",
]

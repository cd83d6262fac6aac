"""The training step and its Keras model.

`step.train_step` is Algorithm 1 on one page, with its neighbours `sub_batch`
(gathering), `micro_batches` (the gradient), `row_outputs` (results by row) and
`flops`. `model.JESTModel` adapts it to Keras, with `metrics`, `schedule` and
`optimizer`; `build` makes the model of a run. `JESTModel` and `build_model` are
public; the functions of `step` serve custom loops.
"""

from jest_tf.training.build import build_model
from jest_tf.training.model import JESTModel

__all__ = [
    "JESTModel",
    "build_model",
]

"""The training step and its Keras model.

`step.train_step` is Algorithm 1 on a page; the functions of `step` serve
custom loops. `JESTModel` adapts it to Keras, by a `Stepper` and the `Trainer`
of Keras' backend (`backend.py`). A `Funnel` joins the selection to its
reference; `build_model` makes a run's model.
"""

from jest_tf.training.build import build_model, check_parts
from jest_tf.training.funnel import Funnel, check_criteria
from jest_tf.training.model import JESTModel
from jest_tf.training.sub_batch import check_shares

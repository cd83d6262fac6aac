"""Pair losses, which train a learner and score rows.

A `PairLoss` has both: the training loss (`training.py`) and the losses of rows
given those chosen so far (`running.py`). `distillation.py` has losses by a
reference. Your own loss is a "module:function" that returns a `PairLoss`.
"""

from jest_tf.losses.distillation import (
    feature_distillation,
    similarity_distillation,
)
from jest_tf.losses.running import SigmoidRows, SoftmaxRows
from jest_tf.losses.training import (
    PairLoss,
    chance,
    pair_loss,
    sigmoid,
    sigmoid_loss,
    softmax,
    softmax_loss,
)

"""JEST, joint example selection, for TensorFlow and Keras.

The public names of the method, the models and the settings; each module's
docstring says what lies where. Data is read and written by the modules of
`jest_tf.data`: `records.open_store`, `pipeline.super_batches`, `embed.write`.
Several replicas are the business of `jest_tf.distribution`.
"""

from jest_tf.config import (
    CascadeConfig,
    CheckpointConfig,
    DataConfig,
    DistributionConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    Phase,
    ReferenceConfig,
    SelectionConfig,
    TrainConfig,
    View,
    load_config,
    save_config,
)
from jest_tf.losses import (
    Embeddings,
    feature_distillation,
    sigmoid_loss,
    softmax_loss,
)
from jest_tf.models import TwoTower, build_two_tower
from jest_tf.optimizer import AdamW, build_optimizer
from jest_tf.reference import load_run
from jest_tf.selection import (
    Draw,
    gumbel_noise,
    select_independently,
    select_jointly,
    select_top,
    select_uniformly,
)
from jest_tf.towers import ImageTower, TextTower
from jest_tf.training import JESTModel

__version__ = "0.1.0"

__all__ = [
    "AdamW",
    "CascadeConfig",
    "CheckpointConfig",
    "DataConfig",
    "DistributionConfig",
    "Draw",
    "Embeddings",
    "EvaluationConfig",
    "ImageTower",
    "JESTModel",
    "ModelConfig",
    "OptimizerConfig",
    "Phase",
    "ReferenceConfig",
    "SelectionConfig",
    "TextTower",
    "TrainConfig",
    "TwoTower",
    "View",
    "build_optimizer",
    "build_two_tower",
    "feature_distillation",
    "gumbel_noise",
    "load_config",
    "load_run",
    "save_config",
    "select_independently",
    "select_jointly",
    "select_top",
    "select_uniformly",
    "sigmoid_loss",
    "softmax_loss",
]

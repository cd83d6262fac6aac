"""Settings of a run as frozen dataclasses, checked before data is read.

Imports no TensorFlow.
"""

from jest_tf.config.groups import (
    DTYPE_POLICIES,
    EQUAL_CAPTIONS,
    FORMATS,
    ON_NON_FINITE,
    OPTIMIZERS,
    PRESETS,
    SCHEDULES,
    STRATEGIES,
    CheckpointConfig,
    DataConfig,
    DistributionConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RateFactor,
    ReferenceConfig,
    TowerSizes,
)
from jest_tf.config.recipes import load_config, save_config
from jest_tf.config.run import TrainConfig
from jest_tf.config.selection import (
    CRITERIA,
    FIRST_CHUNKS,
    LOSSES,
    QUOTAS,
    SAMPLERS,
    CascadeConfig,
    FirstChunk,
    Loss,
    Phase,
    SelectionConfig,
    View,
)

__all__ = [
    "CRITERIA",
    "CascadeConfig",
    "CheckpointConfig",
    "DTYPE_POLICIES",
    "DataConfig",
    "DistributionConfig",
    "EQUAL_CAPTIONS",
    "EvaluationConfig",
    "FIRST_CHUNKS",
    "FORMATS",
    "FirstChunk",
    "LOSSES",
    "Loss",
    "ModelConfig",
    "ON_NON_FINITE",
    "OPTIMIZERS",
    "OptimizerConfig",
    "PRESETS",
    "Phase",
    "QUOTAS",
    "RateFactor",
    "ReferenceConfig",
    "SAMPLERS",
    "SCHEDULES",
    "STRATEGIES",
    "SelectionConfig",
    "TowerSizes",
    "TrainConfig",
    "View",
    "load_config",
    "save_config",
]

"""Settings of a run as frozen dataclasses, checked before data is read.

Imports no TensorFlow.
"""

from jest_tf.config.groups import (
    CheckpointConfig,
    DataConfig,
    DistributionConfig,
    EvaluationConfig,
    EvaluationStore,
    ModelConfig,
    OptimizerConfig,
    ReferenceConfig,
)
from jest_tf.config.methods import (
    CRITERIA,
    LOSSES,
    METHODS,
    Criterion,
    criterion,
)
from jest_tf.config.recipes import load_config, save_config
from jest_tf.config.run import TrainConfig
from jest_tf.config.segments import (
    Segment,
    between_renewals,
    cut,
    describe_plan,
    plan,
    segment_at,
)
from jest_tf.config.selection import (
    BootstrapConfig,
    Loss,
    SelectionConfig,
    Stage,
    View,
)
from jest_tf.config.tables import (
    DTYPE_POLICIES,
    EQUAL_CAPTIONS,
    OPTIMIZERS,
    PRESETS,
    QUOTAS,
    SCHEDULES,
    STRATEGIES,
)

__all__ = [
    "BootstrapConfig",
    "CRITERIA",
    "CheckpointConfig",
    "Criterion",
    "DTYPE_POLICIES",
    "DataConfig",
    "DistributionConfig",
    "EQUAL_CAPTIONS",
    "EvaluationConfig",
    "EvaluationStore",
    "LOSSES",
    "Loss",
    "METHODS",
    "ModelConfig",
    "OPTIMIZERS",
    "OptimizerConfig",
    "PRESETS",
    "QUOTAS",
    "ReferenceConfig",
    "SCHEDULES",
    "STRATEGIES",
    "SelectionConfig",
    "Segment",
    "Stage",
    "TrainConfig",
    "View",
    "between_renewals",
    "criterion",
    "cut",
    "describe_plan",
    "load_config",
    "plan",
    "save_config",
    "segment_at",
]

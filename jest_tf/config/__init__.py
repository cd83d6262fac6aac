"""Settings of a run as frozen dataclasses, checked before data is read.

Imports no TensorFlow.
"""

from jest_tf.config.groups import (
    BootstrapConfig,
    CheckpointConfig,
    DataConfig,
    DistributionConfig,
    EvaluationConfig,
    EvaluationStore,
    ModelConfig,
    OptimizerConfig,
    ReferenceConfig,
)
from jest_tf.config.recipes import load_config, save_config
from jest_tf.config.run import TrainConfig
from jest_tf.config.selection import (
    Segment,
    SelectionConfig,
    Stage,
    View,
    between_renewals,
    cut,
    describe_plan,
    plan,
    segment_at,
)
from jest_tf.config.tables import (
    CRITERIA,
    DTYPE_POLICIES,
    FALSE_NEGATIVES,
    LOSSES,
    METHODS,
    OPTIMIZERS,
    PRESETS,
    QUOTAS,
    SCHEDULES,
    STRATEGIES,
    Criterion,
    Loss,
    criterion,
)

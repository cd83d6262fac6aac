"""JEST, joint example selection, for TensorFlow and Keras.

The public names below load on first use, so that importing the package does not
load TensorFlow. docs/design.md describes the rooms (folders) of the package, in
the order in which they may import each other.
"""

import importlib
import sys

__version__ = "0.4.0"

_HOMES = {
    "config": (
        "CheckpointConfig",
        "Criterion",
        "DataConfig",
        "DistributionConfig",
        "EvaluationConfig",
        "EvaluationStore",
        "ModelConfig",
        "OptimizerConfig",
        "ReferenceConfig",
        "SelectionConfig",
        "Stage",
        "TrainConfig",
        "View",
        "load_config",
        "save_config",
    ),
    "embeddings": ("Embeddings",),
    "losses": (
        "PairLoss",
        "feature_distillation",
        "sigmoid_loss",
        "softmax_loss",
    ),
    "models.building": ("build_two_tower",),
    "models.towers": ("ImageTower", "TextTower"),
    "inference": ("Embedder", "load"),
    "models.two_tower": ("TwoTower",),
    "selection": ("Draw", "gumbel_noise", "select_jointly"),
    "training.funnel": ("Funnel",),
    "training.model": ("JESTModel",),
    "training.step": ("StepOptions",),
    "training.optimizer": ("AdamW", "build_optimizer"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name):
    if name not in _HOME_OF:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}",
            name=name,  # for "Did you mean"
            obj=sys.modules[__name__],
        )
    home = importlib.import_module(f"{__name__}.{_HOME_OF[name]}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__():
    return sorted({*globals(), *__all__})

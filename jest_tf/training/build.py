"""Builds and compiles the model of a run."""

from collections.abc import Sequence

import keras

from jest_tf import config as config_lib
from jest_tf import models
from jest_tf.config import imports
from jest_tf.data import augmentation
from jest_tf.models import parts
from jest_tf.training import funnel as funnel_lib
from jest_tf.training import model as model_lib
from jest_tf.training import optimizer
from jest_tf.training import step as step_lib


def check_parts(config: config_lib.TrainConfig) -> None:
    """Checks the names of parts, on a learner without weights."""
    if config.model.frozen or config.optimizer.layer_decay is not None:
        with keras.StatelessScope(initialize_variables=False):
            learner = models.build_learner(config, config.data.vocabulary_size)
        parts.rate_factors(learner, config.optimizer)


def build_model(
    config: config_lib.TrainConfig,
    learner: keras.Model,
    funnel: funnel_lib.Funnel | None = None,
    *,
    restarts: Sequence[int] = (),
) -> model_lib.JESTModel:
    """Builds and compiles the model of a run, see `JESTModel`.

    `funnel` may be None if the model is bound to one before it is trained. The
    learning rate begins anew at each of the `restarts`, ascending steps.
    """
    funnel = funnel or funnel_lib.Funnel.detached(
        config.selection, config.model.loss
    )
    model = model_lib.JESTModel(
        learner,
        selection=funnel,
        options=step_lib.StepOptions(
            false_negatives=config.model.false_negatives,
            false_negative_margin=config.model.false_negative_margin,
            loss_block_size=config.model.loss_block_size,
            views=config.training_views,
            micro_batch_size=config.model.micro_batch_size,
            distillation_weight=config.reference.distillation_weight,
            similarity_weight=config.reference.similarity_weight,
            distillation_steps=config.reference.distillation_steps,
            projection_dim=config.reference.projection,
            augment=_augmentation(config),
            seed=config.seed,
        ),
    )
    factors = parts.rate_factors(learner, config.optimizer)
    if factors is not None:
        others = len(model.step.variables) - len(factors)
        factors += [1.0] * others
    model.compile(
        optimizer=optimizer.build_optimizer(
            config.optimizer, config.steps, factors, restarts=restarts
        ),
        jit_compile=False,
    )
    return model


def _augmentation(config):
    first = augmentation.Augmentation(
        flip=config.data.flip, min_area=config.data.min_crop_area
    )
    name = config.data.augment
    if not name:
        return first
    build = imports.load_function("data.augment", name)
    return augmentation.Chain([first, build(config)])

"""Optimizers and schedules of runs, on any number of replicas."""

import itertools
import re
from collections.abc import Sequence

import keras
from keras import ops

from jest_tf import config as config_lib
from jest_tf.config import imports, tables
from jest_tf.distribution import keras_fit
from jest_tf.embeddings import ON_TENSORFLOW


class RecipeOptimizer(keras_fit.AggregateThenClip if ON_TENSORFLOW else object):
    """Mixin for Keras' optimizers: only kernels decay, and rates have factors.

    Biases, norms, embeddings, positions, the temperature and the bias of the
    logits do not decay, as in SigLIP's published recipe. Gradients are clipped
    after the all-reduce.

    Attributes:
        rate_factors: factors of the learning rate, for updates and weight
            decay alike. Each variable, in the order of `build`, has a number,
            or a list with a number for each element of its first axis. None
            scales nothing. Set it before `build`.
    """

    rate_factors: Sequence[float | Sequence[float]] | None = None

    def build(self, variables):
        """Creates the state; raises ValueError for a wrong count of factors."""
        factors = self.rate_factors
        if factors is not None and len(factors) != len(variables):
            raise ValueError(
                "`rate_factors` must hold a factor for each of the "
                f"{len(variables)} variables. Received: {len(factors)}"
            )
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        """Updates as Keras does, with the variable's factor of the rate."""
        if self.rate_factors is not None:
            learning_rate = self._scaled(learning_rate, variable)
            if self.weight_decay and self._use_weight_decay(variable):
                decay = learning_rate * self.weight_decay
                self.assign_sub(variable, decay * variable)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        """Returns Keras' settings and the factors."""
        return super().get_config() | {"rate_factors": self.rate_factors}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Rebuilds the optimizer from `get_config`."""
        config = dict(config)
        factors = config.pop("rate_factors")
        optimizer = super().from_config(config, custom_objects)
        optimizer.rate_factors = factors
        return optimizer

    def _scaled(self, rate, variable):
        factor = self.rate_factors[self._get_variable_index(variable)]
        rate = ops.cast(rate, variable.dtype)
        factor = ops.convert_to_tensor(factor, variable.dtype)
        rest = [1] * (len(variable.shape) - 1)
        # A stack has a factor for each block, [depth, 1, ...].
        return rate * (
            ops.reshape(factor, [-1, *rest]) if len(factor.shape) else factor
        )

    def _apply_weight_decay(self, variables):
        if self.rate_factors is None:
            super()._apply_weight_decay(variables)

    def _use_weight_decay(self, variable):
        # Keras passes its variable, or TensorFlow's "a/kernel:0", or another
        # replica's "a/kernel/replica_1:0".
        name = re.sub(r"(/replica_\d+)?(:\d+)?$", "", variable.name)
        return name.endswith("kernel")


@keras.saving.register_keras_serializable(package="jest_tf")
class AdamW(RecipeOptimizer, keras.optimizers.AdamW):
    """Keras' AdamW with the rules of `RecipeOptimizer`."""


@keras.saving.register_keras_serializable(package="jest_tf")
class Joined(keras.optimizers.schedules.LearningRateSchedule):
    """Schedules one after another, each from its first step on."""

    def __init__(self, schedules, starts):
        self.schedules, self.starts = [*schedules], [*starts]

    def __call__(self, step):
        """Returns the learning rate of a step."""
        step = ops.cast(step, "float32")
        rate = self.schedules[0](step)
        for schedule, start in zip(
            self.schedules[1:], self.starts[1:], strict=True
        ):
            later = schedule(ops.maximum(step - start, 0.0))
            rate = ops.where(step < start, rate, later)
        return rate

    def get_config(self):
        """Returns the arguments, for `.keras` files."""
        schedules = keras.saving.serialize_keras_object(self.schedules)
        return {"schedules": schedules, "starts": self.starts}

    @classmethod
    def from_config(cls, config):
        """Rebuilds the schedule from `get_config`."""
        return cls(**keras.saving.deserialize_keras_object(config))


def build_schedule(
    settings: config_lib.OptimizerConfig,
    steps: int,
    restarts: Sequence[int] = (),
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Builds the learning-rate schedule of a run of `steps` steps.

    At each of the `restarts`, ascending steps, a schedule ends and the next
    begins, with its warm-up.
    """
    starts = [0, *restarts]
    schedules = [
        _build_schedule(settings, end - start)
        for start, end in itertools.pairwise([*starts, steps])
    ]
    return Joined(schedules, starts) if restarts else schedules[0]


def _build_schedule(settings, steps):
    build = imports.load_function(
        "optimizer.schedule", tables.schedule(settings.schedule).build
    )
    schedule = build(settings, steps)
    kind = keras.optimizers.schedules.LearningRateSchedule
    if not isinstance(schedule, kind):
        raise ValueError(
            "`optimizer.schedule` must name a function that returns a Keras "
            f"LearningRateSchedule. Received: {schedule!r}, of "
            f"{settings.schedule}"
        )
    return schedule


def cosine(settings: config_lib.OptimizerConfig, steps: int, share=0.0):
    """Returns a warm-up and a cosine to a share of the peak rate at `steps`."""
    peak, warmup = settings.learning_rate, settings.warmup_steps
    return keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else peak,
        decay_steps=steps - warmup,
        alpha=share,
        warmup_target=peak if warmup else None,
        warmup_steps=warmup,
    )


def constant(settings: config_lib.OptimizerConfig, steps: int):
    """Returns a warm-up and a constant rate."""
    return cosine(settings, steps, 1.0)


def build_optimizer(
    settings: config_lib.OptimizerConfig,
    steps: int,
    rate_factors: Sequence[float | Sequence[float]] | None = None,
    *,
    restarts: Sequence[int] = (),
) -> keras.optimizers.Optimizer:
    """Builds the optimizer of a run, by default AdamW with a cosine schedule.

    Args:
        steps: optimizer steps of the whole run, the end of the schedule.
        rate_factors: as in `RecipeOptimizer`; `models.parts` computes them.
        restarts: steps at which the schedule begins anew, ascending.
    """
    name = settings.name
    build = imports.load_function(
        "optimizer.name", config_lib.OPTIMIZERS.get(name, name)
    )
    schedule = build_schedule(settings, steps, restarts)
    optimizer = build(settings, schedule)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(
            "`optimizer.name` must name a function that returns a Keras "
            f"optimizer. Received: {optimizer!r}, of {name}"
        )
    if settings.ema is not None and not optimizer.use_ema:
        raise ValueError(
            "`optimizer.ema` needs an optimizer with `use_ema=True`. "
            f"Received: {type(optimizer).__name__}, of {name}"
        )
    if isinstance(optimizer, RecipeOptimizer):
        optimizer.rate_factors = rate_factors
    elif rate_factors is not None:
        raise ValueError(
            "`optimizer.layer_decay` needs an optimizer that takes factors: "
            "let its class inherit from `optimizer.RecipeOptimizer`, too. "
            f"Received: {type(optimizer).__name__}, of {name}"
        )
    return optimizer


def adamw(settings: config_lib.OptimizerConfig, schedule) -> AdamW:
    """Returns AdamW."""
    return AdamW(
        learning_rate=schedule,
        weight_decay=settings.weight_decay,
        # For stability at large b, arXiv 2303.15343, section 4.7.
        beta_2=0.95,
        global_clipnorm=1.0,
        use_ema=settings.ema is not None,
        ema_momentum=settings.ema or 0.0,
    )

"""SigLIP's optimizer, on any number of replicas."""

import re
from collections.abc import Sequence

import keras
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf.distribution import keras_fit


class RecipeOptimizer(keras_fit.AggregateThenClip):
    """Mixin for Keras' optimizers: kernels alone decay, factors of the rate.

    Biases, norms, embeddings, positions, the temperature and the bias of the
    logits do not decay, as in SigLIP's published recipe. Clips after the
    all-reduce.

    Attributes:
        rate_factors: factors of the learning rate, of the updates and of the
            weight decay: a number for each variable in the order of `build`,
            or a list, one for each element of the first axis. None scales
            nothing. Set it before `build`.
    """

    rate_factors: Sequence[float | Sequence[float]] | None = None

    def build(self, variables):
        """Creates the state; raises ValueError unless factors fit."""
        factors = self.rate_factors
        if factors is not None and len(factors) != len(variables):
            raise ValueError(
                "`rate_factors` must hold a factor for each of the "
                f"{len(variables)} variables. Received: {len(factors)}"
            )
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        """As Keras', with the variable's factor of the rate."""
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
        rate = tf.cast(rate, variable.dtype)
        factor = tf.constant(factor, variable.dtype)
        rest = [1] * (variable.shape.rank - 1)
        # A stack of blocks has a factor each, [depth, 1, ...].
        return rate * (
            tf.reshape(factor, [-1, *rest]) if factor.shape.rank else factor
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


def build_optimizer(
    settings: config_lib.OptimizerConfig,
    steps: int,
    rate_factors: Sequence[float | Sequence[float]] | None = None,
) -> keras.optimizers.Optimizer:
    """Builds AdamW with linear warm-up and cosine decay to zero.

    Args:
        settings: see `config.OptimizerConfig`.
        steps: optimizer steps of the whole run, the length of the schedule.
        rate_factors: as in `RecipeOptimizer`; `models.parts` computes them.
    """
    warmup = settings.warmup_steps
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else settings.learning_rate,
        decay_steps=steps - warmup,
        warmup_target=settings.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = AdamW(
        learning_rate=schedule,
        weight_decay=settings.weight_decay,
        beta_1=settings.beta_1,
        beta_2=settings.beta_2,
        global_clipnorm=settings.clip_norm,
        use_ema=settings.ema is not None,
        ema_momentum=settings.ema or 0.0,
    )
    optimizer.rate_factors = rate_factors
    return optimizer

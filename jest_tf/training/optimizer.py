"""SigLIP's optimizer, on any number of replicas."""

import re

import keras

from jest_tf import config as config_lib
from jest_tf.distribution import keras_fit


@keras.saving.register_keras_serializable(package="jest_tf")
class AdamW(keras_fit.AggregateThenClip, keras.optimizers.AdamW):
    """Keras' AdamW that decays kernels only, and clips after the all-reduce.

    Biases, norms, embeddings, positions, the temperature and the bias of the
    logits do not decay, as in SigLIP's published recipe.
    """

    def _use_weight_decay(self, variable):
        # Keras passes its variable, or TensorFlow's "a/kernel:0", or another
        # replica's "a/kernel/replica_1:0".
        name = re.sub(r"(/replica_\d+)?(:\d+)?$", "", variable.name)
        return name.endswith("kernel")


def build_optimizer(
    settings: config_lib.OptimizerConfig, steps: int
) -> keras.optimizers.Optimizer:
    """Builds AdamW with linear warm-up and cosine decay to zero.

    Args:
        settings: see `config.OptimizerConfig`.
        steps: optimizer steps of the whole run, the length of the schedule.
    """
    warmup = settings.warmup_steps
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else settings.learning_rate,
        decay_steps=steps - warmup,
        warmup_target=settings.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    return AdamW(
        learning_rate=schedule,
        weight_decay=settings.weight_decay,
        beta_1=settings.beta_1,
        beta_2=settings.beta_2,
        global_clipnorm=settings.clip_norm,
        use_ema=settings.ema is not None,
        ema_momentum=settings.ema or 0.0,
    )

"""Schedules of the learning rate."""

# `__call__` is described by its class.
# ruff: noqa: D102

from keras import ops
from keras.optimizers import schedules

_LAST = 1 / 8  # of the steps


class Annealed(schedules.LearningRateSchedule):
    """A linear warm-up, a constant rate, then a linear decay to 0.

    Args:
        rate: after the warm-up.
        warmup_steps: its length.
        steps: length of the run, of which the decay takes the last eighth.
    """

    def __init__(self, rate, warmup_steps, steps):
        super().__init__()
        self._config = {
            "rate": rate,
            "warmup_steps": warmup_steps,
            "steps": steps,
        }

    def __call__(self, step):
        rate, warmup_steps, steps = self._config.values()
        step = ops.cast(step, "float32")
        rise = step / max(warmup_steps, 1)
        fall = (steps - step) / (_LAST * steps)
        return rate * ops.clip(ops.minimum(rise, fall), 0.0, 1.0)

    def get_config(self):
        """The arguments."""
        return dict(self._config)


def annealed(settings, steps):
    """A schedule of `optimizer.schedule`, see `config.OptimizerConfig`."""
    return Annealed(settings.learning_rate, settings.warmup_steps, steps)

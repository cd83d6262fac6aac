"""The metrics of `JESTModel`, on any number of replicas."""

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib


class StepMetrics:
    """`loss`, `scale`, `bias`, `select/...` of a draw, `data/..._replaced`.

    Create it in the scope of the strategy. `settings` without scoring have no
    `select/...`; `distils` adds `distillation`.
    """

    def __init__(
        self,
        settings: config_lib.SelectionConfig | None,
        distils: bool = False,
    ):
        names = ["loss", "scale", "bias", *_of_draw(settings)]
        if distils:
            names.insert(1, "distillation")
        self._means = {name: keras.metrics.Mean(name=name) for name in names}
        self._sums = {
            name: keras.metrics.Sum(name=f"data/{name.split('_')[0]}s_replaced")
            for name in ("caption_replaced", "record_replaced")
        }
        self._counted = ()

    @property
    def shown(self) -> list[keras.metrics.Metric]:
        """Metrics that have values from the batches so far."""
        means = list(self._means.values())
        return means + [self._sums[name] for name in self._counted]

    @property
    def every(self) -> list[keras.metrics.Metric]:
        """All metrics."""
        return [*self._means.values(), *self._sums.values()]

    def result(self, name: str) -> tf.Tensor:
        """Running mean of the metric `name`."""
        return self._means[name].result()

    def update(self, values: Mapping[str, tf.Tensor], replicas=None) -> None:
        """Adds a step's scalars by name, equal on every replica."""
        # Each replica adds its share, so the sum over them counts a step once.
        weight = replicas and 1 / replicas.num_replicas
        for name, value in values.items():
            self._means[name].update_state(value, sample_weight=weight)

    def count_replaced(self, super_batch: Mapping[str, tf.Tensor]) -> None:
        """Counts local rows with `caption_replaced` or `record_replaced`."""
        # Known from tracing on.
        self._counted = tuple(
            name for name in self._sums if name in super_batch
        )
        for name in self._counted:
            replaced = tf.cast(super_batch[name], tf.float32)
            self._sums[name].update_state(replaced)

    def save(self, store) -> None:
        """Writes the running state to a store of a Keras file."""
        for name, metric in self._by_key().items():
            store[name] = np.array(
                [variable.numpy() for variable in metric.variables]
            )

    def load(self, store) -> None:
        """Reads the state of the metrics that the store has."""
        for name, metric in self._by_key().items():
            if name in store.keys():
                for variable, value in zip(
                    metric.variables, store[name], strict=True
                ):
                    variable.assign(value)

    def _by_key(self):
        return {metric.name.replace("/", "."): metric for metric in self.every}


def _of_draw(settings):
    if settings is None or not settings.scores:
        return ()
    scored = (
        ("learner", settings.needs_learner),
        ("reference", settings.needs_reference),
    )
    return (
        "select/score",
        "select/uniform_score",
        *(
            f"select/{model}_loss_{rows}"
            for model, needed in scored
            if needed
            for rows in ("kept", "dropped")
        ),
    )

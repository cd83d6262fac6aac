"""The metrics of `JESTModel`, on any number of replicas."""

from collections.abc import Mapping

import keras
from keras import ops

from jest_tf import config as config_lib
from jest_tf.embeddings import Tensor


class StepMetrics:
    """The metrics `loss`, `scale`, `bias`, `stages/...`, `data/..._replaced`.

    Create it in the scope of the strategy. For stages that score, it has the
    values of `selection.summarize` as `stages/0/score` and so on; `distils`
    adds `distillation`.
    """

    def __init__(
        self,
        settings: config_lib.SelectionConfig | None,
        distils: bool = False,
    ):
        distillation = ["distillation"] if distils else []
        names = ["loss", *distillation, "scale", "bias", *_of_stages(settings)]
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

    def result(self, name: str) -> Tensor:
        """Returns the running mean of the metric `name`."""
        return self._means[name].result()

    def update(self, values: Mapping[str, Tensor], replicas=None) -> None:
        """Adds a step's scalars by name, equal on every replica."""
        # Each replica adds its share, so the sum over them counts a step once.
        weight = replicas and 1 / replicas.num_replicas
        for name, value in values.items():
            self._means[name].update_state(value, sample_weight=weight)

    def count_replaced(self, super_batch: Mapping[str, Tensor]) -> None:
        """Counts local rows with `caption_replaced` or `record_replaced`."""
        parts = [super_batch, super_batch.get("curated", {})]
        # Tracing the step shows which of the counts the batches have.
        self._counted = tuple(
            name for name in self._sums if name in super_batch
        )
        for name in self._counted:
            for part in parts:
                if name in part:
                    replaced = ops.cast(part[name], "float32")
                    self._sums[name].update_state(replaced)


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Keras' progress bar, with only the losses and the scores of each draw.

    `History` and other callbacks get every metric.
    """

    async_safe = True  # like Keras' own bar: it does not wait for steps

    def on_train_batch_end(self, batch, logs=None):
        """Updates the bar."""
        super().on_train_batch_end(batch, _short(logs))

    def on_epoch_end(self, epoch, logs=None):
        """Ends the bar."""
        super().on_epoch_end(epoch, _short(logs))


def _short(logs):
    shown = ("loss", "distillation", "score", "uniform_score")
    return {
        name: value
        for name, value in (logs or {}).items()
        if name.rpartition("/")[2] in shown or name.startswith("val_")
    }


def _of_stages(settings):
    names = []
    for number, stage in enumerate(settings.stages if settings else ()):
        if stage.is_stored or not stage.scores:
            continue
        own = ["score", "uniform_score"]
        for model in stage.needs:
            own += [f"{model}_loss_kept", f"{model}_loss_dropped"]
        names += [f"stages/{number}/{name}" for name in own]
    return names

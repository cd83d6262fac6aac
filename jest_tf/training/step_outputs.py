"""Outputs of a training step: metrics, and ids, scores and losses per row.

Metrics work on any number of replicas. Per-row outputs are groups of tensors by
name, with the local rows of each replica. They stay on the device until a
callback reads them through `RowReport`, and need no callback in the graph and
no collective.
"""

from collections.abc import Callable, Iterable, Mapping

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from jest_tf import config as config_lib
from jest_tf import distribution, embeddings, selection
from jest_tf.distribution import placement
from jest_tf.embeddings import Tensor

# Metrics of the losses by a reference, in the order of their settings.
DISTILLED = "distillation", "similarities"


class StepMetrics:
    """The metrics `loss`, `scale`, `bias`, `stages/...`, `data/..._replaced`.

    Create it in the scope of the strategy. For stages that score, it has the
    values of `selection.summarize` as `stages/0/score` and so on. `distilled`
    are the names of losses by the reference.
    """

    def __init__(
        self,
        settings: config_lib.SelectionConfig | None,
        distilled: Iterable[str] = (),
    ):
        names = ["loss", *distilled, "scale", "bias"]
        names += _list_stage_names(settings)
        self._means = {name: keras.metrics.Mean(name=name) for name in names}
        self._sums = {
            name: keras.metrics.Sum(name=f"data/{name.split('_')[0]}s_replaced")
            for name in ("caption_replaced", "record_replaced")
        }
        self._counted = ()

    @property
    def shown(self) -> list[keras.metrics.Metric]:
        """Metrics that have values from the batches so far."""
        counts = [self._sums[name] for name in self._counted]
        return [*self._means.values(), *counts]

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
    shown = ("loss", *DISTILLED, "score", "uniform_score")
    return {
        name: value
        for name, value in (logs or {}).items()
        if name.rpartition("/")[2] in shown or name.startswith("val_")
    }


def _list_stage_names(settings):
    names = []
    for number, stage in enumerate(settings.stages if settings else ()):
        if stage.is_stored or not stage.scores:
            continue
        own = ["score", "uniform_score"]
        for model in stage.needs:
            own += [f"{model}_loss_kept", f"{model}_loss_dropped"]
        names += [f"stages/{number}/{name}" for name in own]
    return names


def list_scored(
    stage: int,
    rows: Mapping[str, Tensor],
    draw: selection.Draw,
    about: tuple[Tensor, Tensor | None],
    replicas=None,
) -> dict[str, dict[str, Tensor]]:
    """Returns scores and losses of the local rows that a stage scored.

    `rows` are the local rows into the stage. `about` has, for the rows of all
    replicas, the row of the super-batch and the place in the previous draw,
    int32 `[n]` each; the places are None without a previous draw, or if each
    replica draws on its own.
    """
    here = placement.number_rows(rows["image"].shape[0], replicas)
    numbers, order = about
    groups = {
        f"stages/{stage}": {
            "number": here if order is None else embeddings.take(order, here),
            "row": embeddings.take(numbers, here),
            "id": rows.get("id"),
            # Workers can't gather booleans.
            "kept": ops.cast(draw.kept, "int32"),
            "learner_loss": draw.learner_loss,
            "reference_loss": draw.reference_loss,
        },
        f"stages/{stage}/uniform": {
            "place": draw.uniform_places,
            "learner_loss": draw.uniform_learner_loss,
            "reference_loss": draw.uniform_reference_loss,
        },
    }
    return {
        group: {name: part for name, part in values.items() if part is not None}
        for group, values in groups.items()
    }


class RowReport:
    """Per-row outputs of the last step of an execution.

    `groups` are the step's outputs on all local replicas; {} before the first
    step. `drawn` are the super-batch's rows that the step chose. With several
    workers, `gather` joins the rows of all workers, which must all call
    `scored` and `uniform` together.
    """

    def __init__(
        self,
        groups: dict,
        drawn: Tensor | None = None,
        gather: Callable[[Tensor], Tensor] | None = None,
    ):
        self._groups = groups
        self._drawn = drawn
        self._gather = gather

    @property
    def drawn(self) -> np.ndarray | None:
        """The chosen rows, `[b - c]`, as drawn; None without a live stage."""
        return None if self._drawn is None else np.asarray(self._drawn)

    def trained(self, name: str) -> np.ndarray | None:
        """Returns the sub-batch's `id`s or `caption_id`s, `[b]`, if known.

        They are in the order drawn.
        """
        return _ordered(self._groups.get("trained", {}), "place").get(name)

    def scored(self, stage: int) -> dict[str, np.ndarray]:
        """Returns arrays `[n]` of the rows that a stage scored, {} without any.

        They are sorted by `number`, the row's place among the rows into the
        stage; `row` is its place in the super-batch; `kept` is true if it
        passed. `learner_loss` and `reference_loss` are as in `selection.Draw`,
        if present there. `id` is present if the batches have ids.
        """
        rows = self._gathered(f"stages/{stage}", "number")
        return rows and rows | {"kept": rows["kept"] > 0}

    def uniform(self, stage: int) -> dict[str, np.ndarray]:
        """Returns losses of the stage's uniform draw, sorted by `place`."""
        return self._gathered(f"stages/{stage}/uniform", "place")

    def _gathered(self, group, key):
        values = self._groups.get(group, {})
        if self._gather is not None:
            values = {name: self._gather(part) for name, part in values.items()}
        return _ordered(values, key)


def _ordered(values, key):
    """Sorts rows by the column `key`, drops repeats, joins halves of ids."""
    if not values:
        return {}
    parts = {name: np.asarray(part) for name, part in values.items()}
    # A worker with several devices may repeat its part.
    _, first = np.unique(parts[key], return_index=True)
    ordered = {name: part[first] for name, part in parts.items()}
    for name in ordered.keys() & {"id", "caption_id"}:
        ids = distribution.join_halves(tf.constant(ordered[name]))
        ordered[name] = ids.numpy()
    return ordered

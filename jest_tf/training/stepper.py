"""`Stepper`: the steps of a model under `fit`, one after another.

It knows in which segment of the plan a step is, fills in what differs from step
to step, and keeps what steps return. The loop itself is each backend's own
(`on_tensorflow.py`, `on_jax.py`).
"""

import dataclasses
import re
import types
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from jest_tf import config as config_lib
from jest_tf import distribution
from jest_tf import embeddings as embeddings_lib
from jest_tf.embeddings import Tensor
from jest_tf.training import flops, step_outputs, sub_batch
from jest_tf.training import step as step_lib

# Metrics of a stage that are NaN if scored embeddings are not finite.
_SCORES = re.compile(
    r"stages/\d+/(score|learner_loss_kept|reference_loss_kept)"
)


class NotFinite(ValueError):
    """Values of a run are NaN or infinite.

    `names` lists them: "loss", "stages/0/score" or variable names. `values` has
    loss, temperature and bias of the step, where known.
    """

    def __init__(
        self, names: Sequence[str], values: dict[str, float] | None = None
    ):
        super().__init__(
            f"Expected finite numbers. Received: {shorten(names)}; a model has "
            "diverged"
        )
        self.names = tuple(names)
        self.values = dict(values or {})


def not_finite(logs: Mapping[str, Tensor]) -> list[str]:
    """Names the loss and the metrics of stages that are not finite, sorted."""
    return sorted(
        name
        for name, value in logs.items()
        if (name == "loss" or _SCORES.fullmatch(name))
        and not np.isfinite(value)
    )


def shorten(names: Sequence[str]) -> str:
    """Joins the first three names, and counts the others."""
    shown = ", ".join(names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def finder(variables: Sequence[keras.Variable]) -> Callable[[], list[str]]:
    """Returns a function that names the variables that are not finite."""
    watched = [
        variable
        for variable in variables
        if tf.as_dtype(variable.dtype).is_floating
    ]

    def are_finite():
        values = map(embeddings_lib.read, watched)
        return ops.stack([ops.all(ops.isfinite(value)) for value in values])

    model = types.SimpleNamespace(variables=watched)
    compiled = embeddings_lib.standalone(are_finite, model)

    def find():
        flags = np.asarray(compiled()) if watched else ()
        return [
            variable.path
            for variable, is_finite in zip(watched, flags, strict=True)
            if not is_finite
        ]

    return find


class Stepper:
    """The steps of a model, which a `backend.Trainer` runs.

    Args:
        step: the models and options that all steps share.
        plan: the segments of the steps; () trains on every row.
        selection: the funnel of the segments, or None.

    Attributes:
        rows: per-row outputs of the last step, a `step_outputs.RowReport`.
    """

    def __init__(
        self,
        step: step_lib.Step,
        plan: Sequence[config_lib.Segment],
        selection: config_lib.SelectionConfig | None,
    ):
        self.step, self.plan, self.selection = step, plan, selection
        self.metrics = step_outputs.StepMetrics(selection, step.distilled)
        self.rows = step_outputs.RowReport({})
        self._next_step = None
        self._last_logs = {}
        self._specs = {}  # of super-batches, by `Segment.step_kind`
        self._flops = {}

    def change_step(self, **changes) -> None:
        """Replaces fields of `step`."""
        self.step = dataclasses.replace(self.step, **changes)

    def segment_at(self, step: int) -> config_lib.Segment | None:
        """Returns the segment of a step, None without a plan."""
        return config_lib.segment_at(self.plan, step) if self.plan else None

    def begin_fit(self, steps_done: Callable[[], int]) -> None:
        """Forgets the last `fit`; checks that there is a needed reference."""
        self._next_step, self._last_logs = None, {}
        if self.step.optimizer is not None:
            segment = self.segment_at(steps_done())
            dataclasses.replace(self.step, segment=segment).check_reference()

    def begin_execution(
        self, steps_done: Callable[[], int], num_steps: int
    ) -> config_lib.Segment | None:
        """Returns the segment of an execution's steps."""
        # Checks the last execution, so that devices don't wait for Python.
        self.check_scores()
        varies = num_steps > 1 and len(self.plan) > 1
        if self._next_step is None or varies:
            # The last execution may have ended early, with the data.
            self._next_step = steps_done()
        first = self._next_step
        self._next_step += num_steps
        segment = self.segment_at(first)
        for step in range(first + 1, self._next_step) if varies else ():
            if self.segment_at(step).step_kind != segment.step_kind:
                raise ValueError(
                    "`steps_per_execution` must end an execution where a live "
                    f"stage starts or stops scoring, at step {step:,}. Received"
                    f": steps_per_execution={num_steps}, from step {first:,} on"
                )
        return segment

    def run(
        self,
        super_batch: dict[str, Tensor],
        segment: config_lib.Segment | None,
        gathers: bool,
    ) -> tuple[dict, dict]:
        """Runs a step; returns outputs equal on all replicas, and local rows.

        With `gathers`, the first have the trained rows of all processes: Keras
        reads all properties of a saved model, and code outside a step must not
        wait for other processes.
        """
        replicas = distribution.current()
        number = ops.cast(self.step.optimizer.iterations, "int32")
        step = dataclasses.replace(
            self.step,
            segment=segment,
            seed=ops.stack([self.step.options.seed, number]),
            replicas=replicas,
        )
        outputs = step_lib.train_step(step, super_batch)
        self.metrics.count_replaced(super_batch)
        self.metrics.update(outputs.metrics, replicas)
        rows, equal = outputs.rows, {"rows": {}}
        if gathers and "trained" in rows:
            trained = replicas.all_gather(rows.pop("trained"))
            equal["rows"]["trained"] = trained
        if outputs.drawn is not None:
            equal["drawn"] = outputs.drawn
        return equal, rows

    def end_execution(
        self, equal: dict, rows: dict, gather: Callable[[Tensor], Tensor] | None
    ) -> None:
        """Keeps the outputs of an execution's last step."""
        self.rows = step_outputs.RowReport(
            rows | equal["rows"], equal.get("drawn"), gather
        )
        self._last_logs = equal["logs"]

    def check_scores(self) -> None:
        """Raises `NotFinite` if the last scores are not finite."""
        names = [name for name in not_finite(self._last_logs) if name != "loss"]
        if names:
            raise NotFinite(names)

    def test(self, data, num_replicas: int) -> dict[str, Tensor]:
        """Computes the contrastive loss of a batch, in evaluation mode."""
        may_vary = num_replicas == 1
        batch = sub_batch.extract_super_batch(data, num_replicas, may_vary)
        step = dataclasses.replace(
            self.step,
            replicas=distribution.current(),
            options=dataclasses.replace(
                self.step.options, micro_batch_size=None
            ),
        )
        embeddings = embeddings_lib.convert_output(
            "learner", step.learner(batch, training=False)
        )
        reference = None
        if step.options.omitted.needs_reference:
            step.check_reference()
            batch, reference = step_lib.reference_embeddings(step, batch)
        loss = step_lib.contrastive_loss(step, embeddings, batch, reference)
        self.metrics.update({"loss": loss}, step.replicas)
        return {"loss": self.metrics.result("loss")}

    def note_specs(
        self, segment: config_lib.Segment | None, specs: dict
    ) -> None:
        """Notes the specs with which a segment's step is traced."""
        self._specs[segment and segment.step_kind] = segment, specs
        self._flops.pop(segment and segment.step_kind, None)

    def count_flops(self, num_replicas: int) -> dict:
        """Returns `flops.count_step` of the steps traced, by `step_kind`."""
        for kind, (segment, super_batch) in self._specs.items():
            if kind not in self._flops:
                step = dataclasses.replace(self.step, segment=segment)
                self._flops[kind] = flops.count_step(
                    step, super_batch, num_replicas
                )
        return dict(self._flops)

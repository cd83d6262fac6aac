"""Evaluations of a run: the callback that makes them, and their rows."""

import contextlib
import time
from collections.abc import Callable, Mapping

from jest_tf import config as config_lib
from jest_tf import evaluation, models
from jest_tf.data import pictures
from jest_tf.data import stores as stores_lib
from jest_tf.runs import directory, progress, steps


def of_run(
    config: config_lib.TrainConfig,
    stores: Mapping[str, stores_lib.Store],
    learner: models.TwoTower,
    tokenizer: Callable,
    picture: pictures.Form,
) -> dict[str, evaluation.StoreEvaluation]:
    """Returns evaluations of a run's learner, by the name of the store."""
    settings = config.evaluation
    return {
        name: evaluation.StoreEvaluation(
            learner,
            store,
            tokenizer=tokenizer,
            image_size=picture,
            batch_size=settings.batch_size,
            prompts=settings.prompts,
        )
        for name, store in stores.items()
    }


def measure(
    evaluations: Mapping[str, evaluation.StoreEvaluation],
) -> dict[str, float]:
    """Measures on all stores, named `eval/<store>/<measure>`."""
    return {
        f"eval/{name}/{measure}": value
        for name, one in evaluations.items()
        for measure, value in one.measure().items()
    }


class Evaluation(steps.StepCallback):
    """Evaluates every so many steps and after the last, each step once.

    Args:
        evaluations: to make, by the name of the store.
        workdir: the run directory; `evaluation.jsonl` gets a row a step.
        every_steps: steps between two evaluations; None is the last step only.
        start_step: steps done before this `fit`.
        costs: maps a step to the costs of the steps up to it, for the row.
        report: called with the step and the measures.
        weights: a context manager that gives the learner the weights to
            measure.
    """

    def __init__(
        self,
        evaluations: Mapping[str, evaluation.StoreEvaluation],
        workdir: str,
        *,
        every_steps: int | None = None,
        start_step: int = 0,
        costs: Callable[[int], dict[str, float]],
        report: Callable[[int, dict[str, float]], None],
        weights: Callable = contextlib.nullcontext,
    ):
        super().__init__(start_step)
        self._evaluations = evaluations
        self._workdir = workdir
        self._every_steps = every_steps
        self.seconds = 0.0
        self._costs = costs
        self._report = report
        self._weights = weights

    def on_train_begin(self, logs=None):
        """Makes an evaluation that a killed process still owed."""
        self.previous = max(0, self.step - self.model.steps_per_execution)
        if self.step and self.passed(self._every_steps):
            self.run(self.step)

    def on_train_batch_end(self, batch, logs=None):
        """Evaluates if it is due."""
        super().on_train_batch_end(batch, logs)
        if self.passed(self._every_steps):
            self.run(self.step)

    def on_train_end(self, logs=None):
        """Evaluates the last step."""
        self.run(self.step)

    def run(self, step: int) -> dict[str, float]:
        """Evaluates the learner unless `step` is done; returns the measures."""
        rows = directory.read_rows(self._workdir, directory.EVALUATION_FILE)
        for row in rows:
            if row["step"] == step:
                return {n: row[n] for n in row if n.startswith("eval/")}
        if not self._evaluations:
            return {}
        started = time.monotonic()
        with self._weights():
            results = measure(self._evaluations)
        self.seconds += time.monotonic() - started
        row = {"step": step, **results, **self._costs(step)}
        directory.append(self._workdir, directory.EVALUATION_FILE, row)
        for name in self._evaluations:
            progress.say(f"step {step:,}  {describe(name, results)}")
        self._report(step, results)
        return results


def describe(store: str, results: Mapping[str, float]) -> str:
    """Formats the headline measures of a store on one line."""
    parts = []
    for measure, title in (
        ("image_to_text/recall@1", "image to text recall@1"),
        ("text_to_image/recall@1", "text to image recall@1"),
        ("zero_shot/accuracy@1", "zero-shot accuracy"),
    ):
        value = results.get(f"eval/{store}/{measure}")
        if value is not None:
            parts.append(f"{title} {value:.3f}")
    return f"{store}: {', '.join(parts)}"

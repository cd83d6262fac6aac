"""Evaluations of a run: the callback that makes them, and their rows."""

import contextlib
import time
import types
from collections.abc import Callable, Mapping

import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import evaluation, models
from jest_tf.data import images
from jest_tf.runs import directory, progress, steps

# Headline measures of a store, where it has them, and their titles.
HEADLINES = (
    ("image_to_text/recall@1", "image to text recall@1"),
    ("image_to_text/mrr", "image to text MRR"),
    ("text_to_image/recall@1", "text to image recall@1"),
    ("text_to_image/mrr", "text to image MRR"),
    ("zero_shot/accuracy@1", "zero-shot accuracy"),
)


class Opened(dict[str, evaluation.StoreEvaluation]):
    """The stores of a run's evaluations, by name."""

    @property
    def measures(self) -> list[str]:
        """Names of the measures, as in `evaluation.jsonl`."""
        return [
            f"eval/{name}/{measure}"
            for name, store in self.items()
            for measure in store.measures
        ]


def open_data(config: config_lib.TrainConfig) -> Opened:
    """Opens `evaluation.data` and `evaluation.stores`."""
    return Opened(evaluation.open_stores(config.evaluation.named, config.data))


class Evaluations:
    """Evaluations of a learner, with its current weights, on opened stores.

    `image_form` is the form of the learner's images, `strategy` its strategy.
    """

    def __init__(
        self,
        config: config_lib.TrainConfig,
        opened: Opened,
        learner: models.TwoTower,
        tokenizer: Callable,
        image_form: images.Form,
        strategy: tf.distribute.Strategy | None = None,
    ):
        self.by_name = opened
        self.encoder = evaluation.Encoder(
            learner, tokenizer, image_form, strategy=strategy
        )

    def measure(self) -> dict[str, float]:
        """Measures on all stores, named `eval/<name>/<measure>`."""
        with self.encoder.fixed():
            return {
                f"eval/{name}/{measure}": value
                for name, store in self.by_name.items()
                for measure, value in store.measure(self.encoder).items()
            }


class Evaluation(steps.StepCallback):
    """Evaluates every `every_steps` steps and after a `fit`, each step once.

    Args:
        evaluations: the evaluations to make.
        workdir: the run directory; `evaluation.jsonl` gets a row per step.
        every_steps: steps between two evaluations; None: only the last step.
        start_step: steps done before this `fit`.
        costs: maps a step to the costs of the steps up to it, for the row.
        report: called with the step and the measures.
        weights: a context manager that gives the learner the weights to
            measure.
        follows: whether `start_step` ended an earlier `fit`; a killed process
            may not have evaluated it.
    """

    def __init__(
        self,
        evaluations: Evaluations,
        workdir: str,
        *,
        every_steps: int | None = None,
        start_step: int = 0,
        costs: Callable[[int], dict[str, float]],
        report: Callable[[int, dict[str, float]], None],
        weights: Callable = contextlib.nullcontext,
        follows: bool = False,
    ):
        super().__init__(start_step)
        self._evaluations = evaluations
        self._workdir = workdir
        self._every_steps = every_steps
        self.seconds = 0.0
        self._started = time.monotonic()
        self._costs = costs
        self._report = report
        self._weights = weights
        self._follows = follows

    def on_train_begin(self, logs=None):
        """Makes an evaluation that a killed process did not make."""
        self.previous = max(0, self.step - 1)
        if self.step and (self._follows or self.passed(self._every_steps)):
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
        """Returns the measures of `step`, which it evaluates only once."""
        rows = directory.read_rows(self._workdir, directory.EVALUATION_FILE)
        for row in rows:
            if row["step"] == step:
                return {n: row[n] for n in row if n.startswith("eval/")}
        if not self._evaluations.by_name:
            return {}
        started = time.monotonic()
        with self._weights():
            results = self._evaluations.measure()
        spent = time.monotonic() - started
        self.seconds += spent
        row = {"step": step, **results, **self._costs(step)}
        directory.append(self._workdir, directory.EVALUATION_FILE, row)
        for name, evaluated in self._evaluations.by_name.items():
            line = describe(name, results, evaluated.chance)
            progress.say(f"step {step:,}  {line}")
        share = self.seconds / (time.monotonic() - self._started)
        progress.say(
            f"step {step:,}  evaluated in {spent:.1f} s; evaluations take "
            f"{share:.1%} of the time"
        )
        self._report(step, results)
        return results


def describe(
    store: str,
    results: Mapping[str, float],
    chance: Mapping[str, float] = types.MappingProxyType({}),
) -> str:
    """Formats the headline measures of a store on a line.

    `chance` has the measures of a model that guesses, as far as known.
    """
    parts = []
    for measure, title in HEADLINES:
        value = results.get(f"eval/{store}/{measure}")
        if value is not None:
            least = chance.get(measure)
            known = "" if least is None else f" (chance {least:.3f})"
            parts.append(f"{title} {value:.3f}{known}")
    return f"{store}: {', '.join(parts)}"

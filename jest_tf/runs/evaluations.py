"""Evaluations of a run: the callback that makes them, and their rows."""

import contextlib
import dataclasses
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import evaluation, files, models
from jest_tf.data import pictures
from jest_tf.data import stores as stores_lib
from jest_tf.runs import directory, progress, steps

# Headline measures of a store, where it has them, and their titles.
HEADLINES = (
    ("image_to_text/recall@1", "image to text recall@1"),
    ("image_to_text/mrr", "image to text MRR"),
    ("text_to_image/recall@1", "text to image recall@1"),
    ("text_to_image/mrr", "text to image MRR"),
    ("zero_shot/accuracy@1", "zero-shot accuracy"),
)


class Opened(NamedTuple):
    """The data of a run's evaluations, by name."""

    stores: Mapping[str, stores_lib.Store]
    entries: Mapping[str, evaluation.EntryEvaluation]


def open_data(config: config_lib.TrainConfig) -> Opened:
    """Opens `evaluation.data` and the entries of `evaluation.suite`.

    Raises:
        ValueError: data cannot be read, or two data sets share a name.
    """
    settings, entries = config.evaluation, {}
    stores = evaluation.open_stores(settings.data, config.data)
    if settings.suite:
        entries = evaluation.open_suite(settings.suite, config.data.index_dir)
    both = sorted({*stores} & {*entries})
    if both:
        raise ValueError(
            "`evaluation.data` and `evaluation.suite` must have different "
            f"names. Received: {', '.join(both)} in both"
        )
    return Opened(stores, entries)


def keep_suite(workdir: str, opened: Opened) -> None:
    """Writes the entries to `suite.json`, if there are any."""
    entries = {
        name: dataclasses.asdict(entry.entry)
        for name, entry in opened.entries.items()
    }
    if entries:
        directory.write(workdir, directory.SUITE_FILE, entries)


class Evaluations:
    """Evaluations of a learner, with its current weights, on opened data.

    `picture` is the form of the learner's pictures, `strategy` its strategy.
    """

    def __init__(
        self,
        config: config_lib.TrainConfig,
        opened: Opened,
        learner: models.TwoTower,
        tokenizer: Callable,
        picture: pictures.Form,
        strategy: tf.distribute.Strategy | None = None,
    ):
        encoder = evaluation.Encoder(
            learner, tokenizer, picture, strategy=strategy
        )
        self.by_name: dict = {
            name: evaluation.StoreEvaluation(encoder, store)
            for name, store in opened.stores.items()
        }
        self._fixed = contextlib.nullcontext
        for name, entry in opened.entries.items():
            entry.attach(encoder)
            self.by_name[name] = entry
            self._fixed = encoder.fixed

    def measure(self, folder: str = "") -> dict[str, float]:
        """Measures on all data, named `eval/<name>/<measure>`.

        With a suite, embeddings are kept in `folder` until all is measured.
        """
        with self._fixed(folder):
            return {
                f"eval/{name}/{measure}": value
                for name, evaluated in self.by_name.items()
                for measure, value in evaluated.measure().items()
            }


def write_results(output: str, found: Sequence[Mapping]) -> None:
    """Writes results, as `evaluation.results` returns them, into a folder.

    `evaluation.json` has all of them. `evaluation/` has a file for each, which
    `clip_benchmark build` takes. Files of earlier results, which the old
    `evaluation.json` lists, are deleted.
    """
    folder = directory.path(output, directory.RESULTS_FOLDER)
    if directory.has(output, directory.RESULTS_FILE):
        # A file that this command did not write lists nothing to delete.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            for result in directory.read(output, directory.RESULTS_FILE):
                files.remove(files.inside(folder, _file_of(result)))
    directory.write(output, directory.RESULTS_FILE, found)
    for result in found:
        directory.write(folder, _file_of(result), result)


def _file_of(result):
    name = "_".join(result[part] for part in ("dataset", "task", "language"))
    return f"{name.replace('/', '-')}.json"


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
            results = self._evaluations.measure(
                directory.path(self._workdir, directory.EMBEDDINGS_FOLDER)
            )
        spent = time.monotonic() - started
        self.seconds += spent
        row = {"step": step, **results, **self._costs(step)}
        directory.append(self._workdir, directory.EVALUATION_FILE, row)
        for name, evaluated in self._evaluations.by_name.items():
            found = describe(name, results, evaluated.chance)
            progress.say(f"step {step:,}  {found}")
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

"""Evaluations of a run: the callback that makes them, and their rows."""

import contextlib
import time
import types
from collections.abc import Callable, Mapping, Sequence

from jest_tf import evaluation
from jest_tf.evaluation import slices as slices_lib
from jest_tf.runs import directory, progress, steps

# Headline measures of a store, where it has them, and their titles.
HEADLINES = (
    ("image_to_text/recall@1", "image to text recall@1"),
    ("image_to_text/mrr", "image to text MRR"),
    ("text_to_image/recall@1", "text to image recall@1"),
    ("text_to_image/mrr", "text to image MRR"),
    ("zero_shot/accuracy@1", "zero-shot accuracy"),
)

# By these, the first that a store has, slices and changes are told.
_COMPARED = "image_to_text/mrr", "zero_shot/accuracy@1"
# Opened stores by name.
Stores = Mapping[str, evaluation.StoreEvaluation]


def measure(stores: Stores, encoder: evaluation.Encoder) -> dict[str, float]:
    """Measures a learner on all stores; names are `eval/<name>/<measure>`."""
    with encoder.fixed():
        return {
            f"eval/{name}/{measure}": value
            for name, store in stores.items()
            for measure, value in store.measure(encoder).items()
        }


def measure_slices(
    stores: Stores, encoder: evaluation.Encoder, fields: Sequence[str]
) -> dict[str, list[evaluation.Slice]]:
    """Measures the slices of all stores by `fields`, by the store's name.

    Raises ValueError if no store has a field, before anything is embedded.
    """
    opened = [store.store for store in stores.values()]
    columns = slices_lib.read_columns(opened, fields)
    with encoder.fixed():
        return {
            name: slices_lib.measure_slices(store, store.embed(encoder), each)
            for (name, store), each in zip(stores.items(), columns, strict=True)
        }


def weakest(
    slices: Sequence[evaluation.Slice],
) -> tuple[str, list[tuple[evaluation.Slice, evaluation.Estimate]]]:
    """Returns the measure that slices are compared by, and them, lowest first.

    Slices without this measure are left out.
    """
    for measure in _COMPARED:
        found = [
            (some, some.measures[measure])
            for some in slices
            if measure in some.measures
        ]
        if found:
            return measure, sorted(found, key=lambda pair: pair[1])
    return "", []


class Evaluation(steps.StepCallback):
    """Evaluates every `every_steps` steps and after a `fit`, each step once.

    `evaluation.jsonl` gets a row per step, with the `costs` of the steps up to
    it. `report` is called with the step and the measures; `weights` is a
    context manager that gives the learner the weights to measure. If
    `start_step` ended an earlier `fit`, which this one `follows`, a killed
    process may not have evaluated it. `from_start` evaluates step 0 as well,
    of a learner that another model's weights begin.
    """

    def __init__(
        self,
        stores: Stores,
        encoder: evaluation.Encoder,
        workdir: str,
        *,
        every_steps: int | None = None,
        start_step: int = 0,
        costs: Callable[[int], dict[str, float]],
        report: Callable[[int, dict[str, float]], None],
        weights: Callable = contextlib.nullcontext,
        follows: bool = False,
        from_start: bool = False,
    ):
        super().__init__(start_step)
        self._stores = stores
        self._encoder = encoder
        self._workdir = workdir
        self._every_steps = every_steps
        self.seconds = 0.0
        self._started = time.monotonic()
        self._costs = costs
        self._report = report
        self._weights = weights
        self._follows = follows
        self._from_start = from_start

    def on_train_begin(self, logs=None):
        """Makes an evaluation that a killed process did not make."""
        if self.step and (self._follows or self.is_due(self._every_steps)):
            self.run(self.step)

    def on_train_batch_begin(self, batch, logs=None):
        """Evaluates the start, once all callbacks have begun."""
        if not self.step and self._from_start:
            self.run(0)

    def on_train_batch_end(self, batch, logs=None):
        """Evaluates if it is due."""
        super().on_train_batch_end(batch, logs)
        if self.is_due(self._every_steps):
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
        if not self._stores:
            return {}
        started = time.monotonic()
        # An average begins after the first step.
        with self._weights() if step else contextlib.nullcontext():
            results = measure(self._stores, self._encoder)
        spent = time.monotonic() - started
        self.seconds += spent
        row = {"step": step, **results, **self._costs(step)}
        directory.append(self._workdir, directory.EVALUATION_FILE, row)
        for name, store in self._stores.items():
            line = describe(name, results, store.chance)
            progress.say(f"step {step:,}  {line}")
        share = self.seconds / (time.monotonic() - self._started)
        progress.say(
            f"step {step:,}  evaluated in {spent:.1f} s; evaluations take "
            f"{share:.1%} of the time"
        )
        self._report(step, results)
        return results


def summarize(
    rows: Sequence[Mapping[str, float]], measures: Mapping[str, float]
) -> str:
    """Formats what a run ends with; "" without evaluations.

    Of a run that evaluated its start, the change on each store from step 0 to
    the last of the `rows`; of others, the first rank among the `measures`.
    """
    if not rows or rows[0]["step"]:
        ranks = [name for name in measures if name.endswith("/mrr")]
        names = [*ranks, *measures][:1]
        return "".join(f"{name} {measures[name]:.4f}" for name in names)
    first, last = rows[0], rows[-1]
    stores = dict.fromkeys(
        name.split("/")[1] for name in first if name.startswith("eval/")
    )
    found = []
    for store in stores:
        names = (f"eval/{store}/{measure}" for measure in _COMPARED)
        name = next(name for name in names if name in first)
        found.append(f"{name} {first[name]:.3f} to {last[name]:.3f}")
    return f"from the start to the end {', '.join(found)}"


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

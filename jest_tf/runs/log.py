"""What a run did and what it cost, step by step, while `fit` runs.

Examples are counted three times: *drawn* by the stream, *scored* by the
selection, *trained* on. FLOPs are those of the traced steps.

Of a line of the log, `seconds` and what is named `time/...`, `memory/...` and
`energy/...` are measured; everything else is a function of the settings and the
step, and the same in a run that was killed and continued.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

import keras
import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.runs import checkpoints, draw_log, progress, resources

# Seconds between two lines of progress: on a terminal, where they overwrite
# each other, and in a file.
_TERMINAL_SECONDS, _FILE_SECONDS = 0.5, 15.0

_MEASURED = ("time/", "memory/", "energy/")


def digest(ids: np.ndarray) -> str:
    """64 bits of a set of ids, as 16 hexadecimal digits.

    Equal for equal sets in any order, so that two draws can be compared
    whatever order the rows lie in.

    Args:
        ids: integers, any shape.
    """
    ordered = np.sort(np.asarray(ids, "<i8"), axis=None)
    return hashlib.blake2b(ordered.tobytes(), digest_size=8).hexdigest()


def examples_at(
    config: config_lib.TrainConfig, step: int, stopped_at: int | None = None
) -> dict[str, int]:
    """Examples drawn, scored and trained in the first `step` steps.

    Args:
        config: the run.
        step: steps done.
        stopped_at: `JESTModel.stopped_at`.
    """
    size = config.data.super_batch_size
    return {
        "examples/drawn": step * size,
        "examples/scored": config.selection.num_scored(step, size, stopped_at),
        "examples/trained": step * config.batch_size,
        **_cascaded_at(config, step),
    }


def _cascaded_at(config, step):
    """Examples that a cascade chose the drawn ones from, if there is one."""
    size = config.cascade.hyper_batch_size
    return {"examples/cascaded": step * size} if size else {}


def from_clock(name: str) -> bool:
    """Whether a number of the log is measured, see above."""
    return name == "seconds" or name.startswith(_MEASURED)


class StepFlops:
    """FLOPs of the steps of a run, by what they choose by.

    They are constants of the run, known once a step has been traced, and kept
    in `flops.json`, so that a run that is continued knows them from the start.

    Args:
        config: the run.
        path: of `flops.json`.
    """

    def __init__(self, config: config_lib.TrainConfig, path: str):
        self._selection = config.selection
        self._path = path
        self._of = {}
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                self._of = dict(enumerate(json.load(file)))

    def take(self, found: dict) -> None:
        """Takes up what `JESTModel.step_flops` has found."""
        known = dict(self._of)
        for number, kind in enumerate(self._selection.kinds):
            # A model without a sub-batch chooses by nothing.
            columns = found.get(kind if kind.batch_size else None)
            if columns is not None:
                self._of[number] = columns
        if self._of == known:
            return
        of_kinds = [
            self._of.get(number) for number in range(len(self._selection.kinds))
        ]
        with files.written_whole(self._path) as partial:
            with open(partial, "w", encoding="utf-8") as file:
                json.dump(of_kinds, file, indent=2)
                file.write("\n")

    def at(self, step: int, stopped_at: int | None = None) -> dict[str, int]:
        """FLOPs of the first `step` steps, `flops/...`; none if not known."""
        kinds = self._selection.kinds
        totals = {}
        steps = self._selection.steps_by_kind(step, stopped_at)
        for kind, number in steps.items():
            columns = self._of.get(kinds.index(kind))
            if columns is None:
                return {}
            for name, value in columns.items():
                name = f"flops/{name}"
                totals[name] = totals.get(name, 0) + number * value
        return totals


class InputWait:
    """How long the training step waits for its input.

    Attributes:
        seconds: that whoever iterates the watched dataset was blocked.
    """

    def __init__(self):
        self.seconds = 0.0
        self._asked_at = 0.0

    def watch(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """The same dataset, with the time each element is waited for counted.

        It must be iterated as it is, under the default strategy: others fetch
        ahead, and what would be counted is how long their fetching waits.
        """

        def ask(_):
            return tf.numpy_function(self._ask, [], tf.bool)

        def get(asked, batch):
            del asked
            tf.numpy_function(self._get, [], tf.bool)
            return batch

        # A zip asks one input after the other, on the thread that wants the
        # element; functions with side effects aren't run ahead of that.
        watched = tf.data.Dataset.zip(
            tf.data.Dataset.counter().map(ask), dataset
        ).map(get)
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        return watched.with_options(options)

    def _ask(self):
        self._asked_at = time.monotonic()
        return np.bool_(True)

    def _get(self):
        self.seconds += time.monotonic() - self._asked_at
        return np.bool_(True)


class Meters:
    """What a run measures beside its steps.

    Attributes:
        probe: times the parts of a step, `step_timing.Probe`; None doesn't.
        energy: `resources.EnergyMeter`; None doesn't.
        cascade_flops: FLOPs of a step's stage 0, `cascade.flops`.
        clocks: what has `seconds`, spent in this process, by name.
    """

    def __init__(
        self,
        probe: Callable[[], dict[str, float]] | None = None,
        energy: resources.EnergyMeter | None = None,
        cascade_flops: int = 0,
    ):
        self.probe = probe
        self.energy = energy
        self.cascade_flops = cascade_flops
        self.clocks = {}
        # The meter of a process outlives a rollback, these don't.
        self._joules_before = energy.joules() if energy else 0.0

    def read(self, before: dict) -> dict[str, int | float]:
        """What a line tells: all since the run began, but peaks of memory.

        Args:
            before: the last line of the process before.
        """
        values = {
            f"time/{name}_seconds": clock.seconds
            for name, clock in self.clocks.items()
        }
        if self.energy is not None:
            spent = self.energy.joules() - self._joules_before
            values["energy/joules"] = spent
        for name, value in values.items():
            values[name] = round(before.get(name, 0.0) + value, 3)
        return values | resources.peak_memory()


class Ledger(checkpoints.StepCallback):
    """Writes a run's log while `fit` runs, and shows how far it is.

    Every `evaluation.log_every_steps` steps, and after the last, a line of
    `metrics.jsonl` and the same numbers for TensorBoard: the model's metrics
    over the steps since the line before, `select/digest` of the step's own
    draw, examples drawn, scored and trained, and seconds of training so far.
    `time/step_seconds` is the mean of a step and `time/input_wait_share` the
    part of it that went by waiting for input, both without the first execution
    of a process, which is traced, and without evaluating and saving.
    `evaluation.log_ids` adds the ids of these draws in `draws.jsonl`.
    docs/ledger.md says what each column counts.

    Args:
        config: the run.
        workdir: the run directory.
        start_step: steps already done.
        input_wait: what watches the dataset; None leaves its share out.
        meters: what else is measured; None is `Meters()`.
        telemetry: what follows the selection; None for nobody.
        stream: where progress is shown; None is standard error.
    """

    def __init__(
        self,
        config: config_lib.TrainConfig,
        workdir: str,
        *,
        start_step: int = 0,
        input_wait: InputWait | None = None,
        meters: Meters | None = None,
        telemetry: draw_log.Telemetry | None = None,
        stream: TextIO | None = None,
    ):
        super().__init__(start_step)
        self._config = config
        self._workdir = workdir
        self._start_step = start_step
        self._telemetry = telemetry
        self._stream = stream or sys.stderr
        self._before = _last_row(self._path(checkpoints.METRICS_FILE))
        self._flops = StepFlops(config, self._path(checkpoints.FLOPS_FILE))
        self._counts_flops = True
        self._meters = meters or Meters()
        self._parts = {}
        self._writer = tf.summary.create_file_writer(
            os.path.join(workdir, checkpoints.TENSORBOARD_FOLDER)
        )
        self._started = self._shown = time.monotonic()
        self._restored = None
        self._times = _Times(input_wait)

    def on_train_begin(self, logs=None):
        """Starts the clock."""
        self._started = self._shown = time.monotonic()
        if self._telemetry is not None:
            self._telemetry.begin(self.model)
        if self._start_step:
            variables = self.model.metrics_variables
            self._restored = [variable.numpy() for variable in variables]

    def on_epoch_begin(self, epoch, logs=None):
        """Takes up the means where a checkpoint left them."""
        super().on_epoch_begin(epoch, logs)
        # Keras resets them between the start of the training and this.
        if self._restored is not None:
            variables = self.model.metrics_variables
            for variable, value in zip(variables, self._restored, strict=True):
                variable.assign(value)
            self._restored = None

    def on_train_batch_begin(self, batch, logs=None):
        """Starts the clock of a step."""
        self._times.begin()

    def on_train_batch_end(self, batch, logs=None):
        """Writes a line if the step is due."""
        super().on_train_batch_end(batch, logs)
        self._times.end(self.step - self.previous, self._take_flops())
        settings = self._config.evaluation
        if self._meters.probe is not None and (
            not self._parts
            or (settings.every_steps and self.passed(settings.every_steps))
        ):
            self._parts = self._meters.probe()
        is_due = (
            self.passed(settings.log_every_steps)
            or self.step == self._config.steps
        )
        followed = {}
        if self._telemetry is not None:
            followed = self._telemetry.follow(
                self.previous, self.step, is_due, self._writer
            )
        if is_due:
            self._write(self.step, followed)
        self._show(self.step, logs)

    def on_train_end(self, logs=None):
        """Leaves the last line of progress standing, and sums up."""
        if self._stream.isatty():
            self._stream.write("\n")
        share = self._times.total().get("time/input_wait_share")
        if share is not None:
            self._stream.write(
                f"waited for input in {share:.1%} of the steps' time\n"
            )

    def costs_at(self, step: int) -> dict[str, int | float]:
        """Examples, FLOPs and seconds of the first `step` steps."""
        return {
            **self._counts_at(step),
            "seconds": round(self._seconds(), 3),
        }

    def _counts_at(self, step):
        stopped_at = self.model.stopped_at
        of_graph = self._flops.at(step, stopped_at)
        of_stage_0 = step * self._meters.cascade_flops
        return {
            **examples_at(self._config, step, stopped_at),
            **of_graph,
            # Without the others it would pass for all that there is.
            **(
                {"flops/cascade": of_stage_0} if of_graph and of_stage_0 else {}
            ),
        }

    def _take_flops(self):
        """Counts what has been traced; how many kinds of steps that is."""
        if not self._counts_flops:
            return 0
        try:
            found = self.model.step_flops()
        except ValueError as error:
            self._counts_flops = False
            self._stream.write(f"FLOPs are not counted: {error}\n")
            return 0
        self._flops.take(found)
        return len(found)

    def _write(self, step, followed):
        row = {"step": step}
        silent = {
            metric.name
            for metric in self.model.metrics
            if isinstance(metric, keras.metrics.Mean)
            and not metric.count.numpy()
        }
        for name, value in self.model.get_metrics_result().items():
            if name in silent:  # no draw was scored since the line before
                continue
            row[name if "/" in name else f"train/{name}"] = float(value)
        self.model.reset_metrics()
        ids = self.model.drawn_ids
        if ids is not None:
            row["select/digest"] = digest(ids.numpy())
        row |= followed
        row |= self._counts_at(step)
        row |= self._times.since_last()
        row |= self._parts
        row |= self._meters.read(self._before)
        row["seconds"] = round(self._seconds(), 3)
        self._append(checkpoints.METRICS_FILE, row)
        if ids is not None and self._config.evaluation.log_ids:
            drawn = {"step": step, "ids": ids.numpy().tolist()}
            self._append(checkpoints.DRAWS_FILE, drawn)
        self.log_scalars(step, row)

    def log_scalars(self, step: int, values: dict) -> None:
        """Hands the numbers among `values` to TensorBoard."""
        with self._writer.as_default(step=step):
            for name, value in values.items():
                if name != "step" and not isinstance(value, str):
                    # FLOPs are more than an integer tensor holds.
                    tf.summary.scalar(name, float(value))
        self._writer.flush()  # a killed process takes along what isn't

    def _show(self, step, logs):
        now = time.monotonic()
        on_terminal = self._stream.isatty()
        is_last = step == self._config.steps
        pause = _TERMINAL_SECONDS if on_terminal else _FILE_SECONDS
        if now - self._shown < pause and not is_last:
            return
        self._shown = now
        done = step - self._start_step
        left = (now - self._started) / done * (self._config.steps - step)
        line = (
            f"step {step:,} of {self._config.steps:,}"
            f"  loss {float((logs or {}).get('loss', np.nan)):.4f}"
            f"  {done / (now - self._started):.2f} steps/s"
            f"  {progress.clock(left)} left"
        )
        end = "" if on_terminal else "\n"
        start = "\r\033[K" if on_terminal else ""
        self._stream.write(f"{start}{line}{end}")
        self._stream.flush()

    def _seconds(self):
        before = self._before.get("seconds", 0.0)
        return before + time.monotonic() - self._started

    def _append(self, name, row):
        with open(self._path(name), "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _path(self, name):
        return os.path.join(self._workdir, name)


class _Times:
    """Seconds of steps and of waiting, since the last line and in all."""

    def __init__(self, input_wait):
        self._input_wait = input_wait
        self._kinds = None
        self._began_at = self._waited_before = 0.0
        # Steps, their seconds, and the seconds waited.
        self._line, self._all = np.zeros(3), np.zeros(3)

    def begin(self):
        self._began_at, self._waited_before = time.monotonic(), self._waited()

    def end(self, steps, kinds):
        """Counts steps, unless a kind of them has just been traced."""
        spent = time.monotonic() - self._began_at
        if kinds == self._kinds:
            waited = self._waited() - self._waited_before
            self._line += (steps, spent, waited)
            self._all += (steps, spent, waited)
        self._kinds = kinds

    def since_last(self):
        values = self._values(self._line)
        self._line = np.zeros(3)
        return values

    def total(self):
        return self._values(self._all)

    def _waited(self):
        return self._input_wait.seconds if self._input_wait else 0.0

    def _values(self, sums):
        steps, spent, waited = sums
        if not spent:
            return {}
        values = {"time/step_seconds": round(spent / steps, 6)}
        if self._input_wait:
            values["time/input_wait_share"] = round(waited / spent, 6)
        return values


def read_log(path: str) -> list[dict]:
    """The lines of a `.jsonl` file that a run wrote."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _last_row(path):
    rows = read_log(path) if os.path.isfile(path) else []
    return rows[-1] if rows else {}

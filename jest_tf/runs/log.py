"""The log of a run: what its steps did and cost, written while `fit` runs.

`seconds` and the columns `time/` and `memory/` are measured; the others are a
function of the settings and the step, even in a run that was killed.
"""

import collections
import hashlib
import resource
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import distribution, files
from jest_tf import losses as losses_lib
from jest_tf.config import tables
from jest_tf.runs import (
    bootstrap,
    costs,
    directory,
    draw_log,
    progress,
    step_timing,
    steps,
)

# Least lead of the chosen rows' score over a uniform draw's, as a share of the
# reference's loss on the dropped rows. The lead is above 0.3 in
# configs/quickstart_jest.py, and below 0.01 with a reference of two steps.
_LEAST_LIFT = 0.05
# Doubtful rows of the log in succession that lead to a warning.
_PATIENCE = 3
# Steps beyond the warm-up, and rows of the log, that show that nothing is
# learned: the loss is less than `_NEAR` below chance and falls by less than
# `_FALL`, both as shares. In configs/quickstart_uniform.py at a rate of 2, it
# is 7e-5 below and falls by 1e-5. At the recipe's rate it is then 3e-3 below
# and falls by 4e-3; with the sigmoid loss, 8e-4 and 6e-4.
_STEPS_AT_CHANCE, _ROWS_AT_CHANCE = 100, 4
_NEAR, _FALL = 1e-3, 1e-4
AT_CHANCE = (
    "the loss is no better than guessing, and is not falling: the learner has "
    "probably diverged; start another run with a lower "
    "`optimizer.learning_rate`"
)


def is_at_chance(
    config: config_lib.TrainConfig, losses: Sequence[tuple[int, float]]
) -> bool | None:
    """Returns whether a run's last losses are those of chance, and do not fall.

    `losses` has the step and `train/loss` of each row of the log. None if that
    is not known: too early, if the loss uses the reference, or with a loss of
    the user's.
    """
    level = losses_lib.chance(config.model.loss, config.selection.batch_size)
    if level is None or config.loss_needs_reference:
        return None
    every = config.evaluation.log_every_steps
    count = max(_ROWS_AT_CHANCE, -(-_STEPS_AT_CHANCE // every))
    begun = config.optimizer.warmup_steps + every
    values = [loss for step, loss in losses[-count:] if step >= begun]
    if len(values) < count:
        return None
    before, after = np.array_split(values, 2)
    fall = 1.0 - np.mean(after) / np.mean(before)
    return bool(np.mean(values) > (1.0 - _NEAR) * level and fall < _FALL)


def doubt(row: dict[str, float], stage: int) -> str:
    """Returns why a row of the log makes a stage look pointless, or "".

    Returns "" for a row without the reference's losses, as only a reference
    can be doubted.
    """
    values = {
        name.removeprefix(f"stages/{stage}/"): value
        for name, value in row.items()
        if name.startswith(f"stages/{stage}/")
    }
    if "reference_loss_kept" not in values:
        return ""
    score, uniform = values["score"], values["uniform_score"]
    # An untrained learner finds all rows about equally hard.
    loss, kept = values["reference_loss_dropped"], values["reference_loss_kept"]
    if score - uniform < _LEAST_LIFT * abs(loss):
        return (
            f"the rows that stage {stage} chooses score {score:.3g} and "
            f"uniform rows {uniform:.3g}, so the choice is nearly uniform: is "
            "the reference trained, and on pairs like these?"
        )
    learner = values.get("learner_loss_kept")
    if learner is not None and learner <= kept:
        return (
            "the learner has passed its reference, even on the rows that stage "
            f"{stage} chooses (losses {learner:.3g} and {kept:.3g}): take a "
            "better reference, renew it (docs/bootstrap.md), or end the stage "
            f"with `selection.stages.{stage}.last_step`"
        )
    return ""


def digest(ids: np.ndarray) -> str:
    """Hashes a set of integer ids, of any shape, to 16 hexadecimal digits."""
    ordered = np.sort(np.asarray(ids, "<i8"), axis=None)
    return hashlib.blake2b(ordered.tobytes(), digest_size=8).hexdigest()


def peak_memory() -> dict[str, int]:
    """Returns peak bytes in use since the process started.

    `memory/host_peak_rss_bytes` is of this process; `memory/device_peak_bytes`,
    if devices report it, is of the fullest device.
    """
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In KiB, but in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    memory = {"memory/host_peak_rss_bytes": largest * unit}
    if peaks := distribution.peak_memory():
        memory["memory/device_peak_bytes"] = max(peaks)
    return memory


class Ledger(steps.StepCallback):
    """Writes the rows of a run's log, and shows its progress.

    Every `evaluation.log_every_steps` steps, and after the last,
    `metrics.jsonl` and TensorBoard get a row: the model's metrics since the
    last row, `select/digest` of the step's draw, counts of examples, FLOPs
    and seconds. `time/step_seconds` and `time/input_wait_share` exclude
    tracing, evaluating and saving. `evaluation.log_ids` adds the ids of these
    draws to `draws.jsonl`. docs/logs.md describes each column.

    `stored_flops` maps a step to the FLOPs of the stored stages up to there.
    The metrics go on from the `state` of a checkpoint. The clock goes on from
    `started` or from `before`, this process's ledger of the earlier steps,
    whose time since its last row is carried over; else it starts with training.
    `spent` has functions that return the seconds spent by this process, by
    column; rows have the totals of the run.
    """

    def __init__(
        self,
        config: config_lib.TrainConfig,
        workdir: str,
        *,
        start_step: int = 0,
        telemetry: draw_log.Telemetry | None = None,
        input_wait: step_timing.InputWait | None = None,
        stored_flops: Callable[[int], int] = lambda step: 0,
        renewals: Sequence[bootstrap.Renewal] = (),
        state: dict[str, np.ndarray] | None = None,
        started: float | None = None,
        before: "Ledger | None" = None,
        spent: Mapping[str, Callable[[], float]] = types.MappingProxyType({}),
    ):
        super().__init__(start_step)
        self._config = config
        self._workdir = workdir
        self._telemetry = telemetry
        self._stored_flops = stored_flops
        self._renewals = renewals
        self._state = state
        self._progress = progress.Progress("training", "steps")
        rows = directory.read_rows(workdir, directory.METRICS_FILE)
        self._before = rows[-1] if rows else {}
        self._losses = [(row["step"], row["train/loss"]) for row in rows]
        self._said_chance = False
        self._flops = costs.StepFlops(config, workdir, start_step)
        self._counts_flops = True
        # Doubtful rows of the log in succession, by stage.
        self._doubtful = collections.Counter()
        self._writer = tf.summary.create_file_writer(
            files.appendable(
                directory.path(workdir, directory.TENSORBOARD_FOLDER)
            )
        )
        self._spent = spent
        self._started = started
        self._written = None  # time of the last row, and spent until then
        if before is not None:
            self._go_on(before)
        self._times = step_timing.StepTimes(input_wait)

    def close(self) -> None:
        """Closes TensorBoard's file."""
        self._writer.close()

    def state(self) -> dict[str, np.ndarray]:
        """Returns the running metrics, which a checkpoint stores."""
        return {
            f"{metric.name}/{number}": variable.numpy()
            for metric in self.model.step_metrics
            for number, variable in enumerate(metric.variables)
        }

    def on_train_begin(self, logs=None):
        """Starts the clock, unless it is running."""
        if self._started is None:
            self._started = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        """Restores the checkpoint's metrics, which `fit` resets."""
        state, self._state = self._state, None
        for metric in self.model.step_metrics if state else ():
            for number, variable in enumerate(metric.variables):
                name = f"{metric.name}/{number}"
                if name in state:  # else its stage begins with this segment
                    variable.assign(state[name])

    def on_train_batch_begin(self, batch, logs=None):
        """Starts the clock of a step."""
        self._times.begin()

    def on_train_batch_end(self, batch, logs=None):
        """Writes a row if it is due."""
        super().on_train_batch_end(batch, logs)
        segment = config_lib.segment_at(self._config.plan, self.step - 1)
        if self._times.end(segment.step_kind):
            self._take_flops()
        is_due = (
            self.is_due(self._config.evaluation.log_every_steps)
            or self.step == self._config.steps
        )
        followed = {}
        if self._telemetry is not None:
            followed = self._telemetry.follow(self.model, self.step, is_due)
        if is_due:
            self._write(self.step, followed)
        loss = float((logs or {}).get("loss", np.nan))
        self._progress(self.step, self._config.steps, f"loss {loss:.4f}")

    def on_train_end(self, logs=None):
        """Ends the progress, and reports the waiting for input."""
        self._progress.close()
        share = self._times.total().get("time/input_wait_share")
        if share is not None:
            progress.say(f"waited for input in {share:.1%} of the steps' time")

    def costs_at(self, step: int) -> dict[str, int | float]:
        """Returns examples, FLOPs and seconds of the first `step` steps."""
        return {**self._counts_at(step), "seconds": round(self._seconds(), 3)}

    def log_scalars(self, step: int, values: dict) -> None:
        """Writes the numbers among `values` to TensorBoard."""
        with self._writer.as_default(step=step):
            for name, value in values.items():
                if name != "step" and not isinstance(value, str):
                    # FLOPs may overflow an integer tensor.
                    tf.summary.scalar(name, float(value))
        self._writer.flush()  # or a kill would lose them

    def _counts_at(self, step):
        counts = costs.examples_at(self._config, step)
        flops = self._flops.at(step)
        # Without the step's FLOPs, the following would look like the total.
        if flops and self._config.selection.stored:
            flops["flops/stored"] = self._stored_flops(step)
        if self._config.bootstrap.renew_at:
            past = [
                renewal for renewal in self._renewals if renewal.step < step
            ]
            counts["examples/embedded"] = sum(
                renewal.images for renewal in past
            )
            if flops:
                flops["flops/renewals"] = sum(renewal.flops for renewal in past)
            if past:
                counts["bootstrap/recognised"] = past[-1].recognised
        return counts | flops

    def _take_flops(self):
        if not self._counts_flops:
            return
        try:
            self._flops.take(self.model.step_flops())
        except ValueError as error:
            self._counts_flops = False
            progress.say(f"FLOPs are not counted: {error}")

    def _go_on(self, before):
        """Takes over a ledger's clock and the time spent since its last row."""
        written = before._written
        if written is None:  # it wrote no row
            self._before = before._before
            written = before._started, dict.fromkeys(before._spent, 0.0)
        self._started, spent = written
        self._before = self._before | {
            name: self._before.get(name, 0.0) + before._spent[name]() - value
            for name, value in spent.items()
        }

    def _write(self, step, followed):
        row = {"step": step}
        silent = {
            metric.name
            for metric in self.model.metrics
            if isinstance(metric, keras.metrics.Mean)
            and not metric.count.numpy()
        }
        for name, value in self.model.get_metrics_result().items():
            if name not in silent:  # else no draw was scored since the last row
                row[name if "/" in name else f"train/{name}"] = float(value)
        self.model.reset_metrics()
        ids = self.model.drawn_ids
        if ids is not None:
            row["select/digest"] = digest(np.asarray(ids))
        self._losses.append((step, row["train/loss"]))
        at_chance = is_at_chance(self._config, self._losses)
        if at_chance is not None:
            row["train/at_chance"] = int(at_chance)
        row |= followed
        row |= self._counts_at(step)
        row |= self._times.since_last()
        spent = {name: count() for name, count in self._spent.items()}
        self._written = time.monotonic(), spent
        row |= {
            name: round(self._before.get(name, 0.0) + value, 3)
            for name, value in spent.items()
        }
        if self._config.bootstrap.renew_at:
            row["time/renewal_seconds"] = sum(
                renewal.seconds for renewal in self._renewals
            )
        row |= peak_memory()
        row["seconds"] = round(self._seconds(), 3)
        directory.append(self._workdir, directory.METRICS_FILE, row)
        if ids is not None and self._config.evaluation.log_ids:
            drawn = {"step": step, "ids": np.asarray(ids).tolist()}
            directory.append(self._workdir, directory.DRAWS_FILE, drawn)
        self.log_scalars(step, row)
        self._say_doubt(step, row)
        if at_chance and not self._said_chance:
            self._said_chance = True
            progress.say(f"warning: step {step:,}: {AT_CHANCE}")

    def _say_doubt(self, step, row):
        """Warns once that a stage is pointless, if the last rows agree."""
        for stage, settings in enumerate(self._config.selection.stages):
            # Scores by a user's criterion have a scale of their own.
            is_known = settings.criterion in tables.CRITERIA
            if not is_known or self._doubtful[stage] == _PATIENCE:
                continue
            text = doubt(row, stage)
            self._doubtful[stage] = self._doubtful[stage] + 1 if text else 0
            if self._doubtful[stage] == _PATIENCE:
                progress.say(f"warning: step {step:,}: {text}")

    def _seconds(self):
        before = self._before.get("seconds", 0.0)
        now = time.monotonic()
        return before + now - (self._started or now)

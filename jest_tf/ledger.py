"""What a run did and what it cost, step by step, while `fit` runs.

Examples are counted three times: *drawn* by the stream, *scored* by the
selection, *trained* on. FLOPs and seconds by phase are not here.
"""

import hashlib
import json
import os
import sys
import time
from typing import TextIO

import keras
import numpy as np
import tensorflow as tf

from jest_tf import checkpoint
from jest_tf import config as config_lib

# Seconds between two lines of progress: on a terminal, where they overwrite
# each other, and in a file.
_TERMINAL_SECONDS, _FILE_SECONDS = 0.5, 15.0


def digest(ids: np.ndarray) -> str:
    """64 bits of a set of ids, as 16 hexadecimal digits.

    Equal for equal sets in any order, so that two draws can be compared
    whatever order the rows lie in.

    Args:
        ids: integers, any shape.
    """
    ordered = np.sort(np.asarray(ids, "<i8"), axis=None)
    return hashlib.blake2b(ordered.tobytes(), digest_size=8).hexdigest()


def examples_at(config: config_lib.TrainConfig, step: int) -> dict[str, int]:
    """Examples drawn, scored and trained in the first `step` steps."""
    drawn = step * config.data.super_batch_size
    scored = drawn if config.selection.scores else 0
    return {
        "examples/drawn": drawn,
        "examples/scored": scored,
        "examples/trained": step * config.batch_size,
    }


class Ledger(keras.callbacks.Callback):
    """Writes a run's log while `fit` runs, and shows how far it is.

    Every `evaluation.log_every_steps` steps, and after the last, a line of
    `metrics.jsonl` and the same numbers for TensorBoard: the model's metrics
    over the steps since the line before, `select/digest` of the step's own
    draw, examples drawn, scored and trained, and seconds of training so far.
    `evaluation.log_ids` adds the ids of these draws in `draws.jsonl`.

    Args:
        config: the run.
        workdir: the run directory.
        start_step: steps already done.
        stream: where progress is shown; None is standard error.
    """

    def __init__(
        self,
        config: config_lib.TrainConfig,
        workdir: str,
        *,
        start_step: int = 0,
        stream: TextIO | None = None,
    ):
        super().__init__()
        self._config = config
        self._workdir = workdir
        self._start_step = start_step
        self._stream = stream or sys.stderr
        self._seconds_before = _last_seconds(
            self._path(checkpoint.METRICS_FILE)
        )
        self._writer = tf.summary.create_file_writer(
            os.path.join(workdir, "tensorboard")
        )
        self._started = self._shown = time.monotonic()
        self._restored = None

    def on_train_begin(self, logs=None):
        """Starts the clock."""
        self._started = self._shown = time.monotonic()
        if self._start_step:
            variables = self.model.metrics_variables
            self._restored = [variable.numpy() for variable in variables]

    def on_epoch_begin(self, epoch, logs=None):
        """Takes up the means where a checkpoint left them."""
        # Keras resets them between the start of the training and this.
        if self._restored is not None:
            variables = self.model.metrics_variables
            for variable, value in zip(variables, self._restored, strict=True):
                variable.assign(value)
            self._restored = None

    def on_train_batch_end(self, batch, logs=None):
        """Writes a line if the step is due."""
        step = self._start_step + batch + 1
        every = self._config.evaluation.log_every_steps
        if step % every == 0 or step == self._config.steps:
            self._write(step)
        self._show(step, logs)

    def on_train_end(self, logs=None):
        """Leaves the last line of progress standing."""
        self._writer.flush()
        if self._stream.isatty():
            self._stream.write("\n")

    def _write(self, step):
        row = {"step": step}
        for name, value in self.model.get_metrics_result().items():
            row[name if "/" in name else f"train/{name}"] = float(value)
        self.model.reset_metrics()
        ids = self.model.drawn_ids
        if ids is not None:
            row["select/digest"] = digest(ids.numpy())
        row |= examples_at(self._config, step)
        row["seconds"] = round(self._seconds(), 3)
        self._append(checkpoint.METRICS_FILE, row)
        if ids is not None and self._config.evaluation.log_ids:
            drawn = {"step": step, "ids": ids.numpy().tolist()}
            self._append(checkpoint.DRAWS_FILE, drawn)
        self.log_scalars(step, row)

    def log_scalars(self, step: int, values: dict) -> None:
        """Hands the numbers among `values` to TensorBoard."""
        with self._writer.as_default(step=step):
            for name, value in values.items():
                if name != "step" and not isinstance(value, str):
                    tf.summary.scalar(name, value)

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
            f"  {_clock(left)} left"
        )
        end = "" if on_terminal else "\n"
        start = "\r\033[K" if on_terminal else ""
        self._stream.write(f"{start}{line}{end}")
        self._stream.flush()

    def _seconds(self):
        return self._seconds_before + time.monotonic() - self._started

    def _append(self, name, row):
        with open(self._path(name), "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _path(self, name):
        return os.path.join(self._workdir, name)


def read_log(path: str) -> list[dict]:
    """The lines of a `.jsonl` file that a run wrote."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _last_seconds(path):
    rows = read_log(path) if os.path.isfile(path) else []
    return rows[-1]["seconds"] if rows else 0.0


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"

"""The state of a run on disk: written whole or not at all, found again.

A checkpoint is one `.weights.h5` file with the weights, the optimizer's state,
the running metrics and the state of random layers, and a checksum at its end.
Data, draws and augmentation are functions of (seed, step), so the step is all
that a run needs beside it. Logs are cut back to the checkpoint that a run
continues from (the log of faults does so itself). What stops a run is in
`runs/interruptions.py`.
"""

import contextlib
import json
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Sequence

import h5py
import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.util import event_pb2

from jest_tf import files

METRICS_FILE = "metrics.jsonl"
DRAWS_FILE = "draws.jsonl"
EVALUATION_FILE = "evaluation.jsonl"
TELEMETRY_FILE = "telemetry.jsonl"
FAULTS_FILE = "faults.jsonl"
FLOPS_FILE = "flops.json"
TENSORBOARD_FOLDER = "tensorboard"

_LOGS = (METRICS_FILE, DRAWS_FILE, EVALUATION_FILE, TELEMETRY_FILE)
_FOLDER = "checkpoints"
_NAME = "step-{:09d}.weights.h5"
_DAMAGED = "step-{:09d}.damaged"
# HDF5 doesn't look behind the end that its header tells.
_CHECKSUM = b"jest_tf crc32 %08x\n"
_CHECKSUM_SIZE = len(_CHECKSUM % 0)
_BLOCK = 2**20  # bytes read at a time
_RANDOM_STATES = "random_states"


class NotFinite(ValueError):
    """Numbers of a run are NaN or infinite.

    Attributes:
        names: what is not finite: "loss", "select/score", or names of
            variables.
        values: the loss, temperature and bias of the step, where known.
    """

    def __init__(
        self, names: Sequence[str], values: dict[str, float] | None = None
    ):
        shown = ", ".join(names[:3])
        if len(names) > 3:
            shown += f" and {len(names) - 3} more"
        super().__init__(f"Expected finite numbers. Received: {shown}")
        self.names = tuple(names)
        self.values = dict(values or {})


def delete_partial(workdir: str) -> None:
    """Deletes what a killed process has left half-written."""
    for part in ("", _FOLDER, TENSORBOARD_FOLDER):
        folder = os.path.join(workdir, part)
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            path = os.path.join(folder, name)
            # Sidecars that are being written lie here if they were told to.
            ours = files.PARTIAL in name and ".sidecar" not in name
            if ours and os.path.isfile(path):
                os.remove(path)


def save_weights(model: keras.Model, path: str) -> None:
    """Writes `model`'s weights to `path` in one atomic step.

    The file ends with a checksum, which readers of HDF5 pass over.
    """
    # Keras wants the suffix, so the half-written file carries it too.
    with files.written_whole(path, ".weights.h5") as partial:
        model.save_weights(partial)
        states = _random_states(model)
        if states:
            with h5py.File(partial, "a") as file:
                for index, state in enumerate(states):
                    file[f"{_RANDOM_STATES}/{index}"] = state.numpy()
        checksum = _crc32(partial, os.path.getsize(partial))
        with open(partial, "ab") as file:
            file.write(_CHECKSUM % checksum)


class StepCallback(keras.callbacks.Callback):
    """Counts the steps of a run, over epochs and executions of several steps.

    Attributes:
        step: steps done; `previous` of them before the last execution.

    Args:
        start_step: steps done before this `fit`.
    """

    def __init__(self, start_step: int = 0):
        super().__init__()
        self.step = self.previous = self._epoch_start = start_step

    def on_epoch_begin(self, epoch, logs=None):
        """Notes where the epoch starts, because Keras counts from there."""
        self._epoch_start = self.step

    def on_train_batch_end(self, batch, logs=None):
        """Counts."""
        self.previous, self.step = self.step, self._epoch_start + batch + 1

    def passed(self, every: int) -> bool:
        """Whether the last execution made a step that `every` divides."""
        return self.step // every > self.previous // every


class Checkpoints(StepCallback):
    """Saves the state when it is due, and deletes what is not to be kept.

    A checkpoint is due every so many steps, every so many minutes, after the
    last step, and where an evaluation was better than all before.

    Args:
        workdir: the run directory.
        every_steps: steps between two checkpoints.
        every_minutes: also save when so many have passed; None does not.
        keep: checkpoints that stay, the newest.
        keep_best: a measure of `evaluation.jsonl`; the checkpoint where it was
            highest stays too. "" is none.
        start_step: steps done before this `fit`.
        last_step: the step that ends the run.
        guard: makes what a save is done within, so that no signal breaks it.
        agree: whether all workers save now, of whether this one would; asked
            where that isn't plain from the step.

    Attributes:
        seconds: spent saving.
    """

    def __init__(
        self,
        workdir: str,
        *,
        every_steps: int,
        every_minutes: float | None = None,
        keep: int,
        keep_best: str = "",
        start_step: int = 0,
        last_step: int,
        guard: Callable = contextlib.nullcontext,
        agree: Callable[[bool], bool] = bool,
    ):
        super().__init__(start_step)
        self.seconds = 0.0
        self._guard = guard
        self._agree = agree
        self._workdir = workdir
        self._folder = os.path.join(workdir, _FOLDER)
        self._every_steps = every_steps
        self._every_seconds = every_minutes and 60.0 * every_minutes
        self._keep = keep
        self._keep_best = keep_best
        self._last_step = last_step
        self._find_not_finite = None
        self._saved_at = time.monotonic()
        os.makedirs(self._folder, exist_ok=True)

    def on_train_begin(self, logs=None):
        """Starts the clock."""
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        """Saves if a checkpoint is due."""
        super().on_train_batch_end(batch, logs)
        if (
            self.passed(self._every_steps)
            or self.step == self._last_step
            or (self._every_seconds and self._agree(self._is_late()))
        ):
            self.save()

    def on_evaluation(self, step: int, measures: dict[str, float]) -> None:
        """Saves where an evaluation of the state was the best.

        Args:
            step: the step that was evaluated.
            measures: what `evaluation.jsonl` holds of it.

        Raises:
            ValueError: where `keep_best` is none of the measures.
        """
        if not self._keep_best:
            return
        if self._keep_best not in measures:
            raise ValueError(
                "`checkpoint.keep_best` must be a measure of the evaluation: "
                f"one of {sorted(measures)}. Received: {self._keep_best!r}"
            )
        best = best_step(self._workdir, self._keep_best)
        if self.step == self._last_step:
            self._delete_old()  # saved when it was made
        elif self._agree(step == self.step == best):
            self.save()

    def save(self) -> None:
        """Saves the state as it is, unless it is saved already.

        Raises:
            NotFinite: where a weight or the optimizer's state is not finite;
                nothing is written.
        """
        started = time.monotonic()
        with self._guard():
            self._save()
        self.seconds += time.monotonic() - started

    def _is_late(self):
        return time.monotonic() - self._saved_at >= self._every_seconds

    def _save(self):
        path = os.path.join(self._folder, _NAME.format(self.step))
        if self.step and not os.path.isfile(path):
            if self._find_not_finite is None:
                variables = [
                    *self.model.weights,
                    *self.model.optimizer.variables,
                ]
                self._find_not_finite = finder_of_not_finite(variables)
            names = self._find_not_finite()
            if names:
                raise NotFinite(names)
            for name in (
                *_LOGS,
                FAULTS_FILE,
            ):  # a checkpoint never outlives its logs
                log = os.path.join(self._workdir, name)
                if os.path.isfile(log):
                    files.sync(log)
            save_weights(self.model, path)
        self._saved_at = time.monotonic()
        self._delete_old()

    def _delete_old(self):
        steps = saved_steps(self._workdir)
        kept = set(steps[-self._keep :])
        if self._keep_best:
            kept.add(best_step(self._workdir, self._keep_best, steps))
        for step in steps:
            if step not in kept:
                os.remove(os.path.join(self._folder, _NAME.format(step)))


def finder_of_not_finite(variables: Sequence):
    """A function that names those of `variables` that are not finite now."""
    watched = [
        variable
        for variable in variables
        if tf.as_dtype(variable.dtype).is_floating
    ]

    @tf.function
    def finite():
        return tf.stack(
            [
                tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(variable)))
                for variable in watched
            ]
        )

    def find() -> list[str]:
        flags = finite().numpy() if watched else ()
        return [
            variable.path
            for variable, flag in zip(watched, flags, strict=True)
            if not flag
        ]

    return find


def saved_steps(workdir: str) -> list[int]:
    """The steps that a run directory holds checkpoints of, ascending."""
    folder = os.path.join(workdir, _FOLDER)
    if not os.path.isdir(folder):
        return []
    found = (
        re.fullmatch(r"step-(\d+)\.weights\.h5", name)
        for name in os.listdir(folder)
    )
    return sorted(int(match[1]) for match in found if match)


def best_step(
    workdir: str, measure: str, among: Sequence[int] | None = None
) -> int | None:
    """The step whose evaluation was highest; of equal ones the first.

    Args:
        workdir: the run directory.
        measure: its name in `evaluation.jsonl`.
        among: steps to look at; None takes all that were evaluated.

    Returns:
        The step, None if there is none.
    """
    path = os.path.join(workdir, EVALUATION_FILE)
    values = {}
    for row, _ in _rows(path) if os.path.isfile(path) else ():
        if measure in row and (among is None or row["step"] in among):
            values.setdefault(row["step"], row[measure])
    return max(values, key=lambda step: (values[step], -step), default=None)


def restore(model: keras.Model, workdir: str) -> int:
    """Loads the newest whole checkpoint and cuts the logs back to its step.

    Args:
        model: compiled and built, its optimizer too.
        workdir: the run directory.

    Returns:
        The step that was restored, 0 if there is no checkpoint.

    Raises:
        ValueError: as `load`.
    """
    step = load(model, workdir)
    for name in _LOGS:
        _cut(os.path.join(workdir, name), step)
    _cut_events(os.path.join(workdir, TENSORBOARD_FOLDER), step)
    return step


def load(model: keras.Model, workdir: str, step: int | None = None) -> int:
    """Loads the newest whole checkpoint, or that of a step.

    A damaged newest one is renamed, with a line on standard error, and the one
    before is taken.

    Args:
        model: compiled and built, its optimizer too.
        workdir: the run directory.
        step: of the checkpoint; None is the newest.

    Returns:
        The step that was loaded, 0 if there is no checkpoint.

    Raises:
        ValueError: if all checkpoints are damaged, the one to load is of
            another model, or there is none of `step`.
    """
    if step is None:
        step = _newest_whole(workdir)
    elif step not in saved_steps(workdir):
        raise ValueError(
            f"`step` must be one of the checkpoints of {workdir!r}, "
            f"{saved_steps(workdir)}. Received: {step}"
        )
    if step:
        path = os.path.join(workdir, _FOLDER, _NAME.format(step))
        _load(model, path)
        # In the scope of a strategy `int` of a variable fails.
        done = int(model.optimizer.iterations.numpy())
        if done != step:
            raise ValueError(
                f"{path} must be of a model that has made {step} steps. "
                f"Received: {done} steps"
            )
    return step


def _newest_whole(workdir):
    steps = saved_steps(workdir)
    for step in reversed(steps):
        path = os.path.join(workdir, _FOLDER, _NAME.format(step))
        fault = _fault(path)
        if fault is None:
            return step
        renamed = os.path.join(workdir, _FOLDER, _DAMAGED.format(step))
        # Another worker may have been faster.
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, renamed)
        print(
            f"{path} is damaged: {fault}; renamed to {renamed}, looking for "
            "the checkpoint before it",
            file=sys.stderr,
            flush=True,
        )
    if steps:
        raise ValueError(
            f"All checkpoints of {workdir!r} are damaged; expected one that is "
            "whole, or none, to start again from step 0. Received: damaged "
            f"ones of steps {steps}"
        )
    return 0


def _fault(path):
    """What is wrong with the file, None if its checksum is right."""
    if not os.path.exists(path):
        return "another worker has renamed it"
    size = os.path.getsize(path) - _CHECKSUM_SIZE
    if size < 0:
        return f"{size + _CHECKSUM_SIZE} bytes"
    with open(path, "rb") as file:
        file.seek(size)
        found = file.read()
    if found[:-9] != (_CHECKSUM % 0)[:-9]:
        return "no checksum at its end"
    if found != _CHECKSUM % _crc32(path, size):
        return "its checksum is another"
    return None


def _crc32(path, size):
    """CRC-32 of the first `size` bytes of a file."""
    checksum = 0
    with open(path, "rb") as file:
        while size > 0:
            block = file.read(min(_BLOCK, size))
            checksum = zlib.crc32(block, checksum)
            size -= len(block)
    return checksum


def _load(model, path):
    states = _random_states(model)
    try:
        model.load_weights(path)
        for index, state in enumerate(states):
            with h5py.File(path, "r") as file:
                state.assign(np.array(file[f"{_RANDOM_STATES}/{index}"]))
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path} must hold the state of this very model: it is whole, but "
            f"was written with other code. Received: {error}"
        ) from error


def _random_states(model):
    """The variables that Keras counts as no weights: of dropout, for one."""
    return [
        variable
        for variable in model.variables
        if variable.path.endswith("seed_generator_state")
    ]


def _rows(path):
    """The objects of a `.jsonl` file and their lines, without half ones."""
    # Bytes that a power cut has left need not be UTF-8.
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "step" in row:
                yield row, line.rstrip("\n") + "\n"


def _cut(path, last_step):
    """Drops the lines of steps after `last_step`, and half-written ones."""
    if not os.path.isfile(path):
        return
    with files.written_whole(path) as partial:
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(
                line for row, line in _rows(path) if row["step"] <= last_step
            )


def _cut_events(folder, last_step):
    """Drops TensorBoard's events of steps after `last_step`."""
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        if all(
            step is not None and step <= last_step for step, _ in _events(path)
        ):
            continue
        with files.written_whole(path) as partial:
            with tf.io.TFRecordWriter(partial) as writer:
                for step, event in _events(path):
                    if step is not None and step <= last_step:
                        writer.write(event)


def _events(path):
    """Step and bytes of each event; at last (None, b"") if it is cut off."""
    try:
        for event in tf.data.TFRecordDataset(path).as_numpy_iterator():
            yield event_pb2.Event.FromString(event).step, event
    except tf.errors.DataLossError:
        yield None, b""
